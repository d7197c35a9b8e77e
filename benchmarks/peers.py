"""Train two_tower_vs and its peers from the same weights on the same pictures for the same time;
write peers.json.

    python benchmarks/peers.py --budget 60 180      # seconds of training; default: 60
    python benchmarks/peers.py --only two_tower_vs  # this method; the others keep their results

Each training is a process of its own. Each library lives in a venv of its own inside the one
that started this, since their pins contradict each other. An interrupted run goes on where it
was, unless the code has changed since.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'nbs/benchmarks'  # what the notebooks show
WORK = Path(sys.prefix) / 'peers'  # venvs, and what an unfinished run has done
CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, 'sched_getaffinity') else [0, 1]
sys.path.insert(0, str(ROOT))

# What pip is asked for; open-metric-learning 4.0.0 imports omegaconf without asking for it
PEERS = {
    'open-metric-learning': '==4.0.0 omegaconf',
    'pytorch-metric-learning': '==2.9.0',
    'sentence-transformers': '[train]==6.2.0',
}
EPOCHS = 40
BATCH = 512
LR = 1e-3  # of a head on features, peers' and the plain one's


def datasets():
    """name: (folder, images, pairs, right answers, pixels a side); the grocery photos are there or
    not
    """
    from two_tower_vs.demo import demo_catalog

    demo = demo_catalog(ROOT / 'nbs/demo')
    grocery = ROOT.parent / 'shared/data/grocery'
    out = {
        'grocery': (grocery, 'pairs.csv', 'query_gt.csv', None),
        'grocery, unseen': (grocery, 'pairs_seen.csv', 'query_gt_unseen.csv', None),
        'openmoji': (demo, 'pairs.csv', 'query_gt.csv', 160),
    }
    if grocery.is_dir():
        return out
    print('No ../shared/data/grocery beside the repository: its two tables are skipped.')
    return {'openmoji': out['openmoji']}


class Task:
    "One training: tables, pictures, and the clock, which runs from here"

    def __init__(self, name, budget, scratch):
        from two_tower_vs.data import read_candidates, read_gt, read_pairs

        folder, pairs, gt, self.size = datasets()[name]
        self.root = folder / 'images'
        self.budget = budget
        self.scratch = scratch
        self.start = time.perf_counter()
        self.pairs = read_pairs(folder / pairs, self.root)
        self.cands = read_candidates(folder / 'candidates.csv', self.root)
        self.gt = read_gt(folder / gt, self.root, self.cands)

    spent = property(lambda self: time.perf_counter() - self.start)
    over = property(lambda self: self.spent >= self.budget)

    def model(self, own=True, **kw):
        """Untrained towers, on the backbone's own features alone or on all that two_tower_vs takes
        from it
        """
        from two_tower_vs.model import TwoTower

        return TwoTower(image_size=self.size, **({'levels': 0} if own else {}), **kw)

    def samples(self):
        "Every picture of the pairs once, labelled with the number of its candidate"
        import pandas as pd

        ci = pd.factorize(self.pairs.cand_path)[0]
        both = pd.DataFrame(
            {'path': [*self.pairs.query_path, *self.pairs.cand_path], 'label': [*ci, *ci]}
        )
        return both.drop_duplicates('path', ignore_index=True)

    def features(self, tower, paths, views=2):
        """Features (views, n, f) that the tower's head gets: of the pictures, then of augmented
        copies
        """
        import numpy as np
        import torch

        from two_tower_vs.embed import embed
        from two_tower_vs.model import Tower

        bare = Tower(tower.backbone, torch.nn.Identity(), tower.prep, tower.n_features)
        return torch.from_numpy(
            np.stack(
                [
                    embed(bare, paths, self.root, self.scratch / 'train', view=v).vectors
                    for v in range(views)
                ]
            )
        )


# --- heads on cached features


def on_features(t, loss, views=2, own=True):
    """One linear head for both sides, trained with loss(vectors of queries, of candidates,
    labels); ends by itself
    """
    import numpy as np
    import torch
    import torch.nn.functional as F

    m = t.model(own, share='all')
    s = t.samples()
    head = m.query.head
    X = t.features(m.query, s.path, views)
    at = dict(zip(s.path, s.index))
    rng = np.random.default_rng(42)
    opt = torch.optim.AdamW(head.parameters(), lr=LR)
    q, c = (torch.tensor([at[p] for p in col]) for col in (t.pairs.query_path, t.pairs.cand_path))
    labels = torch.from_numpy(s.label.values)[c]

    def vectors(rows):
        return F.normalize(
            head(X[torch.from_numpy(rng.integers(0, views, len(rows))), rows]), dim=-1
        )

    for epoch in range(EPOCHS):
        for b in np.array_split(rng.permutation(len(q)), -(-len(q) // BATCH)):
            if t.over:
                return m
            value = loss(vectors(q[b]), vectors(c[b]), labels[b])
            opt.zero_grad()
            value.backward()
            opt.step()
    return m


def head(make_loss):
    """A trainer with a loss of vectors and labels, as the peers have it, on both sides of a batch
    of pairs
    """

    def train(t, **kw):
        import torch

        loss = make_loss()
        return on_features(
            t, lambda q, c, labels: loss(torch.cat([q, c]), torch.cat([labels, labels])), **kw
        )

    return train


def linear(t, **kw):
    import torch
    import torch.nn.functional as F

    def info_nce(q, c, labels):
        z = q @ c.T / 0.07
        y = torch.arange(len(q))
        return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2

    return on_features(t, info_nce, views=1, **kw)


def triplet():
    from oml import losses, miners

    return losses.TripletLossWithMiner(0.2, miners.HardTripletsMiner())


def sup_con():
    from pytorch_metric_learning import losses

    return losses.SupConLoss()


# --- fine-tuning, as the peers' documentation shows it


def fine_tune(t, m, batches, loss, *optimizers):
    "The loop of both documentations, until the time is over"
    import torch.nn.functional as F

    m.train()
    tower = m.query
    while True:
        for x, labels in batches():
            value = loss(
                F.normalize(tower.head(F.normalize(tower.backbone(x), dim=-1)), dim=-1), labels
            )
            for o in optimizers:
                o.zero_grad()
            value.backward()
            for o in optimizers:
                o.step()
            if t.over:
                return m.eval()


def per_class(labels):
    "Pictures of a class in a batch of 32: four, or as many as a typical class has"
    return min(4, int(labels.value_counts().median()))


def oml(t):
    import torch
    from oml.datasets import ImageLabeledDataset
    from oml.samplers import BalanceSampler
    from oml.transforms.images.torchvision import get_augs_hypvit

    m = t.model(embed_dim=None, share='all')
    s = t.samples()
    p = m.query.prep
    n = per_class(s.label)
    data = ImageLabeledDataset(
        s, None, t.root, get_augs_hypvit(p['size'], mean=p['mean'], std=p['std'])
    )
    loader = torch.utils.data.DataLoader(
        data, batch_sampler=BalanceSampler(s.label.tolist(), 32 // n, n)
    )

    def batches():
        return ((b['input_tensors'], b['labels']) for b in loader)

    return fine_tune(t, m, batches, triplet(), torch.optim.Adam(m.parameters(), lr=1e-4))


def pml(t):
    import torch
    import torchvision.transforms as T
    from pytorch_metric_learning.samplers import MPerClassSampler

    from two_tower_vs.pictures import load_image

    m = t.model(share='all')
    s = t.samples()
    p = m.query.prep
    n = per_class(s.label)
    look = T.Compose(
        [
            T.RandomResizedCrop(p['size'], scale=(0.16, 1), ratio=(0.75, 1.33)),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(p['mean'], p['std']),
        ]
    )

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(s)

        def __getitem__(self, i):
            return look(load_image(t.root / s.path[i], side=p['size'])), s.label[i]

    loader = torch.utils.data.DataLoader(
        Pictures(), 32, sampler=MPerClassSampler(s.label.tolist(), n, 32, len(s))
    )
    adam = [
        torch.optim.Adam(part.parameters(), lr=1e-4) for part in (m.query.backbone, m.query.head)
    ]
    return fine_tune(t, m, lambda: loader, sup_con(), *adam)


# --- sentence-transformers, in its own Trainer


def sentence_transformers(
    t, read, net, modules, optimizers=(None, None), batch_sampler='no_duplicates_hashed', **args
):
    "Train modules on top of net(read(paths)) with the ranking loss"
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
    )
    from sentence_transformers import (
        SentenceTransformerTrainer as Trainer,
    )
    from sentence_transformers import (
        SentenceTransformerTrainingArguments as Arguments,
    )
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    class Pictures(InputModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def preprocess(self, inputs, prompt=None, **kw):
            return {'pixel_values': read(inputs)}

        def forward(self, x, **kw):
            return {**x, 'sentence_embedding': self.net(x['pixel_values'])}

        def save(self, *a, **kw):
            pass

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kw):
            control.should_training_stop |= t.over

    model = SentenceTransformer(modules=[Pictures(), *modules], device='cpu')
    pairs = Dataset.from_dict(
        {'anchor': list(t.pairs.query_path), 'positive': list(t.pairs.cand_path)}
    )
    args = Arguments(
        str(t.scratch / 'trainer'),
        save_strategy='no',
        logging_strategy='no',
        report_to='none',
        seed=42,
        disable_tqdm=True,
        use_cpu=True,
        batch_sampler=batch_sampler,
        warmup_steps=0.1,
        **args,
    )
    Trainer(
        model,
        args,
        pairs,
        loss=MultipleNegativesRankingLoss(model),
        optimizers=optimizers,
        callbacks=[Clock()],
    ).train()


def sbert_head(t, own=True, **args):
    import torch
    from sentence_transformers.base.modules import Dense

    m = t.model(own, share='all')
    s = t.samples()
    head = m.query.head
    X = t.features(m.query, s.path)
    at = dict(zip(s.path, s.index))
    rng = torch.Generator().manual_seed(42)
    dense = Dense(
        head.in_features,
        head.out_features,
        activation_function=None,
        init_weight=head.weight.detach(),
        init_bias=head.bias.detach(),
    )

    def read(paths):
        return X[
            torch.randint(0, len(X), (len(paths),), generator=rng),
            torch.tensor([at[p] for p in paths]),
        ]

    args = dict(per_device_train_batch_size=min(BATCH, s.label.nunique())) | args
    sentence_transformers(
        t, read, torch.nn.Identity(), [dense], num_train_epochs=EPOCHS, learning_rate=LR, **args
    )
    head.load_state_dict(dense.linear.state_dict())
    return m


def default_batches(t, **kw):
    return sbert_head(t, batch_sampler='batch_sampler', per_device_train_batch_size=64, **kw)


def sbert(t):
    import torch

    from two_tower_vs.pictures import load_image

    m = t.model(embed_dim=None, share='all')
    tower = m.query

    def read(paths):
        x = [tower.pixels(load_image(t.root / p, side=tower.prep['size'])) for p in paths]
        return (torch.stack([torch.from_numpy(o) for o in x]) - tower.mean) / tower.std

    opt = torch.optim.AdamW(tower.backbone.parameters(), lr=1e-4)

    # Its schedule, linear after a warm-up of 10 %, in time instead of steps
    def share():
        return t.spent / t.budget

    schedule = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda step: max(0, min(share() / 0.1, (1 - share()) / 0.9))
    )
    sentence_transformers(
        t,
        read,
        tower.backbone,
        [],
        (opt, schedule),
        num_train_epochs=10**4,
        per_device_train_batch_size=16,
    )
    return m.eval()


def ours(t):
    from two_tower_vs.train import train

    m = t.model(own=False)
    train(m, t.pairs, t.root, t.scratch / 'train', candidates=t.cands.cand_path, progress=False)
    return m


OML, PML, ST = PEERS
# name: (library, trainer, modules that are imported before the clock starts)
METHODS = {
    'two_tower_vs': (None, ours, ''),
    'untrained': (None, lambda t: t.model(embed_dim=None), ''),
    'plain linear head': (None, linear, ''),
    f'{OML}, head': (OML, head(triplet), 'oml.losses oml.miners'),
    f'{OML}, fine-tuned': (OML, oml, 'oml.losses oml.miners oml.datasets oml.samplers'),
    f'{PML}, head': (PML, head(sup_con), 'pytorch_metric_learning.losses'),
    f'{PML}, fine-tuned': (PML, pml, 'pytorch_metric_learning.losses torchvision'),
    f'{ST}, head': (ST, sbert_head, 'sentence_transformers datasets'),
    f'{ST}, head, default batches': (ST, default_batches, 'sentence_transformers datasets'),
    f'{ST}, fine-tuned': (ST, sbert, 'sentence_transformers datasets'),
    # and with what two_tower_vs takes from the same backbone: its earlier stages too
    'plain linear head on our features': (None, partial(linear, own=False), ''),
    f'{PML}, head on our features': (
        PML,
        partial(head(sup_con), own=False),
        'pytorch_metric_learning.losses',
    ),
    f'{ST}, head on our features': (
        ST,
        partial(default_batches, own=False),
        'sentence_transformers datasets',
    ),
}

# --- one cell of the table, in a process of its own


def score(t, m):
    """Recall@K with its 95 % interval, and which queries were answered right at once (bits,
    hexadecimal)
    """
    import numpy as np
    import pandas as pd

    from two_tower_vs.embed import embed
    from two_tower_vs.ranks import per_query, ranks
    from two_tower_vs.statistics import interval

    q = embed(m.query, t.gt.query_path.unique(), t.root, t.scratch.parent / 'test')
    c = embed(m.cand, t.cands.cand_path, t.root, t.scratch.parent / 'test')
    rows = pd.DataFrame({'q': q.rows(t.gt.query_path), 'c': c.rows(t.gt.gt_cand_path)}).sort_values(
        ['q', 'c']
    )
    each = per_query(ranks(q.vectors, c.vectors, rows.q.values, rows.c.values), rows.q.values)
    each = each[['recall@1', 'recall@5', 'recall@10']]
    found = interval(each.values)  # each query counts for itself
    cells = zip(each, *(x.round(4).tolist() for x in (found.mean, found.low, found.high)))
    return {
        'queries': len(q),
        **{name: cell for name, *cell in cells},
        'right': np.packbits(each['recall@1'].values == 1).tobytes().hex(),
    }


def cell(data, method, budget, scratch, out):
    import importlib
    import resource

    import torch

    from two_tower_vs.files import replacing

    torch.set_num_threads(2)
    torch.manual_seed(42)
    library, train, modules = METHODS[method]
    for name in f'timm openvino two_tower_vs.train two_tower_vs.eval {modules}'.split():
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(dir=scratch) as tmp:
        t = Task(data, budget, Path(tmp))
        m = train(t)
        spent = t.spent
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == 'linux' else 2**30
        )
        r = dict(
            data=data,
            method=method,
            budget=budget,
            date=str(date.today()),
            seconds=round(spent, 1),
            ended=spent < budget,
            memory_gb=round(memory, 2),
            **score(t, m),
        )
    names = [library] if library else ['torch', 'numpy', 'openvino']
    with replacing(out) as (f,):
        f.write_text(json.dumps({'cell': r, 'versions': {n: version(n) for n in names}}))


def python_of(library):
    """The Python of a library's venv, made on the first call; it sees this venv's packages where
    it has none of its own
    """
    if not library:
        return sys.executable
    venv = WORK / library
    pins = f'{library}{PEERS[library]}'
    if not (venv / 'pins').exists() or (venv / 'pins').read_text() != pins:
        print(f'Setting up {library}', flush=True)
        subprocess.run([sys.executable, '-m', 'venv', '--clear', venv], check=True)
        (site,) = venv.glob('lib/python*/site-packages')
        (site / 'outer.pth').write_text(
            f'import site; site.addsitedir({sysconfig.get_path("purelib")!r})\n'
        )
        subprocess.run(
            [venv / 'bin/python', '-m', 'pip', 'install', '--quiet', *pins.split()], check=True
        )
        (venv / 'pins').write_text(pins)
    return venv / 'bin/python'


def machine():
    "What the seconds were measured on"
    cpu = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
    name = next(
        (l.split(':')[1].strip() for l in cpu.splitlines() if l.startswith('model name')),
        platform.machine(),
    )
    return {'processor': name + (', AMX' if 'amx_bf16' in cpu else ''), 'cores': len(CORES)}


def fill(work, budgets, data, only):
    """Yield the cells that are wanted, those that an interrupted run of the same code has left
    included
    """
    pythons = {m: python_of(METHODS[m][0]) for m in only}
    code = hashlib.sha256(
        b''.join(f.read_bytes() for f in [Path(__file__), *sorted(ROOT.glob('two_tower_vs/*.py'))])
    )
    env = dict(os.environ, OMP_NUM_THREADS='2', CUDA_VISIBLE_DEVICES='', HF_HUB_OFFLINE='1')
    wanted = [(d, m, b) for d in data for b in sorted(budgets) for m in only]
    ended = set()
    for i, (d, m, b) in enumerate(wanted, 1):
        if (d, m) in ended:
            continue  # more time would not be used
        f = (
            work
            / f'{hashlib.sha256(f"{code.hexdigest()} {d} {m} {b}".encode()).hexdigest()[:16]}.json'
        )
        print(f'{i}/{len(wanted)}  {d}, {b} s: {m}', end='  ', flush=True)
        if not f.exists():
            r = subprocess.run(
                [pythons[m], '-W', 'ignore', __file__, '--cell', d, m, str(b), work, f],
                env=env,
                capture_output=True,
                text=True,
            )
            if r.returncode:
                sys.exit(f'failed with exit status {r.returncode}\n{r.stderr}')
        c = json.loads(f.read_text())
        if c['cell']['ended'] and m != 'two_tower_vs':
            ended.add((d, m))
        print(
            f"{c['cell']['seconds']:.0f} s, Recall@1 {100 * c['cell']['recall@1'][0]:.1f} %",
            flush=True,
        )
        yield c


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--budget', type=int, nargs='+', default=[60], help='seconds of training')
    p.add_argument('--data', nargs='+', help='these datasets alone')
    p.add_argument('--only', nargs='+', choices=METHODS, help='these methods alone')
    p.add_argument('--out', type=Path, default=RESULTS / 'peers.json')
    a = p.parse_args()
    from two_tower_vs.files import replacing

    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, CORES)
    work = WORK / 'run'
    work.mkdir(parents=True, exist_ok=True)
    new = list(fill(work, a.budget, a.data or datasets(), a.only or METHODS))
    old = (
        json.loads(a.out.read_text())
        if a.out.exists() and (a.only or a.data)
        else {'cells': [], 'versions': {}}
    )

    def key(c):
        return (c['data'], c['method'], c['budget'])

    cells = {key(c): c for c in [*old['cells'], *(c['cell'] for c in new)]}
    versions = {k: v for c in [old, *new] for k, v in c['versions'].items()}
    result = dict(machine=machine(), versions=versions, cells=list(cells.values()))
    with replacing(a.out) as (f,):
        f.write_text(json.dumps(result, indent=1) + '\n')
    shutil.rmtree(work)


if __name__ == '__main__':
    if sys.argv[1:2] != ['--cell']:
        main()
    else:
        cell(sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]), Path(sys.argv[6]))
