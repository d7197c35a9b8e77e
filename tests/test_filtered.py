"""Searches under a filter: of every kind of index, in one file or several, and after updates."""

import hashlib
import json
import sys

import faiss
import numpy as np
import pandas as pd
import pytest
from made_up import clusters, some
from starlette.testclient import TestClient

from two_tower_vs import subset as subsets
from two_tower_vs.attributes import attributes_of
from two_tower_vs.border import way_of
from two_tower_vs.bundle import load_index, save_index
from two_tower_vs.errors import InputError
from two_tower_vs.filtered import attach
from two_tower_vs.index import build_index
from two_tower_vs.serve import make_app
from two_tower_vs.subset import Subset, Way, exact_among, search_among, selected
from two_tower_vs.update import update_index
from two_tower_vs.vectors import Embeddings

KINDS = ['flat', 'hnsw', 'ivf_sq', 'ivf_pq', 'ivf_rabitq']
N = 6000


@pytest.fixture(autouse=True)
def one_thread():
    "The inputs are small; several threads would only wait for each other"
    faiss.omp_set_num_threads(1)


def numbered(paths):
    "Candidate i: a number by chance, and a quarter by its first number"
    numbers = np.random.default_rng(3).permutation(len(paths))
    return pd.DataFrame(
        {'cand_path': paths, 'number': numbers, 'brand': ['A', 'B'] * (len(paths) // 2)}
    )


@pytest.fixture(scope='module')
def catalogue():
    return clusters(N, 32, 300)


@pytest.fixture(scope='module', params=[*KINDS, *(f'{kind} in files' for kind in KINDS)])
def index(request, catalogue, tmp_path_factory):
    "Every kind, in one file and in several, with attributes"
    cands, queries = catalogue
    kind = request.param.split(' ')[0]
    options = {}
    if 'files' in request.param:
        options = dict(file_mb=1, folder=tmp_path_factory.mktemp('index'))
        cands = Embeddings(np.repeat(cands.vectors, 8, axis=1) / 8**0.5, cands.paths)
        queries = np.repeat(queries, 8, axis=1) / np.float32(8**0.5)
    index = build_index(cands, 'm', queries, kind, **options)
    assert bool(index.files and len(index.files) > 1) == ('files' in request.param)
    attach(index, attributes_of(numbered(index.paths), index.paths), cands, queries)
    return index, cands, queries


def found_share(index, cands, queries, where, k=10):
    "Of what is right among those that pass, by brute force, the share that was found"
    subset = index.passing(where)
    scores, rows = index.search(queries, k, where)
    assert rows.shape[1] == min(k, len(subset.rows)) and (rows >= 0).all()
    assert np.isin(rows, subset.rows).all()
    assert all(len(set(own)) == len(own) for own in rows.tolist())
    assert (np.diff(scores, axis=1) <= 1e-6).all()
    right = np.sort(queries @ cands.vectors[subset.rows].T, axis=1)[:, -rows.shape[1]]
    true = np.einsum('qkd,qd->qk', cands.vectors[rows], queries)
    return (true >= right[:, None] - 1e-5).mean()


@pytest.mark.parametrize('share', [0.5, 0.05, 0.001])
def test_a_filter_finds_as_much_as_the_index_itself(index, share):
    index, cands, queries = index
    own = index.manifest['recall_vs_exact']['value']
    found = found_share(index, cands, queries, f'number < {int(share * N)}')
    assert found >= own - 0.003, (found, own)


@pytest.mark.parametrize('share', [0.5, 0.05, 0.001])
def test_also_where_those_that_pass_are_all_alike(index, share):
    "As those of one brand are; most queries are far from all of them"
    index, cands, queries = index
    own = index.manifest['recall_vs_exact']['value']
    near = np.argsort(-(cands.vectors @ cands.vectors[17]))[: int(share * N)]
    subset = Subset(np.sort(near), N)
    assert found_share(index, cands, queries, subset) >= own - 0.003


def test_recall_of_each_share_is_in_the_manifest(index):
    manifest = index[0].manifest
    own = manifest['recall_vs_exact']['value']
    shares = [each['share'] for each in manifest['filtered']]
    assert shares == [0.5, 0.2, 0.05, 0.01, 0.001]
    for each in manifest['filtered']:
        assert each['recall'] >= own - 0.003 and each['queries'] == 200


def test_more_are_asked_for_than_pass(index):
    index, cands, queries = index
    rows = index.search(queries[:5], 50, 'number < 7')[1]
    passing = index.passing('number < 7').rows
    assert np.sort(rows, axis=1).tolist() == [passing.tolist()] * 5
    hits = index.hits(queries[0], 50, 'number < 7')
    assert len(hits) == 7 and (hits.number < 7).all()


def test_nothing_passes(index):
    index, _, queries = index
    scores, rows = index.search(queries, 5, 'number < 0')
    assert rows.shape == scores.shape == (len(queries), 0)
    hits = index.hits(queries[0], 5, 'number < 0')
    assert hits.empty and {'rank', 'cand_path', 'score', 'number'} <= set(hits)


def test_everything_passes(index):
    index, cands, queries = index
    own = index.manifest['recall_vs_exact']['value']
    assert found_share(index, cands, queries, 'number >= 0') >= own - 0.003


def test_one_query_finds_what_many_find(index):
    index, _, queries = index
    for where in ('number < 6', 'number < 300', 'number < 3000'):
        together = index.search(queries[:20], 5, where)[0]
        alone = [index.search(query[None], 5, where)[0][0] for query in queries[:20]]
        assert np.mean(np.abs(np.array(alone) - together) < 1e-4) > 0.98


def test_a_selector_keeps_to_its_rows_and_finds_too_little_alone(index):
    "FAISS heeds the selector in every kind; what it finds less is why there are two ways"
    index, cands, queries = index
    rows = index.passing('number < 60').rows
    some = Subset(rows, N)
    found = selected(index.faiss, queries, 10, some)[1]
    assert np.isin(found[found >= 0], rows).all()
    complete = search_among(index.faiss, queries, 10, some, Way(False))[1]
    assert (complete >= 0).all() and np.isin(complete, rows).all()


def test_both_exact_ways_agree(index, monkeypatch):
    index, _, queries = index
    for count in (40, 400):
        some = index.passing(f'number < {count}')
        scores = []
        for few in (0, 1):
            monkeypatch.setattr(subsets, '_few', few)
            scores.append(exact_among(index.faiss, queries, 10, some)[0])
        assert np.abs(scores[0] - scores[1]).max() < 1e-4


def test_the_way_is_never_less_thorough_than_was_measured():
    measured = [
        dict(share=0.05, exact=False, times=8),
        dict(share=0.5, exact=False, times=2),
        dict(share=0.2, exact=True, times=1),
    ]
    ways = {
        900: Way(False, 2),
        499: Way(True),
        199: Way(False, 8),
        50: Way(False, 8),
        49: Way(True),
    }
    for count, way in ways.items():
        assert way_of(Subset(np.arange(count), 1000), measured, 64) == way


def test_a_search_with_a_filter_leaves_others_as_they_are(index):
    index, _, queries = index
    before = index.search(queries, 10)
    index.search(queries, 10, 'number < 3000')
    index.search(queries, 10, 'number < 10')
    search_among(index.faiss, queries, 10, index.passing('number < 3000'), Way(False, 16))
    after = index.search(queries, 10)
    assert np.array_equal(before[0], after[0]) and np.array_equal(before[1], after[1])


# ---- Files


def sha(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def files_of(folder):
    return {file.name: sha(file) for file in sorted(folder.iterdir())}


@pytest.mark.parametrize('kind', ['flat', 'ivf_sq'])
def test_an_index_without_attributes_is_as_before(kind, catalogue, tmp_path):
    cands, queries = catalogue
    index = build_index(cands, 'm', queries, kind)
    save_index(index, tmp_path)
    names = {'vectors.faiss', 'candidates.csv', 'rows.safetensors', 'manifest.json'}
    assert set(files_of(tmp_path)) == names
    assert (
        not {'attributes', 'filtered'} & json.loads((tmp_path / 'manifest.json').read_text()).keys()
    )
    assert load_index(tmp_path).attributes is None


@pytest.mark.parametrize('kind', KINDS)
def test_a_search_changes_no_byte_of_the_file(kind, catalogue, tmp_path):
    "FAISS's map from rows to lists would be saved, too"
    cands, queries = catalogue
    index = build_index(cands, 'm', queries, kind)
    save_index(index, tmp_path)
    before = sha(tmp_path / 'vectors.faiss')
    attach(index, attributes_of(numbered(cands.paths), cands.paths), cands, queries)
    index.search(queries, 10, 'number < 6')
    save_index(index, tmp_path)
    assert sha(tmp_path / 'vectors.faiss') == before


@pytest.mark.parametrize('several', [False, True])
def test_a_changed_attribute_does_not_touch_vectors(several, catalogue, tmp_path):
    cands, queries = catalogue
    if several:
        cands = Embeddings(np.repeat(cands.vectors, 8, axis=1) / 8**0.5, cands.paths)
        queries = np.repeat(queries, 8, axis=1) / np.float32(8**0.5)
    index = build_index(
        cands, 'm', queries, 'ivf_sq', file_mb=1 if several else 2048, folder=tmp_path
    )
    attach(index, attributes_of(numbered(cands.paths), cands.paths), cands, queries)
    save_index(index, tmp_path)
    before = files_of(tmp_path)
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in before}
    loaded = load_index(tmp_path, whole=True)
    dearer = numbered(cands.paths)
    dearer['number'] += 1000
    assert attach(loaded, attributes_of(dearer, loaded.paths), cands, queries)
    loaded.save_attributes(tmp_path)
    after = files_of(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {'attributes.parquet', 'manifest.json'} and before.keys() == after.keys()
    kept = before.keys() - changed
    assert all(times[name] == (tmp_path / name).stat().st_mtime_ns for name in kept)
    again = load_index(tmp_path, whole=True)
    assert again.hits(queries[0], 5, 'number < 1005').number.between(1000, 1004).all()


def test_attributes_taken_away_leave_no_file(catalogue, tmp_path):
    cands, queries = catalogue
    index = build_index(cands, 'm', queries, 'flat')
    save_index(index, tmp_path)
    before = files_of(tmp_path)
    attach(index, attributes_of(numbered(cands.paths), cands.paths), cands, queries)
    save_index(index, tmp_path)
    assert 'attributes.parquet' in files_of(tmp_path)
    attach(index, None, cands)
    index.save_attributes(tmp_path)
    assert files_of(tmp_path) == before
    load_index(tmp_path)


@pytest.mark.parametrize('several', [False, True])
def test_attributes_of_another_index_are_refused(several, catalogue, tmp_path):
    cands, queries = catalogue
    if several:
        cands = Embeddings(np.repeat(cands.vectors, 8, axis=1) / 8**0.5, cands.paths)
        queries = None
    index = build_index(
        cands, 'm', queries, 'flat', file_mb=1 if several else 2048, folder=tmp_path
    )
    attach(index, attributes_of(numbered(cands.paths), cands.paths), cands, queries)
    save_index(index, tmp_path)
    other = numbered(cands.paths)
    other['number'] = 0
    (tmp_path / 'attributes.parquet').write_bytes(attributes_of(other, cands.paths).data)
    with pytest.raises(InputError, match='attributes.parquet is not the file'):
        load_index(tmp_path)
    (tmp_path / 'attributes.parquet').unlink()
    with pytest.raises(InputError, match='attributes.parquet is missing'):
        load_index(tmp_path)


def test_a_manifest_that_asks_for_the_impossible_is_refused(catalogue, tmp_path):
    from two_tower_vs.bundle import seal

    cands, queries = catalogue
    index = build_index(cands, 'm', queries, 'flat')
    attach(index, attributes_of(numbered(cands.paths), cands.paths), cands, queries)
    manifest = save_index(index, tmp_path)
    for wrong in (
        dict(filtered=[dict(share=0.5, exact=False, times=2**40)]),
        dict(filtered=[dict(share='x', exact=False, times=1)]),
        dict(filtered=[5]),
        dict(attributes=dict(file=dict(manifest['attributes']['file'], name='../x'))),
        dict(attributes={}),
    ):
        bad = {**manifest, **wrong}
        bad['sha256'] = seal(bad)
        (tmp_path / 'manifest.json').write_text(json.dumps(bad))
        with pytest.raises(InputError, match='damaged'):
            load_index(tmp_path)


# ---- Updates


def without(cands, rows):
    keep = np.setdiff1d(np.arange(len(cands)), rows)
    paths = [cands.paths[row] for row in keep]
    return Embeddings(cands.vectors[keep], paths, contents=cands.contents[keep])


def of_hits(index, table):
    "Does each row have the attributes of its own path?"
    numbers = dict(zip(table.cand_path, table.number))
    records = index.attributes.records(range(len(index.paths)))
    return [record['number'] for record in records] == [numbers.get(path) for path in index.paths]


@pytest.mark.parametrize('kind', ['flat', 'hnsw', 'ivf_sq', 'ivf_pq'])
@pytest.mark.parametrize('change', ['added', 'removed'])
def test_updates_keep_attributes_in_step(kind, change, tmp_path):
    cands, queries = clusters(3000, 32, 200)
    table = numbered(cands.paths)
    fewer = without(cands, np.arange(100, 160))
    first, then = (fewer, cands) if change == 'added' else (cands, fewer)
    index = build_index(first, 'm', queries, kind)
    attach(index, attributes_of(table, index.paths), first, queries)
    save_index(index, tmp_path)
    loaded = load_index(tmp_path, 'm', writable=True)
    loaded.manifest['filtered'] = []  # what was measured before
    new, said = update_index(loaded, then, 'm', queries, kind=kind)
    assert said != 'up to date' and len(new.attributes) == len(new.paths) == len(then)
    known = table[table.cand_path.isin(first.paths)]
    assert of_hits(new, known)
    assert new.manifest['filtered']
    attach(new, attributes_of(table, new.paths), then, queries)
    assert of_hits(new, table)
    save_index(new, tmp_path)
    again = load_index(tmp_path)
    hits = again.hits(queries[0], 10, 'number < 300')
    numbers = dict(zip(table.cand_path, table.number))
    assert hits.number.tolist() == [numbers[path] for path in hits.cand_path]


def test_attributes_for_other_rows_are_refused():
    cands = some(100)
    index = build_index(cands, 'm')
    with pytest.raises(InputError, match='99 rows'):
        attach(index, attributes_of(numbered(cands.paths), cands.paths[:99]), cands)


def test_an_odd_factory_is_refused_in_a_line():
    cands, queries = clusters(2000, 32, 100)
    index = build_index(cands, 'm', None, factory='PCA16,Flat')
    attach(index, attributes_of(numbered(cands.paths), cands.paths), cands)
    with pytest.raises(InputError, match='cannot be filtered'):
        index.search(queries, 5, 'number < 100')


def test_without_queries_the_search_is_rather_too_thorough():
    cands, queries = clusters(3000, 32, 100)
    index = build_index(cands, 'm', None, 'ivf_sq')
    attach(index, attributes_of(numbered(cands.paths), cands.paths), cands)
    assert 'filtered' not in index.manifest
    assert found_share(index, cands, queries, 'number < 1500') > 0.98


# ---- The command line and the server


def with_columns(project):
    table = pd.read_csv(project / 'candidates.csv')
    table['price'] = range(len(table))
    table['brand'] = ['A', 'B'] * (len(table) // 2) + ['A'] * (len(table) % 2)
    table['score'] = 5
    table['since'] = '2026-01-01'
    table['tags'] = '["x","y"]'
    table.to_csv(project / 'candidates.csv', index=False)
    return table


@pytest.fixture
def priced(ran, cli):
    "A finished project whose candidates have a price"
    with_columns(ran)
    status, said, err = cli('--config', ran / 'config.yaml', '--stage', 'index')
    assert status == 0, err
    assert 'price (number), brand (text), score (number), since (date), tags (list)' in said
    return ran


def test_the_command_line_filters(priced, cli):
    picture = next((priced / 'images').rglob('*.png'))
    config = ['--config', priced / 'config.yaml', '--stage', 'query', '--image', picture]
    status, said, err = cli(*config, '--where', "price < 8 and brand = 'A'")
    assert status == 0, err
    answer = json.loads((priced / 'out/query.json').read_text())
    assert answer['where'] == "price < 8 and brand = 'A'"
    assert sorted(hit['attributes']['price'] for hit in answer['hits']) == [0, 2, 4, 6]
    assert answer['hits'][0]['attributes'].keys() == {'price', 'brand', 'score', 'since', 'tags'}
    assert answer['hits'][0]['attributes']['score'] == 5 != answer['hits'][0]['score']
    status, said, err = cli(*config, '--where', 'prise < 8')
    assert status == 2 and 'Did you mean price?' in err and len(err.strip().splitlines()) == 1
    status, said, err = cli(*config, '--where', 'price < 0')
    assert status == 0 and 'none of the' in err
    config[config.index('query')] = 'eval'
    status, said, err = cli(*config, '--where', 'price < 8')
    assert status == 2 and '--where' in err


def test_a_new_price_does_not_touch_the_vectors(priced, cli):
    index = priced / 'out/index'
    before = files_of(index)
    time = (index / 'vectors.faiss').stat().st_mtime_ns
    table = pd.read_csv(priced / 'candidates.csv')
    table['price'] += 100
    table.to_csv(priced / 'candidates.csv', index=False)
    status, said, err = cli('--config', priced / 'config.yaml', '--stage', 'index')
    assert status == 0 and 'attributes changed' in said, err
    after = files_of(index)
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {'attributes.parquet', 'manifest.json'}
    assert (index / 'vectors.faiss').stat().st_mtime_ns == time
    status, said, err = cli('--config', priced / 'config.yaml', '--stage', 'index')
    assert 'up to date' in said


def test_the_server_filters(priced):
    client = TestClient(make_app(priced / 'out', priced / 'images', priced / 'query_gt.csv'))
    hits = client.get('/search', params=dict(id=0, where='price < 5')).json()['hits']
    assert sorted(hit['attributes']['price'] for hit in hits) == [0, 1, 2, 3, 4]
    assert hits[0]['attributes']['tags'] == ['x', 'y']
    picture = next((priced / 'images').rglob('*.png')).read_bytes()
    answer = client.post(
        '/search',
        params=dict(where="brand = 'B'", topk=3),
        content=picture,
        headers={'content-type': 'image/png'},
    )
    assert [hit['attributes']['brand'] for hit in answer.json()['hits']] == ['B'] * 3
    assert client.get('/search', params=dict(id=0, where='price < 0')).json()['hits'] == []
    assert len(client.get('/search', params=dict(id=0)).json()['hits']) == 10


BAD = [
    'prise < 5',
    "read_text('/etc/passwd') = 'x'",
    '',
    'price',
    'x' * 20_000,
    'true; select 1',
    "brand = '\udcff'".encode('utf-8', 'surrogatepass'),
]


def test_the_server_refuses_a_bad_filter_in_a_line(priced):
    client = TestClient(make_app(priced / 'out', priced / 'images'), raise_server_exceptions=False)
    for where in BAD:
        answer = client.get('/search', params=dict(id=0, where=where))
        error = answer.json()['error']
        assert answer.status_code == 422 and error['reason'] == 'bad filter', where
        assert error['detail'].startswith('where: ') and '\n' not in error['detail']
    assert client.get('/search', params=dict(id=0, where='price < 5')).status_code == 200


def test_the_server_tells_what_to_filter_by(priced):
    client = TestClient(make_app(priced / 'out', priced / 'images'))
    answer = client.get('/attributes').json()
    table = pd.read_csv(priced / 'candidates.csv')
    price, brand, _, since, tags = answer['attributes']
    assert price == dict(name='price', type='number', empty=0, low=0, high=len(table) - 1)
    counts = table.brand.value_counts()
    assert brand['values'] == [dict(value=name, count=counts[name]) for name in ('A', 'B')]
    assert since['low'] == since['high'] == '2026-01-01'
    assert {value['value'] for value in tags['values']} == {'x', 'y'}
    schema = client.get('/openapi.json').json()
    names = {each['name'] for each in schema['paths']['/search']['post']['parameters']}
    assert {'topk', 'where', 'box'} <= names and '/attributes' in schema['paths']


def test_a_server_without_attributes_says_so(ran):
    client = TestClient(make_app(ran / 'out', ran / 'images'))
    assert client.get('/attributes').json()['attributes'] == []
    hits = client.get('/search', params=dict(id=0)).json()['hits']
    assert all('attributes' not in hit for hit in hits)
    answer = client.get('/search', params=dict(id=0, where='price < 5'))
    assert answer.status_code == 422 and 'no attributes' in answer.json()['error']['detail']


def test_a_running_server_takes_a_new_price(priced, cli):
    app = make_app(priced / 'out', priced / 'images')
    client = TestClient(app)
    assert len(client.get('/search', params=dict(id=0, where='price >= 1000')).json()['hits']) == 0
    table = pd.read_csv(priced / 'candidates.csv')
    table.loc[:3, 'price'] = 1000
    table.to_csv(priced / 'candidates.csv', index=False)
    assert cli('--config', priced / 'config.yaml', '--stage', 'index')[0] == 0
    assert app.state.site.reload()
    assert len(client.get('/search', params=dict(id=0, where='price >= 1000')).json()['hits']) == 4
    assert client.get('/attributes').json()['attributes'][0]['high'] == 1000


def test_exports_have_the_columns(priced):
    from two_tower_vs.attributes import read_attributes
    from two_tower_vs.vector_files import save_vectors

    table = pd.read_csv(priced / 'candidates.csv')
    attributes = read_attributes(priced / 'candidates.csv', range(2, 2 + len(table)))
    vectors = Embeddings(np.zeros((len(table), 4), np.float32), table.cand_path.tolist())
    files = [priced / 'v.npy', priced / 'v.csv']
    save_vectors(vectors, 'cand_path', files, attributes)
    assert pd.read_csv(files[1]).equals(table)
    parquet = pytest.importorskip('pyarrow.parquet')
    save_vectors(vectors, 'cand_path', [priced / 'v.parquet'], attributes)
    found = parquet.read_table(priced / 'v.parquet')
    assert found.column_names == ['cand_path', 'embedding', *table.columns[1:]]
    assert found['price'].to_pylist() == table.price.tolist()
    assert found['tags'].to_pylist() == [['x', 'y']] * len(table)


def test_milvus_without_attributes_refuses_a_filter(catalogue):
    from two_tower_vs.milvusindex import MilvusIndex

    index = MilvusIndex(None, dict(rows=5, dim=32))
    for search in (index.search, lambda *args: next(index.batch_hits(args[0], 5, where=args[2]))):
        with pytest.raises(InputError, match='this index has no attributes'):
            search(catalogue[1], 5, 'price < 5')


def test_duckdb_is_imported_where_there_are_attributes(ran, tmp_path):
    import subprocess

    picture = str(next((ran / 'images').rglob('*.png')))
    code = f"""
import sys
from two_tower_vs.query import load_searcher
hits = load_searcher({str(ran / 'out')!r}).search({picture!r})
print(len(hits), 'duckdb' in sys.modules)
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.split() == ['10', 'False'], done.stderr


def test_requests_of_one_batch_keep_their_own_filters(priced):
    "pictures that arrive together go through the model together, and are searched apart"
    from two_tower_vs.batching import _search_together, _Task
    from two_tower_vs.query import load_searcher

    searcher = load_searcher(priced / 'out')
    index = searcher.index
    pixels = searcher.pixels(next((priced / 'images').rglob('*.png')))
    filters = [None, 'price < 5', 'price >= 5', 'price < 5']
    tasks = [_Task(searcher, pixels, 3, index.passing(where)) for where in filters]
    _search_together(searcher, tasks)
    price = pd.read_csv(priced / 'candidates.csv').set_index('cand_path').price
    found = [[price[index.paths[row]] for row in task.future.result().rows] for task in tasks]
    assert len(found[0]) == 3 and max(found[1]) < 5 <= min(found[2]) and found[3] == found[1]
