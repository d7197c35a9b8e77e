"""NaN and infinity are refused where they arise, in one line that names what holds them."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

from two_tower_vs.cache import FeatureCache
from two_tower_vs.embed import embed
from two_tower_vs.errors import InputError
from two_tower_vs.heads import PairHeads, closed_form, pair_stats
from two_tower_vs.loss import clamp_scale, log_scale
from two_tower_vs.model import TwoTower
from two_tower_vs.saving import file_sha256, load_model, save_model
from two_tower_vs.vectors import Embeddings, apply_head, shorten


def broken(path, number, name='conv1.0.weight'):
    "A file of test_resnet's weights, one of them `number`"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = timm.create_model('test_resnet').state_dict()
    state[name].view(-1)[7] = number
    save_file(state, path)
    return path


def small(**more):
    return TwoTower(
        'timm/test_resnet', pretrained=False, image_size=32, embed_dim=8, levels=0, **more
    )


def some_paths(root, count=12):
    return sorted(path.relative_to(root).as_posix() for path in root.glob('color/*.png'))[:count]


@pytest.mark.parametrize('number', [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize('name', ['conv1.0.weight', 'bn1.running_mean', 'fc.weight'])
def test_weights_file_api(tmp_path, number, name):
    file = broken(tmp_path / 'broken.safetensors', number, name)
    with pytest.raises(
        InputError, match=rf'broken.safetensors: 1 of \d+ numbers of {name} are NaN or infinite'
    ):
        TwoTower('timm/test_resnet', weights=file)


def test_a_number_too_large_for_32_bits(tmp_path):
    state = {
        name: value.double() if value.is_floating_point() else value
        for name, value in load_file(broken(tmp_path / 'w.safetensors', 1.0)).items()
    }
    state['conv1.0.weight'].view(-1)[3] = 1e300
    torch.save(state, tmp_path / 'w.pth')
    with pytest.raises(InputError, match='numbers of conv1.0.weight are NaN or infinite'):
        TwoTower('timm/test_resnet', weights=tmp_path / 'w.pth')


def one_line(cli, config, stage, *more):
    status, _, err = cli('--config', config, '--stage', stage, *more)
    said = [line for line in err.splitlines() if line.startswith('two_tower_vs: ')]
    assert status == 2 and 'Traceback' not in err and len(said) == 1, err
    return said[0]


def test_weights_file_on_the_command_line(fresh, cli, tmp_path):
    file = broken(tmp_path / 'broken.safetensors', torch.nan)
    config = fresh / 'config.yaml'
    config.write_text(
        config.read_text().replace(
            'backbone: efficientnet_lite0',
            f'backbone: timm/test_resnet, weights: {json.dumps(str(file))}',
        )
    )
    for stage in ('check', 'train', 'all'):
        assert 'broken.safetensors: 1 of 432 numbers of conv1.0.weight' in one_line(
            cli, config, stage
        )


def poisoned(folder, name, number=np.nan):
    "A trained model whose files agree, with one number that is none"
    file = folder / 'model.safetensors'
    description = json.loads((folder / 'model.json').read_text())
    tensors = load_file(file)
    tensors[name].view(-1)[0] = number
    del description['sha256']
    save_file(tensors, file, metadata={'config': json.dumps(description)})
    (folder / 'model.json').write_text(json.dumps({**description, 'sha256': file_sha256(file)}))


@pytest.mark.parametrize(
    'name', ['query.head.bias', 'cand.head.weight', 'query.backbone.conv1.0.weight']
)
def test_model_file(tmp_path, name):
    save_model(small(), tmp_path)
    load_model(tmp_path)
    poisoned(tmp_path, name)
    with pytest.raises(InputError, match=f'model.safetensors: 1 of .* numbers of {name}'):
        load_model(tmp_path)


def test_model_file_on_the_command_line(ran, cli):
    poisoned(ran / 'out/model', 'query.head.weight')
    picture = next((ran / 'images').glob('line/*.png'))
    for stage, more in (
        ('eval', ()),
        ('index', ()),
        ('query', ('--image', picture)),
        ('serve', ('--port', 0)),
    ):
        said = one_line(cli, ran / 'config.yaml', stage, *more)
        assert 'model.safetensors: 1 of' in said and 'query.head.weight' in said


@pytest.mark.filterwarnings('ignore:.*other vectors')
@pytest.mark.parametrize(
    'cached,engine,precision',
    [
        (False, 'torch', 'auto'),
        (True, 'torch', 'auto'),
        (False, 'openvino', 'auto'),
        (True, 'openvino', 'auto'),
        (False, 'openvino', 'bfloat16'),
    ],
)
def test_features_name_the_picture_and_the_model(fresh, tmp_path, cached, engine, precision):
    tower = small().cand
    with torch.no_grad():
        next(tower.backbone.parameters()).view(-1)[0] = torch.nan
    paths = some_paths(fresh / 'images')
    with pytest.raises(
        InputError, match=rf'{paths[0]}: the backbone timm/test_resnet makes features with NaN'
    ):
        embed(
            tower,
            paths,
            fresh / 'images',
            tmp_path / 'cache' if cached else None,
            engine=engine,
            precision=precision,
        )
    assert not list((tmp_path / 'cache').glob('*/*.safetensors'))


def test_one_picture_of_many(fresh, tmp_path):
    tower = small().cand
    paths = some_paths(fresh / 'images')
    plain = embed(tower, paths, fresh / 'images', engine='torch')
    calls = []

    def odd(module, args, out):
        out[3] = torch.inf
        calls.append(len(out))

    hook = tower.backbone.register_forward_hook(odd)
    with pytest.raises(
        InputError, match=rf'{paths[3]}: .* \(of 1 of the 12 pictures of its batch\)'
    ):
        embed(
            tower,
            paths,
            fresh / 'images',
            tmp_path / 'cache',
            engine='torch',
            precision='float32',
            batch_size=12,
        )
    hook.remove()
    again = embed(
        tower, paths, fresh / 'images', tmp_path / 'cache', engine='torch', precision='float32'
    )
    assert calls and np.allclose(plain.vectors, again.vectors, atol=1e-5)


def test_a_head_with_nan(fresh):
    tower = small().cand
    with torch.no_grad():
        tower.head.bias[2] = torch.nan
    features = np.eye(3, tower.n_features, dtype=np.float32)
    with pytest.raises(
        InputError,
        match='3 of 3 vectors hold NaN or infinity: the head on the backbone timm/test_resnet',
    ):
        apply_head(tower, features)
    features[1] = np.nan
    with pytest.raises(
        InputError, match='1 of 3 vectors .* the backbone timm/test_resnet makes them'
    ):
        apply_head(small().cand, features)
    with pytest.raises(InputError, match='the head on the backbone'):
        embed(tower, some_paths(fresh / 'images'), fresh / 'images')


def test_an_old_cache_with_nan(fresh, tmp_path):
    tower = small().cand
    root = fresh / 'images'
    paths = some_paths(root)
    want = embed(tower, paths, root, tmp_path, precision='float32')
    (shard,) = tmp_path.glob('*/*.safetensors')
    arrays = load_arrays(shard)
    arrays['vectors'][4, 5] = np.nan
    arrays['sums'] = np.ascontiguousarray(arrays['vectors']).view(np.uint16).sum(1, dtype=np.uint32)
    save_arrays(arrays, shard)
    with pytest.warns(UserWarning, match='is damaged; its pictures are read again'):
        again = embed(tower, paths, root, tmp_path, precision='float32')
    assert np.array_equal(want.vectors, again.vectors)


def test_nothing_of_it_is_cached(tmp_path):
    cache = FeatureCache(tmp_path)
    with pytest.raises(InputError, match='NaN or infinity'):
        cache.add(np.zeros((2, 32), np.uint8), np.float32([[1, 0], [np.inf, 0]]))
    cache.flush()
    assert not list(tmp_path.glob('*.safetensors'))


def test_vectors():
    odd = np.float32([[1, 0], [0, np.nan]])
    with pytest.raises(InputError, match='The vector of b holds NaN'):
        Embeddings(odd, ['a', 'b'])
    with pytest.raises(InputError, match='first: row 1'):
        shorten(odd, 2)


def test_closed_form_heads():
    model = small()
    fine = torch.nn.functional.normalize(torch.randn(20, model.n_features), dim=1)
    odd = fine.clone()
    odd[5, 3] = torch.nan
    for queries, candidates in ((odd, fine), (fine, odd)):
        with pytest.raises(InputError, match='1 of 40 rows of the features hold NaN or infinity'):
            PairHeads(model, queries, candidates)
    with pytest.raises(InputError, match='of the candidates hold NaN or infinity .first: row 5'):
        pair_stats(fine, odd, torch.arange(20))
    stats = pair_stats(fine, fine, torch.arange(20))
    stats.total[3, 3] = torch.inf
    with pytest.raises(InputError, match='rows of the total hold NaN or infinity'):
        closed_form(stats, 8)


def test_both_clamps():
    for start, want in ((50.0, 100.0), (-50.0, 1.0), (2.0, None)):
        scale = torch.nn.Parameter(torch.tensor(start))
        clamp_scale(scale)
        assert scale.exp().item() == pytest.approx(
            np.exp(start) if want is None else want, rel=1e-5
        )
    usual = log_scale()
    before = usual.item()
    clamp_scale(usual)
    assert usual.item() == before


@pytest.mark.rest
def test_diverging_on_the_command_line(fresh, cli):
    config = fresh / 'config.yaml'
    config.write_text(
        config.read_text().replace('train: {epochs: 3', 'train: {lr: 1.0e+6, epochs: 3')
    )
    said = one_line(cli, config, 'train')
    assert 'lr' in said
