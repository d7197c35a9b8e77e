"""Searching in Milvus: the hits of FAISS, another model's vectors, and servers that go away.

The server is Milvus Lite's own, in a process of its own: it speaks the protocol of a real one, can
be killed, and can be started again at the same address.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import yaml

from two_tower_vs.errors import InputError
from two_tower_vs.vectors import Embeddings

pytest.importorskip('milvus_lite')
pytest.importorskip('pymilvus')
import attack
from starlette.testclient import TestClient

from two_tower_vs import bystanders
from two_tower_vs import collection as collections
from two_tower_vs.milvus import manifest_of, upload
from two_tower_vs.milvusclient import Milvus, MilvusError, connect
from two_tower_vs.milvusindex import load_remote, open_index
from two_tower_vs.query import load_searcher
from two_tower_vs.serve import make_app

SERVER = """
import sys, time
from milvus_lite.adapter.grpc.server import start_server_in_thread
server = start_server_in_thread(sys.argv[1], '127.0.0.1', int(sys.argv[2]))
print(server[2], flush=True)
time.sleep(3600)
"""


class MilvusServer:
    "Milvus Lite behind a port, in a process of its own"

    def __init__(self, folder):
        self.folder = folder
        self.port = 0
        self.start()

    def start(self):
        command = [sys.executable, '-c', SERVER, str(self.folder), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline())
        self.uri = f'http://127.0.0.1:{self.port}'

    def kill(self):
        self.process.kill()
        self.process.wait()

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)


@pytest.fixture
def server(tmp_path):
    running = MilvusServer(tmp_path / 'server')
    yield running
    running.kill()


def configure(project, **sections):
    "Write these sections into the config"
    file = project / 'config.yaml'
    settings = yaml.safe_load(file.read_text()) | sections
    file.write_text(yaml.safe_dump(settings))
    return file


def staged(project, stage, *more):
    "What a stage prints, or a failure"
    args = '--config', project / 'config.yaml', '--stage', stage, *more
    status, said, error = attack.cli(*args)
    assert status == 0, error
    return said


def refused(project, stage, *more):
    "The one line of a refusal"
    args = '--config', project / 'config.yaml', '--stage', stage, *more
    status, _, error = attack.cli(*args)
    lines = [line for line in error.splitlines() if line.startswith(attack.PROGRAM)]
    assert status == 2 and len(lines) == 1 and 'Traceback' not in error, error
    return lines[0]


def asked(project):
    "Hits of three pictures, one of them a candidate"
    images = sorted((project / 'images/line').iterdir())[:2]
    images += sorted((project / 'images/color').iterdir())[:1]
    staged(project, 'query', '--topk', '58', '--image', *images)
    return json.loads((project / 'out/query.json').read_text())['queries']


@pytest.fixture
def served(ran, server):
    "A project whose index is in Milvus"
    settings = dict(uri=server.uri, timeout_s=2)
    configure(ran, index=dict(kind='milvus'), milvus=settings)
    staged(ran, 'index')
    return ran


def app_of(project, **options):
    settings = yaml.safe_load((project / 'config.yaml').read_text()).get('milvus')
    gt = project / 'query_gt.csv'
    return make_app(project / 'out', project / 'images', gt, milvus=settings, **options)


def picture_of(project):
    return sorted((project / 'images/line').iterdir())[0].read_bytes()


def post(client, data):
    return client.post('/search?topk=5', content=data, headers={'content-type': 'image/png'})


def model_sha256(project):
    return json.loads((project / 'out/model/model.json').read_text())['sha256']


def by_path(answer):
    return {hit['cand_path']: hit['score'] for hit in answer['hits']}


# ---- the same hits


@pytest.mark.parametrize('normalize', ['none', 'always'])
def test_same_hits_as_faiss(ran, server, normalize, monkeypatch):
    "paths and scores of all candidates, and which hit is the picture itself"
    monkeypatch.setattr(bystanders, 'fewest', 10)
    configure(ran, index=dict(kind='flat', normalize=normalize))
    staged(ran, 'index')
    flat = asked(ran)
    configure(ran, index=dict(kind='milvus', normalize=normalize, uri=server.uri))
    staged(ran, 'index')
    found = asked(ran)
    for one, other in zip(flat, found, strict=True):
        assert list(by_path(one))[:5] == list(by_path(other))[:5]
        assert by_path(one) == pytest.approx(by_path(other), abs=1e-5)
        assert len(by_path(one)) == 58
    assert found[2]['hits'][0]['same_picture'] is True
    manifest = json.loads((ran / 'out/index/manifest.json').read_text())
    assert manifest['normalize']['on'] is (normalize == 'always')


def test_bundle_and_report(ran, server):
    "what the folder of the run says of the collection; nothing is sent twice"
    configure(ran, index=dict(kind='milvus'), milvus=dict(uri=server.uri))
    said = staged(ran, 'index')
    assert '58 sent' in said and 'finds 100.0 % of what exact search finds' in said
    manifest = json.loads((ran / 'out/index/manifest.json').read_text())
    assert manifest['kind'] == 'milvus' and manifest['rows'] == 58 and manifest['format'] == 1
    assert manifest['recall_vs_exact'] == dict(k=10, value=1.0, queries=17)
    assert manifest['milvus']['uri'] == server.uri
    assert (ran / 'out/index/vectors.faiss').stat().st_size < 100
    assert '0 sent, 0 removed' in staged(ran, 'index')
    staged(ran, 'report')
    assert 'in Milvus' in (ran / 'out/report.html').read_text()


@pytest.mark.rest
def test_back_to_faiss(served):
    "a bundle of Milvus' is no damage to an index of FAISS"
    configure(served, index=dict(kind='flat'))
    assert 'index: built;' in staged(served, 'index')
    assert load_searcher(served / 'out').index.faiss.ntotal == 58


@pytest.fixture
def both(served):
    "Clients of two servers: with the index in FAISS, and in Milvus"
    configure(served, index=dict(kind='flat'))
    staged(served, 'index')
    flat = TestClient(app_of(served))
    configure(served, index=dict(kind='milvus'))
    staged(served, 'index')
    return flat, TestClient(app_of(served))


def test_http(served, both):
    "the same answer; pictures and searches by number, also from a server that has searched nothing"
    wanted, answer = [post(client, picture_of(served)).json() for client in both]
    assert by_path(answer) == pytest.approx(by_path(wanted), abs=1e-5)
    best = answer['hits'][0]
    assert 58 < best['id'] < 2**53
    fresh = TestClient(app_of(served))
    original = served / 'images' / best['cand_path']
    assert len(fresh.get(f'/image/{best["id"]}').content) > original.stat().st_size / 4
    again = fresh.get(f'/search?id={best["id"]}').json()['hits'][0]
    assert again['same_picture'] is True and again['cand_path'] == best['cand_path']
    for missing in (-1, 7, 10**30):
        assert fresh.get(f'/image/{missing}').status_code in (404, 422)
    health = fresh.get('/health').json()
    assert health['kind'] == 'milvus' and health['candidates'] == 58


def test_right_answers(both):
    "of an evaluation query, with their numbers"
    wanted, found = [client.get('/search?query=0').json() for client in both]
    for answer in (wanted, found):
        answer['right'] = [hit.get('right') for hit in answer['hits']]
        answer['answers'] = [each['cand_path'] for each in answer['query']['answers']]
    assert found['right'] == wanted['right'] and found['answers'] == wanted['answers']
    number = found['query']['answers'][0]['id']
    assert number > 58 and both[1].get(f'/image/{number}').status_code == 200


@pytest.mark.rest
def test_shorter_vectors(served):
    configure(served, index=dict(kind='milvus', dim=16))
    staged(served, 'index')
    index = load_remote(served / 'out/index')
    rng = np.random.default_rng(0)
    long = rng.standard_normal((1, 32)).astype(np.float32)
    assert index.faiss.d == 16 and len(index.hits(long[0], 3)) == 3
    with pytest.raises(InputError, match='come from another model'):
        index.search(np.zeros((1, 5), np.float32))


# ---- the catalogue changes


@pytest.mark.rest
def test_removed_candidate(served):
    "it is gone from the hits after the next index stage, also those of a server that runs"
    client = TestClient(app_of(served))
    best = post(client, picture_of(served)).json()['hits'][0]['cand_path']
    table = served / 'candidates.csv'
    lines = table.read_text().splitlines()
    table.write_text('\n'.join(line for line in lines if line != best) + '\n')
    image = sorted((served / 'images/line').iterdir())[0]
    args = '--config', served / 'config.yaml', '--stage', 'query', '--image', image
    assert 'was changed after the index was made' in attack.cli(*args)[2]
    (served / 'query_gt.csv').unlink()
    said = staged(served, 'index')
    assert '57 vectors' in said and '0 sent, 1 removed' in said
    assert 'was changed after' not in attack.cli(*args)[2]
    answer = json.loads((served / 'out/query.json').read_text())
    assert best not in by_path(answer)
    assert best not in by_path(post(client, picture_of(served)).json())


def small(count=40, seed=0, dim=32):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(vectors, [f'{seed}/{number}.jpg' for number in range(count)])


@pytest.mark.rest
def test_another_collection_of_the_same_model(served, server, monkeypatch):
    "a server that runs answers from it; the one before is gone"
    client = TestClient(app_of(served))
    assert post(client, picture_of(served)).status_code == 200
    monkeypatch.setattr(collections, '_flat_enough', 10)
    milvus = connect(server.uri)
    made = upload(milvus, small(), model_sha256(served))
    assert made.collection.endswith('_hnsw') and made.sent == 40
    assert milvus.ask('list_collections') == [made.collection]
    hits = post(client, picture_of(served)).json()['hits']
    assert all(re.fullmatch(r'0/\d+\.jpg', hit['cand_path']) for hit in hits)


def test_collection_that_another_alias_needs(tmp_path, monkeypatch):
    milvus = Milvus(tmp_path / 'milvus.db')
    before = upload(milvus, small(), 'a' * 64).collection
    milvus.ask('create_alias', before, 'other')
    monkeypatch.setattr(collections, '_flat_enough', 10)
    after = upload(milvus, small(), 'a' * 64).collection
    assert sorted(milvus.ask('list_collections')) == sorted([before, after])
    assert collections.collection_of(milvus, 'other') == before


@pytest.mark.rest
def test_two_aliases_with_one_model(tmp_path):
    "each has its own catalogue"
    milvus = Milvus(tmp_path / 'milvus.db')
    upload(milvus, small(seed=1), 'a' * 64, alias='shop')
    upload(milvus, small(seed=2), 'a' * 64, alias='trial')
    (hits,) = collections.remote_hits(milvus, small(1).vectors, 'a' * 64, 40, 'shop')
    assert {path[0] for path in hits.cand_path} == {'1'}


@pytest.mark.rest
def test_columns_that_the_collection_has_itself(ran, server):
    "a column `id` is sent under another name, with a warning"
    table = ran / 'candidates.csv'
    lines = table.read_text().splitlines()
    rows = [f'{line},{number}' for number, line in enumerate(lines[1:])]
    table.write_text('\n'.join([f'{lines[0]},id', *rows]) + '\n')
    configure(ran, index=dict(kind='milvus'), milvus=dict(uri=server.uri))
    args = '--config', ran / 'config.yaml', '--stage', 'index'
    status, _, warned = attack.cli(*args)
    assert status == 0 and 'id as column_id' in warned
    where = dict(filter='column_id == 7', output_fields=['path'])
    (row,) = connect(server.uri).ask('query', 'two_tower_vs', **where)
    assert row['path'] == lines[8]


# ---- another model


def test_another_model(served, server):
    "refused by a server that runs, by the command line, and at once when it starts"
    client = TestClient(app_of(served))
    upload(connect(server.uri), small(), 'f' * 64)
    with pytest.warns(UserWarning, match='answered with status 503.*the model in use is'):
        answer = post(client, picture_of(served))
    assert answer.status_code == 503
    error = answer.json()['error']
    assert error['reason'] == 'no index' and server.uri not in error['detail']
    image = sorted((served / 'images/line').iterdir())[0]
    assert 'leads to two_tower_vs_ffffffffffffffff_32_flat' in refused(
        served, 'query', '--image', image
    )
    assert 'Send its candidates first' in refused(served, 'serve')
    staged(served, 'index')
    assert post(client, picture_of(served)).status_code == 200


@pytest.mark.rest
def test_a_model_trained_again(served):
    "its folder still holds the index of the one before"
    file = served / 'out/index'
    with pytest.raises(InputError, match='was made by another model'):
        load_remote(file, 'e' * 64)


@pytest.mark.rest
@pytest.mark.parametrize('name', ['manifest.json', 'rows.safetensors'])
def test_damaged_bundle(served, name):
    file = served / 'out/index' / name
    file.write_bytes(file.read_bytes().replace(b'"', b"'", 1) + b' ')
    with pytest.raises(InputError, match='damaged'):
        load_remote(served / 'out/index')


# ---- servers that go away


def test_server_that_is_killed_and_comes_back(served, server):
    "one line each; the next search works without a restart"
    client = TestClient(app_of(served))
    image = sorted((served / 'images/line').iterdir())[0]
    assert post(client, picture_of(served)).status_code == 200
    server.kill()
    for _ in range(2):
        with pytest.warns(UserWarning, match='does not answer'):
            answer = post(client, picture_of(served))
        assert answer.status_code == 503 and answer.headers['retry-after'] == '5'
    with pytest.warns(UserWarning, match='does not answer'):
        assert client.get('/image/12345').status_code == 503
    assert 'does not answer' in refused(served, 'query', '--image', image)
    assert 'does not answer' in refused(served, 'index')
    server.start()
    assert post(client, picture_of(served)).status_code == 200
    staged(served, 'query', '--image', image)


@pytest.mark.rest
def test_server_that_restarts_between_two_searches(served, server):
    "nobody sees it: the connection is made again, and the collection is loaded again"
    client = TestClient(app_of(served))
    before = post(client, picture_of(served)).json()['hits']
    server.kill()
    server.start()
    answer = post(client, picture_of(served))
    assert answer.status_code == 200 and answer.json()['hits'] == before


@pytest.mark.rest
def test_server_that_dies_in_mid_search(served, server):
    client = TestClient(app_of(served))
    assert post(client, picture_of(served)).status_code == 200
    server.freeze()
    killer = threading.Timer(0.5, server.process.kill)
    killer.start()
    with pytest.warns(UserWarning, match='does not answer'):
        assert post(client, picture_of(served)).status_code == 503
    killer.join()
    server.process.wait()
    server.start()
    assert post(client, picture_of(served)).status_code == 200


@pytest.mark.rest
def test_silent_server(served, server):
    "a time-out, and the next search works"
    client = TestClient(app_of(served))
    assert post(client, picture_of(served)).status_code == 200
    server.freeze()
    start = time.monotonic()
    with pytest.warns(UserWarning, match='does not answer.*timeout_s'):
        assert post(client, picture_of(served)).status_code == 503
    assert time.monotonic() - start < 20
    server.thaw()
    assert post(client, picture_of(served)).status_code == 200


def test_threads_that_wait_for_one_connection():
    "they fail together, not one after the other"
    with socket.create_server(('127.0.0.1', 0)) as silent:
        milvus = Milvus(f'http://127.0.0.1:{silent.getsockname()[1]}', seconds=1)

        def failed(_):
            try:
                milvus.ask('list_collections')
            except MilvusError as error:
                return str(error)

        start = time.monotonic()
        with futures.ThreadPoolExecutor(8) as pool:
            said = list(pool.map(failed, range(8)))
        assert all('does not answer' in words for words in said)
        assert time.monotonic() - start < 6  # eight in turn take eight seconds


def test_addresses_where_nobody_answers(ran):
    "a port that is closed, one that accepts and is silent, no collection"
    image = sorted((ran / 'images/line').iterdir())[0]
    for uri in ('http://127.0.0.1:9', 'nowhere/milvus.db', 'ftp://127.0.0.1', 'milvus.txt'):
        configure(ran, index=dict(kind='milvus'), milvus=dict(uri=uri, timeout_s=1))
        assert 'Milvus at ' in refused(ran, 'index')
    with socket.create_server(('127.0.0.1', 0)) as silent:
        uri = f'http://127.0.0.1:{silent.getsockname()[1]}'
        configure(ran, milvus=dict(uri=uri, timeout_s=1))
        assert 'does not answer' in refused(ran, 'index')
    assert not (ran / 'out/index/manifest.json').read_text().count('"milvus"')
    staged(ran, 'query', '--image', image)  # the index of before


@pytest.mark.rest
@pytest.mark.parametrize('how', ['alias', 'collection'])
def test_alias_or_collection_that_is_gone(served, server, how):
    client = TestClient(app_of(served))
    milvus = connect(server.uri)
    name = collections.collection_of(milvus, 'two_tower_vs')
    if how == 'alias':
        milvus.ask('drop_alias', 'two_tower_vs')
    else:
        milvus.ask('drop_collection', name)
    image = sorted((served / 'images/line').iterdir())[0]
    wanted = 'leads to no collection'
    with pytest.warns(UserWarning, match=wanted):
        assert post(client, picture_of(served)).status_code == 503
    assert wanted in refused(served, 'query', '--image', image)
    staged(served, 'index')
    assert post(client, picture_of(served)).status_code == 200


# ---- who may


class Doorkeeper:
    "A server that knows nobody, as Milvus says it"

    def __init__(self):
        import grpc
        from pymilvus.grpc_gen import milvus_pb2_grpc

        class Refusing(milvus_pb2_grpc.MilvusServiceServicer):
            def Connect(self, request, context):
                self.tokens = dict(context.invocation_metadata())
                context.abort(grpc.StatusCode.UNAUTHENTICATED, 'auth check failure')

        self.grpc = grpc.server(futures.ThreadPoolExecutor(2))
        milvus_pb2_grpc.add_MilvusServiceServicer_to_server(Refusing(), self.grpc)
        self.port = self.grpc.add_insecure_port('127.0.0.1:0')
        self.grpc.start()


def test_wrong_credentials(ran):
    "one line that names the setting and not the secret"
    doorkeeper = Doorkeeper()
    uri = f'http://127.0.0.1:{doorkeeper.port}'
    settings = dict(uri=uri, token='root:Secret-1', timeout_s=2)
    configure(ran, index=dict(kind='milvus'), milvus=settings)
    said = refused(ran, 'index')
    doorkeeper.grpc.stop(None)
    assert 'refuses the token' in said and 'milvus.token' in said and 'Secret' not in said


@pytest.mark.rest
def test_where_the_token_is(ran, server, monkeypatch):
    "no token is written; the name of a variable is, and is enough for Python"
    monkeypatch.setenv('MILVUS_TOKEN', 'root:Secret-1')
    for token in ('env:MILVUS_TOKEN', 'root:Secret-1'):
        settings = dict(uri=server.uri, token=token)
        configure(ran, index=dict(kind='milvus'), milvus=settings)
        staged(ran, 'index')
        for file in (ran / 'out').rglob('*'):
            assert not file.is_file() or b'Secret-1' not in file.read_bytes()
        manifest = json.loads((ran / 'out/index/manifest.json').read_text())
        assert manifest['milvus']['token'] == ('env:MILVUS_TOKEN' if 'env' in token else None)
        assert load_searcher(ran / 'out').index.collection.milvus.token in ('root:Secret-1', None)
    monkeypatch.delenv('MILVUS_TOKEN')
    configure(ran, milvus=dict(uri=server.uri, token='env:MILVUS_TOKEN'))
    assert 'this variable is not set' in refused(ran, 'query', '--image', ran / 'images')
    configure(ran, milvus=dict(uri='http://root:Secret-1@127.0.0.1:9'))
    said = refused(ran, 'index')
    assert 'holds a password' in said and 'Secret' not in said


# ---- settings


@pytest.mark.parametrize(
    'index, words',
    [
        (dict(nprobe=3), 'index.nprobe does nothing with index.kind milvus'),
        (dict(factory='Flat'), 'index.factory does nothing'),
        (dict(dim=64), 'the model gives vectors of 32 numbers'),
    ],
)
def test_settings_of_the_index(ran, server, index, words):
    configure(ran, index=dict(kind='milvus', **index), milvus=dict(uri=server.uri))
    assert words in refused(ran, 'index')


def test_no_address(ran):
    configure(ran, index=dict(kind='milvus'))
    assert 'milvus.uri is not set' in refused(ran, 'index')


def test_too_many_hits(tmp_path):
    milvus = connect(tmp_path / 'milvus.db')
    collection = collections.Collection(milvus, 'two_tower_vs', 'a' * 64, 32)
    with pytest.raises(InputError, match='at most 16,384 hits, not 20,000'):
        collection.search(small(1).vectors, 20_000)


# ---- Milvus Lite


@pytest.mark.rest
def test_a_folder_that_moves_with_the_run(ran):
    "the manifest names it as seen from the bundle"
    configure(ran, index=dict(kind='milvus'), milvus=dict(uri='vectors.db'))
    staged(ran, 'index')
    there = ran.parent / 'moved'
    from milvus_lite.server_manager import server_manager_instance

    server_manager_instance.release_server(str(ran / 'vectors.db'))
    shutil.move(ran, there)
    searcher = load_searcher(there / 'out')
    assert len(searcher.search(sorted((there / 'images/line').iterdir())[0], 3)) == 3


@pytest.mark.rest
def test_a_folder_that_another_process_uses(tmp_path):
    code = 'import sys, time; from two_tower_vs.milvusclient import connect\n'
    code += 'connect(sys.argv[1]); print("here", flush=True); time.sleep(60)'
    folder = tmp_path / 'milvus.db'
    command = [sys.executable, '-c', code, str(folder)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == 'here\n'
    with pytest.raises(MilvusError, match='one process at a time'):
        connect(folder, seconds=2)
    other.kill()
    other.wait()
    assert connect(folder).ask('list_collections') == []


# ---- rows by number


@pytest.mark.rest
def test_rows_that_are_no_longer_kept(tmp_path):
    "they are looked up again; the memory is bounded"
    milvus = connect(tmp_path / 'milvus.db')
    cands = small(200)
    cands.contents = np.arange(3200, dtype=np.uint16).astype(np.uint8).reshape(200, 16)
    made = upload(milvus, cands, 'a' * 64)
    facts = dict(vars(made), model_sha256='a' * 64, recall_vs_exact=None)
    index = open_index(manifest_of(facts, 32), str(tmp_path / 'milvus.db'))
    index.paths.most = 10
    scores, rows = index.search(cands.vectors, 3)
    assert len(index.paths.known) == 10
    assert [index.paths[row] for row in rows[:, 0]] == cands.paths
    own = [index.same_picture(row, cands.contents[at]) for at, row in enumerate(rows)]
    assert np.array(own)[:, 0].all()
    assert not index.same_picture(rows[0], None).any()
    tables = list(index.batch_hits(cands.vectors, 3, contents=cands.contents))
    assert [table.cand_path[0] for table in tables] == cands.paths
    assert all(table.same_picture[0] for table in tables)
    assert scores[:, 0] == pytest.approx(1, abs=1e-5)


# ---- the compose file


def test_compose_file():
    "it is YAML, every image has a version, and no port is open to other machines"
    file = Path(__file__).resolve().parent.parent / 'deploy/milvus-standalone.yml'
    compose = yaml.safe_load(file.read_text())
    assert set(compose['services']) == {'milvus'}
    for service in compose['services'].values():
        assert re.search(r':(v\d+\.\d+\.\d+|RELEASE\.\d{4}-[\dTZ-]+)$', service['image'])
        named = {volume.split(':')[0] for volume in service['volumes']}
        assert named <= set(compose['volumes'])
        assert all(port.startswith('127.0.0.1:') for port in service.get('ports', []))
    assert compose['services']['milvus']['ports'] == ['127.0.0.1:19530:19530']


@pytest.mark.rest
def test_verify_is_about_files_and_leaves_milvus_alone(served, cli):
    query = ['--config', served / 'config.yaml', '--stage', 'query', '--verify']
    status, _, err = cli(*query, '--image', served / 'images/line')
    assert status == 0, err
