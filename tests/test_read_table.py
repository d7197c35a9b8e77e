"""Tables as programs and people save them: CSV and Parquet, with every mistake named by its row."""

import sys
import warnings
from unittest import mock

import pytest

from two_tower_vs.errors import InputError
from two_tower_vs.tables import read_table

pa = pytest.importorskip('pyarrow')
pq = pytest.importorskip('pyarrow.parquet')

PAIR = ['query_path', 'cand_path']


@pytest.fixture
def parquet(tmp_path):
    "A function: a name and columns -> a Parquet file"

    def written(name, **columns):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), tmp_path / name)
        return tmp_path / name

    return written


# CSV


def test_rows_have_the_numbers_of_a_spreadsheet(write):
    text = '\ufeffquery_path,cand_path,note\na.png,b.png,x\n\n"c, d.png",NA,\n'
    table = read_table(write(text), PAIR)
    assert list(table.index) == [2, 4] and table.cand_path.tolist() == ['b.png', 'NA']
    assert table.query_path.tolist() == ['a.png', 'c, d.png'] and table.index.name == 'row'


@pytest.mark.parametrize(
    'text,message',
    {
        'q,cand_path\n1,2': 'row 1: there is no column query_path',
        'query_path,cand_path\n': 'no rows',
        'query_path,cand_path\n\na,\n': 'row 3: cand_path is empty',
        '': 'has no header',
        'query_path,cand_path\na,"b\n"\na,b,c,d,e\n': (
            'row 3: it has more cells than the header (5, not 2)'
        ),
        'query_path,cand_path,note,cand_path\n': 'row 1: there are two columns cand_path',
        'Query Path,cand_path\na,b': (
            'no column query_path, only Query Path, cand_path. Did you mean Query Path?'
        ),
        'query_path,cand_path\n\n"a,b\nc,d\n': (
            'row 3 is not CSV that can be read: a quote is opened and never'
        ),
        f'query_path,cand_path\na,{"b" * 5000}': 'row 2: cand_path has 5,000 characters',
        f'query_path,cand_path\na,b\n{" " * 2**20}': (
            'row 3 is not CSV that can be read: its line is longer than'
        ),
        'query_path,cand_path\na,b c,d\ne,f g,h\n': (
            'row 2: it has more cells than the header (3, not 2)'
        ),
    }.items(),
    ids=range(11),
)
def test_mistakes(write, text, message):
    with pytest.raises(InputError) as error:
        read_table(write(text), PAIR)
    assert message in str(error.value)


def test_latin_1(tmp_path):
    (tmp_path / 'latin.csv').write_bytes('query_path,cand_path\né,b'.encode('latin1'))
    with pytest.raises(InputError, match='latin.csv row 2 is not UTF-8'):
        read_table(tmp_path / 'latin.csv', PAIR)


def test_no_such_file(tmp_path):
    with pytest.raises(InputError, match='no such file'):
        read_table(tmp_path / 'none.csv', ['cand_path'])


def test_comments_above_the_header(write):
    with pytest.warns(UserWarning, match='2 comment lines above the header are left out'):
        table = read_table(write('# a\n# b\n#query_path,cand_path\na,b\n'), ['#query_path'])
    assert list(table.index) == [4]


def test_a_column_that_may_be_there(write):
    "Its empty cells count; a row with nothing else is a mistake"
    table = read_table(write('a,g\n1,\n,\n2,x\n'), ['a'], ['g', 'h'])
    assert table.columns.tolist() == ['a', 'g'] and table.g.tolist() == ['', 'x']
    assert list(table.index) == [2, 4]
    with pytest.raises(InputError, match='row 2: a is empty'):
        read_table(write('a,g\n,x\n'), ['a'], ['g'])


# Parquet


def test_empty_rows_and_numbers_of_groups(parquet):
    paths = ['a.png', None, 'c, d.png']
    query_path = pa.array(paths).dictionary_encode()
    file = parquet(
        'p.parquet', n=[1, 2, 3], cand_path=paths, query_path=query_path, group=[7, 1, 8]
    )
    with pytest.raises(InputError, match='row 2: query_path is empty'):
        read_table(file, PAIR, ['group'])
    table = read_table(file, PAIR)
    assert list(table.index) == [1, 3] and table.cand_path.tolist() == ['a.png', 'c, d.png']
    file = parquet('p.parquet', cand_path=paths, query_path=query_path, group=[7, None, 8])
    assert read_table(file, PAIR, ['group']).group.tolist() == ['7', '8']


@pytest.mark.parametrize(
    'kind',
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_all_that_a_writer_may_call_text(write, parquet, kind):
    paths = ['a.png', 'ü.png']
    from_csv = read_table(write('cand_path\na.png\nü.png\n'), ['cand_path'])
    try:
        file = parquet('x.parquet', cand_path=pa.array(paths).cast(kind))
    except pa.ArrowNotImplementedError:
        pytest.skip('this version of pyarrow writes no such file')
    table = read_table(file, ['cand_path'])
    assert table.cand_path.tolist() == paths and table.dtypes.tolist() == from_csv.dtypes.tolist()


def test_a_dictionary_of_binary(parquet):
    column = pa.array([b'a.png', None]).dictionary_encode()
    table = read_table(parquet('x.parquet', cand_path=column), ['cand_path'])
    assert table.cand_path.tolist() == ['a.png']


def test_a_folder_of_parts(tmp_path, parquet):
    "In the order of their names, rows counted through"
    for name, paths in {'b': ['b1', 'b2'], 'a': ['a1'], 'x=1/c': ['c1', 'c2']}.items():
        parquet(f'parts/{name}.parquet', cand_path=paths)
    (tmp_path / 'parts/_SUCCESS').touch()
    table = read_table(tmp_path / 'parts', ['cand_path'])
    assert table.cand_path.tolist() == ['a1', 'b1', 'b2', 'c1', 'c2']
    assert list(table.index) == [1, 2, 3, 4, 5]


def test_only_the_columns_needed_are_read(parquet):
    file = parquet('p.parquet', query_path=['a'], cand_path=['b'])
    with mock.patch.object(pq, 'read_table', side_effect=pq.read_table) as read:
        read_table(file, ['query_path'])
    assert read.call_args.kwargs['columns'] == ['query_path']


@pytest.mark.parametrize(
    'columns,message',
    [
        (dict(n=[1], cand_path=['a']), 'there is no column gt, only n, cand_path'),
        (dict(gt=[1]), 'column gt holds int64, not text'),
        (dict(gt=[['a']]), 'not text'),
        (dict(gt=[b'\xff']), 'column gt holds binary that is not text'),
        (dict(gt=['x'], g=[['a']]), 'column g holds list'),
        (dict(gt=['x', ''], g=['a', 'b']), 'x.parquet row 2: gt is empty'),
        (dict(gt=[None]), 'x.parquet has no rows'),
    ],
    ids=range(7),
)
def test_columns_that_hold_no_paths(parquet, columns, message):
    with pytest.raises(InputError, match=message):
        read_table(parquet('x.parquet', **columns), ['gt'], ['g'])


def test_files_that_are_no_parquet(tmp_path, parquet):
    (tmp_path / 'none').mkdir()
    whole = parquet('p.parquet', gt=['a']).read_bytes()
    (tmp_path / 'bad.parquet').write_bytes(whole[:-9])
    for name, message in {
        'no.parquet': 'no such file',
        'bad.parquet': 'bad.parquet is not Parquet that',
        'none': 'without .parquet files',
    }.items():
        with pytest.raises(InputError, match=message):
            read_table(tmp_path / name, ['gt'])


def test_parquet_without_pyarrow(parquet):
    file = parquet('p.parquet', gt=['a'])
    with mock.patch.dict(sys.modules, {'pyarrow.parquet': None}):
        with pytest.raises(InputError, match='pip install pyarrow'):
            read_table(file, ['gt'])


def test_a_plain_table_warns_of_nothing(write):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_table(write('query_path,cand_path\na,b\n'), PAIR)
