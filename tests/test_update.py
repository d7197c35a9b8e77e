"""Updates: what they see, and that rows stay with their pictures."""

import warnings

import faiss
import numpy as np
import pytest
from made_up import clusters, some, unit

from two_tower_vs.bundle import load_index, save_index
from two_tower_vs.index import build_index
from two_tower_vs.tuning import agreement, nearest
from two_tower_vs.update import update_index
from two_tower_vs.vectors import Embeddings


@pytest.fixture(autouse=True)
def one_thread():
    "The inputs are small; several threads would only wait for each other"
    faiss.omp_set_num_threads(1)


def saved(index, folder):
    save_index(index, folder)
    return load_index(folder, 'm', writable=True)


@pytest.mark.parametrize(
    'options',
    [
        dict(factory='PQ8x4'),
        dict(factory='IVF16,PQ8x4fs'),
        dict(kind='ivf_pq'),
        dict(kind='flat'),
        dict(kind='hnsw'),
    ],
)
def test_replaced_pictures_are_found_under_any_code(tmp_path, options):
    cands = some(2000, 32)
    queries = some(50, 32, seed=1).vectors
    now = some(2000, 32)
    now.vectors[300:400] = unit(
        now.vectors[300:400] + 0.05 * np.roll(now.vectors[300:400], 1, axis=1)
    )
    now.contents[300:400] += 1
    old = saved(build_index(cands, 'm', queries, **options), tmp_path / 'i')
    new, said = update_index(old, now, 'm', queries, **options)
    assert '100 changed' in said
    again = saved(new, tmp_path / 'i')
    assert update_index(again, now, 'm', queries, **options)[1] == 'up to date'
    assert np.array_equal(again.contents, now.contents)


def test_a_last_bit_changes_nothing(tmp_path):
    cands = some(2000, 32)
    nudged = Embeddings(
        np.nextafter(cands.vectors, np.float32(1)), cands.paths, contents=cands.contents
    )
    old = saved(build_index(cands, 'm', factory='PQ8x4'), tmp_path / 'i')
    assert update_index(old, nudged, 'm', factory='PQ8x4') == (old, 'up to date')


def test_a_file_that_looks_the_same_is_noted(tmp_path):
    cands = some()
    now = some()
    now.contents[[3, 4]] += 1
    old = saved(build_index(cands, 'm', kind='flat'), tmp_path / 'i')
    index, said = update_index(old, now, 'm', kind='flat')
    assert said == '2 in another file that looks the same'
    assert index.same_picture(np.arange(300), now.contents[3]).nonzero()[0].tolist() == [3]


@pytest.mark.parametrize('kind', ['flat', 'ivf_pq'])
def test_rows_stay_with_their_pictures(tmp_path, kind):
    full = some(2000, 32)

    def part(rows):
        return Embeddings(
            full.vectors[rows].copy(), [full.paths[i] for i in rows], contents=full.contents[rows]
        )

    index = saved(build_index(part(np.arange(1500)), 'm', kind=kind), tmp_path / 'i')
    steps = [
        np.r_[1500:2000, 0:1500],
        np.arange(1999, -1, -1),
        np.arange(5, 2000),
        np.arange(0, 1900),
    ]
    for rows in steps:
        index = saved(update_index(index, part(rows), 'm', kind=kind)[0], tmp_path / 'i')
        assert sorted(index.paths) == sorted(full.paths[i] for i in rows)
        for path, content in zip(index.paths, index.contents):
            assert np.array_equal(content, full.contents[full.paths.index(path)])
        assert update_index(index, part(rows), 'm', kind=kind)[1] == 'up to date'


def test_queries_that_come_later_tune_the_index(tmp_path):
    cands = some(2000, 32)
    queries = some(50, 32, seed=1).vectors
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        old = saved(build_index(cands, 'm', kind='ivf_pq'), tmp_path / 'i')
    index, said = update_index(old, cands, 'm', queries, kind='ivf_pq')
    assert said == 'tuned, since there are queries now'
    assert index.manifest['recall_vs_exact']['queries'] == 50


# Every kind of change, for every kind of index

CLUSTERS, QUERIES = clusters()
FIRST = np.arange(1500)
ALL = np.arange(len(CLUSTERS))


def part(rows):
    vectors = CLUSTERS.vectors[rows].copy()
    return Embeddings(vectors, [CLUSTERS.paths[row] for row in rows])


def replaced():
    "All, one of them with another picture under its name"
    cands = part(ALL)
    cands.vectors[7] = CLUSTERS.vectors[8]
    return cands


def nudged():
    "All, as when a block is cut elsewhere: with other last bits"
    cands = part(ALL)
    cands.vectors[:] = np.nextafter(cands.vectors, np.float32(1))
    return cands


CASES = [
    (FIRST, part(FIRST), 'up to date'),
    (FIRST, part(np.r_[1500:1900, FIRST]), '400 added'),
    (FIRST, part(FIRST[20:]), '20 removed; filled again without training'),
    (FIRST, part(np.r_[10:1600]), '100 added, 10 removed; filled again without training'),
    (ALL, replaced(), '1 changed; filled again without training'),
    (ALL, part(ALL[:800]), 'rebuilt: 800 candidates, and it was trained on 1,915'),
    (ALL, nudged(), 'up to date'),
]


@pytest.mark.parametrize('kind', ['flat', 'hnsw', 'ivf_sq', 'ivf_pq', 'ivf_rabitq'])
@pytest.mark.parametrize('before, cands, words', CASES, ids=[words for _, _, words in CASES])
def test_an_update_is_like_an_index_built_anew(tmp_path, kind, before, cands, words):
    old = saved(build_index(part(before), 'm', QUERIES, kind), tmp_path)
    index, said = update_index(old, cands, 'm', QUERIES, kind=kind)
    if kind.startswith('ivf'):
        assert said == words
    elif 'filled again' in words:  # these cannot be emptied
        assert said == f'rebuilt: {words.split(";")[0]}'
    assert sorted(index.paths) == sorted(cands.paths)
    assert index.faiss.ntotal == index.manifest['rows'] == len(cands)
    vectors = cands.vectors[cands.rows(index.paths)]  # row i is paths[i], still
    found = agreement(index.faiss, nearest(vectors, QUERIES), QUERIES)
    assert found >= 0.97
    assert index.manifest['recall_vs_exact']['value'] == pytest.approx(found, abs=0.002)
    rows = index.search(cands.vectors[:50], 10)[1][:, 0]
    assert np.mean([index.paths[row] == path for row, path in zip(rows, cands.paths)]) > 0.9


def test_another_model_or_other_settings_need_a_new_index(tmp_path):
    index = saved(build_index(part(FIRST), 'm', QUERIES, 'ivf_pq'), tmp_path)
    want = 'rebuilt: the model or the settings are others'
    for model, target in (('m', 0.9), ('n', 0.98)):
        options = dict(kind='ivf_pq', recall_target=target)
        assert update_index(index, part(FIRST), model, QUERIES, **options)[1] == want


def test_what_was_appended_comes_last_in_the_bundle_too(tmp_path):
    old = saved(build_index(part(FIRST), 'm', QUERIES, 'ivf_pq'), tmp_path)
    cands = part(np.r_[1500:1900, FIRST])
    index = update_index(old, cands, 'm', QUERIES, kind='ivf_pq')[0]
    assert saved(index, tmp_path).paths == CLUSTERS.paths[:1900]


@pytest.mark.parametrize('factory', ['IVF16,Flat', 'PQ8x4'])
def test_sketches_decide_where_codes_tell_little(tmp_path, factory):
    save_index(build_index(part(ALL), 'm', QUERIES, factory=factory), tmp_path)
    for cands, words in (
        (part(ALL), 'up to date'),
        (nudged(), 'up to date'),
        (replaced(), 'rebuilt: 1 changed'),
    ):
        old = load_index(tmp_path, 'm', writable=True)
        assert update_index(old, cands, 'm', QUERIES, factory=factory)[1] == words
