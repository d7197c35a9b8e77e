"""The readers of the three tables, the listing of folders and tars, and the demo catalogue."""

import warnings

import pandas as pd
import pytest
from made_up import make_tar

from two_tower_vs.data import read_candidates, read_gt, read_pairs
from two_tower_vs.demo import demo_catalog, line_drawing
from two_tower_vs.errors import InputError
from two_tower_vs.listing import list_images


@pytest.fixture
def root(tmp_path):
    "images_root with three pictures and two shards"
    images = tmp_path / 'images'
    images.mkdir()
    for name in 'abc':
        (images / f'{name}.png').touch()
    make_tar(images / 'shards/0.tar', '1.png', '1.json', '1.cls', 'x/2.JPG', '._1.png')
    make_tar(images / 'shards/1.tar', '3.webp', '3.txt', '3.webp.md5', '.cache/3.webp')
    return images


def caught(f, *args):
    "(what f gives, its warnings)"
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter('always')
        result = f(*args)
    return result, [str(warning.message) for warning in found]


@pytest.mark.parametrize(
    'text,message',
    {
        'a.png,../b.png': 'row 2: cand_path ../b.png is absolute or leaves',
        'a.png,b.png\nz.png,b.png': 'row 3: z.png is not a readable image (no such file in',
    }.items(),
)
def test_wrong_pairs(root, write, text, message):
    with pytest.raises(InputError) as error:
        read_pairs(write(f'query_path,cand_path\n{text}\n'), root)
    assert message in str(error.value)


def test_missing_pairs_may_be_left_to_drop_bad(root, write):
    text = 'query_path,cand_path\na.png,b.png\nz.png,b.png\n'
    assert len(read_pairs(write(text), root, on_bad='skip')) == 2


@pytest.mark.parametrize(
    'path,message',
    {
        'A.PNG': 'did you mean a.png?',
        '%61.png': 'did you mean a.png?',
        '~/1.png': '~ is not the home folder',
        'http://a.b/1.png': 'row 2: cand_path http://a.b/1.png is a URL',
        'zzz.png': 'zzz.png is not a readable image (no such file in ROOT)',
        'shards/0.tar/7.png': 'shards/0.tar/7.png is not a readable image (no such file in 0.tar)',
        'shards/7.tar/1.png': ('shards/7.tar/1.png is not a readable image (no such file in ROOT)'),
        'shards': 'shards is not a readable image (a folder)',
        '../s.tar/1.png': 'cand_path ../s.tar/1.png is absolute or leaves',
        'shards/0.tar/../../../1.png': (
            'cand_path shards/0.tar/../../../1.png is absolute or leaves'
        ),
        'shards/0.tar/../b.png': 'shards/b.png is not a readable image (no such file in ROOT)',
    }.items(),
)
def test_wrong_candidates(root, write, path, message):
    with pytest.raises(InputError) as error:
        read_candidates(write(f'cand_path\n{path}\n'), root, 'error')
    assert message.replace('ROOT', str(root)) in str(error.value)
    assert 'table.csv row 2: ' in str(error.value)


def test_an_absolute_path_with_a_space_before_it(root, write):
    with pytest.raises(InputError, match='row 2: cand_path'):
        read_candidates(write(f'cand_path\n {root}/b.png\n'), root)


def test_mended_paths(root, write):
    "One has a space in its name, one isn't there"
    (root / 'in').mkdir()
    for name in ('in/1.png', '2.png', ' 3.png', '3.png', 'é.png'):
        (root / name).touch()
    text = 'cand_path\n in/1.png\n2.png \n" 3.png"\nno\\4.png\n'
    found, said = caught(read_candidates, write(text), root)
    assert found.cand_path.tolist() == ['in/1.png', '2.png', ' 3.png', 'no\\4.png']
    assert len(said) == 1 and 'in 2 of 4 rows a path is read as the file that is there' in said[0]
    found, _ = caught(read_pairs, write('query_path,cand_path\nin\\1.png,2.png\n'), root, 'skip')
    assert found.query_path[2] == 'in/1.png'
    found, _ = caught(read_candidates, write('cand_path\n="in/1.png"\ne\u0301.png\n'), root)
    assert found.cand_path.tolist() == ['in/1.png', 'é.png']


def test_no_such_images_root(root, write):
    with pytest.raises(InputError, match='images_root'):
        read_pairs(write('query_path,cand_path\na.png,b.png\n'), root / 'nowhere')


def test_candidates_that_are_there_twice(root, write):
    found, said = caught(read_candidates, write('cand_path\na.png\nb.png\na.png\n'), root)
    assert len(found) == 2 and 'row 4' in said[0]


def test_pictures_in_tars(root, write):
    text = 'query_path,cand_path\na.png,shards/0.tar/1.png\nshards/1.tar/3.webp,b.png\n'
    assert len(read_pairs(write(text), root)) == 2


@pytest.fixture
def candidates():
    return pd.DataFrame({'cand_path': ['a.png', 'b.png', 'c.png']})


def test_an_answer_in_another_case(root, write, candidates):
    with pytest.raises(InputError, match='Did you mean b.png?'):
        read_gt(write('query_path,gt_cand_path\na.png,B.PNG\n'), root, candidates)


def test_answers_that_are_no_candidates(root, write, candidates):
    table = write('query_path,gt_cand_path\na.png,b.png\na.png,zzz.png\n', 'gt.csv')
    with pytest.raises(InputError, match=r'gt.csv row 3: zzz.png is not among .*\(1 of 2 rows'):
        read_gt(table, root, candidates)
    truth, said = caught(read_gt, table, root, candidates, 'skip')
    assert len(truth) == 1 and 'left out' in said[0]
    with (
        pytest.raises(InputError, match='no row is left to evaluate on'),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')
        read_gt(write('query_path,gt_cand_path\na.png,zzz.png\n'), root, candidates, 'skip')


def test_a_group_is_no_path(root, write, candidates):
    "One that looks like a file elsewhere is a name like any other"
    table = write('query_path,gt_cand_path,group\na.png,b.png,../etc\n')
    assert read_gt(table, root, candidates).group.tolist() == ['../etc']


def test_a_listing_can_be_read_as_candidates(root, tmp_path):
    (root / 'shards/2.tar.gz').touch()
    (root / '.hidden.png').touch()
    (root / 'folder.jpg').mkdir()
    found, said = caught(list_images, root)
    assert found.cand_path.tolist() == [
        'a.png',
        'b.png',
        'c.png',
        'shards/0.tar/1.png',
        'shards/0.tar/x/2.JPG',
        'shards/1.tar/3.webp',
    ]
    assert set(said) == {
        'shards/2.tar.gz is left out: 2.tar.gz is compressed; unpack it to a plain .tar.',
        f'{root}: 1 file is left out that systems and programs keep for themselves (._* 1).',
    }
    found.to_csv(tmp_path / 'f.csv', index=False)
    found.to_parquet(tmp_path / 'f.parquet', index=False)
    for name in ('f.csv', 'f.parquet'):
        read = read_candidates(tmp_path / name, root, 'error')
        assert read.cand_path.tolist() == found.cand_path.tolist()


def test_names_in_a_tar_that_no_table_can_carry(tmp_path):
    make_tar(tmp_path / '0.tar', '\udce9.png', '1.png', '2\r.png')
    found, said = caught(list_images, tmp_path)
    assert found.cand_path.tolist() == ['0.tar/1.png']
    reason = 'with a name that is not UTF-8 or holds a carriage return'
    assert rf'2 pictures are left out, {reason}: 0.tar/\udce9.png, …' in said[0]


def test_the_demo_catalogue(tmp_path, capsys):
    demo = demo_catalog(tmp_path / 'small', side=32, limit=12)
    names = ['ATTRIBUTION.txt', 'candidates.csv', 'config.yaml', 'images', 'pairs.csv']
    assert sorted(file.name for file in demo.iterdir()) == [*names, 'query_gt.csv']
    queries = len(pd.read_csv(demo / 'query_gt.csv'))
    assert abs(queries / len(pd.read_csv(demo / 'candidates.csv')) - 0.3) < 0.1
    assert 'CC BY-SA 4.0' in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [demo]


def test_nested_colour_layers_are_removed():
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg"><g id="line"/>'
        '<g><g id="color"><g id="skin"/></g></g></svg>'
    )
    drawing = line_drawing(svg)
    assert 'id="color"' not in drawing and 'id="line"' in drawing
