"""Kinds of index, tuning, selection: numbers that must hold, without examples that teach."""

import faiss
import numpy as np
import pytest

from two_tower_vs import selection
from two_tower_vs.ann import example_vectors, factory, kinds, new_index, sample
from two_tower_vs.selection import choose_index
from two_tower_vs.tuning import agreement, nearest, thorough, tune_index


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
    tries = choose_index(vectors, queries, most=3000)
    assert {attempt['kind'] for attempt in tries} == set(kinds)
    rates = [attempt['queries_per_s'] for attempt in tries if not attempt['why']]
    assert rates == sorted(rates, reverse=True)
    columns = 'kind factory search agreement queries_per_s ms build_s mb why'
    assert list(tries[0]) == columns.split()


def test_only_the_time_of_exact_search_grows(vectors, queries, monkeypatch):
    monkeypatch.setattr(selection, 'speed', lambda *a: (1000.0, 1.0))
    tries = {attempt['kind']: attempt for attempt in choose_index(vectors, queries, most=3000)}
    assert (tries['flat']['queries_per_s'], tries['flat']['ms']) == (150, 6.667)
    assert (tries['hnsw']['queries_per_s'], tries['hnsw']['ms']) == (1000, 1.0)


def test_too_few_vectors_for_codes(vectors, queries):
    assert {attempt['kind'] for attempt in choose_index(vectors[:500], queries)} == {'flat', 'hnsw'}


def test_without_room_for_exact_search_codes_are_taken(vectors, queries):
    assert choose_index(vectors, queries, memory_mb=3, most=3000)[0]['kind'].startswith('ivf')
