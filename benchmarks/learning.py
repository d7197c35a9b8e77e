"""What learning gains over a closed form, on seven tasks; write learning.json.

    python benchmarks/learning.py                  # what learning.json has not got yet
    python benchmarks/learning.py --anew heads     # one group once more
    python benchmarks/learning.py --only cost      # one group alone: cost needs an idle machine

`untouched` are two tasks that nothing was tuned on. Their settings stand in this file, as it was
committed before they were first run: the defaults.
"""

import argparse
import json
import sys
import time
import warnings
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from icons import SETS, icon_set
from peers import RESULTS, WORK, datasets, machine

from two_tower_vs.blending import copied, put
from two_tower_vs.data import read_candidates, read_gt, read_pairs
from two_tower_vs.embed import embed
from two_tower_vs.eval import evaluate
from two_tower_vs.features import bare, pair_features
from two_tower_vs.files import replacing
from two_tower_vs.heads import principal_axes
from two_tower_vs.model import TwoTower
from two_tower_vs.steps import head_params
from two_tower_vs.train import train

SEEDS = 42, 1, 2
CACHE = WORK / 'learning'
UNTOUCHED = 'logos in black to logos in colour', 'round flags to flags'
KNOWN = 'lucide to tabler', 'bootstrap to phosphor'


class Task:
    "Tables and pictures of one data set"

    def __init__(self, name):
        self.name = name
        if name in SETS:
            folder, pairs, gt, self.size = icon_set(name, WORK / 'icons'), 'pairs.csv', None, 160
        else:
            folder, pairs, gt, self.size = datasets()[name]
        self.root = folder / 'images'
        self.pairs = read_pairs(folder / pairs, self.root)
        self.cands = read_candidates(folder / 'candidates.csv', self.root)
        self.gt = read_gt(folder / (gt or 'query_gt.csv'), self.root, self.cands)

    def model(self, **options):
        return TwoTower(image_size=self.size, **options)

    def trained(self, model, pairs=None, **options):
        "Train a model in place; what training says is not shown"
        pairs = self.pairs if pairs is None else pairs
        paths = self.cands.cand_path
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return train(
                model, pairs, self.root, CACHE, candidates=paths, progress=False, **options
            )

    def recall(self, model) -> dict:
        "Recall@1 of a model and its baselines, with intervals and what one of them stands for"
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = evaluate(model, self.gt, self.cands, self.root, CACHE, progress=False)
        metrics = found.metrics
        rates = {}
        for which in ('trained', 'baseline', 'centred'):
            if which in metrics:
                one = metrics[which]['recall@1']
                rates[which] = [one['value'], *one['ci95']]
        return dict(rates, unit=metrics['intervals']['unit'], of=metrics['intervals']['clusters'])


def known_tasks():
    return [*datasets(), *KNOWN]


# --- heads: gradient steps of InfoNCE from the closed form

STEPS = 100
RECIPES = {
    'one view': dict(views=1),
    'nine views': {},
    'nine views, learning rate 3e-4': dict(lr=3e-4),
    'nine views, learning rate 3e-3': dict(lr=3e-3),
    'nine views, temperature 0.03': dict(temperature=0.03),
    'nine views, temperature 0.15': dict(temperature=0.15),
    'nine views, noise in the features': dict(noise=0.5),
    'nine views, dropout of features': dict(dropout=0.3),
    'nine views, pulled back to the start': dict(pull_back=1.0),
    'nine views, without an average of the weights': dict(average=0.0),
    'nine views, mixed with the pictures themselves': dict(mix=True),
}


class Steps:
    """A batch as large as the table; pictures with the same answer are no wrong answers.

    The steps work along the main axes of the features, as the closed form does.
    """

    def __init__(self, model, features, axes, seed, lr=1e-3, temperature=0.07, views=9):
        self.model = model
        self.axes = axes  # (f, k)
        self.heads = [along(head, axes) for head in (model.query.head, model.cand.head)]
        self.params = [param for head in self.heads for param in head.parameters()]
        self.start = [param.detach().clone() for param in self.params]
        self.features = features
        self.views = views
        self.temperature = temperature
        self.chance = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(self.params, lr=lr, weight_decay=0.0)
        self.full_lr = lr

    def seen(self, side, noise, dropout, mix):
        "Every picture of a side in a view taken at random"
        count = side.shape[1]
        view = torch.randint(0, self.views, (count,), generator=self.chance)
        x = side[view, torch.arange(count)]
        if mix:
            share = torch.rand(count, 1, generator=self.chance)
            x = share * x + (1 - share) * side[0]
        if noise:
            x = x + noise * x.std(0) * torch.randn(x.shape, generator=self.chance)
        return F.dropout(x - x.mean(0), dropout) + x.mean(0) if dropout else x

    def loss(self, pull_back=0.0, noise=0.0, dropout=0.0, mix=False):
        table = self.features.table
        rows = torch.from_numpy(table.qi), torch.from_numpy(table.ci)
        sides = self.features.queries, self.features.cands
        seen = [self.seen(side, noise, dropout, mix) for side in sides]
        queries, cands = (F.normalize(head(x), dim=-1) for head, x in zip(self.heads, seen))
        scores = queries[rows[0]] @ cands.T / self.temperature
        loss = F.cross_entropy(scores, rows[1]) + _candidates_loss(scores, rows[1])
        for param, start in zip(self.params, self.start):
            loss = loss + pull_back * (param - start).square().sum() / start.square().sum()
        return loss

    def run(self, average=0.99, **how):
        "The heads end as an average of their last steps"
        mean = [param.detach().clone() for param in self.params]
        for step in range(STEPS):
            rate = self.full_lr * min(1, (step + 1) / 10) * (1 + np.cos(np.pi * step / STEPS)) / 2
            self.optimizer.param_groups[0]['lr'] = rate
            self.optimizer.zero_grad()
            self.loss(**how).backward()
            self.optimizer.step()
            share = 1 - min(average, (step + 1) / (step + 10))
            for kept, param in zip(mean, self.params):
                kept.lerp_(param.detach(), share)
        with torch.no_grad():
            for param, kept in zip(self.params, mean):
                param.copy_(kept)
            for head, trained in zip((self.model.query.head, self.model.cand.head), self.heads):
                head.weight.copy_(trained.weight @ self.axes.T)
                head.bias.copy_(trained.bias)


def along(head, axes):  # torch.nn.Linear
    "A head that expects features along these axes"
    short = torch.nn.Linear(axes.shape[1], head.out_features)
    short.load_state_dict({'weight': head.weight @ axes, 'bias': head.bias})
    return short


def _candidates_loss(scores, right):
    "Each candidate against all queries, whose other right ones are left out"
    mine = F.one_hot(right, scores.shape[1]).T.bool()
    wrong = scores.T.masked_fill(mine, -1e9).logsumexp(1, keepdim=True)
    chance = scores.T - torch.logaddexp(scores.T, wrong)
    return -(chance.masked_fill(~mine, 0).sum(1) / mine.sum(1).clamp(min=1)).mean()


AXES = 1024  # that the heads are trained along, of some thousand


class Quick:
    "Recall@1 of heads on test queries whose features are computed once"

    def __init__(self, task, model):
        paths = list(task.gt.query_path.unique()), list(task.cands.cand_path)
        towers = model.query, model.cand
        self.seen = []
        for tower, some in zip(towers, paths):
            found = embed(bare(tower), some, task.root, CACHE, progress=False)
            self.seen.append(torch.from_numpy(found.vectors))
        number = {path: i for i, path in enumerate(paths[1])}
        rights = task.gt.groupby('query_path').gt_cand_path.agg(list)
        self.rights = [{number[path] for path in rights[query]} for query in paths[0]]

    def __call__(self, model):
        with torch.no_grad():
            queries = F.normalize(model.query.head(self.seen[0]), dim=-1)
            cands = F.normalize(model.cand.head(self.seen[1]), dim=-1)
            first = (queries @ cands.T).argmax(1).tolist()
        return sum(i in right for i, right in zip(first, self.rights)) / len(first)


def heads():
    "Each recipe from the same closed form, on every task, with three seeds"
    for name in known_tasks():
        task = Task(name)
        model = task.model()
        task.trained(model, views=8, epochs=0, promote='always')
        start = copied(head_params(model))
        yield dict(name='closed form', data=name, seed=None, **task.recall(model))
        quick = Quick(task, model)
        found, _ = pair_features(model, task.pairs, task.root, CACHE, views=8, progress=False)
        axes = principal_axes(torch.cat([found.queries[0], found.cands[0]]), AXES)
        found = replace(found, queries=found.queries @ axes, cands=found.cands @ axes)
        for recipe, options in RECIPES.items():
            ends = []
            for seed in SEEDS:
                put(head_params(model), start)
                torch.manual_seed(seed)
                stepped(model, found, axes, seed, options)
                ends.append(copied(head_params(model)))
                yield dict(name=recipe, data=name, seed=seed, trained=[quick(model)])
            put(head_params(model), [torch.stack(parts).mean(0) for parts in zip(*ends)])
            yield dict(name=f'{recipe}, seeds averaged', data=name, trained=[quick(model)])


def stepped(model, features, axes, seed, options):
    "Train the heads of a model by a recipe"
    how = dict(options)
    own = {key: how.pop(key) for key in ('lr', 'temperature', 'views') if key in how}
    Steps(model, features, axes, seed, **own).run(**how)


# --- features: what the closed form starts from


class Flipped(torch.nn.Module):
    "A picture and its mirror image"

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.own = network.own

    def others(self, x):
        return [x.flip(-1)]

    def forward(self, x):
        seen = [self.network(x), *(self.network(other) for other in self.others(x))]
        return sum(F.normalize(features, dim=-1) for features in seen)


class TwoScales(Flipped):
    "A picture and the same at 0.7 of its size"

    def others(self, x):
        return [F.interpolate(x, scale_factor=0.7, mode='bilinear')]


class GeM(torch.nn.Module):
    "Generalised mean with p = 3, of Radenović, Tolias and Chum (2018)"

    def forward(self, x):
        return x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


def with_gem(network):
    network.net.global_pool = GeM()
    # The cache of features knows a network by its weights, its class and this list
    network.layout = [*network.layout, 'GeM']
    return network


LITE = 'efficientnet_lite0', 'efficientnet_lite2'
# name: (options of TwoTower, what is put around its network)
FEATURES = {
    'last layer alone': (dict(levels=0), None),
    'three stages, as before': (dict(levels=3, grid=1), None),
    'four stages': (dict(grid=1), None),
    'four stages, 3 x 3 cells (the default)': ({}, None),
    'the default, GeM in the last layer': ({}, with_gem),
    'the default, and mirrored': ({}, Flipped),
    'the default, and at 0.7 of the size': ({}, TwoScales),
    'efficientnet_lite2': (dict(backbone=LITE[1]), None),
    'lite0 and lite2 side by side': (dict(backbone=list(LITE)), None),
    'lite0 asks, lite2 answers': (dict(backbone=LITE[1], query_backbone=LITE[0]), None),
    'lite0 asks, both answer': (dict(backbone=list(LITE), query_backbone=LITE[0]), None),
}


def wrapped(task, options, around):
    model = task.model(**options)
    if around:
        model.query.backbone = model.cand.backbone = around(model.query.backbone)
    return model


def features():
    "The closed form on each kind of features"
    for name in known_tasks():
        task = Task(name)
        for kind, (options, around) in FEATURES.items():
            model = wrapped(task, options, around)
            task.trained(model, views=0, epochs=0, promote='always')
            wide = [model.query.n_features, model.cand.n_features]
            yield dict(name=kind, data=name, numbers=wide, **task.recall(model))


def cost():
    "Milliseconds of a query, and pictures a second from disk, of each kind of features"
    from two_tower_vs.index import build_index
    from two_tower_vs.latency import latency
    from two_tower_vs.query import Searcher

    name = next(iter(datasets()))
    task = Task(name)
    paths = list(task.gt.query_path.unique())
    for kind, (options, around) in FEATURES.items():
        model = wrapped(task, options, around)
        rates = []
        for tower in (model.query, model.cand):
            embed(tower, paths[:96], task.root, None, progress=False)
            start = time.perf_counter()
            embed(tower, paths[96:576], task.root, None, progress=False)
            rates.append(round(480 / (time.perf_counter() - start)))
        model.sha256 = '0' * 64
        cands = embed(model.cand, task.cands.cand_path, task.root, None, progress=False)
        searcher = Searcher(model, build_index(cands, model.sha256, None, kind='flat'), CACHE)
        measured = latency(searcher, [task.root / path for path in paths[:20]], runs=100)
        ms = {key: [measured.p50[key], measured.p95[key]] for key in ('embed', 'total')}
        yield dict(name=kind, data=name, ms=ms, rates=rates)


# --- few: small tables


def few():
    "Whole runs with few pairs, taken at random"
    for name in known_tasks():
        task = Task(name)
        for seed in SEEDS:
            order = np.random.default_rng(seed).permutation(len(task.pairs))
            for count in (20, 50, 100):
                some = task.pairs.iloc[np.sort(order[:count])].reset_index(drop=True)
                model = task.model()
                result = task.trained(model, some, seed=seed)
                yield dict(
                    name=f'{count} pairs',
                    data=name,
                    seed=seed,
                    kept=result.kept,
                    **task.recall(model),
                )


# --- untouched: nothing was tuned on these


def untouched():
    "The defaults, once"
    for name in UNTOUCHED:
        task = Task(name)
        model = task.model()
        result = task.trained(model)
        yield dict(
            name='the defaults',
            data=name,
            kept=result.kept,
            chosen=result.chosen,
            **task.recall(model),
        )


GROUPS = dict(heads=heads, features=features, cost=cost, few=few, untouched=untouched)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--anew', nargs='+', choices=GROUPS, default=[], help='measure again')
    parser.add_argument('--only', nargs='+', choices=GROUPS, default=list(GROUPS))
    parser.add_argument('--out', type=Path, default=RESULTS / 'learning.json')
    options = parser.parse_args()
    torch.set_num_threads(2)
    done = json.loads(options.out.read_text()) if options.out.exists() else {'cells': []}
    done['cells'] = [cell for cell in done['cells'] if cell['group'] not in options.anew]
    have = {cell['group'] for cell in done['cells']}
    for group in options.only:
        if group in have:
            continue
        cells = []
        for cell in GROUPS[group]():
            print(group, json.dumps(cell), flush=True)
            cells.append(dict(group=group, date=str(date.today()), **cell))
        done['cells'] += cells
        done['machine'] = machine()
        with replacing(options.out) as (file,):
            file.write_text(json.dumps(done, indent=1) + '\n')


if __name__ == '__main__':
    main()
