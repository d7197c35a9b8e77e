"""Files written whole or not at all: what killed processes left, and disks that refuse."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from two_tower_vs.files import DiskError, is_left_over, leftovers, replacing, tidy


@pytest.fixture
def pair(tmp_path):
    return tmp_path / 'vectors.bin', tmp_path / 'names.csv'


def write(pair, text):
    with replacing(*pair) as temporary:
        for file in temporary:
            file.write_text(text)


def contents(pair):
    return [file.read_text() for file in pair]


def refusing(number):
    return mock.patch('os.fsync', side_effect=OSError(number, os.strerror(number)))


@pytest.fixture
def dead():
    "The number of a process that has ended"
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_tidy_removes_what_dead_processes_left(tmp_path, dead):
    running = f'.tmp-{os.getppid()}-0b-names.csv'
    names = {f'.tmp-{dead}-0a-names.csv': 'half', running: 'being written', '.tmp-mine': 'own'}
    for name, text in names.items():
        (tmp_path / name).write_text(text)
    assert [file.name for file in leftovers(tmp_path)] == [f'.tmp-{dead}-0a-names.csv']
    tidy(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {running, '.tmp-mine'}


def test_tidy_finishes_where_there_is_a_mark(tmp_path, dead, pair):
    write(pair, 'old')
    (tmp_path / f'.tmp-{dead}-0a-names.csv').write_text('new')
    (tmp_path / f'.tmp-{dead}-0a.done').touch()
    tidy(tmp_path)
    assert contents(pair) == ['old', 'new'] and len(list(tmp_path.iterdir())) == 2


def test_names_that_are_not_ours(tmp_path):
    for name in ('names.csv', '.tmp-', '.tmp-12-xyz-a', '.tmp-a-0-b'):
        assert not is_left_over(tmp_path / name)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_keeps_the_old_files(tmp_path, pair, number):
    write(pair, 'old')
    message = rf'vectors.bin cannot be written \({os.strerror(number)}\)\. '
    with refusing(number), pytest.raises(DiskError, match=message):
        write(pair, 'newer')
    assert contents(pair) == ['old', 'old'] and len(list(tmp_path.iterdir())) == 2


def test_files_and_folder_are_flushed(pair):
    "Two files, and the folder before and after the renames"
    with mock.patch('os.fsync', wraps=os.fsync) as synced:
        write(pair, 'synced')
    assert synced.call_count == 4


def test_a_file_system_without_fsync(tmp_path, pair):
    with refusing(errno.EINVAL):
        write(pair, 'unsynced')
    assert contents(pair) == ['unsynced'] * 2 and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='this system has no /dev/full')
def test_a_library_that_does_not_say_why(tmp_path):
    with pytest.raises(DiskError, match='Free some space'):
        with replacing(tmp_path / 'x.bin') as (temporary,):
            temporary.symlink_to('/dev/full')
            raise RuntimeError('iostream error')
    assert not list(tmp_path.iterdir())


def test_a_library_that_names_the_number(tmp_path):
    message = f'I/O error: No space left on device (os error {errno.ENOSPC})'
    with pytest.raises(DiskError, match='Free some space'):
        with replacing(tmp_path / 'x.bin'):
            raise RuntimeError(message)


def test_a_bug_stays_a_bug(tmp_path):
    with pytest.raises(RuntimeError, match='a bug'):
        with replacing(tmp_path / 'x.bin'):
            raise RuntimeError('a bug')
    assert not list(tmp_path.iterdir())
