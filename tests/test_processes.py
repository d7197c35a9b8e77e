"""One run in two processes: the same as in one, also where one of them fails or is killed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from two_processes import make_polynomial, negatives

from two_tower_vs import backbones
from two_tower_vs.embed import embed
from two_tower_vs.saving import load_model

HERE = Path(__file__).resolve().parent
SMALL = HERE / 'two_processes.py'


def launched(count, *command, **env):
    "What a command gave in so many processes; one is started without torchrun"
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(count)]
    return subprocess.run(
        [sys.executable, *(launcher if count > 1 else []), *map(str, command)],
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
    )


def trained(project, count, out, **env):
    "Train with the small network into a folder of the project"
    config = project / f'{out}.yaml'
    config.write_text((project / 'config.yaml').read_text() + f'out: {out}\n')
    return launched(count, SMALL, '--config', config, '--stage', 'train', **env)


def told(run):
    "The lines with which a run ended"
    return [line for line in run.stderr.splitlines() if line.startswith('two_tower_vs: ')]


def history(out):
    return pd.read_csv(out / 'train/history.csv')


def chosen(out):
    return json.loads((out / 'model/model.json').read_text())['training']['chosen']


def scores(out, monkeypatch):
    "Of all pictures of the project with each other, and the weights of the backbone"
    monkeypatch.setattr(backbones, '_maker', lambda name: make_polynomial)
    tower = load_model(out / 'model').query
    paths = sorted((out.parent / 'images').glob('?0*.png'))
    vectors = embed(tower, paths, engine='torch', precision='float32', progress=False).vectors
    return vectors @ vectors.T, [param.detach() for param in tower.backbone.parameters()]


def assert_same_training(out, expected, monkeypatch):
    "Signs of the heads' axes are arbitrary, so the scores that they lead to are compared"
    assert chosen(out) == chosen(expected)
    ours, our_weights = scores(out, monkeypatch)
    right, right_weights = scores(expected, monkeypatch)
    assert abs(ours - right).max() < 1e-5
    for weight, right_weight in zip(our_weights, right_weights, strict=True):
        assert abs(weight - right_weight).max() < 1e-5
    rows, right_rows = history(out), history(expected)
    assert rows[['phase', 'epoch']].equals(right_rows[['phase', 'epoch']])
    assert rows.loss.tolist() == pytest.approx(right_rows.loss.tolist(), rel=1e-5, nan_ok=True)


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    "Pictures and their negatives, and `one`: what one process makes of them"
    folder = negatives(tmp_path_factory.mktemp('processes') / 'project')
    run = trained(folder, 1, 'one')
    assert run.returncode == 0, run.stderr[-3000:]
    return folder


def test_two_processes_train_as_one(project, monkeypatch):
    "Fine-tuning is chosen, helpers write nothing, and all is printed once"
    run = trained(project, 2, 'two')
    assert run.returncode == 0, run.stderr[-3000:]
    assert chosen(project / 'two')['finetune_epochs'] > 0
    assert_same_training(project / 'two', project / 'one', monkeypatch)
    assert run.stdout.count('train: done') == 1


@pytest.mark.rest
@pytest.mark.parametrize('before, after', [(2, 1), (1, 2)])
def test_a_killed_run_resumes_with_other_processes(project, before, after, monkeypatch):
    name = f'{before}to{after}'
    run = trained(project, before, name, KILL_IN='fine-tuning')
    assert run.returncode != 0
    assert not (project / name / 'model').exists()
    if before > 1:
        (line,) = told(run)
        assert re.match('two_tower_vs: lost rank 1 of 2 .process [0-9]+ on ', line)
        assert 'The same command resumes' in line
    state = torch.load(project / name / 'train/state.pt')
    assert [state['now']['phase'], state['now']['epoch']] == ['fine-tuning', 1]
    again = trained(project, after, name)
    assert again.returncode == 0, again.stderr[-3000:]
    assert_same_training(project / name, project / 'one', monkeypatch)
    # What was trained before is kept to the last digit, with the seconds that it took
    kept = pd.DataFrame([{'phase': 'untrained'}, *state['history']])
    found = history(project / name)[: len(kept)]
    assert found.seconds.tolist() == pytest.approx(kept.seconds.tolist(), abs=0, nan_ok=True)
    assert found.loss.tolist() == pytest.approx(kept.loss.tolist(), rel=1e-12, nan_ok=True)


def broken(project, name):
    "A copy of the project in which the last query cannot be read"
    config = project / f'{name}.yaml'
    lines = (project / 'pairs.csv').read_text().splitlines()
    (project / 'images/broken.png').write_bytes(b'broken')
    (project / 'broken.csv').write_text('\n'.join([*lines, 'broken.png,c000.png']))
    text = (project / 'config.yaml').read_text().replace('images}', 'images, pairs: broken.csv}')
    config.write_text(f'{text}out: {name}\n')
    return config


def test_an_error_is_told_once_with_status_2(project):
    config = broken(project, 'unreadable')
    run = launched(2, SMALL, '--config', config, '--stage', 'train')
    (line,) = told(run)
    assert 'broken.csv row 98' in line
    assert set(re.findall('exitcode *: (-?[0-9]+)', run.stderr)) == {'2'}
    assert 'broken.png' in (project / 'unreadable/bad_images.csv').read_text()


@pytest.mark.rest
def test_a_wrong_flag_is_told_once(project):
    command = '-m', 'two_tower_vs', '--stage', 'train', '--confg', 'x'
    run = launched(2, *command)
    assert run.stderr.count('unrecognized arguments') == 1


GRADIENTS = '''
import sys
import torch
from accelerate import Accelerator
from two_tower_vs.gradcache import Side, cached_backward, my_share
torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
process = Accelerator(cpu=True)
numbers = torch.arange(11)
pictures = torch.randn(2, 11, 12)
tower = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
scale = torch.nn.Parameter(torch.tensor(2.0))
seen = []

def vectors(part):
    seen.append(len(part))
    return torch.nn.functional.normalize(tower(part), dim=1)

def loss_of(queries, cands):
    scores = scale.exp() * queries[:11] @ cands[:11].T
    return torch.nn.functional.cross_entropy(scores, numbers)

own = my_share(numbers.numpy(), process)
chunk = int(sys.argv[1])
sides = [Side(vectors, part[own]) for part in pictures]
params = [*tower.parameters(), scale]
loss = cached_backward(sides, loss_of, chunk, process, params)
gradients = [param.grad for param in params]
if process.is_main_process:
    torch.save(dict(loss=loss, gradients=gradients, most=max(seen)), sys.argv[2])
'''


def test_negatives_of_all_processes_in_bounded_memory(tmp_path):
    "Two processes of 11 pictures a side, at most 2 at once: the loss and gradients of all at once"
    script = tmp_path / 'gradients.py'
    script.write_text(GRADIENTS)
    found = {}
    for count, chunk in ((1, 100), (2, 2)):
        run = launched(count, script, chunk, tmp_path / f'{count}.pt')
        assert run.returncode == 0, run.stderr[-3000:]
        found[count] = torch.load(tmp_path / f'{count}.pt')
    assert found[2]['most'] == 2
    assert found[2]['loss'] == pytest.approx(found[1]['loss'], abs=1e-12)
    for ours, whole in zip(found[2]['gradients'], found[1]['gradients']):
        assert whole.norm() > 1e-3
        assert torch.allclose(ours, whole, rtol=0, atol=1e-12)
