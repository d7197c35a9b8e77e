"""Search 2,000 real photos over HTTP from 16 clients while a new index is put in place; write
serve.json.

    python benchmarks/serve.py           # a few minutes on two idle cores
    python benchmarks/serve.py --quick   # 200 requests: shows that all of it runs, measures nothing

Server, clients and the engine that they are compared with are processes of their own; the
engine's rate is taken before and after the load, in the same run.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from peers import CORES, RESULTS, ROOT, WORK, machine

CLIENTS = 16
TOPK = 10
CONFIG = """data:
  {{images_root: "{root}", pairs: "{d}/pairs.csv", candidates: candidates.csv,
   query_gt: "{d}/query_gt.csv", on_bad: skip}}
index: {{kind: flat}}
"""


def project(work):
    "A trained and indexed project, made once; (its folder, images, queries)"
    from two_tower_vs.demo import demo_catalog
    from two_tower_vs.tables import read_table

    grocery = ROOT.parent / 'shared/data/grocery'
    d = grocery if grocery.is_dir() else demo_catalog(ROOT / 'nbs/demo').resolve()
    p = work / d.name
    p.mkdir(parents=True, exist_ok=True)
    if not (p / 'out/index/manifest.json').exists():
        shutil.copy(d / 'candidates.csv', p)
        (p / 'config.yaml').write_text(CONFIG.format(root=d / 'images', d=d))
        for stage in ('train', 'index'):
            subprocess.run(
                [
                    sys.executable,
                    '-m',
                    'two_tower_vs',
                    '--config',
                    p / 'config.yaml',
                    '--stage',
                    stage,
                ],
                check=True,
            )
    return (
        p,
        d / 'images',
        read_table(d / 'query_gt.csv', ['query_path']).query_path.unique().tolist(),
    )


def engine_rate(p, root, paths):
    """Pictures a second from disk to vectors, as `embed` does them, without its start-up: that of
    a call with 64 is taken off
    """
    from two_tower_vs.embed import embed
    from two_tower_vs.saving import load_model

    tower = load_model(p / 'out/model').query

    def seconds(some):
        start = time.perf_counter()
        embed(tower, some, root, cache)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as cache:
        seconds(paths[:64])
        few = seconds(paths[64:128])  # the first call converts the network
        return (len(paths) - 192) / (seconds(paths[128:]) - few)


def load(url, root, paths, file):
    "All requests from 16 threads with connections of their own; a line for each"
    port = int(url.rsplit(':', 1)[1])
    todo = iter(enumerate(paths))
    lock = threading.Lock()
    done = []
    data = [(Path(root) / p).read_bytes() for p in paths]
    head = (
        f'POST /search?topk={TOPK} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n'
        'Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n'
    )

    def ask(c, body):  # plain sockets: a client that parses takes time from the server's cores
        c.sendall((head % len(body)).encode() + body)
        got = b''
        while b'\r\n\r\n' not in got:
            got += c.recv(2**16) or stop()
        top, body = got.split(b'\r\n\r\n', 1)
        n = int(re.search(rb'(?i)content-length: *(\d+)', top)[1])
        while len(body) < n:
            body += c.recv(2**16) or stop()
        return int(top[9:12]), body

    def stop():
        raise ConnectionError('the server has closed the connection')

    def client():
        c = None
        while True:
            with lock:
                i, p = next(todo, (None, None))
            if i is None:
                return
            start = time.perf_counter()
            status = 0
            body = b'{}'
            try:
                c = c or socket.create_connection(('127.0.0.1', port), timeout=60)
                status, body = ask(c, data[i])
            except Exception as e:
                body = json.dumps({'error': repr(e)}).encode()
                c = c and c.close()
            done.append(
                dict(
                    i=i, status=status, start=start, ms=1000 * (time.perf_counter() - start), d=body
                )
            )
            if len(done) == len(paths) // 2:
                print('half', flush=True)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    begin = time.perf_counter()
    [t.start() for t in threads]
    [t.join() for t in threads]
    seconds = time.perf_counter() - begin
    Path(file).write_text(
        json.dumps(dict(seconds=seconds, done=[o | {'d': json.loads(o['d'])} for o in done]))
    )


def expected(p, root, paths, indexes):
    "{first rows of the list: hits of each picture, one by one}"
    from two_tower_vs.query import load_searcher

    s = load_searcher(p / 'out')
    vecs = [s.vectors(s.pixels(Path(root) / q)[None])[0] for q in paths]
    out = []
    for index in indexes:
        s.index = index
        out.append([s.index.hits(v, TOPK) for v in vecs])
    return out


def agrees(
    found, hits
):  # the same hits; two whose scores differ by less than bfloat16 can tell may change places
    import numpy as np

    return (
        len(found) == len(hits)
        and np.allclose([h['score'] for h in found], hits.score, atol=0.01)
        and (len({h['cand_path'] for h in found} & set(hits.cand_path)) >= len(hits) - 1)
    )


def run(n, work):
    import faiss
    import numpy as np

    from two_tower_vs.bundle import load_index, save_index
    from two_tower_vs.index import Index

    p, root, paths = project(work)
    paths = (paths * (1 + n // len(paths)))[:n]
    few = list(dict.fromkeys(paths))
    old = load_index(p / 'out/index', writable=True)
    k = len(old.paths)
    new = Index(
        faiss.IndexFlatIP(old.faiss.d), old.paths[::-1][:-1], dict(old.manifest, rows=k - 1)
    )
    new.faiss.add(old.faiss.reconstruct_n(0, k)[::-1][:-1].copy())
    right = expected(p, root, few[:200], (old, new))
    before = engine_rate(p, root, few)
    server = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'two_tower_vs',
            '--config',
            p / 'config.yaml',
            '--stage',
            'serve',
            '--port',
            '0',
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = re.search(r'http://\S+', server.stdout.readline())[0]
        first = work / 'warm.json'
        file = work / 'load.json'
        load(url, root, paths[:100], first)
        version = json.loads(first.read_text())['done'][0]['d']['version']
        (work / 'paths.json').write_text(json.dumps(paths))
        client = subprocess.Popen(
            [sys.executable, __file__, '--client', url, root, work / 'paths.json', file],
            stdout=subprocess.PIPE,
            text=True,
        )
        client.stdout.readline()
        save_index(new, p / 'out/index')
        client.wait()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        save_index(old, p / 'out/index')
    after = engine_rate(p, root, few)
    got = json.loads(file.read_text())
    done = got['done']
    ms = np.array([o['ms'] for o in done])
    good = [o for o in done if o['status'] == 200]
    checked = [o for o in good if o['i'] < len(right[0])]
    return dict(
        data=p.name,
        requests=n,
        clients=CLIENTS,
        answered=len(good),
        lost=n - len(good),
        server_status=server.returncode,
        seconds=got['seconds'],
        per_second=len(good) / got['seconds'],
        engine_per_second=[before, after],
        ratio=len(good) / got['seconds'] / np.mean([before, after]),
        p50=np.percentile(ms, 50),
        p95=np.percentile(ms, 95),
        p99=np.percentile(ms, 99),
        by_new_index=sum(o['d']['version'] != version for o in good),
        checked=len(checked),
        agree=sum(
            agrees(o['d']['hits'], right[o['d']['version'] != version][o['i']]) for o in checked
        ),
        curve=[
            [round(o['start'] - min(q['start'] for q in done[:CLIENTS]), 2), round(o['ms'], 1)]
            for o in done[:: max(1, n // 400)]
        ],
    )


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--quick', action='store_true', help='200 requests; writes serve-quick.json')
    p.add_argument('--note', default='')
    p.add_argument('--client', nargs=4, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.client:
        url, root, paths, file = a.client
        return load(url, root, json.loads(Path(paths).read_text()), file)
    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, CORES)
    work = WORK.parent / 'serve'
    work.mkdir(parents=True, exist_ok=True)
    r = dict(
        date=str(date.today()),
        machine=machine(),
        note=a.note,
        **run(200 if a.quick else 2000, work),
    )
    (RESULTS / f'serve{"-quick" if a.quick else ""}.json').write_text(
        json.dumps(r, indent=1, default=float) + '\n'
    )
    print({k: v for k, v in r.items() if k != 'curve'})


if __name__ == '__main__':
    main()
