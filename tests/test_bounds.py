"""Bounds of settings: numbers of NumPy, classes, and calls that are wrong in another way."""

import numpy as np
import pytest

from two_tower_vs.errors import InputError
from two_tower_vs.settings import bounded, bounds_of, number, whole


@bounded(lr=number(above=0, high=1), steps=whole(1, 1000))
def descend(start: float, lr: float = 0.1, steps: int = None):
    return start - lr * (steps or 1)


class Walker:
    @bounded(steps=whole(1, 10, optional=True))
    def __init__(self, steps=3):
        self.steps = steps


@pytest.mark.parametrize(
    'value,fits', [(np.int64(3), True), (np.bool_(True), False), (3.0, False), (3, True)]
)
def test_whole_numbers(value, fits):
    assert whole(0, 9).fits(value) == fits


def test_a_real_number_of_numpy():
    assert number(above=0, high=1).fits(np.float32(0.5))


def test_a_class_has_the_bounds_of_its_init():
    assert Walker().steps == 3
    assert Walker(None).steps is None
    assert list(bounds_of(Walker)) == ['steps']
    with pytest.raises(InputError, match='Walker: steps is true. Use a whole number from 1 to 10'):
        Walker(True)


def test_bounds_of_functions():
    assert list(bounds_of(descend)) == ['lr', 'steps']
    assert bounds_of(print) == {}


def test_a_wrong_call_is_the_functions_own_error():
    with pytest.raises(TypeError, match='missing 1 required positional argument'):
        descend()


def test_the_table_names_only_parameters():
    with pytest.raises(KeyError):
        bounded(speed=whole(1, 2))(descend)
