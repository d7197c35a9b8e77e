"""Vectors, and the contents they belong to."""

import hashlib
import os
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from two_tower_vs import embed as embed_module
from two_tower_vs.cache import FeatureCache
from two_tower_vs.embed import embed
from two_tower_vs.engine import Engine, backbone_key
from two_tower_vs.model import TwoTower
from two_tower_vs.pictures import load_image
from two_tower_vs.views import augment


def first_bytes(path):
    "The start of a file's SHA-256"
    return np.frombuffer(hashlib.sha256(path.read_bytes()).digest()[:16], np.uint8)


@pytest.mark.rest
def test_contents_are_the_hashes_of_the_files(fresh, tmp_path):
    root = fresh / 'images'
    paths = sorted(p.relative_to(root).as_posix() for p in root.glob('color/*.png'))[:12]
    (root / 'broken.png').write_bytes(b'nothing')
    paths.insert(3, 'broken.png')
    tower = TwoTower(pretrained=False, image_size=32, embed_dim=8).cand
    for cache in (None, tmp_path / 'cache', tmp_path / 'cache'):
        embeddings = embed(tower, paths, root, cache)
        assert len(embeddings.paths) == 12
        assert list(embeddings.bad) == ['broken.png']
        want = np.stack([first_bytes(root / p) for p in embeddings.paths])
        assert np.array_equal(embeddings.contents, want)


@pytest.mark.rest
def test_openvino_sends_nothing(tmp_path):
    "Its telemetry would fork this process and connect to a server at each conversion"
    import subprocess
    import sys

    script = (
        'import sys; from two_tower_vs.embed import embed; '
        'from two_tower_vs.model import TwoTower; '
        'from PIL import Image; Image.new("RGB", (40, 40), "red").save(sys.argv[1] + "/a.png"); '
        'tower = TwoTower(pretrained=False, image_size=32, embed_dim=8).cand; '
        'embed(tower, ["a.png"], sys.argv[1], engine="openvino"); '
        'print(sys.modules.get("openvino_telemetry"), "openvino" in sys.modules)'
    )
    ended = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', script, tmp_path], capture_output=True, text=True
    )
    assert ended.stdout.strip() == 'None True', ended.stderr


@pytest.fixture(scope='module')
def base():
    return TwoTower(image_size=64, embed_dim=None, levels=0).cand


def colors(fresh, count):
    paths = (fresh / 'images/color').glob('*.png')
    return sorted(path.relative_to(fresh / 'images').as_posix() for path in paths)[:count]


@pytest.fixture
def computed(monkeypatch):
    "How many pictures went through a network so far"
    counts = []

    class Counting(Engine):
        def __call__(self, pixels):
            counts.append((pixels.reshape(len(pixels), -1).max(1) > 0).sum())
            return super().__call__(pixels)

    monkeypatch.setattr(embed_module, 'Engine', Counting)
    return lambda: sum(counts)


def test_nothing_is_computed_twice(fresh, base, tmp_path, computed):
    "A changed or an added picture is computed, a moved one isn't"
    folder = tmp_path / 'images'
    shutil.copytree(fresh / 'images/color', folder)
    every = sorted(os.listdir(folder))
    names = every[:40]

    def passing(paths):
        before = computed()
        found = embed(base, paths, folder, tmp_path / 'cache')
        return found, computed() - before

    assert passing(names)[1] == 40
    assert passing(names)[1] == 0
    load_image(folder / names[7]).rotate(90).save(folder / names[7])
    (folder / names[8]).rename(folder / 'moved.png')
    (folder / names[9]).write_bytes(b'broken')
    now = [*names[:8], 'moved.png', *names[9:], 'nowhere.png', every[45]]
    found, new = passing(now)
    assert new == 2
    assert len(found) == 40
    assert set(found.bad) == {names[9], 'nowhere.png'}
    # rows stay with their paths around the gap
    alone = embed(base, [names[20]], folder, engine='torch')
    row = found.rows([names[20]])
    assert (found.vectors[row] * alone.vectors).sum() > 0.999


def test_an_array_to_fill(fresh, base, tmp_path):
    paths = colors(fresh, 12)
    out = np.lib.format.open_memmap(tmp_path / 'v.npy', 'w+', np.float32, (12, 1280))
    found = embed(base, paths, fresh / 'images', out=out)
    assert np.array_equal(found.vectors, out) and np.shares_memory(found.vectors, out)


def test_views_are_the_same_in_every_run(fresh, base, tmp_path):
    paths = colors(fresh, 12)
    plain = embed(base, paths, fresh / 'images').vectors
    cached, again = (
        embed(base, paths, fresh / 'images', tmp_path, view=1).vectors for _ in range(2)
    )
    direct = embed(base, paths, fresh / 'images', view=1).vectors
    assert np.array_equal(cached, again)
    assert ((cached * direct).sum(1) > 0.999).all()
    assert ((cached * plain).sum(1) < 0.999).all()


@pytest.mark.rest
def test_an_interrupted_run_keeps_what_it_had(fresh, base, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    calls = []
    plain = Engine.__call__

    def stopping(self, pixels):
        if len(calls) == 3:
            raise Stop
        calls.append(1)
        return plain(self, pixels)

    paths = colors(fresh, 50)
    want = embed(base, paths, fresh / 'images', tmp_path / 'whole', batch_size=8)
    with monkeypatch.context() as patched:
        patched.setattr(Engine, '__call__', stopping)
        # One result waits at a time, so that the first batches are the first calls
        patched.setattr(embed_module, 'cores', lambda: -1)
        with pytest.raises(Stop):
            embed(base, paths, fresh / 'images', tmp_path / 'cache', batch_size=8)
    precision = Engine(base, folder=tmp_path / 'cache').precision
    kept = FeatureCache(tmp_path / 'cache' / backbone_key(base), precision).starts[-1]
    assert 0 < kept <= 24
    again = embed(base, paths, fresh / 'images', tmp_path / 'cache', batch_size=8)
    assert np.array_equal(again.vectors, want.vectors)


@pytest.mark.rest
def test_a_flipped_bit_of_a_feature_is_noticed(fresh, base, tmp_path):
    paths = colors(fresh, 20)
    want = embed(base, paths, fresh / 'images', tmp_path).vectors
    (shard,) = tmp_path.glob(f'{backbone_key(base)}*/*.safetensors')
    data = bytearray(shard.read_bytes())
    data[int(len(data) * 0.6)] ^= 64
    shard.write_bytes(data)
    with pytest.warns(UserWarning, match='is damaged; its pictures are read again') as caught:
        again = embed(base, paths, fresh / 'images', tmp_path).vectors
    assert len(caught) == 1 and np.array_equal(again, want)
    assert np.array_equal(embed(base, paths, fresh / 'images', tmp_path).vectors, want)


@pytest.mark.parametrize('size', [(1, 1), (3, 900), (900, 3)])
@pytest.mark.parametrize('preset', ['photo', 'drawing', 'document', 'none'])
def test_views_of_extreme_shapes(size, preset):
    for seed in range(20):
        assert min(augment(Image.new('RGB', size), random.Random(seed), preset).size) >= 1
