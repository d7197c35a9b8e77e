"""Execute notebooks in place, in reading order, as far as the first error.

    python .ci/notebooks.py [nbs/00_data.ipynb …]

Cells that nbdev_test skips (`tst_flags`, `eval: false`) and notebooks
beside a .notest keep their stored outputs; with FLAGS=slow in the environment the slow cells
run too.
"""

import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from execnb.nbio import read_nb, write_nb
from execnb.shell import CaptureShell
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import extract_directives


def skipped(cell):
    if cell.cell_type != 'code' or 'nbdev_export(' in cell.source:
        return True
    directives = extract_directives(cell, remove=False)
    flags = set(get_config().tst_flags.split()) - set(os.environ.get('FLAGS', '').split())
    return directives.get('eval:') == ['false'] or bool(flags & directives.keys())


def execute(path):
    os.chdir(path.parent)
    nb = read_nb(path)
    shell = CaptureShell(path)
    for cell in nb.cells:
        if not skipped(cell):
            cell.outputs = []  # a cell that now shows nothing keeps its old output otherwise
    try:
        shell.run_all(nb, exc_stop=True, preproc=skipped)
    except BaseException:
        sys.exit(shell.prettytb(path))
    write_nb(nb, path)


if __name__ == '__main__':
    paths = [Path(p).resolve() for p in sys.argv[1:]] or sorted(
        p.resolve() for p in nbglob(as_path=True)
    )
    for path in paths:
        if (path.parent / '.notest').exists():
            continue
        start = time.time()
        child = get_context('spawn').Process(target=execute, args=(path,))
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(f'{path.name}: failed; it keeps its old outputs')
        print(f'{path.name}: {time.time() - start:.0f} s', flush=True)
