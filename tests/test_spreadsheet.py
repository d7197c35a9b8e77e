"A spreadsheet about the pictures: it finds its candidates, or says in a line why not."

import json
import unicodedata

import numpy as np
import pandas as pd
import pytest

from two_tower_vs.demo import demo_catalog
from two_tower_vs.errors import InputError
from two_tower_vs.init import init
from two_tower_vs.spreadsheet import read_spreadsheet, spreadsheet_columns

PATHS = ['shop/Crème/A-1/front.jpg', 'shop/Crème/a 2/side.v2.jpg', 'shop/b/back.png']


@pytest.mark.parametrize(
    'cells, kind',
    [
        (PATHS, 'path'),
        (['./' + path.replace('/', '\\').upper() for path in PATHS], 'path'),
        (['front.jpg', ' Side.V2.jpg ', 'back.png'], 'file name'),
        (['FRONT', 'side.v2', 'back'], 'file name without its ending'),
        (['a-1', 'A 2', 'B'], 'folder'),
        ([unicodedata.normalize('NFD', 'crème'), 'x', 'y'], 'folder 2 levels up'),
    ],
)
def test_a_row_finds_its_picture(write, cells, kind):
    rows = ''.join(f'"{cell}",{price}\n' for price, cell in enumerate(cells))
    found = read_spreadsheet(write('sku,price\n' + rows), PATHS)
    assert (found.column, found.kind) == ('sku', kind)
    expected = [0, 0, -1] if 'levels' in kind else [0, 1, 2]
    assert found.rows.tolist() == expected


def test_cells_stay_text_in_the_order_of_the_candidates(write):
    file = write('sku,no,note\nback,007,"a, b"\nfront,010,\n')
    with pytest.warns(UserWarning, match='2 of 3 candidates by sku') as told:
        found = spreadsheet_columns(file, PATHS)
    assert 'side.v2.jpg, have no attributes' in str(told[0].message)
    assert found.cand_path.tolist() == PATHS
    assert found.no.tolist() == ['010', '', '007']
    assert found.note.tolist() == ['', '', 'a, b']


def test_one_row_for_many_pictures(write):
    paths = [f'shop/{thing}/{view}.jpg' for thing in 'ab' for view in range(5)]
    found = read_spreadsheet(write('sku,price\nb,1\na,2\n'), paths)
    assert found.rows.tolist() == [1] * 5 + [0] * 5


def test_a_name_that_rows_share_is_no_name(write):
    file = write('brand,sku\nb,front\nb,side.v2\nb,x\nA-1,y\n')
    assert read_spreadsheet(file, PATHS).column == 'sku'


def test_many_candidates_and_few_rows(write):
    paths = [f'{number}.jpg' for number in range(5000)]
    rows = np.random.default_rng(0).permutation(5000)
    file = write('name\n' + '\n'.join(map(str, rows[:4000])) + '\n')
    found = read_spreadsheet(file, paths)
    assert (found.rows >= 0).sum() == 4000
    right = [rows[row] for row in found.rows if row >= 0]
    assert right == [i for i, row in enumerate(found.rows) if row >= 0]
    assert read_spreadsheet(write('name\n4999\n'), paths).rows.tolist() == [-1] * 4999 + [0]


@pytest.mark.parametrize(
    'text, words',
    [
        ('sku,price\nfront,1\nFRONT,2\nback,3\n', 'rows 2 and 3 are both of front. Keep one'),
        ('sku,price\nx,1\n', 'no column names the candidates'),
        ('sku,price\n', 'has no rows'),
        ('sku,sku\nfront,1\n', 'there are two columns sku'),
    ],
)
def test_what_cannot_be_matched_is_refused(write, text, words):
    with pytest.raises(InputError, match=words):
        read_spreadsheet(write(text), PATHS)


@pytest.fixture
def photos(tmp_path):
    "A folder of pictures beside a spreadsheet"
    workshop = demo_catalog(tmp_path / 'my shop', side=32, limit=40)
    names = sorted(file.stem for file in (workshop / 'images/color').iterdir())
    table = pd.DataFrame({'Article': names, 'Price': range(len(names))})
    table['Brand'] = np.where(table.Price % 2, 'Acme', 'Globex')
    table.to_csv(workshop / 'products.csv', index=False, sep=';')
    return workshop


def test_a_spreadsheet_that_names_nothing_leaves_no_project(photos, tmp_path):
    (photos / 'products.csv').write_text('sku,price\nx,1\n')
    with pytest.raises(InputError, match='no column names'):
        init(photos / 'images', tmp_path / 'new/config.yaml', attributes=photos / 'products.csv')
    assert not list(tmp_path.glob('new/*'))


@pytest.fixture
def filtered(photos, cli):
    "A small project made of the folder and the spreadsheet, after `--stage all`"
    config = photos / 'new/config.yaml'
    sources = ['--images', photos / 'images', '--attributes', photos / 'products.csv']
    status, said, err = cli('--config', config, '--stage', 'init', *sources)
    assert status == 0 and 'Price, Brand of' in said, err
    text = config.read_text()
    assert 'attributes: "../products.csv"' in text
    small = 'model: {image_size: 32, embed_dim: 16}\ntrain: {epochs: 1}\nquery: {runs: 1}\n'
    kept = [line for line in text.splitlines() if line.split(':')[0] in ('data', 'out', 'seed')]
    config.write_text('\n'.join(kept) + '\n' + small)
    status, said, err = cli('--config', config, '--stage', 'all')
    assert status == 0 and 'attributes Article (text), Price (number), Brand (text)' in said, err
    return config


def asked(config):
    picture = next((config.parent.parent / 'images/line').iterdir())
    where = "Price < 6 and Brand = 'Acme'"
    return ['--config', config, '--stage', 'query', '--image', picture, '--where', where]


def test_from_a_folder_and_a_spreadsheet_to_a_filtered_search(filtered, cli):
    status, said, err = cli(*asked(filtered))
    assert status == 0, err
    hits = json.loads((filtered.parent / 'out/query.json').read_text())['hits']
    assert sorted(hit['attributes']['Price'] for hit in hits) == [1, 3, 5]
    for hit in hits:
        assert hit['attributes']['Article'] in hit['cand_path']


def test_a_new_price_in_the_spreadsheet(filtered, photos, cli):
    index = ['--config', filtered, '--stage', 'index']
    before = (filtered.parent / 'out/index/vectors.faiss').stat()
    table = pd.read_csv(photos / 'products.csv', sep=';')
    table['Price'] += 100
    table.to_csv(photos / 'products.csv', index=False)
    status, said, err = cli(*asked(filtered))
    assert 'products.csv was changed after the index was made' in err
    status, said, err = cli(*index)
    assert status == 0 and 'attributes changed' in said, err
    assert (filtered.parent / 'out/index/vectors.faiss').stat() == before
    status, said, err = cli(*index)
    assert 'up to date' in said
    status, said, err = cli(*asked(filtered))
    assert 'none of the' in err and 'was changed' not in err
    (photos / 'products.csv').unlink()
    status, said, err = cli(*index)
    assert status == 2 and 'products.csv: no such file' in err


def test_two_places_for_attributes_are_refused(ran, cli):
    table = pd.read_csv(ran / 'candidates.csv')
    table.assign(price=3).to_csv(ran / 'candidates.csv', index=False)
    text = (ran / 'config.yaml').read_text()
    assert text.count('data: {') == 1
    text = text.replace('data: {', 'data: {attributes: products.csv, ')
    (ran / 'config.yaml').write_text(text)
    table.assign(cost=2).rename(columns={'cand_path': 'path'}).to_csv(
        ran / 'products.csv', index=False
    )
    status, said, err = cli('--config', ran / 'config.yaml', '--stage', 'index')
    assert status == 2 and 'has attributes itself (price)' in err


def test_rows_that_name_nothing_do_not_shift_the_others(write):
    file = write('sku,price\n,0\nzz,1\nzz,2\nfront,3\nback,4\n')
    assert spreadsheet_columns(file, PATHS).price.tolist() == ['3', '', '4']
