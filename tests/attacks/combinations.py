"""Files that do not belong together, are damaged, forged or replaced while they are read; and many
threads at once.
"""

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import threading
import traceback
import warnings
import zipfile
from hashlib import sha256
from pathlib import Path

from attack import CONFIG, Case, cli, judged, one_line, project

# ---- what is done to a file


def cut(share):
    return lambda f, r: f.write_bytes(f.read_bytes()[: int(share * f.stat().st_size)])


def write(b):
    return lambda f, r: f.write_bytes(b)


def flip(f, r, n=1):
    b = bytearray(f.read_bytes())
    for _ in range(n):
        b[r.randrange(len(b))] ^= 1 << r.randrange(8)
    f.write_bytes(b)


def gone(f, r):
    f.unlink()


def folder(f, r):
    f.unlink()
    f.mkdir()


def dangling(f, r):
    f.unlink()
    f.symlink_to('nowhere')


def stranger(f, r):
    f.write_bytes(
        next(
            o
            for o in sorted(f.parent.parent.rglob('*'))
            if o.is_file() and o.name != f.name and o.stat().st_size and o.suffix != f.suffix
        ).read_bytes()
    )


def edit(**new):  # None takes a key away
    def change(f, r):
        d = {**json.loads(f.read_text()), **new}
        f.write_text(json.dumps({k: v for k, v in d.items() if v is not ...}))

    return change


DAMAGES = {
    'missing': gone,
    'empty': write(b''),
    'its first half': cut(0.5),
    'all but its end': cut(0.999),
    'a flipped bit': flip,
    'zeros': lambda f, r: f.write_bytes(bytes(f.stat().st_size)),
    "another file's content": stranger,
    'a folder': folder,
    'a dangling link': dangling,
}
JSONS = {
    'a list': write(b'[1]'),
    'null': write(b'null'),
    'nested 100,000 deep': write(b'[' * 100_000),
    'a number of 5,000 digits': write(b'{"format": ' + b'9' * 5000 + b'}'),
    'format 2': edit(format=2),
    'format "1"': edit(format='1'),
    'format NaN': edit(format=float('nan')),
    'no format': edit(format=...),
    'true as format': edit(format=True),
    'a format of many lines': edit(format='1\n' * 500),
}

# ---- the project that is attacked


class Ran:
    "A project that ran, put back after each attack"

    def __init__(self, work):
        self.p = project(work)
        self.out = self.p / 'out'
        self.config = self.p / 'config.yaml'
        self.config.write_text(CONFIG + 'query: {runs: 1, topk: 5}\n')
        self.image = sorted((self.p / 'images/line').iterdir())[3]
        status, _, err = self.run('query')
        assert status == 0, err
        self.hits = self.asked()[1]
        self.kept = self.p.parent / 'kept'
        shutil.copytree(self.out, self.kept, symlinks=True)
        self.key = json.loads((self.out / 'cache/searcher.json').read_text())['key']

    def run(self, stage, *more):
        return cli(
            '--config',
            self.config,
            '--stage',
            stage,
            *(['--image', self.image] if stage == 'query' else []),
            *more,
        )

    def asked(
        self,
    ):  # what a user would see of a query, but for the picture of hits: (status, hits, stderr)
        from two_tower_vs.errors import InputError
        from two_tower_vs.query import load_searcher

        err = io.StringIO()
        status = 0
        hits = None
        with contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.showwarning = lambda m, *a, **k: print(f'warning: {m}', file=sys.stderr)
            warnings.simplefilter('always')
            try:
                hits = load_searcher(self.out).search(self.image, 5)
            except InputError as e:
                status = 2
                print(f'two_tower_vs: {e}', file=sys.stderr)
            except BaseException:
                status = 1
                traceback.print_exc(file=err)
        return status, hits, err.getvalue()

    def same(self, hits, off=1e-5):
        old = self.hits
        return (
            list(hits.cand_path) == list(old.cand_path)
            and abs(hits.score.values - old.score.values).max() < off
        )

    def same_index(self):  # vector for vector
        import faiss

        a, b = (
            faiss.read_index(str(o / 'index/vectors.faiss')).reconstruct_n(0, -1)
            for o in (self.out, self.kept)
        )
        return a.shape == b.shape and abs(a - b).max() < 1e-5 and self.same(self.asked()[1])

    def restore(self):  # what changed, since all of it takes a while
        for f in [
            f
            for f in self.out.rglob('*')
            if not (self.kept / f.relative_to(self.out)).exists() or f.is_symlink()
        ]:
            if f.is_dir() and not f.is_symlink():
                shutil.rmtree(f, ignore_errors=True)
            else:
                f.unlink(missing_ok=True)
        for old in self.kept.rglob('*'):
            f = self.out / old.relative_to(self.kept)
            if f.is_dir() != old.is_dir() and f.exists():
                shutil.rmtree(f) if f.is_dir() else f.unlink()
            if old.is_dir():
                f.mkdir(exist_ok=True)
            elif not f.exists() or (f.stat().st_size, f.stat().st_mtime_ns) != (
                old.stat().st_size,
                old.stat().st_mtime_ns,
            ):
                f.unlink(missing_ok=True)
                shutil.copy2(old, f)

    def files(self):
        def rel(pattern):
            return [f.relative_to(self.out) for f in sorted(self.out.glob(pattern))]

        return dict(
            needed=sum(map(rel, ('model/*', 'index/*')), []),
            cache=sum(
                map(rel, ('cache/*.json', 'cache/*.xml', 'cache/*.bin', 'cache/compiled/*')), []
            ),
        )


def damaged(r, rel, name, damage, rng, tries=1):
    """A query after the damage: the same hits as ever, or refused by a line that names the file or
    what it belongs to
    """
    worst = None
    for _ in range(tries):
        f = r.out / rel
        with contextlib.suppress(OSError):
            f.chmod(0o644)
        damage(f, rng)
        status, hits, err = r.asked()
        r.restore()
        # which precision was found good enough is lost with network.json: float32 then
        ok = hits is None or r.same(hits, 2e-2 if rel.name == f'{r.key}.json' else 1e-5)
        names = rel.name in err or rel.parent.name in err
        c = judged(
            f'{rel.parent.name}/{shown(rel, r)}: {name}',
            status,
            err,
            want=(0, 2),
            tries=tries,
            also=ok and (status == 0 or names),
            why='another answer' if not ok else 'does not name the file',
        )
        if worst is None or not c.passed:
            worst = c
        if not c.passed:
            break
    return worst


def shown(rel, r):
    if rel.suffix == '.blob':
        return 'compiled.blob'
    return f'network{rel.suffix}' if rel.stem == r.key else rel.name


def damages(r, long):
    rng = random.Random(0)
    files = r.files()
    for rel in files['needed'] + files['cache']:
        # It is converted anew: seconds
        slow = (rel.suffix in ('.xml', '.bin') or rel.name == 'networks.json') and not long
        for name, f in {**DAMAGES, **(JSONS if rel.suffix == '.json' else {})}.items():
            if slow and f not in (gone, flip):
                continue
            many = (100 if long else 3) if rel in files['needed'] else 8 if long else 1
            yield damaged(r, rel, name, f, rng, many if f is flip else 1)


def byte(f, r):  # a large change in the middle, where a shard has its features
    b = bytearray(f.read_bytes())
    b[3 * len(b) // 4 | 3] ^= 0x41
    f.write_bytes(b)


def other_stages(r, long):
    "What the other stages find damaged: done anew, with the same index and metrics in the end"
    shards = [f.relative_to(r.out) for f in sorted(r.out.glob(f'cache/{r.key}*/*.safetensors'))]
    seen = [f.relative_to(r.out) for f in sorted(r.out.glob(f'cache/{r.key}*/seen/*.safetensors'))]
    for rel, damage, name in [
        (shards[0], write(b''), 'empty'),
        (shards[0], cut(0.5), 'its first half'),
        (seen[0], flip, 'a flipped bit'),
        *((s, byte, 'a flipped byte') for s in shards[:2]),
        *(
            (Path('index') / n, flip, 'a flipped bit')
            for n in ('vectors.faiss', 'rows.safetensors', 'candidates.csv', 'manifest.json')
        ),
        (Path('bad_images.csv'), write(b''), 'empty'),
        (Path('bad_images.csv'), write(b'\0' * 100), 'zeros'),
        (Path('bad_images.csv'), write(b'a,b\n1,2\n'), 'another table'),
    ]:
        (r.out / rel).touch()
        damage(r.out / rel, random.Random(1))
        (r.out / 'index/manifest.json').touch()
        if rel.parts[0] == 'cache':
            shutil.rmtree(r.out / 'index')  # so that it is built from the features
        status, _, err = r.run('index')
        ok = status == 2 or status == 0 and r.same_index()
        r.restore()
        kind = (
            rel.name if rel.parts[0] != 'cache' else 'stamps' if 'seen' in rel.parts else 'features'
        )
        yield judged(
            f'{kind}: {name}, then --stage index',
            status,
            err,
            want=(0, 2),
            also=ok,
            why='another answer',
        )
    if not long:
        return
    metrics = (r.out / 'metrics.json').read_text()
    for rel, damage in (
        (shards[0], cut(0.5)),
        (Path('metrics.json'), write(b'[')),
        (Path('per_query.csv'), write(b'')),
        (Path('worst.png'), write(b'')),
    ):
        damage(r.out / rel, random.Random(1))
        status, _, err = r.run('eval')
        yield judged(
            f'{rel.name if len(rel.parts) == 1 else "features"}: damaged, then --stage eval',
            status,
            err,
            want=0,
            also=(r.out / 'metrics.json').read_text() == metrics,
            why='other metrics',
        )
        r.restore()


# ---- forgeries: files that fit each other, made by someone who knows how


def forged(r, **new):
    "The manifest with other entries, and all hashes right"
    from two_tower_vs.bundle import seal

    f = r.out / 'index/manifest.json'
    d = {**json.loads(f.read_text()), **new}
    d |= {
        k: sha256((r.out / 'index' / n).read_bytes()).hexdigest()
        for k, n in (('index_sha256', 'vectors.faiss'), ('candidates_sha256', 'candidates.csv'))
    }
    d['sha256'] = seal(d)
    f.write_text(json.dumps(d))


def asked(r, name, says='', want=2):
    status, hits, err = r.asked()
    ok = hits is None or r.same(hits)
    r.restore()
    return judged(name, status, err, want=want, says=says, also=ok, why='another answer')


def forged_manifests(r):
    for name, new in {
        'dim 31': dict(dim=31),
        'dim of 10**12': dict(dim=10**12),
        'dim "32"': dict(dim='32'),
        'rows 7': dict(rows=7),
        'rows -1': dict(rows=-1),
        'no kind': dict(kind=None),
        'a list for search': dict(search=[1]),
        'nprobe -5': dict(search={'nprobe': -5}),
        'nprobe 10**12': dict(search={'nprobe': 10**12}),
        'nprobe "many"': dict(search={'nprobe': 'many'}),
        'k_factor of a billion': dict(search={'k_factor_rf': 1e9}),
        'k_factor NaN': dict(search={'k_factor_rf': float('nan')}),
        'an unknown setting': dict(search={'verbose': 1}),
        'nprobe of an index without lists': dict(search={'nprobe': 3}),
        'recall as a text': dict(recall_vs_exact='all'),
        'a list as model_sha256': dict(model_sha256=['x']),
        'another model': dict(model_sha256='0' * 64),
    }.items():
        forged(r, **new)
        yield asked(r, f'a forged manifest: {name}', 'with --stage index')
    edit(recall_vs_exact={'k': 10, 'value': 1.0, 'queries': 9})(r.out / 'index/manifest.json', r)
    yield asked(r, 'a manifest whose recall was edited', 'was changed since it was written')
    edit(seed=7)(r.out / 'model/model.json', r)
    yield asked(r, 'a model.json with another seed', 'was changed since training: seed was')
    for name, rows in {
        'a row fewer': lambda rows: rows[:-1],
        'a row more': lambda rows: [*rows, 'color/none.png'],
        'a path outside': lambda rows: [*rows[:-1], '../../etc/passwd'],
        'an absolute path': lambda rows: [*rows[:-1], '/etc/passwd'],
    }.items():
        f = r.out / 'index/candidates.csv'
        head, *rest = f.read_text().split()
        f.write_text('\n'.join([head, *rows(rest)]) + '\n')
        forged(r)
        yield asked(r, f'forged candidates: {name}', 'candidates.csv')


def forged_indexes(r):
    "FAISS files of other kinds, with right hashes"
    import faiss
    import numpy as np

    f = r.out / 'index/vectors.faiss'
    x = faiss.read_index(str(f)).reconstruct_n(0, -1)
    n, d = x.shape
    with contextlib.redirect_stdout(io.StringIO()):
        ids = faiss.IndexIDMap(faiss.IndexFlatIP(d))
        ids.add_with_ids(x, np.arange(n) + 10**6)
        l2 = faiss.IndexFlatL2(d)
        l2.add(x)
        outside = r.p / 'outside.lists'
        ivf = faiss.index_factory(d, 'IVF2,Flat', faiss.METRIC_INNER_PRODUCT)
        ivf.train(x)
        lists = faiss.OnDiskInvertedLists(2, ivf.code_size, str(outside))
        ivf.replace_invlists(lists)
        ivf.add(x)
        far = faiss.index_factory(d, 'IVF2,Flat', faiss.METRIC_INNER_PRODUCT)
        far.train(x)
        far.add_with_ids(x, np.arange(n) * 10**9)
        pca = faiss.index_factory(d, 'PCA8,Flat', faiss.METRIC_INNER_PRODUCT)
        pca.train(x)
        pca.add(x)
        wide = faiss.IndexFlatIP(d + 1)
        wide.add(np.ones((n, d + 1), 'f'))
        bits = faiss.IndexBinaryFlat(256)
        bits.add(np.zeros((n, 32), 'uint8'))
    for name, i in {
        'ids that are no rows': ids,
        'distances, not inner products': l2,
        'lists in a file outside': ivf,
        'lists that name other rows': far,
        'vectors of another size': wide,
    }.items():
        faiss.write_index(i, str(f))
        forged(r)
        yield asked(r, f'a forged index: {name}', 'index')
    faiss.write_index_binary(bits, str(f))
    forged(r)
    yield asked(r, 'a forged index: of bits', 'vectors.faiss')
    b = (r.kept / 'index/vectors.faiss').read_bytes()
    at = b.index(struct.pack('<Q', n * d), 30)
    for name, size in (
        ('a terabyte', 2**38),
        ('16 GB', 2**32),
        ('more than there are numbers', 2**63),
    ):
        f.write_bytes(b[:at] + struct.pack('<Q', size) + b[at + 8 :])
        forged(r)
        yield asked(r, f'a forged index: it asks for {name}', 'vectors.faiss')
    faiss.write_index(ivf, str(f))
    forged(r)
    mode = outside.stat()
    status, out, err = r.run('index')
    after = outside.stat()  # it reads the index to update it
    yield judged(
        '--stage index over an index whose lists lie outside',
        status,
        err,
        want=0,
        also=(mode.st_mtime_ns, mode.st_size) == (after.st_mtime_ns, after.st_size)
        and r.same(r.asked()[1]),
        why='not rebuilt',
    )
    r.restore()


def forged_models(r):
    from safetensors.torch import load_file, save_file

    from two_tower_vs.saving import file_sha256

    w = r.out / 'model/model.safetensors'
    desc = r.out / 'model/model.json'
    t = load_file(w)
    config = {k: v for k, v in json.loads(desc.read_text()).items() if k != 'sha256'}

    def forge(tensors=t, **new):
        d = {k: v for k, v in {**config, **new}.items() if v is not ...}
        save_file(tensors, w, metadata={'config': json.dumps(d)})
        desc.write_text(json.dumps({**d, 'sha256': file_sha256(w)}))

    for name, new in {
        'another backbone': dict(backbone='resnet18'),
        'a backbone that is none': dict(backbone='../../etc/passwd'),
        'a list as backbone': dict(backbone=[1]),
        'embed_dim of a billion': dict(embed_dim=10**9),
        'embed_dim "32"': dict(embed_dim='32'),
        'images of a million pixels a side': dict(image_size=10**6),
        'no seed': dict(seed=...),
        'a million levels': dict(levels=10**6),
        'other levels': dict(levels=1),
        'two backbones': dict(share='none'),
        'no such share': dict(share='some'),
    }.items():
        forge(**new)
        yield asked(r, f'a forged model: {name}', 'model.safetensors')
    forge({k: v for k, v in t.items() if 'head' in k})
    yield asked(r, 'a forged model: without a backbone', 'model.safetensors')
    forge({**t, 'query.head.weight': t['query.head.weight'][:, :-1].contiguous()})
    yield asked(r, 'a forged model: a narrower head', 'model.safetensors')
    b = (r.kept / 'model/model.safetensors').read_bytes()
    for name, head in {
        'a header of a terabyte': struct.pack('<Q', 2**40) + b[8:],
        'offsets that overlap': (lambda n, h: struct.pack('<Q', n) + h + b[8 + n :])(
            *(lambda n: (n, b[8 : 8 + n].replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1)))(
                struct.unpack('<Q', b[:8])[0]
            )
        ),
        'a header without metadata': struct.pack('<Q', 2) + b'{}',
    }.items():
        w.write_bytes(head)
        desc.write_text(json.dumps({**config, 'sha256': file_sha256(w)}))
        yield asked(r, f'a forged model: {name}', 'model.safetensors')


# ---- files of two runs, and a config that changed after training


def two_runs(r, work):
    "Another model with this index, and so on"

    from two_tower_vs.saving import load_model, save_model

    m = load_model(r.out / 'model')
    m.query.head.bias.data += 0.1
    save_model(m, r.out / 'model')
    yield asked(r, 'the model of another run with this index', 'was made by another model')
    save_model(m, r.out / 'model')
    shutil.copy(r.kept / 'model/model.json', r.out / 'model')
    yield asked(r, "one model's weights with the other's description", 'model.safetensors')


def changed_config(r, long):
    base = r.config.read_text()
    bad = [
        f'index: {{{t}}}'
        for t in (
            'factory: "IDMap,Flat"',
            'factory: PQ999',
            'factory: LSH',
            'factory: garbage',
            'factory: HNSW1000000',
            'factory: "IVF100000,Flat"',
            'recall_target: 2',
            'recall_target: .nan',
            'memory_mb: 0',
            'memory_mb: -1',
            'dim: 1000',
            'dim: 0',
            'kind: best',
            'kind: ivf_pq',
            'kind: hnsw, ef_search: -1',
            'kind: hnsw, ef_search: 1000000000000',
            'k_factor: 1.0e+9',
            'nprobe: 0',
        )
    ]
    for text in bad if long else bad[::3]:
        r.config.write_text(base.replace('query: {', f'{text}\nquery: {{'))
        status, _, err = r.run('index')
        yield judged(f'config: {text}, then --stage index', status, err, says='index.')
        r.restore()
    r.config.write_text(base)
    for topk, want in ((0, 2), (-3, 2), (10**12, 2), (10**6, 0)):
        status, _, err = r.run('query', '--topk', topk)
        yield judged(f'--topk {topk}', status, err, want=want)
        r.restore()
    f = r.p / 'candidates.csv'
    was = f.read_text()
    lines = was.split()
    for name, new in {
        'a row removed': lines[:-1],
        'rows in another order': [lines[0], *lines[:0:-1]],
    }.items():
        f.write_text('\n'.join(new) + '\n')
        status, _, err = r.run('query')
        yield judged(
            f'candidates.csv: {name}, then --stage query',
            status,
            err,
            want=0,
            says='was changed after the index was made',
            also=r.same(r.asked()[1]),
        )
        r.restore()
    f.unlink()
    status, _, err = r.run('query')
    yield judged(
        'candidates.csv deleted, then --stage query', status, err, want=0, also=r.same(r.asked()[1])
    )
    r.restore()
    status, _, err = r.run('index')
    yield judged(
        'candidates.csv deleted, then --stage index',
        status,
        err,
        says='candidates.csv: no such file',
    )
    f.write_text(was)
    r.restore()


def weights(r, long):
    "Files given as model.weights: nothing is unpickled"
    import torch

    marker = r.p / 'marker'

    class Evil:
        def __reduce__(self):
            return os.system, (f'touch "{marker}"',)

    d = r.p / 'weights'
    d.mkdir()
    (d / 'evil.pth').write_bytes(pickle.dumps(Evil()))
    torch.save({'state_dict': Evil()}, d / 'evil_zip.pt')
    torch.save({'w': torch.zeros(10**6 if not long else 10**8)}, d / 'plain.pt')
    with (
        zipfile.ZipFile(d / 'plain.pt') as z,
        zipfile.ZipFile(d / 'bomb.pt', 'w', zipfile.ZIP_DEFLATED) as b,
    ):
        for i in z.infolist():
            b.writestr(i.filename, z.read(i))
    torch.save([1, 2], d / 'list.pt')
    (d / 'huge.safetensors').write_bytes(struct.pack('<Q', 2**60) + b'{}')
    (d / 'empty.pt').write_bytes(b'')
    (d / 'text.pth').write_text('not weights')
    base = r.config.read_text()
    for f in (
        sorted(d.iterdir())
        if long
        else [d / 'evil.pth', d / 'evil_zip.pt', d / 'bomb.pt', d / 'huge.safetensors']
    ):
        r.config.write_text(base.replace('model: {', f'model: {{weights: "{f}", '))
        status, _, err = r.run('train')
        yield judged(
            f'model.weights: {f.name}',
            status,
            err,
            says='it is compressed' if f.name == 'bomb.pt' else f.name,
            also=not marker.exists(),
            why='it was executed',
        )
    for text in (
        'image_size: 1000000',
        'embed_dim: 1000000000000',
        'levels: -1',
        'backbone: timm/nothing',
        'share: some',
    ):
        key = text.split(':')[0]
        old = dict(
            image_size='image_size: 64',
            embed_dim='embed_dim: 32',
            backbone='backbone: efficientnet_lite0',
        )
        r.config.write_text(
            base.replace(old[key], text)
            if key in old
            else base.replace('model: {', f'model: {{{text}, ')
        )
        status, _, err = r.run('train')
        yield judged(f'config: model: {text}', status, err)
    r.config.write_text(base)
    r.restore()


# ---- several at once


def many_threads(r, long):
    "One searcher, eight threads, while the index is replaced again and again"
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from two_tower_vs.bundle import load_index, save_index
    from two_tower_vs.query import load_searcher

    s = load_searcher(r.out)
    pics = sorted((r.p / 'images/line').iterdir())[:12]
    one = [s.search(f, 5) for f in pics]
    old = load_index(r.out / 'index', writable=True)
    stop = threading.Event()
    saves = [0]
    import faiss

    flipped = faiss.IndexFlatIP(old.faiss.d)
    flipped.add(-old.faiss.reconstruct_n(0, -1))
    new = type(old)(flipped, old.paths[::-1], dict(old.manifest, kind='other'))
    wrong = {'flat': old, 'other': new}

    def replace():
        while not stop.is_set():
            save_index((new, old)[saves[0] % 2], r.out / 'index')
            saves[0] += 1

    def ask(_):
        return all(list(s.search(f, 5).cand_path) == list(o.cand_path) for f, o in zip(pics, one))

    def load(_):
        i = load_index(r.out / 'index')
        o = wrong[i.manifest['kind']]
        return i.paths == o.paths and np.array_equal(
            i.faiss.reconstruct_n(0, -1), o.faiss.reconstruct_n(0, -1)
        )

    n = 400 if long else 40
    t = threading.Thread(target=replace)
    t.start()
    try:
        with ThreadPoolExecutor(8) as ex:
            asks = list(ex.map(ask, range(n // 4)))
            loads = [ex.submit(load, i) for i in range(n)]
        found = [f.exception() or f.result() for f in loads]
    finally:
        stop.set()
        t.join()
    bad = [f for f in found if f is not True]
    yield Case(
        '8 threads ask one searcher while the index is replaced',
        all(asks),
        tries=len(asks) * len(pics),
        why='another answer',
    )
    yield Case(
        'an index is loaded while it is replaced: the old one or the new one',
        not bad and saves[0] > 5,
        tries=n,
        why=f'{len(bad)} of {n} failed, first: {bad[:1]}; {saves[0]} saves',
    )
    r.restore()


REPEAT = """import sys
from pathlib import Path
from two_tower_vs.cli import main
for i in range(int(sys.argv[2])):
    Path('candidates.csv').write_text(Path(('half.csv', 'whole.csv')[i%2]).read_text())
    if main(['--config', sys.argv[1], '--stage', 'index']): sys.exit(1)
"""


def two_processes(r, long):
    "`query`, while another process brings the index up to date again and again"
    lines = (r.p / 'candidates.csv').read_text().split()
    answers = []
    (r.p / 'query_gt.csv').unlink()  # its answers would have to stay
    for name, n in (('half', len(lines) // 2), ('whole', len(lines))):
        for f in (f'{name}.csv', 'candidates.csv'):
            (r.p / f).write_text('\n'.join(lines[:n]) + '\n')
        r.run('index')
        r.run('query')
        answers.append(
            [h['cand_path'] for h in json.loads((r.out / 'query.json').read_text())['hits']]
        )
    p = subprocess.Popen(
        [sys.executable, '-c', REPEAT, r.config, str(60 if long else 4)],
        cwd=r.p,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    bad = []
    tries = 0
    err = ''
    while p.poll() is None and tries < 1000:
        status, _, err = r.run('query')
        tries += 1
        got = [h['cand_path'] for h in json.loads((r.out / 'query.json').read_text())['hits']]
        if status or got not in answers:
            bad.append((status, got, err))
    said = p.communicate()[0]
    yield Case(
        'query, while another process brings the index up to date',
        not bad and not p.returncode and answers[0] != answers[1] and tries > 3,
        message=one_line(err),
        tries=tries,
        why=f'{bad[:1]} {said[-500:]}',
    )
    (r.p / 'candidates.csv').write_text((r.p / 'whole.csv').read_text())
    r.restore()
