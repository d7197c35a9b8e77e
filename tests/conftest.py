"""What the tests share: a small finished project of real pictures, and the command line in this
process.
"""

import sys
from pathlib import Path

import faiss
import pytest
import torch

from two_tower_vs.threads import cores as count_cores

sys.path.insert(0, str(Path(__file__).resolve().parent / 'attacks'))
import attack

# OpenVINO's telemetry forks this process and connects to a server at each conversion. The package
# switches it off where it imports OpenVINO; a test may import that before.
sys.modules.setdefault('openvino_telemetry', None)


@pytest.fixture(autouse=True)
def threads():
    "Each test begins with the same: with other numbers of threads, sums differ in their last bits"
    torch.set_num_threads(1)  # two processes of tests share the cores
    faiss.omp_set_num_threads(count_cores())


@pytest.fixture(scope='session')
def workshop(tmp_path_factory):
    "A folder whose name holds a space, in which projects are made once"
    return tmp_path_factory.mktemp('two tower')


@pytest.fixture
def fresh(workshop):
    "A project of 60 pairs of emojis, 64 pixels a side, before any stage has run"
    return attack.project(workshop, run=False)


@pytest.fixture
def ran(workshop):
    "The same project after `--stage all`"
    return attack.project(workshop, run=True)


@pytest.fixture
def cli():
    "A function: arguments of the command line -> (exit status, printed text, text on stderr)"
    return attack.cli


@pytest.fixture(scope='session')
def grocery():
    "The real photos beside the repository, where they are there"
    folder = Path(__file__).resolve().parent.parent.parent / 'shared' / 'data' / 'grocery'
    if not folder.is_dir():
        pytest.skip('the grocery photos are not beside the repository')
    return folder


@pytest.fixture
def write(tmp_path):
    "A function: text -> a CSV file"

    def written(text, name='table.csv'):
        (tmp_path / name).write_text(text, encoding='utf-8')
        return tmp_path / name

    return written
