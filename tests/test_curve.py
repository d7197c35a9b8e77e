"""The learning curve in TensorBoard: every row of history.csv once, also after a crash."""

import math
import sys

import pandas as pd
import pytest
import yaml

from two_tower_vs.curve import Curve
from two_tower_vs.state import State


@pytest.fixture
def reader():
    "TensorBoard's own reader of event files"
    module = pytest.importorskip(
        'tensorboard.backend.event_processing.event_accumulator',
        reason="tensorboard is not installed: pip install 'two_tower_vs[tensorboard]'",
        exc_type=ImportError,
    )
    return module.EventAccumulator


def configure(project, **train):
    file = project / 'config.yaml'
    config = yaml.safe_load(file.read_text())
    config['train'] = {**(config.get('train') or {}), **train}
    file.write_text(yaml.safe_dump(config))
    return file


def train(cli, project, **settings):
    file = configure(project, **settings)
    return cli('--config', file, '--stage', 'train')


def runs(project):
    return sorted((project / 'out/train/tensorboard').iterdir())


def points(reader, folder):
    "{name of a chart: [(step, value)]} of all event files of a run, as they were written"
    found = {}
    for file in sorted(folder.iterdir()):
        events = reader(str(file), size_guidance={'scalars': 0}, purge_orphaned_data=False)
        events.Reload()
        for name in events.Tags()['scalars']:
            new = [(event.step, event.value) for event in events.Scalars(name)]
            found.setdefault(name, []).extend(new)
    return found


def wanted(project):
    "The same, worked out from history.csv"
    history = pd.read_csv(project / 'out/train/history.csv')
    found = {}
    for phase, rows in history.groupby('phase'):
        counted = (rows.epoch == 0).all()
        steps = range(len(rows)) if counted else rows.epoch
        for name in rows.columns.drop(['phase', 'epoch']):
            if not pd.api.types.is_numeric_dtype(rows[name]) or rows[name].dtype == bool:
                continue
            pairs = zip(steps, rows[name])
            known = [(step, value) for step, value in pairs if not math.isnan(value)]
            if known:
                found[f'{phase}/{name}'] = known
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert [step for step, _ in found[name]] == [step for step, _ in expected[name]], name
        assert [value for _, value in found[name]] == pytest.approx(
            [value for _, value in expected[name]], rel=1e-5, abs=1e-6
        )


def test_every_row_of_the_history_is_there_once(fresh, cli, reader):
    status, _, err = train(cli, fresh, log='tensorboard')
    assert status == 0, err
    (run,) = runs(fresh)
    found = points(reader, run)
    assert 'untrained/recall@1' in found and any('/loss' in name for name in found)
    assert_same(found, wanted(fresh))


def test_a_resumed_run_writes_no_point_twice(fresh, cli, reader, monkeypatch):
    monkeypatch.setattr(State, 'seconds_between_saves', 1e9)  # the state is older than the points
    written = Curve.write

    def crash(self, history):
        written(self, history)
        if sum(row['phase'] == 'choose heads' for row in history) > 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as crashing:
        crashing.setattr(Curve, 'write', crash)
        try:
            status, *_ = train(cli, fresh, log='tensorboard')
        except KeyboardInterrupt:
            status = 130
    assert status != 0
    (run,) = runs(fresh)
    half = points(reader, run)
    assert half and (fresh / 'out/train/state.pt').exists()
    status, _, err = train(cli, fresh, log='tensorboard')
    assert status == 0, err
    assert runs(fresh) == [run]
    assert_same(points(reader, run), wanted(fresh))


def test_another_setting_is_another_run(fresh, cli, reader):
    for epochs in (2, 3):
        status, _, err = train(cli, fresh, log='tensorboard', epochs=epochs)
        assert status == 0, err
    assert len(runs(fresh)) == 2


def test_the_curve_changes_no_result_and_no_key(fresh, cli, reader, monkeypatch):
    models = []
    keys = set()
    begin = State.__init__

    def noted(self, folder, key, *rest):
        keys.add(key)  # an interrupted run with another key would begin again
        begin(self, folder, key, *rest)

    monkeypatch.setattr(State, '__init__', noted)
    for log in (None, 'tensorboard'):
        assert train(cli, fresh, log=log)[0] == 0
        models.append((fresh / 'out/model/model.safetensors').read_bytes())
    assert models[0] == models[1] and len(keys) == 1


def test_what_is_not_installed_is_refused_before_training(fresh, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorboard', None)
    status, _, err = train(cli, fresh, log='tensorboard')
    assert status == 2 and len(err.strip().splitlines()) == 1
    assert "pip install 'two_tower_vs[tensorboard]'" in err
    assert not list((fresh / 'out').rglob('*.npy')) and not (fresh / 'out/model').exists()


def test_another_program_is_refused(fresh, cli):
    status, _, err = train(cli, fresh, log='wandb')
    assert status == 2 and "train.log is 'wandb'. Use tensorboard" in err
