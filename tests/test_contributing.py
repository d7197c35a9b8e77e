"""The worked examples of CONTRIBUTING.md, applied to a copy of the repository and tried."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
EXAMPLES = re.findall(r'(?ms)^## (Add an? .*?)\n(.*?)(?=^## )', TEXT)
PART = re.compile(r'(?ms)`(nbs/\w+\.ipynb)`|^```(python|diff)\n(.*?)^```')


class Notebook:
    "A notebook that is edited as CONTRIBUTING.md says"

    def __init__(self, path):
        self.path = path
        self.content = json.loads(path.read_text(encoding='utf-8'))
        self.cells = self.content['cells']

    def cell_with(self, text):
        found = [i for i, cell in enumerate(self.cells) if text in ''.join(cell['source'])]
        exported = [i for i in found if ''.join(self.cells[i]['source']).startswith('#| export')]
        assert len(exported) == 1, f'{self.path.name}: {text!r} is in cells {exported}'
        return exported[0]

    def change(self, diff):
        lines = diff.splitlines()
        old = '\n'.join(line[1:] for line in lines if line[0] in ' -')
        new = '\n'.join(line[1:] for line in lines if line[0] in ' +')
        cell = self.cells[self.cell_with(old)]
        cell['source'] = ''.join(cell['source']).replace(old, new)

    def add_before(self, diff, source):
        first = '\n'.join(line[1:] for line in diff.splitlines() if line[0] in ' -')
        new = {'cell_type': 'code', 'id': 'example1', 'metadata': {}, 'source': source}
        self.cells.insert(self.cell_with(first), {**new, 'outputs': [], 'execution_count': None})

    def save(self):
        self.path.write_text(json.dumps(self.content), encoding='utf-8')


def apply(example, copy):
    "Edit the notebooks of the copy. Returns the program of `Try it`"
    edits, attempt = example.rsplit('Try it:', 1)
    notebook = None
    cell = None
    for path, language, block in PART.findall(edits):
        if path:
            notebook = Notebook(copy / path)
        elif language == 'python':
            cell = block
        else:
            if cell:
                notebook.add_before(block, cell)
            cell = None
            notebook.change(block)
            notebook.save()
    return re.search(r'(?ms)^```python\n(.*?)^```', attempt)[1]


def run(copy, folder, *command):
    environment = {**os.environ, 'PYTHONPATH': str(copy)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.rest
@pytest.mark.parametrize('title, example', EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_a_worked_example(title, example, tmp_path):
    copy = tmp_path / 'copy'
    for name in ('nbs', 'two_tower_vs'):
        ignored = shutil.ignore_patterns('demo', 'out', '__pycache__', 'tutorials', 'benchmarks')
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copy(ROOT / 'settings.ini', copy)
    attempt = apply(example, copy)
    run(copy, copy, Path(sys.executable).parent / 'nbdev_export')
    run(copy, tmp_path, sys.executable, '-c', attempt)


def test_all_examples_are_tried():
    assert len(EXAMPLES) == 4
