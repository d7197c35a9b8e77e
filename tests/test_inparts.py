"""Vectors in parts: damaged, incomplete and foreign parts; a cluster whose machines are lost."""

import json
import os
import subprocess
import sys
import time
from unittest import mock

import numpy as np
import pytest

from two_tower_vs import inparts
from two_tower_vs.data import read_candidates
from two_tower_vs.demo import demo_catalog
from two_tower_vs.errors import InputError
from two_tower_vs.inparts import embed_parts, read_parts
from two_tower_vs.model import TwoTower
from two_tower_vs.parts import made_of, read_part
from two_tower_vs.saving import load_model, save_model

PARTS = 8


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    "A project of 256 candidates, one of them unreadable, with an untrained model"
    folder = tmp_path_factory.mktemp('parts') / 'shop'
    demo_catalog(folder, limit=280)
    table = folder / 'candidates.csv'
    rows = table.read_text().splitlines()
    table.write_text('\n'.join(rows[: 32 * PARTS + 1]) + '\n')
    config = folder / 'config.yaml'
    settings = 'embed: {engine: torch, precision: float32}\n'
    config.write_text(config.read_text() + settings)
    picture = folder / 'images' / rows[7]
    picture.write_bytes(picture.read_bytes()[:200])
    save_model(TwoTower(image_size=96, embed_dim=32), folder / 'out/model')
    return folder


def candidates(shop):
    return list(read_candidates(shop / 'candidates.csv', shop / 'images').cand_path)


def made_here(shop, folder, **options):
    model = load_model(shop / 'out/model')
    settings = dict(embedding=dict(engine='torch', precision='float32'), progress=False)
    return embed_parts(model, candidates(shop), shop / 'images', folder, **{**settings, **options})


@pytest.fixture(scope='module')
def alone(shop):
    "The parts that one process makes"
    made_here(shop, shop / 'alone')
    return shop / 'alone'


def parts(folder):
    return sorted(folder.glob('part-*.parquet'))


def test_a_changed_picture_is_embedded_anew(shop, alone):
    path = shop / 'images' / candidates(shop)[100]
    before = path.stat()
    assert made_here(shop, alone).made == 0
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert made_here(shop, alone).made == 1
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert made_here(shop, alone).made == 1


def test_unreadable_pictures_are_named_by_every_run(shop, alone):
    bad = made_here(shop, alone).bad
    assert list(bad) == [candidates(shop)[6]]
    model = load_model(shop / 'out/model')
    found, why = read_parts(model, candidates(shop), shop / 'images', alone)
    assert found.bad == bad and not why and len(found) == 32 * PARTS - 1


def test_the_plan_of_the_first_run_holds(shop, alone):
    "another batch size and precision `auto` change nothing; another precision makes all anew"
    auto = dict(embedding=dict(engine='auto', precision='auto'))
    with mock.patch.object(inparts, 'make_plan', side_effect=AssertionError):
        assert made_here(shop, alone, **auto).made == 0
    (alone / 'plan.safetensors').write_bytes(b'?')
    with pytest.warns(UserWarning, match='how to embed is decided again'):
        assert made_here(shop, alone).made == 0


def test_a_damaged_part_is_made_anew(shop, alone):
    file = parts(alone)[2]
    content = file.read_bytes()
    at = len(content) // 2
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert made_here(shop, alone).made == 1
    assert made_here(shop, alone).made == 0


def test_without_pyarrow(shop, tmp_path, monkeypatch):
    model = load_model(shop / 'out/model')
    paths = candidates(shop)
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(InputError, match=r'pip install two_tower_vs\[parquet\]'):
        embed_parts(model, paths, shop / 'images', tmp_path, progress=False)


def command(shop, out, address):
    "The command line on a cluster, with an output folder of its own"
    import yaml

    settings = yaml.safe_load((shop / 'config.yaml').read_text())
    settings |= dict(out=out, parts=dict(run_on='ray', address=address))
    settings['data'].pop('query_gt', None)
    settings['data']['query_gt'] = 'none.csv'
    config = shop / f'{out}.yaml'
    config.write_text(json.dumps(settings))
    model = shop / out / 'model'
    if not model.exists():
        model.parent.mkdir()
        model.symlink_to(shop / 'out/model')
    flags = ['--config', str(config), '--stage', 'embed']
    return [sys.executable, '-m', 'two_tower_vs', *flags]


def wait_for_parts(folder, count, process, seconds=300):
    for _ in range(10 * seconds):
        if len(parts(folder)) >= count or process.poll() is not None:
            return
        time.sleep(0.1)
    raise AssertionError(f'no {count} parts after {seconds} s')


def same_vectors(folder, other):
    assert [file.name for file in parts(folder)] == [file.name for file in parts(other)]
    for file in parts(folder):
        mine = read_part(file)
        theirs = read_part(other / file.name)
        assert (mine.paths, mine.reasons) == (theirs.paths, theirs.reasons)
        assert (mine.vectors * theirs.vectors).sum(1).min() > 0.9999
        np.testing.assert_array_equal(mine.contents, theirs.contents)


@pytest.fixture(scope='module')
def two_nodes():
    "Two Ray nodes on loopback, of which a test may lose the second"
    pytest.importorskip('ray')
    os.environ['RAY_USAGE_STATS_ENABLED'] = '0'
    from ray.cluster_utils import Cluster

    # Ray keeps the model twice for each worker, 57 MB: with 100 MB a node hung for good
    memory = dict(object_store_memory=500 * 2**20)
    # Not sooner: a machine with other work answers late, and counts as lost
    soon = dict(health_check_period_ms=1000, health_check_failure_threshold=5)
    head = dict(num_cpus=2, _system_config=soon, **memory)
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.second = cluster.add_node(num_cpus=2, **memory)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.mark.timeout(1200)  # two minutes alone, many more beside other tests
def test_a_lost_node_and_a_killed_driver(shop, alone, two_nodes):
    """the driver is killed after two parts, a node during the second run: all rows are there once,
    with the vectors of one process, and what was there stays
    """
    line = command(shop, 'cluster', two_nodes.address)
    folder = shop / 'cluster/vectors'
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_parts(folder, 2, first)
    first.kill()
    first.wait()
    there = {file: file.stat().st_mtime_ns for file in parts(folder)}
    assert 2 <= len(there) < PARTS, 'the driver was not killed in time'
    second = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_parts(folder, len(there) + 1, second)
    two_nodes.remove_node(two_nodes.second, allow_graceful=False)
    killed = time.monotonic()
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert f'in {PARTS} parts' in said and '1 cannot be read' in said
    # Ray needs some seconds to know; a run that is over by then has nothing to say
    told = 'is gone from the cluster; its work is done by others' in said
    assert told or time.monotonic() - killed < 20, said
    assert there == {file: file.stat().st_mtime_ns for file in there}
    same_vectors(folder, alone)
    assert made_of(parts(folder)[0])['libraries']['torch']


@pytest.mark.rest
def test_no_cluster_there(shop):
    line = command(shop, 'nowhere', '127.0.0.1:9')
    r = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert r.returncode == 2, r.stderr
    assert 'there is no Ray cluster' in r.stderr and r.stderr.count('\n') == 1, r.stderr
