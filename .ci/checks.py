"""The checks of the project, each with its name, its result and its time.

    .venv/bin/python .ci/checks.py           # those of `make test`
    .venv/bin/python .ci/checks.py --all     # all of them: `make test-all`
    .venv/bin/python .ci/checks.py docs …    # these

Only `notebooks` and `docs` write to the working tree, and only to ignored paths: the others work on
a copy.
"""

import argparse
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import house as figures

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PKG = 'two_tower_vs'
NBS = ROOT / 'nbs'
# Nbdev sets only the version in __init__.py
HAND_WRITTEN = {'__init__.py', '__main__.py', '_site.py'}
MAX_KB = 150
MAX_MINUTES = 30  # of one check: one that hangs says so, before CI ends it without a word
REST = ['longer', 'attacks', 'browser', 'notebooks']  # minutes each: left to make test-all
LONGER = (
    'make attacks ARGS="-m long" and the slow cells of the notebooks (make notebooks FLAGS=slow)'
)
# Two processes of tests. xdist waits forever for the files of one that died, unless it may start
# no other.
TWO = ['-n', '2', '--dist', 'loadfile', '--max-worker-restart', '0']
CHECKS = {}


def check(f):
    "Register `f`, which yields its problems"
    CHECKS[f.__name__] = f
    return f


def run(*cmd, cwd=ROOT):
    "The output of `cmd`, which may not fail"
    r = subprocess.run(
        [str(c) for c in cmd], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if r.returncode:
        raise RuntimeError(f"{' '.join(map(str, cmd))}: exit status {r.returncode}\n{r.stdout}")
    return r.stdout


def notebooks_in(nbs):
    "Paths of the notebooks that nbdev reads, relative to `nbs`"
    paths = (p.relative_to(nbs) for p in nbs.rglob('*.ipynb'))
    return sorted(p for p in paths if not any(s[0] in '_.' for s in p.parts))


@contextmanager
def workshop():
    "A temporary folder with a copy of the sources in `repo`, and a space in its name"
    with tempfile.TemporaryDirectory(prefix='two tower ') as tmp:
        skip = '.git .venv .bounds _proc _docs build dist *.egg-info __pycache__ demo out'.split()
        shutil.copytree(
            ROOT, Path(tmp) / 'repo', symlinks=True, ignore=shutil.ignore_patterns(*skip)
        )
        yield Path(tmp)


def difference(file, old, new):
    "How a module differs from what the notebooks export, in at most 20 lines"
    have = (old / file).read_text(encoding='utf-8').splitlines()
    want = (new / file).read_text(encoding='utf-8').splitlines()
    lines = list(
        difflib.unified_diff(have, want, 'in the package', 'in the notebooks', lineterm='', n=1)
    )
    remedy = f'{PKG}/{file}: edit the notebook, not the module, and run nbdev_export'
    return '\n'.join([remedy, *lines[:20]])


@check
def export():
    "the package is what the notebooks export"
    with workshop() as tmp:
        new = tmp / 'repo' / PKG
        old = ROOT / PKG
        for module in new.rglob('*.py'):
            if module.name not in HAND_WRITTEN:
                module.unlink()
        run(BIN / 'nbdev_export', cwd=tmp / 'repo')
        files = set()
        for folder in (new, old):
            files.update(module.relative_to(folder) for module in folder.rglob('*.py'))
        for file in sorted(files):
            if not (new / file).exists():
                yield f'{PKG}/{file}: no notebook exports it'
            elif not (old / file).exists():
                yield f'{PKG}/{file}: missing; run nbdev_export'
            elif (new / file).read_bytes() != (old / file).read_bytes():
                yield difference(file, old, new)


@check
def clean():
    "the notebooks hold nothing that nbdev_clean removes"
    with workshop() as tmp:
        run(BIN / 'nbdev_clean', cwd=tmp / 'repo')
        for p in notebooks_in(NBS):
            if (NBS / p).read_bytes() != (tmp / 'repo/nbs' / p).read_bytes():
                yield f'nbs/{p}: run nbdev_clean'


def output_problems(where, output):
    "A stored error, or the path of somebody's machine"
    text = ''.join(output.get('text', ''))
    path = re.search(r'(?<![\w.~])/(root|home|work|tmp|Users)/\S*', text)
    if path:
        yield f'{where}: its output names a path of a machine: {path[0][:60]}'
    if output['output_type'] == 'error':
        yield f"{where}: stored error {output['ename']}: {output['evalue']}"


def lacks_words(source, outputs):
    "Is a picture shown without a line that says what it shows?"
    hidden = re.search(r'(?m)^#\| (hide|hide_output|output: false)$', source)
    pictures = [output for output in outputs if 'image/png' in output.get('data', {})]
    return pictures and not hidden and '#| fig-alt: "' not in source


@check
def order():
    "every cell has an id of its own, prose comes before code, and code names its language"
    for path in notebooks_in(NBS):
        cells = json.loads((NBS / path).read_text(encoding='utf-8'))['cells']
        yield from order_problems(f'nbs/{path}', cells)


def order_problems(where, cells):
    ids = [cell['id'] for cell in cells]
    twice = sorted({one for one in ids if ids.count(one) > 1})
    if twice:
        yield f'{where}: more than one cell has the id {twice[0]}'
    if cells[0]['cell_type'] != 'markdown':
        yield f'{where}: the first cell is no prose'
    prose = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    if re.findall(r'(?m)^```.*$', prose)[::2].count('```'):
        yield f'{where}: a block of code without its language'
    if len(cells) > 2 and [cell['cell_type'] for cell in cells[1:3]] == ['code', 'markdown']:
        if ''.join(cells[1]['source']).startswith(('#| default_exp', '#| hide', '#| export')):
            yield f'{where}: scaffolding stands between the title and the first prose'


@check
def outputs():
    "stored outputs hold no errors, stay small, and say in words what a picture shows"
    for path in notebooks_in(NBS):
        kb = (NBS / path).stat().st_size / 1024
        if kb > MAX_KB:
            yield f'nbs/{path}: {kb:.0f} KB, more than {MAX_KB}'
        cells = json.loads((NBS / path).read_text(encoding='utf-8'))['cells']
        for i, cell in enumerate(cells):
            where = f'nbs/{path}, cell {i}'
            stored = cell.get('outputs', [])
            if lacks_words(''.join(cell['source']), stored):
                yield f'{where}: a picture without a line `#| fig-alt: "…"`'
            for output in stored:
                yield from output_problems(where, output)


@check
def house():
    "the code is as readable as it was; .ci/house.py says how that is measured"
    yield from figures.problems(figures.measure(), 'house', figures.AIMS)


@check
def ruff():
    "ruff finds no more than house.json allows, and every file is formatted"
    yield from figures.problems(figures.ruff_findings(), 'ruff')
    r = subprocess.run(
        [sys.executable, '-m', 'ruff', 'format', '--check', '--no-cache', '.'],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    if r.returncode:
        yield f'{r.stdout}{r.stderr}run ruff format'


@check
def docs():
    "every page renders, every internal link leads somewhere"
    print(run(sys.executable, '.ci/check_docs.py').splitlines()[-1])
    yield from ()


@check
def readme():
    "README.md and its figures are nbs/index.ipynb"
    run(sys.executable, '.ci/readme.py', '--check')
    yield from ()


def venv_with(wheel, python):
    "Make the virtual environment of `python` with this wheel; returns its folder of packages"
    run(sys.executable, '-m', 'venv', python.parent.parent)
    run(python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', wheel)
    purelib = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    site = Path(run(python, '-c', purelib).strip())
    # It sees .venv's packages but not its editable install: a .pth file is not read recursively.
    (site / 'packages.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return site


@check
def package():
    "sdist and wheel build, and the wheel runs away from the checkout"
    with workshop() as tmp:
        repo = tmp / 'repo'
        python = tmp / 'venv/bin/python'
        away = tmp / 'away'
        away.mkdir()
        run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp / 'dist', repo)
        (wheel,) = (tmp / 'dist').glob('*.whl')
        modules = {p.relative_to(repo).as_posix() for p in (repo / PKG).rglob('*.py')}
        for file in sorted(modules - set(zipfile.ZipFile(wheel).namelist())):
            yield f'{file} is not in the wheel'
        site = venv_with(wheel, python)
        where = run(python, '-c', f'import {PKG}; print({PKG}.__file__)', cwd=away).strip()
        if not Path(where).resolve().is_relative_to(site.resolve()):
            yield f'the wheel was not used, but {where}'
        for command in ([python.with_name(PKG)], [python, '-m', PKG]):
            if '--stage' not in run(*command, '--help', cwd=away):
                yield f'{command[-1]} --help does not name --stage'


def tested(*arguments):
    "The problems of a run of pytest; prints its last lines: what was tried, and how it ended"
    # A test that hangs ends its process, with the stacks of all threads, and fails
    limit = ['--timeout', '600', '--timeout-method', 'thread']
    command = [sys.executable, '-m', 'pytest', '-q', '--disable-warnings', *limit, *arguments]
    # No pipe: a process that a test leaves behind would keep it open, and the check waiting
    with tempfile.TemporaryFile('w+') as told:
        r = subprocess.run(command, cwd=ROOT, stdout=told, stderr=subprocess.STDOUT)
        told.seek(0)
        text = told.read()
    lines = text.splitlines()
    counts = [line for line in lines[:-1] if re.match(r'\w+: \d+ cases, ', line)]
    skipped = [line for line in lines if line.startswith('SKIPPED')]
    print(*counts, *skipped, *lines[-1:], sep='\n', flush=True)
    if r.returncode:
        yield text[-6000:]


def tested_by_two(marks):
    "The problems of the tests in tests/ with these marks, run by two processes"
    elsewhere = ['--ignore', 'tests/attacks', '--ignore', 'tests/browser']
    yield from tested(*TWO, *elsewhere, '-m', marks, 'tests')


@check
def tests():
    "what guards but does not teach: the tests in tests/, by two processes"
    yield from tested_by_two('not slow and not long and not rest')


@check
def longer():
    "the tests in tests/ that take longest"
    yield from tested_by_two('rest and not slow')


@check
def attacks():
    "bad data, crashes and misuse end as promised: tests/attacks, by two processes"
    yield from tested(*TWO, 'tests/attacks')


def chromium():
    "Debian's Chromium, installed where that can be; the browser's checks say so where it can't"
    if (
        any(map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome')))
        or not shutil.which('apt-get')
        or os.geteuid()
    ):
        return
    for cmd in (
        ['apt-get', '-qq', 'update'],
        ['apt-get', '-qq', 'install', '-y', '--no-install-recommends', 'chromium'],
    ):
        subprocess.run(
            cmd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'},
        )


@check
def browser():
    "the search page, the map and the report do in a browser what they should: tests/browser"
    chromium()
    yield from tested('-rs', 'tests/browser')


class Counts:
    "How many checks passed, failed and were skipped"

    def __init__(self, passed=0, failed=0, skipped=0):
        self.passed = passed
        self.failed = failed
        self.skipped = skipped

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def __str__(self):
        skipped = f', {self.skipped} skipped' if self.skipped else ''
        return f'{self.passed} passed, {self.failed} failed{skipped}'


def notebooks():
    "every notebook runs under nbdev_test"
    run(sys.executable, '-c', f"from {PKG}.query import demo_searcher; demo_searcher('nbs/demo')")
    cmd = [BIN / 'nbdev_test', '--n_workers', '2', '--do_print', '--timing']
    pipes = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    pipes |= dict(start_new_session=True)  # its workers would go on without it
    lines = []
    with subprocess.Popen(cmd, cwd=ROOT, env={**os.environ, 'PYTHONUNBUFFERED': '1'}, **pipes) as p:
        try:
            for line in p.stdout:
                print(line, end='', flush=True)
                lines.append(line)
        except TimeoutError:
            os.killpg(p.pid, signal.SIGKILL)
            raise
    text = ''.join(lines)
    tested = [p for p in notebooks_in(NBS) if not (NBS / p).with_name('.notest').exists()]
    failed = len(re.findall(r'^\t\S.*\.ipynb$', text.partition('nbdev Tests Failed')[2], re.M))
    # A worker that was killed names no notebook
    if not failed and (p.returncode or 'Success.' not in text):
        raise RuntimeError(f'nbdev_test: exit status {p.returncode}, but no notebook is named')
    return Counts(len(tested) - failed, failed, len(notebooks_in(NBS)) - len(tested))


def too_long(*_):
    raise TimeoutError(f'not done after {MAX_MINUTES} minutes')


def one_check(name):
    "Run a check and print its problems, its result and its time"
    function = CHECKS.get(name, notebooks)
    start = time.time()
    problems = []
    counts = None
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60 * MAX_MINUTES)
    try:
        if function is notebooks:
            counts = notebooks()
        else:
            for problem in function():
                problems.append(problem)
    except Exception as e:
        problems.append(str(e))
    finally:
        signal.alarm(0)
    counts = counts or Counts(passed=int(not problems), failed=int(bool(problems)))
    verdict = 'FAILED' if counts.failed else 'ok'
    about = function.__doc__.split(';')[0]
    line = f'{verdict:6}  {name}: {about} ({time.time() - start:.0f} s)'
    print(*problems, line, sep='\n', flush=True)
    return counts


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*CHECKS, 'notebooks']
    parser.add_argument('names', nargs='*', metavar='CHECK', help=', '.join(known))
    parser.add_argument('--all', action='store_true', help='everything')
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f'no such check: {", ".join(unknown)}; there are {", ".join(known)}')
    quick = [name for name in known if name not in REST]
    names = options.names or (known if options.all else quick)
    os.environ.pop('PYTHONPATH', None)  # the packages of .venv, no others
    # Two processes share the cores. The work is in small pieces, on which several threads would
    # only wait for each other: 03_train took 179 s with one thread and 194 s with two.
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    start = time.time()
    total = Counts()
    for name in names:
        total.add(one_check(name))
    print(f'{total} in {time.time() - start:.0f} s: {", ".join(names)}')
    left = [name for name in known if name not in names]
    if names == quick:
        print(f'left for make test-all: {", ".join(left)}')
    if not options.names:
        print(f'run by hand: {LONGER}')
    return bool(total.failed)


if __name__ == '__main__':
    sys.exit(main())
