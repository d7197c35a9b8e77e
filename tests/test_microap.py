"Micro average precision and recall at a precision, against scikit-learn."

import numpy as np
import pytest

from two_tower_vs.microap import (
    CurvePoint,
    Predictions,
    first_predictions,
    micro_ap,
    recall_at_precision,
)


def draw(seed, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 30, 400) / 30 if ties else rng.random(400)
    right = rng.random(400) < 0.1 + 0.5 * scores
    return scores, right


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_micro_ap_is_that_of_scikit_learn(seed, ties):
    metrics = pytest.importorskip('sklearn.metrics')
    scores, right = draw(seed, ties)
    wanted = metrics.average_precision_score(right, scores)
    assert micro_ap(scores, right, right.sum()) == pytest.approx(wanted, abs=1e-12)
    # Right pairs that the list lacks only enlarge the denominator
    lacking = wanted * right.sum() / (right.sum() + 50)
    assert micro_ap(scores, right, right.sum() + 50) == pytest.approx(lacking, abs=1e-12)


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('wanted', [0.5, 0.6, 0.9])
def test_recall_at_precision_is_that_of_scikit_learn(wanted, ties):
    metrics = pytest.importorskip('sklearn.metrics')
    for seed in range(8):
        scores, right = draw(seed, ties)
        precision, recall, thresholds = metrics.precision_recall_curve(right, scores)
        enough = (precision[:-1] >= wanted) & (recall[:-1] > 0)
        found = recall_at_precision(scores, right, right.sum(), wanted)
        if not enough.any():
            assert found == CurvePoint(0.0, None, None)
            continue
        assert found.recall == pytest.approx(recall[:-1][enough].max(), abs=1e-12)
        assert found.threshold in thresholds[enough]
        passed = scores >= found.threshold
        assert found.precision == pytest.approx(right[passed].mean()) and found.precision >= wanted
        assert found.recall == pytest.approx(right[passed].sum() / right.sum())


@pytest.mark.parametrize('ties', [False, True])
def test_a_weight_of_two_is_a_row_twice(ties):
    metrics = pytest.importorskip('sklearn.metrics')
    scores, right = draw(0, ties)
    weight = np.random.default_rng(1).integers(0, 4, len(scores)).astype(float)
    wanted = metrics.average_precision_score(right, scores, sample_weight=weight)
    assert micro_ap(scores, right, weight @ right, weight) == pytest.approx(wanted, abs=1e-12)
    twice = np.repeat(np.arange(len(scores)), weight.astype(int))
    many = recall_at_precision(scores[twice], right[twice], right[twice].sum(), 0.6)
    few = recall_at_precision(scores, right, weight @ right, 0.6, weight)
    assert (many.recall, many.threshold) == pytest.approx((few.recall, few.threshold))


def test_by_hand():
    # Places of the right pairs: 1, 3 and 6 of 6; four right pairs in all
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    right = [1, 0, 1, 0, 0, 1]
    assert micro_ap(scores, right, 4) == pytest.approx((1 + 2 / 3 + 3 / 6) / 4)
    assert recall_at_precision(scores, right, 4, 2 / 3) == CurvePoint(0.5, 0.7, 2 / 3)
    assert recall_at_precision(scores, right, 4, 0.5) == CurvePoint(0.75, 0.4, 0.5)


def test_the_order_of_equal_scores_does_not_matter():
    # Three pairs tie at the top, one of them is right: precision 1/3, wherever it is in the list
    found = {micro_ap([1, 1, 1, 0], np.roll([1, 0, 0, 0], n), 1) for n in range(3)}
    assert found == {1 / 3}
    assert recall_at_precision([1, 1, 1, 0], [1, 0, 0, 0], 1).recall == 0


def test_nothing_to_find_and_nothing_found():
    nothing = np.zeros(0)
    assert micro_ap(nothing, nothing, 3) == 0
    assert micro_ap([0.5], [False], 0) == 0
    assert recall_at_precision(nothing, nothing, 3).recall == 0


def test_answers_that_are_no_candidates_count_as_not_found():
    numbers = np.array([[4, 0], [1, -1]])
    scores = np.array([[0.9, 0.5], [0.8, -2.0]])
    found = first_predictions(numbers, scores, np.array([0, 0, 1]), np.array([-1, 4, -1]))
    assert isinstance(found, Predictions)
    assert found.right.tolist() == [True, False, False]
    assert found.answers.tolist() == [2, 1]
    assert micro_ap(found.scores, found.right, found.answers.sum()) == pytest.approx(1 / 3)
