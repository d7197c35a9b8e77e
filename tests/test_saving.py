"""Models on disk: what loads, and what is refused in which words."""

import json
import os
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from two_tower_vs.errors import InputError
from two_tower_vs.model import TwoTower
from two_tower_vs.saving import file_sha256, load_model, save_model, steady


def small(seed=1, name='timm/test_resnet', **more):
    options = dict(pretrained=False, image_size=64, embed_dim=8, levels=0, seed=seed)
    return TwoTower(name, **{**options, **more})


def reseal(folder, tensors=None, drop=(), **changed):
    "A pair of files that fit each other, with other contents"
    weights = folder / 'model.safetensors'
    description = folder / 'model.json'
    tensors = load_file(weights) if tensors is None else tensors
    config = json.loads(description.read_text()) | changed
    for name in ('sha256', *drop):
        config.pop(name, None)
    save_file(tensors, weights, metadata={'config': json.dumps(config)})
    description.write_text(json.dumps({**config, 'sha256': file_sha256(weights)}))


@pytest.mark.parametrize('share', ['all', 'backbone', 'none'])
def test_the_same_vectors(tmp_path, share):
    model = small(share=share, levels=2)
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    x = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for name in ('query', 'cand'):
            assert torch.equal(getattr(model, name)(x), getattr(again, name)(x))


def test_a_model_from_before_training_info(tmp_path):
    save_model(small(), tmp_path)
    reseal(tmp_path, drop=['training'])
    assert load_model(tmp_path).training_info == {}
    assert small().training_info == {}


def test_training_info_must_be_json(tmp_path):
    model = small()
    model.training_info = {'recall': float('nan')}
    with pytest.raises(ValueError):
        save_model(model, tmp_path)
    with pytest.raises(InputError, match='model.json is missing. Make it with --stage train'):
        load_model(tmp_path)


@pytest.mark.parametrize(
    'old,new,message',
    [
        ('"format": 2', '"format": 9', 'has format 9'),
        ('"image_size": 64', '"image_size": 96', 'image_size was 64, is 96'),
        ('"threshold": 0.52', '"threshold": 0.1', 'training was {'),
        ('{', '', 'damaged'),
    ],
)
def test_an_edited_description(tmp_path, old, new, message):
    model = small()
    model.training_info = {'match': {'threshold': 0.52}}
    save_model(model, tmp_path)
    description = tmp_path / 'model.json'
    description.write_text(description.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_files_that_do_not_belong_together(tmp_path):
    sha = save_model(small(), tmp_path)
    description = tmp_path / 'model.json'
    right = description.read_text()
    description.write_text(right.replace(sha, '0' * 64))
    with pytest.raises(InputError, match='is not the file'):
        load_model(tmp_path)
    description.write_text(right)
    weights = tmp_path / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match='damaged'):
        load_model(tmp_path)


@pytest.mark.parametrize(
    'claim',
    [
        dict(embed_dim=10**8),
        dict(image_size=10**6),
        dict(backbone='resnet34'),
        dict(backbone=[18]),
    ],
    ids=['a terabyte of head', 'huge pictures', 'another network', 'no network'],
)
def test_forged_descriptions(tmp_path, claim):
    save_model(small(name='resnet18'), tmp_path)
    reseal(tmp_path, **claim)
    with pytest.raises(InputError, match='holds no model that this version can use'):
        load_model(tmp_path)


@pytest.mark.parametrize(
    'tensor,message',
    [
        ('query.head.bias', 'the head has other weights'),
        ('query.backbone.conv1.0.weight', '1 tensors are missing, too many'),
    ],
)
def test_missing_tensors(tmp_path, tensor, message):
    save_model(small(), tmp_path)
    tensors = load_file(tmp_path / 'model.safetensors')
    del tensors[tensor]
    reseal(tmp_path, tensors)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)


def test_folders_in_place_of_files(tmp_path):
    save_model(small(), tmp_path)
    (tmp_path / 'model.safetensors').unlink()
    (tmp_path / 'model.safetensors').mkdir()
    with pytest.raises(InputError, match='is missing'):
        load_model(tmp_path)
    (tmp_path / 'model.json').unlink()
    (tmp_path / 'model.json').mkdir()
    with pytest.raises(InputError, match='is a folder'):
        load_model(tmp_path)


def test_a_model_that_is_replaced_while_it_is_read(tmp_path):
    models = [small(seed) for seed in (1, 2)]
    hashes = [save_model(model, tmp_path) for model in models]
    heads = dict(zip(hashes, (model.query.head.weight for model in models)))
    saved = threading.Event()

    def write_in_turn():
        for number in range(12):
            save_model(models[number % 2], tmp_path)
        saved.set()

    writer = threading.Thread(target=write_in_turn)
    writer.start()
    loaded = []
    while not saved.is_set():
        loaded.append(load_model(tmp_path))
    writer.join()
    for model in loaded:
        assert torch.equal(model.query.head.weight, heads[model.sha256])


def test_a_file_that_never_rests(tmp_path):
    file = tmp_path / 'model.json'
    times = iter(range(1, 100))

    def read():
        file.write_text('x')
        os.utime(file, ns=(0, next(times)))

    with pytest.raises(InputError, match='is replaced again and again'):
        steady(read, file)


@pytest.mark.parametrize(
    'name,value', [('embed_dim', 10**9), ('image_size', 10**6), ('levels', -1), ('seed', -1)]
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(InputError, match=f'TwoTower: {name} is {value}. Use a whole number from'):
        small(**{name: value})
