"""Tars from elsewhere: damaged, cut off, hostile, empty, and those that change meanwhile."""

import io
import os
import tarfile
import time
import tracemalloc

import pytest

from two_tower_vs import archive
from two_tower_vs.archive import member_stamp, stamped_member

MEMBERS = {'00012.jpg': b'a hat', '00012.json': b'{}', './shoes/7.jpg': b'a shoe'}
NAMES = ['00012.jpg', '00012.json', 'shoes/7.jpg']


def make_tar(path, members):
    with tarfile.open(path, 'w') as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def header(name, kind=tarfile.REGTYPE, size=1):
    "The header of a member, and its content where it has one byte"
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = size
    member.linkname = '/etc/passwd'
    return member.tobuf(tarfile.GNU_FORMAT) + (b'x' + bytes(511) if size == 1 else b'')


# A folder, links, a sparse file and a name that climbs; two files
ODD = b''.join(
    [
        header('d', tarfile.DIRTYPE, 0),
        header('l', tarfile.SYMTYPE, 0),
        header('h', tarfile.LNKTYPE, 0),
        header('s', tarfile.GNUTYPE_SPARSE, 0),
        header('../up'),
        header('/abs'),
        header('..a'),
    ]
)


def walk(path):
    "(names of the files, was it read to its end?)"
    with open(path, 'rb') as file:
        rows, is_whole = archive._walk(file, str)
    return [name for name, _, _ in rows], is_whole


@pytest.fixture
def walked(tmp_path):
    "A function: the content of a tar -> what a walk through it finds"

    def written_and_walked(content, name='x.tar'):
        (tmp_path / name).write_bytes(content)
        return walk(tmp_path / name)

    return written_and_walked


@pytest.fixture
def shard(tmp_path):
    return make_tar(tmp_path / '000001.tar', MEMBERS)


@pytest.fixture
def walks(monkeypatch):
    "A list that grows by one with each walk through a tar"
    calls = []
    real = archive._walk

    def counted(file, key):
        calls.append(file.name)
        return real(file, key)

    monkeypatch.setattr(archive, '_walk', counted)
    archive._tables.clear()
    return calls


def test_names_and_places(shard):
    content = shard.read_bytes()
    with open(shard, 'rb') as file:
        rows, is_whole = archive._walk(file, str)
    assert is_whole and [name for name, _, _ in rows] == NAMES
    assert [content[at : at + size] for _, at, size in rows] == [b'a hat', b'{}', b'a shoe']


@pytest.mark.parametrize(
    'length,is_whole',
    [(None, True), (3584, True), (3583, False), (3072, False), (2000, False)],
)
def test_a_cut_off_tar_is_not_whole(shard, walked, length, is_whole):
    assert walked(shard.read_bytes()[:length])[1] == is_whole


@pytest.mark.parametrize('length,count', [(None, 3), (3072, 3), (3071, 3), (2000, 2), (600, 1)])
def test_a_cut_off_tar_is_read_as_far_as_possible(shard, walked, length, count):
    assert walked(shard.read_bytes()[:length])[0] == NAMES[:count]


@pytest.mark.parametrize(
    'content,name,message',
    [
        (b'<html>404</html>' * 99, 'x.tar', 'x.tar is not a plain tar'),
        (b'', 'x.tar', 'x.tar is not a plain tar'),
        (b'\x1f\x8b' + bytes(999), 'x.tgz', 'x.tgz is compressed; unpack it'),
    ],
)
def test_what_is_no_plain_tar(walked, content, name, message):
    with pytest.raises(OSError, match=message):
        walked(content, name)


@pytest.mark.parametrize('size', [-512, -(10**6), 2**70])
def test_a_size_that_cannot_be_ends_the_walk(walked, size):
    content = ODD + header('wrong', size=size) + header('next') + bytes(1024)
    assert walked(content) == (['abs', '..a'], False)


def test_a_size_that_leads_back(walked):
    assert walked(header('wrong', size=-(10**6)) + header('next'))[0] == []


def test_a_disk_that_fails_is_no_cut_off_tar(shard, monkeypatch):
    results = iter([None, OSError(5, 'Input/output error')])

    def fail(tar):
        result = next(results)
        if isinstance(result, OSError):
            raise result
        return result

    monkeypatch.setattr(tarfile.TarFile, 'next', fail)
    with pytest.raises(OSError, match='Input/output'):
        walk(shard)


@pytest.mark.parametrize(
    'kind',
    [
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
    ],
)
def test_a_name_of_two_gigabytes_is_not_read(tmp_path, walked, kind):
    "The tar holds none of it; the members before it are found"
    walked(ODD + header('long', kind, 2**31))
    os.truncate(tmp_path / 'x.tar', 2**31 + 10**4)
    tracemalloc.start()
    try:
        assert walk(tmp_path / 'x.tar')[0] == ['abs', '..a']
        assert tracemalloc.get_traced_memory()[1] < 2**25, 'the name was read'
    finally:
        tracemalloc.stop()


def test_a_sparse_file_larger_than_its_tar_is_passed_over(shard, walked):
    info = tarfile.TarInfo('film.jpg').get_info() | dict(type=tarfile.GNUTYPE_SPARSE)
    top = bytearray(tarfile.TarInfo.create_gnu_header(tarfile.TarInfo(), info, 'utf-8', 'strict'))
    top[483:494] = b'77777777777'
    top[148:156] = b'%06o\0 ' % tarfile.calc_chksums(top)[0]
    assert walked(bytes(top) + shard.read_bytes()) == (NAMES, True)


def test_headers_are_not_kept(shard, monkeypatch):
    kept = []
    real = tarfile.TarFile.next

    def counted(tar):
        member = real(tar)
        kept.append(len(tar.members))
        return member

    monkeypatch.setattr(tarfile.TarFile, 'next', counted)
    walk(shard)
    assert (len(kept), max(kept)) == (5, 1)


def test_a_member_that_no_picture_can_be(tmp_path):
    huge = tmp_path / 'huge.tar'
    huge.write_bytes(header('film.jpg', size=2 * 10**9))
    os.truncate(huge, 2 * 10**9 + 2048)
    with pytest.raises(OSError, match='2.0 GB, over the limit of 1 GB'):
        stamped_member(str(huge), 'film.jpg')


def test_an_empty_tar_is_walked_through_once(tmp_path, walks):
    empty = make_tar(tmp_path / 'empty.tar', {})
    for _ in range(3):
        with pytest.raises(OSError, match='no such file in empty.tar'):
            stamped_member(str(empty), 'a.jpg')
    assert len(walks) == 1


def test_the_tables_used_longest_ago_are_forgotten(tmp_path, monkeypatch, walks):
    large, small, tiny = (
        str(make_tar(tmp_path / f'{n}.tar', {f'{i}.jpg': b'' for i in range(n)}))
        for n in (500, 99, 1)
    )
    monkeypatch.setattr(archive, 'max_members', 550)
    for tar in (small, tiny, small):
        stamped_member(tar, '0.jpg')
    assert list(archive._tables) == [tiny, small]
    stamped_member(large, '1.jpg')
    assert list(archive._tables) == [large]
    archive._tables.clear()


def test_a_change_that_keeps_size_date_and_places(shard):
    before = member_stamp(str(shard), '00012.jpg')
    time.sleep(0.05)
    shard.chmod(0o600)
    after = member_stamp(str(shard), '00012.jpg')
    same = [a == b for a, b in zip(before, after)]
    assert same == [True, True, False, True, True]
