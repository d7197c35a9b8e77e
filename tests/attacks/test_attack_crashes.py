"""Kills, full disks and failing calls: files are old or new, and the same command finishes."""

import crashes
import pytest
from attack import project

STAGES_OF_TRAINING = ('check', 'train')


@pytest.fixture(scope='module')
def server():
    """A process that forks a child for each attack."""
    running = crashes.Server()
    yield running
    running.close()


@pytest.fixture(scope='module')
def shop(server, work):
    """A project, and what an uninterrupted run makes of it."""
    base = project(work, False)
    return crashes.Shop(server, base, base.parent).prepare()


@pytest.fixture
def tuned(shop, long):
    """The same with fine-tuning, for the long run."""
    if not long:
        return None
    folder = shop.base.parent / 'tuned'
    folder.mkdir()
    return crashes.Shop(shop.server, shop.base, folder, tune=1).prepare(STAGES_OF_TRAINING)


@pytest.mark.parametrize(
    'attack',
    [
        crashes.disks,
        crashes.damages,
        crashes.locks,
        crashes.threads,
        crashes.demo,
        crashes.inits,
        crashes.failures,
    ],
    ids=lambda attack: attack.__name__,
)
def test_crash(shop, check_each, long, attack):
    check_each(attack(shop, long))


def test_kills(shop, tuned, check_each, long):
    check_each(crashes.kills(shop, tuned, long))
