"""What the check finds: cached fingerprints, near hashes, leaks, and tables that are missing."""

import json
import shutil

import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from PIL.PngImagePlugin import PngImageFile

from two_tower_vs import fingerprints as module
from two_tower_vs import turned
from two_tower_vs.check import check, save_check, show_check
from two_tower_vs.data import read_candidates, read_pairs
from two_tower_vs.demo import demo_catalog
from two_tower_vs.fingerprints import fingerprints
from two_tower_vs.leaks import find_leaks
from two_tower_vs.model import TwoTower
from two_tower_vs.near import feature_cosines, near_copies, nearest_hashes
from two_tower_vs.pictures import load_image, picture_header

SIX = ['a.png', 'copy.png', 'small.jpg', 'dim.png', 'other.png', 'page.png']


@pytest.fixture(scope='module')
def tower():
    return TwoTower(embed_dim=None).query


@pytest.fixture(scope='module')
def emojis(workshop):
    return demo_catalog(workshop / 'twelve', side=160, limit=12) / 'images/color'


@pytest.fixture
def shop(tmp_path, emojis):
    "A picture, three copies of it, another picture, and a text"
    image = load_image(emojis / '1F385.png')
    image.save(tmp_path / 'a.png')
    shutil.copy(tmp_path / 'a.png', tmp_path / 'copy.png')
    image.resize((90, 90)).save(tmp_path / 'small.jpg')
    ImageEnhance.Brightness(image).enhance(0.9).save(tmp_path / 'dim.png')
    shutil.copy(emojis / '1F355.png', tmp_path / 'other.png')
    (tmp_path / 'page.png').write_text('<html>not found</html>')
    return tmp_path


def table(**columns):
    return pd.DataFrame(columns)


def test_the_hash_is_that_of_imagehash(shop):
    prints, bad = fingerprints(SIX, shop)
    assert list(bad) == ['page.png'] and 'not an image' in bad['page.png']
    bits = np.unpackbits(np.array([prints.phash['a.png']]).view(np.uint8))
    assert (bits == imagehash.phash(load_image(shop / 'a.png')).hash.ravel()).all()


def test_only_a_png_with_exif_is_decoded_for_its_header(tmp_path, monkeypatch):
    sideways = Image.Exif()
    sideways[0x0112] = 6
    picture = Image.new('RGB', (40, 20))
    picture.save(tmp_path / 'turned.png', exif=sideways)
    picture.save(tmp_path / 'plain.png')
    assert picture_header((tmp_path / 'turned.png').read_bytes()) == (40, 20, 6)
    decoded = []
    monkeypatch.setattr(PngImageFile, 'load', lambda image: decoded.append(image))
    assert picture_header((tmp_path / 'plain.png').read_bytes()) == (40, 20, 1)
    assert not decoded


def test_what_no_turn_could_improve_is_not_turned(shop, tower, monkeypatch):
    monkeypatch.setattr(turned, 'shared_engine', None)
    pairs = table(query_path=['a.png', 'other.png'], cand_path=['copy.png', 'other.png'])
    assert len(turned.find_turned(pairs, shop, tower)) == 0


def test_a_second_reading_comes_from_the_cache(shop, tmp_path, monkeypatch):
    first, _ = fingerprints(SIX, shop, tmp_path / 'cache')
    with monkeypatch.context() as patched:
        patched.setattr(module, '_fingerprint', None)
        second, _ = fingerprints(SIX[:5], shop, tmp_path / 'cache')
    pd.testing.assert_frame_equal(first, second)
    pd.testing.assert_frame_equal(first, fingerprints(SIX, shop)[0])


def test_a_changed_file_is_read_again(shop, tmp_path):
    fingerprints(SIX, shop, tmp_path / 'cache')
    shutil.copy(shop / 'other.png', shop / 'copy.png')
    assert fingerprints(SIX, shop, tmp_path / 'cache')[0].content.nunique() == 4
    both = ['copy.png', 'other.png']
    assert fingerprints(both, shop, tmp_path / 'cache')[0].content.nunique() == 1


def test_nothing_to_read(shop):
    assert len(fingerprints([], shop)[0]) == 0
    assert len(fingerprints(['page.png'], shop)[0]) == 0


@pytest.mark.parametrize('most', [1e10, 0])
def test_nearest_hashes_against_all_comparisons(most):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 300, dtype=np.uint64)

    def flipped(number, count):
        bits = rng.permutation(64)[:count]
        return number ^ sum(np.uint64(1) << np.uint64(bit) for bit in bits)

    queries = np.array([flipped(number, i % 8) for i, number in enumerate(hashes)])
    exact = np.bitwise_count(queries[:, None] ^ hashes[None])
    bits, rows = nearest_hashes(queries, hashes, 4, most)
    assert (rows[:, 0] == np.arange(300)).all()
    assert (bits[:, 0] == np.arange(300) % 8).all()  # 7 bits are always found
    query, rank = np.nonzero(bits <= 20)
    assert (bits[query, rank] == exact[query, rows[query, rank]]).all()


def test_fewer_hashes_than_neighbours():
    hashes = np.arange(300, dtype=np.uint64)
    assert nearest_hashes(hashes, hashes[:2])[0].shape == (300, 2)


def test_near_copies_of_exact_copies(shop, tower):
    prints, _ = fingerprints(SIX, shop)
    found = near_copies(prints, SIX[:5], cosines=feature_cosines(tower, shop))
    assert set(found.path) == {'a.png', 'copy.png', 'small.jpg', 'dim.png'}
    assert 'other.png' not in set(found.other)


def test_leaks(shop, tower):
    prints, _ = fingerprints(SIX, shop)
    cosines = feature_cosines(tower, shop)
    pairs = table(query_path=['a.png', 'other.png'], cand_path=['x', 'x'])
    gt = table(query_path=['a.png', 'copy.png', 'small.jpg'], gt_cand_path=['x'] * 3)
    leaks = find_leaks(pairs, gt, prints, cosines)
    assert list(leaks.query_path) == ['a.png', 'copy.png', 'small.jpg']
    assert list(leaks.other) == ['a.png'] * 3
    assert len(find_leaks(pairs[1:], gt, prints, cosines)) == 0
    others = find_leaks(pairs.assign(cand_path='y'), gt, prints)
    assert list(others.query_path) == ['a.png', 'copy.png']
    shutil.copy(shop / 'small.jpg', shop / 'small2.jpg')
    prints, _ = fingerprints([*SIX, 'small2.jpg'], shop)
    twice = table(query_path=['small.jpg', 'small2.jpg'], gt_cand_path=['x', 'x'])
    assert set(find_leaks(pairs, twice, prints).query_path) == {'small.jpg', 'small2.jpg'}


@pytest.mark.parametrize('which', ['pairs', 'candidates'])
def test_one_table_alone(fresh, tower, tmp_path, which):
    images = fresh / 'images'
    tables = {'pairs': None, 'candidates': None, 'gt': None}
    if which == 'pairs':
        tables['pairs'] = read_pairs(fresh / 'pairs.csv', images)
    else:
        tables['candidates'] = read_candidates(fresh / 'candidates.csv', images)
    found = check(**tables, images_root=images, tower=tower, turns=0, progress=False)
    assert [found.json()['errors'], found.queries, found.json()['leaked']['share']] == [0, 0, None]
    assert isinstance(show_check(found, images), Image.Image)
    save_check(found, tmp_path / 'out', images)
    assert json.loads((tmp_path / 'out/check.json').read_text()) == found.json()
    assert len(pd.read_csv(tmp_path / 'out/check.csv')) == len(found.rows)
