"What --stage export writes, read by other programs, and what it refuses."

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import two_tower_vs.export as module
from two_tower_vs.data import read_candidates, read_gt, read_pairs
from two_tower_vs.embed import embed
from two_tower_vs.errors import InputError
from two_tower_vs.evidence import column_names
from two_tower_vs.export import export
from two_tower_vs.model_card import read_metrics, weights_origin
from two_tower_vs.onnx_towers import onnx_agreement
from two_tower_vs.outcome import held_out_words, interval_unit
from two_tower_vs.saving import file_sha256, load_model


@pytest.fixture(scope='module')
def run(workshop):
    "A finished project, and its export"
    import attack

    project = attack.project(workshop, run=True)
    images = project / 'images'
    candidates = read_candidates(project / 'candidates.csv', images)
    truth = read_gt(project / 'query_gt.csv', images, candidates)
    pairs = read_pairs(project / 'pairs.csv', images)
    queries = truth.query_path.unique()
    model = load_model(project / 'out/model')
    weights = project / 'out/model/model.safetensors'
    metrics = read_metrics(project / 'out/metrics.json', weights)
    out = project / 'export'
    cache = project / 'out/cache'
    written = export(model, candidates, queries, pairs, metrics, images, out, cache)
    return SimpleNamespace(
        project=project,
        images=images,
        candidates=candidates,
        pairs=pairs,
        queries=queries,
        model=model,
        metrics=metrics,
        cache=cache,
        out=out,
        written=written,
        card=(out / 'MODEL_CARD.md').read_text(),
    )


def exported_again(run, folder, model=None, **options):
    "An export of candidates alone"
    return export(
        model or run.model,
        run.candidates,
        None,
        None,
        None,
        run.images,
        folder,
        run.cache,
        **options,
    )


def pixels_of(run, n=12):
    paths = run.candidates.cand_path[:n]
    files = [str(run.images / path) for path in paths]
    return module.first_pixels(files, run.model.cand, 10**8)


def read_back(file, column):
    table = pq.read_table(file)
    return table[column].to_pylist(), np.stack(table['embedding'].to_numpy())


@pytest.mark.rest
def test_parquet_holds_what_embed_gives(run):
    for stem, column, tower, paths in (
        ('candidates', 'cand_path', run.model.cand, run.candidates.cand_path),
        ('queries', 'query_path', run.model.query, run.queries),
    ):
        found = embed(tower, paths, run.images, run.cache)
        names, vectors = read_back(run.out / f'{stem}.parquet', column)
        assert names == found.paths == list(paths)
        assert np.array_equal(vectors, found.vectors)


def test_onnx_pytorch_and_the_exported_vectors_agree(run):
    pixels = pixels_of(run)
    session = onnxruntime.InferenceSession(run.out / 'cand.onnx')
    vectors = session.run(None, {'pixels': pixels})[0]
    with torch.inference_mode():
        wanted = run.model.cand(torch.from_numpy(pixels)).numpy()
    assert np.allclose(vectors, wanted, atol=1e-4)
    exported = read_back(run.out / 'candidates.parquet', 'cand_path')[1][: len(pixels)]
    assert ((vectors * exported).sum(1) > 0.998).all()
    one = session.run(None, {'pixels': pixels[:1]})[0]
    assert np.isclose(np.linalg.norm(one), 1, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert [metadata['size'], metadata['model_sha256']] == ['64', run.model.sha256]
    assert json.loads(metadata['mean']) == run.model.query.prep['mean']
    ends = [*session.get_inputs(), *session.get_outputs()]
    assert [(end.name, end.type, end.shape[1:]) for end in ends] == [
        ('pixels', 'tensor(uint8)', [3, 64, 64]),
        ('vectors', 'tensor(float)', [32]),
    ]


def test_another_tower_and_another_mean_are_found_out(run):
    pixels = pixels_of(run)
    with pytest.raises(InputError, match='query.onnx: ONNX Runtime gives other vectors'):
        onnx_agreement(run.out / 'query.onnx', run.model.cand, pixels)
    shifted = load_model(run.project / 'out/model').query
    shifted.mean += 9
    with pytest.raises(InputError, match='Nothing is exported'):
        onnx_agreement(run.out / 'query.onnx', shifted, pixels)


def test_the_cards_numbers_are_those_of_metrics_json(run):
    header = yaml.safe_load(run.card.split('---\n')[1])
    results = header['model-index'][0]['results'][0]['metrics']
    values = {result['type']: result['value'] for result in results}
    assert values == {name: metric['value'] for name, metric in run.metrics['trained'].items()}
    lines = run.card.splitlines()
    heading = next(line for line in lines if line.startswith('|  |'))
    for title, key in column_names(run.metrics).items():
        assert title in heading
        for name, metric in run.metrics[key].items():
            row = next(line for line in lines if line.startswith(f'| {name} |'))
            assert f'{100 * metric["value"]:.1f}' in row
    assert interval_unit(run.metrics) in run.card and run.model.sha256 in run.card
    assert held_out_words(run.model.training_info) in run.card
    n = run.metrics['queries'], run.metrics['candidates']
    assert f'{len(run.pairs):,} pairs' in run.card
    assert f'{n[0]:,} queries, searched among {n[1]:,}' in run.card


def test_export_json_describes_the_files(run):
    names = sorted(file.name for file in run.out.iterdir())
    assert names == sorted([*run.written['files'], 'export.json'])
    assert json.loads((run.out / 'export.json').read_text()) == run.written
    for name, facts in run.written['files'].items():
        file = run.out / name
        assert facts == dict(bytes=file.stat().st_size, sha256=file_sha256(file))


class Saved:
    "An export to ONNX that was done before: the real one takes seconds"

    def __init__(self, file):
        self.contents = file.read_bytes()

    def save(self, file, **options):
        file.write_bytes(self.contents)


def test_a_failed_export_leaves_the_earlier_one(run, monkeypatch):
    before = {file.name: file_sha256(file) for file in run.out.iterdir()}
    query = Saved(run.out / 'query.onnx')
    monkeypatch.setattr(module, 'to_onnx', lambda tower, *args: query)
    with pytest.raises(InputError, match='cand.onnx: ONNX Runtime gives other vectors'):
        exported_again(run, run.out)
    assert {file.name: file_sha256(file) for file in run.out.iterdir()} == before


def test_shared_towers_are_one_file(run, monkeypatch, tmp_path):
    model = load_model(run.project / 'out/model')
    model.config['share'] = 'all'
    model.cand = model.query
    query = Saved(run.out / 'query.onnx')
    monkeypatch.setattr(module, 'to_onnx', lambda tower, *args: query)
    written = exported_again(run, tmp_path, model)
    assert list(written['onnx']) == ['query.onnx']
    assert written['onnx']['query.onnx']['cosine_with_exported'] > 0.99


def test_without_optional_packages_and_without_wanting_them(run, monkeypatch, tmp_path):
    missing = {'pyarrow', 'onnxscript'}
    monkeypatch.setattr(module, 'find_spec', lambda name: name not in missing)
    with pytest.warns(UserWarning, match='pyarrow is not installed'):
        exported_again(run, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        exported_again(run, tmp_path, format='npy', onnx=False)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        'MODEL_CARD.md',
        'candidates.csv',
        'candidates.npy',
        'export.json',
    ]
    card = (tmp_path / 'MODEL_CARD.md').read_text()
    assert 'No evaluation of this model was found' in card


# Metrics of another model


@pytest.fixture
def files(run, tmp_path):
    "metrics.json without a hash, and a model"
    metrics = {key: value for key, value in run.metrics.items() if key != 'model_sha256'}
    (tmp_path / 'metrics.json').write_text(json.dumps(metrics))
    (tmp_path / 'model.safetensors').write_bytes(b'x')
    return tmp_path / 'metrics.json', tmp_path / 'model.safetensors'


def test_without_a_hash_the_time_decides(files):
    assert read_metrics(*files)['trained']
    os.utime(files[0], (0, 0))
    with pytest.warns(UserWarning, match='of another model'):
        assert read_metrics(*files) is None


def test_a_hash_decides_whatever_the_time(files):
    metrics = json.loads(files[0].read_text())
    files[0].write_text(json.dumps(metrics | {'model_sha256': '0'}))
    with pytest.warns(UserWarning, match='of another model'):
        assert read_metrics(*files) is None
    files[0].write_text(json.dumps(metrics | {'model_sha256': file_sha256(files[1])}))
    os.utime(files[0], (0, 0))
    assert read_metrics(*files)


def test_damaged_and_missing_metrics(files):
    files[0].write_text('{')
    with pytest.warns(UserWarning, match='cannot be read'):
        assert read_metrics(*files) is None
    files[0].unlink()
    assert read_metrics(*files) is None


@pytest.mark.parametrize(
    'config, words',
    [
        (dict(pretrained=False), 'efficientnet_lite0, from random weights'),
        (dict(weights='x/a.pth'), 'a.pth'),
        (dict(backbone='resnet18'), 'torchvision'),
    ],
)
def test_the_origin_of_weights(run, config, words):
    assert words in weights_origin(run.model.config | config)[0]


def test_a_candidate_that_is_unreadable_is_left_out(run, tmp_path):
    (run.images / 'broken.png').write_bytes(b'no picture')
    more = pd.concat([run.candidates, pd.DataFrame({'cand_path': ['broken.png']})])
    with pytest.warns(UserWarning, match='broken.png'):
        written = export(
            run.model, more, None, None, None, run.images, tmp_path, run.cache, onnx=False
        )
    assert written['rows'] == {'candidates': len(run.candidates)}
