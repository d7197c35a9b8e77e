"""Networks without their classifiers, and the messages where there is none."""

import copy
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from unittest import mock
from urllib.error import URLError

import pytest
import torch
import torchvision

from two_tower_vs.backbones import make_backbone
from two_tower_vs.errors import InputError
from two_tower_vs.levels import Levels, last_stages

CLASSIFIERS = torchvision.models.list_models(module=torchvision.models)
# The regnets draw their numbers with functions that need real tensors
ON_META = [name for name in CLASSIFIERS if 'regnet' not in name]


def features_shape(name):
    network, prep = make_backbone(name, pretrained=False)
    return network(torch.zeros(1, 3, prep['size'], prep['size'])).shape


def test_there_are_many():
    assert len(ON_META) >= 60


@pytest.mark.parametrize('name', ON_META)
def test_shapes_alone(name):
    "On the meta device, which computes no numbers"
    with torch.device('meta'):
        shape = features_shape(name)
    assert len(shape) == 2 and shape[1] != 1000


@pytest.mark.parametrize('name', ['regnet_x_400mf', 'regnet_y_400mf'])
def test_shapes_of_regnets(name):
    shape = features_shape(name)
    assert len(shape) == 2 and shape[1] != 1000


def test_weights_out_of_reach(tmp_path, capsys):
    offline = mock.patch('torch.hub.download_url_to_file', side_effect=URLError('no network'))
    nothing_kept = mock.patch('torch.hub.get_dir', return_value=str(tmp_path))
    ways = 'Ways out: set weights to a local file, set pretrained to false'
    with offline, nothing_kept, pytest.raises(InputError, match=ways):
        make_backbone('resnet18')


def test_files_of_weights(tmp_path):
    network, _ = make_backbone('resnet18', pretrained=False)
    state = network.state_dict()
    torch.save(state, tmp_path / 'whole.pth')
    again, _ = make_backbone('resnet18', weights=tmp_path / 'whole.pth')
    assert torch.equal(network.conv1.weight, again.conv1.weight)
    torch.save({'state_dict': dict(list(state.items())[:5])}, tmp_path / 'part.pth')
    (tmp_path / 'text.pth').write_text('not weights')
    (tmp_path / 'evil.pth').write_bytes(pickle.dumps({'a': os.system}, protocol=2))
    refusals = {'part': 'tensors are missing', 'text': 'holds no weights', 'evil': 'safely'}
    for name, message in refusals.items():
        with pytest.raises(InputError, match=message):
            make_backbone('resnet18', weights=tmp_path / f'{name}.pth')


def test_a_compressed_file_of_weights(tmp_path):
    torch.save({'w': torch.zeros(10**6)}, tmp_path / 'w.pt')
    bomb = tmp_path / 'bomb.pt'
    with zipfile.ZipFile(tmp_path / 'w.pt') as plain:
        with zipfile.ZipFile(bomb, 'w', zipfile.ZIP_DEFLATED) as compressed:
            for entry in plain.infolist():
                compressed.writestr(entry.filename, plain.read(entry))
    with pytest.raises(InputError, match='it is compressed'):
        make_backbone('resnet18', weights=bomb)


@pytest.mark.parametrize(
    'name,stages',
    [
        ('resnet18', ['layer3.0', 'layer3.1']),
        ('mobilenet_v3_large', ['features.14', 'features.15', 'features.16']),
        ('vit_b_32', []),
    ],
)
def test_stages(name, stages):
    network, prep = make_backbone(name, pretrained=False)
    assert last_stages(network, prep['size'], 3) == stages


@pytest.fixture(scope='module')
def levels():
    network, _ = make_backbone(image_size=160)
    return Levels(network, last_stages(network, 160, 3), 1280)


@torch.no_grad()
def test_a_copy_has_maps_of_its_own(levels):
    x = torch.rand(2, 3, 160, 160)
    other = copy.deepcopy(levels)
    other.net.blocks[4].register_forward_hook(lambda module, args, out: out * 2)
    assert levels(x).shape == other(x).shape == (2, 2528)
    assert other._maps is not levels._maps


def test_several_threads(levels):
    x = torch.rand(2, 3, 160, 160)

    @torch.no_grad()
    def features(number):
        at = number % 2
        return levels(x[at : at + 1])

    alone = [features(0), features(1)]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(features, range(32))):
            assert torch.allclose(found, alone[number % 2], atol=1e-6)
