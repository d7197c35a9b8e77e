"""Fine-tuning on several processes, and fine-tuning that was interrupted."""

import copy
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from two_tower_vs.data import read_pairs
from two_tower_vs.features import pair_features
from two_tower_vs.finetune import PictureBatches, finetune, layer_groups
from two_tower_vs.fit import Plan, Trainer, run_phase
from two_tower_vs.model import TwoTower
from two_tower_vs.objective import Objective
from two_tower_vs.pairtable import PairTable
from two_tower_vs.state import State
from two_tower_vs.steps import Choice, make_job, renew_heads

SCRIPT = '''
import sys
import numpy as np, torch
from pathlib import Path
from accelerate import Accelerator
from two_tower_vs.data import read_pairs
from two_tower_vs.features import pair_features
from two_tower_vs.finetune import PictureBatches, finetune
from two_tower_vs.model import TwoTower
from two_tower_vs.objective import Objective
from two_tower_vs.pairtable import PairTable
demo, out = map(Path, sys.argv[1:])
torch.set_num_threads(1)
process = Accelerator(cpu=True)
table = PairTable(read_pairs(demo / 'pairs.csv', demo / 'images')[:7])
model = TwoTower(image_size=64, embed_dim=16)
objective = Objective(table)
tuning = finetune(augmentation='drawing', size=48, chunk=3, hard_negatives=1)
learner = PictureBatches(model, table, demo / 'images', 1, process, tuning)
loss = learner(np.arange(5), 1, objective)
gradients = [param.grad for param in [*model.parameters(), objective.scale]]
if process.is_main_process:
    torch.save(dict(loss=loss, count=process.num_processes, gradients=gradients), out)
'''


def launched(count, demo, folder):
    "The loss and the gradients of a batch that `count` processes share"
    script = folder / 'both.py'
    script.write_text(SCRIPT)
    out = folder / f'{count}.pt'
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(count)]
    done = subprocess.run(
        [sys.executable, *launch, script, demo, out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(out)


@pytest.mark.rest
def test_two_processes_compute_the_gradient_of_one(fresh, tmp_path):
    "A batch with a mined negative in it and an uneven number of pictures"
    one, two = (launched(count, fresh, tmp_path) for count in (1, 2))
    assert [one['count'], two['count']] == [1, 2]
    assert one['loss'] == pytest.approx(two['loss'], abs=1e-5)
    for a, b in zip(one['gradients'], two['gradients']):
        if a is not None and a.norm() > 1e-6:
            # Rounding can push an activation over the kink of ReLU6
            assert (a - b).norm() / a.norm() < 1e-2


@pytest.fixture
def tune(fresh):
    "A function that fine-tunes a copy of one model, with its state in a folder"
    root = fresh / 'images'
    table = PairTable(read_pairs(fresh / 'pairs.csv', root)[:12])
    rows = np.arange(12)
    model = TwoTower(image_size=64, embed_dim=16)
    tuning = finetune(augmentation='drawing', size=48, hard_negatives=1)

    def tuned(folder=None, average=0.0):
        copied = copy.deepcopy(model)
        heads = [*copied.query.head.parameters(), *copied.cand.head.parameters()]
        groups = layer_groups(copied.query.backbone, 1e-3, frozen=0.5)
        groups.append(dict(params=heads, lr=1e-3))
        learner = PictureBatches(copied, table, root, 1, Accelerator(cpu=True), tuning)
        plan = Plan(3, batch_size=6, clip=1.0, average=average, progress=False)
        trainer = Trainer(groups, learner, Objective(table), plan)
        run_phase('tune', trainer, rows, State(folder, 'key'))
        return copied.state_dict()

    return tuned, model.state_dict()


@pytest.mark.rest
@pytest.mark.parametrize('average', [0.0, 0.5])
def test_an_interrupted_run_ends_with_the_same_weights(tune, tmp_path, average):
    tuned, start = tune
    train_epoch = Trainer.epoch

    def power_cut(self, epoch, rows):
        if epoch == 2:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, rows)

    with mock.patch.object(State, 'seconds_between_saves', 0):
        with mock.patch.object(Trainer, 'epoch', power_cut), pytest.raises(KeyboardInterrupt):
            tuned(tmp_path, average)
        assert (tmp_path / 'state.pt').exists()
        whole = tuned(average=average)
        resumed = tuned(tmp_path, average)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole['query.head.weight'], start['query.head.weight'])


def test_renewed_heads_know_only_the_rows_that_train(fresh):
    root = fresh / 'images'
    pairs = read_pairs(fresh / 'pairs.csv', root)
    options = dict(seed=1, finetune_epochs=0, embedding={'progress': False})
    weights = []
    for table in (pairs[:20], pairs[:30]):
        model = TwoTower(image_size=64, embed_dim=16)
        features, _ = pair_features(model, table, root, None, views=0, progress=False)
        job = make_job(model, features, root, State(None, 'key'), options)
        renew_heads(job, np.arange(20), Choice(0.1, 0.25))
        weights.append(model.query.head.weight)
    assert torch.allclose(*weights, atol=1e-5)


@pytest.mark.parametrize('full_size,sides', [(0, [48, 48, 48]), (1, [48, 48, 64])])
def test_the_last_epochs_see_pictures_as_large_as_the_model_works_with(fresh, full_size, sides):
    root = fresh / 'images'
    table = PairTable(read_pairs(fresh / 'pairs.csv', root)[:6])
    model = TwoTower(image_size=64, embed_dim=16)
    tuning = finetune(size=48, full_size=full_size)
    process = Accelerator(cpu=True)
    learner = PictureBatches(model, table, root, 1, process, tuning, epochs=3)
    found = [learner.augmented(model.query, table.queries[0], epoch).shape for epoch in (1, 2, 3)]
    assert [shape[-1] for shape in found] == sides
