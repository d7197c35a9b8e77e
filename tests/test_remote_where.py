"""Filters in Milvus: what passes there is what passes in DuckDB, and hits are those of FAISS."""

import json
import random
import shutil

import numpy as np
import pandas as pd
import pytest

pytest.importorskip('milvus_lite')
pytest.importorskip('pymilvus')
from starlette.testclient import TestClient
from test_milvus_search import MilvusServer, app_of, configure, staged

from two_tower_vs import collection as collections
from two_tower_vs.attributes import attributes_of
from two_tower_vs.collection import Collection, row_number
from two_tower_vs.errors import InputError
from two_tower_vs.milvus import send_to_milvus
from two_tower_vs.milvusclient import connect
from two_tower_vs.milvusindex import MilvusIndex
from two_tower_vs.query import load_searcher
from two_tower_vs.remoteattributes import RemoteAttributes, RemoteSubset, SentColumns
from two_tower_vs.remotewhere import milvus_filter
from two_tower_vs.vectors import Embeddings
from two_tower_vs.where import rows_where

WORDS = ['A', 'b', "o'b", 'a "quoted" word', 'é', 'A_1', '50%', 'x y', 'back\\slash', 'null']
DAYS = ['2025-12-31', '2026-01-01', '2026-01-02']
TIMES = [f'{day} {time}' for day in DAYS for time in ('00:00:00', '12:30:00.5')]
TAGS = ['new', 'sale', "it's"]
COUNT = 400


def shop():
    chance = random.Random(0)

    def maybe(values):
        return [chance.choice([None, *values, *values]) for _ in range(COUNT)]

    return pd.DataFrame(
        {
            'cand_path': [f'{number}.png' for number in range(COUNT)],
            'price': maybe([0.5, 2.0, 3.25, 1e-7, -4.0]),
            'stock': pd.array(maybe([0, 1, 7, 2**40]), 'Int64'),
            'brand': maybe(WORDS),
            'ok': pd.array(maybe([True, False]), 'boolean'),
            'since': maybe(DAYS),
            'seen': maybe(TIMES),
            'tags': maybe([[], ['new'], ['sale', 'new'], ["it's"]]),
            'shoe sizes': maybe([[40], [41, 42]]),
        }
    )


@pytest.fixture(scope='module')
def sent(tmp_path_factory):
    "Attributes, and a collection that has them"
    table = shop()
    attributes = attributes_of(table, table.cand_path)
    vectors = np.random.default_rng(0).normal(size=(COUNT, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cands = Embeddings(vectors, list(table.cand_path))
    uri = str(tmp_path_factory.mktemp('lite') / 'milvus.db')
    send_to_milvus(cands, 'a' * 64, columns=SentColumns(attributes), uri=uri)
    milvus = connect(uri)
    yield attributes, Collection(milvus, 'two_tower_vs', 'a' * 64, 8)
    milvus.close()


def passing(collection, text):
    options = dict(output_fields=['path'], consistency_level='Strong', limit=COUNT)
    rows = collection.ask('query', filter=text, **options)
    return sorted(int(row['path'].removesuffix('.png')) for row in rows)


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def listed(chance, values):
    return ', '.join(chance.sample(values, chance.randint(1, 3)))


NUMBERS = ['0.5', '2', '3.25', '-4', '1e-7', "'2'", '1 + 1', '0']


def of_text(chance):
    sign = chance.choice(['=', '<>', '<', '>', '<=', '>='])
    brands = list(map(quoted, WORDS))
    return [
        f'brand {sign} {chance.choice(brands)}',
        f'brand in ({listed(chance, brands)})',
        f'brand not in ({listed(chance, brands)}, null)',
        f"brand like {chance.choice(['A%', '%b%', '%%', 'A_1', 'A', '%d'])!r}",
        f"brand not like {chance.choice(['A%', '%b%', '%'])!r}",
        f"starts_with(brand, {chance.choice(['A', 'x '])!r})",
        f"contains(brand, {chance.choice(['o', 'y'])!r}) or ends_with(brand, 'd')",
    ]


def of_numbers_and_dates(chance):
    sign = chance.choice(['=', '<>', '<', '>', '<=', '>='])
    days = list(map(quoted, DAYS))
    times = list(map(quoted, TIMES))
    return [
        f'price {sign} {chance.choice(NUMBERS)}',
        f'{chance.choice(NUMBERS)} {sign} price',
        f'price in ({listed(chance, NUMBERS)})',
        f'price not between {chance.choice(NUMBERS)} and 3',
        f'stock {sign} {chance.choice(["0", "1", "6.5", str(2**40)])}',
        f'since {sign} {chance.choice([*days, "date " + days[1]])}',
        f'since between {chance.choice(days)} and {chance.choice(days)}',
        f'seen {sign} {chance.choice(times + days)}',
        'price = null',
    ]


def of_lists_and_truth(chance):
    tags = list(map(quoted, TAGS))
    return [
        f'{chance.choice(tags)} in tags',
        f'{chance.choice(tags)} not in tags',
        f'list_has_any(tags, [{listed(chance, tags)}])',
        f'list_has_all(tags, [{listed(chance, tags)}])',
        f'[{listed(chance, tags)}] && tags',
        'list_contains("shoe sizes", 41)',
        f'{chance.choice(["price", "brand", "tags", "ok", "seen"])} is null',
        f'{chance.choice(["price", "brand", "since"])} is not null',
        chance.choice(['ok', 'not ok', 'ok = true', 'ok <> true', "ok = 'false'"]),
        chance.choice(['true', 'false', '1 < 2']),
    ]


def atom(chance):
    kinds = of_text, of_numbers_and_dates, of_lists_and_truth
    return chance.choice(chance.choice(kinds)(chance))


def expression(chance, depth):
    if not depth or chance.random() < 0.3:
        return atom(chance)
    parts = [expression(chance, depth - 1) for _ in range(chance.randint(2, 3))]
    text = chance.choice([' and ', ' or ']).join(f'({part})' for part in parts)
    return f'not ({text})' if chance.random() < 0.4 else text


@pytest.mark.parametrize('seed', range(8))
def test_the_same_rows_pass_as_in_duckdb(sent, seed):
    attributes, collection = sent
    chance = random.Random(seed)
    some = 0
    for _ in range(50):
        text = expression(chance, 2)
        wanted = rows_where(attributes, text).tolist()
        translated = milvus_filter(attributes, text)
        assert passing(collection, translated) == wanted, (text, translated)
        some += 0 < len(wanted) < COUNT
    assert some > 20


@pytest.mark.parametrize(
    'text, words',
    [
        ('price + stock < 5', 'an attribute by itself'),
        ('price < stock', 'two attributes'),
        ("lower(brand) = 'a'", 'an attribute by itself'),
        ("brand ilike 'a'", '~~*'),
        ("brand like 'a\\%'", 'backslash'),
        ("contains(brand, '50%')", 'contains with % or _'),
        ("brand = 'a\nb'", 'control characters'),
        ("price < 'inf'", 'a number that is Infinity'),
        ("tags = ['new']", 'a whole list'),
        ('price is distinct from 3', 'is distinct from'),
        ('coalesce(price, 0) < 5', 'an attribute by itself'),
        ('prise < 5', 'Did you mean price'),
        ("read_text('x') = 'y'", 'cannot be used in a filter'),
        ("list_has_all(['new'], tags)", 'an attribute by itself'),
    ],
)
def test_what_has_no_translation_is_refused(sent, text, words):
    with pytest.raises(InputError) as refused:
        milvus_filter(sent[0], text)
    assert words in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    'text',
    ['price <> 2', 'not price = 2', "not 'new' in tags", "brand not like 'A%'", 'not price in (2)'],
)
def test_a_missing_value_is_kept_out_by_name(sent, text):
    "versions of Milvus differ in what a negation says of it"
    assert 'is not null and' in milvus_filter(sent[0], text)


def test_a_filter_of_few_rows_searches_a_graph_more_broadly(sent, monkeypatch):
    attributes, collection = sent
    manifest = dict(rows=COUNT, dim=8, normalize=dict(on=False))
    manifest['filtered'] = [dict(share=0.5, times=1), dict(share=0.001, times=16)]
    schema = attributes.taken(np.zeros(0, np.int64))
    index = MilvusIndex(collection, manifest, schema=schema)
    asked = []
    monkeypatch.setattr(collection, 'name', lambda: 'x_hnsw')
    monkeypatch.setattr(
        collection.milvus, 'ask', lambda *args, **options: asked.append(options) or []
    )
    for where, breadth in ((RemoteSubset('', 300, 400), 256), (RemoteSubset('', 4, 400), 4096)):
        index.search(np.ones((1, 8), np.float32) / 8**0.5, 5, where)
        assert asked[-1]['search_params'] == dict(params=dict(ef=breadth))
    index.search(np.ones((1, 8), np.float32) / 8**0.5, 5)
    assert asked[-1]['search_params'] == dict(params=dict(ef=256))


def test_a_graph_is_measured_under_filters(tmp_path, monkeypatch):
    monkeypatch.setattr(collections, '_flat_enough', 1000)
    vectors = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cands = Embeddings(vectors, [f'{number}.png' for number in range(3000)])
    table = pd.DataFrame({'cand_path': cands.paths, 'price': range(3000)})
    columns = SentColumns(attributes_of(table, cands.paths))
    uri = str(tmp_path / 'milvus.db')
    told = send_to_milvus(cands, 'a' * 64, vectors[:50], columns, uri=uri)
    assert told['collection'].endswith('_hnsw')
    assert [each['share'] for each in told['filtered']] == [0.5, 0.05, 0.001]
    for each in told['filtered']:
        assert each['recall'] >= told['recall_vs_exact']['value'] or each['times'] == 64
    without = send_to_milvus(cands, 'a' * 64, vectors[:50], uri=uri)
    assert 'filtered' not in without and without['sent'] == 3000  # rows that have no price now
    connect(uri).close()


def test_records_come_back_as_they_were(sent):
    attributes, collection = sent
    schema = attributes.taken(np.zeros(0, np.int64))
    remote = RemoteAttributes(schema, collection, attributes.described())
    rows = [3, 399, 3, 0]
    found = remote.records([row_number(f'{row}.png') for row in rows])
    assert found == attributes.records(rows)
    assert remote.records([12345]) == [dict.fromkeys(attributes.names)]
    assert remote.kinds() == attributes.kinds()


# --- the command line and the server


@pytest.fixture
def server(tmp_path):
    running = MilvusServer(tmp_path / 'server')
    yield running
    running.kill()


@pytest.fixture
def priced(ran):
    "A project whose candidates have attributes, some of which are missing"
    table = pd.read_csv(ran / 'candidates.csv')
    table['price'] = range(len(table))
    table['shoe size'] = ['40', '41', ''] * (len(table) // 3) + [''] * (len(table) % 3)
    table.to_csv(ran / 'candidates.csv', index=False)
    return ran


WHERE = 'price < 40 and not "shoe size" = 40'


def asked(project, cli, where=WHERE):
    picture = next((project / 'images').rglob('*.png'))
    config = ['--config', project / 'config.yaml', '--stage', 'query', '--image', picture]
    status, _, err = cli(*config, '--where', where, '--topk', '5')
    answer = json.loads((project / 'out/query.json').read_text()) if status == 0 else None
    return status, answer, err


def test_the_command_line_filters_in_milvus(priced, server, cli):
    staged(priced, 'index')
    _, flat, _ = asked(priced, cli)
    configure(priced, index=dict(kind='milvus'), milvus=dict(uri=server.uri))
    status, said, err = cli('--config', priced / 'config.yaml', '--stage', 'index')
    assert status == 0 and 'shoe size as column_shoe_size' in err, err
    assert 'attributes price (number), shoe size (number)' in said
    status, found, err = asked(priced, cli)
    assert status == 0, err
    assert len(found['hits']) == 5
    for here, there in zip(flat['hits'], found['hits']):
        assert there['cand_path'] == here['cand_path']
        assert there['attributes'] == here['attributes']
        assert there['attributes']['shoe size'] == 41
        assert abs(there['score'] - here['score']) < 1e-5
    status, _, err = asked(priced, cli, 'price < 0')
    assert status == 0 and 'none of the' in err
    status, _, err = asked(priced, cli, 'price * 2 < 5')
    assert status == 2 and 'Milvus cannot be asked for' in err
    assert len(err.strip().splitlines()) == 1


def test_the_server_filters_in_milvus(priced, server):
    configure(priced, index=dict(kind='milvus'), milvus=dict(uri=server.uri))
    staged(priced, 'index')
    client = TestClient(app_of(priced))
    known = client.get('/attributes').json()['attributes']
    assert [each['name'] for each in known] == ['price', 'shoe size']
    assert known[0]['low'] == 0 and known[1]['empty'] > 0
    picture = next((priced / 'images').rglob('*.png')).read_bytes()
    answer = client.post('/search', files={'image': picture}, params=dict(where=WHERE, topk=5))
    hits = answer.json()['hits']
    assert len(hits) == 5 and all(hit['attributes']['price'] < 40 for hit in hits)
    answer = client.post('/search', files={'image': picture}, params=dict(where='price * 2 < 5'))
    assert answer.status_code == 422 and 'Milvus cannot' in answer.json()['error']['detail']
    everything = client.post('/search', files={'image': picture}, params=dict(topk=3)).json()
    assert all(hit['attributes'].keys() == {'price', 'shoe size'} for hit in everything['hits'])


# --- what else asks for candidates' own vectors


def test_more_like_this_and_near_copies_are_those_of_faiss(priced, server, cli):
    shutil.copy(next((priced / 'images/color').iterdir()), priced / 'images/color/copy.png')
    table = pd.read_csv(priced / 'candidates.csv')
    copied = table.iloc[[0]].assign(cand_path='color/copy.png')
    pd.concat([table, copied]).to_csv(priced / 'candidates.csv', index=False)
    configure(priced, index=dict(kind='flat'))
    staged(priced, 'index')
    flat = load_searcher(priced / 'out', images_root=priced / 'images')
    configure(priced, index=dict(kind='milvus'), milvus=dict(uri=server.uri))
    staged(priced, 'index')
    remote = load_searcher(priced / 'out', images_root=priced / 'images')
    for path in table.cand_path[:3]:
        wanted = flat.more_like(path, 5, where=WHERE)
        found = remote.more_like(path, 5, where=WHERE)
        assert found.cand_path.tolist() == wanted.cand_path.tolist()
        assert path not in set(found.cand_path)
        np.testing.assert_allclose(found.score, wanted.score, atol=1e-5)
    with pytest.raises(InputError, match='is not in the index'):
        remote.more_like('none.png')
    picture = priced / 'images/color/copy.png'
    wanted = flat.search(picture, 5, fold=True)
    found = remote.search(picture, 5, fold=True)
    assert wanted.folded.max() > 0
    assert found.folded.tolist() == wanted.folded.tolist()
    assert found.cand_path.tolist()[1:] == wanted.cand_path.tolist()[1:]


def test_more_like_over_http(priced, server):
    configure(priced, index=dict(kind='milvus'), milvus=dict(uri=server.uri))
    staged(priced, 'index')
    client = TestClient(app_of(priced))
    picture = next((priced / 'images').rglob('*.png')).read_bytes()
    first = client.post('/search', files={'image': picture}, params=dict(topk=2)).json()['hits']
    answer = client.get('/search', params=dict(like=first[0]['id'], topk=3))
    assert answer.status_code == 200, answer.text
    hits = answer.json()['hits']
    assert len(hits) == 3 and first[0]['id'] not in [hit['id'] for hit in hits]
    assert all('price' in hit['attributes'] for hit in hits)
