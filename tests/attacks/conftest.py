"""Attacks under pytest: each case is recorded, summed up at the end, and stored with --store."""

import json
import re
import tempfile
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import pytest

TABLE = Path(__file__).resolve().parent.parent.parent / 'nbs/attacks/attacks.json'
GROUPS = 'doctor', 'tables', 'images', 'crashes', 'combinations', 'web'


@pytest.fixture(
    params=[
        pytest.param(False, id='short', marks=pytest.mark.short),
        pytest.param(True, id='long', marks=pytest.mark.long),
    ]
)
def long(request):
    """Whether many cases are tried; `-m long` asks for it."""
    return request.param


@pytest.fixture(scope='module')
def work():
    """A folder for the attacks of a module, with a space in its name; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix='attack ') as folder:
        yield Path(folder).resolve()


def without_folder(case, folder):
    """The case with `…` for the folder of the attack."""
    for text in (str(folder), quote(str(folder))):
        case.name = case.name.replace(text, '…')
        case.message = case.message.replace(text, '…')
        case.why = case.why.replace(text, '…')
    return case


@pytest.fixture
def check(record_property, work):
    """A function that records a case, and fails if the case did."""

    def record(case):
        case = without_folder(case, work)
        text = json.dumps(asdict(case), ensure_ascii=False, default=lambda number: number.item())
        record_property('attack', text)
        assert case.passed, f'{case.name}: {case.why}'

    return record


@pytest.fixture
def check_each(check, subtests):
    """The same for cases that follow from each other: all are recorded, each failure is told."""

    def record(cases):
        count = 0
        for case in cases:
            count += 1
            with subtests.test(msg=case.name):
                check(case)
        assert count, 'no case was tried'

    return record


class Records:
    """The cases of all tests, by group, in the order of the tests."""

    def __init__(self):
        self.cases = {}
        self.seconds = {}

    def add(self, report):
        """Take the cases of a finished test; reports of subtests hold no more than it does."""
        group = re.search(r'test_attack_(\w+)\.py', report.nodeid)
        if not group or hasattr(report, 'context'):
            return
        name = group[1]
        self.seconds[name] = self.seconds.get(name, 0) + report.duration
        if report.when == 'call':
            found = [json.loads(text) for key, text in report.user_properties if key == 'attack']
            self.cases.setdefault(name, {}).setdefault(report.nodeid, []).extend(found)

    def of(self, group):
        """All cases of a group."""
        return [case for cases in self.cases[group].values() for case in cases]

    def summary(self, group):
        """Cases and attacks of a group in a line."""
        cases = self.of(group)
        tries = sum(case['tries'] for case in cases)
        failed = sum(not case['passed'] for case in cases)
        counts = f'{len(cases)} cases, {tries:,} attacks, {len(cases) - failed} passed'
        return f'{group}: {counts}, {failed} failed ({self.seconds[group]:.0f} s)'

    def store(self):
        """Write the table of the docs; groups that did not run keep what they had."""
        old = json.loads(TABLE.read_text(encoding='utf-8')) if TABLE.exists() else {}
        for group in self.cases:
            old[group] = {'seconds': round(self.seconds[group]), 'cases': self.of(group)}
        ordered = {group: old[group] for group in GROUPS if group in old}
        TABLE.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def pytest_addoption(parser):
    """Add --store."""
    parser.addoption('--store', action='store_true', help='write the table of the attacks page')


class Recorder:
    """Pytest's hooks that gather the cases of all workers."""

    def __init__(self):
        self.records = Records()

    def pytest_runtest_logreport(self, report):
        self.records.add(report)

    def pytest_terminal_summary(self, terminalreporter, config):
        for group in self.records.cases:
            terminalreporter.write_line(self.records.summary(group))
        if config.getoption('--store'):
            self.records.store()


def pytest_configure(config):
    """Gather cases where the reports come together."""
    if not hasattr(config, 'workerinput'):
        config.pluginmanager.register(Recorder(), 'attack recorder')
