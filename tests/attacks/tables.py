"""Tables as people really have them: read where the meaning is plain, else refused with file, row,
reason and remedy.
"""

import gzip
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

from attack import Case, cli, judged, project

H = 'query_path,cand_path\n'
R = 'a.png,b.png\n'
AB = [(2, 'a.png', 'b.png')]
PICTURES = (
    'a.png',
    'b.png',
    'c, d.png',
    'e"f.png',
    'g\nh.png',
    'é.png',
    'in/1.png',
    'img.jpg',
    'NA',
    'null',
    'nan',
    '0012',
    '12',
    '#1.png',
    ' s.png',
    'x;y.png',
    'Up/2.PNG',
    'n' * 200 + '/' + 'm' * 200 + '.png',
    '写真.png',
    'é/u\u0308.png',
    '=1.png',
    '%41.png',
)

# name, content, rows read, what the warning says (empty: there is none)
READ = [
    ('UTF-8', H + R, AB, ''),
    ('no line end at the end', (H + R).rstrip(), AB, ''),
    ('UTF-8 with BOM', ('\ufeff' + H + R), AB, ''),
    (
        'UTF-16 little-endian with BOM',
        b'\xff\xfe' + (H + R + '写真.png,é.png').encode('utf-16-le'),
        AB + [(3, '写真.png', 'é.png')],
        'comma-separated UTF-16',
    ),
    (
        'UTF-16 big-endian with BOM',
        b'\xfe\xff' + (H + R + '写真.png,é.png').encode('utf-16-be'),
        AB + [(3, '写真.png', 'é.png')],
        'comma-separated UTF-16',
    ),
    ('UTF-16 little-endian without BOM', (H + R).encode('utf-16-le'), AB, 'comma-separated UTF-16'),
    ('UTF-16 big-endian without BOM', (H + R).encode('utf-16-be'), AB, 'comma-separated UTF-16'),
    (
        "Excel's Unicode text: UTF-16, tabs, CRLF",
        (H + R).replace(',', '\t').replace('\n', '\r\n').encode('utf-16'),
        AB,
        'tab-separated UTF-16',
    ),
    ('CRLF', (H + R).replace('\n', '\r\n'), AB, ''),
    (
        'CR alone',
        (H + R + R.replace('b', 'a')).replace('\n', '\r'),
        AB + [(3, 'a.png', 'a.png')],
        '',
    ),
    (
        'mixed line ends',
        H.replace('\n', '\r\n') + 'a.png,b.png\r' + 'a.png,a.png\n',
        AB + [(3, 'a.png', 'a.png')],
        '',
    ),
    (
        'semicolons',
        (H + R + 'a.png,"c, d.png"').replace(',', ';', 2).replace('a.png,"', 'a.png;"'),
        AB + [(3, 'a.png', 'c, d.png')],
        'semicolon-separated UTF-8',
    ),
    ('tabs', (H + R).replace(',', '\t'), AB, 'tab-separated UTF-8'),
    ('bars', (H + R).replace(',', '|'), AB, 'bar-separated UTF-8'),
    ('semicolons in a table of commas', H + 'x;y.png,b.png', [(2, 'x;y.png', 'b.png')], ''),
    (
        "Excel's first line sep=; (which it does not count)",
        'sep=;\n' + (H + R).replace(',', ';'),
        AB,
        'semicolon-separated',
    ),
    ('sep=, above a comma-separated table', 'sep=,\r\n' + H + R, AB, ''),
    ('a comma in quotes', H + '"c, d.png",b.png', [(2, 'c, d.png', 'b.png')], ''),
    ('quotes doubled', H + '"e""f.png",b.png', [(2, 'e"f.png', 'b.png')], ''),
    ('a quote inside a cell without quotes', H + 'e"f.png,b.png', [(2, 'e"f.png', 'b.png')], ''),
    ('all cells in quotes', '"query_path","cand_path"\n"a.png","b.png"\n', AB, ''),
    (
        'a line break in quotes counts as one row',
        H + '"g\nh.png",b.png\na.png,b.png',
        [(2, 'g\nh.png', 'b.png'), (3, 'a.png', 'b.png')],
        '',
    ),
    ('a line break in the header', 'query_path,cand_path,"a\nnote"\na.png,b.png,x\n', AB, ''),
    ('extra columns', 'id,query_path,note,cand_path\n7,a.png,"x, y",b.png\n', AB, ''),
    ('columns in another order', 'cand_path,query_path\nb.png,a.png\n', AB, ''),
    ('spaces around column names', ' query_path , cand_path\n' + R, AB, ''),
    (
        'blank lines on top, in the middle and at the end',
        '\n\n' + H + R + '\n,\na.png,a.png\n\n\n',
        [(4, 'a.png', 'b.png'), (7, 'a.png', 'a.png')],
        '',
    ),
    (
        'rows of spaces and separators',
        H + R + ' , \n  \na.png,a.png',
        AB + [(5, 'a.png', 'a.png')],
        '',
    ),
    (
        'comment lines on top',
        '# exported 2024\n# by hand, twice\n' + H + R,
        [(4, 'a.png', 'b.png')],
        '2 comment lines above the header are left out',
    ),
    ('a path that starts with #', H + '#1.png,b.png', [(2, '#1.png', 'b.png')], ''),
    (
        'spaces around paths',
        H + ' a.png , b.png\n',
        AB,
        'in 1 of 1 rows a path is read as the file that is there',
    ),
    (
        'a path that has a space in front on disk too',
        H + ' s.png,b.png',
        [(2, ' s.png', 'b.png')],
        '',
    ),
    ('a no-break space and a zero-width space', H + 'a.png\xa0,\u200bb.png', AB, 'in 1 of 1 rows'),
    ('a byte-order mark inside, of files joined', H + '\ufeffa.png,b.png', AB, 'in 1 of 1 rows'),
    ('a space before quotes', H + 'a.png, "b.png"\n', AB, 'in 1 of 1 rows'),
    (
        'Windows separators',
        H + 'in\\1.png,b.png\n',
        [(2, 'in/1.png', 'b.png')],
        'slashes for backslashes',
    ),
    ("Excel's formula =\"0012\"", H + '="0012",b.png\n', [(2, '0012', 'b.png')], 'in 1 of 1 rows'),
    (
        'letters in two signs, on disk in one (NFD, NFC)',
        H + 'e\u0301.png,b.png',
        [(2, 'é.png', 'b.png')],
        'letters composed as there',
    ),
    (
        'NA, null, nan are names',
        H + 'NA,null\nnan,b.png',
        [(2, 'NA', 'null'), (3, 'nan', 'b.png')],
        '',
    ),
    ('leading zeros and numbers', H + '0012,12', [(2, '0012', '12')], ''),
    ('dots and doubled slashes', H + './a.png,in//1.png', [(2, 'a.png', 'in/1.png')], ''),
    ('up and down again inside', H + 'in/../a.png,b.png', AB, ''),
    (
        'a slash at the end, and dots behind Windows separators',
        H + 'a.png/,in\\.\\1.png',
        [(2, 'a.png', 'in/1.png')],
        'slashes for backslashes',
    ),
    (
        'rows that differ in spelling alone',
        H + R + './a.png,b.png\na.png,in/..//b.png',
        AB,
        '2 of 3 rows name what an earlier row names, only spelt otherwise',
    ),
    (
        'a million rows in two spellings',
        H + R * 500_000 + './a.png,./b.png\n' * 500_000,
        AB,
        '1 of 1000000 rows name what an earlier row names, only spelt otherwise',
    ),
    (
        'a folder and a file in two forms of letters, as no system writes both',
        H + 'e\u0301/u\u0308.png,b.png',
        [(2, 'é/u\u0308.png', 'b.png')],
        'letters composed as there',
    ),
    (
        'a path of 405 characters',
        H + 'n' * 200 + '/' + 'm' * 200 + '.png,b.png',
        [(2, 'n' * 200 + '/' + 'm' * 200 + '.png', 'b.png')],
        '',
    ),
    ('a percent sign in a name on disk', H + '%41.png,b.png', [(2, '%41.png', 'b.png')], ''),
    (
        'a separator too many on each row',
        H + 'a.png,b.png,\na.png,a.png,,,\n',
        AB + [(3, 'a.png', 'a.png')],
        '',
    ),
    (
        'a separator too many on some row',
        H + R + 'a.png,a.png, \n',
        AB + [(3, 'a.png', 'a.png')],
        '',
    ),
    ('a row that ends before an extra column', 'query_path,cand_path,note\n' + R, AB, ''),
    (
        'a header of 100,000 columns',
        ','.join(['query_path', 'cand_path', *map(str, range(100_000))]) + '\n' + R,
        AB,
        '',
    ),
    (
        'rows that are there twice',
        H + R * 3,
        AB,
        '2 of 3 rows are there twice and are used once (first: row 3)',
    ),
    ('a million identical rows', H + R * 1_000_000, AB, '999999 of 1000000 rows are there twice'),
]

# name, content, what the refusal says
REFUSED = [
    (
        'Latin-1',
        H + R + 'ü.png,b.png',
        'pairs.csv row 3 is not UTF-8. Save it as comma-separated UTF-8',
        'latin1',
    ),
    (
        'cp1252 after a line break in quotes',
        H + '"g\nh.png",b.png\n“a”.png,b.png',
        'row 3 is not UTF-8',
        'cp1252',
    ),
    (
        'Latin-1 far down',
        H + 'a.png,b.png\n' * 20_000 + 'ü.png,b.png',
        'row 20002 is not UTF-8',
        'latin1',
    ),
    (
        'UTF-16 cut inside a letter',
        b'\xff\xfe' + (H + R).encode('utf-16-le')[:-1],
        'is not UTF-8. Save',
    ),
    ('UTF-32', (H + R).encode('utf-32'), 'this is UTF-32'),
    (
        'an unclosed quote',
        H + R + '"a.png,b.png\na.png,b.png\n',
        'row 3 is not CSV that can be read: a quote is opened and never closed',
    ),
    (
        'an unclosed quote that eats the table',
        H + R + '"a.png,b.png\n' + R * 20_000,
        'row 3 is not CSV that can be read: a cell is longer',
    ),
    (
        'text after a closing quote',
        H + '"a".png,b.png',
        'row 2 is not CSV that can be read: text follows',
    ),
    (
        'an empty file',
        '',
        'pairs.csv has no header. Its first row must name the columns query_path,cand_path',
    ),
    ('blank lines alone', '\n \n,,\n', 'has no header'),
    ('a header alone', H, 'pairs.csv has no rows. Add at least one'),
    ('one column', 'query_path\na.png\n', 'row 1: there is no column cand_path, only query_path'),
    (
        'a header in another case',
        ' Query_Path ,CAND_PATH\n' + R,
        'row 1: there is no column query_path, only Query_Path, CAND_PATH. Did you mean '
        'Query_Path?',
    ),
    ('a header with spaces or hyphens', 'query path,cand-path\n' + R, 'Did you mean query path?'),
    (
        'columns that are there twice',
        'query_path,cand_path,cand_path\na.png,b.png,a.png\n',
        'row 1: there are two columns cand_path. Rename or remove one',
    ),
    ('no header', R * 2, 'row 1: there is no column query_path, only a.png, b.png'),
    (
        'a row with a cell missing',
        H + R + 'a.png\n',
        'row 3: cand_path is empty. Fill it in or remove the row',
    ),
    ('a row with an empty cell', H + R + ',b.png\n', 'row 3: query_path is empty'),
    (
        'a row with a cell too many',
        H + R + 'a.png,b.png,c.png\n',
        'row 3: it has more cells than the header (3, not 2). Put a path that holds the '
        'separator in quotes',
    ),
    ('a comma without quotes', H + 'c, d.png,b.png\n', 'row 2: it has more cells than the header'),
    (
        'a cell too many after a line break in quotes',
        H + '"g\nh.png",b.png\n\na.png,b.png,x\n',
        'row 4: it has more cells',
    ),
    ('a comment line in the middle', H + R + '# hats\n' + R, 'row 3: cand_path is empty'),
    (
        'the header again, of files joined',
        H + R + H,
        'row 3: query_path is not a readable image (no such file',
    ),
    (
        'a drive letter',
        H + 'C:\\photos\\a.png,b.png',
        'row 2: query_path C:\\photos\\a.png is absolute or leaves images_root. Make it relative',
    ),
    ('a network share', H + '\\\\server\\share\\a.png,b.png', 'is absolute or leaves images_root'),
    ('an absolute path', H + R + '/etc/passwd,b.png', 'row 3: query_path /etc/passwd is absolute'),
    (
        'a path that climbs out',
        H + 'a.png,in/../../b.png',
        'row 2: cand_path in/../../b.png is absolute or leaves',
    ),
    ('a path that climbs out, Windows separators', H + 'a.png,..\\b.png', 'is absolute or leaves'),
    ('an absolute path behind a space', H + ' /etc/passwd,b.png', 'row 2: query_path'),
    (
        'a carriage return in a path',
        H + R + '"a\rb.png",b.png',
        'row 3: query_path a\\rb.png holds a carriage return, which CSV files lose. Rename',
    ),
    (
        'http://',
        H + 'http://example.org/a.png,b.png',
        'row 2: query_path http://example.org/a.png is a URL. Pictures are read from disk: '
        'download it',
    ),
    ('file://', H + 'file:///srv/a.png,b.png', 'is a URL'),
    ('s3://', H + 's3://bucket/a.png,b.png', 'is a URL'),
    (
        '~',
        H + '~/a.png,b.png',
        'row 2: ~/a.png is not a readable image (no such file in …/images; ~ is not the '
        'home folder here)',
    ),
    ('a zero byte in a path', H + 'a\0.png,b.png', 'pairs.csv row 2'),
    (
        "a terminal's control sequence in a path",
        H + '\x1b[2J\x1b[31ma.png,b.png',
        'row 2: \\x1b[2J\\x1b[31ma.png is not a readable image (no such file',
    ),
    (
        'a line break in a path that is not there',
        H + '"a\nb.png",b.png',
        'row 2: a\\nb.png is not a readable image',
    ),
    ('zero bytes alone', b'\0' * 5000, 'pairs.csv row 1'),
    (
        'another case than the file',
        H + 'IMG.JPG,b.png',
        'no such file in …/images; did you mean img.jpg?). Fix or remove the row',
    ),
    ('another case than the folder', H + 'a.png,up/2.png', 'did you mean Up/2.PNG?'),
    ('percent signs for letters', H + 'in%2F1.png,b.png', 'did you mean in/1.png?'),
    ('percent signs for letters beyond ASCII', H + '%C3%A9.png,b.png', 'did you mean é.png?'),
    ('a folder for a picture', H + 'in,b.png', 'row 2: in is not a readable image (a folder)'),
    (
        'a path of 5,000 characters',
        H + R + 'a' * 5000 + ',b.png',
        'row 3: query_path has 5,000 characters, and a path at most 4,096',
    ),
    (
        'a path of 100,000 characters',
        H + 'a.png,' + 'b/' * 50_000,
        'row 2: cand_path has 100,000 characters',
    ),
    (
        'a path that the file system finds too long',
        H + 'a' * 300 + ',b.png',
        'is not a readable image (File name too long)',
    ),
    (
        'two rows that name files not there',
        H + 'x.png,b.png\na.png,y.png',
        'row 2: x.png is not a readable image (no such file in …/images), nor are those of '
        '1 more rows',
    ),
    ('gzip', gzip.compress((H + R).encode()), 'pairs.csv row 1: this is gzip, not CSV. Unpack it'),
    (
        'an old Excel workbook',
        b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1' + bytes(500),
        'this is an Excel workbook',
    ),
    ('Parquet named .csv', b'PAR1' + bytes(50), 'this is Parquet, not CSV. Name it .parquet'),
    (
        'a Git LFS pointer',
        'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n',
        'this is a Git LFS pointer, not CSV. Fetch the file: git lfs pull',
    ),
    ('JSON lines', '{"query_path": "a.png", "cand_path": "b.png"}\n', 'this is JSON'),
    ('a web page that asks to log in', '<!DOCTYPE html><html>log in</html>', 'this is HTML or XML'),
    (
        'a picture named .csv',
        b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR' + bytes(range(256)),
        'row 1 is not UTF-8',
    ),
    (
        'a header of a million columns',
        ','.join(['query_path', 'cand_path', *map(str, range(1_000_000))]) + '\n' + R,
        'row 1 is not CSV that can be read: its line is longer than 1,048,576',
    ),
    (
        'a row of a million cells',
        H + R + ',' * 2_000_000,
        'row 3 is not CSV that can be read: its line is longer',
    ),
    (
        'a row of 500,000 cells',
        H + R + 'a,' * 500_000,
        'row 3: it has more cells than the header (500001, not 2)',
    ),
]

GT = 'query_path,gt_cand_path,group\n'
GROUND_TRUTH = [  # candidates are a.png and b.png
    (
        'pairs given as query_gt',
        H + R,
        'gt.csv row 1: there is no column gt_cand_path, only query_path, cand_path. Did '
        'you mean cand_path?',
    ),
    (
        'a right answer that is no candidate',
        GT + 'a.png,b.png,x\na.png,img.jpg,x',
        'gt.csv row 3: img.jpg is not among the candidates (1 of 2 rows are so)',
    ),
    (
        'a right answer in another case',
        GT + 'a.png,B.png,x',
        'is not among the candidates (1 of 1 rows are so). Did you mean b.png? Add it',
    ),
    (
        'a query in two groups',
        GT + 'a.png,b.png,hats\na.png,a.png,shoes',
        'row 3: a.png is in group shoes, in row 2 in group hats',
    ),
    ('a row with a group alone', GT + 'a.png,b.png,hats\n,,shoes', 'row 3: query_path is empty'),
]


def reads(path, read, *args):  # (status, rows, what a user reads)
    "A table read as the command line would"
    from two_tower_vs.errors import InputError

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        try:
            df = read(path, *args)
            err = ''
        except InputError as e:
            df = None
            err = f'two_tower_vs: {e}\n'
    rows = df if df is None else list(df.itertuples(name=None))
    return 2 * (df is None), rows, ''.join(f'warning: {w.message}\n' for w in said) + err


def written(folder, name, data, code='utf-8'):
    p = folder / name
    p.write_bytes(data if isinstance(data, bytes) else data.encode(code))
    return p


def pictures_folder(work):
    "Empty files of all the names that the tables below use"
    root = work / 'images'
    for name in PICTURES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table_read(work, name, data, want, warn):
    "A table that is read, perhaps with a warning"
    from two_tower_vs.data import read_pairs

    root = pictures_folder(work)
    status, rows, err = reads(written(work, 'pairs.csv', data), read_pairs, root)
    why = f'read {str(rows)[:300]}, said {err!r}'
    right = rows == want and bool(warn) == bool(err)
    return judged(f'read: {name}', status, err, 0, warn, also=right, why=why)


def table_refused(work, name, data, says, code='utf-8'):
    "A table that is refused by a line that names the file"
    from two_tower_vs.data import read_pairs

    root = pictures_folder(work)
    path = written(work, 'pairs.csv', data, code)
    status, _, err = reads(path, read_pairs, root)
    says = says.replace('…', str(work))
    return judged(
        f'refused: {name}', status, err, 2, says, also=str(path) in err, why='no file named'
    )


def truth_refused(work, name, data, says):
    "Ground truth that is refused"
    import pandas as pd

    from two_tower_vs.data import read_gt

    root = pictures_folder(work)
    candidates = pd.DataFrame({'cand_path': ['a.png', 'b.png']})
    status, _, err = reads(written(work, 'gt.csv', data), read_gt, root, candidates)
    return judged(f'refused: query_gt, {name}', status, err, 2, says)


def things(work):
    "What isn't text at all"
    import pyarrow as pa
    import pyarrow.parquet as pq

    from two_tower_vs.data import read_pairs

    pictures_folder(work)
    d = work / 'things'
    d.mkdir()
    cols = dict(query_path=['a.png'], cand_path=['b.png'])

    def parquet(name, **c):
        pq.write_table(pa.table({**cols, **c}), d / name)
        return d / name

    whole = parquet('whole.parquet')
    data = whole.read_bytes()
    (d / 'parts').mkdir()
    parquet('parts/1.parquet')
    pq.write_table(pa.table({'query_path': ['a.png']}), d / 'parts/2.parquet')
    with zipfile.ZipFile(d / 'book.csv', 'w') as z:
        z.writestr('xl/workbook.xml', '<x/>')
    os.symlink('nowhere', d / 'link.csv')
    (d / 'empty').mkdir()
    cases = [
        (
            'an Excel workbook named .csv',
            d / 'book.csv',
            'this is an Excel workbook or another zip',
        ),
        ('no file', d / 'no.csv', 'no such file. It should be a CSV with'),
        ('a link to nowhere', d / 'link.csv', 'no such file'),
        ('a folder', d / 'empty', 'is a folder without .parquet files'),
        (
            'Parquet cut short',
            written(d, 'cut.parquet', data[:-9]),
            'is not Parquet that can be read',
        ),
        (
            'Parquet with a broken page',
            written(d, 'page.parquet', data[:8] + bytes(20) + data[28:]),
            'is not Parquet that can be read',
        ),
        (
            'an empty file named .parquet',
            written(d, 'none.parquet', b''),
            'is not Parquet that can be read',
        ),
        (
            'CSV named .parquet',
            written(d, 'text.parquet', H + R),
            'is not Parquet that can be read',
        ),
        (
            'Parquet with numbers for paths',
            parquet('i.parquet', cand_path=[1]),
            'column cand_path holds int64, not text',
        ),
        ('Parquet with lists for paths', parquet('l.parquet', cand_path=[['b.png']]), 'not text'),
        (
            'Parquet with bytes that are no text',
            parquet('b.parquet', cand_path=[b'\xff']),
            'binary that is not text',
        ),
        (
            'Parquet without a path',
            parquet('n.parquet', cand_path=pa.array([None], pa.string())),
            'n.parquet row 1: cand_path is empty',
        ),
        ('Parquet in parts, one without a column', d / 'parts', 'parts row 2: cand_path is empty'),
    ]
    for name, path, says in cases:
        status, _, err = reads(path, read_pairs, work / 'images')
        yield judged(f'refused: {name}', status, err, 2, says)
    status, rows, err = reads(whole, read_pairs, work / 'images')
    yield judged('read: Parquet', status, err, 0, also=rows == [(1, 'a.png', 'b.png')] and not err)


MEASURE = """
import re, sys
from two_tower_vs.tables import InputError, read_table
def peak(): return int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])//1024
before = peak()
try: n = len(read_table(sys.argv[1], sys.argv[2:])); status = 0; print(f'{n:,} rows read, ', end='')
except InputError as e: print(f'two_tower_vs: {e}', file=sys.stderr); status = 2
print(f'{peak()-before} MB more memory at most')
sys.exit(status)
"""


def big(work, long):
    "Files too large to be read at once: peak memory in a process of its own"
    if not Path('/proc/self/status').exists():
        yield Case('memory is measured on Linux only', True)
        return
    mb = 2**20
    p = work / 'big.csv'

    def sparse(size):
        with open(p, 'wb') as f:
            f.truncate(size)

    def filled(unit, size, head=H):
        with open(p, 'w') as f:
            f.write(head)
            for _ in range(size // (len(unit) * 1000) + 1):
                f.write(unit * 1000)

    def fifo():
        p.unlink(missing_ok=True)
        os.mkfifo(p)

    s = 1024 * mb if long else 64 * mb
    gb = f'{s // mb:,} MB'
    n = 10_000_000 if long else 300_000
    cases = [
        (f'{gb} of zeros in one line', lambda: sparse(s), 2, 'its line is longer', 40),
        (f'{gb} of spaces in one line', lambda: filled(' ', s, ''), 2, 'its line is longer', 40),
        (
            f'a quote opened, then {gb} of rows',
            lambda: filled(R, s, H + '"'),
            2,
            'row 2 is not CSV that can be read: a cell is longer',
            40,
        ),
        (f'{gb} of separators in one line', lambda: filled(',', s), 2, 'row 2 is not CSV', 60),
        (
            f'{2 * s // mb:,} MB, mostly of a column not needed',
            lambda: filled('a.png,b.png,' + 'x' * 60_000 + '\n', 2 * s, H[:-1] + ',note\n'),
            0,
            '',
            60,
        ),
        (f'{s // 16 // mb:,} MB of blank lines', lambda: filled('\n', s // 16, H + R), 0, '', 40),
        (
            f'{n:,} rows',
            lambda: filled('queries/shop/12345678.jpg,catalogue/shop/12345678.jpg\n', 54 * n),
            0,
            '',
            54 * n * 3 // mb + 60,
        ),
        ('a named pipe', fifo, 2, 'is neither file nor folder', 40),
    ]
    for name, make, want, says, most in cases:
        make()
        try:
            r = subprocess.run(
                [sys.executable, '-c', MEASURE, str(p), 'query_path', 'cand_path'],
                text=True,
                capture_output=True,
                timeout=570 if long else 60,
            )
        except subprocess.TimeoutExpired:
            yield Case(f'memory: {name}', False, 1, why='it hangs')
            continue
        used = int(r.stdout.split(' MB more')[0].split()[-1]) if 'MB more' in r.stdout else 10**9
        c = judged(
            f'memory: {name}',
            r.returncode,
            r.stderr,
            want,
            says,
            also=used <= most,
            why=f'{used} MB, over {most}',
        )
        c.message = f'{r.stdout.strip()}. {c.message}'.strip()
        yield c
        p.unlink()


def through_cli(work, long):
    "The same through the command line: bad tables end it before anything is trained"

    def pairs(change):
        return 'pairs.csv', 'train', change

    def cands(change):
        return 'candidates.csv', 'train', change

    refused = [
        (
            'pairs in Latin-1',
            *pairs(lambda b: b + 'ü.png,b.png\n'.encode('latin1')),
            'row 43 is not UTF-8',
        ),
        (
            'pairs that are an Excel workbook',
            *pairs(lambda b: b'PK\3\4' + b),
            'this is an Excel workbook',
        ),
        (
            'pairs with a cell too many',
            *pairs(lambda b: b + b'a.png,b.png,c.png\n'),
            'row 43: it has more cells than the header',
        ),
        (
            'pairs with a file that is not there',
            *pairs(lambda b: b + b'LINE/1F418.PNG,x\n'),
            'row 43: ',
        ),
        (
            'pairs with a URL',
            *pairs(lambda b: b + b'https://a.b/c.png,x\n'),
            'row 43: query_path https://a.b/c.png is a URL',
        ),
        (
            'pairs with a line break and a control sequence',
            *pairs(lambda b: b + b'"a\nb\x1b[2J",x\n'),
            r'a\nb\x1b[2J',
        ),
        ('pairs without rows', *pairs(lambda b: H.encode()), 'pairs.csv has no rows'),
        (
            'pairs without a closing quote',
            *pairs(lambda b: b + b'"' + b),
            'row 43 is not CSV that can be read',
        ),
        (
            'candidates without their column',
            *cands(lambda b: b.replace(b'cand_path', b'path')),
            'candidates.csv row 1: there is no column cand_path',
        ),
        (
            'candidates with a path of 5,000 characters',
            *cands(lambda b: b + b'a' * 5000),
            'cand_path has 5,000 characters',
        ),
    ]
    for name, file, stage, change, says in refused:
        d = project(work, run=False)
        (d / file).write_bytes(change((d / file).read_bytes()))
        status, _, err = cli('--config', d / 'config.yaml', '--stage', stage)
        yield judged(
            f'--stage {stage}: {name}',
            status,
            err,
            2,
            says,
            also=not (d / 'out/model').exists(),
            why='a model was written',
        )
    if not long:
        return
    d = project(work, run=False)
    p = d / 'pairs.csv'
    p.write_bytes(
        (
            'sep=;\r\n' + p.read_text().replace(',', ';').replace('/', '\\').replace('\n', '\r\n')
        ).encode('utf-16')
    )
    status, out, err = cli('--config', d / 'config.yaml', '--stage', 'train')
    yield judged(
        '--stage train: pairs as Excel saves them: UTF-16, sep=;, CRLF, backslashes',
        status,
        err,
        0,
        'semicolon-separated UTF-16',
        also='41 pairs' in out and 'slashes for backslashes' in err,
        why=out,
    )
    for name, change, says in [
        ('in Latin-1', lambda b: b + 'ü,x\n'.encode('latin1'), 'is not UTF-8'),
        (
            'with an answer that is no candidate',
            lambda b: b + b'line/x.png,color/x.png\n',
            'is not among',
        ),
        ('that is pairs.csv', lambda b: b.replace(b'gt_', b''), 'there is no column gt_cand_path'),
    ]:
        gt = d / 'query_gt.csv'
        was = gt.read_bytes()
        gt.write_bytes(change(was))
        status, _, err = cli('--config', d / 'config.yaml', '--stage', 'eval')
        gt.write_bytes(was)
        yield judged(
            f'--stage eval: query_gt {name}',
            status,
            err,
            2,
            says,
            also=not (d / 'out/metrics.json').exists(),
        )
