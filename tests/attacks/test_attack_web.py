"""The HTTP API under what clients send: each answer has a status and a reason in words."""

import warnings

import pytest
import web
from attack import Case, project


class Warned:
    """A server of its own project, and what it warned of."""

    def __init__(self, work):
        self.said = []
        self.server = web.Server(project(work))

    def warn(self, message, *args, **options):
        self.said.append(str(message))


@pytest.fixture(scope='module')
def warned(work):
    """A server that the attacks of this file share; each leaves it as it was, but for the last."""
    warned = Warned(work)
    yield warned
    warned.server.close()


@pytest.fixture
def server(warned, monkeypatch):
    """The same server, while its warnings are noted."""
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        monkeypatch.setattr(warnings, 'showwarning', warned.warn)
        yield warned.server


@pytest.fixture(scope='module')
def finished(work):
    """A finished project, for servers of their own."""
    return project(work)


@pytest.mark.parametrize(
    'attack',
    [web.posted, web.bodies, web.parameters, web.paths, web.heads, web.bombs, web.vanish],
    ids=lambda attack: attack.__name__,
)
def test_request(server, check_each, attack):
    check_each(attack(server))


def test_endless_upload(server, check_each, long):
    check_each(web.endless(server, long))


def test_index_is_replaced(server, check_each, long):
    check_each(web.swaps(server, long))


def test_broken_index(server, warned, check_each):
    check_each(web.broken_index(server, warned.said))


def test_files_are_gone(server, check_each):
    check_each(web.files_gone(server))


def test_no_status_500_so_far(server, warned, check):
    statuses = server.site.measures.statuses
    what = 'no status 500 among them'
    why = str(warned.said[-3:])
    check(Case(what, statuses[500] == 0, 0, '', why, sum(statuses.values())))


def test_model_is_replaced(work, check_each, long):
    server = web.Server(project(work))
    try:
        check_each(web.models(server, long))
    finally:
        server.close()


@pytest.mark.parametrize(
    'attack', [web.busy, web.crowd, web.slow], ids=lambda attack: attack.__name__
)
def test_many_clients(finished, check_each, attack):
    check_each(attack(finished))


def test_clients_that_never_read(work, check_each):
    check_each(web.readers(project(work)))


def test_the_stage_itself(finished, work, check_each):
    check_each(web.ends(finished, work))
