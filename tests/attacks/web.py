"""The HTTP API under what clients send: broken pictures, lying headers, paths that lead out, slow
and vanishing clients, new indexes.
"""

import contextlib
import http.client
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from attack import Case, judged, project
from images import enc, pictures, scene


class Server:
    "A server in this process, on a free port, with its own thread; `said` is what it warned of"

    def __init__(self, p, **options):
        from two_tower_vs.access import Access
        from two_tower_vs.protocol import listening_socket, uvicorn_server
        from two_tower_vs.serve import make_app

        self.p = p
        self.sock = listening_socket('127.0.0.1', 0)
        self.said = []
        options = dict(timeout_s=60, every=0.05, access=Access(('127.0.0.1',))) | options
        self.app = make_app(p / 'out', p / 'images', p / 'query_gt.csv', **options)
        self.site = self.app.state.site
        self.port, self.uvicorn = (
            self.sock.getsockname()[1],
            uvicorn_server(self.app, options['timeout_s']),
        )
        self.uvicorn.config.timeout_graceful_shutdown = min(5, options['timeout_s'])
        logging.getLogger('uvicorn.error').setLevel('CRITICAL')
        self.thread = threading.Thread(target=self.uvicorn.run, kwargs=dict(sockets=[self.sock]))
        self.thread.start()

    def close(self):
        self.uvicorn.should_exit = True
        self.thread.join()

    def ask(
        self, method, path, body=None, headers=(), host='127.0.0.1'
    ):  # (status, JSON or bytes, headers)
        c = http.client.HTTPConnection('127.0.0.1', self.port, timeout=30)
        try:
            return self.answer(c, method, path, body, headers, host)
        finally:
            c.close()

    def answer(self, c, method, path, body=None, headers=(), host='127.0.0.1'):
        c.putrequest(method, path, skip_host=True)
        c.putheader('Host', host)
        for k, v in dict(headers).items():
            c.putheader(k, v)
        if body is not None and 'Transfer-Encoding' not in dict(headers):
            c.putheader('Content-Length', str(len(body)))
        c.endheaders(body, encode_chunked='Transfer-Encoding' in dict(headers))
        return read(c.getresponse())

    def post(self, data, topk=5, **headers):
        return self.ask(
            'POST',
            f'/search?topk={topk}',
            data,
            {'Content-Type': 'application/octet-stream', **headers},
        )

    def raw(self, data, seconds=10):  # what comes back for these bytes, until the server closes
        with socket.create_connection(('127.0.0.1', self.port), timeout=seconds) as s:
            s.sendall(data)
            out = b''
            with contextlib.suppress(OSError):
                while b := s.recv(65536):
                    out += b
            return out


def read(r):
    b = r.read()
    return r.status, json.loads(b) if 'json' in r.headers.get('content-type', '') else b, r.headers


def form(parts, boundary='b0undary'):
    "A multipart body of [(headers of the part, content)]"
    return (
        b''.join(f'--{boundary}\r\n{h}\r\n\r\n'.encode() + c + b'\r\n' for h, c in parts)
        + f'--{boundary}--\r\n'.encode()
    )


FILE = 'Content-Disposition: form-data; name="image"; filename="a.png"'
FORM = {'Content-Type': 'multipart/form-data; boundary=b0undary'}


def told(name, got, want, says='', also=True, tries=1):
    "A case whose answer should have this status, and be JSON with a reason if it refuses"
    status, d, _ = got
    wants = want if isinstance(want, tuple) else (want,)
    problems = []
    e = d.get('error', {}) if isinstance(d, dict) else {}
    if status not in wants:
        problems.append(f'status {status}, not {wants}: {str(d)[:200]}')
    if status >= 400 and not (e.get('reason') and e.get('detail') and e.get('status') == status):
        problems.append(f'no reason: {str(d)[:200]}')
    if says and says not in str(d):
        problems.append(f'does not say {says!r}: {str(d)[:200]}')
    if not also:
        problems.append('something else is wrong')
    said = f'{status} {e["reason"]}: {e["detail"]}' if e else ''
    return Case(name, not problems, 2 if status >= 400 else 0, said, '; '.join(problems), tries)


# ---- pictures


def posted(s):
    for name, data, says in pictures():
        got = (
            s.post(data)
            if len(data) <= 2**20
            else s.ask('POST', '/search', form([(FILE, data)]), FORM)
        )
        good = says in ('scene', 'grey', 'read')
        yield told(
            f'POST {name}', got, 200 if good else (400, 422), '' if good or not data else says
        )


# ---- headers and bodies


def bodies(s):
    p = enc(scene(), 'PNG')
    ok = [(FILE, p)]
    big = bytes(21 * 2**20)
    for name, body, headers, want, says in [
        ('a form', form(ok), FORM, 200, 'hits'),
        ('the picture as the body', p, {'Content-Type': 'image/png'}, 200, 'hits'),
        ('no content type', p, {}, 200, 'hits'),
        ('a lying content type', p, {'Content-Type': 'image/jpeg'}, 200, 'hits'),
        (
            'a web form\'s content type',
            p,
            {'Content-Type': 'application/x-www-form-urlencoded'},
            415,
            'curl -F',
        ),
        ('JSON', b'{}', {'Content-Type': 'application/json'}, 415, ''),
        ('an empty body', b'', {'Content-Type': 'image/png'}, 400, 'empty'),
        ('an empty file in the form', form([(FILE, b'')]), FORM, 400, 'empty'),
        ('a form without parts', form([]), FORM, 400, 'no file'),
        ('another field', form([(FILE.replace('image', 'other'), p)]), FORM, 400, 'field image'),
        (
            'text in the field',
            form([('Content-Disposition: form-data; name="image"', p)]),
            FORM,
            400,
            '',
        ),
        ('nine files', form(ok * 9), FORM, 400, 'Too many files'),
        (
            'a hundred fields',
            form([('Content-Disposition: form-data; name="x"', b'y')] * 100),
            FORM,
            400,
            'Too many fields',
        ),
        (
            'a field of a megabyte',
            form([('Content-Disposition: form-data; name="x"', bytes(2**20))]),
            FORM,
            400,
            '',
        ),
        (
            'another boundary',
            form(ok),
            {'Content-Type': 'multipart/form-data; boundary=other'},
            400,
            '',
        ),
        ('no boundary', form(ok), {'Content-Type': 'multipart/form-data'}, 400, 'boundary'),
        (
            'a boundary of 5,000 letters',
            form(ok),
            {'Content-Type': f'multipart/form-data; boundary={"x" * 5000}'},
            400,
            '',
        ),
        (
            'an odd charset',
            form(ok),
            {'Content-Type': FORM['Content-Type'] + '; charset=nonsense'},
            200,
            '',
        ),
        ('a form that ends early', form(ok)[:-30], FORM, (200, 400, 422), ''),
        ('a part without a name', form([('Content-Disposition: form-data', p)]), FORM, 400, ''),
        ('a part whose header does not end', b'--b0undary\r\nX: ' + b'y' * 99999, FORM, 400, ''),
        (
            'a name that is not UTF-8',
            form([(FILE, p)]).replace(b'a.png', b'\xff\xfe.png'),
            FORM,
            200,
            '',
        ),
        ('a path as a name', form([(FILE.replace('a.png', '../../etc/passwd'), p)]), FORM, 200, ''),
        ('gzip that is none', p, {'Content-Encoding': 'gzip'}, 200, ''),
        ('21 MB', big, {'Content-Type': 'image/png'}, 413, 'over the limit of 20 MB'),
        ('21 MB in a form', form([(FILE, big)]), FORM, 413, 'over the limit of 20 MB'),
        (
            '21 MB in chunks',
            [bytes(2**20)] * 21,
            {'Transfer-Encoding': 'chunked', 'Content-Type': 'image/png'},
            413,
            'over the limit of 20 MB',
        ),
        (
            'a form in chunks',
            [form(ok)[i : i + 7] for i in range(0, len(form(ok)), 7)],
            FORM | {'Transfer-Encoding': 'chunked'},
            200,
            'hits',
        ),
    ]:
        yield told(f'body: {name}', s.ask('POST', '/search?topk=3', body, headers), want, says)
    huge = s.raw(
        b'POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: '
        b'image/png\r\nContent-Length: 99999999999999999999999\r\n\r\nx'
    )
    yield Case(
        'a content length of 10^23',
        huge.startswith((b'HTTP/1.1 413', b'HTTP/1.1 400')),
        2,
        '',
        str(huge[:300]),
    )
    for n in (b'-1', b'abc', b'1, 2'):
        b = s.raw(
            b'POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: '
            b'image/png\r\nContent-Length: ' + n + b'\r\n\r\nx'
        )
        yield Case(
            f'a content length of {n.decode()}', b.startswith(b'HTTP/1.1 4'), 2, '', str(b[:300])
        )


def endless(s, long):
    "An upload in chunks without end: refused at 20 MB, and cut soon after"
    sent = 0
    start = time.time()
    before = memory()
    most = 0
    with socket.create_connection(('127.0.0.1', s.port), timeout=15) as c:
        c.sendall(
            b'POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: '
            b'image/png\r\nTransfer-Encoding: chunked\r\n\r\n'
        )
        chunk = b'100000\r\n' + bytes(2**20) + b'\r\n'
        with contextlib.suppress(OSError):
            while time.time() - start < 15:
                c.sendall(chunk)
                sent += 1
                most = max(most, memory() - before)
        with contextlib.suppress(OSError):
            c.recv(4096)
    took = time.time() - start
    yield Case(
        'a chunked upload without end is cut off',
        took < 10 and most < 150,
        2,
        '413 too large',
        f'{took:.1f} s, {sent} MB, {most:.0f} MB more memory',
        1,
    )


def memory():
    return int(re.search(r'VmRSS:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1024


def parameters(s):
    p = enc(scene(), 'PNG')
    n = len(s.site.now.shows.paths)
    for k, want in {
        '1': 200,
        '1000': 200,
        '0': 422,
        '-1': 422,
        '1001': 422,
        '99999999999999999999': 422,
        '9' * 5000: 422,
        'NaN': 422,
        '1e2': 422,
        'inf': 422,
        '': 422,
        '%00': 422,
        '5;drop': 422,
        '٣': (200, 422),
    }.items():
        yield told(
            f'topk={k[:20]}',
            s.ask(
                'POST',
                f'/search?topk={k}' if k.isascii() else '/search?topk=%D9%A3',
                p,
                {'Content-Type': 'image/png'},
            ),
            want,
        )
    for q, want in {
        '': 422,
        '?id=0': 200,
        f'?id={n}': 404,
        '?id=-1': 404,
        '?id=x': 422,
        '?id=0&query=0': 422,
        '?query=0': 200,
        '?query=99999': 404,
        '?query=-1': 404,
        '?id=0&v=old': 410,
        '?id=' + '9' * 5000: 422,
        '?id=' + '9' * 400: (404, 422),
        '?id=1.0': (200, 422),
        '?id=0&id=1': 200,
        '?id=%ff': 422,
    }.items():
        yield told(f'GET /search{q[:24]}', s.ask('GET', f'/search{q}'), want)
    for q in (
        'kind=none',
        'limit=0',
        'limit=1000000',
        'offset=-1',
        'offset=99999999999999999999',
        'offset=x',
        'kind=%00',
    ):
        yield told(f'GET /examples?{q}', s.ask('GET', f'/examples?{q}'), 422)
    yield told('GET /examples beyond the end', s.ask('GET', '/examples?offset=1000000'), 200)
    for m in ('PUT', 'DELETE', 'PATCH', 'OPTIONS', 'TRACE', 'FOO'):
        yield told(f'{m} /search', s.ask(m, '/search'), 400 if m == 'FOO' else 405)
    for h in ('evil.example', '127.0.0.1.evil.example', '', '127.0.0.1:80@evil.example', '[::1'):
        yield told(f'Host: {h}', s.ask('GET', '/health', host=h), 421)
    yield told(
        'Host: 127.0.0.1 with a port', s.ask('GET', '/health', host=f'127.0.0.1:{s.port}'), 200
    )


def paths(s):
    secret = s.p / 'secret.txt'
    secret.write_text('secret')
    n = len(s.site.now.shows.paths)
    tries = [
        '..',
        '../secret.txt',
        '..%2fsecret.txt',
        '%2e%2e/%2e%2e/secret.txt',
        '%2e%2e%2fsecret.txt',
        '..%5csecret.txt',
        '....//secret.txt',
        '/etc/passwd',
        '%2fetc%2fpasswd',
        '//etc/passwd',
        quote(str(secret)),
        str(n),
        '-1',
        '1e0',
        '0x1',
        '9' * 5000,
        '9' * 30,
        '0/../1',
        '0;1',
        '0%00',
        '%F0%9F%90%98',
        'NaN',
        '',
        '0.png',
        'color/x.png',
        '1?side=0',
        '1?side=-5',
        '1?side=99999',
        '1?side=x',
        '1?v=%00',
    ]
    for t in tries:
        got = s.ask('GET', f'/image/{t}')
        yield told(
            f'GET /image/{t[:40]}',
            got,
            (404, 410, 422),
            also=b'secret' not in (got[1] if isinstance(got[1], bytes) else b''),
        )
    for f in (
        '/page.py',
        '/../serve.py',
        '/page.css/../serve.py',
        '/%2e%2e/serve.py',
        '/serve.py',
        '//',
        '/docs/../../x',
        '/openapi.json/',
    ):
        yield told(f'GET {f}', s.ask('GET', f), (404, 307) if f.endswith('/') else 404)


def answers(b):  # [(status, JSON or bytes, headers)] in what a server sent
    class Sent(io.BytesIO):
        def makefile(self, *a):
            return self

        def close(self):
            return None

    b = Sent(b)
    found = []
    while b.tell() < len(b.getbuffer()):
        r = http.client.HTTPResponse(b)
        r.begin()
        found.append(read(r))
    return found


GET, POST = (
    f'{m} HTTP/1.1\r\nHost: 127.0.0.1\r\n'.encode() for m in ('GET /health', 'POST /search')
)
CHUNKED = b'Transfer-Encoding: chunked\r\n'
EMPTY = b'0\r\n\r\n'


def heads(s):
    """Requests that are none, or that a proxy in front could understand in another way: one
    answer, and nothing after it is taken for a request
    """
    for name, b, want in [
        ('garbage', b'\x16\x03\x01\x02\x00\x01\x00' + os.urandom(50), 400),
        ('HTTP/9', b'GET / HTTP/9.9\r\n\r\n', 400),
        ('no host', b'GET /health HTTP/1.1\r\n\r\n', 421),
        (
            'two hosts',
            b'GET /health HTTP/1.1\r\nHost: evil.example\r\nHost: 127.0.0.1\r\n\r\n',
            400,
        ),
        ('a header with a zero', GET + b'X: a\0b\r\n\r\n', 400),
        ('HTTP/2', b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n', 400),
        ('two lengths', POST + b'Content-Length: 3\r\nContent-Length: 5\r\n\r\nabcde', 400),
        ('a length of +3', POST + b'Content-Length: +3\r\n\r\nabc', 400),
        ('length and chunks', POST + b'Content-Length: 4\r\n' + CHUNKED + b'\r\n' + EMPTY, 400),
        ('chunks and length', POST + CHUNKED + b'Content-Length: 4\r\n\r\n' + EMPTY, 400),
        ('xchunked', POST + b'Transfer-Encoding: xchunked\r\n\r\n' + EMPTY, 400),
        ('chunked, identity', POST + b'Transfer-Encoding: chunked, identity\r\n\r\n' + EMPTY, 400),
        ('two codings', POST + CHUNKED + b'Transfer-Encoding: identity\r\n\r\n' + EMPTY, 400),
        ('a space before the colon', POST + b'Transfer-Encoding : chunked\r\n\r\n' + EMPTY, 400),
        ('a tab before the value', POST + b'Transfer-Encoding:\x0bchunked\r\n\r\n' + EMPTY, 400),
        ('chunks in HTTP/1.0', POST.replace(b'1.1', b'1.0') + CHUNKED + b'\r\n' + EMPTY, 400),
        ('a folded line', POST + b'X: a\r\n Content-Length: 4\r\n\r\n', 400),
        ('a bare CR', POST + b'X: a\rContent-Length: 5\r\n\r\n', 400),
        ('bare LFs', POST.replace(b'\r\n', b'\n') + b'Content-Length: 0\n\n', 400),
        ('a bad chunk', POST + CHUNKED + b'\r\nzz\r\n', (400, 415)),
        ('a chunk of 0x1', POST + CHUNKED + b'\r\n0x1\r\nx\r\n' + EMPTY, 400),
        ('a chunk of 2^64', POST + CHUNKED + b'\r\n1' + b'0' * 16 + b'\r\nx\r\n' + EMPTY, 400),
        ('chunks that end in LF', POST + CHUNKED + b'\r\n1\nx\n0\n\n', 400),
    ]:
        got = answers(s.raw(b + GET + b'Connection: close\r\n\r\n'))
        yield told(
            f'request: {name}',
            got[0] if got else (0, '', {}),
            want,
            also=len(got) == 1 or want == 421,
        )
    got = answers(s.raw((GET + b'\r\n') * 20 + GET + b'Connection: close\r\n\r\n' + GET + b'\r\n'))
    yield Case(
        '21 requests at once, the last one with close, and one after it',
        [g[0] for g in got] == [200] * 21,
        0,
        '',
        str([g[0] for g in got]),
        22,
    )


def bombs(s):
    "What has no end before a body begins, or after it: cut off, and never kept"
    for name, first, more in [
        ('headers', GET, b'X-a: b\r\n' * 2000),
        ('a header', GET + b'X: ', b'y' * 2**16),
        ('an address', b'GET /', b'y' * 2**16),
        ('empty lines', b'', b'\r\n' * 2**15),
        (
            'trailers',
            POST + CHUNKED + b'Content-Type: image/png\r\n\r\n1\r\nx\r\n0\r\n',
            b'X-a: b\r\n' * 2000,
        ),
        ('a chunk\'s name', POST + CHUNKED + b'Content-Type: image/png\r\n\r\n1;', b'y' * 2**16),
    ]:
        sent = 0
        most = 0
        before = memory()
        end = time.time() + 10
        with (
            socket.create_connection(('127.0.0.1', s.port), timeout=5) as c,
            contextlib.suppress(OSError),
        ):
            c.sendall(first)
            while time.time() < end and sent < 2**29:
                c.sendall(more)
                sent += len(more)
                most = max(most, memory() - before)
        took = time.time() - end + 10
        yield Case(
            f'{name} without end',
            sent < 50 * 2**20 and took < 8 and most < 50,
            2,
            '431 headers too large',
            f'{sent / 2**20:.0f} MB sent, {took:.1f} s, {most:.0f} MB more memory',
        )
    got = answers(
        s.raw(GET + b'X: ' + b'y' * 2**15 + b'\r\n\r\n' + GET + b'Connection: close\r\n\r\n')
    )
    yield Case(
        'a header of 32 KB is taken', [g[0] for g in got] == [200, 200], 0, '', str(got)[:200]
    )
    # Slowly enough to read the answer
    with socket.create_connection(('127.0.0.1', s.port), timeout=5) as c:
        c.sendall(GET)
        with contextlib.suppress(OSError):
            for _ in range(12):
                c.sendall(b'X: ' + b'y' * 8000 + b'\r\n')
                time.sleep(0.05)
        yield told('headers of 96 KB', answers(c.recv(9999))[0], 431)


# ---- slow and vanishing clients


def slow(p):
    "Connections that send a byte now and then, or stop in the middle"
    s = Server(p, timeout_s=2)
    try:
        yield from slow_clients(s)
    finally:
        s.close()


def slow_clients(s):
    starts = [
        b'',
        b'GET /hea',
        b'POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\nContent-Type: '
        b'image/png\r\n\r\nabc',
        b'GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-',
    ]

    def one(i):
        start = time.time()
        with (
            socket.create_connection(('127.0.0.1', s.port), timeout=12) as c,
            contextlib.suppress(OSError),
        ):
            c.sendall(starts[i % 4])
            c.settimeout(0.3)
            last = b''
            while time.time() - start < 12:
                try:
                    if not (b := c.recv(4096)):
                        break
                    last += b
                except TimeoutError:
                    c.sendall(b'x' * (i % 4 != 0))
            return time.time() - start, last
        return time.time() - start, b''

    with ThreadPoolExecutor(40) as ex:
        found = [ex.submit(one, i) for i in range(40)]
        time.sleep(0.5)
        alive = s.post(enc(scene(), 'PNG'))
        found = [f.result() for f in found]
    worst = max(t for t, _ in found)
    said = {b.split(b'\r\n')[0] for _, b in found if b}
    yield told('40 slow connections: others are answered', alive, 200)
    yield Case(
        '40 slow connections are closed after the time limit',
        worst < 9
        and said
        <= {
            b'HTTP/1.1 408 Request Timeout',
            b'HTTP/1.1 408 ',
            b'HTTP/1.1 400 Bad Request',
            b'HTTP/1.1 400 ',
        },
        2,
        '408 slow upload',
        f'{worst:.1f} s, {said}',
        40,
    )


def readers(p):
    "Clients that ask for pictures of 6 MB and read them slowly, or never"
    import numpy as np
    from PIL import Image

    s = Server(p, timeout_s=2)
    data = enc(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (1000, 2000, 3), np.uint8)), 'PNG'
    )
    (p / 'images' / s.site.now.shows.paths[0]).write_bytes(data)
    state = s.uvicorn.server_state

    def count():
        return (len(state.connections), len(state.tasks), s.site.unread)

    def asked(lines, close=b''):
        c = socket.socket()
        c.settimeout(10)
        c.connect(('127.0.0.1', s.port))
        request = b'GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n'
        c.sendall(b''.join(request % (path, close) for path in lines))
        return c

    try:
        before = memory()
        never = [
            asked(lines, b'Connection: close\r\n' * (i % 2))
            for i in range(10)
            for lines in (
                [b'/image/0'],
                [b'/page.js'] * 400,
                [b'/openapi.json'] * 400,
                [b'/image/0'] * 30,
            )
        ]
        time.sleep(1)
        held = count()
        more = memory() - before
        alive = s.post(enc(scene(), 'PNG'))
        until(lambda: count()[:2] == (0, 0), 12)
        yield told('40 clients that never read: others are answered', alive, 200)
        yield Case(
            '40 clients that never read are cut off, and what was kept for them is free',
            held[0] > 4 and count() == (0, 0, 0),
            0,
            '',
            f'{held} connections, requests, bytes; then {count()}; {more:.0f} MB more memory',
            40,
        )
        [c.close() for c in never]
        s.site.held_most = 20 * 2**20
        never = [asked([b'/image/0']) for _ in range(12)]
        until(lambda: s.site.unread > s.site.held_most)
        until(lambda: len(state.tasks) < 12, 1.5)
        yield told(
            'too many pictures that nobody reads',
            s.ask('GET', '/image/1'),
            503,
            'Try again',
            s.post(enc(scene(), 'PNG'))[0] == 200,
        )
        [c.close() for c in never]
        until(lambda: count() == (0, 0, 0))
        c = asked([b'/image/0'], b'Connection: close\r\n')
        got = b''
        start = time.time()
        with contextlib.suppress(OSError):
            while b := c.recv(2**15):
                got += b
                time.sleep(0.08)
        took = time.time() - start
        yield Case(
            'a picture that is read slowly, but read, arrives',
            got.endswith(data) and took > 5 * 2,
            0,
            '',
            f'{len(got)} of {len(data)} bytes in {took:.1f} s',
        )
        never = asked([b'/image/0'])
        time.sleep(0.5)
        start = time.time()
    finally:
        s.close()
    yield Case(
        'the server ends though a client does not read',
        time.time() - start < 6,
        0,
        '',
        f'{time.time() - start:.1f} s',
    )
    never.close()


def crowd(p):
    s = Server(p)
    there = s.site.connections
    there.most = 9
    there.each = 5

    def open_():
        return len(s.uvicorn.server_state.connections)

    def at(address, data=b''):
        c = socket.create_connection(('127.0.0.1', s.port), source_address=(address, 0))
        c.sendall(data)
        c.settimeout(5)
        return c

    begun = POST + b'Content-Length: 99999\r\nContent-Type: image/png\r\n\r\nabc'
    try:
        for name, data in (
            ('say nothing', b''),
            ('end in the middle of a header', POST),
            ('upload without end', begun),
        ):
            lines = [at('127.0.0.1', data) for _ in range(20)]
            until(lambda: open_() <= 5)
            got = s.post(enc(scene(), 'PNG'))
            yield told(
                f'20 connections of one address that {name}, where 5 may be open: the oldest end',
                got,
                200,
                also=open_() <= 5,
                tries=20,
            )
            others = [at(f'127.0.0.{i % 9 + 2}', data) for i in range(30)]
            until(lambda: open_() <= 9)
            got = s.post(enc(scene(), 'PNG'))
            yield told(
                f'30 connections of nine addresses that {name}, where 9 may be open',
                got,
                200,
                also=open_() <= 9,
                tries=30,
            )
            [c.close() for c in lines + others]
            until(lambda: not open_())
        there.most = 0
        got = s.ask('GET', '/health')
        yield told(
            'no place, and none of the connections waits for its client',
            got,
            503,
            'connections',
            got[2].get('Retry-After') == '1',
        )
        there.most = 9
        until(lambda: not open_())
        yield told('and when there is a place', s.ask('GET', '/health'), 200)
        # No more to come: whatever it answers, nothing stays behind
        for n in (0, 200, len(POST) + 30):
            with socket.create_connection(('127.0.0.1', s.port)) as c:
                c.sendall((POST + b'Content-Length: 99\r\nContent-Type: image/png\r\n\r\nabc')[:n])
                c.shutdown(socket.SHUT_WR)
                c.settimeout(5)
                c.recv(999)
        until(lambda: not s.uvicorn.server_state.connections)
        yield Case(
            'half-closed connections leave nothing',
            (len(s.uvicorn.server_state.connections), s.site.busy, s.site.held) == (0, 0, 0),
            0,
            '',
            '',
            3,
        )
    finally:
        s.close()


def vanish(s):
    p = enc(scene(), 'PNG')
    head = (
        b'POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: '
        b'image/png\r\nContent-Length: %d\r\n\r\n' % len(p)
    )
    for k in range(60):
        with socket.create_connection(('127.0.0.1', s.port)) as c:
            c.sendall((head + p)[: k * (len(head) + len(p)) // 50])
            # Ends with a reset
            c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')
    time.sleep(1)
    got = s.post(p)
    yield told(
        '60 clients that vanish midway',
        got,
        200,
        also=(s.site.busy, s.site.held, s.site.measures.statuses[500]) == (0, 0, 0),
        tries=60,
    )


def busy(p):
    "More searches than may wait: some are told to come again, none is lost"
    s = Server(p, waiting=4)
    pic = enc(scene().resize((2000, 1500)), 'PNG')
    try:
        with ThreadPoolExecutor(40) as ex:
            got = list(ex.map(lambda _: s.post(pic), range(120)))
    finally:
        s.close()
    count = {n: sum(g[0] == n for g in got) for n in {g[0] for g in got}}
    no = next((g for g in got if g[0] == 503), (0, {}, {}))
    yield told(
        '40 clients where 4 may wait',
        no,
        503,
        'Try again',
        set(count) == {200, 503} and no[2].get('Retry-After') == '1',
        120,
    )


# ---- new indexes


def swaps(s, long):
    """64 clients while the index is replaced again and again: every answer is wholly the old one's
    or wholly the new one's
    """
    import faiss

    from two_tower_vs.bundle import load_index, save_index
    from two_tower_vs.index import Index

    folder = s.p / 'out/index'
    old = load_index(folder, writable=True)
    n = len(old.paths)
    new = Index(
        faiss.IndexFlatIP(old.faiss.d), old.paths[::-1][: n - 7], dict(old.manifest, rows=n - 7)
    )
    new.faiss.add(old.faiss.reconstruct_n(0, n)[::-1][: n - 7].copy())
    pics = [p.read_bytes() for p in sorted((s.p / 'images/line').iterdir())[:16]]
    right = {}
    for index in (new, old):
        before = s.site.now.shows.version
        save_index(index, folder)
        until(lambda: s.site.now.shows.version != before)
        right[s.site.now.shows.version] = [
            [(h['id'], h['cand_path']) for h in s.post(d)[1]['hits']] for d in pics
        ]
    stop = threading.Event()
    found = []
    pictures = []

    def client(i):
        c = http.client.HTTPConnection('127.0.0.1', s.port, timeout=30)
        while not stop.is_set():
            try:
                st, d, _ = s.answer(
                    c, 'POST', '/search?topk=5', pics[i % 16], {'Content-Type': 'image/png'}
                )
                found.append(
                    ''
                    if st == 200
                    and [(h['id'], h['cand_path']) for h in d['hits']]
                    == right.get(d['version'], [])[i % 16]
                    else f'{st} {str(d)[:200]}'
                )
                if i % 8 == 0:
                    h = d['hits'][0]
                    st, b, _ = s.answer(c, 'GET', f'/image/{h["id"]}?v={d["version"]}')
                    # Of resvg: they hold no metadata
                    pictures.append(
                        st == 410 or b == (s.p / 'images' / h['cand_path']).read_bytes()
                    )
            except Exception as e:
                found.append(repr(e))
                c.close()
        c.close()

    reloads = s.site.measures.reloads
    with ThreadPoolExecutor(64) as ex:
        clients = [ex.submit(client, i) for i in range(64)]
        for k in range(40 if long else 10):
            r = s.site.measures.reloads
            save_index((new, old)[k % 2], folder)
            until(lambda: s.site.measures.reloads > r)
        stop.set()
        [c.result() for c in clients]
    bad = [f for f in found if f]
    k = s.site.measures.reloads - reloads
    yield Case(
        f'64 clients while the index is replaced {40 if long else 10} times',
        not bad and k >= 10,
        0,
        '',
        f'{len(bad)} of {len(found)}, first: {bad[:1]}; {k} reloads',
        len(found),
    )
    yield Case(
        'the pictures of their hits are those of the same list, or gone',
        bool(pictures) and all(pictures),
        0,
        '',
        f'{pictures.count(False)} of {len(pictures)}',
        len(pictures),
    )


def until(done, seconds=15):
    end = time.time() + seconds
    while not done() and time.time() < end:
        time.sleep(0.02)


def models(s, long):
    """16 clients while model and index are replaced, in the order in which train and index do: no
    request is lost, and vectors, list and threshold of an answer belong together
    """
    import torch

    from two_tower_vs.bundle import load_index, save_index
    from two_tower_vs.embed import embed
    from two_tower_vs.index import build_index
    from two_tower_vs.query import load_searcher
    from two_tower_vs.saving import load_model, save_model

    out = s.p / 'out'
    paths = load_index(out / 'index', writable=True).paths
    files = sorted((s.p / 'images/line').iterdir())[:16]
    pics = [f.read_bytes() for f in files]
    right = {}

    def made(i):  # another head, list and threshold
        m = load_model(out / 'model')
        g = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for t in (m.query, m.cand):
                t.head.weight.add_(
                    torch.randn(t.head.weight.shape, generator=g) * t.head.weight.std() * 2
                )
        m.training_info = {
            'match': {'threshold': (0.2, 0.4)[i], 'precision': 0.9, 'coverage': 1, 'queries': 9}
        }
        pair = s.p / f'pair {i}'
        sha = save_model(m, pair / 'model')
        mine = (paths[:-9], paths[::-1])[i]

        def vectors(t, names):
            return embed(t, names, s.p / 'images', out / 'cache').vectors

        index = build_index(
            embed(m.cand, mine, s.p / 'images', out / 'cache'),
            sha,
            vectors(m.query, [f'line/{f.name}' for f in files]),
        )
        save_index(index, pair / 'index')
        (pair / 'cache').symlink_to(out / 'cache')  # the same engine
        alone = load_searcher(pair)
        return m, index, [alone.search(f, 5) for f in files]  # what is right, without a server

    both = [made(i) for i in (0, 1)]

    def put(k):
        save_model(both[k][0], out / 'model')
        time.sleep(0.15)
        save_index(both[k][1], out / 'index')  # a request may come between
        until(
            lambda: (
                s.site.now.searcher.index.manifest['model_sha256']
                == both[k][1].manifest['model_sha256']
            )
        )

    def of(d):
        return (
            [h['id'] for h in d['hits']],
            [h['cand_path'] for h in d['hits']],
            d.get('threshold'),
        )

    for k, (_, index, alone) in enumerate(both):
        put(k)
        v = s.post(pics[0])[1]['version']
        where = {p: i for i, p in enumerate(index.paths)}
        right[v] = [
            (
                ([where[p] for p in h.cand_path], h.cand_path.tolist(), (0.2, 0.4)[k]),
                h.score.tolist(),
            )
            for h in alone
        ]
    stop = threading.Event()
    found = []
    seen = set()

    def client(i):
        c = http.client.HTTPConnection('127.0.0.1', s.port, timeout=30)
        while not stop.is_set():
            try:
                st, d, _ = s.answer(
                    c, 'POST', '/search?topk=5', pics[i], {'Content-Type': 'image/png'}
                )
                want, scores = right.get(d.get('version'), [((), [])] * 16)[i]
                seen.add(d.get('version'))
                good = (
                    st == 200
                    and of(d) == want
                    and max(abs(h['score'] - w) for h, w in zip(d['hits'], scores)) < 0.01
                    and all(h['match'] == (h['score'] >= d['threshold']) for h in d['hits'])
                )
                pairs = [(h['score'], round(w, 4)) for h, w in zip(d['hits'], scores)]
                why = f'{st} {of(d) == want} {pairs} {str(d)[:300]}, not {want}'
                found.append('' if good else why)
            except Exception as e:
                found.append(repr(e))
                c.close()
        c.close()

    before = s.site.measures.reloads
    with ThreadPoolExecutor(16) as ex:
        clients = [ex.submit(client, i) for i in range(16)]
        for k in range(20 if long else 4):
            put(k % 2)
            time.sleep(0.2)
        until(lambda: len(found) >= 200)
        stop.set()
        [c.result() for c in clients]
    bad = [f for f in found if f]
    n = s.site.measures.reloads - before
    yield Case(
        f'16 clients while the model is replaced {20 if long else 4} times',
        not bad and len(found) >= 200 and seen == set(right) and len(right) == 2 and n >= 4,
        0,
        '',
        f'{len(bad)} of {len(found)}, first: {bad[:1]}; {n} reloads',
        len(found),
    )


def broken_index(s, said):
    "What can't be used is refused with a warning, and the one before keeps answering"
    folder = s.p / 'out/index'
    keep = {f: f.read_bytes() for f in folder.iterdir()}
    pic = enc(scene(), 'PNG')

    def hits():
        return [h['cand_path'] for h in s.post(pic)[1].get('hits', [])]

    want = hits()

    def damage(name):
        if name == 'cut off':
            (folder / 'vectors.faiss').write_bytes(keep[folder / 'vectors.faiss'][:500])
        if name == 'deleted':
            shutil.rmtree(folder)
        if name == 'of another list':
            (folder / 'candidates.csv').write_text('cand_path\nx.png\n')
        if name == 'of another model':
            (folder / 'manifest.json').write_text(
                json.dumps(
                    {
                        k: v
                        for k, v in json.loads(keep[folder / 'manifest.json']).items()
                        if k != 'sha256'
                    }
                    | {'model_sha256': '0' * 64}
                )
            )
        if (folder / 'manifest.json').exists():
            os.utime(folder / 'manifest.json')

    for name in ('cut off', 'deleted', 'of another list', 'of another model'):
        del said[:]
        damage(name)
        until(lambda: said)
        got = s.post(pic)
        yield told(f'a new index that is {name}', got, 200, also=hits() == want)
        yield Case(
            f'a new index that is {name}: the warning',
            len(said) == 1 and 'keeps answering' in said[0],
            0,
            said[0] if said else '',
            str(said),
        )
        folder.mkdir(exist_ok=True)
        r = s.site.measures.reloads
        for f, b in keep.items():
            f.write_bytes(b)
        until(lambda: s.site.measures.reloads > r)
    yield told('and the index as it was', s.post(pic), 200, also=hits() == want)


def files_gone(s):
    "Candidates that are deleted, broken or turned into links after indexing"
    root = s.p / 'images'
    listed = s.site.now.shows.paths
    outside = s.p / 'outside.png'
    outside.write_bytes(enc(scene(), 'PNG'))
    for i, (name, change) in enumerate(
        {
            'deleted': lambda f: None,
            'a link to a picture elsewhere': lambda f: f.symlink_to(outside),
            'a link to /etc/passwd': lambda f: f.symlink_to('/etc/passwd'),
            'a dangling link': lambda f: f.symlink_to('nowhere'),
            'a folder': lambda f: f.mkdir(),
            'a pipe': lambda f: os.mkfifo(f),
            'text': lambda f: f.write_text('secret'),
            'an HTML page': lambda f: f.write_text('<script>alert(1)</script>'),
            'a link to /dev/zero': lambda f: f.symlink_to('/dev/zero'),
        }.items()
    ):
        f = root / listed[i]
        f.unlink()
        change(f)
        for url in (f'/image/{i}', f'/image/{i}?side=64', f'/search?id={i}'):
            yield told(
                f'a candidate is {name} now: {url.split("/")[1].split("?")[0]}'
                f'{" as a thumbnail" if "side" in url else ""}',
                s.ask('GET', url),
                200 if name == 'a link to a picture elsewhere' else (404, 422),
            )
    folder = root / Path(listed[20]).parent
    shutil.move(folder, s.p / 'moved')
    folder.symlink_to(s.p / 'moved')
    yield told(
        'the folder of a candidate is a link to another disk now', s.ask('GET', '/image/20'), 200
    )
    got = s.ask('GET', '/query/3?side=64')
    yield told(
        'a query\'s picture is still there',
        got,
        200,
        also=got[2]['content-type'] == 'image/jpeg'
        and got[2]['x-content-type-options'] == 'nosniff',
    )


def ends(p, work):
    "The stage itself: what it refuses to start with, and how it ends"
    from attack import cli

    def conf(q):
        return ('--config', q / 'config.yaml', '--stage', 'serve')

    taken = socket.create_server(('127.0.0.1', 0))
    port = taken.getsockname()[1]
    for name, args, says in [
        ('a port in use', ('--port', port), 'Address already in use'),
        ('a port of 70000', ('--port', 70000), '--port is 70000'),
        ('a port of -1', ('--port', -1), '--port is -1'),
        ('a host that is none', ('--host', 'a..b'), 'no address'),
        ('a host that is not here', ('--host', '192.0.2.1', '--port', 0), 'cannot be used'),
    ]:
        status, _, err = cli(*conf(p), *args)
        yield judged(f'--stage serve: {name}', status, err, 2, says)
    taken.close()
    fresh = project(work, run=False)
    status, _, err = cli(*conf(fresh), '--port', 0)
    yield judged('--stage serve: no model yet', status, err, 2, '--stage train')
    shutil.copytree(p / 'out/model', fresh / 'out/model', dirs_exist_ok=True)
    status, _, err = cli(*conf(fresh), '--port', 0)
    yield judged('--stage serve: no index yet', status, err, 2, '--stage index')
    for name, sig in (('SIGTERM', signal.SIGTERM), ('Ctrl-C', signal.SIGINT)):
        r = subprocess.Popen(
            [
                sys.executable,
                '-m',
                'two_tower_vs',
                *map(str, conf(p)),
                '--port',
                '0',
                *(('--host', '0.0.0.0') if sig == signal.SIGINT else ()),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        line = r.stdout.readline()
        port = int(re.search(r':(\d+) ', line)[1])
        pic = enc(scene().resize((3000, 2000)), 'PNG')
        with ThreadPoolExecutor(8) as ex:  # some are under way when it is told to end

            def one(_):
                c = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
                c.request('POST', '/search', pic, {'Content-Type': 'image/png'})
                sent.append(1)
                return c.getresponse().status

            sent = []
            found = [ex.submit(one, i) for i in range(8)]
            until(lambda: len(sent) == 8)
            time.sleep(0.1)
            r.send_signal(sig)
            found = [f.exception() or f.result() for f in found]
        out, err = r.communicate(timeout=30)
        yield judged(
            f'--stage serve: {name}: what is under way is finished',
            r.returncode,
            err,
            0,
            'Anybody who can reach 0.0.0.0' if sig == signal.SIGINT else '',
            8,
            found == [200] * 8 and 'Traceback' not in err,
            f'{found}',
        )
