"""Several backbones in one tower, or another for queries: from the tables to an answer."""

import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from test_saving import reseal, small

from two_tower_vs.cli import main
from two_tower_vs.config import read_config
from two_tower_vs.data import read_pairs
from two_tower_vs.demo import demo_catalog
from two_tower_vs.distilled import _best_ridge, _out_of_fold, fitted_bridge, folds
from two_tower_vs.engine import Engine, backbone_key
from two_tower_vs.errors import InputError
from two_tower_vs.eval import untrained
from two_tower_vs.export import _can_write_onnx
from two_tower_vs.finetune import PictureBatches, finetune
from two_tower_vs.model import TwoTower
from two_tower_vs.objective import Objective
from two_tower_vs.pairtable import PairTable
from two_tower_vs.pictures import load_image
from two_tower_vs.saving import load_model, save_model
from two_tower_vs.steps import backbone_params, backbones

TWO = ['timm/test_resnet', 'squeezenet1_0']  # 160 and 224 pixels
TINY = ['timm/test_resnet', 'timm/test_efficientnet']


def tower_of(name, **more):
    return TwoTower(name, pretrained=False, embed_dim=None, levels=0, **more).query


@pytest.fixture(scope='module')
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    return Image.fromarray(pixels)


@torch.no_grad()
def features(tower, picture):
    return tower.features(torch.from_numpy(tower.pixels(picture))[None])


def test_each_backbone_sees_the_picture_as_it_would_alone(picture):
    both = tower_of(TWO)
    assert both.shape == (3, 160 + 224, 224)
    found = features(both, picture)
    start = 0
    for number, name in enumerate(TWO):
        alone = tower_of(name)
        alone.backbone.load_state_dict(both.backbone.parts[number].state_dict())
        wanted = features(alone, picture)
        part = found[:, start : start + wanted.shape[1]]
        assert torch.allclose(part * 2**0.5, wanted, atol=1e-5)
        start += wanted.shape[1]
    assert start == both.n_features


@pytest.mark.parametrize('kind', ['openvino', 'torch'])
def test_engines_agree(picture, kind):
    both = tower_of(TINY, image_size=32)
    pixels = both.pixels(picture)[None]
    found = Engine(both, kind, precision='float32')(pixels)
    with torch.no_grad():
        assert np.allclose(found, both.features(torch.from_numpy(pixels)), atol=1e-4)


def test_every_backbone_is_part_of_the_key():
    keys = {backbone_key(tower_of(name)) for name in (TWO, TWO[::-1], TWO[0])}
    keys.add(backbone_key(tower_of(TWO, image_size=64)))
    assert len(keys) == 4


def test_a_list_of_one_is_that_one(picture):
    assert torch.equal(features(tower_of(TWO[:1]), picture), features(tower_of(TWO[0]), picture))


def test_all_backbones_are_tuned():
    model = TwoTower(TINY, pretrained=False, image_size=64, share='none')
    assert len(backbones(model)) == 4
    count = sum(param.numel() for param in model.parameters())
    heads = 2 * (model.n_features + 1) * model.query.head.out_features
    assert sum(param.numel() for param in backbone_params(model)) == count - heads


@pytest.mark.parametrize(
    'options,message',
    [
        (dict(backbone=[]), 'an empty list'),
        (dict(backbone=TWO, weights='mine.pth'), 'a file for one backbone, and there are 2'),
        (dict(query_backbone=TWO[0], weights='mine.pth'), 'and there are 2'),
        (dict(query_backbone=TWO[0], share='all'), 'queries have a backbone of their own'),
        (dict(backbone=['resnet18', 'resnet_18']), "'resnet_18' is unknown"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        TwoTower(**{'pretrained': False, **options})


def test_config(tmp_path):
    file = tmp_path / 'config.yaml'
    file.write_text('model: {backbone: [resnet18, timm/test_resnet], query_backbone: resnet18}')
    found = read_config(file)['model']
    assert found == dict(backbone=['resnet18', 'timm/test_resnet'], query_backbone='resnet18')
    file.write_text('model: {backbone: [18]}')
    with pytest.raises(InputError, match=r'backbone: \[18\] is not a list of texts'):
        read_config(file)


@pytest.mark.parametrize('share', ['all', 'backbone', 'none'])
def test_a_model_of_format_1(tmp_path, share):
    model = small(share=share, levels=2)
    model.set_centre(torch.randn(8, model.n_features), torch.zeros(8), torch.ones(8))
    save_model(model, tmp_path)
    now = json.loads((tmp_path / 'model.json').read_text())
    assert now['format'] == 2 and now['query'] == now['cand']
    before = dict(format=1, features=now['query']['features'], prep=now['query']['prep'])
    reseal(tmp_path, drop=['query', 'cand', 'query_backbone'], **before)
    again = load_model(tmp_path)
    assert again.config == model.config
    x = torch.randint(0, 255, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model.query(x), again.query(x))
        assert torch.equal(model.centred().cand(x), again.centred().cand(x))


def test_two_widths_on_disk(tmp_path):
    model = small(query_backbone=TWO)
    with torch.no_grad():
        for param in model.cand.backbone.parameters():
            param.mul_(1.5)
    save_model(model, tmp_path)
    described = json.loads((tmp_path / 'model.json').read_text())
    widths = [described[tower]['features'] for tower in ('query', 'cand')]
    assert widths == [model.query.n_features, model.cand.n_features] and widths[0] > widths[1]
    again = load_model(tmp_path)
    with torch.no_grad():
        for name in ('query', 'cand'):
            ours, theirs = getattr(model, name), getattr(again, name)
            x = torch.randint(0, 255, (2, *ours.shape), dtype=torch.uint8)
            assert torch.equal(ours(x), theirs(x))
    alone = untrained(again)
    assert alone.query is not None and alone.cand.n_features == widths[0]


def test_the_ridge_against_its_formula():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 3))
    bridge = fitted_bridge(torch.from_numpy(x), torch.from_numpy(y), 0.5)
    centred = x - x.mean(0)
    strength = 0.5 * (centred**2).sum() / 5
    wide = np.r_[centred, np.sqrt(strength) * np.eye(5)]
    target = np.r_[y - y.mean(0), np.zeros((5, 3))]
    assert np.allclose(bridge.weight.T, np.linalg.lstsq(wide, target, rcond=None)[0])
    assert np.allclose(bridge(torch.from_numpy(x)).mean(0), y.mean(0))


def test_a_query_is_not_seen_by_its_own_map():
    rng = torch.Generator().manual_seed(0)
    small_, large = torch.randn(1, 60, 4, generator=rng), torch.randn(1, 60, 7, generator=rng)
    fold = folds(np.repeat(np.arange(12), 5))
    before = _out_of_fold(small_, large, fold, 0.1)
    changed = large.clone()
    changed[0, torch.from_numpy(fold == 2)] += 100
    after = _out_of_fold(small_, changed, fold, 0.1)
    same = torch.from_numpy(fold == 2)
    assert torch.equal(before[0, same], after[0, same])
    assert not torch.allclose(before[0, ~same], after[0, ~same])
    assert _best_ridge(small_, large, fold) == 10  # there is nothing to find


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    return demo_catalog(tmp_path_factory.mktemp('joined') / 'demo', side=32, limit=20)


def project(demo, folder, **model):
    "A configuration of the demo's tables for tiny networks"
    config = yaml.safe_load((demo / 'config.yaml').read_text())
    for name in ('pairs', 'candidates', 'query_gt'):
        config['data'][name] = str(demo / f'{name}.csv')
    config['data']['images_root'] = str(demo / 'images')
    config['model'] = dict(pretrained=False, image_size=32, embed_dim=8, **model)
    config['train'] |= dict(epochs=1, promote='always')
    config['embed'] = dict(engine='torch')
    (folder / 'config.yaml').write_text(yaml.safe_dump(config))
    return folder / 'config.yaml'


@pytest.mark.parametrize(
    'model',
    [dict(backbone=TINY), dict(backbone=TINY, query_backbone=TINY[0])],
    ids=['several', 'another for queries'],
)
def test_the_whole_way(demo, tmp_path, model):
    file = project(demo, tmp_path, **model)
    picture = sorted((demo / 'images/line').glob('*.png'))[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for stage in ('train', 'eval', 'index', 'query'):
            args = ['--config', str(file), '--stage', stage]
            assert main([*args, '--image', str(picture)] if stage == 'query' else args) == 0
    assert 'trained with other settings' not in ' '.join(str(each.message) for each in caught)
    out = tmp_path / 'out'
    first = json.loads((out / 'query.json').read_text())['hits'][0]
    trained = load_model(out / 'model')
    with torch.no_grad():
        query = trained.query([load_image(picture)])
        best = trained.cand([load_image(demo / 'images' / first['cand_path'])])
    assert abs(float(query @ best.T) - first['score']) < 1e-3
    assert 'centred' in json.loads((out / 'metrics.json').read_text())


def test_fine_tuning_needs_one_backbone(demo, tmp_path, capsys):
    file = project(demo, tmp_path, backbone=TINY[1], query_backbone=TINY[0])
    file.write_text(file.read_text().replace('finetune_epochs: 0', 'finetune_epochs: 1'))
    assert main(['--config', str(file), '--stage', 'train']) == 2
    assert 'train.finetune_epochs tunes towers of one backbone' in capsys.readouterr().err


def test_one_step_tunes_all_backbones(demo):
    "Gradients reach every network of the query tower, and none of the locked candidates"
    model = TwoTower(TINY, pretrained=False, image_size=32, embed_dim=8, share='none')
    table = PairTable(read_pairs(demo / 'pairs.csv', demo / 'images'))
    tuning = finetune(towers='query', augmentation='none')
    locked = torch.randn(1, len(table.cands), model.n_features)
    learner = PictureBatches(
        model, table, demo / 'images', 0, Accelerator(cpu=True), tuning, {}, locked
    )
    learner(np.arange(4), 0, Objective(table))
    for part in model.query.backbone.parts:
        assert any(param.grad is not None and param.grad.any() for param in part.parameters())
    assert all(param.grad is None for param in model.cand.backbone.parameters())


def test_onnx_needs_one_size():
    with pytest.warns(UserWarning, match='several sizes, and an ONNX file takes one'):
        assert not _can_write_onnx(TwoTower(TWO, pretrained=False, levels=0))
