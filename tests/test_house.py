"""The figures of .ci/house.py: a planted fault raises its figure, and the ratchet goes red."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / '.ci'))
import house  # noqa: E402

CLEAN = 'def double(number):\n    return 2 * number\n'
LONG = 'def long():\n' + '    print()\n' * 25
CODE_FAULTS = {
    'semicolons per 1,000 lines': 'first = 1; second = 2\n',
    'tuple assignments per 1,000 lines': 'first, second = 1, 2\n',
    'comprehensions per 1,000 lines': 'list(i for i in [])\n',
    'mean characters a line': f'print({"x" * 80!r})\n',
    'lines over 100 columns': f'# {"x" * 99}\n',
    'one-letter names, %': 'a = 1\n',
    'functions over 25 lines': LONG,
}
PRIVATE_IMPORTS = ['from .model import _x', 'from two_tower_vs.model import _x']
SCRIPT_FAULTS = {
    'semicolons in tests and scripts': 'first = 1; second = 2\n',
    'lines over 100 columns in tests and scripts': f'# {"x" * 99}\n',
    'functions over 25 lines in tests and scripts': LONG,
}
SHORT_CELL = '#| export\n' + CLEAN
CELL_FAULTS = {
    'exported cell lines, median': ['#| export\n' + LONG],
    'exported cell lines, 90th percentile': [SHORT_CELL, '#| export\n' + LONG],
    'exported cells right after another, %': [SHORT_CELL, SHORT_CELL],
    'code lines in hidden cells, %': ['#| hide\nassert True'],
}


@pytest.fixture
def clean_house(tmp_path):
    """A repository of one clean module, one clean test and one clean notebook."""
    for folder in ('two_tower_vs', 'tests', 'nbs'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'two_tower_vs/model.py').write_text(CLEAN)
    (tmp_path / 'tests/test_model.py').write_text(CLEAN)
    write_notebook(tmp_path, [SHORT_CELL])
    return tmp_path


def write_notebook(root, codes):
    """A notebook with these code cells, the first after a cell of prose."""
    cells = [{'cell_type': 'markdown', 'metadata': {}, 'source': '# Model'}]
    empty = {'cell_type': 'code', 'metadata': {}, 'execution_count': None, 'outputs': []}
    cells += [{**empty, 'source': code} for code in codes]
    notebook = {'cells': cells, 'metadata': {}, 'nbformat': 4, 'nbformat_minor': 4}
    (root / 'nbs/01_model.ipynb').write_text(json.dumps(notebook))


def raised(root, before):
    """Names of the figures that the ratchet refuses, with the limits of `before`."""
    found = house.worse(house.measure(root), before.values, {})
    return {message.split(':')[0]: message for message in found}


def test_a_clean_house_passes_its_own_limits(clean_house):
    assert not raised(clean_house, house.measure(clean_house))


@pytest.mark.parametrize('figure', CODE_FAULTS)
def test_a_fault_in_the_package_is_refused_with_its_place(clean_house, figure):
    before = house.measure(clean_house)
    (clean_house / 'two_tower_vs/model.py').write_text(CLEAN + CODE_FAULTS[figure])
    message = raised(clean_house, before)[figure]
    assert figure.startswith('mean') or 'two_tower_vs/model.py:3' in message


@pytest.mark.parametrize('line', PRIVATE_IMPORTS)
def test_private_names_of_other_modules_are_found(clean_house, line):
    before = house.measure(clean_house)
    (clean_house / 'two_tower_vs/loss.py').write_text(line + '\n')
    assert 'loss.py:1 _x' in raised(clean_house, before)['private names from another module']


@pytest.mark.parametrize('figure', SCRIPT_FAULTS)
def test_a_fault_in_a_test_is_refused_with_its_place(clean_house, figure):
    before = house.measure(clean_house)
    (clean_house / 'tests/test_model.py').write_text(CLEAN + SCRIPT_FAULTS[figure])
    assert 'tests/test_model.py:3' in raised(clean_house, before)[figure]


@pytest.mark.parametrize('figure', CELL_FAULTS)
def test_a_fault_in_a_notebook_is_refused_with_its_place(clean_house, figure):
    before = house.measure(clean_house)
    write_notebook(clean_house, CELL_FAULTS[figure])
    assert 'nbs/01_model.ipynb, cell' in raised(clean_house, before)[figure]


def test_a_figure_below_its_aim_may_get_worse(clean_house):
    figures = house.measure(clean_house)
    figures.values['mean characters a line'] = 50
    limits = {**figures.values, 'mean characters a line': 30}
    assert not list(house.worse(figures, limits, house.AIMS))
    figures.values['mean characters a line'] = 53
    assert list(house.worse(figures, limits, house.AIMS))


def test_limits_are_only_lowered():
    figures = house.Figures()
    figures.values = {'better': 3, 'worse': 9, 'new': 2}
    assert house.lowered(figures, {'better': 5, 'worse': 4, 'gone': 7}) == {'better': 3, 'worse': 4}
    assert house.better(figures, {'better': 5, 'worse': 4, 'gone': 7}, {}) == ['better', 'gone']


def test_findings_of_ruff_are_counted_by_rule(clean_house):
    pytest.importorskip('ruff')
    (clean_house / 'ruff.toml').write_text((ROOT / 'ruff.toml').read_text())
    assert house.ruff_findings(clean_house).values == {}
    (clean_house / 'tests/test_model.py').write_text('import os\n')
    found = house.ruff_findings(clean_house)
    assert found.values == {'F401': 1}
    (message,) = house.worse(found, {}, {})
    assert 'tests/test_model.py:1' in message


def test_places_in_changed_files_come_first():
    places = [f'a.py:{i}' for i in range(20)] + ['b.py:1 new']
    lines = house.shown(places, {'b.py'}).split('\n')
    assert lines[0].strip() == 'b.py:1 new' and lines[-1].strip() == '… and 6 more'
