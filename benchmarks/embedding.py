"""Embed pictures from disk with two_tower_vs, a plain loop and three neighbours; write
embedding.json.

    python benchmarks/embedding.py           # ten minutes on two idle cores
    python benchmarks/embedding.py --quick   # few pictures, one round: does all of it run?

Each measurement is a process of its own, and the methods take turns. Each library lives in a
venv of its own inside the one that started this. An interrupted run resumes,
unless the code has changed since.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from datetime import date
from functools import cache, partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
from peers import CORES, PEERS, RESULTS, ROOT, WORK, datasets, machine, python_of

PEERS['clip-retrieval'] = '==2.45.0 setuptools<81'  # for its pkg_resources
ST = 'sentence-transformers'
CR = 'clip-retrieval'


class Job:
    """One measurement: a backbone, a folder of pictures, and the moment from which on pictures may
    be read
    """

    def __init__(self, backbone, folder, n, scratch):
        self.backbone = backbone
        self.folder = folder
        self.n = n
        self.scratch = scratch
        self.engine = None
        self.files = sorted(folder.glob('*'))
        self.batch = 16 if '12 MP' in folder.name else None  # in larger ones nothing would overlap

    def ready(self):
        self.start = time.time()

    def tower(self, **kw):
        "As it is by default, without a head"
        # Speed doesn't depend on weights, and resnet18's aren't installed
        from two_tower_vs.model import TwoTower

        return TwoTower(self.backbone, self.backbone != 'resnet18', embed_dim=None, **kw).query

    def look(self, prep):
        "Preprocessing as torchvision has it, to the size that the tower takes"
        import torchvision.transforms as T

        resize = T.Resize((prep['size'],) * 2, T.InterpolationMode(prep['interpolation']))
        return T.Compose([rgb, resize, T.ToTensor(), T.Normalize(prep['mean'], prep['std'])])


def rgb(im):
    return im.convert('RGB')


# --- from disk to vectors; each calls job.ready() when only the pictures are missing


def ours(job, model=True, precision='auto', **kw):
    "embed as it is; model=False: its network answers at once"
    import numpy as np

    import two_tower_vs.embed as e

    class Engine(e.Engine):
        def __init__(self, tower, kind, folder, *a, **kw):
            # What int8 calibrates is kept in a folder; the features aren't
            kept = job.scratch if precision == 'int8' else folder
            super().__init__(tower, kind, kept, *a, **kw)
            job.engine = self
            if not model:
                self.run = lambda x: np.ones((len(x), tower.n_features), np.float32)
            job.ready()

    with mock.patch.object(e, 'Engine', Engine):
        return e.embed(
            job.tower(**kw),
            job.files,
            engine='auto' if model else 'torch',
            precision=precision,
            progress=False,
        ).vectors


class Pictures:
    def __init__(self, files, look):
        self.files = files
        self.look = look

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        from PIL import Image

        return self.look(Image.open(self.files[i]))


def plain(job):
    "What one writes without thinking of speed, and what PyTorch's tutorials show"
    import torch

    t = job.tower()
    data = Pictures(job.files, job.look(t.prep))
    loader = torch.utils.data.DataLoader(data, job.batch or 32, num_workers=len(CORES))
    job.ready()
    with torch.inference_mode():
        return torch.cat([t.backbone(x) for x in loader]).numpy()


def timm_script(job, fast=False):
    """The loop of timm's inference.py, which its wheel lacks: its loader, its batch of 256,
    --num-classes 0 --topk 0 --output-type logit; fast: --channels-last --amp --amp-dtype
    bfloat16 as well
    """
    import numpy as np
    import torch
    from timm.data import create_dataset, create_loader

    t = job.tower()
    model = t.backbone.eval()
    p = t.prep
    if fast:
        model = model.to(memory_format=torch.channels_last)
    amp = partial(torch.autocast, device_type='cpu', dtype=torch.bfloat16) if fast else suppress
    loader = create_loader(
        create_dataset('', root=job.folder, split='validation'),
        batch_size=job.batch or 256,
        input_size=(3, p['size'], p['size']),
        interpolation=p['interpolation'],
        mean=p['mean'],
        std=p['std'],
        crop_pct=1.0,
        crop_mode='squash',
        num_workers=len(CORES),
        use_prefetcher=True,
        device=torch.device('cpu'),
        img_dtype=torch.float32,
    )
    out = []
    job.ready()
    with torch.inference_mode():
        for x, _ in loader:
            with amp():
                y = model(x)
            out.append(y.float().cpu().numpy())
    return np.concatenate(out)


def sbert(job):
    "model.encode of opened pictures in batches of 128, as in its examples of image search"
    import torch
    from PIL import Image
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import InputModule

    t = job.tower()
    look = job.look(t.prep)
    net = t.backbone

    class Module(InputModule):
        modalities = ['image']

        def __init__(self):
            super().__init__()
            self.net = net

        def preprocess(self, ims, prompt=None, **kw):
            return {'pixel_values': torch.stack([look(im) for im in ims])}

        def forward(self, x, **kw):
            return {**x, 'sentence_embedding': self.net(x['pixel_values'])}

        def save(self, *a, **kw):
            pass

    model = SentenceTransformer(modules=[Module()], device='cpu')
    job.ready()
    return model.encode([Image.open(f) for f in job.files], batch_size=job.batch or 128)


def clip_retrieval(job):
    """Its clip_inference with its reader, mapper and writer, on a `CLIP` whose image side is our
    backbone. Its loggers, two processes that import all of it again, are left out: in a long
    run they cost nothing.
    """
    import numpy as np
    import pandas as pd
    import torch

    m, w = (import_module(f'clip_retrieval.clip_inference.{n}') for n in ('main', 'worker'))
    t = job.tower()
    net = torch.nn.Module()
    net.encode_image = t.backbone
    net.encode_text = lambda x: x
    clip = net, job.look(t.prep), lambda texts: torch.zeros(len(texts), 1)

    class Quiet:
        def __init__(self, *a, **kw):
            pass

        def start(self):
            job.ready()  # the worker calls it last, between its warm-up and the first batch

        def __call__(self, stats):
            pass

        def end(self):
            pass

    with (
        mock.patch('all_clip.main._CLIP_REGISTRY', {'ours': lambda *a: clip}),
        mock.patch.object(m, 'LoggerReader', Quiet),
        mock.patch.object(w, 'LoggerWriter', Quiet),
    ):
        m.main(
            str(job.folder),
            str(job.scratch),
            batch_size=job.batch or 256,
            num_prepro_workers=len(CORES),
            enable_text=False,
            clip_model='ours',
        )
    names = pd.read_parquet(job.scratch / 'metadata/metadata_0.parquet').image_path
    assert [Path(n).name for n in names] == [f.name for f in job.files]
    return np.load(job.scratch / 'img_emb/img_emb_0.npy').astype(np.float32)


# --- limits: the halves of the work, each alone


def on_pixels(job, torch_fp32=False):
    "Pixels that are ready: our engine in as many threads as embed uses, or PyTorch in batches"
    import numpy as np
    import torch

    from two_tower_vs.engine import Engine
    from two_tower_vs.pictures import load_pixels
    from two_tower_vs.threads import cores, in_threads

    t = job.tower()
    x = np.stack([t.pixels(load_pixels(f, side=t.prep['size'])) for f in job.files[:256]])
    if torch_fp32:
        x = (torch.from_numpy(x[:32]) - t.mean) / t.std
        run = torch.inference_mode()(t.backbone)
        run(x)
        job.ready()
        for _ in range(job.n // 32):
            run(x)
    else:
        job.engine = Engine(t, sample=lambda count: x[:count])
        job.engine(x[:8])
        job.ready()
        for _ in in_threads(
            lambda i: job.engine(x[i % 256 :][:8]), range(0, job.n, 8), cores() + 2
        ):
            pass


MINE = 'two_tower_vs'
INT8 = f'{MINE}, int8'
reader = partial(ours, model=False)
# name: (library, function, whether it is fast: then it gets more pictures)
METHODS = {
    MINE: (None, ours, True),
    f'{MINE}, last stage only': (None, partial(ours, levels=0), True),
    f'{MINE}, float32': (None, partial(ours, precision='float32'), True),
    INT8: (None, partial(ours, precision='int8'), True),
    'plain loop': (None, plain, False),
    CR: (CR, clip_retrieval, False),
    ST: (ST, sbert, False),
    'timm': (None, timm_script, False),
    'timm, bfloat16': (None, partial(timm_script, fast=True), False),
    'limit: our reader alone': (None, reader, True),
    'limit: our engine alone': (None, on_pixels, True),
    'limit: PyTorch float32 alone': (None, partial(on_pixels, torch_fp32=True), False),
}
LITE = 'efficientnet_lite0'
if not find_spec('nncf'):
    print(f"no rows of {INT8}: it needs an extra, pip install 'two_tower_vs[int8]'")
    del METHODS[INT8]
OWN = [m for m in METHODS if not m.startswith(f'{MINE},')]
TESTED = [MINE, INT8, 'plain loop']
# pictures, backbone, rounds, methods, how many pictures for the slow and for the fast, the same
# with --quick
# (None: all there are; more than there are: several times around)
RUNS = [
    ('small', LITE, 2, list(METHODS), (240, 2560), (64, 256)),
    ('small', 'resnet18', 1, OWN, (240, 2560), (64, 256)),
    (
        '12 MP',
        LITE,
        1,
        [m for m in OWN if 'engine' not in m and 'PyTorch' not in m],
        (60, 300),
        (6, 12),
    ),
    ('test', LITE, 1, [m for m in METHODS if m in TESTED], (None, None), (None, None)),
]

# --- pictures


@cache
def tables():
    return datasets()  # the first call writes the demo's pictures


def small():
    "Grocery photos to train on, or the demo's pictures"
    from two_tower_vs.data import read_pairs

    folder, pairs, *_ = tables()['grocery' if 'grocery' in tables() else 'openmoji']
    return [
        folder / 'images' / p
        for p in dict.fromkeys(read_pairs(folder / pairs, folder / 'images').query_path)
    ]


def task(few=False):
    "(folder, candidates, right answers) of the grocery test; None without it"
    from two_tower_vs.data import read_candidates, read_gt

    if 'grocery' not in tables():
        return None
    folder, _, gt, _ = tables()['grocery']
    images = folder / 'images'
    cands = read_candidates(folder / 'candidates.csv', images)
    return (
        images,
        cands.cand_path.tolist(),
        read_gt(folder / gt, images, cands)[:: 40 if few else 1],
    )


def photo(rng, files, to):
    """12 x 12 pictures in 4000 x 3000 pixels at quality 90: detailed enough for as many bytes as a
    phone's photo has
    """
    from PIL import Image

    from two_tower_vs.pictures import load_image

    im = Image.new('RGB', (4000, 3000))
    for j, f in enumerate(rng.choice(files, 144)):
        im.paste(
            load_image(f).resize((333, 250), Image.Resampling.LANCZOS),
            (j % 12 * 333, j // 12 * 250),
        )
    im.save(to, quality=90)


def make_pictures(work, few):
    "{name: files}, made where they have to be"
    import numpy as np

    from two_tower_vs.pictures import load_image

    rng = np.random.default_rng(0)
    files = small()
    for name in ('rgb', 'photos'):
        (work / name).mkdir(parents=True, exist_ok=True)
    if 'grocery' not in tables():  # without transparency, which each library treats in its own way
        jpgs = [work / 'rgb' / f'{i}.jpg' for i in range(len(files))]
        for a, b in zip(files, jpgs):
            load_image(a).save(b, quality=90)
        files = jpgs
    big = [work / 'photos' / f'{i:02}.jpg' for i in range(6 if few else 30)]
    for f in big:
        photo(rng, files, f)
    lists = {'small': files, '12 MP': big}
    t = task(few)
    if t:
        lists['test'] = [t[0] / p for p in [*dict.fromkeys(t[2].query_path), *t[1]]]
    return lists


def links(work, data, files, n):
    "A folder of n links in the order of the list: spread over it, or several times around"
    folder = work / f'{data} {n}'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    at = (i * len(files) // n if n < len(files) else i % len(files) for i in range(n))
    for i, j in enumerate(at):
        (folder / f'{i:05}.jpg').symlink_to(files[j])
    return folder


# --- one measurement, in a process of its own


def cell(data, backbone, method, folder, n, out):
    import numpy as np
    import torch

    from two_tower_vs.files import replacing

    torch.set_num_threads(len(CORES))
    torch.manual_seed(42)
    library, f, _ = METHODS[method]
    scratch = out.with_suffix('.tmp')
    job = Job(backbone, folder, n, scratch)
    v = f(job)
    end = time.time()
    shutil.rmtree(scratch, ignore_errors=True)
    setup = job.start - float(os.environ['BORN'])
    seconds = end - job.start
    e = job.engine
    ran = f'{e.name}, {e.precision}' if e and f is not reader else None
    r = dict(
        data=data,
        backbone=backbone,
        method=method,
        pictures=n,
        engine=ran,
        setup=round(setup, 2),
        seconds=round(seconds, 3),
        rate=round(n / seconds, 2),
        date=str(date.today()),
    )
    if not method.startswith('limit'):
        # The last stage's stand first; without training, a head keeps only these
        v = v[:, : job.tower(levels=0).n_features]
        np.savez(
            out.with_suffix('.npz'),
            names=[str(f.resolve()) for f in job.files],
            vectors=v / np.linalg.norm(v, axis=1, keepdims=True),
        )
    names = (
        [library] if library else ['torch', 'torchvision', 'timm', 'openvino', 'pillow', 'numpy']
    )
    with replacing(out) as (f,):
        f.write_text(json.dumps({'cell': r, 'versions': {n: version(n) for n in names}}))


def wanted(lists, quick):
    "(pictures, backbone, method, how many, round), the methods in turn"
    for data, backbone, rounds, methods, many, few in RUNS:
        for i in range(1 if quick else rounds) if data in lists else ():
            for m in methods:
                yield (
                    data,
                    backbone,
                    m,
                    (few if quick else many)[METHODS[m][2]] or len(lists[data]),
                    i,
                )


def fill(work, lists, quick):
    todo = list(wanted(lists, quick))
    pythons = {m: python_of(METHODS[m][0]) for m in METHODS}
    code = hashlib.sha256(
        b''.join(f.read_bytes() for f in [Path(__file__), *sorted(ROOT.glob('two_tower_vs/*.py'))])
    )
    env = dict(
        os.environ, OMP_NUM_THREADS=str(len(CORES)), CUDA_VISIBLE_DEVICES='', HF_HUB_OFFLINE='1'
    )
    for i, (data, backbone, m, n, turn) in enumerate(todo, 1):
        f = work / f'{code.hexdigest()[:16]} {data} {backbone} {m} {n} {turn}.json'
        print(f'{i}/{len(todo)}  {data}, {backbone}, round {turn + 1}: {m}', end='  ', flush=True)
        if not f.exists():
            folder = links(work, data, lists[data], n)
            r = subprocess.run(
                [
                    pythons[m],
                    '-W',
                    'ignore',
                    __file__,
                    '--cell',
                    data,
                    backbone,
                    m,
                    folder,
                    str(n),
                    f,
                ],
                env=dict(env, BORN=str(time.time())),
                capture_output=True,
                text=True,
            )
            if r.returncode:
                sys.exit(f'failed with exit status {r.returncode}\n{r.stderr}')
        c = json.loads(f.read_text())
        c['cell']['round'] = turn
        print(
            f"{c['cell']['rate']:.1f} pictures/s, {c['cell']['setup']:.1f} s before the first",
            flush=True,
        )
        yield c, f.with_suffix('.npz')


# --- what the vectors say


def load(file):
    import numpy as np

    from two_tower_vs.vectors import Embeddings

    z = np.load(file)
    return Embeddings(z['vectors'], z['names'].tolist())


def same(cells):
    """Add to each cell the mean and the lowest cosine of its vectors to the plain loop's of the
    same pictures
    """

    plain = {(c['data'], c['backbone']): load(f) for c, f in cells if c['method'] == 'plain loop'}
    for c, f in cells:
        if not f.exists():
            continue
        a = load(f)
        b = plain[c['data'], c['backbone']]
        rows = b.rows(a.paths)
        cos = (a.vectors[rows >= 0] * b.vectors[rows[rows >= 0]]).sum(1)
        c['cosine'] = [round(float(x), 5) for x in (cos.mean(), cos.min())]


def recall(cells, few):
    "Recall@1 of the untrained backbone by method, in percent"
    import numpy as np

    from two_tower_vs.ranks import ranks

    out = {}
    t = task(few)
    for c, f in cells:
        if c['data'] != 'test':
            continue
        e = load(f)

        def path(ps):
            return [str((t[0] / p).resolve()) for p in ps]

        q, right, cands = (e.rows(path(ps)) for ps in (t[2].query_path, t[2].gt_cand_path, t[1]))
        order = q.argsort(kind='stable')
        crow = np.array([cands.tolist().index(i) for i in right[order]])
        r = ranks(e.vectors, e.vectors[cands], q[order], crow)
        out[c['method']] = {
            'queries': len(set(q)),
            'recall@1': round(100 * float((r == 1).mean()), 3),
        }
    return out


def facts(lists):
    "Median pixels and kilobytes of the pictures"
    import numpy as np
    from PIL import Image

    def size(fs):
        return [int(x) for x in np.median([Image.open(f).size for f in fs], 0)]

    return {
        k: dict(
            files=len(fs),
            pixels=size(fs),
            kb=round(float(np.mean([f.stat().st_size for f in fs])) / 1000, 1),
        )
        for k, fs in lists.items()
    }


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument(
        '--quick', action='store_true', help='few pictures, one round; writes embedding-quick.json'
    )
    p.add_argument('--out', type=Path)
    a = p.parse_args()
    out = a.out or RESULTS / f'embedding{"-quick" if a.quick else ""}.json'
    from two_tower_vs.files import replacing

    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, CORES)
    work = WORK.parent / f'embedding{"-quick" if a.quick else ""}'
    lists = make_pictures(work, a.quick)
    got = list(fill(work, lists, a.quick))
    cells = [(c['cell'], f) for c, f in got]
    same(cells)
    result = dict(
        machine=machine(),
        versions={k: v for c, _ in got for k, v in c['versions'].items()},
        pictures=facts(lists),
        recall=recall(cells, a.quick),
        cells=[c for c, _ in cells],
    )
    with replacing(out) as (f,):
        f.write_text(json.dumps(result, indent=1) + '\n')
    shutil.rmtree(work)


if __name__ == '__main__':
    if sys.argv[1:2] != ['--cell']:
        main()
    else:
        cell(*sys.argv[2:5], Path(sys.argv[5]), int(sys.argv[6]), Path(sys.argv[7]))
