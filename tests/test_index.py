"""The index: what it finds, what it refuses, and what it knows of its rows."""

import hashlib
import warnings

import faiss
import numpy as np
import pytest
from made_up import clusters, names, some, unit

from two_tower_vs import ann, selection, tuning
from two_tower_vs.bundle import load_index, save_index
from two_tower_vs.errors import InputError
from two_tower_vs.index import Index, build_index
from two_tower_vs.update import update_index
from two_tower_vs.vectors import Embeddings


@pytest.fixture(autouse=True)
def one_thread():
    "The inputs are small; several threads would only wait for each other"
    faiss.omp_set_num_threads(1)


def truly_found(index, x, queries, k=10):
    "Share of the hits of exact search that an index finds, by brute force; copies count alike"
    exact = queries.astype(np.float64) @ x.T.astype(np.float64)
    least = np.sort(exact, axis=1)[:, -k]
    _, rows = index.search(queries, k)
    found = 0
    for scores, limit, own in zip(exact, least, rows.tolist()):
        found += sum(scores[row] >= limit - 1e-5 for row in set(own) - {-1})
    return found / (k * len(queries))


def test_the_same_picture_is_known_by_its_content(tmp_path):
    cands = some(40)
    cands.contents[7] = cands.contents[5]  # a copy under another name
    digest = hashlib.sha256(b'a picture').digest()
    cands.contents[3] = np.frombuffer(digest[:16], np.uint8)
    save_index(build_index(cands, 'm'), tmp_path / 'i')
    index = load_index(tmp_path / 'i')
    rows = np.array([3, 5, 7, -1])
    for content in (digest, digest[:16], np.frombuffer(digest[:16], np.uint8)):
        assert index.same_picture(rows, content).tolist() == [True, False, False, False]
    assert index.same_picture(rows, cands.contents[5].tobytes()).tolist() == [
        False,
        True,
        True,
        False,
    ]
    assert index.same_picture(rows[None], cands.contents[5]).shape == (1, 4)
    assert index.same_picture(rows, None).tolist() == [False] * 4
    unknown = build_index(Embeddings(cands.vectors, cands.paths), 'm')
    assert not unknown.same_picture(rows, digest).any()
    assert index.same_picture(rows, digest).dtype == bool


# Agreement and tuning by score


def five_vectors():
    "2,000 vectors, of which only five are different, and queries near them"
    rng = np.random.default_rng(0)
    five = unit(rng.standard_normal((5, 64)))
    x = np.repeat(five, 400, axis=0)[rng.permutation(2000)]
    queries = unit(np.repeat(five, 40, axis=0) + 0.15 * rng.standard_normal((200, 64)))
    return x, queries


@pytest.mark.parametrize('kind', ['ivf_pq', 'ivf_rabitq', 'hnsw'])
def test_copies_do_not_mislead_the_tuner(kind):
    x, queries = five_vectors()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        index = build_index(Embeddings(x, names(2000)), 'm', queries, kind=kind)
    found = truly_found(index, x, queries)
    assert found >= 0.98
    assert index.manifest['recall_vs_exact']['value'] == pytest.approx(found, abs=1e-3)


def test_no_false_alarm_where_each_picture_is_there_three_times():
    rng = np.random.default_rng(1)
    centres = unit(rng.standard_normal((40, 64)))
    once = unit(centres[rng.integers(0, 40, 2000)] + 0.03 * rng.standard_normal((2000, 64)))
    x = np.concatenate([once] * 3)
    queries = unit(once[rng.integers(0, 2000, 200)] + 0.02 * rng.standard_normal((200, 64)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        index = build_index(Embeddings(x, names(6000)), 'm', queries, kind='hnsw')
    assert truly_found(index, x, queries) >= 0.98


def test_hits_that_are_missing_count_as_missing():
    cands = some(2000, 32)
    queries = some(100, 32, seed=1).vectors
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the target is out of reach
        index = build_index(cands, 'm', queries, kind='ivf_pq', nprobe=1, k_factor=1)
    found = truly_found(index, cands.vectors, queries)
    assert found < 0.9
    assert index.manifest['recall_vs_exact']['value'] == pytest.approx(found, abs=1e-3)


def test_agreement_of_mapped_vectors_and_of_rows_in_another_order(tmp_path):
    cands = some(3000, 32)
    queries = some(50, 32, seed=1).vectors
    mapped = np.memmap(tmp_path / 'x', np.float32, 'w+', shape=cands.vectors.shape)
    mapped[:] = cands.vectors
    exact = tuning.nearest(mapped, queries)
    index = ann.new_index('HNSW8', mapped)
    by_rows = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(index.search(queries, 10)[1], exact.rows)]
    )
    # No copies: as by row number
    assert tuning.agreement(index, exact, queries) == pytest.approx(by_rows)
    order = np.random.default_rng(0).permutation(3000)
    other = tuning.nearest(cands.vectors, queries)
    other.order = order
    assert tuning.agreement(ann.new_index('Flat', cands.vectors[order]), other, queries) == 1


# Numbers that are none


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    cands = some(700)
    queries = some(20, seed=1).vectors
    bad = some(700).vectors
    bad[17, 3] = value
    bad_queries = queries.copy()
    bad_queries[5, 0] = value
    index = build_index(cands, 'm')
    exact = tuning.nearest(cands.vectors, queries)
    calls = [
        lambda: build_index(Embeddings(bad, cands.paths), 'm'),
        lambda: build_index(cands, 'm', bad_queries),
        lambda: update_index(index, Embeddings(bad, cands.paths), 'm'),
        lambda: ann.new_index('Flat', bad),
        lambda: ann.new_index('IVF4,Flat', bad),
        lambda: ann.add(ann.new_index('Flat', cands.vectors), bad),
        lambda: selection.choose_index(bad, queries),
        lambda: selection.choose_index(cands.vectors, bad_queries),
        lambda: tuning.nearest(cands.vectors, bad_queries),
        lambda: tuning.tune_index(index.faiss, 'flat', bad_queries, exact, 0.9),
        lambda: index.search(bad_queries),
        lambda: index.hits(bad_queries[5]),
        lambda: index.batch_hits(bad_queries),
    ]
    for call in calls:
        with pytest.raises(InputError, match='NaN or infin'):
            call()
    with pytest.raises(InputError, match='00017.png'):
        build_index(Embeddings(bad, cands.paths), 'm')
    with pytest.raises(InputError, match='row 17'):
        ann.new_index('Flat', bad)


def test_an_index_with_numbers_that_are_none_is_safe(tmp_path):
    cands = some(50)
    for kind in ('Flat', 'HNSW8', 'IVF2,Flat'):
        inner = faiss.index_factory(16, kind, faiss.METRIC_INNER_PRODUCT)
        bad = cands.vectors.copy()
        bad[7] = np.nan
        inner.train(cands.vectors)
        inner.add(bad)
        manifest = build_index(cands, 'm').manifest
        save_index(Index(inner, cands.paths, manifest), tmp_path / 'i')
        hits = load_index(tmp_path / 'i').hits(cands.vectors[3], 50)  # or it is refused
        assert np.isfinite(hits.score).all() and '00007.png' not in set(hits.cand_path)


# The Python boundary


@pytest.mark.parametrize('k', [0, -1, 2.5, '3', None, True, float('nan'), [3]])
def test_a_number_of_hits_that_makes_no_sense_is_refused(k):
    cands = some(50)
    index = build_index(cands, 'm')
    one = cands.vectors[0]
    many = cands.vectors[:5]
    for search, vectors in ((index.search, many), (index.hits, one), (index.batch_hits, many)):
        with pytest.raises(InputError, match='Use a whole number, 1 or more'):
            search(vectors, k)


def test_vectors_that_make_no_sense_are_refused_with_a_sentence():
    cands = some(50)
    index = build_index(cands, 'm')
    one = cands.vectors[0]
    many = cands.vectors[:5]
    for vectors in (
        None,
        'abc',
        [['a', 'b']],
        object(),
        [[1, 2], [3]],
        np.array([[None] * 16]),
        {'a': 1},
        many.astype(complex),
        np.zeros((2, 16), bool),
    ):
        for call in (index.search, index.batch_hits, index.hits):
            with pytest.raises(InputError, match='is no vector'):
                call(vectors)
    for vectors in (one, many[None], np.float32(3)):
        for call in (index.search, index.batch_hits):
            with pytest.raises(InputError, match='have the shape'):
                call(vectors)
    with pytest.raises(InputError, match='have the shape'):
        index.hits(many)
    for width in (0, 1, 15, 17, 1000):
        with pytest.raises(InputError, match='dimensions, the index has 16'):
            index.search(np.ones((2, width)))
    with pytest.raises(InputError, match='NaN or infin'):
        index.search(np.full((1, 16), 1e300))  # too large for float32


def test_what_can_be_converted_is_searched_with():
    cands = some(50)
    index = build_index(cands, 'm')
    many = cands.vectors[:5]
    want = index.search(many, 3)
    for vectors in (
        many.astype(np.float64),
        many.tolist(),
        many[:, ::-1][:, ::-1],
        np.asfortranarray(many),
    ):
        for a, b in zip(index.search(vectors, 3), want):
            assert np.array_equal(a, b)
    assert index.search(many, 10**12)[1].shape == (5, 50)
    assert index.search(many, np.int64(3))[1].shape == (5, 3)
    assert index.search(many[:0], 3)[1].shape == (0, 3)
    assert list(index.batch_hits(many[:0])) == []


def test_nothing_to_index_is_refused(tmp_path):
    cands = some(50)
    nothing = Embeddings(np.empty((0, 16), np.float32), [])
    with pytest.raises(InputError, match='no candidates to index'):
        build_index(nothing, 'm')
    with pytest.raises(InputError, match='no candidates to index'):
        update_index(build_index(cands, 'm'), nothing, 'm')
    for wrong in (None, cands.vectors, 'abc'):
        with pytest.raises(InputError, match='is no Embeddings'):
            build_index(wrong, 'm')
    with pytest.raises(InputError, match='come from different models'):
        build_index(cands, 'm', np.ones((3, 8)))
    for wrong in (None, 3, ['a']):
        with pytest.raises(InputError, match='is no folder'):
            load_index(wrong)


# Searching


@pytest.fixture(scope='module')
def built():
    "(embeddings, queries, an index of each kind)"
    cands, queries = clusters()
    kinds = 'flat', 'hnsw', 'ivf_pq', 'ivf_rabitq'
    return cands, queries, {kind: build_index(cands, 'm', queries, kind) for kind in kinds}


@pytest.mark.parametrize('kind', ['flat', 'hnsw', 'ivf_pq', 'ivf_rabitq'])
def test_together_or_one_by_one_the_same_hits(built, kind):
    _, queries, indexes = built
    together = list(indexes[kind].batch_hits(queries[:90], 4, block=40))
    alone = [indexes[kind].hits(query, 4) for query in queries[:90]]
    for many, one in zip(together, alone):
        assert many.index.tolist() == [0, 1, 2, 3]
        assert many['rank'].tolist() == [1, 2, 3, 4]
        assert many.score.to_numpy() == pytest.approx(one.score.to_numpy(), abs=1e-5)
    same = [list(many.cand_path) == list(one.cand_path) for many, one in zip(together, alone)]
    assert np.mean(same) > 0.95


class Spy:
    "In how many threads does FAISS search, and how many queries at once?"

    d = 256

    def __init__(self):
        self.seen = []

    def search(self, vectors, k):
        self.seen.append((faiss.omp_get_max_threads(), len(vectors)))
        return np.zeros((len(vectors), k), 'f'), np.zeros((len(vectors), k), int)


@pytest.mark.parametrize('n, threads', [(100, 1), (100_000, 2)])
def test_one_query_takes_one_thread_unless_the_index_is_large(n, threads):
    faiss.omp_set_num_threads(2)
    spy = Spy()
    index = Index(spy, ['a'] * n, {})
    index.hits(np.ones(256))
    list(index.batch_hits(np.ones((5, 256)), 2, block=3))
    assert spy.seen == [(threads, 1), (2, 3), (2, 2)]
    assert faiss.omp_get_max_threads() == 2


def test_a_copy_on_gpus_is_searched_instead(built):
    cands, queries, indexes = built
    spy = Spy()
    spy.d = 32
    Index(indexes['flat'].faiss, cands.paths, {}, gpu=spy).search(queries[:7])
    assert [queries for _, queries in spy.seen] == [7]


def test_fewer_candidates_than_hits():
    cands = some(3)
    index = build_index(cands, 'm', some(9, seed=1).vectors)
    assert len(index.hits(cands.vectors[0], 10)) == 3
    assert index.manifest['recall_vs_exact']['k'] == 3


# Building


def test_settings_that_are_given_are_kept(built):
    cands, queries, _ = built
    built = build_index(cands, 'm', queries, factory='IVF16,Flat', nprobe=3).manifest
    assert [built['kind'], built['factory'], built['search']] == [
        'factory',
        'IVF16,Flat',
        {'nprobe': 3},
    ]
    hnsw = build_index(cands, 'm', queries, 'hnsw', ef_search=77).manifest
    assert hnsw['search'] == {'efSearch': 77}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # one list is too few
        pq = build_index(cands, 'm', queries, 'ivf_pq', nprobe=1).manifest
    assert pq['search']['nprobe'] == 1


@pytest.mark.parametrize(
    'bad, says',
    [
        (dict(recall_target=2.0), 'index'),
        (dict(memory_mb=0), 'index'),
        (dict(nprobe=0), 'index'),
        (dict(k_factor=1e9), 'index'),
        (dict(factory='HNSW1000000'), 'index.factory'),
        (dict(factory='IDMap,Flat'), 'index.factory'),
        (dict(factory='Nonsense'), "factory 'Nonsense' is not"),
        (dict(factory='IVF64,Flat'), 'cannot be trained on 20 candidates'),
        (dict(kind='hnsw', nprobe=3), 'no search parameter nprobe'),
        (dict(dim=17), 'Use 1 to 16'),
    ],
)
def test_what_cannot_be_built_is_refused(bad, says):
    with pytest.raises(InputError, match=says):
        build_index(some(20), 'm', some(9, seed=1).vectors, **bad)


def test_warnings_when_nobody_knows_how_good_it_is(built):
    cands, queries, _ = built
    with pytest.warns(UserWarning, match='No setting of this index reaches'):
        build_index(cands, 'm', queries, 'ivf_pq', nprobe=1, k_factor=1)
    with pytest.warns(UserWarning, match='no queries to measure'):
        index = build_index(cands, 'm')
    assert index.manifest['recall_vs_exact'] is None


# Shorter vectors


def test_short_indexes_are_tuned_on_short_queries(built):
    cands, queries, _ = built
    with pytest.warns(UserWarning, match='not trained'):
        index = build_index(cands, 'm', queries, 'ivf_pq', dim=16, sizes=None)
    assert index.manifest['factory'].startswith('IVF32,PQ4x4')
    assert [index.manifest[key] for key in ('dim', 'model_dim')] == [16, 32]
    assert index.manifest['recall_vs_exact']['value'] >= 0.95
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        build_index(cands, 'm', queries, dim=32)
    with pytest.raises(InputError, match='8 dimensions, the index has 16'):
        index.search(np.ones((1, 8)))


@pytest.mark.parametrize('options', [dict(kind='flat'), dict(kind='hnsw', ef_search=512)])
def test_a_short_index_searches_like_exact_search(built, options):
    cands, queries, _ = built
    index = build_index(cands, 'm', queries, dim=16, sizes=[16], **options)
    short = unit(queries[:, :16])
    cosines = short @ unit(cands.vectors[:, :16]).T
    best = np.argsort(-cosines, axis=1)[:, :5]
    scores, rows = index.search(queries, 5)
    assert scores == pytest.approx(np.take_along_axis(cosines, best, 1), abs=1e-5)
    assert (rows == best).mean() > 0.99
    assert np.array_equal(index.search(short, 5)[1], rows)


def test_a_manifest_of_the_earlier_format_has_no_model_dim(built):
    cands, queries, indexes = built
    flat = indexes['flat']
    manifest = {key: value for key, value in flat.manifest.items() if key != 'model_dim'}
    old = Index(flat.faiss, cands.paths, manifest)
    assert np.array_equal(old.search(queries, 3)[1], flat.search(queries, 3)[1])
