"Normalised scores: what they are, that ranks stay, and that index, search and evaluation agree."

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from two_tower_vs import bystanders
from two_tower_vs.bundle import load_index, save_index
from two_tower_vs.bystanders import columns_of, levels, normalizes, sampled
from two_tower_vs.cli import main
from two_tower_vs.data import read_candidates
from two_tower_vs.embed import embed
from two_tower_vs.errors import InputError
from two_tower_vs.eval import evaluate
from two_tower_vs.index import build_index
from two_tower_vs.normalising import judge_normalising
from two_tower_vs.pairtable import PairTable
from two_tower_vs.query import Searcher, match_threshold
from two_tower_vs.ranking import HeldOutAnswers, first_hits
from two_tower_vs.saving import load_model
from two_tower_vs.update import update_index
from two_tower_vs.vectors import Embeddings


def unit(rng, n, d=16):
    vectors = rng.normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def brute_level(query, bystanders, paths, first, k=3):
    "Mean of the k best scores with bystanders, without the first hit"
    scores = [float(query @ vector) for vector, path in zip(bystanders, paths) if path != first]
    return np.mean(sorted(scores, reverse=True)[:k])


@pytest.fixture
def catalogue():
    "An index, queries, and bystanders of which half are in the catalogue"
    rng = np.random.default_rng(0)
    cands = Embeddings(unit(rng, 300), [f'{i}.png' for i in range(300)])
    others = Embeddings(unit(rng, 40), [f'other {i}.png' for i in range(40)])
    some = rng.permutation(300)[:40]
    both = np.concatenate([others.vectors, cands.vectors[some]])
    bystanders = Embeddings(both, [*others.paths, *[cands.paths[i] for i in some]])
    queries = np.r_[unit(rng, 20), cands.vectors[some[:10]]]
    return cands, np.ascontiguousarray(queries), bystanders


def test_scores_are_lowered_as_by_hand_and_ranks_stay(catalogue):
    cands, queries, bystanders = catalogue
    plain = build_index(cands, 'm', kind='flat', queries=queries)
    scores, rows = plain.search(queries, 7)
    assert plain.normalize_by(bystanders, 'a test')
    lowered, same_rows = plain.search(queries, 7)
    assert (rows == same_rows).all()
    for query, before, after, row in zip(queries, scores, lowered, rows):
        first = cands.paths[row[0]]
        level = brute_level(query, bystanders.vectors, bystanders.paths, first)
        assert after == pytest.approx(before - level, abs=1e-5)
    assert not plain.normalize_by(bystanders, 'a test')
    assert plain.normalize_by(None) and plain.search(queries, 7)[0] == pytest.approx(scores)


def test_a_bundle_keeps_them_and_an_update_too(catalogue, tmp_path):
    cands, queries, bystanders = catalogue
    index = build_index(cands, 'm', queries, kind='flat', bystanders=bystanders)
    wanted = index.search(queries, 5)[0]
    save_index(index, tmp_path)
    loaded = load_index(tmp_path, 'm', writable=True)
    assert loaded.manifest['normalize']['on'] and loaded.manifest['normalize']['bystanders'] == 80
    assert loaded.search(queries, 5)[0] == pytest.approx(wanted)
    assert not loaded.normalize_by(bystanders)
    fewer = Embeddings(cands.vectors[100:].copy(), cands.paths[100:])
    updated, _ = update_index(loaded, fewer, 'm', queries, kind='flat')
    updated.normalize_by(bystanders)
    fresh = build_index(fewer, 'm', queries, kind='flat', bystanders=bystanders)
    assert updated.search(queries, 5)[0] == pytest.approx(fresh.search(queries, 5)[0])
    off = build_index(cands, 'm', queries, kind='flat', bystanders=bystanders, normalize='none')
    assert off.bystanders is None


def test_bystanders_of_other_rows_are_refused(catalogue, tmp_path):
    cands, queries, bystanders = catalogue
    index = build_index(cands, 'm', queries, kind='flat', bystanders=bystanders)
    index.bystander_rows = index.bystander_rows[::-1].copy()
    save_index(index, tmp_path)
    with pytest.raises(InputError, match='bystanders of other rows'):
        load_index(tmp_path)


def test_the_threshold_is_that_of_the_scores(catalogue):
    cands, queries, bystanders = catalogue
    info = {'match': {'threshold': 0.7}, 'normalizing': {'match': {'threshold': 0.1}}}
    index = build_index(cands, 'm', queries, kind='flat')
    assert match_threshold(info, index) == 0.7
    index.normalize_by(bystanders)
    assert match_threshold(info, index) == 0.1
    assert match_threshold({'match': {'threshold': 0.7}}, index) is None


def test_levels_of_held_out_queries_are_those_by_hand():
    rng = np.random.default_rng(3)
    names = {'query_path': [f'q{i}' for i in range(90)], 'cand_path': [f'c{i}' for i in range(90)]}
    table = PairTable(pd.DataFrame(names))
    queries, cands = unit(rng, 90), unit(rng, 90)
    cands[:60] += queries[:60]
    cands /= np.linalg.norm(cands, axis=1, keepdims=True)
    searched = np.arange(5, 88)
    asked = np.arange(50, 80)
    bystanders = np.arange(10, 70)
    tensors = torch.from_numpy(queries[asked]), torch.from_numpy(cands[searched])
    found = first_hits(*tensors, asked, searched, table, bystanders)
    scores = queries @ cands.T
    for i, query in enumerate(asked):
        row = scores[query].copy()
        first = searched[row[searched].argmax()]
        level = brute_level(queries[query], cands[bystanders], bystanders, first)
        assert found.level[i] == pytest.approx(level, abs=1e-5)
        rest = searched[searched != query]
        wrong = rest[row[rest].argmax()]
        left = bystanders[bystanders != query]
        level = brute_level(queries[query], cands[left], left, wrong)
        assert found.wrong_level[i] == pytest.approx(level, abs=1e-5)
    plain = first_hits(*tensors, asked, searched, table)
    assert (plain.level == 0).all() and (plain.rank == found.rank).all()


def test_held_out_pairs_decide():
    rng = np.random.default_rng(0)
    offset = rng.normal(0.3, 0.1, 300)
    score, wrong = offset + 0.2, offset + rng.normal(0, 0.02, 300)
    weight, products = {'new': 1, 'known': 0}, np.arange(300) // 3

    def judged(level):
        columns = score, np.ones(300, int), wrong, level, level
        return judge_normalising(
            {'new': HeldOutAnswers(np.arange(300), *columns)}, weight, products
        )

    good = judged(offset)
    assert good['gains'] and good['gain']['micro_ap']['ci95'][0] > 0
    assert good['match']['threshold'] < 0.25
    assert not judged(rng.normal(0.3, 0.3, 300))['gains']
    assert judged(np.zeros(300)) is None
    assert normalizes('auto', {'normalizing': good})[0]
    assert normalizes('auto', {}) == (False, 'training has not tried it')
    with pytest.raises(InputError, match='index.normalize is .yes.. Use auto, always or none'):
        normalizes('yes', {})


def test_too_few_pictures_are_no_bystanders():
    assert len(sampled(np.arange(49))) == 0
    assert len(sampled(np.arange(50))) == 50
    assert (levels(np.ones((3, 1)), np.array([0, -1, 0])) == 0).all()
    assert columns_of(np.array([3]), np.zeros(0, int)).tolist() == [-1]


class Task:
    "A model, its catalogue, queries with an answer and without, and bystanders"

    def __init__(self, project):
        self.root = project / 'images'
        self.cache = project / 'out/cache'
        self.model = load_model(project / 'out/model')
        self.model.training_info = {'normalizing': {'match': {'threshold': 0.05, 'precision': 0.9}}}
        self.candidates = read_candidates(project / 'candidates.csv', self.root)
        pairs = pd.read_csv(project / 'pairs.csv').drop_duplicates('query_path', ignore_index=True)
        truth = pairs.rename(columns={'cand_path': 'gt_cand_path'})
        self.strangers = truth[['query_path']][::4]
        self.truth = truth[~truth.query_path.isin(self.strangers.query_path)]
        self.paths = list(self.candidates.cand_path[::2])

    def evaluate(self, **options):
        args = self.model, self.truth, self.candidates, self.root, self.cache
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the queries are few
            return evaluate(*args, unanswered=self.strangers, **options)

    def index(self, leave_out=None):
        def embedded(paths):
            kept = [path for path in paths if path != leave_out]
            return embed(self.model.cand, kept, self.root, self.cache)

        options = dict(kind='flat', bystanders=embedded(self.paths))
        return build_index(embedded(self.candidates.cand_path), 'm', **options)


@pytest.fixture
def task(ran):
    return Task(ran)


def test_an_evaluation_keeps_ranks_and_changes_what_compares_queries(task):
    plain = task.evaluate()
    found = task.evaluate(bystanders=task.paths, why='a test')
    for part in ('trained', 'baseline', 'delta'):
        for name in set(plain.metrics[part]) - {'micro_ap', 'recall@p90'}:
            assert found.metrics[part][name] == plain.metrics[part][name]
    columns = ['query_path', 'rank', 'baseline_rank', 'top1', 'baseline_top1']
    assert found.queries[columns].equals(plain.queries[columns])
    assert (found.queries.top1_score < plain.queries.top1_score).all()
    facts = found.metrics['one_ranking']
    assert facts['normalized'] and not plain.metrics['one_ranking']['normalized']
    assert facts['plain']['micro_ap'] == plain.metrics['trained']['micro_ap']
    assert found.metrics['match']['threshold'] == 0.05


def test_evaluation_and_search_show_the_same_scores(task):
    found = task.evaluate(bystanders=task.paths)
    searcher = Searcher(task.model, task.index(), task.cache)
    assert searcher.threshold == 0.05
    for table in (found.queries, found.unanswered):
        for row in table.head(5).itertuples():
            hits = searcher.search(task.root / row.query_path, 2)
            assert hits.cand_path[0] == row.top1
            assert hits.score[0] == pytest.approx(row.top1_score, abs=2e-3)
    # Without its right answer, a query would get the score that the table says
    row = found.queries.iloc[0]
    gone = task.truth[task.truth.query_path == row.query_path].gt_cand_path.iloc[0]
    query = embed(task.model.query, [row.query_path], task.root, task.cache).vectors
    scores, _ = task.index(leave_out=gone).search(query, 1)
    assert scores[0, 0] == pytest.approx(row.wrong_score, abs=1e-4)


def run_stage(config, stage, *more):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert main(['--config', str(config), '--stage', stage, *more]) == 0


def read_json(file):
    return json.loads(file.read_text())


def test_the_command_normalises_evaluation_index_and_query_alike(ran, monkeypatch):
    monkeypatch.setattr(bystanders, 'fewest', 5)
    config = ran / 'config.yaml'
    out = ran / 'out'
    set_normalize(config, 'always')
    query = pd.read_csv(ran / 'query_gt.csv').query_path[0]
    run_stage(config, 'eval')
    run_stage(config, 'index')
    run_stage(config, 'query', '--image', str(ran / 'images' / query))
    on = {'on': True, 'why': 'index.normalize is always'}
    assert on.items() <= read_json(out / 'index/manifest.json')['normalize'].items()
    table = pd.read_csv(out / 'per_query.csv').set_index('query_path')
    hit = read_json(out / 'query.json')['hits'][0]
    assert hit['cand_path'] == table.top1[query]
    assert hit['score'] == pytest.approx(table.top1_score[query], abs=2e-3)
    assert read_json(out / 'metrics.json')['one_ranking']['why'] == on['why']
    set_normalize(config, 'none')
    run_stage(config, 'index')
    assert not read_json(out / 'index/manifest.json')['normalize']['on']


def set_normalize(config, value):
    settings = yaml.safe_load(config.read_text())
    settings['index'] = {**(settings.get('index') or {}), 'normalize': value}
    settings['query'] = {**(settings.get('query') or {}), 'verify': 'never'}
    config.write_text(yaml.safe_dump(settings))
