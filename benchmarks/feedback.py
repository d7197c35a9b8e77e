"""What clicks on hits are worth, and in which order pictures are best labelled; write
feedback.json. A simulated person clicks: who knows the truth of pairs.csv.

    python benchmarks/feedback.py                  # what feedback.json has not got yet
    python benchmarks/feedback.py --anew order     # one group once more
"""

import argparse
import json
import warnings
from datetime import date

import numpy as np
import pandas as pd
from learning import Task
from peers import RESULTS, datasets, machine

from two_tower_vs.embed import embed
from two_tower_vs.files import replacing
from two_tower_vs.labelling import label_order
from two_tower_vs.teaching import Teaching, nothing

SEEDS = 42, 1, 2
HITS = 10  # that the person looks at
FIRST = 100  # pairs that there were before the first click
CLICKED = 0, 30, 300  # pictures with clicks
LABELLED = 50, 200  # pictures shown to somebody who has no pairs


def embedded(task, tower, paths):
    from learning import CACHE

    return embed(tower, list(paths), task.root, CACHE, progress=False).vectors


class Person:
    "Sees the first hits of each picture, and knows which are right"

    def __init__(self, task, model):
        self.task = task
        self.model = model
        self.catalogue = task.cands.cand_path.to_numpy()
        self.vectors = embedded(task, model.cand, self.catalogue)
        self.answers = task.pairs.groupby('query_path').cand_path.agg(set).to_dict()

    def hits(self, pictures):  # scores and paths (n, HITS)
        scores = embedded(self.task, self.model.query, pictures) @ self.vectors.T
        best = np.argsort(-scores, axis=1, kind='stable')[:, :HITS]
        return np.take_along_axis(scores, best, 1), self.catalogue[best]

    def clicks(self, pictures) -> Teaching:
        "Right on each right hit; wrong on two hits at most that stand above it, or on the first"
        rights = []
        wrongs = []
        for picture, hits in zip(pictures, self.hits(pictures)[1]):
            right = [hit for hit in hits if hit in self.answers[picture]]
            rights += [(picture, hit) for hit in right]
            above = list(hits[: list(hits).index(right[0])]) if right else list(hits[:1])
            wrongs += [(picture, hit) for hit in above[:2]]
        tables = [pd.DataFrame(some, columns=nothing.columns) for some in (rights, wrongs)]
        answered = tables[1].query_path.isin(tables[0].query_path)
        return Teaching(tables[0], tables[1][answered])


def percent(task, model):
    "Recall@1 on the evaluation's queries"
    return round(100 * task.recall(model)['trained'][0], 2)


def model_kept(model):
    return model.training_info['kept']


def shuffled(task, seed):
    pictures = task.pairs.query_path.unique()
    return np.random.default_rng(seed).permutation(pictures)


# --- clicks: pairs first, then clicks on what the model finds


def taught(task, pairs, found, seed):
    model = task.model()
    task.trained(model, pairs, seed=seed, feedback=True, taught=found)
    return model


def clicks(name):
    task = Task(name)
    for seed in SEEDS:
        pictures = shuffled(task, seed)
        pairs = task.pairs[task.pairs.query_path.isin(pictures[:FIRST])]
        model = task.model()
        task.trained(model, pairs, seed=seed)
        person = Person(task, model)
        for count in CLICKED:
            found = person.clicks(pictures[FIRST : FIRST + count])
            rights = Teaching(found.rights, nothing)
            row = dict(seed=seed, pictures=count, right=len(found.rights), wrong=len(found.wrongs))
            alone = model if not count else taught(task, pairs, rights, seed)
            both = model if not count else taught(task, pairs, found, seed)
            yield row | {
                'kept': model_kept(both),
                'rights alone': percent(task, alone),
                'rights and wrongs': percent(task, both),
            }


# --- order: nobody has any pairs, and some pictures are labelled


def orders(task, person, seed):  # name -> pictures
    pictures = shuffled(task, seed)
    scores, _ = person.hits(pictures)
    vectors = embedded(task, person.model.query, pictures)
    least = np.argsort(scores[:, 0] - scores[:, 1], kind='stable')
    return {
        'at random': pictures,
        'least margin': pictures[least],
        'label_order': pictures[label_order(vectors, scores)],
    }


def order(name):
    task = Task(name)
    plain = task.model(embed_dim=None)
    person = Person(task, plain)
    for seed in SEEDS:
        for which, pictures in orders(task, person, seed).items():
            for count in LABELLED:
                found = person.clicks(pictures[:count])
                row = dict(seed=seed, order=which, pictures=count, right=len(found.rights))
                pairs = found.rights.set_axis(range(2, len(found.rights) + 2))
                model = task.model()
                task.trained(model, pairs, seed=seed)
                yield row | {'kept': model_kept(model), 'recall@1': percent(task, model)}


GROUPS = {'clicks': clicks, 'order': order}
SETS = ('openmoji',)


def save(done, out):
    done |= dict(date=str(date.today()), machine=machine())
    with replacing(out) as (file,):
        file.write_text(json.dumps(done, indent=1) + '\n')


def main():
    p = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    p.add_argument('--anew', nargs='+', choices=GROUPS, default=[], help='measure these again')
    p.add_argument('--only', nargs='+', choices=GROUPS, default=list(GROUPS))
    a = p.parse_args()
    out = RESULTS / 'feedback.json'
    done = json.loads(out.read_text()) if out.exists() else {}
    for group in a.only:
        for name in SETS:
            if name == 'grocery' and name not in datasets():
                continue
            key = f'{group}, {name}'
            if key in done and group not in a.anew:
                continue
            rows = []
            for row in GROUPS[group](name):
                print(key, row, flush=True)
                rows.append(row)
            done[key] = rows
            save(done, out)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    main()
