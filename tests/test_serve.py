"""The server: who may ask, what is sent, and what others cannot take from it."""

import csv
import http.client
import io
import json
import re
import shutil
import socket
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager

import attack
import faiss
import numpy as np
import pytest
import web  # of tests/attacks
from PIL import Image
from starlette.testclient import TestClient

from two_tower_vs.access import Access, Refusal, make_access, read_token
from two_tower_vs.bundle import load_index, save_index
from two_tower_vs.errors import InputError
from two_tower_vs.serve import make_app
from two_tower_vs.vector_files import save_vectors
from two_tower_vs.vectors import Embeddings

TOKEN = 'a-token-for-this-test'


@pytest.fixture(scope='module')
def project(workshop):
    "A finished project that the tests of this file share"
    return attack.project(workshop, run=True)


def app_of(project, **options):
    return make_app(project / 'out', project / 'images', project / 'query_gt.csv', **options)


@pytest.fixture(scope='module')
def client(project):
    return TestClient(app_of(project))


@pytest.fixture(scope='module')
def server(project):
    running = web.Server(project)
    yield running
    running.close()


def png(image):
    out = io.BytesIO()
    image.save(out, 'PNG')
    return out.getvalue()


def black(width, height):
    return png(Image.new('1', (width, height)))


PICTURE = png(web.scene())


def post(client, data, **headers):
    return client.post(
        '/search?topk=5', content=data, headers={'content-type': 'image/png', **headers}
    )


# ---- HEAD


ADDRESSES = [
    '/health',
    '/',
    '/image/0',
    '/image/0?side=64',
    '/query/0',
    '/docs',
    '/openapi.json',
    '/search?id=0',
    '/examples',
    '/stats',
    '/metrics',
    '/page.css',
    '/page.js',
    '/box.js',
    '/favicon.ico',
    '/docs.js',
    '/swagger-ui.css',
    '/none',
    '/image/9999',
    '/search',
    '/image/0?v=old',
]


@pytest.mark.parametrize('address', ADDRESSES)
def test_head_is_get_without_a_body(server, address):
    got = server.ask('GET', address)
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=20)
    connection.request('HEAD', address)
    head = connection.getresponse()
    assert head.status == got[0]
    assert head.headers['content-type'] == got[2]['content-type']
    assert head.read() == b''
    if not address.startswith(('/search?', '/stats', '/metrics')):  # these tell of times
        assert head.headers['content-length'] == got[2]['content-length']
    assert int(head.headers['content-length']) > 0
    connection.request('GET', '/health')  # the connection is still in step
    assert json.loads(connection.getresponse().read())['ready']
    connection.close()


def test_head_with_etag_and_wrong_methods(client):
    tag = client.head('/image/0').headers['etag']
    assert client.head('/image/0', headers={'If-None-Match': tag}).status_code == 304
    assert client.put('/health').headers['allow'] == 'GET, HEAD'
    assert client.head('/login').status_code == 405


# ---- names


def status_of_host(access, *values):
    lines = b''.join(b'Host: %s\r\n' % value.encode() for value in values)
    headers = [tuple(line.split(b': ', 1)) for line in lines.split(b'\r\n') if line]
    scope = dict(
        method='GET', path='/health', headers=[(name.lower(), value) for name, value in headers]
    )
    try:
        access.check(scope)
    except Refusal as refusal:
        return refusal.status
    return 200


@pytest.mark.parametrize(
    'host, name, status',
    [
        ('127.0.0.1', 'localhost', 200),
        ('127.0.0.1', 'LocalHost.:8000', 200),
        ('127.0.0.1', '127.0.0.1:1', 200),
        ('127.0.0.1', '[::1]:8000', 200),
        ('127.0.0.1', 'evil.example', 421),
        ('127.0.0.1', '10.1.2.3', 421),
        ('127.0.0.1', '127.0.0.1.evil.example', 421),
        ('127.0.0.1', 'localhost.evil.example', 421),
        ('127.0.0.1', '', 421),
        ('127.0.0.1', '::1', 421),
        ('127.0.0.1', 'a@localhost', 421),
        ('127.0.0.1', 'localhost:80:80', 421),
        ('0.0.0.0', 'evil.example', 421),
        ('0.0.0.0', '10.1.2.3:8000', 200),
        ('0.0.0.0', '[2001:DB8::1]:8000', 200),
        ('0.0.0.0', '[2001:DB8::1', 421),
        ('0.0.0.0', 'localhost', 200),
        ('0.0.0.0', socket.gethostname(), 200),
        ('0.0.0.0', socket.gethostname().upper() + '.', 200),
        ('0.0.0.0', 'search.example.org', 200),
        ('::', 'evil.example', 421),
        ('0.0.0.0', '', 421),
        ('0.0.0.0', 'search.example.org.evil.example', 421),
    ],
)
def test_host(host, name, status):
    hosts = ['Search.example.org'] if host == '0.0.0.0' else ()
    assert status_of_host(make_access(host, hosts), name) == status


def test_no_host_and_two():
    access = make_access('127.0.0.1')
    assert status_of_host(access) == 421
    assert status_of_host(access, 'localhost', 'localhost') == 400
    assert status_of_host(make_access('0.0.0.0', ['*']), 'anything.example') == 200


def test_the_message_names_the_setting(project):
    client = TestClient(app_of(project, access=make_access('0.0.0.0')))
    got = client.get('/health', headers={'host': 'evil.example'})
    assert got.status_code == 421
    assert 'serve.hosts' in got.json()['error']['detail']


# ---- other sites


def test_posts_of_other_sites(project):
    client = TestClient(
        app_of(project, access=Access(origins=('https://shop.example.org',))),
        base_url='http://here.example',
    )

    def status(**headers):
        return post(
            client, PICTURE, **{k.replace('_', '-'): v for k, v in headers.items()}
        ).status_code

    assert status() == 200  # a program
    assert status(sec_fetch_site='same-origin', origin='http://here.example') == 200
    assert status(sec_fetch_site='none') == 200
    assert status(sec_fetch_site='cross-site', origin='http://evil.example') == 403
    assert status(sec_fetch_site='Cross-Site') == 403
    assert status(sec_fetch_site='cross-site', origin='https://shop.example.org') == 200
    assert status(origin='http://evil.example') == 403  # a browser that sends no mark
    assert status(origin='null') == 403
    assert status(origin='http://here.example') == 200
    assert client.get('/search?id=0', headers={'sec-fetch-site': 'cross-site'}).status_code == 200


def test_cors(project):
    origin = 'https://shop.example.org'
    access = Access(origins=(origin,), token=TOKEN)
    client = TestClient(app_of(project, access=access))
    ask = {
        'origin': origin,
        'access-control-request-method': 'POST',
        'access-control-request-headers': 'authorization, content-type',
    }
    preflight = client.options('/search', headers=ask)  # comes without the token
    assert preflight.status_code == 200
    assert preflight.headers['access-control-allow-origin'] == origin
    refused = client.options('/search', headers=ask | {'origin': 'https://evil.example'})
    assert refused.status_code == 403
    assert refused.json()['error']['reason'] == 'another site'
    assert 'access-control-allow-origin' not in refused.headers
    got = post(
        client,
        PICTURE,
        origin=origin,
        authorization=f'Bearer {TOKEN}',
        **{'sec-fetch-site': 'cross-site'},
    )
    assert got.status_code == 200
    assert got.headers['access-control-allow-origin'] == origin
    without = post(client, PICTURE, origin=origin)  # the page can read why
    assert without.status_code == 401
    assert without.headers['access-control-allow-origin'] == origin


def test_no_cors_by_default(client):
    got = client.get('/health', headers={'origin': 'https://shop.example.org'})
    assert 'access-control-allow-origin' not in got.headers
    assert (
        client.options(
            '/search', headers={'origin': 'https://a.org', 'access-control-request-method': 'POST'}
        ).status_code
        == 405
    )


# ---- the token


def test_token(project):
    client = TestClient(app_of(project, access=Access(token=TOKEN)))
    bearer = {'authorization': f'Bearer {TOKEN}'}
    for address in ADDRESSES:
        path = address.partition('?')[0]
        files = '/page.css', '/page.js', '/box.js', '/favicon.ico'
        want = 200 if path in ('/', '/health', *files) else 401
        assert client.get(address).status_code == want, address
        assert client.get(address, headers=bearer).status_code != 401
    assert post(client, PICTURE).json()['error']['reason'] == 'no token'
    assert post(client, PICTURE).headers['www-authenticate'] == 'Bearer'
    assert client.get('/health').json() == {'ready': True, 'needs_token': True}
    assert client.get('/health', headers=bearer).json()['candidates'] > 0
    for wrong in (
        'Bearer',
        f'Bearer {TOKEN}x',
        f'Basic {TOKEN}',
        f'Bearer {TOKEN[:-1]}',
        'Bearer ' + 'x' * 5000,
    ):
        assert client.get('/stats', headers={'authorization': wrong}).status_code == 401


def test_login_gives_a_cookie_that_is_not_the_token(project):
    client = TestClient(app_of(project, access=Access(token=TOKEN)))
    assert client.post('/login', headers={'authorization': 'Bearer wrong'}).status_code == 401
    got = client.post('/login', headers={'authorization': f'Bearer {TOKEN}'})
    assert got.status_code == 204
    line = got.headers['set-cookie'].lower()
    assert 'httponly' in line and 'samesite=strict' in line and TOKEN not in line
    assert client.get('/image/0').status_code == 200  # the client keeps the cookie
    assert post(client, PICTURE).status_code == 200
    assert post(client, PICTURE, **{'sec-fetch-site': 'cross-site'}).status_code == 403
    other = TestClient(app_of(project, access=Access(token=TOKEN[::-1])), cookies=client.cookies)
    assert other.get('/image/0').status_code == 401


def test_where_a_token_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv('SEARCH_TOKEN', TOKEN)
    assert read_token('env:SEARCH_TOKEN') == TOKEN
    (tmp_path / 'token').write_text(TOKEN + '\n')
    assert read_token(f'file:{tmp_path}/token') == TOKEN


@pytest.mark.parametrize(
    'settings, says',
    [
        ('{token: letmein-1}', 'not a good one'),
        ('{token: "env:NONE"}', 'NONE'),
        ('{token: "file:none"}', 'cannot be read'),
        ('{token: 98765432109876543}', 'serve.token'),
        ('{hosts: [1]}', 'serve.hosts'),
        ('{hosts: ["a b"]}', 'serve.hosts'),
        ('{origins: "*"}', 'serve.origins'),
        ('{originals: maybe}', 'serve.originals'),
        ('{per_address: -1}', 'serve.per_address'),
        ('{max_upload_megapixels: 0}', 'serve.max_upload_megapixels'),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings, says, cli, project):
    "which never holds the token"
    config = project / 'wrong.yaml'
    config.write_text((project / 'config.yaml').read_text() + f'serve: {settings}\n')
    status, out, err = cli('--config', config, '--stage', 'serve', '--port', 0)
    assert status == 2 and says in err, err
    assert 'letmein' not in err and '98765' not in err
    assert len(err.strip().splitlines()) == 1


# ---- connections


@contextmanager
def open_connections(server, count):
    connections = [socket.create_connection(('127.0.0.1', server.port)) for _ in range(count)]
    try:
        yield connections
    finally:
        for connection in connections:
            connection.close()


def begun_upload(size, sent):
    "The beginning of a request that announces `size` bytes"
    head = (
        'POST /search HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n'
        f'Content-Length: {size}\r\n\r\n'
    )
    return head.encode() + bytes(sent)


def noise(side):
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    return png(Image.fromarray(pixels))


def test_idle_connections_keep_nobody_out(server):
    with open_connections(server, 505):
        assert server.post(PICTURE)[0] == 200
        assert len(server.uvicorn.server_state.connections) <= 101


@pytest.fixture
def small_server(project):
    running = web.Server(project, waiting=4, per_address=30)
    yield running
    running.close()


def test_slow_uploads_keep_nobody_out(small_server):
    "More of them than searches may wait, of one address; then one more search"
    with open_connections(small_server, 40) as lines:
        for line in lines:
            line.sendall(begun_upload(9999, 1))
        time.sleep(0.3)
        assert small_server.post(PICTURE)[0] == 200


def test_slow_uploads_make_room_for_others(small_server):
    "Uploads that hold all the memory there is end, when they are slow"
    site = small_server.site
    site.held_most = 300_000
    with open_connections(small_server, 3) as lines:
        for line in lines:
            line.sendall(begun_upload(999_999, 95_000))
        web.until(lambda: site.held > 250_000, 5)
        large = noise(128)
        assert small_server.post(large)[0] == 503  # they are not slow yet
        time.sleep(2.2)
        assert small_server.post(large)[0] == 200


# ---- too much at once, too slow, and a fault of ours


@pytest.fixture
def tight(project):
    "A server with one place and one second"
    local = Access(('127.0.0.1',))
    app = app_of(project, waiting=1, timeout_s=1, examples=False, access=local)
    return TestClient(app, base_url='http://127.0.0.1:9')


def error_of(response):
    error = response.json()['error']
    return error['status'], error['reason']


def test_one_search_too_many(tight):
    site = tight.app.state.site
    site.busy = 1
    refused = post(tight, PICTURE)
    assert error_of(refused) == (503, 'busy') and refused.headers['retry-after'] == '1'
    site.busy = 0
    site.held = site.held_most
    assert error_of(post(tight, PICTURE)) == (503, 'busy')
    site.held = 0
    assert post(tight, PICTURE).status_code == 200
    assert (site.busy, site.held) == (0, 0)


def test_a_search_that_takes_too_long(tight, monkeypatch):
    site = tight.app.state.site
    monkeypatch.setattr(site, 'batcher', lambda *args: Future())
    assert error_of(post(tight, PICTURE)) == (504, 'too slow')
    assert (site.busy, site.held) == (0, 0)


def test_a_fault_of_ours_has_the_common_form(tight, monkeypatch):
    def broken(*args):
        raise RuntimeError('a fault')

    monkeypatch.setattr(tight.app.state.site, 'batcher', broken)
    with pytest.warns(UserWarning, match='a fault'):
        assert error_of(post(tight, PICTURE)) == (500, 'our fault')


def test_names_and_examples_of_a_tight_server(tight):
    for host, status in (('127.0.0.1', 200), ('127.0.0.1:80', 200), ('evil.example', 421)):
        assert tight.get('/health', headers={'Host': host}).status_code == status
    assert error_of(tight.get('/query/0')) == (404, 'no examples')
    assert tight.get('/examples').json()['counts']['all'] == 0


def test_no_threshold_is_no_match(tight):
    tight.app.state.site.now.searcher.threshold = None
    answer = post(tight, PICTURE).json()
    assert 'threshold' not in answer and 'match' not in answer['hits'][0]


def test_its_end_closes_the_threads(tight):
    with tight:
        pass
    for thread in tight.app.state.site.batcher.threads:
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    'option', [dict(timeout_s=0), dict(topk=0), dict(topk=1001), dict(batch=0)]
)
def test_options_out_of_range(project, option):
    with pytest.raises(InputError, match='from 1 to'):
        app_of(project, **option)


def test_an_app_of_nothing(project, tmp_path):
    with pytest.raises(InputError, match='--stage train'):
        make_app(tmp_path, project / 'images')
    with pytest.raises(InputError, match='images_root'):
        make_app(project / 'out', tmp_path / 'none')


# ---- a new index


@pytest.fixture
def changing(ran):
    "The client of an app over a project of this test alone"
    client = TestClient(app_of(ran))
    yield client
    client.app.state.site.close()


def smaller(index, rows):
    flat = faiss.IndexFlatIP(index.faiss.d)
    flat.add(index.faiss.reconstruct_n(0, rows))
    return type(index)(flat, index.paths[:rows], dict(index.manifest, rows=rows))


def test_addresses_of_the_list_before_show_what_they_showed(changing, ran):
    site = changing.app.state.site
    old = site.now.shows
    last = len(old.paths) - 1
    save_index(smaller(load_index(ran / 'out/index', writable=True), last), ran / 'out/index')
    assert site.reload()
    picture = changing.get(f'/image/{last}', params=dict(v=old.version))
    assert picture.content == (ran / 'images' / old.paths[last]).read_bytes()
    assert changing.get(f'/image/{last}').status_code == 404  # this list has no such row
    assert post(changing, PICTURE).json()['version'] != old.version
    assert changing.get('/stats').json()['reloads'] == 1


def test_a_model_whose_index_is_not_there_yet(changing, ran):
    "The old pair answers; when both belong together again, the engine is still the same"
    site = changing.app.state.site
    was = site.now
    file = ran / 'out/model/model.json'
    text = file.read_text()
    file.write_text(json.dumps(json.loads(text) | {'sha256': '0' * 64}))
    with pytest.warns(UserWarning, match='is not used'):
        assert not site.reload()
    assert site.now is was
    file.write_text(text)
    assert site.reload() and site.now.searcher.engine is was.searcher.engine


def test_a_request_stays_with_the_searcher_that_it_began_with(changing, client, monkeypatch):
    site = changing.app.state.site
    was = site.now
    other = client.app.state.site.now
    batcher = site.batcher

    def replaced_meanwhile(*task):
        site.now = other
        return batcher(*task)

    other.shows.version, version = 'another', other.shows.version
    monkeypatch.setattr(site, 'batcher', replaced_meanwhile)
    try:
        assert post(changing, PICTURE).json()['version'] == was.shows.version
        assert site.now is other
    finally:
        other.shows.version = version
        monkeypatch.undo()


# ---- large pictures


def test_pixels_over_the_limit_are_refused_unread(client, monkeypatch):
    def unread(self, source):
        raise AssertionError('it was decoded')

    monkeypatch.setattr(type(client.app.state.site.now.searcher), 'pixels', unread)
    got = post(client, black(10_000, 10_000))
    assert got.status_code == 422
    assert 'serve.max_upload_megapixels' in got.json()['error']['detail']


def test_large_pictures_are_decoded_one_at_a_time(project, monkeypatch):
    "and small ones do not wait for them"
    app = app_of(project, waiting=16)
    site = app.state.site
    site.large = 100_000
    at_once = []
    entered = threading.Event()
    go = threading.Event()
    searcher = site.now.searcher
    decode = type(searcher).pixels

    def slow(self, source):
        if not isinstance(source, bytes) or len(source) < 10_000:
            return decode(self, source)
        at_once.append(threading.get_ident())
        entered.set()
        go.wait(20)
        return decode(self, source)

    monkeypatch.setattr(type(searcher), 'pixels', slow)
    large = noise(400)
    with TestClient(app) as client:
        statuses = []
        threads = [
            threading.Thread(target=lambda: statuses.append(post(client, large).status_code))
            for _ in range(7)
        ]
        for thread in threads:
            thread.start()
        try:
            assert entered.wait(10)
            web.until(lambda: len(statuses) == 3, 5)
            assert statuses == [503] * 3  # at most a quarter of 16 may wait
            assert post(client, PICTURE).status_code == 200
            assert client.get('/image/0?side=64').status_code == 200
            assert len(at_once) == 1
        finally:
            go.set()
            for thread in threads:
                thread.join()
        assert sorted(statuses) == [200] * 4 + [503] * 3
        assert len(set(at_once)) == 1  # one thread, one after the other
        assert (site.busy, site.busy_large, site.held) == (0, 0, 0)


# ---- originals


def photo_with_place(form):
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = 'secret camera'
    exif.get_ifd(0x8825).update({1: 'N', 2: (52.0, 31.0, 12.0)})
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize(
    'form, kind',
    [
        ('JPEG', 'image/jpeg'),
        ('PNG', 'image/png'),
        ('WEBP', 'image/webp'),
        ('TIFF', 'image/jpeg'),
        ('AVIF', 'image/jpeg'),
        ('PPM', 'image/jpeg'),
    ],
)
def test_originals_do_not_tell_where(project, form, kind):
    from two_tower_vs.pictures import load_image

    app = app_of(project)
    client = TestClient(app)
    file = project / 'images' / app.state.site.now.shows.paths[3]
    kept = file.read_bytes()
    try:
        data = photo_with_place(form)
        file.write_bytes(data)
        got = client.get('/image/3')
        assert got.headers['content-type'] == kind
        assert int(client.head('/image/3').headers['content-length']) == len(got.content)
        image = Image.open(io.BytesIO(got.content))
        assert not image.getexif().get_ifd(0x8825) and b'secret' not in got.content
        want = np.asarray(load_image(data)).astype(int)
        # Upright as before
        assert np.abs(np.asarray(load_image(got.content)).astype(int) - want).max() <= 3
        tags = [got.headers['etag']]
        for originals in ('exact', 'none'):
            other = TestClient(app_of(project, originals=originals)).get('/image/3')
            tags.append(other.headers['etag'])
            assert (b'secret' in other.content) == (
                originals == 'exact' and form in ('JPEG', 'PNG', 'WEBP')
            )
        assert len(set(tags)) == 3
    finally:
        file.write_bytes(kept)


# ---- the same picture


def test_the_same_picture_is_marked(project):
    app = app_of(project)
    app.state.site.now.searcher.threshold = 0.1
    client = TestClient(app)
    path = app.state.site.now.shows.paths[5]
    hits = post(client, (project / 'images' / path).read_bytes()).json()['hits']
    assert hits[0]['cand_path'] == path
    assert hits[0]['same_picture'] is True and 'match' not in hits[0]
    assert all('same_picture' not in hit and 'match' in hit for hit in hits[1:])
    by_number = client.get('/search?id=5&topk=5').json()['hits']
    assert [hit.get('same_picture') for hit in by_number] == [True, None, None, None, None]
    again = png(
        Image.open(project / 'images' / path)
        .convert('RGB')
        .transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    )
    assert not any('same_picture' in hit for hit in post(client, again).json()['hits'])


def test_the_truth_may_say_that_it_is_right(project):
    from two_tower_vs.searches import as_example

    app = app_of(project)
    now = app.state.site.now
    now.searcher.threshold = 0.1
    now.shows.queries.iat[0, 4] = [now.shows.paths[2]]  # answers
    hit = dict(rank=1, id=2, cand_path=now.shows.paths[2], score=1.0, same_picture=True)
    other = dict(rank=2, id=3, cand_path=now.shows.paths[3], score=0.9, same_picture=True)
    hits = as_example(now, 0, dict(hits=[hit, other]))['hits']
    assert hits[0]['match'] is True and 'same_picture' not in hits[0]
    assert hits[1]['same_picture'] is True and 'match' not in hits[1]


# ---- the description


def test_answers_are_as_described(project):
    from jsonschema import Draft202012Validator

    app = app_of(project)
    client = TestClient(app)
    about = client.get('/openapi.json').json()

    def validate(path, method, answer):
        content = about['paths'][path][method]['responses'][str(answer.status_code)]['content']
        schema = content['application/json']['schema'] | {'components': about['components']}
        assert '$ref' in schema
        Draft202012Validator(closed(schema)).validate(answer.json())

    def closed(schema):  # no field that the description does not have
        if isinstance(schema, dict):
            schema = {key: closed(value) for key, value in schema.items()}
            if 'properties' in schema and schema.get('type') == 'object':
                schema['additionalProperties'] = False
        return schema

    for threshold in (None, 0.5):
        app.state.site.now.searcher.threshold = threshold
        validate('/search', 'post', post(client, PICTURE))
        for query in ('id=5', 'query=0'):
            validate('/search', 'get', client.get(f'/search?{query}'))
        validate('/health', 'get', client.get('/health'))
    for path in ('/examples', '/stats'):
        validate(path, 'get', client.get(path))
    validate('/search', 'post', post(client, b'nothing'))
    for address in ('/search', '/search?id=9999', '/search?id=0&v=old'):
        validate('/search', 'get', client.get(address))
    validate('/image/{id}', 'get', client.get('/image/9999'))
    for path, methods in about['paths'].items():
        for method, told in methods.items():
            assert told['summary'] and told['description'] and told['tags'], (path, method)
            assert not {'422', '503'} & set(told['responses']) or 'HTTPValidationError' not in str(
                told
            )
    assert 'HTTPValidationError' not in json.dumps(about['paths'])


def test_the_description_names_the_token(project):
    client = TestClient(app_of(project, access=Access(token=TOKEN)))
    about = client.get('/openapi.json', headers={'authorization': f'Bearer {TOKEN}'}).json()
    assert about['components']['securitySchemes']['HTTPBearer']['scheme'] == 'bearer'
    assert TOKEN not in json.dumps(about)


# ---- spreadsheets


def test_no_csv_holds_a_formula(ran, cli, tmp_path):
    "Pictures with such names go through all stages; every CSV is safe, and leads to its pictures"
    root = ran / 'images'
    new = {}
    for i, name in enumerate(['=1+1.png', '+x.png', '-x.png', '@x.png']):
        old = sorted((root / 'color').iterdir())[i]
        shutil.move(old, root / name)
        new[f'color/{old.name}'] = name
    (root / '@broken.png').write_bytes(b'nothing')
    for table in ('pairs.csv', 'candidates.csv', 'query_gt.csv'):
        rows = list(csv.reader(open(ran / table)))
        rows = [[new.get(cell, cell) for cell in row] for row in rows]
        if table == 'candidates.csv':
            rows.append(['@broken.png'])
        with open(ran / table, 'w', newline='') as file:
            csv.writer(file).writerows(rows)
    config = ('--config', ran / 'config.yaml')
    for stage in ('check', 'eval', 'index', 'report'):
        status, out, err = cli(*config, '--stage', stage)
        assert status == 0, err
    status, out, err = cli(*config, '--stage', 'query', '--image', root / '=1+1.png', '--topk', 3)
    assert status == 0 and '=1+1.png' in out
    status, out, err = cli(*config, '--stage', 'index')  # its own list is still the right one
    assert status == 0 and 'up to date' in out, out
    paths = load_index(ran / 'out/index').paths
    save_vectors(
        Embeddings(np.zeros((len(paths), 2), np.float32), paths),
        'cand_path',
        [tmp_path / 'v.npy', tmp_path / 'export.csv'],
    )
    written = [*(ran / 'out').rglob('*.csv'), tmp_path / 'export.csv']
    assert {'check.csv', 'per_query.csv', 'bad_images.csv', 'candidates.csv', 'history.csv'} <= {
        file.name for file in written
    }
    found = set()
    for file in written:
        for row in csv.reader(open(file, newline='')):
            for cell in row:
                number = re.fullmatch(r'-?\d[\d.e-]*', cell)
                assert number or not re.match('[=+@\t\r-]', cell), (file.name, cell)
                found |= {name for name in (*new.values(), '@broken.png') if cell == f'./{name}'}
    assert found == {*new.values(), '@broken.png'}
    client = TestClient(app_of(ran))
    paths = client.app.state.site.now.shows.paths
    assert set(new.values()) <= set(paths)
    assert client.get(f'/image/{paths.index("=1+1.png")}').status_code == 200
    examples = client.get('/examples?limit=200').json()['examples']
    assert not any(q['query_path'].startswith('./') for q in examples)
