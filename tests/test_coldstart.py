"A second start skips building the network, and only if nothing has changed."

import json
import shutil
import sys

import pandas as pd
import pytest

from two_tower_vs.engine import backbone_key
from two_tower_vs.errors import InputError
from two_tower_vs.query import load_searcher


def is_built(searcher):
    return 'backbone' in searcher.tower._modules


@pytest.fixture
def out(ran):
    "The folder of a run whose network was converted and noted"
    searcher = load_searcher(ran / 'out')
    if searcher.engine.name != 'openvino':
        pytest.skip('queries run on PyTorch here, which needs the network')
    return ran / 'out'


@pytest.fixture
def pictures(ran):
    return sorted((ran / 'images/line').iterdir())[:8]


def test_the_network_is_built_when_something_asks_for_it(out, pictures):
    cold = load_searcher(out)
    note = json.loads((out / 'cache/searcher.json').read_text())
    (out / 'cache/searcher.json').unlink()
    warm = load_searcher(out)
    assert is_built(warm)
    for picture in pictures:
        pd.testing.assert_frame_equal(cold.search(picture), warm.search(picture))
    assert not is_built(cold)
    assert cold.threshold == warm.threshold
    assert backbone_key(cold.tower) == backbone_key(warm.tower) == note['key']
    assert is_built(cold)


def test_without_openvino_the_network_is_built(out, pictures, monkeypatch):
    want = load_searcher(out).search(pictures[0], 3).cand_path.tolist()
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.warns(UserWarning):
        searcher = load_searcher(out)
        assert searcher.search(pictures[0], 3).cand_path.tolist() == want
    assert searcher.engine.name == 'torch'


@pytest.mark.parametrize(
    'change', [None, 'half', dict(model_sha256='0' * 64), dict(key='0' * 24), dict(key='../a')]
)
def test_a_wrong_note_is_written_again(out, change):
    file = out / 'cache/searcher.json'
    was = file.read_text()
    wrong = json.dumps(json.loads(was) | change) if isinstance(change, dict) else ''
    file.write_text(was[:9] if change == 'half' else wrong)
    assert is_built(load_searcher(out))
    assert file.read_text() == was
    assert not is_built(load_searcher(out))


def test_a_changed_description_is_refused(out):
    file = out / 'model/model.json'
    file.write_text(file.read_text().replace('bicubic', 'bilinear'))
    with pytest.raises(InputError, match='was changed since training'):
        load_searcher(out)


def test_damaged_weights_are_refused(out):
    with open(out / 'model/model.safetensors', 'r+b') as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(InputError, match='damaged'):
        load_searcher(out)


def test_a_lost_network_is_converted_again(out):
    key = json.loads((out / 'cache/searcher.json').read_text())['key']
    (out / f'cache/{key}.bin').unlink()
    assert is_built(load_searcher(out))


def test_a_replaced_model_is_refused(out, tmp_path):
    cold = load_searcher(out)
    model = json.loads((out / 'model/model.json').read_text())
    shutil.rmtree(out / 'model')
    with pytest.raises(InputError):
        cold.tower.backbone  # noqa: B018
    assert model['sha256'] == cold.tower.sha256
