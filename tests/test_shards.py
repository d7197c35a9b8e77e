"""An index in several files: built beside an older one, known by samples, brought up to date."""

import json
import re
import shutil

import faiss
import numpy as np
import pytest
from made_up import some

from two_tower_vs import bundle, shards
from two_tower_vs.bundle import load_index, remove_strays, save_index, seal
from two_tower_vs.errors import InputError
from two_tower_vs.index import build_index
from two_tower_vs.pathcolumn import PathColumn
from two_tower_vs.update import update_index
from two_tower_vs.vectors import Embeddings


@pytest.fixture(autouse=True)
def one_thread():
    "The inputs are small; several threads would only wait for each other"
    faiss.omp_set_num_threads(1)


def parts(folder):
    return sorted(folder.glob('vectors*.faiss'))


def without(cands, rows):
    keep = np.setdiff1d(np.arange(len(cands)), rows)
    paths = [cands.paths[row] for row in keep]
    return Embeddings(cands.vectors[keep], paths, contents=cands.contents[keep])


@pytest.fixture
def cands():
    return some(6000, 256)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'index'


def built(cands, folder, kind='flat', queries=None, **options):
    return build_index(cands, 'm', queries, kind, file_mb=1, folder=folder, **options)


@pytest.mark.parametrize('kind', ['flat', 'hnsw', 'ivf_sq', 'ivf_pq', 'ivf_rabitq'])
def test_several_files_find_what_one_finds(kind, cands, folder):
    queries = cands.vectors[:200]
    index = built(cands, folder, kind, queries)
    one = build_index(cands, 'm', queries, kind)
    assert len(index.files) > 1 and index.faiss.ntotal == 6000
    recall = [each.manifest['recall_vs_exact']['value'] for each in (index, one)]
    assert recall[0] > 0.97 and recall[1] > 0.97
    save_index(index, folder)
    again = load_index(folder, 'm', whole=True)
    for before, after in zip(index.search(queries, 10), again.search(queries, 10)):
        assert np.array_equal(before, after)
    assert (again.search(queries, 1)[1][:, 0] == np.arange(200)).mean() > 0.99


def test_a_vector_that_is_no_number_is_named_by_its_row_in_the_whole(cands, folder):
    cands.vectors[4321, 7] = np.nan
    trained = faiss.IndexFlatIP(256)
    with pytest.raises(InputError, match='row 4321'):
        shards.fill_files(trained, cands.vectors, folder, 1000)


def test_paths_of_a_large_index_are_mapped_and_its_table_is_there(cands, folder):
    save_index(built(cands, folder), folder)
    assert isinstance(load_index(folder).paths, PathColumn)
    assert (folder / 'candidates.csv').read_text().split()[1:] == cands.paths


def test_without_pyarrow_the_table_is_read(cands, folder, monkeypatch):
    monkeypatch.setattr(bundle, 'has_columns', lambda: False)
    save_index(built(cands, folder), folder)
    assert not (folder / 'candidates.arrow').exists()
    assert load_index(folder).paths == cands.paths


def test_a_new_build_lies_beside_the_old_one_until_it_is_saved(cands, folder):
    save_index(built(cands, folder), folder)
    old = load_index(folder)
    before = parts(folder)
    new = built(cands, folder, 'ivf_sq')
    assert len(parts(folder)) == len(before) + len(new.files)
    assert load_index(folder, whole=True).manifest == old.manifest
    save_index(new, folder)
    assert parts(folder) == sorted(new.files)
    assert old.hits(cands.vectors[3]).cand_path[0] == cands.paths[3]  # its files are mapped


def test_what_a_killed_build_left_is_removed(cands, folder):
    save_index(built(cands, folder), folder)
    kept = parts(folder)
    built(cands, folder, 'ivf_sq')  # and never saved
    remove_strays(folder)
    assert parts(folder) == kept
    load_index(folder, whole=True)


def test_one_file_and_several_replace_each_other(cands, folder):
    save_index(built(cands, folder), folder)
    save_index(build_index(cands, 'm', kind='flat'), folder)
    assert [file.name for file in parts(folder)] == ['vectors.faiss']
    assert load_index(folder).manifest['format'] == 1
    assert not (folder / 'candidates.arrow').exists()
    save_index(built(cands, folder), folder)
    assert load_index(folder).manifest['format'] == 2
    assert not (folder / 'vectors.faiss').exists()


def test_files_of_another_folder_are_copied(cands, folder, tmp_path):
    index = built(cands, tmp_path / 'elsewhere')
    save_index(index, folder)
    assert len(parts(folder)) == len(parts(tmp_path / 'elsewhere')) > 1
    load_index(folder, whole=True)


@pytest.mark.parametrize('change', ['cut', 'missing', 'other'])
def test_a_damaged_file_is_named(change, cands, folder):
    save_index(built(cands, folder), folder)
    file = parts(folder)[1]
    data = file.read_bytes()
    file.unlink()
    if change != 'missing':
        file.write_bytes(data[:-1] if change == 'cut' else bytes(len(data)))
    with pytest.raises(InputError, match=re.escape(f'{file} is ')) as refused:
        load_index(folder)
    assert str(refused.value).endswith('Rebuild it with --stage index.')


def test_only_the_whole_file_shows_a_byte_between_samples(cands, folder, monkeypatch):
    monkeypatch.setattr('two_tower_vs.filefacts._blocks', 2)
    save_index(built(cands, folder), folder)
    with parts(folder)[0].open('r+b') as file:
        file.seek(500_000)
        file.write(b'????')
    load_index(folder)
    with pytest.raises(InputError, match='is not the file that manifest.json describes'):
        load_index(folder, whole=True)


@pytest.mark.parametrize('name', ['../x.faiss', '/etc/passwd', 'vectors-0-0.faiss', 7])
def test_a_manifest_leads_to_no_file_outside(name, cands, folder):
    save_index(built(cands, folder), folder)
    manifest = json.loads((folder / 'manifest.json').read_text())
    manifest['files'][0]['name'] = name
    (folder / 'manifest.json').write_text(json.dumps(manifest | {'sha256': seal(manifest)}))
    with pytest.raises(InputError, match='is damaged, or was changed'):
        load_index(folder)


@pytest.mark.parametrize('path', ['../../secret.png', '/etc/passwd', 'a\rb.png'])
def test_a_path_that_leaves_the_folder_is_refused(path, cands, folder):
    index = built(cands, folder)
    index.paths[77] = path
    save_index(index, folder)
    with pytest.raises(InputError, match='candidates.arrow row'):
        load_index(folder)


@pytest.mark.parametrize('kind', ['flat', 'ivf_sq'])
def test_an_update_fills_again_beside(kind, cands, folder):
    few = without(cands, np.arange(3, 9))
    save_index(built(few, folder, kind), folder)
    old_files = parts(folder)
    old = load_index(folder, 'm', writable=True)
    new, said = update_index(old, cands, 'm', kind=kind, file_mb=1, folder=folder)
    assert said == '6 added; filled again without training'
    assert set(old_files) < set(parts(folder))
    save_index(new, folder)
    again = load_index(folder, 'm', whole=True)
    assert list(again.paths) == cands.paths and not set(old_files) & set(parts(folder))
    assert again.hits(cands.vectors[5]).cand_path[0] == cands.paths[5]
    assert update_index(again, cands, 'm', kind=kind, file_mb=1, folder=folder)[1] == 'up to date'


def test_removed_candidates_are_gone(cands, folder):
    save_index(built(cands, folder, 'ivf_sq'), folder)
    few = without(cands, [17])
    old = load_index(folder, 'm', writable=True)
    new, said = update_index(old, few, 'm', kind='ivf_sq', file_mb=1, folder=folder)
    assert said == '1 removed; filled again without training'
    save_index(new, folder)
    assert cands.paths[17] not in set(load_index(folder).hits(cands.vectors[17], 50).cand_path)


def test_the_worse_of_two_plans_leaves_no_files(cands, folder):
    with pytest.warns(UserWarning, match='No setting of this index reaches'):
        index = built(cands, folder, 'ivf_pq', cands.vectors[:50], recall_target=1.0, nprobe=1)
    assert parts(folder) == sorted(index.files)


def in_files(ran, cli, monkeypatch):
    "The project with an index in several files, and what its stage says"
    monkeypatch.setattr('two_tower_vs.index.rows_a_file', lambda rows, *_: min(rows, 20))
    shutil.rmtree(ran / 'out/index')
    status, out, err = cli('--config', ran / 'config.yaml', '--stage', 'index')
    assert status == 0, err
    return out


def test_every_stage_works_with_several_files(ran, cli, monkeypatch):
    query = ['--config', ran / 'config.yaml', '--stage', 'query', '--image', ran / 'images/line']
    assert cli(*query)[0] == 0
    before = json.loads((ran / 'out/query.json').read_text())
    assert 'index: built; 58 vectors' in in_files(ran, cli, monkeypatch)
    assert len(parts(ran / 'out/index')) == 3
    status, _, err = cli(*query, '--verify')
    assert status == 0, err
    after = json.loads((ran / 'out/query.json').read_text())
    assert after['queries'] == before['queries']
    status, _, err = cli('--config', ran / 'config.yaml', '--stage', 'report')
    assert status == 0, err


@pytest.mark.rest
def test_verify_finds_what_samples_do_not(ran, cli, monkeypatch):
    monkeypatch.setattr('two_tower_vs.filefacts._blocks', 0)
    in_files(ran, cli, monkeypatch)
    file = parts(ran / 'out/index')[0]
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data)
    query = ['--config', ran / 'config.yaml', '--stage', 'query', '--image', ran / 'images/line']
    assert cli(*query)[0] == 0
    status, _, err = cli(*query, '--verify')
    assert status == 2 and f'{file} is not the file that manifest.json describes' in err
    status, out, _ = cli('--config', ran / 'config.yaml', '--stage', 'index', '--verify')
    assert status == 0 and 'index: rebuilt' in out
    assert cli(*query, '--verify')[0] == 0
