"""Bytes of pictures from files and tars, and the one-line reasons where there are none."""

import os
import tarfile
from io import BytesIO

import pytest

from two_tower_vs.errors import BadImage
from two_tower_vs.reading import file_stamp, read_bytes, read_stamped


def make_tar(path, members):
    with tarfile.open(path, 'w') as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, BytesIO(content))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'note.txt').write_text('old')
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/2.tar.gz').touch()
    make_tar(tmp_path / 'old/1.tar', {'a b.txt': b'hat', 'x/ü.txt': b'shoe'})
    os.mkfifo(tmp_path / 'pipe.jpg')
    os.symlink('/dev/zero', tmp_path / 'zeros.jpg')
    os.symlink('loop.jpg', tmp_path / 'loop.jpg')
    os.symlink('nowhere', tmp_path / 'gone')
    with open(tmp_path / 'film.jpg', 'wb') as file:
        file.truncate(20 * 10**9)
    return tmp_path


@pytest.mark.parametrize(
    'path,reason',
    {
        'no.jpg': 'no such file',
        'note.txt/no.jpg': 'no such file',
        'old': 'a folder',
        'old/1.tar/no.jpg': 'no such file in 1.tar',
        'old/2.tar.gz/a.jpg': '2.tar.gz is compressed; unpack it to a plain .tar',
        'pipe.jpg': 'a pipe or a device',
        'zeros.jpg': 'a pipe or a device',
        'film.jpg': '20.0 GB, over the limit of 1 GB for a picture',
        'gone/1.jpg': 'no such file: gone is a link to nowhere, which is not there',
    }.items(),
)
def test_reasons(folder, path, reason):
    with pytest.raises(BadImage) as error:
        read_bytes(folder / path)
    assert str(error.value) == reason
    assert path == 'film.jpg' or file_stamp(folder / path) is None


@pytest.mark.parametrize(
    'path,part', {'a\0.jpg': 'null', 'n' * 300: 'long', 'loop.jpg': 'symbolic links'}.items()
)
def test_reasons_of_the_system(folder, path, part):
    with pytest.raises(BadImage, match=part):
        read_bytes(folder / path)
    assert file_stamp(folder / path) is None


def test_a_link_out_of_the_folder_is_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp('elsewhere') / '1.jpg'
    elsewhere.write_bytes(b'far')
    (folder / 'link.jpg').symlink_to(elsewhere)
    assert read_bytes(folder / 'link.jpg') == b'far'


@pytest.mark.parametrize(
    'path,change',
    [
        ('note.txt', lambda path: path.write_text('new and longer')),
        ('note.txt', lambda path: os.utime(path, (1, 1))),
        ('old/1.tar/a b.txt', lambda path: make_tar(path.parent, {'a b.txt': b'hat', 'm': b''})),
    ],
    ids=['content', 'date', 'the tar around it'],
)
def test_a_stamp_changes(folder, path, change):
    before = file_stamp(folder / path)
    assert before and file_stamp(folder / path) == before
    assert read_stamped(folder / path)[1] == before
    change(folder / path)
    assert file_stamp(folder / path) not in (before, None)


def test_a_file_that_changes_while_it_is_read_has_no_stamp(folder, monkeypatch):
    from two_tower_vs import reading

    stamps = iter([(3, 1, 1), (4, 2, 2)])
    monkeypatch.setattr(reading, 'stat_stamp', lambda status: next(stamps))
    assert read_stamped(folder / 'note.txt') == (b'old', None)
