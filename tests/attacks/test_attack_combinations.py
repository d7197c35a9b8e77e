"""Files that do not belong together, are damaged, forged or replaced, and many threads at once."""

import combinations
import pytest


@pytest.fixture(scope='module')
def finished(work):
    """A project that ran, put back after each attack."""
    return combinations.Ran(work)


@pytest.mark.parametrize(
    'attack',
    [
        combinations.damages,
        combinations.other_stages,
        combinations.changed_config,
        combinations.weights,
        combinations.many_threads,
        combinations.two_processes,
    ],
    ids=lambda attack: attack.__name__,
)
def test_damage(finished, check_each, long, attack):
    check_each(attack(finished, long))


@pytest.mark.parametrize(
    'attack',
    [combinations.forged_manifests, combinations.forged_indexes, combinations.forged_models],
    ids=lambda attack: attack.__name__,
)
def test_forgery(finished, check_each, attack):
    check_each(attack(finished))


def test_files_of_two_runs(finished, work, check_each):
    check_each(combinations.two_runs(finished, work))
