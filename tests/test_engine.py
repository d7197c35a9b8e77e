"""The engine: what is decided once, and what happens when OpenVINO and PyTorch disagree."""

import copy
import json
import subprocess
import sys
import time
import warnings
from unittest import mock

import numpy as np
import pytest
import torch

from two_tower_vs import networks, precision, runners
from two_tower_vs.engine import Engine, backbone_key
from two_tower_vs.model import TwoTower
from two_tower_vs.networks import CoreSharing, NetworkFiles
from two_tower_vs.pictures import load_pixels

pytest.importorskip('openvino')


@pytest.fixture(scope='module')
def tower():
    return TwoTower(image_size=64, embed_dim=8, levels=0).cand


@pytest.fixture
def pixels(fresh, tower):
    paths = sorted((fresh / 'images/color').glob('*.png'))[:12]
    return np.stack([tower.pixels(load_pixels(path, side=64)) for path in paths])


def quiet_or_not(function):
    "What a function returns, and the text of its warnings"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = function()
    return result, ' '.join(str(warning.message) for warning in caught)


def turned(angle):
    "OpenVINO in 32 bits, whatever was asked for, with vectors that are turned by an angle"
    plain = runners.openvino_features

    def features(tower, folder, key, precision, alone):
        run = plain(tower, folder, key, 'float32', alone)

        def other(pixels):
            vectors = run(pixels)
            side = np.roll(vectors, 1, axis=1)
            side -= (vectors * side).sum(1, keepdims=True) * vectors
            side /= np.linalg.norm(side, axis=1, keepdims=True)
            return (np.cos(angle) * vectors + np.sin(angle) * side).astype(np.float32)

        return other

    return mock.patch.object(runners, 'openvino_features', features)


def with_bfloat16():
    return mock.patch.object(runners, 'has_bfloat16', lambda *args: True)


def exact(tower, pixels):
    return Engine(tower, 'torch', precision='float32')(pixels)


def test_other_vectors_are_not_used(tower, pixels, tmp_path):
    def run():
        engine = Engine(tower, folder=tmp_path, precision='float32')
        return engine, engine(pixels)

    with turned(0.05):
        (engine, features), said = quiet_or_not(run)
    assert np.allclose(features, exact(tower, pixels), atol=1e-5)
    assert engine.name == 'torch'
    assert 'gives other vectors than PyTorch (cosine 0.99' in said


@pytest.mark.rest
def test_each_version_of_openvino_is_compared_once(tower, pixels, tmp_path):
    other_pictures = mock.patch.object(precision, 'top_agreement', lambda *args: 0.9)
    with other_pictures, with_bfloat16():
        quiet_or_not(lambda: Engine(tower, folder=tmp_path, sample=lambda count: pixels))
    first = Engine(tower, folder=tmp_path)
    assert first.precision == 'float32'
    expected = first(pixels)
    assert json.loads((tmp_path / f'{first.key}.json').read_text())['cosine'] > 0.9999
    with mock.patch.object(precision, 'least_cosine', lambda *args: 1 / 0):
        assert np.array_equal(Engine(tower, folder=tmp_path)(pixels), expected)
    version = mock.patch.object(precision, '_openvino_version', lambda: '0')
    with version, turned(0.05):
        engine = Engine(tower, folder=tmp_path)
        features, said = quiet_or_not(lambda: engine(pixels))
    assert engine.name == 'torch' and 'gives other vectors' in said
    assert np.allclose(features, exact(tower, pixels), atol=1e-5)


def test_without_openvino(tower, pixels):
    with mock.patch.dict('sys.modules', openvino=None):
        features, said = quiet_or_not(lambda: Engine(tower)(pixels))
    assert np.allclose(features, exact(tower, pixels), atol=1e-5)
    assert 'cannot run this network' in said


@pytest.mark.parametrize('sample', [None, lambda count: None])
def test_without_pictures_it_is_float32(tower, tmp_path, sample):
    with with_bfloat16():
        assert Engine(tower, folder=tmp_path, sample=sample).precision == 'float32'
    assert not list(tmp_path.glob('*.json'))


def test_a_damaged_note(tower, tmp_path):
    (tmp_path / f'{backbone_key(tower)}.json').write_text('[1')
    engine, said = quiet_or_not(lambda: Engine(tower, folder=tmp_path))
    assert engine.precision == 'float32' and 'is damaged' in said


class Printed(torch.nn.Module):
    "Prints the address of a function, as some activations do"

    def __init__(self, network, function):
        super().__init__()
        self.network = network
        self.function = function

    def extra_repr(self):
        return f'function={self.function}'


def test_the_key_depends_on_layers_without_weights_and_not_on_addresses(tower):
    def key(network):
        other = TwoTower(image_size=64, embed_dim=None).cand
        other.backbone = network
        return backbone_key(other)

    plain = tower.backbone
    pooled = copy.deepcopy(plain)
    pooled.global_pool = torch.nn.AdaptiveMaxPool2d(1)
    assert key(plain) != key(pooled)
    same = [key(Printed(plain, made)) for made in (lambda x: x, lambda x: x)]
    assert same[0] == same[1]


def flip(file, at=0.6):
    "Change one bit of a file"
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 64
    file.write_bytes(data)


@pytest.mark.rest
def test_a_flipped_bit_of_a_network_is_noticed(tower, pixels, tmp_path):
    def run():
        return Engine(tower, folder=tmp_path)(pixels)

    expected = run()
    files = NetworkFiles(tmp_path, backbone_key(tower)).present()
    for file in files:
        if file.suffix == '.xml':
            continue
        flip(file)
        features, said = quiet_or_not(run)
        assert np.array_equal(features, expected)
        assert said.count('is damaged') == 1
        assert quiet_or_not(run)[1] == ''


def named_program(purpose):
    "A program that says what it is for, after a call of what it is given"

    def program(during):
        if during:
            during()
        return purpose

    return program


def test_who_shares_the_cores(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(networks.time, 'monotonic', lambda: now[0])
    run = CoreSharing(named_program)
    inner = []
    assert run(None) == 'LATENCY'
    assert run(lambda: inner.append(run(None))) == 'LATENCY'
    assert inner == ['THROUGHPUT']
    assert run(None) == 'THROUGHPUT'  # just after two met
    now[0] += 1
    assert run(None) == 'LATENCY'


def test_a_failing_call_does_not_count_as_running():
    run = CoreSharing(named_program)
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    assert run(None) == 'LATENCY' and run.for_many is None


def test_openvino_after_a_fork():
    use = networks.OpenVINOUse()
    use.after_fork()
    assert not use.broken
    with use:
        pass
    use.ended = time.monotonic() - 2
    use.after_fork()
    assert not use.broken
    with use:
        use.after_fork()
        assert use.broken and not use.calls
        use.calls.append(None)
    use.ended = -np.inf
    use.after_fork()
    assert use.broken


SIGNAL_AFTER_TWO = """
import gc, signal, subprocess, sys
from two_tower_vs.model import TwoTower
from two_tower_vs.networks import openvino_features

def features(size):
    tower = TwoTower(pretrained=False, image_size=size, embed_dim=None, levels=0).query
    return openvino_features(tower, None, str(size), 'float32')

first = features(32)
second = features(48)
del first
gc.collect()
del second
gc.collect()
signal.signal(signal.SIGCHLD, lambda *args: print('signal'))
subprocess.run([sys.executable, '-c', ''])
print('alive')
"""


@pytest.mark.rest
def test_a_signal_after_two_engines_does_not_end_the_process():
    done = subprocess.run([sys.executable, '-c', SIGNAL_AFTER_TWO], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == ['signal', 'alive'], done.stderr


def test_telemetry_is_off_here_too():
    "It would connect to a server at each conversion, by a fork that may never end"
    assert sys.modules['openvino_telemetry'] is None
