"""The checks of .ci/checks.py: each finds what is planted."""

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / '.ci'))
import checks  # noqa: E402

PICTURE = [{'output_type': 'display_data', 'data': {'image/png': ''}}]
STORED = {
    'a path of a machine': {'output_type': 'stream', 'text': ['saved to /root/x/y.csv']},
    'stored error': {'output_type': 'error', 'ename': 'KeyError', 'evalue': 'x'},
}


@pytest.mark.parametrize('words', STORED)
def test_stored_outputs(words):
    (problem,) = checks.output_problems('nbs/x.ipynb, cell 1', STORED[words])
    assert words in problem and problem.startswith('nbs/x.ipynb, cell 1')


def test_order_of_a_notebook():
    kinds = ['markdown', 'code', 'code']
    cells = [dict(cell_type=kind, id=str(i), source='#| hide') for i, kind in enumerate(kinds)]
    assert not list(checks.order_problems('x', cells))
    assert list(checks.order_problems('x', cells[1:])) == ['x: the first cell is no prose']
    cells[2]['cell_type'] = 'markdown'
    (problem,) = checks.order_problems('x', cells)
    assert 'between the title and the first prose' in problem
    cells[1] = {**cells[2], 'cell_type': 'markdown'}
    (problem,) = checks.order_problems('x', cells)
    assert problem == 'x: more than one cell has the id 2'
    cells[1] = dict(cell_type='markdown', id='9', source=['```\n', 'x\n', '```'])
    (problem,) = checks.order_problems('x', cells)
    assert problem == 'x: a block of code without its language'


def test_relative_paths_are_no_problem():
    output = {'output_type': 'stream', 'text': ['saved to demo/out/y.csv']}
    assert not list(checks.output_problems('', output))


def test_pictures_need_words():
    assert checks.lacks_words('draw()', PICTURE)
    assert not checks.lacks_words('#| fig-alt: "two curves"\ndraw()', PICTURE)
    assert not checks.lacks_words('#| hide\ndraw()', PICTURE)


def test_modules_differ(tmp_path):
    for folder, text in (('old', 'a = 1\n'), ('new', 'a = 2\n')):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'x.py').write_text(text)
    told = checks.difference('x.py', tmp_path / 'old', tmp_path / 'new')
    assert '-a = 1' in told and '+a = 2' in told and 'run nbdev_export' in told


def test_every_check_runs_in_one_half():
    assert set(checks.REST) <= {*checks.CHECKS, 'notebooks'}


def test_failed_tests_fail_the_check(tmp_path):
    (tmp_path / 'test_x.py').write_text('def test_x():\n    assert False\n')
    (problem,) = checks.tested(str(tmp_path))
    assert '1 failed' in problem
    (tmp_path / 'test_x.py').write_text('def test_x():\n    pass\n')
    assert not list(checks.tested(str(tmp_path)))


def test_a_process_left_behind_does_not_keep_the_check_waiting(tmp_path):
    (tmp_path / 'test_x.py').write_text(
        'import subprocess, sys\n'
        'def test_x():\n'
        "    waits = [sys.executable, '-c', 'import time; time.sleep(30)']\n"
        '    subprocess.Popen(waits, stdout=2)\n'
    )
    start = time.monotonic()
    assert not list(checks.tested('-s', str(tmp_path)))
    assert time.monotonic() - start < 25
