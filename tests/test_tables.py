"""One spelling for a path in tables that spell it in several ways; links, ~ and variables."""

import json
import os
import shutil
import unicodedata
import warnings
from pathlib import Path

import pandas as pd
import pytest
from made_up import make_tar

from two_tower_vs import data, spelling
from two_tower_vs.data import read_candidates, read_gt, read_pairs, read_paths
from two_tower_vs.errors import BadImage, InputError
from two_tower_vs.init import init, list_folder
from two_tower_vs.listing import list_images
from two_tower_vs.paths import expand, inside_root
from two_tower_vs.reading import read_bytes

COMPOSED = 'hats/caf\u00e9.png'
DECOMPOSED = 'hats/cafe\u0301.png'


def made(root, *names, content=b'x'):
    "Files, with their folders"
    for name in names:
        path = Path(root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def table(folder, columns, *rows, name='table.csv'):
    path = Path(folder) / name
    pd.DataFrame(list(rows), columns=columns.split(',')).to_csv(path, index=False)
    return path


def candidates(folder, root, *paths, on_bad='error'):
    "(paths that read_candidates gives, its warnings)"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        found = read_candidates(table(folder, 'cand_path', *[[p] for p in paths]), root, on_bad)
    return found.cand_path.tolist(), [str(w.message) for w in said]


@pytest.fixture
def root(tmp_path):
    made(tmp_path / 'images', 'a.png', 'hats/b.png', 'hats/deep/c.png')
    make_tar(tmp_path / 'images/shards/1.tar', 'd.png', 'x/e.png')
    return tmp_path / 'images'


# spelling


@pytest.mark.parametrize(
    'written,path',
    {
        './a.png': 'a.png',
        '././a.png': 'a.png',
        'hats//b.png': 'hats/b.png',
        'hats/./b.png': 'hats/b.png',
        'hats/../a.png': 'a.png',
        'hats/deep/../../a.png': 'a.png',
        'none/../a.png': 'a.png',
        'hats/b.png/': 'hats/b.png',
        'hats/deep/.././b.png': 'hats/b.png',
        'hats\\b.png': 'hats/b.png',
        '.\\hats\\deep\\..\\b.png': 'hats/b.png',
        ' ./hats//b.png ': 'hats/b.png',
        '="./a.png"': 'a.png',
        'shards/1.tar/./d.png': 'shards/1.tar/d.png',
        'shards/1.tar//x/../d.png': 'shards/1.tar/d.png',
        './shards/./1.tar/x/e.png': 'shards/1.tar/x/e.png',
    }.items(),
)
def test_a_path_has_one_spelling(tmp_path, root, written, path):
    assert candidates(tmp_path, root, written)[0] == [path]
    assert read_pairs(
        table(tmp_path, 'query_path,cand_path', [written, path]), root
    ).values.tolist() == [[path, path]]


@pytest.mark.parametrize('storage', ['python', 'pyarrow'])
def test_either_kind_of_column(tmp_path, root, storage):
    with pd.option_context('mode.string_storage', storage):
        found, said = candidates(
            tmp_path, root, './a.png', 'hats/b.png', 'a.png', 'hats/b.png', 'hats//b.png'
        )
    assert found == ['a.png', 'hats/b.png']
    assert [message.split(': ', 1)[1] for message in said] == [
        '1 of 5 rows are there twice and are used once (first: row 5).',
        '2 of 5 rows name what an earlier row names, only spelt otherwise (as ./x and x), '
        'and are used once (first: row 4).',
    ]


def test_parquet_is_spelt_the_same(tmp_path, root):
    path = tmp_path / 'c.parquet'
    pd.DataFrame({'cand_path': ['./a.png', 'hats//b.png']}).to_parquet(path)
    assert read_candidates(path, root, 'error').cand_path.tolist() == ['a.png', 'hats/b.png']


def test_other_tables_match(tmp_path, root):
    "60 right answers were not among the candidates, and a list in both spellings was twice as long"
    names = [f'many/{i}.png' for i in range(120)]
    made(root, *names)
    found, said = candidates(tmp_path, root, *[f'./{name}' for name in names])
    assert found == names and not said
    twice, said = candidates(tmp_path, root, *names, *[f'./{name}' for name in names])
    assert (
        twice == names and len(said) == 1 and '120 of 240 rows name what an earlier row' in said[0]
    )
    rows = [[f'many//{i}.png', names[i + 60], f'g{i % 2}'] for i in range(60)]
    truth = table(tmp_path, 'query_path,gt_cand_path,group', *rows)
    gt = read_gt(
        truth,
        root,
        read_candidates(
            table(tmp_path, 'cand_path', *[[f'./{n}'] for n in names], name='c.csv'), root
        ),
    )
    assert len(gt) == 60 and gt.query_path.tolist() == names[:60]
    rows = [[names[0], names[1], 'hats'], ['./' + names[0], names[2], 'shoes']]
    with pytest.raises(
        InputError, match='row 3: many/0.png is in group shoes, in row 2 in group hats'
    ):
        read_gt(table(tmp_path, 'query_path,gt_cand_path,group', *rows), root, None)


@pytest.mark.parametrize(
    'written',
    [
        '../x.png',
        'hats/../../x.png',
        './../x.png',
        '/etc/passwd',
        '//etc/passwd',
        'shards/1.tar/../../../x.png',
        '..\\x.png',
        './/../x.png',
        '..',
        'C:\\x.png',
        './C:/x.png',
    ],
)
def test_paths_that_climb_stay_refused(tmp_path, root, written):
    made(tmp_path, 'x.png')
    for on_bad in ('error', 'skip'):
        with pytest.raises(
            InputError, match='row 2: cand_path .* is absolute or leaves images_root'
        ):
            candidates(tmp_path, root, written, on_bad=on_bad)


def test_a_url_is_named_as_written(tmp_path, root):
    with pytest.raises(InputError, match='http://a.b//./1.png is a URL'):
        candidates(tmp_path, root, 'http://a.b//./1.png')


def test_up_from_a_link(tmp_path, root):
    "link/../x is not x, unless both are the same file"
    made(tmp_path, 'disk/photos/p.png', 'disk/a.png', 'disk/secret.png')
    (root / 'link').symlink_to(tmp_path / 'disk/photos')
    (root / 'hats again').symlink_to('hats')
    assert candidates(tmp_path, root, 'link/p.png', 'hats again/../a.png')[0] == [
        'link/p.png',
        'a.png',
    ]
    for written in (
        'link/../a.png',
        'link/../secret.png',
        'hats/../link/../secret.png',
        'link\\..\\secret.png',
        'link/../none.png',
    ):
        for on_bad in ('error', 'skip'):
            with pytest.raises(
                InputError, match='row 2: cand_path .*goes up again from .*link, which is a link'
            ):
                candidates(tmp_path, root, written, on_bad=on_bad)


# letters


def test_letters_as_the_file_system_has_them(tmp_path, root):
    made(root, DECOMPOSED)
    assert candidates(tmp_path, root, COMPOSED)[0] == [DECOMPOSED]
    found, said = candidates(tmp_path, root, DECOMPOSED, './' + COMPOSED)
    assert (
        found == [DECOMPOSED]
        and 'letters composed as there' in said[0]
        and 'an earlier row' in said[1]
    )
    made(root, COMPOSED)  # now there are two files
    assert candidates(tmp_path, root, COMPOSED, DECOMPOSED)[0] == [COMPOSED, DECOMPOSED]


def test_folder_in_one_form_and_file_in_another(tmp_path, root):
    path = 'caf\u00e9/u\u0308ber \ud55c.png'
    made(root, path)
    make_tar(root / 'caf\u00e9/1.tar', 'u\u0308/\u00e9.png')
    for form in ('NFC', 'NFD'):
        written = unicodedata.normalize(form, path)
        assert candidates(tmp_path, root, written)[0] == [path]
        written = unicodedata.normalize(form, 'caf\u00e9/1.tar/\u00fc/\u00e9.png')
        assert candidates(tmp_path, root, written)[0] == ['caf\u00e9/1.tar/u\u0308/\u00e9.png']


def test_a_file_system_that_finds_either_form(tmp_path, root, monkeypatch):
    "As on a Mac: both names lead to one file; the listing has one of them"
    made(root, DECOMPOSED, 'e\u0301.png')
    stamp = spelling.file_stamp

    def stamp_of_either_form(path):
        return stamp(unicodedata.normalize('NFD', os.fspath(path)))

    for module in (spelling, data):
        monkeypatch.setattr(module, 'file_stamp', stamp_of_either_form)
    found, _ = candidates(tmp_path, root, COMPOSED, DECOMPOSED, '\u00e9.png', on_bad='skip')
    assert found == [DECOMPOSED, 'e\u0301.png']


# links


def test_links_are_followed_everywhere(tmp_path, root):
    made(tmp_path, 'disk/album/1.png', 'disk/2.png')
    (root / 'album').symlink_to(tmp_path / 'disk/album')
    (root / 'two.png').symlink_to(tmp_path / 'disk/2.png')
    listed = list_images(root).cand_path.tolist()
    assert {'album/1.png', 'two.png'} <= set(listed)
    assert {'album/1.png', 'two.png'} <= set(list_folder(root).paths)
    assert candidates(tmp_path, root, *listed)[0] == listed
    from two_tower_vs.sending import read_inside

    for path in listed:
        assert read_inside(root, path)[0] == read_bytes(inside_root(root, path)) == b'x'


def test_the_server_refuses_what_climbs(tmp_path, root):
    from two_tower_vs.sending import read_inside

    made(tmp_path, 'disk/photos/p.png', 'disk/secret.png', 'x.png')
    (root / 'link').symlink_to(tmp_path / 'disk/photos')
    for path, reason in {
        '../x.png': 'outside',
        str(tmp_path / 'x.png'): 'outside',
        'hats/../../x.png': 'outside',
        'link/../secret.png': 'no picture',
    }.items():
        with pytest.raises(Exception) as e:
            read_inside(root, path)
        assert (e.value.status, e.value.reason) == (404, reason)


def test_circles_of_links_end(tmp_path):
    made(tmp_path, 'photos/a/1.png', 'photos/b/2.png', 'beside/3.png')
    for name, to in {
        'a/round': '..',
        'b/a': '../a',
        'a/b': '../b',
        'up': '../..',
        'self': 'self',
        'self.png': 'self.png',
    }.items():
        (tmp_path / 'photos' / name).symlink_to(to)
    with pytest.warns(UserWarning, match='behind a link to one that is listed anyway'):
        assert list_images(tmp_path / 'photos').cand_path.tolist() == ['a/1.png', 'b/2.png']
    assert list_folder(tmp_path / 'photos').paths == ['a/1.png', 'b/2.png']


def test_one_picture_is_listed_once(tmp_path):
    "A cache of links: the content lies in a folder that is not listed"
    made(tmp_path, 'cache/.blobs/1.png', 'cache/blobs/2', 'cache/a.png')
    for name, to in {
        'one.png': '.blobs/1.png',
        'two.png': 'blobs/2',
        'b.png': 'a.png',
        'two too.png': 'blobs/2',
    }.items():
        (tmp_path / 'cache' / name).symlink_to(to)
    assert list_folder(tmp_path / 'cache').paths == ['a.png', 'one.png', 'two too.png']
    with pytest.warns(UserWarning, match='by a link to one that is listed anyway: b.png'):
        assert list_images(tmp_path / 'cache').cand_path.tolist() == [
            'a.png',
            'one.png',
            'two too.png',
        ]


def test_a_link_to_nowhere_says_so(tmp_path, root):
    (root / 'gone').symlink_to('no disk')
    (root / 'gone.png').symlink_to('nowhere.png')
    for path, name in {
        'gone/1.png': 'gone is a link to no disk',
        'gone.png': 'gone.png is a link to nowhere.png',
    }.items():
        with pytest.raises(InputError, match=f'no such file: {name}, which is not there'):
            candidates(tmp_path, root, path)
        with pytest.raises(BadImage, match='no such file'):
            read_bytes(root / path)
    with pytest.warns(
        UserWarning, match='1 picture is left out, by a link to a file that is not there: gone.png'
    ):
        list_images(root)


# housekeeping

HOUSEKEEPING = [
    '@eaDir/a.png/SYNOPHOTO_THUMB_M.jpg',
    'hats/@eaDir/b.jpg',
    '#recycle/c.png',
    '.thumbnails/d.png',
    '__MACOSX/._e.png',
    'Thumbs.db',
    '.DS_Store',
    '$RECYCLE.BIN/f.png',
    '.Trash-1000/files/g.png',
    'lost+found/h.png',
    '._a.png',
    'hats/THUMBS.DB',
]


def test_housekeeping_is_left_out_and_counted(tmp_path, root):
    made(root, *HOUSEKEEPING)
    make_tar(
        root / 'shards/2.tar',
        '1.png',
        '__MACOSX/._1.png',
        '._2.png',
        '@eaDir/1.png',
        'Thumbs.db',
        '.hidden.png',
    )
    with pytest.warns(
        UserWarning, match='16 files are left out that systems and programs keep for themselves'
    ) as said:
        listed = list_images(root).cand_path.tolist()
    assert len(said) == 1 and '@eaDir 3' in str(said[0].message)
    assert listed == [
        'a.png',
        'hats/b.png',
        'hats/deep/c.png',
        'shards/1.tar/d.png',
        'shards/1.tar/x/e.png',
        'shards/2.tar/1.png',
    ]
    found = list_folder(root)
    assert found.paths == ['a.png', 'hats/b.png', 'hats/deep/c.png']
    assert '12 files are left out that systems and programs keep for themselves' in found.said()[1]
    # Who names it means it
    assert candidates(tmp_path, root, 'lost+found/h.png')[0] == ['lost+found/h.png']


def test_a_folder_of_housekeeping_alone(tmp_path):
    made(tmp_path, '@eaDir/a.png')
    with pytest.raises(
        InputError, match=r'holds no pictures .*1 file is left out that systems .*\(@eaDir 1\)'
    ):
        list_images(tmp_path)


def test_init_has_the_same_rules(tmp_path):
    from PIL import Image

    for i in range(12):
        path = tmp_path / f'disk/thing {i // 3}/{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8), (20 * i, 0, 0)).save(path)
    photos = tmp_path / 'photos'
    photos.mkdir()
    for i in range(4):
        (photos / f'thing {i}').symlink_to(tmp_path / f'disk/thing {i}')
        made(photos, f'@eaDir/thing {i}/x.png')
    made(photos, 'Thumbs.db')
    project = init(photos, tmp_path / 'shop/config.yaml')
    assert (
        '5 files are left out that systems and programs keep for themselves (@eaDir 4, Thumbs.db 1)'
        in str(project)
    )
    found = read_candidates(tmp_path / 'shop/candidates.csv', photos, 'error').cand_path
    assert len(found) and not found.str.contains('@eaDir').any()


@pytest.mark.parametrize(
    'pattern,want',
    {
        '*': ['a.png'],
        '**/*': [
            'a.png',
            'hats/b.png',
            'hats/deep/c.png',
            'shards/1.tar/d.png',
            'shards/1.tar/x/e.png',
        ],
        'hats/*': ['hats/b.png'],
        'hats/**/*': ['hats/b.png', 'hats/deep/c.png'],
        './hats//*.png': ['hats/b.png'],
        '**/[bc].png': ['hats/b.png', 'hats/deep/c.png'],
        'sh*/1*': ['shards/1.tar/d.png', 'shards/1.tar/x/e.png'],
        'hats/**': ['hats/b.png', 'hats/deep/c.png'],
        '*/deep/*': ['hats/deep/c.png'],
    }.items(),
)
def test_patterns(root, pattern, want):
    assert list_images(root, pattern).cand_path.tolist() == want


@pytest.mark.parametrize('pattern', ['../*', '/etc/*', 'x/../../*', 'none/*', ''])
def test_patterns_that_give_nothing(root, pattern):
    with pytest.raises(InputError):
        list_images(root, pattern)


# ~ and variables


def test_home_and_variables(tmp_path, root, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('SHOP', str(tmp_path))
    pairs = table(tmp_path, 'query_path,cand_path', ['a.png', 'hats/b.png'], name='pairs.csv')
    for place in ('~/images', '$SHOP/images', '${SHOP}/images', '~/images/../images'):
        assert len(read_pairs(pairs, place)) == 1
        assert len(read_pairs(str(pairs).replace(str(tmp_path), place.split('/')[0]), root)) == 1
        assert len(list_images(place)) == 5
        assert len(list_folder(place).paths) == 3
        assert len(read_candidates(table(tmp_path, 'cand_path', ['a.png']), place, 'error')) == 1
        assert (
            len(
                read_gt(table(tmp_path, 'query_path,gt_cand_path', ['a.png', 'a.png']), place, None)
            )
            == 1
        )
        assert len(read_paths(pairs, ['query_path'], place)) == 1


def test_a_variable_that_is_not_set(tmp_path, root, monkeypatch):
    monkeypatch.delenv('NO_SUCH', raising=False)
    pairs = table(tmp_path, 'query_path,cand_path', ['a.png', 'hats/b.png'])
    for call in (
        lambda: read_pairs(pairs, '$NO_SUCH/images'),
        lambda: list_images('${NO_SUCH}'),
        lambda: init('$NO_SUCH/x', tmp_path / 'new/config.yaml'),
        lambda: read_pairs('${NO_SUCH}/p.csv', root),
    ):
        with pytest.raises(InputError, match='the variable NO_SUCH is not set') as e:
            call()
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='~no-such-user is no home folder'):
        read_pairs(pairs, '~no-such-user/images')


def test_what_is_there_by_that_very_name_comes_first(tmp_path):
    made(tmp_path, '$NO_SUCH/~x/a.png')
    assert expand('$NO_SUCH', tmp_path) == tmp_path / '$NO_SUCH'
    assert list_images(tmp_path / '$NO_SUCH').cand_path.tolist() == ['~x/a.png']
    assert expand('~x', tmp_path / '$NO_SUCH') == tmp_path / '$NO_SUCH/~x'


def test_pictures_are_found_from_home(fresh, monkeypatch):
    "embed, train and the like take images_root as the readers do"
    from two_tower_vs.embed import embed
    from two_tower_vs.fingerprints import fingerprints
    from two_tower_vs.grids import show_pairs
    from two_tower_vs.model import TwoTower

    monkeypatch.setenv('HOME', str(fresh))
    pairs = read_pairs(fresh / 'pairs.csv', '~/images')[:2]
    tower = TwoTower(backbone='efficientnet_lite0', image_size=64, embed_dim=None).query
    assert not embed(tower, pairs.query_path, '~/images', progress=False).bad
    assert not fingerprints(pairs.query_path, '~/images')[1]
    assert show_pairs(pairs, '~/images').tobytes() == show_pairs(pairs, fresh / 'images').tobytes()


# the command line


def rewritten(project, name, change):
    path = project / name
    df = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in df:
        if column.endswith('_path'):
            df[column] = [change(i, p) for i, p in enumerate(df[column])]
    df.to_csv(path, index=False)


def dotted(i, path):
    folder, name = path.split('/')
    return [f'./{path}', f'{folder}//{name}', f'{folder}/./{name}', f'x/../{path}', path][i % 5]


def results(out):
    metrics = json.loads((out / 'metrics.json').read_text())
    return metrics, (out / 'per_query.csv').read_text(), (out / 'index/candidates.csv').read_text()


@pytest.mark.rest
def test_metrics_are_those_of_plain_tables(ran, fresh, cli, monkeypatch):
    "To the last bit, with images_root, tables and out given by variables"
    monkeypatch.setenv('HOME', str(fresh))
    monkeypatch.setenv('SHOP', str(fresh))
    plain = results(ran / 'out')
    for i, name in enumerate(('pairs.csv', 'candidates.csv', 'query_gt.csv')):
        rewritten(fresh, name, lambda row, path, shift=i: dotted(row + shift, path))
    config = fresh / 'config.yaml'
    text = (
        config.read_text()
        .replace('images_root: images', 'images_root: ~/images')
        .replace('out: out', 'out: ${SHOP}/out')
    )
    config.write_text(text.replace('pairs: pairs.csv', 'pairs: $SHOP/pairs.csv'))
    shutil.copytree(ran / 'out/cache', fresh / 'out/cache')
    status, printed, err = cli('--config', config, '--stage', 'all')
    assert status == 0, err
    assert results(fresh / 'out') == plain
    status, printed, err = cli('--config', config, '--stage', 'export')
    assert status == 0, err
    from two_tower_vs.gallery import evaluated

    queries = evaluated(fresh / 'out', fresh / 'query_gt.csv', fresh / 'images')
    assert queries.answers.map(len).min() == 1


@pytest.mark.rest
def test_doubled_tables_are_used_once(fresh, cli):
    for name in ('pairs.csv', 'candidates.csv'):
        df = pd.read_csv(fresh / name, dtype=str)
        pd.concat([df, './' + df]).to_csv(fresh / name, index=False)
    status, _, err = cli('--config', fresh / 'config.yaml', '--stage', 'check')
    assert status == 0, err
    findings = set(pd.read_csv(fresh / 'out' / 'check.csv').finding)
    assert not findings & {'copy', 'query copied'}
    said = [line for line in err.splitlines() if 'name what an earlier row names' in line]
    assert len(said) == 2 and all('first: row' in line for line in said)


@pytest.mark.parametrize(
    'old,new,key',
    [
        ('images_root: images', 'images_root: $NO_SUCH/images', 'data.images_root'),
        ('pairs: pairs.csv', 'pairs: "${NO_SUCH}/pairs.csv"', 'data.pairs'),
        ('out: out', 'out: $NO_SUCH', 'out'),
    ],
)
def test_the_command_line_names_the_variable(fresh, cli, old, new, key):
    config = fresh / 'config.yaml'
    config.write_text(config.read_text().replace(old, new))
    status, _, err = cli('--config', config, '--stage', 'train')
    assert status == 2
    said = [line for line in err.splitlines() if line.startswith('two_tower_vs: ')]
    assert (
        len(said) == 1
        and f'config.yaml: {key}: ' in said[0]
        and 'the variable NO_SUCH is not set' in said[0]
    )
