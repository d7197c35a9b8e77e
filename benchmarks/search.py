"""Search the same vectors with two_tower_vs's index, hnswlib, usearch, ScaNN and autofaiss; write
search.json.

    python benchmarks/search.py           # half an hour on two idle cores, 8 GB of disk
    python benchmarks/search.py --quick   # 5,000 vectors, one round: does all of it run?

Every index is built once and searched in several rounds, in turn with the others, each time in
a process of its own. Each library lives in a venv of its own inside the one that started this.
An interrupted run resumes, unless the code has changed since.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from datetime import date
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from peers import CORES, PEERS, RESULTS, ROOT, WORK, machine, python_of

# Later ones want NumPy 2
PEERS |= {
    'hnswlib': '==0.8.0',
    'usearch': '==2.26.6',
    'scann': '==1.4.2',
    'autofaiss': '==2.18.0 pyarrow<20',
}
D = 256
K = 10
TARGET = 0.98
BYTES = 320
ROUNDS = 3


def vectors(n, queries=2000, d=D, seed=0):
    """Made-up vectors of a catalogue and of queries to it, float32 unit rows (n, d) and (queries,
    d).

    A tree: a category for every 2,000 pictures, a kind for every 64, around which its pictures
    lie. On each level the variance of the k-th axis falls about like 1/k, as it does in our
    towers' vectors of the grocery photos (k^-1.1). A query is one more picture of some kind,
    spread wider than the catalogue's, and all of them are shifted the same way: they come from
    another tower. An index tuned on the catalogue's own vectors would find too little. The
    shares of the levels are set so that at 200,000 the indexes do what they did on the vectors
    that this project was planned with: IVF1024,PQ32 finds 0.59 whatever it probes, hnswlib 0.98
    at 18 times the speed of exact search, and IVF-PQ with a refine stage as much at 27 times.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    axes = np.arange(1, d + 1, dtype=np.float32)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)

    def spread(rows, variance, decay):
        scale = axes ** (-decay / 2)
        scale *= (variance / (scale**2).sum()) ** 0.5
        return rng.standard_normal((rows, d), dtype=np.float32) * scale

    def some(parents, rows):
        return parents[rng.integers(len(parents), size=rows)]

    def unit(v):
        return v @ turn / np.linalg.norm(v, axis=1, keepdims=True)

    categories = spread(max(1, n // 2000), 0.3, 0.8)
    mean = spread(1, 0.16, 1.1)
    shift = spread(1, 0.16, 0.5)
    kinds = mean + some(categories, max(1, n // 64)) + spread(max(1, n // 64), 0.5, 0.8)
    x = unit(some(kinds, n) + spread(n, 0.2, 1.1))
    return x, unit(some(kinds, queries) + shift + spread(queries, 0.25, 1.1))


def steps(ratio=1.15, top=1200):
    "10, 12, 13, …: breadths of a search through a graph"
    return sorted({round(K * ratio**i) for i in range(60) if K * ratio**i < top})


# --- contenders: build(x, q), save, load, grid(round) of settings from fast to thorough, set,
# search


class Faiss:
    "What every FAISS index has; `module` is imported before the clock starts"

    module = 'faiss'
    note = {}

    def save(self, file):
        import faiss

        faiss.write_index(self.index, str(file))

    def load(self, file):
        import faiss

        self.index = faiss.read_index(str(file))

    def search(self, q):
        return self.index.search(q, K)[1]

    def set(self, setting):
        import faiss

        for name, v in setting.items():
            faiss.ParameterSpace().set_index_parameter(self.index, name, v)

    def grid(self, turn):
        "Lists to probe, or the breadth of a graph's search"
        import faiss

        ivf = faiss.try_extract_index_ivf(self.index)
        if ivf:
            return [
                {'nprobe': v} for v in sorted({round(1.4**i) for i in range(40)}) if v <= ivf.nlist
            ]
        return [{'efSearch': v} for v in steps()] if hasattr(self.index, 'hnsw') else []


class Exact(Faiss):
    "Every vector is read for every query"

    def build(self, x, q):
        import faiss

        self.index = faiss.IndexFlatIP(x.shape[1])
        self.index.add(x)


class Ours(Faiss):
    "build_index as it is, and what its parts take"

    module = 'two_tower_vs.index'

    def __init__(self, **options):
        self.options = options

    def build(self, x, q):
        import two_tower_vs.index as ix
        from two_tower_vs.vectors import Embeddings

        spent = dict(choosing=0.0, building=0.0)

        def timed(name, f):
            def run(*a, **kw):
                start = time.perf_counter()
                out = f(*a, **kw)
                spent[name] += time.perf_counter() - start
                return out

            return run

        cands = Embeddings(x, [str(i) for i in range(len(x))])
        choose = timed('choosing', ix.choose_index)
        build = timed('building', ix.new_index)
        with mock.patch.multiple(ix, choose_index=choose, new_index=build):
            built = ix.build_index(cands, '', q, recall_target=TARGET, **self.options)
        m = built.manifest
        self.index = built.faiss
        self.note = dict(
            spent=spent, tried=m['tried'], **{k: m[k] for k in ('kind', 'factory', 'search')}
        )

    def grid(self, turn):
        "Its own settings first, then others around them"
        own = self.note['search']
        return [own, *({**own, **s} for s in super().grid(turn) if own)]


class Hnswlib:
    module = 'hnswlib'
    note = {'M': 16, 'ef_construction': 200}

    def build(self, x, q):
        import hnswlib

        self.index = hnswlib.Index('ip', x.shape[1])
        self.index.init_index(len(x), **self.note)
        self.index.set_num_threads(len(CORES))
        self.index.add_items(x)

    def save(self, file):
        self.index.save_index(str(file))

    def load(self, file):
        import hnswlib

        self.index = hnswlib.Index('ip', D)
        self.index.load_index(str(file))
        self.index.set_num_threads(len(CORES))

    def grid(self, turn):
        return [{'ef': v} for v in steps()]

    def set(self, setting):
        self.index.set_ef(setting['ef'])

    def search(self, q):
        return self.index.knn_query(q, K)[0]


class Usearch:
    module = 'usearch.index'

    def __init__(self, dtype):
        self.note = {'dtype': dtype, 'connectivity': 16}

    def new(self):
        from usearch.index import Index

        return Index(ndim=D, metric='ip', **self.note)

    def build(self, x, q):
        import numpy as np

        self.index = self.new()
        self.index.add(np.arange(len(x)), x, threads=len(CORES))

    def save(self, file):
        self.index.save(str(file))

    def load(self, file):
        self.index = self.new()
        self.index.load(str(file))

    def grid(self, turn):
        return [{'expansion': v} for v in steps()]

    def set(self, setting):
        self.index.expansion_search = setting['expansion']

    def search(self, q):
        return self.index.search(q if len(q) > 1 else q[0], K, threads=len(CORES)).keys.reshape(
            len(q), -1
        )


class Scann:
    "Tree and codes as its documentation proposes: √n leaves, 2 numbers a code, exact scores last"

    module = 'scann'

    def __init__(self):
        self.note = {}

    def build(self, x, q):
        import scann

        leaves = int(len(x) ** 0.5)
        examples = min(len(x), 250_000)
        self.note = {'leaves': leaves}
        builder = scann.scann_ops_pybind.builder(x, K, 'dot_product')
        builder = builder.tree(leaves, num_leaves_to_search=10, training_sample_size=examples)
        builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100)
        self.index = builder.set_n_training_threads(len(CORES)).build()

    def save(self, file):
        folder = file.with_suffix('.folder')
        folder.mkdir(exist_ok=True)
        self.index.serialize(str(folder))
        file.write_bytes(bytes(sum(part.stat().st_size for part in folder.iterdir())))

    def load(self, file):
        import scann

        self.index = scann.scann_ops_pybind.load_searcher(str(file.with_suffix('.folder')))
        self.index.set_num_threads(len(CORES))

    def grid(self, turn):
        leaves = sorted({round(1.4**i) for i in range(40)})
        return [{'leaves': v} for v in leaves if v <= self.note['leaves']]

    def set(self, setting):
        self.options = {'leaves_to_search': setting['leaves'], 'pre_reorder_num_neighbors': 30}

    def search(self, q):
        if len(q) == 1:
            return self.index.search(q[0], K, **self.options)[0][None]
        return self.index.search_batched_parallel(q, K, **self.options)[0]


class Autofaiss(Faiss):
    "It chooses kind and settings by time and memory, not by recall; we try settings beyond its own"

    module = 'autofaiss'

    def __init__(self, bytes=None):
        self.bytes = bytes

    def build(self, x, q):
        import logging

        import faiss
        from autofaiss import build_index

        memory = (
            {'max_index_memory_usage': f'{self.bytes * len(x) / 1e6:.1f}MB'} if self.bytes else {}
        )
        opq = faiss.OPQMatrix  # whose arguments have lost their names since autofaiss was written
        with mock.patch.object(faiss, 'OPQMatrix', lambda d, M, d2: opq(d, M, d2)):
            self.index, info = build_index(
                x,
                save_on_disk=False,
                metric_type='ip',
                nb_cores=len(CORES),
                verbose=logging.ERROR,
                **memory,
            )
        self.note = {k: info[k] for k in ('index_key', 'index_param')}

    def grid(self, turn):
        return [{}] * (turn == 0) + super().grid(turn)  # its own are slow: once is enough


SMALL = (1000, 10_000)
BIG = (100_000, 200_000, 1_000_000)
MINE = 'two_tower_vs'
# name: (library, how to make it, numbers of vectors: fewer where building takes minutes)
CONTENDERS = {
    MINE: (None, Ours, SMALL + BIG),
    f'{MINE}, kind: ivf_sq': (None, partial(Ours, kind='ivf_sq'), BIG),
    f'{MINE}, kind: ivf_pq': (None, partial(Ours, kind='ivf_pq'), BIG),
    'hnswlib': ('hnswlib', Hnswlib, BIG),
    'usearch, float32': ('usearch', partial(Usearch, 'f32'), BIG[:2]),
    'usearch, bfloat16': ('usearch', partial(Usearch, 'bf16'), BIG),
    'scann': ('scann', Scann, BIG),
    'autofaiss': ('autofaiss', Autofaiss, BIG),
    f'autofaiss, {BYTES} bytes': ('autofaiss', partial(Autofaiss, BYTES), BIG[:1]),
    'limit: exact': (None, Exact, BIG),
}

# --- one measurement, in a process of its own


def make(work, n):
    "Vectors, queries (half of them to tune on, half to measure with) and what exact search finds"
    import faiss
    import numpy as np

    x, q = vectors(n)
    exact = faiss.knn(q, x, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    for name, a in dict(x=x, q=q, exact=exact).items():
        np.save(work / f'{n}.{name}.npy', a)
    if n != 200_000:
        return {}
    bare = faiss.index_factory(D, 'IVF1024,PQ32', faiss.METRIC_INNER_PRODUCT)
    bare.train(x[:65_536])
    bare.add(x)
    bare.nprobe = 64
    return {'bare': round(float(shares(bare.search(q, K)[1], exact).mean()), 3)}


def shares(found, exact):
    "Of the true nearest, how much each query found (n,)"
    return (found[:, :, None] == exact[:, None]).any(1).mean(1)


def resident():
    "Bytes that this process holds in memory; None where that isn't known"
    f = Path('/proc/self/statm')
    return int(f.read_text().split()[1]) * resource.getpagesize() if f.exists() else None


def build(c, work, n, file):
    import numpy as np

    x, q = (np.load(work / f'{n}.{name}.npy') for name in 'xq')
    start = time.perf_counter()
    c.build(x, q[: len(q) // 2])
    seconds = time.perf_counter() - start
    c.save(file)
    return dict(seconds=round(seconds, 3), bytes=round(file.stat().st_size / n, 1), note=c.note)


def search(c, work, n, file, note, turn):
    """Every setting: recall on the queries to tune on and on the others, queries a second,
    milliseconds for one alone
    """
    import numpy as np

    q, exact = (np.load(work / f'{n}.{name}.npy') for name in ('q', 'exact'))
    before = resident()
    c.note = note
    c.load(file)
    grown = before and round((resident() - before) / n, 1)
    half = len(q) // 2
    points = []
    for s in c.grid(turn) or [{}]:
        c.set(s)
        start = time.perf_counter()
        found = c.search(q)
        spent = (time.perf_counter() - start) / 2
        times = [clock(c, q[half:]) for _ in range(5)] if spent < 0.5 else [spent]
        one = []
        end = time.perf_counter() + 0.3
        while len(one) < 200 and time.perf_counter() < end:
            one.append(clock(c, q[half + len(one)][None]))
        found = shares(found, exact)
        tuned = found[:half].mean()
        recall = found[half:].mean()
        points.append(
            dict(
                setting=s,
                tuned=round(float(tuned), 4),
                recall=round(float(recall), 4),
                rate=round(half / float(np.median(times)), 1),
                ms=round(1000 * float(np.median(one)), 4),
            )
        )
        if s and (tuned > 0.995 or len(points) > 3 and tuned < points[-3]['tuned'] + 0.0005):
            break  # it gains no more
    return dict(points=points, resident=grown)


def clock(c, q):
    start = time.perf_counter()
    c.search(q)
    return time.perf_counter() - start


def cell(kind, name, n, turn, work, out):
    import faiss

    from two_tower_vs.files import replacing

    faiss.omp_set_num_threads(len(CORES))
    library, contender, _ = CONTENDERS.get(name, (None, Exact, None))
    file = work / f'{name} {n}.index'
    c = contender()
    import_module(c.module)
    if kind == 'vectors':
        r = make(work, n)
    elif kind == 'build':
        r = build(c, work, n, file)
    else:
        r = search(c, work, n, file, json.loads(file.with_suffix('.json').read_text()), turn)
    if kind == 'build':
        file.with_suffix('.json').write_text(json.dumps(r['note']))
    r = dict(kind=kind, name=name, n=n, round=turn, date=str(date.today()), **r)
    names = [library] if library else ['faiss-cpu', 'numpy']
    with replacing(out) as (f,):
        f.write_text(json.dumps({'cell': r, 'versions': {v: version(v) for v in names}}))


def wanted(sizes, rounds):
    "(kind, contender, vectors, round)"
    for n in sizes:
        there = [name for name, (_, _, ns) in CONTENDERS.items() if n in ns or n not in SMALL + BIG]
        yield 'vectors', '', n, 0
        for name in there:
            yield 'build', name, n, 0
        for i in range(rounds if n < 10**6 else min(rounds, 2)):
            for name in there:
                yield 'search', name, n, i


def fill(work, sizes, rounds):
    todo = list(wanted(sizes, rounds))
    pythons = {name: python_of(c[0]) for name, c in CONTENDERS.items()}
    code = hashlib.sha256(
        b''.join(f.read_bytes() for f in [Path(__file__), *sorted(ROOT.glob('two_tower_vs/*.py'))])
    )
    work = work / code.hexdigest()[:16]
    work.mkdir(parents=True, exist_ok=True)
    env = dict(os.environ, OMP_NUM_THREADS=str(len(CORES)), CUDA_VISIBLE_DEVICES='')
    for i, (kind, name, n, turn) in enumerate(todo, 1):
        f = work / f'{kind} {name} {n} {turn}.json'
        start = time.time()
        print(
            f'{i}/{len(todo)}  {n:,}: {kind} {name} {turn + 1 if kind == "search" else ""}',
            end='  ',
            flush=True,
        )
        if not f.exists():
            r = subprocess.run(
                [
                    pythons.get(name, sys.executable),
                    '-W',
                    'ignore',
                    __file__,
                    '--cell',
                    kind,
                    name,
                    str(n),
                    str(turn),
                    work,
                    f,
                ],
                env=env,
                capture_output=True,
                text=True,
            )
            if r.returncode:
                sys.exit(f'failed with exit status {r.returncode}\n{r.stderr}')
        print(f'{time.time() - start:.0f} s', flush=True)
        yield json.loads(f.read_text())


def memory_rate():
    "Gigabytes a second that the cores read from memory: exact search reads every vector"
    import torch

    torch.set_num_threads(len(CORES))
    x = torch.ones(2**28)
    best = 1e9
    for _ in range(5):
        start = time.perf_counter()
        x.sum()
        best = min(best, time.perf_counter() - start)
    return round(x.nbytes / best / 1e9, 1)


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument(
        '--quick', action='store_true', help='5,000 vectors, one round; writes search-quick.json'
    )
    p.add_argument('--sizes', type=int, nargs='+', help='numbers of vectors')
    p.add_argument('--out', type=Path)
    a = p.parse_args()
    out = a.out or RESULTS / f'search{"-quick" if a.quick else ""}.json'
    from two_tower_vs.files import replacing

    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, CORES)
    work = WORK.parent / f'search{"-quick" if a.quick else ""}'
    got = list(
        fill(work, a.sizes or ((5000,) if a.quick else SMALL + BIG), 1 if a.quick else ROUNDS)
    )
    result = dict(
        machine=dict(machine(), memory_gb_s=memory_rate()),
        target=TARGET,
        bytes=BYTES,
        versions={k: v for c in got for k, v in c['versions'].items()},
        cells=[c['cell'] for c in got],
    )
    with replacing(out) as (f,):
        f.write_text(json.dumps(result, indent=1) + '\n')
    shutil.rmtree(work)


if __name__ == '__main__':
    if sys.argv[1:2] != ['--cell']:
        main()
    else:
        cell(
            *sys.argv[2:4], int(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]), Path(sys.argv[7])
        )
