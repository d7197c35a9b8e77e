"""What attacks share: a small project to attack, the command line in this process, and cases.

A case is one attack and what came of it. The tests of this folder record each case
(conftest.py), and `make attacks ARGS="--store"` makes the table of the docs from these records.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

PROGRAM = 'two_tower_vs: '  # a refusal begins with it


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
    """The command line in this process: quick, since torch is loaded once. An exception counts as
    status 1.
    """
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
    lines = [line for line in err.splitlines() if line.strip()]
    refusals = [line for line in lines if line.startswith(PROGRAM)]
    warned = [line for line in lines if line.startswith('warning: ')]
    first = (refusals or warned or lines[-1:] or [''])[0]
    return first.removeprefix(PROGRAM)


def judged(name, status, err, want=2, says='', tries=1, also=True, why='') -> Case:
    "A case that should end with the status `want` (or one of them), say `says`, and hold `also`"
    wants = want if isinstance(want, tuple) else (want,)
    problems = []
    if 'Traceback' in err:
        problems.append('a traceback')
    if status not in wants:
        problems.append(f'status {status}, not {" or ".join(map(str, wants))}')
    if status == 2 and sum(line.startswith(PROGRAM) for line in err.splitlines()) != 1:
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


CONFIG = """data: {images_root: images, pairs: pairs.csv, candidates: candidates.csv,
  query_gt: query_gt.csv}
model: {backbone: efficientnet_lite0, image_size: 64, embed_dim: 32}
train: {epochs: 3, batch_size: 32, promote: always}
eval: {k: [1, 5]}
out: out
"""


def project(work, run=True) -> Path:
    """60 pairs of emojis, small pictures and a small model; `run`: after `--stage all`. Made once,
    then copied.
    """
    work = Path(work)
    base = work / ('ran' if run else 'fresh')
    if not base.exists():
        if run:
            shutil.copytree(project(work, False), base)
            status, _, err = cli('--config', base / 'config.yaml', '--stage', 'all')
            assert status == 0, err
        else:
            from two_tower_vs.demo import demo_catalog

            with contextlib.redirect_stdout(io.StringIO()):
                demo_catalog(base, side=64, limit=60)
            (base / 'config.yaml').write_text(CONFIG)
    new = Path(tempfile.mkdtemp(dir=work)) / 'project'
    shutil.copytree(base, new, symlinks=True)  # keeps times, so that the cache knows the pictures
    return new
