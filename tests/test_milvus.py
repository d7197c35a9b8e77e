"""A collection in Milvus: Milvus Lite in a folder, killed while rows go up, and wrong addresses."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from two_tower_vs.errors import InputError
from two_tower_vs.vectors import Embeddings

pytest.importorskip('milvus_lite')
pytest.importorskip('pymilvus')
from two_tower_vs.collection import remote_hits
from two_tower_vs.milvus import agreement, upload
from two_tower_vs.milvusclient import connect

SHA = 'c' * 64


def catalogue(count, seed=0, dim=16):
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Embeddings(vectors, [f'shelf {number % 7}/{number} ü.jpg' for number in range(count)])


def test_export_of_a_project(ran, cli):
    "further columns go with the rows, and hits are those of the index"
    config = ran / 'config.yaml'
    table = ran / 'candidates.csv'
    lines = table.read_text().splitlines()
    priced = [f'{line},{number}' for number, line in enumerate(lines[1:])]
    table.write_text('\n'.join([f'{lines[0]},price', *priced]) + '\n')
    settings = yaml.safe_load(config.read_text())
    settings |= dict(export=dict(to='milvus'), milvus=dict(uri='vectors.db'))
    config.write_text(yaml.safe_dump(settings))
    status, said, error = cli('--config', config, '--stage', 'export')
    assert status == 0 and 'finds 100.0 % of what exact search finds' in said, error
    made = json.loads((ran / 'out/milvus.json').read_text())
    assert made['rows'] == made['sent'] == len(priced)
    client = connect(ran / 'vectors.db')
    priced = dict(filter='price in ["3", "5"]', output_fields=['path', 'price'])
    rows = client.ask('query', made['collection'], **priced)
    assert sorted(row['path'] for row in rows) == sorted(lines[n + 1] for n in (3, 5))
    client.close()
    again = cli('--config', config, '--stage', 'export')[1]
    assert '0 sent, 0 removed' in again


LOADER = '''
import sys
sys.path.insert(0, {tests!r})
from test_milvus import catalogue, connect, upload
client = connect({folder!r})
ask = client.ask

def told(method, *args, **options):
    answer = ask(method, *args, **options)
    if method == 'upsert':
        print('sent', flush=True)
    return answer

client.ask = told
print(upload(client, catalogue(*{numbers}), {sha256!r}, batch=50), flush=True)
'''


def loading(folder, sha256, *numbers):
    "A process that uploads: Milvus Lite lets one process at a time use a folder"
    tests = os.path.dirname(__file__)
    code = LOADER.format(tests=tests, folder=str(folder), sha256=sha256, numbers=numbers)
    return subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True)


def test_killed_while_rows_go_up(tmp_path):
    """the alias stays with the old collection; the same command sends what is missing, and what
    Milvus had acknowledged is there
    """
    folder = tmp_path / 'vectors.db'
    assert 'Upload(' in loading(folder, 'd' * 64, 100, 1).communicate()[0]
    process = loading(folder, SHA, 3000)
    for _ in range(5):
        assert process.stdout.readline() == 'sent\n'
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 'Upload(' not in process.stdout.read(), 'it was not killed in time'
    client = connect(folder)
    assert len(remote_hits(client, catalogue(1, 1).vectors, 'd' * 64, 3)) == 1
    with pytest.raises(InputError, match='Send its candidates first'):
        remote_hits(client, catalogue(1).vectors, SHA)
    cands = catalogue(3000)
    made = upload(client, cands, SHA)
    assert made.rows == 3000 and 0 < made.sent <= 2750
    assert agreement(client, cands, cands.vectors[:50], SHA) == 1
    client.close()


def test_rows_that_changed_or_are_gone(tmp_path):
    client = connect(tmp_path / 'vectors.db')
    cands = catalogue(40)
    upload(client, cands, SHA, [dict(brand='a')] * 40)
    other = upload(client, cands, SHA, [dict(brand='b'), *[dict(brand='a')] * 39])
    assert (other.sent, other.removed) == (1, 0)
    fewer = Embeddings(cands.vectors[:30].copy(), cands.paths[:30])
    made = upload(client, fewer, SHA, [dict(brand='a')] * 30)
    assert (made.sent, made.removed, made.rows) == (1, 10, 30)
    client.close()


@pytest.mark.parametrize(
    'settings, words',
    [
        ({}, 'milvus.uri is not set'),
        (dict(uri='http://127.0.0.1:9'), 'Milvus at http://127.0.0.1:9'),
        (dict(uri='x.db', token='env:NO_SUCH'), 'this variable is not set'),
    ],
)
def test_one_line(ran, cli, settings, words):
    config = ran / 'config.yaml'
    all_settings = yaml.safe_load(config.read_text())
    all_settings |= dict(export=dict(to='milvus'), milvus=settings)
    config.write_text(yaml.safe_dump(all_settings))
    status, _, said = cli('--config', config, '--stage', 'export')
    refusal = said.splitlines()[-1]
    assert status == 2 and words in refusal and 'Traceback' not in said, said
    assert not (ran / 'out/milvus.json').exists()
