"""Training at its edges: wrong pairs, one pair, one tower for both, and refused settings."""

import warnings
from unittest import mock

import numpy as np
import pytest
import torch

from two_tower_vs.blending import copied
from two_tower_vs.data import read_pairs
from two_tower_vs.engine import backbone_key
from two_tower_vs.errors import InputError
from two_tower_vs.model import TwoTower
from two_tower_vs.ranking import HeldOutAnswers
from two_tower_vs.steps import backbone_params, go_part_of_the_way
from two_tower_vs.summaries import training_summary
from two_tower_vs.train import train
from two_tower_vs.validation import Validation


@pytest.fixture
def pairs(fresh):
    return read_pairs(fresh / 'pairs.csv', fresh / 'images')


def small(**more):
    return TwoTower(image_size=64, embed_dim=8, **more)


@pytest.mark.parametrize('promote', ['better', 'always'])
@pytest.mark.rest
def test_wrong_pairs_are_reported(fresh, pairs, promote):
    wrong = pairs.assign(cand_path=np.random.default_rng(0).permutation(pairs.cand_path))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        training = train(small(), wrong, fresh / 'images', views=0, epochs=3, promote=promote)
    text = ' '.join(str(warning.message) for warning in caught)
    assert 'raining' in text and 'mrr of held-out pairs' in text
    assert ('trained model is kept' in text) == (promote == 'always')
    assert training.promoted == (promote == 'always')
    assert (training.kept in ('plain', 'centred')) == (promote == 'better')


def test_one_pair_cannot_be_judged(fresh, pairs):
    with pytest.warns(UserWarning, match='Too few products'):
        training = train(small(), pairs[:1], fresh / 'images', epochs=2, views=0)
    assert training.kept == 'plain'
    assert list(training.history.columns)[:3] == ['phase', 'epoch', 'recall@1']


@pytest.mark.filterwarnings('ignore')
def test_one_tower_for_both_sides(fresh, pairs):
    model = small(share='all')
    train(model, pairs[:48], fresh / 'images', epochs=2, views=0)
    assert model.query is model.cand


def rising_scores():
    "Whatever is validated is better than what was before it"
    scores = iter(range(1, 99))
    return mock.patch.multiple(
        Validation,
        score=lambda *_: {'recall@1': next(scores) / 99, 'error': 0.0},
        gain=lambda *_: {'gain': 0.1, 'gain_error': 0.0},
    )


@pytest.mark.rest
@pytest.mark.filterwarnings('ignore')
def test_a_better_epoch_of_fine_tuning_is_repeated_with_all_pairs(fresh, pairs):
    model = small()
    before = backbone_key(model.query)
    untuned = copied(backbone_params(model))
    asked = []

    def go(job, tuned, share):
        asked.append((tuned, share))
        go_part_of_the_way(job, tuned, share)

    tuning = dict(augmentation='none', precision='auto')
    options = dict(epochs=1, views=0, finetune_epochs=1, promote='always', tuning=tuning)
    with mock.patch('two_tower_vs.steps.go_part_of_the_way', go), rising_scores():
        training = train(model, pairs[:16], fresh / 'images', **options)
    assert backbone_key(model.query) != before
    assert training.chosen['finetune_epochs'] == 1
    # The scores rise, so the last share that was tried is the best
    assert training.chosen['tuned_share'] == 0.5
    tried = training.history[training.history.phase == 'choose renewed heads']
    assert tried.blend.tolist() == [1.0, 0.75, 0.5]
    ((tuned, share),) = asked
    for param, start, end in zip(backbone_params(model), untuned, tuned):
        assert torch.allclose(param, start + share * (end - start), atol=1e-6)
    assert any(not torch.equal(start, end) for start, end in zip(untuned, tuned))


@pytest.mark.parametrize(
    'name,value,message',
    [
        ('batch_size', 1, 'from 2'),
        ('promote', 'never', 'better, sure or always'),
        ('metric', 'map', 'mrr, hit@1'),
        ('loss', 'nce', 'Known are info_nce'),
        ('augmentation', 'foto', 'Known are photo'),
        ('matryoshka', [64], 'take 1 to 8'),
        ('precision', 0.0, 'above 0 to 1'),
        ('lr', float('inf'), 'lr is inf. Use a number above 0'),
        ('tuning', dict(towers='query'), 'Set model.share to none'),
    ],
)
def test_settings_that_are_refused(fresh, pairs, name, value, message):
    more = {'finetune_epochs': 1} if name == 'tuning' else {}
    with pytest.raises(InputError, match=message):
        train(small(), pairs, fresh / 'images', **{name: value}, **more)


def test_a_model_without_heads_is_refused(fresh, pairs):
    with pytest.raises(InputError, match='no heads'):
        train(TwoTower(image_size=64, embed_dim=None), pairs, fresh / 'images')


def answered(*right):
    "Answers to queries 0, 1, …: is the first hit right?"
    rank = np.where(right, 1, 2)
    return HeldOutAnswers(np.arange(len(right)), np.ones(len(right)), rank, np.zeros(len(right)))


def validation(products):
    weight = {'new': 0.0, 'known': 1.0}
    return Validation(None, None, {}, None, weight, np.array(products))


def test_the_error_of_a_gain_counts_only_what_differs():
    "Four products of two photos: two are right before and after, one photo is won"
    held = validation([0, 0, 1, 1, 2, 2, 3, 3])
    before = {'known': answered(1, 1, 1, 1, 0, 0, 0, 0)}
    after = {'known': answered(1, 1, 1, 1, 1, 0, 0, 0)}
    found = held.gain(after, before)
    assert found['gain'] == pytest.approx(1 / 8)
    # Sums of deviations by product: -2/8, -2/8, 6/8, -2/8
    by_hand = (4 / 3 * (3 * 0.25**2 + 0.75**2)) ** 0.5 / 8
    assert found['gain_error'] == pytest.approx(by_hand)
    assert found['gain_error'] < 0.6 * held.score(after)['error']
    assert held.gain(before, before) == {'gain': 0.0, 'gain_error': 0.0}


@pytest.mark.parametrize('gain, kept', [(0.001, 1), (0.0, 0), (-0.2, 0)])
def test_fine_tuning_is_kept_where_it_gains_at_all(gain, kept, fresh, pairs):
    "Also where the error is large; what was seen of it is told in any case"
    seen = {'gain': gain, 'gain_error': 0.3}
    tuning = dict(augmentation='none')
    options = dict(epochs=1, views=0, finetune_epochs=1, promote='always', tuning=tuning)
    better = mock.patch('two_tower_vs.fit._better', lambda row, *_: row['epoch'] > 0)
    with better, mock.patch.object(Validation, 'gain', lambda *_: seen):
        training = train(small(), pairs[:16], fresh / 'images', **options)
    assert training.chosen['finetune_epochs'] == kept
    assert training.chosen['tuned_gain'] == gain and training.chosen['tuned_error'] == 0.3
    assert f'fine-tuning, {"" if kept else "not "}kept: ' in training_summary(training)
