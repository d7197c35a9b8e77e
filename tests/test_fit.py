"""The training loop: every loss reaches its optimum, and training that diverges says so."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from two_tower_vs.errors import InputError
from two_tower_vs.fit import Plan, Trainer, run_phase
from two_tower_vs.objective import Objective
from two_tower_vs.pairtable import PairTable
from two_tower_vs.state import State


def numbered(count):
    "A table of one pair for each product"
    names = [str(i) for i in range(count)]
    return PairTable(
        pd.DataFrame({'query_path': names, 'cand_path': [f'c{name}' for name in names]})
    )


def learner(vectors):
    "As run_phase wants it, around a function from rows to the vectors of both sides"

    def learn(rows, epoch, objective):
        loss = objective(rows, *vectors(rows))
        loss.backward()
        return loss.item()

    return learn


@pytest.mark.parametrize('dims', [(), (2,)])
@pytest.mark.parametrize('loss', ['info_nce', 'decoupled', 'sigmoid'])
def test_each_loss_reaches_its_optimum(loss, dims):
    table = numbered(3)
    queries, cands = (
        torch.nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))
        for seed in (0, 1)
    )
    objective = Objective(table, loss, logq=True, dims=dims)

    def vectors(rows):
        return F.normalize(queries[table.qi[rows]]), F.normalize(cands[table.ci[rows]])

    groups = [dict(params=[queries, cands], lr=0.1)]
    plan = Plan(60, clip=1.0, progress=False)
    trainer = Trainer(groups, learner(vectors), objective, plan)
    run_phase('points', trainer, np.arange(3), State(None, 'key'))
    nearest = (F.normalize(queries) @ F.normalize(cands).T).argmax(1)
    assert nearest.tolist() == [0, 1, 2]
    if loss == 'sigmoid':
        assert objective.bias.abs().min() > 0 and not objective.fresh


@pytest.mark.parametrize('loss', ['info_nce', 'sigmoid'])
@pytest.mark.parametrize('lr', [1e6, 1e30])
def test_a_diverging_training_says_so(lr, loss):
    torch.manual_seed(0)
    features = F.normalize(torch.randn(2, 24, 16), dim=-1)
    head = torch.nn.Linear(16, 8)

    def vectors(rows):
        return [F.normalize(head(part[rows]), dim=-1) for part in features]

    groups = [{'params': list(head.parameters()), 'lr': lr}]
    objective = Objective(numbered(24), loss)
    plan = Plan(3, batch_size=8, progress=False)
    trainer = Trainer(groups, learner(vectors), objective, plan)
    message = r'in epoch \d: training diverged. Lower train.lr or finetune.lr.'
    with pytest.raises(InputError, match=message):
        run_phase('heads', trainer, np.arange(24), State(None, 'key'))


def test_a_last_step_that_breaks_the_parameters():
    weight = torch.nn.Parameter(torch.ones(2))

    def learn(rows, epoch, objective):
        weight.grad = torch.full((2,), torch.nan)
        return 1.0

    groups = [{'params': [weight], 'lr': 0.1}]
    trainer = Trainer(groups, learn, Objective(numbered(2)), Plan(1, progress=False))
    message = 'A parameter is NaN or infinite in epoch 1: training diverged'
    with pytest.raises(InputError, match=message):
        run_phase('heads', trainer, np.arange(2), State(None, 'key'))


def averaged_run(average, validate=None):
    "Weights after each step, and those that a phase of twelve steps leaves"
    queries, cands = (torch.nn.Parameter(torch.eye(3) + offset) for offset in (0.0, 0.3))
    seen = []

    def learn(rows, epoch, objective):
        seen.append(queries.detach().clone())
        loss = objective(rows, F.normalize(queries[rows]), F.normalize(cands[rows]))
        loss.backward()
        return loss.item()

    plan = Plan(12, average=average, progress=False)
    trainer = Trainer([dict(params=[queries, cands], lr=0.1)], learn, Objective(numbered(3)), plan)
    rows = [trainer.epoch(epoch, np.arange(3)) for epoch in range(1, 13)]
    assert len(rows) == 12
    steps = torch.stack([*seen[1:], queries.detach()])
    return steps, trainer


def test_the_mean_over_a_whole_schedule_is_that_of_all_steps():
    steps, trainer = averaged_run(1.0)
    assert torch.allclose(trainer.mean[0], steps.mean(0), atol=1e-6)


def test_a_mean_over_less_than_a_step_is_the_last_weights():
    steps, trainer = averaged_run(0.05)
    assert torch.equal(trainer.mean[0], steps[-1])


def test_training_goes_on_from_the_weights_and_not_from_their_mean():
    plain, _ = averaged_run(0.0)
    steps, _ = averaged_run(1.0)
    assert torch.equal(plain, steps)


def phase(average):
    "What was judged of one weight in four steps towards 1, and what was kept"
    judged = []
    weight = torch.nn.Parameter(torch.zeros(3))

    def learn(rows, epoch, objective):
        loss = ((weight - 1) ** 2).sum() + objective.scale * 0
        loss.backward()
        return loss.item()

    def validate():
        judged.append(weight[0].item())
        return {'recall@1': float(len(judged))}

    plan = Plan(4, average=average, progress=False)
    trainer = Trainer([dict(params=[weight], lr=0.1)], learn, Objective(numbered(3)), plan)
    run_phase('one', trainer, np.arange(3), State(None, 'key'), validate)
    return judged, weight[0].item()


def test_the_mean_is_what_is_judged_and_kept():
    steps, last = phase(0.0)
    judged, kept = phase(1.0)
    means = np.cumsum(steps[1:]) / np.arange(1, 5)
    assert judged == pytest.approx([0, *means], abs=1e-6)
    assert kept == pytest.approx(means[-1], abs=1e-6)
    assert kept < last - 0.01


def test_a_later_epoch_is_kept_unless_it_is_clearly_worse():
    "Standard error 0.02: the fourth is within it of the best, the fifth is not"
    scores = iter([0.5, 0.6, 0.7, 0.66, 0.69, 0.67])
    weight = torch.nn.Parameter(torch.zeros(1))

    def learn(rows, epoch, objective):
        loss = (weight - 1).square().sum() + objective.scale * 0
        loss.backward()
        return loss.item()

    trainer = Trainer([dict(params=[weight], lr=0.1)], learn, Objective(numbered(3)), Plan(5))
    best = run_phase(
        'one',
        trainer,
        np.arange(3),
        State(None, 'key'),
        lambda: {'recall@1': next(scores), 'error': 0.02},
    )
    assert best['epoch'] == 4
