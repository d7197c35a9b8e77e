"""Evaluation: parts equal evaluations of their own, and numbers equal those by brute force."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from two_tower_vs import failures
from two_tower_vs.data import read_candidates, read_pairs
from two_tower_vs.embed import embed
from two_tower_vs.errors import InputError
from two_tower_vs.eval import Evaluation, evaluate, save_evaluation, untrained
from two_tower_vs.evidence import match_metrics
from two_tower_vs.failures import show_changes, show_worst
from two_tower_vs.matches import precision_coverage, show_match
from two_tower_vs.saving import load_model


class Task:
    "A small model, its catalogue, and the pairs that it was trained on as the truth"

    def __init__(self, project):
        self.root = project / 'images'
        self.cache = project / 'out/cache'
        self.model = load_model(project / 'out/model')
        self.candidates = read_candidates(project / 'candidates.csv', self.root)
        pairs = read_pairs(project / 'pairs.csv', self.root)
        pairs = pairs.drop_duplicates('query_path').reset_index(drop=True)
        self.truth = pairs.rename(columns={'cand_path': 'gt_cand_path'})

    def evaluate(self, truth=None, **options):
        truth = self.truth if truth is None else truth
        self.model.training_info = options.pop('info', {})
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the queries are few
            return evaluate(self.model, truth, self.candidates, self.root, self.cache, **options)

    def vectors(self, tower, paths, size=None):
        vectors = embed(tower, paths, self.root, self.cache).vectors[:, :size]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def task(ran):
    return Task(ran)


@pytest.mark.rest
def test_a_group_is_a_set_of_queries_and_no_more(task):
    parity = np.arange(len(task.truth)) % 2
    grouped = task.truth.assign(group=np.where(parity, 'odd', 'even'))
    found = task.evaluate(grouped)
    groups = found.metrics['groups']
    alone = task.evaluate(grouped[grouped.group == 'odd'].drop(columns='group'))
    assert groups['odd'] == {key: alone.metrics[key] for key in groups['odd']}
    assert sum(group['queries'] for group in groups.values()) == len(grouped)
    whole = task.evaluate()
    assert {k: v for k, v in found.metrics.items() if k != 'groups'} == whole.metrics
    assert found.queries.columns[1] == 'group' and 'group' not in whole.queries
    gain = {name: group['delta']['recall@1']['value'] for name, group in groups.items()}
    if 'delta_centred' in whole.metrics:
        gain = None  # the table may go by the other baseline
    assert gain is None or found.by_group().index.tolist() == sorted(gain, key=gain.get)
    assert len(whole.by_group()) == 0


def test_leak_free_equals_an_evaluation_without_the_leaked(task):
    leaked = list(task.truth.query_path[::3])
    found = task.evaluate(leaked=leaked)
    keep = task.truth[~task.truth.query_path.isin(leaked)]
    want = task.evaluate(keep).metrics
    clean = found.metrics['leak_free']
    for part in ('trained', 'baseline', 'delta'):
        assert clean[part] == want[part]
    assert (clean['queries'], clean['leaked']) == (want['queries'], len(leaked))
    assert found.queries.leaked.sum() == len(leaked)
    whole = task.evaluate()
    assert found.metrics['trained'] == whole.metrics['trained']
    assert 'leak_free' not in whole.metrics and len(whole.leak_free()) == 0


def test_all_queries_leaked(task):
    found = task.evaluate(leaked=list(task.truth.query_path))
    assert found.metrics['leak_free']['queries'] == 0
    assert 'trained' not in found.metrics['leak_free']
    assert (found.leak_free().iloc[:, 1] == '').all()


def test_sizes_equal_sorting_everything(task):
    d = task.model.config['embed_dim'] or 64
    size = d // 2
    found = task.evaluate(info={'matryoshka': [size]})
    assert list(found.metrics['sizes']) == [str(size), str(d)]
    assert found.metrics['sizes'][str(d)] == found.metrics['trained']
    queries = task.vectors(task.model.query, task.truth.query_path, size)
    candidates = task.vectors(task.model.cand, task.candidates.cand_path, size)
    first = task.candidates.cand_path.to_numpy()[np.argmax(queries @ candidates.T, axis=1)]
    right = (first == task.truth.gt_cand_path).mean()
    assert found.metrics['sizes'][str(size)]['recall@1']['value'] == pytest.approx(right, abs=1e-6)
    assert len(task.evaluate().by_size()) == 0


def test_refused_equals_a_search_without_the_answers(task):
    found = task.evaluate()
    queries = task.vectors(task.model.query, task.truth.query_path)
    candidates = task.vectors(task.model.cand, task.candidates.cand_path)
    scores = queries @ candidates.T
    row_of = {path: row for row, path in enumerate(task.candidates.cand_path)}
    right = [row_of[path] for path in task.truth.gt_cand_path]
    scores[np.arange(len(scores)), right] = -1
    assert scores.max(1) == pytest.approx(found.queries.wrong_score.to_numpy(), abs=2e-6)


def test_shares_of_a_match_are_those_of_the_curve_with_wilson_intervals(task):
    table = task.evaluate().queries
    threshold = float(table.top1_score.median())
    products = np.arange(len(table))  # scipy's own, where each query is a product
    match = match_metrics(table, {'threshold': threshold, 'precision': 0.9}, products)['match']
    right = (table['rank'] == 1).to_numpy(bool)
    passed = (table.top1_score >= threshold).to_numpy()
    refused = (table.wrong_score < threshold).to_numpy()
    shares = dict(precision=right[passed], coverage=passed, refused=refused)
    for name, share in shares.items():
        assert match[name]['value'] == pytest.approx(share.mean(), abs=1e-6)
        if 0 < share.mean() < 1:
            wilson = binomtest(int(share.sum()), len(share)).proportion_ci(method='wilson')
            assert match[name]['ci95'] == pytest.approx([wilson.low, wilson.high], abs=1e-5)
    curve = precision_coverage(table.top1_score, right)
    at = curve[curve.threshold >= threshold].iloc[-1]
    shown = [match['precision']['value'], match['coverage']['value']]
    assert shown == pytest.approx([at.precision, at.coverage], abs=1e-6)


def test_a_threshold_that_nothing_or_one_query_reaches():
    n = 288
    scores = np.linspace(0.9, 0.1, n).round(6)
    table = pd.DataFrame(
        {
            'rank': pd.array([1] * n, dtype='Int64'),
            'top1_score': scores,
            'wrong_score': scores - 0.05,
        }
    )
    products = np.arange(n)
    none = match_metrics(table, {'threshold': 2.0, 'precision': 0.9}, products)['match']
    assert none['precision'] == {'value': None, 'ci95': [None, None]}
    assert (none['coverage']['value'], none['refused']['value']) == (0.0, 1.0)
    # Nothing of 288 is not never
    assert 0 < none['coverage']['ci95'][1] < 0.05
    assert 0.95 < none['refused']['ci95'][0] < 1
    one = match_metrics(table, {'threshold': 0.9, 'precision': 0.9}, products)['match']
    assert one['precision'] == {'value': 1.0, 'ci95': [0.0, 1.0]}
    assert one['coverage']['value'] == round(1 / n, 6)
    assert match_metrics(table, None, products) == {}
    assert json.dumps(none, allow_nan=False)


def test_files_say_what_the_evaluation_says(task, tmp_path):
    found = task.evaluate(info={'match': {'threshold': 0.5, 'precision': 0.9}})
    save_evaluation(found, tmp_path)
    assert json.loads((tmp_path / 'metrics.json').read_text()) == found.metrics
    assert json.dumps(found.metrics, allow_nan=False)
    saved = pd.read_csv(tmp_path / 'per_query.csv')
    assert saved['recall@1'].mean().round(6) == found.metrics['trained']['recall@1']['value']
    counts = [(saved.change == change).sum() for change in ('gained', 'lost')]
    assert counts == list(found.metrics['changes']['hit@1'].values())
    gain = (saved['rank'] == 1).mean() - (saved.baseline_rank == 1).mean()
    assert gain == pytest.approx(found.metrics['delta']['recall@1']['value'], abs=1e-6)


def test_metrics_come_in_one_order(task):
    metrics = task.evaluate().metrics
    names = [f'{name}@{k}' for name in ('recall', 'hit') for k in (1, 5, 10)]
    assert list(metrics['trained']) == [*names, 'mrr', 'map@10', 'micro_ap', 'recall@p90']
    assert list(metrics)[:6] == ['k', 'queries', 'candidates', 'trained', 'baseline', 'delta']


def test_a_model_that_learnt_nothing_is_called_so(task):
    plain = untrained(task.model)
    with pytest.warns(UserWarning, match='changed nothing'):
        found = evaluate(plain, task.truth, task.candidates, task.root, task.cache)
    assert found.metrics['delta']['mrr']['value'] == 0
    assert 'centred' not in found.metrics
    assert found.metrics['changes'] == {'hit@1': {'gained': 0, 'lost': 0}}
    assert show_changes(found, task.truth, task.root)
    assert show_match(found, least=1)


def test_pictures_that_cannot_be_read(task, tmp_path):
    "Several answers, an unreadable answer that is a candidate too, and an unreadable query"
    task.root = shutil.copytree(task.root, tmp_path / 'images')
    truth = task.truth[:20]
    other = task.truth.gt_cand_path[20:25].to_numpy()
    truth = pd.concat([truth, truth[:5].assign(gt_cand_path=other)], ignore_index=True)
    (task.root / truth.gt_cand_path[0]).write_bytes(b'broken')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        found = evaluate(task.model, truth, task.candidates, task.root, task.cache)
    texts = [str(warning.message) for warning in caught]
    total = len(task.candidates)
    assert any(f'1 of {total} rows of candidates.csv are skipped' in text for text in texts)
    assert any('1 right answers' in text for text in texts)
    assert found.metrics['candidates'] == total - 1
    assert (len(found.bad), found.queries.answers[0]) == (1, 2)
    trained = found.metrics['trained']
    assert trained['recall@10']['value'] < trained['hit@10']['value'] <= 1
    (task.root / truth.query_path[1]).unlink()
    with pytest.raises(InputError, match='no such file'):
        task.evaluate(truth)
    assert task.evaluate(truth, on_bad='skip').metrics['queries'] == 19


def test_list_lengths_are_checked(task):
    with pytest.raises(InputError, match='from 1 to 1,000,000'):
        task.evaluate(k=[0])


# Pictures of failures


@pytest.fixture
def titles(monkeypatch):
    "Grids return their titles instead of a picture"
    monkeypatch.setattr(failures, 'image_grid', lambda rows, titles, **options: titles)
    monkeypatch.setattr(failures, 'picture_of', lambda words: words)
    monkeypatch.setattr(failures, 'thumb', lambda path, side: None)


def some_changes():
    "Ten queries: six lost, four gained"
    ranks = np.arange(2, 8)
    queries = pd.DataFrame(
        {
            'query_path': [f'q{i}' for i in range(10)],
            'rank': pd.array([*ranks, 1, 1, 1, 1], dtype='Int64'),
            'baseline_rank': pd.array([1] * 6 + [9, 4, None, 7], dtype='Int64'),
            'change': ['lost'] * 6 + ['gained'] * 4,
            'top1': 'a',
            'baseline_top1': 'b',
        }
    )
    truth = pd.DataFrame({'query_path': queries.query_path, 'gt_cand_path': 'c'})
    return Evaluation({}, queries, None), truth


def test_lost_queries_come_first_and_the_largest_changes(titles):
    evaluation, truth = some_changes()
    what, moved, when = show_changes(evaluation, truth, 'images')
    assert what == ['lost'] * 4 + ['gained'] * 4
    assert when == ['now'] * 4 + ['before'] * 4
    assert moved[:4] == ['1 → 7', '1 → 6', '1 → 5', '1 → 4']
    assert moved[4:] == ['never → 1', '9 → 1', '7 → 1', '4 → 1']
    assert show_changes(evaluation, truth, 'images', n=2)[0] == ['lost', 'gained']


def test_the_worst_come_first_and_right_ones_never(titles):
    evaluation, truth = some_changes()
    evaluation.queries.loc[8, 'rank'] = pd.NA
    _, places, _ = show_worst(evaluation, truth, 'images')
    assert places == ['never', *(f'rank {rank}' for rank in range(7, 1, -1))]
    evaluation.queries['rank'] = pd.array([1] * 10, dtype='Int64')
    assert show_worst(evaluation, truth, 'images') == 'every query finds its answer first'
