"""One run at a time in a folder, also where the file system knows no locks."""

import errno
import os
import signal

import pytest

from two_tower_vs.errors import InputError
from two_tower_vs.lock import only_run

fcntl = pytest.importorskip('fcntl')

ERRORS = [None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


@pytest.fixture(params=ERRORS, ids=['locks', 'ENOSYS', 'ENOLCK', 'EOPNOTSUPP'])
def error(request, monkeypatch):
    "What the file system answers to flock; None: it locks"

    def flock(*args):
        raise OSError(request.param, os.strerror(request.param))

    if request.param:
        monkeypatch.setattr(fcntl, 'flock', flock)
    return request.param


def attempt(out):
    "None if the folder was free, else the message"
    try:
        with only_run(out):
            return None
    except InputError as e:
        return str(e)


def test_a_second_run_waits(error, tmp_path):
    out = tmp_path / 'out'
    assert attempt(out) is None
    with only_run(out):
        said = attempt(out)
    assert 'is in use by another run' in said
    assert (f'remove {out}/.lock' in said) == bool(error)  # never where that would let in two runs
    assert attempt(out) is None


def test_a_lock_file_that_was_copied(error, tmp_path):
    (tmp_path / '.lock').touch()
    said = attempt(tmp_path)
    assert said is None if not error else f'remove {tmp_path}/.lock' in said


def test_a_killed_run_leaves_the_folder_free(error, tmp_path):
    child = os.fork()
    if child == 0:
        only_run(tmp_path).__enter__()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert attempt(tmp_path) is None
