"""Attack the program as its users' data, disks and mistakes will; write attacks.json with --store.

    python nbs/attacks/attack.py                 # every group, in a few minutes: what `make test` runs
    python nbs/attacks/attack.py images crashes  # these groups
    python nbs/attacks/attack.py --long --store  # the long run whose table the docs show

A group is a module beside this one with `cases(work, long)`, which yields a `Case` each. Nothing is left behind.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent))

GROUPS = 'doctor', 'tables', 'images', 'crashes', 'combinations', 'web'


@dataclass
class Case:
    "One attack and what came of it."

    name: str  # what was done, in a few words
    passed: bool
    status: int = 0  # exit status that a user would see: 0 goes on, 2 refused
    message: str = ''  # what the user reads: the refusal, or the warning
    why: str = ''  # of a failure
    tries: int = 1  # attacks that this line sums up: examples of a fuzz run, kills


def cli(*args):  # (exit status, what was printed, what was said on stderr)
    "The command line in this process: quick, since torch is loaded once. An exception counts as status 1."
    from two_tower_vs.cli import main

    out = io.StringIO()
    err = io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            status = main([str(a) for a in args])
        except SystemExit as e:
            status = e.code or 0
        except BaseException:
            traceback.print_exc(file=err)
            status = 1
    return status, out.getvalue(), err.getvalue()


def shell(*args, **kw):  # the same of a process of its own
    r = subprocess.run(
        [sys.executable, '-m', 'two_tower_vs', *map(str, args)],
        text=True,
        capture_output=True,
        **kw,
    )
    return r.returncode, r.stdout, r.stderr


def one_line(err) -> str:
    "What a user reads of stderr: the refusal without the program's name, else the first warning"
    lines = [l for l in err.splitlines() if l.strip()]
    said = [l.removeprefix('two_tower_vs: ') for l in lines if l.startswith('two_tower_vs: ')]
    return (said or [l for l in lines if l.startswith('warning: ')] or lines[-1:] or [''])[0]


def judged(name, status, err, want=2, says='', tries=1, also=True, why='') -> Case:
    "A case that should end with `want` (a status, or several), say `says` in one line, and hold `also`."
    wants = want if isinstance(want, tuple) else (want,)
    problems = []
    if 'Traceback' in err:
        problems.append('a traceback')
    if status not in wants:
        problems.append(f'status {status}, not {" or ".join(map(str, wants))}')
    if status == 2 and sum(l.startswith('two_tower_vs: ') for l in err.splitlines()) != 1:
        problems.append('not one line')
    if says and says not in err:
        problems.append(f'does not say {says!r}')
    if not also:
        problems.append(why or 'something else is wrong')
    return Case(
        name,
        not problems,
        status,
        one_line(err),
        '; '.join(problems) + (f'\n{err[-2000:]}' if problems else ''),
        tries,
    )


CONFIG = """data: {images_root: images, pairs: pairs.csv, candidates: candidates.csv, query_gt: query_gt.csv}
model: {backbone: efficientnet_lite0, image_size: 64, embed_dim: 32}
train: {epochs: 3, batch_size: 32, promote: always}
eval: {k: [1, 5]}
out: out
"""


def project(work, run=True) -> Path:
    "A folder with 60 pairs of emojis, small pictures and a small model; `run`: after `--stage all`. Made once, then copied."
    work = Path(work)
    base = work / ('ran' if run else 'fresh')
    if not base.exists():
        if run:
            shutil.copytree(project(work, False), base)
            status, _, err = cli('--config', base / 'config.yaml', '--stage', 'all')
            assert status == 0, err
        else:
            from two_tower_vs.data import demo_catalog

            with contextlib.redirect_stdout(io.StringIO()):
                demo_catalog(base, side=64, limit=60)
            (base / 'config.yaml').write_text(CONFIG)
    new = Path(tempfile.mkdtemp(dir=work)) / 'project'
    shutil.copytree(base, new, symlinks=True)  # keeps times, so that the cache knows the pictures
    return new


def run_group(name, work, long):  # yields cases
    "A group's cases; one that breaks ends as a failed case"
    try:
        yield from importlib.import_module(name).cases(work, long)
    except Exception:
        yield Case(f'the group {name} itself', False, 1, why=traceback.format_exc())


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('groups', nargs='*', metavar='GROUP', help=', '.join(GROUPS))
    p.add_argument('--long', action='store_true', help='the long run')
    p.add_argument('--store', action='store_true', help='write attacks.json')
    a = p.parse_args()
    unknown = set(a.groups) - set(GROUPS)
    if unknown:
        p.error(f'no such group: {", ".join(sorted(unknown))}')
    result = {}
    failed = 0
    for g in a.groups or GROUPS:
        t = time.time()
        found = []
        with tempfile.TemporaryDirectory(prefix='attack ') as work:
            for c in run_group(g, Path(work).resolve(), a.long):
                for there in (str(Path(work).resolve()), quote(str(Path(work).resolve()))):
                    c.name, c.message, c.why = (
                        s.replace(there, '…') for s in (c.name, c.message, c.why)
                    )
                found.append(c)
                if not c.passed:
                    print(f'FAILED  {g}: {c.name}: {c.why}', flush=True)
        bad = sum(not c.passed for c in found)
        failed += bad
        result[g] = dict(seconds=round(time.time() - t), cases=[asdict(c) for c in found])
        print(
            f'{"FAILED" if bad else "ok":6}  {g}: {len(found)} cases, {sum(c.tries for c in found):,} attacks, '
            f'{len(found) - bad} passed, {bad} failed ({time.time() - t:.0f} s)',
            flush=True,
        )
    if a.store:
        f = Path(__file__).with_suffix('.json').with_name('attacks.json')
        old = json.loads(f.read_text()) if f.exists() and a.groups else {}
        f.write_text(
            json.dumps(
                dict(old, **result), indent=1, ensure_ascii=False, default=lambda o: o.item()
            )
            + '\n'
        )
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
