"""Kinds of index, tuning, selection: numbers that must hold, without examples that teach."""

from dataclasses import asdict

import faiss
import numpy as np
import pytest

from two_tower_vs import selection
from two_tower_vs.ann import example_vectors, factory, kinds, new_index, sample
from two_tower_vs.index import build_index
from two_tower_vs.lists import centres
from two_tower_vs.selection import Attempt, choose_index, grown
from two_tower_vs.tuning import agreement, nearest, shares, thorough, tune_index
from two_tower_vs.vectors import Embeddings


@pytest.fixture(scope='module')
def vectors():
    return example_vectors()[0]


@pytest.fixture(scope='module')
def queries():
    return example_vectors()[1]


@pytest.fixture(scope='module')
def exact(vectors, queries):
    return nearest(vectors, queries)


@pytest.fixture(scope='module')
def ivf(vectors):
    return new_index(factory('ivf_pq', *vectors.shape, 'SQfp16'), vectors)


def test_a_sample_is_always_the_same_and_in_order(vectors):
    rows = np.sort(np.random.default_rng(0).permutation(len(vectors))[:10])
    assert np.array_equal(sample(vectors, 10), vectors[rows])
    assert np.array_equal(sample(vectors[:9], 10), vectors[:9])


@pytest.mark.parametrize('kind', kinds)
def test_all_vectors_get_in_whatever_the_chunk(vectors, kind):
    spec = factory(kind, 3000, vectors.shape[1])
    assert new_index(spec, vectors[:3000], chunk=700).ntotal == 3000


def test_settings_are_no_more_thorough_than_needed(ivf, queries, exact):
    settings, _ = tune_index(ivf, 'ivf_pq', queries, exact, 0.98)
    assert settings['nprobe'] > 1
    half = {**settings, 'nprobe': settings['nprobe'] // 2}
    for name, value in half.items():
        faiss.ParameterSpace().set_index_parameter(ivf, name, value)
    assert agreement(ivf, exact, queries) < 0.98


def test_fixed_settings_stay(ivf, vectors, queries, exact):
    one = {'nprobe': 7}
    both = {'nprobe': 7, 'k_factor_rf': 3}
    assert tune_index(ivf, 'ivf_pq', queries, exact, 0.9, one)[0]['nprobe'] == 7
    assert tune_index(ivf, 'ivf_pq', queries, exact, 0.9, both)[0] == both
    hnsw = new_index('HNSW32', vectors[:3000])
    known = nearest(vectors[:3000], queries)
    assert tune_index(hnsw, 'hnsw', queries, known, 0.9, {'efSearch': 77})[0] == {'efSearch': 77}


def test_exact_search_has_nothing_to_tune(vectors, queries, exact):
    assert tune_index(new_index('Flat', vectors), 'flat', queries, exact, 0.98) == ({}, 1.0)


def test_out_of_reach_the_best_there_is(ivf, queries, exact):
    reached = tune_index(ivf, 'ivf_pq', queries, exact, 0.98)[1]
    assert tune_index(ivf, 'ivf_pq', queries, exact, 1.01)[1] >= reached


def test_the_most_thorough_search_probes_every_list(ivf):
    assert thorough(ivf, 'ivf_pq')['nprobe'] == faiss.extract_index_ivf(ivf).nlist


def test_choices_come_best_first(vectors, queries):
    tries = choose_index(vectors, queries[:100], most=3000)
    assert {attempt['kind'] for attempt in tries} == set(kinds)
    rates = [attempt['queries_per_s'] for attempt in tries if not attempt['why']]
    assert rates == sorted(rates, reverse=True)
    columns = 'kind factory search agreement queries_per_s ms build_s mb why'
    assert list(tries[0]) == columns.split()


def test_only_the_time_of_exact_search_grows(vectors, queries, monkeypatch):
    monkeypatch.setattr(selection, 'speed', lambda *a: (1000.0, 1.0))
    tries = {
        attempt['kind']: attempt for attempt in choose_index(vectors, queries[:100], most=3000)
    }
    assert (tries['flat']['queries_per_s'], tries['flat']['ms']) == (150, 6.667)
    assert (tries['hnsw']['queries_per_s'], tries['hnsw']['ms']) == (1000, 1.0)


def test_too_few_vectors_for_codes(vectors, queries):
    assert {attempt['kind'] for attempt in choose_index(vectors[:500], queries)} == {'flat', 'hnsw'}


def test_without_room_for_exact_search_codes_are_taken(vectors, queries):
    assert choose_index(vectors, queries[:100], memory_mb=3, most=3000)[0]['kind'].startswith('ivf')


# Targets that hold on queries that were not tuned on


def clustered(rng, n, d):
    centres = rng.standard_normal((n // 40, d))
    return centres[rng.integers(0, len(centres), n)] + 0.5 * rng.standard_normal((n, d))


def uniform(rng, n, d):
    return rng.standard_normal((n, d))


def near_copies(rng, n, d):
    originals = rng.standard_normal((n // 20, d))
    return originals[rng.integers(0, len(originals), n)] + 0.02 * rng.standard_normal((n, d))


def flat_world(rng, n, d):
    return rng.standard_normal((n, 5)) @ rng.standard_normal((5, d))


def made(distribution, n=8000, d=32, queries=600):
    rng = np.random.default_rng(0)
    x = distribution(rng, n + queries, d)
    x[n:] += 0.05 * rng.standard_normal((queries, d))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return x[:n], x[n:]


@pytest.mark.parametrize('distribution', [clustered, uniform, near_copies, flat_world])
def test_the_target_is_reached_on_queries_that_were_not_tuned_on(distribution):
    x, q = made(distribution, queries=2000)
    index = new_index(factory('ivf_sq', *x.shape, 'SQfp16'), x)
    _, found = tune_index(index, 'ivf_sq', q[:1000], nearest(x, q[:1000]), 0.95)
    assert found >= 0.95
    others = shares(index, nearest(x, q[1000:]), q[1000:])
    assert others.mean() >= 0.95 - others.std() / len(others) ** 0.5  # but for chance


def test_a_target_is_reached_by_a_margin(ivf, queries, exact, monkeypatch):
    uneven = np.full(400, 0.9999)
    uneven[:4] = 0  # mean 0.99, standard error 0.005

    def by_lists(index, *others):
        return uneven if faiss.extract_index_ivf(index).nprobe == 1 else np.ones(400)

    monkeypatch.setattr('two_tower_vs.tuning.shares', by_lists)
    assert tune_index(ivf, 'ivf_sq', queries, exact, 0.98)[0] == {'nprobe': 1}
    assert tune_index(ivf, 'ivf_sq', queries, exact, 0.987)[0] == {'nprobe': 2}


def test_the_same_vectors_give_the_same_index(vectors, queries):
    x = np.concatenate([vectors, -vectors, vectors[:1000] / 2])[:, :16].copy()
    assert 'RFlat' in factory('ivf_sq', *x.shape)  # codes find the lists
    queries = queries[:, :16].copy()
    exact = nearest(x, queries)
    made = []
    for _ in range(2):
        index = new_index(factory('ivf_sq', *x.shape), x)
        settings = tune_index(index, 'ivf_sq', queries, exact, 0.9)
        made.append((faiss.serialize_index(index).tobytes(), settings))
    assert made[0] == made[1]


def test_an_early_stop_is_for_a_kind_that_reaches_the_target(vectors, queries):
    tries = choose_index(vectors, queries)
    assert [attempt['why'] for attempt in tries] == [''] + [selection.not_needed] * 4
    assert tries[0]['kind'] == 'ivf_sq' and tries[0]['agreement'] >= 0.98


def test_no_early_stop_where_the_target_is_missed(vectors, queries, monkeypatch):
    monkeypatch.setattr(selection, 'tune_index', lambda *a: ({'nprobe': 1}, 0.97))
    tries = choose_index(vectors, queries[:100], most=3000)
    assert selection.not_needed not in {attempt['why'] for attempt in tries}
    assert {attempt['kind'] for attempt in tries} == set(kinds)


def test_no_early_stop_where_much_is_scored(vectors, queries, monkeypatch):
    monkeypatch.setattr(selection, 'tune_index', lambda *a: ({'nprobe': 48}, 0.99))
    tries = choose_index(vectors, queries[:100], most=3000)
    assert selection.not_needed not in {attempt['why'] for attempt in tries}


def test_a_kind_that_was_not_needed_is_built_if_the_first_misses_the_target(monkeypatch):
    x, q = made(clustered, 3000, 32, 100)
    monkeypatch.setattr('two_tower_vs.index.flat_enough', 1)
    monkeypatch.setattr('two_tower_vs.index.spec_of', lambda *a: 'IVF16,PQ1x4fs')  # no good
    skipped = Attempt('flat', 'Flat', why=selection.not_needed)
    first = Attempt('ivf_sq', 'IVF16,PQ2x4fs', agreement=0.99)
    tried = [asdict(first), asdict(skipped)]
    monkeypatch.setattr('two_tower_vs.index.choose_index', lambda *a: tried)
    index = build_index(Embeddings(x, [str(row) for row in range(len(x))]), 'm', q)
    assert index.manifest['kind'] == 'flat'
    assert index.manifest['recall_vs_exact']['value'] == 1


@pytest.mark.parametrize('distribution', [clustered, near_copies, flat_world])
def test_a_sample_promises_no_less_work_than_there_is(distribution):
    x, q = made(distribution, 20_000, 32, 300)
    scored = {}
    for n in (1250, 5000, 20_000):
        index = new_index(factory('ivf_sq', n, 32, 'SQfp16'), x[:n])
        settings = tune_index(index, 'ivf_sq', q, nearest(x[:n], q), 0.95)[0]
        scored[n] = settings['nprobe'] * n / faiss.extract_index_ivf(index).nlist
    assert scored[20_000] <= 2 * grown(scored[1250], scored[5000], 4)  # lists double


def test_lists_are_balanced_even_among_copies():
    x = np.repeat(made(uniform, 50, 16, 1)[0], 100, axis=0)
    found = centres(x, 128)
    assert found.shape == (128, 16) and np.isfinite(found).all()
