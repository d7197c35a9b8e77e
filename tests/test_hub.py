"""A folder for Hugging Face: its card as the hub's own package reads it, and loading from it."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load

from two_tower_vs import hub
from two_tower_vs.errors import InputError
from two_tower_vs.hub import from_pretrained
from two_tower_vs.query import load_searcher
from two_tower_vs.saving import file_sha256, load_model


def export(cli, project, **settings):
    file = project / 'config.yaml'
    config = yaml.safe_load(file.read_text())
    config['export'] = dict(to='huggingface', **settings)
    file.write_text(yaml.safe_dump(config))
    return cli('--config', file, '--stage', 'export')


@pytest.fixture(scope='module')
def made(workshop):
    "A finished project, its folder for the hub, and what the command said"
    import attack

    project = attack.project(workshop, run=True)
    status, said, err = export(attack.cli, project)
    assert status == 0, err
    folder = project / 'out/huggingface'
    return SimpleNamespace(project=project, folder=folder, said=said)


def test_the_folder_is_complete(made):
    names = {'README.md', 'config.json', 'model.json', 'model.safetensors'}
    assert {file.name for file in made.folder.iterdir()} == names
    assert all(name in made.said for name in names)
    config = json.loads((made.folder / 'config.json').read_text())
    assert config['model_sha256'] == file_sha256(made.folder / 'model.safetensors')
    assert config['backbone'] == 'efficientnet_lite0' and config['embed_dim'] == 32


def test_the_hub_reads_the_card(made):
    card = ModelCard.load(made.folder / 'README.md')
    metrics = json.loads((made.project / 'out/metrics.json').read_text())['trained']
    read = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert read == {name: metric['value'] for name, metric in metrics.items()}
    assert {result.task_type for result in card.data.eval_results} == {'image-retrieval'}
    assert card.data.library_name == 'two_tower_vs'
    assert card.data.pipeline_tag == 'image-feature-extraction'
    assert 'two_tower_vs' in card.data.tags and 'onnx' not in card.data.tags
    text = card.text
    assert '## Limits' in text and 'from_pretrained' in text and '.parquet' not in text


def test_a_licence_is_stated_only_if_it_is_known(made, ran, cli):
    assert 'license' not in metadata_load(made.folder / 'README.md')
    assert 'add `license`' in (made.folder / 'README.md').read_text()
    assert export(cli, ran, license='apache-2.0')[0] == 0
    card = ran / 'out/huggingface/README.md'
    assert metadata_load(card)['license'] == 'apache-2.0'
    assert 'add `license`' not in card.read_text()


def test_what_is_no_licence_is_refused(ran, cli):
    status, _, err = export(cli, ran, license='My own, see below')
    assert status == 2 and len(err.strip().splitlines()) == 1 and 'export.license' in err
    assert not (ran / 'out/huggingface').exists()


def test_the_round_trip_gives_the_same_vectors(made):
    before = load_model(made.project / 'out/model')
    after = from_pretrained(made.folder)
    assert after.sha256 == before.sha256 and after.training_info == before.training_info
    searcher = load_searcher(made.project / 'out')
    drawing = sorted((made.project / 'images/line').glob('*.png'))[0]
    import torch

    pixels = torch.from_numpy(searcher.pixels(drawing)[None])
    with torch.inference_mode():
        for tower in ('query', 'cand'):
            wanted = getattr(before, tower)(pixels).numpy()
            assert np.array_equal(getattr(after, tower)(pixels).numpy(), wanted)


def test_an_index_fits_the_published_model(made, tmp_path):
    shutil.copytree(made.project / 'out/index', tmp_path / 'index')
    shutil.copytree(made.folder, tmp_path / 'model')
    drawing = sorted((made.project / 'images/line').glob('*.png'))[0]
    hits = load_searcher(tmp_path).search(drawing, 5)
    assert hits.equals(load_searcher(made.project / 'out').search(drawing, 5))


def test_the_lines_on_the_card_run(made, tmp_path, monkeypatch, capsys):
    drawings = sorted((made.project / 'images/line').glob('*.png'))
    colours = sorted((made.project / 'images/color').glob('*.png'))
    for name, file in (('photo', drawings[0]), ('a', colours[0]), ('b', colours[1])):
        shutil.copy(file, tmp_path / f'{name}.jpg')
    code = ModelCard.load(made.folder / 'README.md').text.split('```python\n')[1].split('```')[0]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("'FOLDER'", repr(str(made.folder))), names)
    assert names['candidates'].shape == (2, 32)
    assert np.allclose(np.linalg.norm(names['candidates'], axis=1), 1, atol=1e-3)
    assert str(names['candidates'] @ names['query']) in capsys.readouterr().out


def test_a_changed_folder_is_refused(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / 'hub')
    weights = tmp_path / 'hub/model.safetensors'
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(InputError, match='damaged'):
        from_pretrained(tmp_path / 'hub')


def test_nothing_is_fetched_unasked(made, monkeypatch):
    asked = []

    def snapshot(name, revision=None, allow_patterns=None):
        asked.append((name, revision, allow_patterns))
        return str(made.folder)

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot)
    with pytest.raises(InputError, match='download=True'):
        from_pretrained('somebody/shoes')
    assert from_pretrained(made.folder, download=True) and not asked  # a folder is a folder
    model = from_pretrained('somebody/shoes', download=True, revision='v1')
    assert model.sha256 == file_sha256(made.folder / 'model.safetensors')
    assert asked == [('somebody/shoes', 'v1', ['model.safetensors', 'model.json'])]


def test_a_hub_that_refuses_is_one_line(monkeypatch):
    def snapshot(*_, **__):
        raise OSError('401 Client Error\nRepository Not Found')

    monkeypatch.setattr('huggingface_hub.snapshot_download', snapshot)
    with pytest.raises(InputError, match='could not be downloaded') as refusal:
        hub.from_pretrained('somebody/shoes', download=True)
    assert '\n' not in str(refusal.value)


def test_a_model_replaced_meanwhile_is_not_mixed(ran, tmp_path):
    model = load_model(ran / 'out/model')
    (ran / 'out/model/model.safetensors').write_bytes(b'another')
    with pytest.raises(InputError, match='replaced meanwhile'):
        hub.save_hub_folder(model, ran / 'out/model', tmp_path / 'hub')
    assert not (tmp_path / 'hub/README.md').exists()
