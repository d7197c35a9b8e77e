"Micro-AP and recall at 90 % precision of an evaluation, against scikit-learn and by brute force."

import warnings

import numpy as np
import pandas as pd
import pytest

from two_tower_vs.cli import main
from two_tower_vs.data import read_answers, read_candidates, read_gt, read_unanswered
from two_tower_vs.embed import embed
from two_tower_vs.errors import InputError
from two_tower_vs.eval import evaluate, save_evaluation
from two_tower_vs.evidence import with_one_ranking
from two_tower_vs.microap import Predictions, micro_ap, recall_at_precision
from two_tower_vs.one_ranking import OneRanking
from two_tower_vs.saving import load_model


@pytest.fixture
def task(ran):
    "A model, candidates, queries with an answer, and queries whose answers are taken out"
    root = ran / 'images'
    candidates = read_candidates(ran / 'candidates.csv', root)
    pairs = pd.read_csv(ran / 'pairs.csv').drop_duplicates('query_path', ignore_index=True)
    truth = pairs.rename(columns={'cand_path': 'gt_cand_path'})
    gone = truth[truth.gt_cand_path.isin(truth.gt_cand_path.unique()[::2])]
    left = candidates[~candidates.cand_path.isin(gone.gt_cand_path)]
    rest = truth[~truth.index.isin(gone.index)]
    return load_model(ran / 'out/model'), left, rest, gone[['query_path']], root, ran / 'out/cache'


def evaluated(task, truth=None, strangers=None, **options):
    model, candidates, rest, gone, root, cache = task
    model.training_info = {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the queries are few
        return evaluate(
            model,
            rest if truth is None else truth,
            candidates,
            root,
            cache,
            unanswered=gone if strangers is None else strangers,
            **options,
        )


def vectors(task, queries):
    model, candidates, _, _, root, cache = task
    found = embed(model.query, list(queries), root, cache).vectors
    return found @ embed(model.cand, candidates.cand_path, root, cache).vectors.T


def brute(task, truth, strangers):
    "(right, score, number of right pairs) of the ten first hits of every query"
    queries = [*truth.query_path, *strangers.query_path]
    scores = vectors(task, queries)
    answer = dict(zip(truth.query_path, truth.gt_cand_path))
    names = task[1].cand_path.to_numpy()
    rows = []
    for query, row in zip(queries, scores):
        for at in np.argsort(-row, kind='stable')[:10]:
            rows.append((names[at] == answer.get(query), row[at]))
    right, score = zip(*rows)
    return np.array(right), np.array(score), len(truth)


def test_micro_ap_of_an_evaluation_is_that_of_scikit_learn(task):
    metrics = pytest.importorskip('sklearn.metrics')
    found = evaluated(task)
    right, score, total = brute(task, task[2], task[3])
    wanted = metrics.average_precision_score(right, score) * right.sum() / total
    trained = found.metrics['trained']
    assert trained['micro_ap']['value'] == pytest.approx(wanted, abs=1e-5)
    precision, recall, _ = metrics.precision_recall_curve(right, score)
    best = recall[:-1][precision[:-1] >= 0.9].max(initial=0) * right.sum() / total
    assert trained['recall@p90']['value'] == pytest.approx(best, abs=1e-5)
    facts = found.metrics['one_ranking']
    assert (facts['unanswered'], facts['first_hits']) == (len(task[3]), 10)
    assert facts['queries'] == len(task[2]) + len(task[3])


def test_queries_without_an_answer_change_micro_ap_alone(task):
    found = evaluated(task)
    without = evaluated(task, strangers=task[3][:0])
    more = {'micro_ap', 'recall@p90'}
    for model in ('trained', 'baseline', 'delta'):
        with_them, alone = found.metrics[model], without.metrics[model]
        assert set(with_them) > more
        same = set(with_them) - more
        assert {name: with_them[name] for name in same} == {name: alone[name] for name in same}
    assert found.queries.equals(without.queries)
    ap = [e.metrics['trained']['micro_ap']['value'] for e in (found, without)]
    assert ap[0] <= ap[1]
    assert without.unanswered is None
    assert list(found.unanswered.query_path) == list(task[3].query_path)
    best = vectors(task, task[3].query_path).max(1)
    assert found.unanswered.top1_score.to_numpy() == pytest.approx(best, abs=2e-6)


def test_a_group_has_its_own_queries_without_an_answer(task):
    def grouped(table):
        return table.assign(group=np.where(np.arange(len(table)) % 2, 'odd', 'even'))

    truth, strangers = grouped(task[2]), grouped(task[3])
    found = evaluated(task, truth, strangers).metrics['groups']['odd']
    odd = [table[table.group == 'odd'].drop(columns='group') for table in (truth, strangers)]
    alone = evaluated(task, *odd).metrics
    assert found == {key: alone[key] for key in found}


def test_leak_free_keeps_the_queries_without_an_answer(task):
    leaked = list(task[2].query_path[::3])
    found = evaluated(task, leaked=leaked).metrics['leak_free']
    kept = task[2][~task[2].query_path.isin(leaked)]
    alone = evaluated(task, kept).metrics
    assert all(found[part] == alone[part] for part in ('trained', 'baseline', 'delta'))


def test_unanswered_csv_is_there_only_with_such_queries(task, tmp_path):
    save_evaluation(evaluated(task), tmp_path)
    assert len(pd.read_csv(tmp_path / 'unanswered.csv')) == len(task[3])
    save_evaluation(evaluated(task, strangers=task[3][:0]), tmp_path)
    assert not (tmp_path / 'unanswered.csv').exists()


def lists(seed, queries=40):
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(queries), 2)
    answers = (np.arange(queries) < 30).astype(int)
    right = (np.arange(2 * queries) % 2 == 0) & (answers[number] > 0) & (rng.random(80) < 0.9)
    scores = np.round(rng.random(80) + 0.4 * right, 1)
    return Predictions(scores, right, number, answers)


def test_values_and_parts():
    models = {'trained': lists(0), 'baseline': lists(1)}
    products = np.r_[np.arange(30) // 2, 15 + np.arange(10)]
    listed = OneRanking(models, products, 30)
    rows = np.array([0, 3, 4, 11, 20, 29])
    part = listed.part(rows)
    for name, found in models.items():
        kept = np.isin(found.query, [*rows, *range(30, 40)])
        wanted = micro_ap(found.scores[kept], found.right[kept], 6)
        assert part.compared()[name]['micro_ap']['value'] == pytest.approx(wanted, abs=1e-6)
    cells = listed.compared()
    gain = cells['trained']['micro_ap']['value'] - cells['baseline']['micro_ap']['value']
    assert cells['delta']['micro_ap']['value'] == pytest.approx(gain, abs=2e-6)
    joined = with_one_ranking({'trained': {'mrr': 1}, 'delta': {'mrr': 2}}, listed)
    assert joined['delta'] == {'mrr': 2, **cells['delta']}


def test_intervals_cover_the_truth():
    "Of 30 samples, at most 5 miss what a large sample says"
    missed = 0
    rng = np.random.default_rng(5)

    def sample(products):
        number = np.repeat(rng.normal(0, 0.1, products), 3)  # queries of one product are alike
        good = number + rng.normal(0.7, 0.1, 3 * products)
        bad = rng.normal(0.5, 0.1, 3 * products)
        right = np.arange(6 * products) < 3 * products
        found = Predictions(np.r_[good, bad], right, np.arange(6 * products), right.astype(int))
        return found, np.r_[np.arange(3 * products) // 3, products + np.arange(3 * products)]

    large, _ = sample(20_000)
    truth = micro_ap(large.scores, large.right, large.answers.sum())
    for _ in range(30):
        found, products = sample(40)
        cell = OneRanking({'trained': found}, products, 120).compared()['trained']['micro_ap']
        missed += not cell['ci95'][0] <= truth <= cell['ci95'][1]
    assert missed <= 5


def test_a_perfect_list_is_not_certain():
    scores = np.arange(60, 0, -1.0)
    right = np.arange(60) < 30
    found = Predictions(scores, right, np.arange(60), right.astype(int))
    cell = OneRanking({'trained': found}, np.arange(60), 30).compared()['trained']
    assert cell['micro_ap']['value'] == cell['recall@p90']['value'] == 1
    assert 0.8 < cell['micro_ap']['ci95'][0] < 0.95 and cell['micro_ap']['ci95'][1] == 1
    assert recall_at_precision(scores, right, 30).threshold == 31


def test_an_empty_gt_cand_path_is_a_query_without_an_answer(tmp_path):
    for name in ('a.png', 'b.png', 'c.png'):
        (tmp_path / name).touch()
    file = tmp_path / 'gt.csv'
    file.write_text('query_path,gt_cand_path,group\na.png,b.png,x\nb.png,,y\nc.png,  ,\nb.png,,y\n')
    candidates = pd.DataFrame({'cand_path': ['b.png']})
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # a row is there twice
        assert list(read_gt(file, tmp_path, candidates).query_path) == ['a.png']
        alone = read_unanswered(file, tmp_path)
    assert list(alone.query_path) == ['b.png', 'c.png']
    assert list(alone.index) == [3, 4] and list(alone.group) == ['y', '(none)']
    file.write_text('query_path,gt_cand_path\na.png,b.png\nmissing.png,\n')
    with pytest.raises(InputError, match='row 3: missing.png'):
        read_unanswered(file, tmp_path)
    file.write_text('query_path,gt_cand_path\na.png,\n')
    with pytest.raises(InputError, match='no row has a gt_cand_path'):
        read_gt(file, tmp_path, candidates)
    file.write_text('query_path,gt_cand_path\na.png,\na.png,b.png\n')
    with pytest.raises(InputError, match='row 2: a.png has no gt_cand_path here, and one in row 3'):
        read_answers(file, tmp_path)
    file.write_text('query_path,gt_cand_path\n,b.png\n')
    with pytest.raises(InputError, match='query_path is empty'):
        read_answers(file, tmp_path)


def test_the_command_counts_them(ran, capsys):
    truth = ran / 'query_gt.csv'
    rows = truth.read_text().splitlines()
    query = rows[1].split(',')[0]
    kept = [row for row in rows if not row.startswith(f'{query},')]
    truth.write_text('\n'.join([*kept, f'{query},', '']))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert main(['--config', str(ran / 'config.yaml'), '--stage', 'eval']) == 0
    assert '1 without an answer' in capsys.readouterr().out
    assert list(pd.read_csv(ran / 'out/unanswered.csv').query_path) == [query]


def test_queries_of_one_product_count_as_far_as_they_differ():
    "Each query three times tells no more than once, if the three are of one product"
    rng = np.random.default_rng(2)
    right = np.arange(120) < 60
    scores = rng.normal(0.5, 0.2, 120) + 0.1 * right
    once = Predictions(scores, right, np.arange(120), right.astype(int))
    number = np.arange(360)
    thrice = Predictions(scores[number // 3], right[number // 3], number, right[number // 3] * 1)
    few = OneRanking({'trained': once}, np.arange(120), 60).compared()['trained']['micro_ap']
    many = OneRanking({'trained': thrice}, number // 3, 180).compared()['trained']['micro_ap']
    assert many['value'] == pytest.approx(few['value'])
    assert many['ci95'] == pytest.approx(few['ci95'], abs=0.02)


def test_one_mistake_does_not_promise_that_there_are_no_others():
    right = np.r_[np.ones(29, bool), False, True]
    found = Predictions(np.arange(31, 0, -1.0), right, np.arange(31), right.astype(int))
    cell = OneRanking({'trained': found}, np.arange(31), 30).compared()['trained']['micro_ap']
    assert cell['value'] > 0.998 and cell['ci95'][0] < 0.95
