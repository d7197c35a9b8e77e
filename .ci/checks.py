"""The checks of `make test`.  usage: .venv/bin/python .ci/checks.py [name …]   (without a name: all of them)
Only `notebooks` and `docs` write to the working tree, and only to ignored paths: the others work on a copy."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PKG = 'two_tower_vs'
NBS = ROOT / 'nbs'
# Nbdev sets only the version in __init__.py
HAND_WRITTEN = {'__init__.py', '__main__.py', '_site.py'}
MAX_KB = 150
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
    "A temporary folder with a copy of the sources in `repo`; its name holds a space, as a user's may"
    with tempfile.TemporaryDirectory(prefix='two tower ') as tmp:
        skip = '.git .venv .bounds _proc _docs build dist *.egg-info __pycache__ demo out'.split()
        shutil.copytree(
            ROOT, Path(tmp) / 'repo', symlinks=True, ignore=shutil.ignore_patterns(*skip)
        )
        yield Path(tmp)


@check
def export():
    "the package is what the notebooks export"
    with workshop() as tmp:
        new = tmp / 'repo' / PKG
        old = ROOT / PKG
        for f in new.rglob('*.py'):
            if f.name not in HAND_WRITTEN:
                f.unlink()
        run(BIN / 'nbdev_export', cwd=tmp / 'repo')
        for f in sorted({p.relative_to(d) for d in (new, old) for p in d.rglob('*.py')}):
            if not (new / f).exists():
                yield f'{PKG}/{f}: no notebook exports it'
            elif not (old / f).exists():
                yield f'{PKG}/{f}: missing; run nbdev_export'
            elif (new / f).read_bytes() != (old / f).read_bytes():
                have, want = ((d / f).read_text(encoding='utf-8').splitlines() for d in (old, new))
                diff = list(
                    difflib.unified_diff(
                        have, want, 'in the package', 'in the notebooks', lineterm='', n=1
                    )
                )
                yield '\n'.join(
                    [
                        f'{PKG}/{f}: edit the notebook, not the module, and run nbdev_export',
                        *diff[:20],
                    ]
                )


@check
def clean():
    "the notebooks hold nothing that nbdev_clean removes"
    with workshop() as tmp:
        run(BIN / 'nbdev_clean', cwd=tmp / 'repo')
        for p in notebooks_in(NBS):
            if (NBS / p).read_bytes() != (tmp / 'repo/nbs' / p).read_bytes():
                yield f'nbs/{p}: run nbdev_clean'


@check
def outputs():
    "stored outputs hold no errors, stay small, and say in words what a picture shows"
    for p in notebooks_in(NBS):
        kb = (NBS / p).stat().st_size / 1024
        if kb > MAX_KB:
            yield f'nbs/{p}: {kb:.0f} KB, more than {MAX_KB}'
        for i, cell in enumerate(json.loads((NBS / p).read_text(encoding='utf-8'))['cells']):
            top = ''.join(cell['source'])
            shown = not re.search(r'(?m)^#\| (hide|hide_output|output: false)$', top)
            if (
                shown
                and '#| fig-alt: "' not in top
                and any('image/png' in o.get('data', {}) for o in cell.get('outputs', []))
            ):
                yield f'nbs/{p}, cell {i}: a picture without a line `#| fig-alt: "…"`'
            for o in cell.get('outputs', []):
                path = re.search(
                    r'(?<![\w.~])/(root|home|work|tmp|Users)/\S*', ''.join(o.get('text', ''))
                )
                if path:
                    yield f'nbs/{p}, cell {i}: its output names a path of a machine: {path[0][:60]}'
                if o['output_type'] == 'error':
                    yield f"nbs/{p}, cell {i}: stored error {o['ename']}: {o['evalue']}"


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


@check
def package():
    "sdist and wheel build, and the wheel runs away from the checkout"
    with workshop() as tmp:
        repo = tmp / 'repo'
        venv = tmp / 'venv'
        away = tmp / 'away'
        away.mkdir()
        run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp / 'dist', repo)
        (wheel,) = (tmp / 'dist').glob('*.whl')
        modules = {p.relative_to(repo).as_posix() for p in (repo / PKG).rglob('*.py')}
        for f in sorted(modules - set(zipfile.ZipFile(wheel).namelist())):
            yield f'{f} is not in the wheel'
        # The new venv sees .venv's packages but not its editable install: a .pth file is not read
        # recursively.
        run(sys.executable, '-m', 'venv', venv)
        run(
            venv / 'bin/python', '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', wheel
        )
        site = Path(
            run(
                venv / 'bin/python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'
            ).strip()
        )
        (site / 'packages.pth').write_text(sysconfig.get_path('purelib') + '\n')
        where = run(
            venv / 'bin/python', '-c', f'import {PKG}; print({PKG}.__file__)', cwd=away
        ).strip()
        if not Path(where).resolve().is_relative_to(site.resolve()):
            yield f'the wheel was not used, but {where}'
        for cmd in ([venv / 'bin' / PKG], [venv / 'bin/python', '-m', PKG]):
            if '--stage' not in run(*cmd, '--help', cwd=away):
                yield f'{cmd[-1]} --help does not name --stage'


@check
def tests():
    "what guards but does not teach: the tests in tests/"
    r = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '--disable-warnings', '-m', 'not slow', 'tests'],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(r.stdout.splitlines()[-1], flush=True)
    if r.returncode:
        yield r.stdout[-6000:]


@check
def attacks():
    "bad data, crashes and misuse end as promised"
    r = subprocess.run(
        [sys.executable, 'nbs/attacks/attack.py'],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(*(l for l in r.stdout.splitlines() if l.startswith('ok ')), sep='\n', flush=True)
    if r.returncode:
        yield r.stdout[-6000:]


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


def browsed(script, *args):
    "The lines of a script that drives a browser; its failures"
    chromium()
    r = subprocess.run(
        [sys.executable, f'.ci/{script}', *map(str, args)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    print(
        *(l for l in r.stdout.splitlines() if l.startswith(('ok', 'skipped'))), sep='\n', flush=True
    )
    if r.returncode:
        yield r.stdout[-6000:]


@check
def browser():
    "the search page does in a browser what it should"
    yield from browsed('browser.py')


@check
def report():
    "the report is one page that asks for nothing, for everybody"
    with tempfile.TemporaryDirectory(prefix='report ') as tmp:
        make = f"import sys; sys.path.insert(0, 'nbs/attacks'); from attack import project; print(project({tmp!r}))"
        yield from browsed(
            'report_page.py', Path(run(sys.executable, '-c', make).splitlines()[-1]) / 'out'
        )


def notebooks():
    "every notebook runs under nbdev_test; returns how many passed, failed and were skipped"
    run(sys.executable, '-c', f"from {PKG}.data import demo_catalog; demo_catalog('nbs/demo')")
    # One worker: torch and OpenVINO use all cores, and two of them on two cores take twice as long
    # as one after the other.
    cmd = [BIN / 'nbdev_test', '--n_workers', '1', '--do_print', '--timing']
    pipes = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    lines = []
    with subprocess.Popen(cmd, cwd=ROOT, env={**os.environ, 'PYTHONUNBUFFERED': '1'}, **pipes) as p:
        for line in p.stdout:
            print(line, end='', flush=True)
            lines.append(line)
    text = ''.join(lines)
    tested = [p for p in notebooks_in(NBS) if not (NBS / p).with_name('.notest').exists()]
    failed = len(re.findall(r'^\t\S.*\.ipynb$', text.partition('nbdev Tests Failed')[2], re.M))
    # A worker that was killed names no notebook
    if not failed and (p.returncode or 'Success.' not in text):
        raise RuntimeError(f'nbdev_test: exit status {p.returncode}, but no notebook is named')
    return len(tested) - failed, failed, len(notebooks_in(NBS)) - len(tested)


def main(names):
    os.environ.pop('PYTHONPATH', None)  # the packages of .venv, no others
    passed = failed = skipped = 0
    unknown = set(names) - {*CHECKS, 'notebooks'}
    if unknown:
        sys.exit(f"no such check: {', '.join(unknown)}; there are {', '.join(CHECKS)}, notebooks")
    for name in names or [*CHECKS, 'notebooks']:
        f = CHECKS.get(name, notebooks)
        start = time.time()
        counts = None
        problems = []
        try:
            if f is notebooks:
                counts = f()
            else:
                for problem in f():
                    problems.append(problem)
        except Exception as e:
            problems.append(str(e))
        p, n, s = counts or (not problems, bool(problems), 0)
        passed = passed + p
        failed = failed + n
        skipped = skipped + s
        verdict = f"{'FAILED' if n else 'ok':6}  {name}: {f.__doc__.split(';')[0]} ({time.time() - start:.0f} s)"
        print(*problems, verdict, sep='\n', flush=True)
    print(f'{passed} passed, {failed} failed' + (f', {skipped} skipped' if skipped else ''))
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
