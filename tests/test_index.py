"""The index: what it refuses, what it finds, what it keeps of its rows, and files that change while it is used."""

import hashlib
import warnings

import faiss
import numpy as np
import pytest

from two_tower_vs import ann
from two_tower_vs.data import InputError
from two_tower_vs.embed import Embeddings
from two_tower_vs.index import Index, build_index, load_index, save_index, update_index


@pytest.fixture(autouse=True)
def one_thread():
    "The inputs are small; several threads would only wait for each other"
    faiss.omp_set_num_threads(1)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def names(n):
    return [f'{i:05}.png' for i in range(n)]


def some(n=300, d=16, seed=0):
    "Embeddings of n pictures, each file with a content of its own"
    rng = np.random.default_rng(seed)
    contents = rng.integers(0, 256, (n, 16)).astype(np.uint8)
    return Embeddings(unit(rng.standard_normal((n, d))), names(n), contents=contents)


def truly_found(index, x, queries, k=10):
    "Share of the hits of exact search that an index finds, by brute force; copies are as good as each other"
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
    exact = ann.nearest(mapped, queries)
    index = ann.new_index('HNSW8', mapped)
    by_rows = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(index.search(queries, 10)[1], exact.rows)]
    )
    # No copies: as by row number
    assert ann.agreement(index, exact, queries) == pytest.approx(by_rows)
    order = np.random.default_rng(0).permutation(3000)
    other = ann.nearest(cands.vectors, queries)
    other.order = order
    assert ann.agreement(ann.new_index('Flat', cands.vectors[order]), other, queries) == 1


# What an update sees


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


def forged(index, folder, **manifest):
    "Save, and give the manifest other values with a seal that fits"
    import json

    from two_tower_vs.index import _seal

    m = dict(save_index(index, folder), **manifest)
    m = {k: v for k, v in m.items() if v is not Ellipsis}
    (folder / 'manifest.json').write_text(json.dumps(m | {'sha256': _seal(m)}))


def test_a_bundle_of_an_earlier_version_loads_and_is_rebuilt(tmp_path):
    cands = some()
    forged(build_index(cands, 'm', kind='flat'), tmp_path / 'i', rows_sha256=...)
    (tmp_path / 'i/rows.safetensors').unlink()
    old = load_index(tmp_path / 'i', 'm', writable=True)
    assert old.sketches is None and not old.same_picture(np.arange(9), cands.contents[3]).any()
    new, said = update_index(old, cands, 'm', kind='flat')
    assert 'earlier version' in said
    assert new.same_picture(np.arange(9), cands.contents[3])[3]


def test_rows_that_do_not_belong_to_the_index_are_refused(tmp_path):
    index = build_index(some(), 'm')
    save_index(index, tmp_path / 'i')
    with open(tmp_path / 'i/rows.safetensors', 'r+b') as f:
        f.seek(-1, 2)
        f.write(b'x')
    with pytest.raises(
        InputError, match='rows.safetensors is not the file that manifest.json describes'
    ):
        load_index(tmp_path / 'i')
    (tmp_path / 'i/rows.safetensors').unlink()
    with pytest.raises(InputError, match='rows.safetensors is missing'):
        load_index(tmp_path / 'i')
    for sketches in (
        index.sketches[:9],
        index.sketches.astype(np.float64),
        index.sketches * np.nan,
    ):
        save_index(
            Index(index.faiss, index.paths, index.manifest, sketches=sketches), tmp_path / 'i'
        )
        with pytest.raises(InputError, match='rows.safetensors is not what belongs'):
            load_index(tmp_path / 'i')


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
    exact = ann.nearest(cands.vectors, queries)
    calls = [
        lambda: build_index(Embeddings(bad, cands.paths), 'm'),
        lambda: build_index(cands, 'm', bad_queries),
        lambda: update_index(index, Embeddings(bad, cands.paths), 'm'),
        lambda: ann.new_index('Flat', bad),
        lambda: ann.new_index('IVF4,Flat', bad),
        lambda: ann.add(ann.new_index('Flat', cands.vectors), bad),
        lambda: ann.choose(bad, queries),
        lambda: ann.choose(cands.vectors, bad_queries),
        lambda: ann.nearest(cands.vectors, bad_queries),
        lambda: ann.tune(index.faiss, 'flat', bad_queries, exact, 0.9),
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


def test_a_search_that_makes_no_sense_is_refused_with_a_sentence():
    cands = some(50)
    index = build_index(cands, 'm')
    one = cands.vectors[0]
    many = cands.vectors[:5]
    for k in (0, -1, 2.5, '3', None, True, float('nan'), [3]):
        for call in (
            lambda: index.search(many, k),
            lambda: index.hits(one, k),
            lambda: index.batch_hits(many, k),
        ):
            with pytest.raises(InputError, match='Use a whole number, 1 or more'):
                call()
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


# Files that change under a running search

OVERWRITTEN = '''
import sys
from two_tower_vs.index import load_index
import numpy as np
index = load_index(sys.argv[1])
before = index.search(np.eye(4, 1024, dtype=np.float32), 5)[1].tolist()
for name in ('vectors.faiss', 'rows.safetensors'):
    open(f'{sys.argv[1]}/{name}', 'r+b').truncate(0)
assert index.search(np.eye(4, 1024, dtype=np.float32), 5)[1].tolist() == before
index.same_picture(np.arange(5), bytes(16))
print('answered')
'''


def test_an_index_that_is_overwritten_in_place_still_answers(tmp_path):
    import subprocess
    import sys

    save_index(build_index(some(3000, 1024), 'm'), tmp_path / 'i')
    ended = subprocess.run(
        [sys.executable, '-c', OVERWRITTEN, tmp_path / 'i'], capture_output=True, text=True
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-500:])  # -7 is SIGBUS
    assert ended.stdout == 'answered\n'


def test_a_larger_index_is_mapped(tmp_path, monkeypatch):
    import two_tower_vs.index as module

    save_index(build_index(some(3000, 64), 'm'), tmp_path / 'i')
    asked = []
    read = faiss.read_index
    monkeypatch.setattr(
        faiss,
        'read_index',
        lambda file, flags: asked.append(isinstance(file, str)) or read(file, flags),
    )
    for limit, mapped in ((2**30, False), (1000, True)):
        monkeypatch.setattr(module, 'in_memory', limit)
        load_index(tmp_path / 'i')
        assert asked.pop() == mapped
    load_index(tmp_path / 'i', writable=True)
    assert asked.pop() is False
