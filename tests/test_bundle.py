"""The bundle on disk: forged files, files of earlier versions, files that change under a search."""

import json
import subprocess
import sys

import faiss
import numpy as np
import pytest
from made_up import some

from two_tower_vs import bundle, faissfiles
from two_tower_vs.bundle import load_index, save_index, seal, was_edited
from two_tower_vs.errors import InputError
from two_tower_vs.index import Index, build_index
from two_tower_vs.update import update_index


@pytest.fixture(autouse=True)
def one_thread():
    "The inputs are small; several threads would only wait for each other"
    faiss.omp_set_num_threads(1)


def forged(index, folder, **manifest):
    "Save, and give the manifest other values with a seal that fits"
    written = dict(save_index(index, folder), **manifest)
    written = {key: value for key, value in written.items() if value is not Ellipsis}
    (folder / 'manifest.json').write_text(json.dumps(written | {'sha256': seal(written)}))


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


# Forged by someone who knows how: all hashes fit


@pytest.fixture
def index():
    return build_index(some(), 'm', some(9, seed=1).vectors)


def forged_vectors(index, folder, vectors):
    "The bundle with other bytes in vectors.faiss"
    save_index(index, folder)
    (folder / 'vectors.faiss').write_bytes(vectors)
    written = {**index.manifest, 'index_sha256': bundle.file_sha256(folder / 'vectors.faiss')}
    (folder / 'manifest.json').write_text(json.dumps(written | {'sha256': seal(written)}))


def test_an_edited_manifest_is_refused(tmp_path, index):
    save_index(index, tmp_path)
    file = tmp_path / 'manifest.json'
    file.write_text(file.read_text().replace('"rows": ', '"rows": 1'))
    with pytest.raises(InputError, match='was changed since it was written'):
        load_index(tmp_path)


@pytest.mark.parametrize(
    'entry',
    [
        dict(search=[1]),
        dict(search={'nprobe': -5}),
        dict(search={'k_factor_rf': 1e9}),
        dict(dim='256'),
        dict(recall_vs_exact='all'),
    ],
)
def test_a_manifest_that_a_search_could_not_bear_is_refused(tmp_path, index, entry):
    forged(index, tmp_path, **entry)
    with pytest.raises(InputError, match='was changed since it was written'):
        load_index(tmp_path)


def test_a_manifest_with_other_rows_is_refused(tmp_path, index):
    forged(index, tmp_path, rows=7)
    with pytest.raises(InputError, match='tells of 7 and 16'):
        load_index(tmp_path)


def test_a_file_that_asks_for_more_memory_than_it_can_fill_is_refused(tmp_path, index):
    save_index(index, tmp_path)
    data = (tmp_path / 'vectors.faiss').read_bytes()
    at = data.index((index.faiss.ntotal * 16).to_bytes(8, 'little'), 30)
    huge = data[:at] + (2**32).to_bytes(8, 'little') + data[at + 8 :]  # 16 GB
    forged_vectors(index, tmp_path, huge)
    limit = faiss.get_deserialization_vector_byte_limit()
    with pytest.raises(InputError, match='byte_limit'):
        load_index(tmp_path, writable=True)
    with pytest.raises(InputError, match='cannot be used by FAISS'):
        load_index(tmp_path)
    assert faiss.get_deserialization_vector_byte_limit() == limit


def test_an_index_of_distances_is_refused(tmp_path, index):
    distances = faiss.IndexFlatL2(16)
    distances.add(some().vectors)
    forged_vectors(index, tmp_path, faiss.serialize_index(distances).tobytes())
    with pytest.raises(InputError, match='no inner products'):
        load_index(tmp_path)


def test_rows_beyond_the_candidates_are_refused(tmp_path, index):
    numbered = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    numbered.add_with_ids(some().vectors, np.arange(300) + 10**6)
    forged_vectors(index, tmp_path, faiss.serialize_index(numbered).tobytes())
    with pytest.raises(InputError, match='The index names row 1'):
        load_index(tmp_path).hits(some().vectors[0])


@pytest.mark.parametrize('kind', ['flat', 'hnsw', 'ivf_sq', 'ivf_pq', 'ivf_rabitq'])
def test_a_loaded_index_answers_like_the_one_that_was_saved(tmp_path, kind):
    queries = some(50, 32, seed=1).vectors
    index = build_index(some(2000, 32), 'm', queries, kind)
    save_index(index, tmp_path)
    again = load_index(tmp_path, 'm')
    assert (again.paths, again.manifest) == (index.paths, index.manifest)
    for a, b in zip(again.search(queries, 10), index.search(queries, 10)):
        assert np.array_equal(a, b)  # settings included


def test_a_new_part_file_of_the_candidates_is_an_edit(tmp_path, index):
    parts = tmp_path / 'parts'
    parts.mkdir()
    (parts / '0.parquet').write_bytes(b'0')
    save_index(index, tmp_path / 'i', parts)
    assert not was_edited(index, parts)
    (parts / '1.parquet').write_bytes(b'1')
    assert was_edited(index, parts)


# Files that change under a running search

OVERWRITTEN = '''
import sys
from two_tower_vs.bundle import load_index
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
    save_index(build_index(some(3000, 1024), 'm'), tmp_path / 'i')
    ended = subprocess.run(
        [sys.executable, '-c', OVERWRITTEN, tmp_path / 'i'], capture_output=True, text=True
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-500:])  # -7 is SIGBUS
    assert ended.stdout == 'answered\n'


def test_a_larger_index_is_mapped(tmp_path, monkeypatch):
    save_index(build_index(some(3000, 64), 'm'), tmp_path / 'i')
    asked = []
    read = faiss.read_index
    monkeypatch.setattr(
        faiss,
        'read_index',
        lambda file, flags: asked.append(isinstance(file, str)) or read(file, flags),
    )
    for limit, mapped in ((2**30, False), (1000, True)):
        monkeypatch.setattr(faissfiles, 'in_memory', limit)
        load_index(tmp_path / 'i')
        assert asked.pop() == mapped
    load_index(tmp_path / 'i', writable=True)
    assert asked.pop() is False
