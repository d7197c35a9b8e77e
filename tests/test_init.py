"""From a folder of pictures to a project: tables, layouts, copies; odd names and full disks."""

import os
import random
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from two_tower_vs import copies
from two_tower_vs.copies import edited, edits, make_copies
from two_tower_vs.data import read_candidates, read_gt, read_pairs
from two_tower_vs.errors import InputError
from two_tower_vs.init import init, list_folder
from two_tower_vs.layout import find_things
from two_tower_vs.pictures import load_image
from two_tower_vs.things import _right_answers, split_things

TABLES = ('pairs.csv', 'candidates.csv', 'query_gt.csv')
THINGS = ('hat', 'shoe', 'bag', 'cap', 'tie')


@pytest.fixture
def emojis(fresh):
    return sorted((fresh / 'images/color').glob('*.png'))


# ---- tables


def table_of(count, pictures, role='', part='', above=''):
    rows = []
    for thing in range(count):
        for number in range(pictures):
            path = f'{above}{thing}/{number}.jpg'
            rows.append({'path': path, 'thing': f'{thing}', 'role': role, 'part': part})
    return pd.DataFrame(rows)


def judge(pictures, tables):
    "Whatever the shape: no thing of group `new` and no evaluation query is trained on"
    pairs, candidates, truth = tables.pairs, tables.candidates, tables.query_gt
    thing = pictures.set_index('path').thing
    assert (pairs.query_path.map(thing) == pairs.cand_path.map(thing)).all()
    assert set(pairs.cand_path) | set(truth.gt_cand_path) <= set(candidates.cand_path)
    assert not set(truth.query_path) & (set(pairs.query_path) | set(candidates.cand_path))
    assert not set(pairs.query_path) & set(candidates.cand_path)
    trained = set(pairs.query_path.map(thing)) | set(pairs.cand_path.map(thing))
    is_new = truth.group == 'new'
    assert not set(truth.query_path[is_new].map(thing)) & trained
    assert set(truth.query_path[~is_new].map(thing)) <= trained
    right = candidates.groupby(candidates.cand_path.map(thing)).cand_path.agg(set)
    for query, found in truth.groupby('query_path').gt_cand_path:
        assert set(found) == right[thing[query]]
    for table in (pairs, candidates, truth):
        assert not table.duplicated().any()
    assert pairs.groupby('query_path').size().max() <= 5


@pytest.mark.parametrize(
    ('count', 'each'), [(4, 2), (12, 6), (40, 2), (5, 100), (200, 3), (3, 9), (2, 50)]
)
def test_tables_of_many_shapes(count, each):
    pictures = table_of(count, each)
    tables = split_things(pictures)
    judge(pictures, tables)
    other_order = split_things(pictures.sample(frac=1, random_state=1))
    assert tables.query_gt.equals(other_order.query_gt)
    assert not tables.query_gt.equals(split_things(pictures, seed=1).query_gt)
    new = tables.query_gt.gt_cand_path[tables.query_gt.group == 'new']
    assert new.str.split('/').str[0].nunique() == (round(count / 4) if count > 3 else 0)


def test_a_test_part_is_the_evaluation():
    pictures = pd.concat([table_of(6, 4, part='train'), table_of(8, 3, part='test', above='test/')])
    tables = split_things(pictures)
    judge(pictures, tables)
    truth = tables.query_gt
    assert set(truth.group) == {'new', 'known'}
    assert truth.query_path.str.startswith('test/').all()
    assert not tables.pairs.query_path.str.startswith('test/').any()
    assert set(truth.query_path[truth.group == 'new'].str.split('/').str[1]) == {'6', '7'}


def test_roles_are_kept_and_answers_are_bounded():
    pictures = pd.concat([table_of(6, 4, role='q'), table_of(6, 40, role='c', above='c/')])
    tables = split_things(pictures)
    judge(pictures, tables)
    assert len(tables.candidates) == 240
    queries = pictures[pictures.role == 'q'].assign(group='')
    assert len(_right_answers(queries, pictures[pictures.role == 'c'], most=200)) == 200


# ---- layouts


def in_folders(tops, classes='abc', count=3):
    paths = []
    for top in tops:
        for name in classes:
            paths += [f'{top}/{name}/{top}{i}.jpg' for i in range(count)]
    return paths


def named(endings, folders=('',), things=THINGS):
    paths = []
    for folder in folders:
        for thing in things:
            paths += [f'{folder}{thing}{ending}.jpg' for ending in endings]
    return paths


FOLDERS = {
    'two folders': ('names', [f'{d}/{n}.png' for d in ('photo', 'sketch') for n in THINGS]),
    'class folders': ('classes', in_folders(['goods'], ('hats', 'shoes', 'bags'), 4)),
    'with parts': ('classes', in_folders(['train', 'test'], ('hats', 'shoes', 'bags'), 4)),
    'query, gallery': ('classes', in_folders(['train', 'query', 'gallery'], '789', 4)),
    'words in names': ('names', named(['_query', '_cand'])),
    'numbers in names': ('names', named(['-1', '-2', '-3'])),
    'a camera': (
        'augment',
        [f'IMG_{i:04d}.jpg' for i in range(40)] + [f'DSC_{i:03d}.jpg' for i in range(40)],
    ),
    'a phone': ('augment', [f'PXL_2023010{i % 9}_{i:06d}.jpg' for i in range(40)]),
    'code points': ('augment', [f'{i:X}.png' for i in range(0x1F400, 0x1F4A0)]),
}


@pytest.mark.parametrize('folder', FOLDERS)
def test_layouts_are_recognised(folder):
    layout, paths = FOLDERS[folder]
    found = find_things(paths)
    assert found.name == layout
    if layout != 'augment':
        judge(found.pictures, split_things(found.pictures))


def test_roles_by_words():
    found = find_things(FOLDERS['two folders'][1]).pictures.set_index('path')
    assert list(found.loc['photo/hat.png', ['role', 'thing']]) == ['c', 'hat']
    assert found.role['sketch/hat.png'] == 'q'
    found = find_things(FOLDERS['words in names'][1]).pictures.set_index('path')
    assert [found.role['hat_query.jpg'], found.role['hat_cand.jpg']] == ['q', 'c']
    assert set(find_things(FOLDERS['numbers in names'][1]).pictures.role) == {''}
    found = find_things(FOLDERS['with parts'][1]).pictures
    assert [set(found.thing), set(found.part)] == [{'hats', 'shoes', 'bags'}, {'train', 'test'}]


def test_query_and_gallery_are_kept_apart():
    tables = split_things(find_things(FOLDERS['query, gallery'][1]).pictures)
    assert tables.query_gt.query_path.str.startswith('query').all()
    assert tables.query_gt.gt_cand_path.str.startswith('gallery').all()
    assert tables.pairs.query_path.str.startswith('train').all()


def test_two_folders_that_differ_in_capitals_alone():
    found = find_things([f'{d}/{n}.png' for d in ('Hats', 'hats') for n in THINGS])
    assert set(found.pictures.role[found.pictures.path.str.startswith('H')]) == {'q'}
    assert set(found.pictures.role[found.pictures.path.str.startswith('h')]) == {'c'}


def test_words_count_before_folders_and_letters_after_them():
    folders = ('x/', 'y/', 'z/')
    assert find_things(named(['_sketch', '_photo'], folders, ('hat', 'cap'))).name == 'names'
    assert find_things(named(['_a', '_b'], folders, ('hat', 'cap'))).name == 'classes'


@pytest.mark.parametrize(
    ('tops', 'parts'),
    [
        (('train', 'val'), {'train': 'train', 'val': 'test'}),
        (('train', 'val', 'test'), {'train': 'train', 'val': 'train', 'test': 'test'}),
    ],
)
def test_a_validation_part_is_the_test_part_where_there_is_no_other(tops, parts):
    found = find_things(in_folders(tops)).pictures
    assert dict(found.groupby(found.path.str.split('/').str[0]).part.first()) == parts


def test_a_class_may_be_called_as_a_part():
    paths = [f'{c}/{i}.jpg' for c in ('line', 'hat', 'cap') for i in range(3)]
    assert set(find_things(paths).pictures.thing) == {'line', 'hat', 'cap'}


def test_a_layout_that_was_asked_for():
    camera = FOLDERS['a camera'][1]
    for layout in ('classes', 'names'):
        with pytest.raises(InputError, match=f'--layout {layout} does not fit'):
            find_things(camera, layout)
    with pytest.raises(InputError, match='Use auto, classes, names or augment'):
        find_things(camera, 'Classes')
    found = find_things(FOLDERS['class folders'][1], 'augment')
    assert [found.name, found.pictures] == ['augment', None]


# ---- edited copies


@pytest.mark.parametrize('size', [(1, 1), (3, 900), (900, 3), (500, 333)])
def test_edits_of_any_size(size):
    image = Image.new('RGB', size, 'red')
    for edit in edits.values():
        out = edit(image, random.Random(1))
        assert out.mode == 'RGB' and min(out.size) > 0
    for seed in range(30):
        load_image(edited(image, random.Random(seed)))


@pytest.fixture
def album(tmp_path, emojis):
    "Five pictures, one of them twice, and a broken one"
    folder = tmp_path / 'album'
    folder.mkdir()
    for picture in emojis[:5]:
        shutil.copy(picture, folder)
    shutil.copy(emojis[0], folder / 'again.png')
    (folder / 'broken.png').write_bytes(b'no picture')
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_copies_follow_from_content_and_seed(album, emojis, tmp_path):
    names = [picture.name for picture in emojis[:5]]
    folder = tmp_path / 'copies'
    table, bad = make_copies([*names, 'again.png', 'broken.png'], album, folder)
    assert bad == {'broken.png': 'not an image but a text'}
    assert [len(table), table.thing.nunique(), len(list(folder.iterdir()))] == [16, 5, 10]
    thing = table.set_index('path').thing
    assert thing['again.png'] == thing[names[0]]
    made = contents(folder)
    assert set(table.path[table['copy']]) == set(made)
    assert len(set(made.values())) == 10
    make_copies(names[::-1], album, tmp_path / 'other', most=3)
    assert contents(tmp_path / 'other').items() <= made.items()
    make_copies(names[:1], album, tmp_path / 'seed', seed=1)
    assert not set(contents(tmp_path / 'seed').values()) & set(made.values())


def test_only_missing_and_torn_copies_are_made_again(album, emojis, tmp_path, monkeypatch):
    names = [picture.name for picture in emojis[:5]]
    folder = tmp_path / 'copies'
    make_copies(names, album, folder)
    before = contents(folder)
    gone, torn, kept, *_ = sorted(folder.iterdir())
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:-50])
    (folder / '.tmp-999999999-0-x.jpg').touch()  # of a killed process
    changed = kept.stat().st_mtime_ns
    made = []
    monkeypatch.setattr(copies, 'edited', lambda *args: made.append(1) or edited(*args))
    make_copies(names, album, folder)
    assert len(made) == 2
    assert kept.stat().st_mtime_ns == changed
    assert contents(folder) == before


def test_pictures_without_copies_are_candidates(album, emojis, tmp_path):
    names = [picture.name for picture in emojis[:5]]
    table, _ = make_copies(names, album, tmp_path / 'copies', most=2)
    assert table.role.value_counts().to_dict() == {'c': 5, 'q': 4}
    assert table['copy'].sum() == 4


# ---- projects


def reads(project, root):
    "The tables are read as they were made"
    folder = project.config.parent
    candidates = read_candidates(folder / 'candidates.csv', root, 'error')
    found = [
        read_pairs(folder / 'pairs.csv', root),
        candidates,
        read_gt(folder / 'query_gt.csv', root, candidates),
    ]
    made = [project.pairs, project.candidates, project.query_gt]
    for got, want in zip(found, made):
        assert got.reset_index(drop=True).equals(want.astype(str))


@pytest.fixture
def goods(tmp_path, emojis):
    "Folders of five pictures each"
    for i, picture in enumerate(emojis[:60]):
        folder = tmp_path / f'goods/thing {i // 5}'
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder)
    return tmp_path / 'goods'


@pytest.fixture
def flat(tmp_path, emojis):
    "Twenty pictures that say nothing, and a broken one"
    folder = tmp_path / 'flat'
    folder.mkdir()
    for picture in emojis[:20]:
        shutil.copy(picture, folder)
    (folder / 'broken.jpg').write_bytes(b'no picture')
    return folder


def test_what_a_folder_holds(tmp_path):
    folder = tmp_path / 'odd'
    (folder / 'deep/er').mkdir(parents=True)
    (folder / '.hidden').mkdir()
    (folder / 'made').mkdir()
    good = ['a.jpg', 'b b, c".PNG', 'deep/er/ü\n鞋.webp', 's3:x.jpg']
    hidden = ['.x.jpg', '.hidden/x.jpg', 'made/x.jpg', 'readme.txt', 'film.MOV', '._a.jpg']
    bad = ['cr\r.jpg', 'Thumbs.db', 'c:d.jpg', '\\x.jpg', os.fsdecode(b'\xff.jpg')]
    for name in good + hidden + bad:
        (folder / name).write_bytes(b'x')
    (folder / 'empty.jpg').touch()
    (folder / 'folder.jpg').mkdir()
    (tmp_path / 'away.jpg').write_bytes(b'x')
    (tmp_path / 'away').mkdir()
    (tmp_path / 'away/y.jpg').write_bytes(b'x')
    links = {
        'gone.jpg': 'nowhere',
        'again.jpg': 'a.jpg',
        'link.jpg': '../away.jpg',
        'link2.jpg': '../away.jpg',
        'round': '.',
        'elsewhere': '../away',
        'loop.jpg': 'loop.jpg',
    }
    for name, target in links.items():
        os.symlink(target, folder / name)
    found = list_folder(folder, skip={'made'})
    assert found.paths == sorted([*good, 'elsewhere/y.jpg', 'link.jpg'])
    assert len(found.left_out) == 10
    assert [found.others.total(), found.kept_by_others.total()] == [2, 2]
    with pytest.raises(InputError, match='is not a folder'):
        list_folder(tmp_path / 'none')


def test_held_out_copies_are_of_pictures_that_training_never_sees(flat, tmp_path):
    project = init(flat, tmp_path / 'shop/config.yaml')
    reads(project, tmp_path)
    assert 'flat/broken.jpg' not in set(project.candidates.cand_path)
    originals = project.query_gt.query_path.str.extract(r'(\w+)-\d+-\d+\.jpg$')[0]
    trained = project.pairs.query_path.str.extract(r'(\w+)-\d+-\d+\.jpg$')[0]
    assert originals.nunique() == 5
    assert set(project.query_gt.group) == {'new'}
    assert not set(originals) & set(trained)


def test_nothing_is_overwritten(goods, tmp_path):
    shop = tmp_path / 'shop'
    init(goods, shop / 'config.yaml')
    before = contents(shop)
    for name in before:
        for file in shop.iterdir():
            file.unlink()
        (shop / name).write_bytes(b'mine')
        with pytest.raises(InputError, match=f'{shop / name} exists, and init overwrites nothing'):
            init(goods, shop / 'config.yaml')
        assert contents(shop) == {name: b'mine'}
    (shop / name).unlink()
    init(goods, shop / 'config.yaml')
    assert contents(shop) == before


def test_folders_without_enough_pictures(tmp_path, emojis):
    few = tmp_path / 'few'
    few.mkdir()
    for picture in emojis[:9]:
        shutil.copy(picture, few)
    (few / 'x.mov').touch()
    words = r'few holds 9 pictures; 1 other file is left out \(.mov 1\). At least 10 are needed'
    with pytest.raises(InputError, match=words):
        init(few, tmp_path / 'new/config.yaml')
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(InputError, match='holds no pictures'):
        init(tmp_path / 'nothing', tmp_path / 'new/config.yaml')
    with pytest.raises(InputError, match='is not a folder'):
        init(tmp_path / 'none', tmp_path / 'new/config.yaml')
    assert not (tmp_path / 'new').exists()


def test_awkward_names(tmp_path, emojis):
    folder = tmp_path / 'odd'
    folder.mkdir()
    names = [f'a\n"ü, {i // 2}_{i % 2 + 1}.png' for i in range(12)]
    names += [f'k{i // 2}-{i % 2 + 1}.png' for i in range(12)]
    for stem in ('#x', ' y ', '=SUM(z)', 'nan'):
        names += [f'{stem}_1.png', f'{stem}_2.png']
    for i, name in enumerate(names):
        shutil.copy(emojis[i % 12], folder / name)
    project = init(folder, tmp_path / 'odd shop/my.yaml')
    assert project.layout == 'names'
    reads(project, folder)
    assert any('\n' in path for path in project.candidates.cand_path)


def test_a_project_among_its_pictures(flat, emojis):
    first = init(flat, flat / 'config.yaml')
    reads(first, flat)
    assert 'images_root: "."' in first.config.read_text()
    for name in ('config.yaml', *TABLES):
        (flat / name).unlink()
    (flat / 'out').mkdir()
    shutil.copy(emojis[0], flat / 'out/check.png')
    second = init(flat, flat / 'config.yaml')
    assert second.pairs.equals(first.pairs) and second.candidates.equals(first.candidates)


def test_a_project_behind_a_link(flat, tmp_path):
    (tmp_path / 'a/b').mkdir(parents=True)
    os.symlink(tmp_path / 'a/b', tmp_path / 'short')
    project = init(flat, tmp_path / 'short/config.yaml')
    written = re.search('images_root: "(.*?)"', project.config.read_text())[1]
    root = tmp_path / 'short' / written
    assert os.path.realpath(root) == os.path.realpath(tmp_path)
    reads(project, root)


def test_a_full_disk_among_the_copies(flat, tmp_path, monkeypatch):
    "One line, no tables, nothing torn; then the same command resumes"
    place = tmp_path / 'full'
    place.mkdir()
    (place / 'notes.txt').write_text('mine')
    write = Path.write_bytes
    written = []

    def fails_after_seven(file, data):
        written.append(file)
        if len(written) > 7:
            write(file, data[:9])
            raise OSError(28, 'No space left on device')
        return write(file, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, 'write_bytes', fails_after_seven)
        advice = 'Free some space, or set --config to another disk; then'
        with pytest.raises(InputError, match=advice):
            init(flat, place / 'config.yaml')
    assert {file.name for file in place.iterdir()} == {'notes.txt', 'edited_copies'}
    kept = list((place / 'edited_copies').iterdir())
    assert 0 < len(kept) <= 7
    for file in kept:
        load_image(file)
    changed = [file.stat().st_mtime_ns for file in kept]
    project = init(flat, place / 'config.yaml')
    assert [file.stat().st_mtime_ns for file in kept] == changed
    assert len(list((place / 'edited_copies').iterdir())) == 40
    assert (place / 'notes.txt').read_text() == 'mine'
    assert len(project.pairs) + len(project.query_gt) == 40
