"""Eight bits: who gets them, what is calibrated once, and what is never mixed."""

import json
import shutil
import time
import warnings
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from two_tower_vs import embed as embed_module
from two_tower_vs import engine as engine_module
from two_tower_vs import precision as precision_module
from two_tower_vs import query as query_module
from two_tower_vs import runners
from two_tower_vs import train as train_module
from two_tower_vs.data import read_pairs
from two_tower_vs.embed import embed, spread_pixels
from two_tower_vs.engine import Engine
from two_tower_vs.errors import InputError
from two_tower_vs.int8 import Int8Network
from two_tower_vs.model import TwoTower
from two_tower_vs.precision import top_agreement

pytest.importorskip('openvino')


def tiny(**more):
    options = dict(image_size=32, embed_dim=None, levels=0)
    return TwoTower('timm/test_resnet', False, **{**options, **more})


@pytest.fixture(scope='module')
def tower():
    return tiny().cand


@pytest.fixture
def pictures(fresh):
    folder = fresh / 'images'
    return folder, sorted(str(path.relative_to(folder)) for path in folder.glob('*/*.png'))


def quietly(function, *args, **options):
    "What a function returns, and the text of its warnings, without an engine from before"
    embed_module._last_engines.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = function(*args, **options)
    return result, ' '.join(str(warning.message) for warning in caught)


# What a calibration is bound to


@pytest.fixture(scope='module')
def nncf():
    return pytest.importorskip('nncf')


def forget(cache):
    "Delete the networks in 8 bits"
    for file in cache.glob('*-int8.*'):
        file.unlink()


@pytest.mark.rest
def test_calibrated_once_kept_and_never_mixed(nncf, tower, pictures, tmp_path):
    folder, paths = pictures
    cache = tmp_path / 'cache'
    exact = embed(tower, paths, folder, cache, precision='float32').vectors
    first, said = quietly(embed, tower, paths, folder, cache, precision='int8')
    assert '% of the nearest pictures are those of float32' in said
    assert 0.9 < (first.vectors * exact).sum(1).min() < 0.99999
    key, number = first.made_by['network'].split()
    assert (cache / f'{key}-int8-{number}').is_dir()
    # Another process has no pictures, perhaps no NNCF, and gives the same bits
    with mock.patch.dict('sys.modules', nncf=None):
        engine, said = quietly(Engine, tower, folder=cache, precision='int8')
    pixels = spread_pixels([folder / path for path in paths[:8]], tower, 10**8, 8)
    assert said == '' and engine.kept_as == f'int8-{number}'
    assert np.abs(engine(pixels) - first.vectors[:8]).max() < 1e-3  # they are kept in 16 bits
    # The same pictures in another order give the same network again
    forget(cache)
    again, _ = quietly(embed, tower, paths[::-1], folder, cache, precision='int8')
    assert again.made_by['network'] == first.made_by['network']
    # Other pictures give another, whose features are kept apart
    forget(cache)
    other, _ = quietly(embed, tower, paths[:40], folder, cache, precision='int8')
    assert other.made_by['network'] != first.made_by['network']
    assert not np.array_equal(other.vectors, first.vectors[:40])
    assert len(list(cache.glob(f'{key}-int8-*'))) == 2


@pytest.mark.rest
def test_a_damaged_network_is_not_used(nncf, tower, pictures, tmp_path):
    folder, paths = pictures
    pixels = spread_pixels([folder / path for path in paths], tower, 10**8, 32)
    network = Int8Network(tmp_path, 'key')
    number = network.make(tower, pixels)
    data = bytearray(network.files.bin.read_bytes())
    data[len(data) // 2] ^= 64
    network.files.bin.write_bytes(data)
    found, said = quietly(network.number)
    assert found is None and 'is damaged' in said
    assert network.make(tower, pixels) == number


# Refusals


def test_who_cannot_have_int8(tower, pictures, tmp_path):
    folder, paths = pictures

    def refused(message, **options):
        with pytest.raises(InputError, match=message):
            embed(tower, paths, folder, precision='int8', progress=False, **options)

    refused('here the engine is torch. Use embed', engine='torch', cache=tmp_path)
    refused('no folder is given for it. Give embed a cache')
    with mock.patch.dict('sys.modules', nncf=None):
        refused(r"needs an extra: pip install 'two_tower_vs\[int8\]'", cache=tmp_path)
    with pytest.raises(InputError, match=r'32 readable pictures or more \(here: 7\)'):
        embed(tower, paths[:7], folder, tmp_path, precision='int8', progress=False)
    assert not list(tmp_path.glob('*-int8*'))


# What auto takes


@contextmanager
def on_paper(exact, lower, wait):
    "Features by number instead of networks; `wait` seconds for a batch in each precision"

    def features(tower, folder, key, precision, alone):
        def run(pixels):
            time.sleep(wait[precision])
            found = exact if precision == 'float32' else lower
            return found[pixels[:, 0, 0, 0]]

        return run

    runner = runners.Runner(lambda pixels: exact[pixels[:, 0, 0, 0]], 'torch', exact=True)
    lower_runners = mock.patch.object(runners, 'openvino_features', features)
    exact_one = mock.patch.object(engine_module, 'exact_runner', lambda tower: runner)
    with lower_runners, exact_one:
        yield


def numbered(count):
    pixels = np.zeros((count, 3, 8, 8), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(count)
    return pixels


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def made_up():
    "Features, a version that is off but finds the same, and one that is close but does not"
    rng = np.random.default_rng(0)
    exact = unit(np.c_[rng.standard_normal((128, 8)), np.zeros(128)])
    off = exact * np.sqrt(1 - 0.05**2).astype(np.float32)
    off[:, 8] = 0.05  # all are moved towards one side: no order changes
    noise = unit(rng.standard_normal((128, 9)))
    close = unit(exact + 0.025 * noise)
    return exact, off, close


def test_what_is_found_decides_on_bfloat16(tower, tmp_path, monkeypatch):
    exact, off, close = made_up()
    assert (off * exact).sum(1).min() < 0.999 < (close * exact).sum(1).min()
    monkeypatch.setattr(runners, 'has_bfloat16', lambda *args: True)
    for lower, precision in ((off, 'bfloat16'), (close, 'float32')):
        folder = tmp_path / precision
        with on_paper(exact, lower, dict(float32=0, bfloat16=0)):
            engine, said = quietly(Engine, tower, folder=folder, sample=numbered)
            again, nothing = quietly(Engine, tower, folder=folder, sample=lambda count: 1 / 0)
        assert [engine.precision, again.precision] == [precision, precision]
        assert ('In bfloat16 this backbone finds other pictures' in said) == (lower is close)
        assert nothing == ''


class Network:
    "In place of Int8Network: its number is in a list"

    pictures = 128

    def __init__(self, kept):
        self.kept = kept

    def number(self):
        return self.kept[0] if self.kept else None

    def make(self, tower, pixels):
        self.kept.append('123')
        return '123'


@pytest.mark.parametrize(
    'which,wait,pictures,precision',
    [
        (1, 0.001, 20_000, 'int8'),
        (1, 0.001, 19_999, 'float32'),
        (1, 0.02, 20_000, 'float32'),
        (2, 0.001, 20_000, 'float32'),
    ],
)
def test_auto_takes_int8_where_it_pays(
    tower, tmp_path, monkeypatch, which, wait, pictures, precision
):
    "Fast, right and many pictures; the same for one too few, when slower, and when not right"
    kept = []
    features = made_up()
    monkeypatch.setattr(runners, 'has_bfloat16', lambda *args: False)
    monkeypatch.setattr(precision_module, 'Int8Network', lambda *args: Network(kept))
    monkeypatch.setattr(precision_module, 'find_spec', lambda name: name == 'nncf')

    with on_paper(features[0], features[which], dict(float32=0.02, int8=wait)):
        engine = Engine(tower, folder=tmp_path, sample=numbered, pictures=pictures)
        again = Engine(tower, folder=tmp_path)
    assert [engine.precision, again.precision] == [precision, precision]
    assert engine.kept_as == ('int8-123' if precision == 'int8' else 'float32')
    assert again.kept_as == engine.kept_as
    assert bool(kept) == (pictures == 20_000)


def test_a_noted_int8_without_its_network(tower, tmp_path):
    engine = Engine(tower, folder=tmp_path)
    noted = dict(precision='int8', cosine=0.97, openvino='1')
    (tmp_path / f'{engine.key}.json').write_text(json.dumps(noted))
    assert Engine(tower, folder=tmp_path).precision == 'float32'


def test_agreement_by_hand():
    rng = np.random.default_rng(1)
    exact = unit(rng.standard_normal((50, 6)))
    lower = unit(exact + 0.05 * rng.standard_normal((50, 6)))
    right = 0
    for i in range(50):
        scores = {j: exact[i] @ exact[j] for j in range(50) if j != i}
        found = sorted(scores, key=lambda j: -(lower[i] @ lower[j]))[:10]
        tenth = sorted(scores.values())[-10]
        right += sum(scores[j] >= tenth - 0.001 for j in found)
    assert 0.5 < right / 500 < 1
    assert top_agreement(lower, exact) == pytest.approx(right / 500)


# Pictures to decide with


def test_the_sample_is_spread_and_independent_of_order(tower, pictures):
    folder, paths = pictures
    full = [str(folder / path) for path in paths]
    some = spread_pixels(full, tower, 10**8, 10)
    wanted = [
        embed_module.picture_pixels(tower, full[len(full) * i // 10], 10**8) for i in range(10)
    ]
    assert np.array_equal(some, wanted)
    assert np.array_equal(spread_pixels(full[::-1], tower, 10**8, 10), some)
    with_broken = [*full, str(folder / '0.png')]  # of eleven, the first is missing
    assert len(spread_pixels(with_broken, tower, 10**8, 10)) == 10
    assert len(spread_pixels(full[:3], tower, 10**8, 10)) == 3
    assert spread_pixels([], tower, 10**8, 10) is None


# Training and searching


@pytest.mark.rest
def test_training_keeps_int8_for_features_alone(nncf, pictures, fresh, tmp_path, monkeypatch):
    class Seen(Exception):
        pass

    def make_job(model, features, root, state, options, *others):
        raise Seen(options['embedding'])

    monkeypatch.setattr(train_module, 'make_job', make_job)
    pairs = read_pairs(fresh / 'pairs.csv', pictures[0])
    embedding = dict(precision='int8', max_pixels=10**7)
    with pytest.raises(Seen) as seen:
        quietly(
            train_module.train,
            tiny(embed_dim=8),
            pairs,
            pictures[0],
            tmp_path,
            views=0,
            embedding=embedding,
        )
    handed = seen.value.args[0]
    assert (handed['precision'], handed['max_pixels']) == ('auto', 10**7)
    assert list(tmp_path.glob('*-int8-*'))


@pytest.mark.rest
def test_queries_come_from_the_network_of_the_candidates(nncf, tower, pictures, tmp_path):
    folder, paths = pictures
    found, _ = quietly(embed, tower, paths, folder, tmp_path, precision='int8')

    def query_engine(precision='auto', **manifest):
        index = SimpleNamespace(manifest={**found.made_by, **manifest})
        return quietly(query_module._query_engine, tower, index, 'auto', precision, tmp_path, None)

    for asked in ('auto', 'int8'):
        engine, said = query_engine(asked)
        assert (engine.precision, said) == ('int8', '')
    key, number = found.made_by['network'].split()
    _, said = query_engine(network=f'{key} {number[::-1]}')
    assert 'with another calibration than queries are' in said
    _, said = query_engine(network=f'other {number[::-1]}')  # another backbone has its own
    assert said == ''
    forget(tmp_path)
    for asked in ('auto', 'int8'):
        engine, said = query_engine(asked)
        assert engine.precision != 'int8'
        assert 'were embedded in int8, and queries are in' in said
    shutil.rmtree(tmp_path)
