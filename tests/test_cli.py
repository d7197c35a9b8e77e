"""The command line: what a start loads, what a changed project does, and what becomes one line."""

import errno
import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from two_tower_vs import cli as module
from two_tower_vs.errors import Notice
from two_tower_vs.run import Run

HEAVY = ('torch', 'pandas', 'numpy', 'faiss', 'PIL', 'timm', 'openvino', 'yaml')
NEEDLESS = (
    'accelerate',
    'matplotlib.pyplot',
    'sympy',
    'timm',
    'torch._dynamo',
    'torchvision',
    'triton',
)
HOLD = """
import sys
from pathlib import Path
from two_tower_vs.lock import only_run
with only_run(Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""
SWAMP = 'out: [&a [x,x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b]]'
ODD_CONFIGS = {
    'a number below its range': ('seed: -1', 'seed is -1'),
    'a section twice': ('train: {lr: 1}\ntrain: {lr: 2}', 'is there twice'),
    'a zero byte': ('out: "a\\0b"', 'out is'),
    'nested too deep': ('a: ' + '[' * 5000, 'YAML'),
    'no date': ('out: 2024-13-45', 'YAML'),
    'two megabytes': ('x' * 2**21, 'larger than 1 MB'),
    'a list of lists of lists': (SWAMP, 'out is ['),
}


def loaded(*args):
    "(Exit status, the modules that a process of its own imports)"
    command = [sys.executable, '-X', 'importtime', '-m', 'two_tower_vs', *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}


def from_json(file):
    return json.loads(file.read_text(encoding='utf-8'))


def replace(file, old, new):
    "Change a text file, which must have the old text"
    text = file.read_text(encoding='utf-8')
    assert old in text
    file.write_text(text.replace(old, new), encoding='utf-8')


@pytest.fixture
def stage(cli):
    "A function: project, stage, flags -> (exit status, printed text, text on stderr)"

    def run(project, name, *flags, config='config.yaml'):
        return cli('--config', project / config, '--stage', name, *flags)

    return run


@pytest.fixture
def picture(ran):
    return next((ran / 'images/line').iterdir())


# What a start loads


def test_help_loads_nothing_heavy():
    status, modules = loaded('--help')
    assert status == 0 and 'argparse' in modules
    assert not modules.intersection(HEAVY)


def test_a_query_loads_little_and_finds_the_same(ran, stage, picture):
    assert stage(ran, 'query', '--image', picture)[0] == 0
    here = from_json(ran / 'out/query.json')
    config = ran / 'config.yaml'
    status, modules = loaded('--config', config, '--stage', 'query', '--image', picture)
    assert status == 0
    assert from_json(ran / 'out/query.json')['hits'] == here['hits']
    if here['engine'] == 'openvino':
        assert 'openvino' in modules
        assert not modules.intersection(NEEDLESS)


# One run at a time


@pytest.fixture
def holder(ran):
    "Another process that holds the project's output folder"
    command = [sys.executable, '-c', HOLD, str(ran / 'out')]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout.readline() == 'held\n'
        yield process
        process.kill()


def test_stages_that_write_wait_and_a_query_does_not(ran, stage, picture, holder):
    for name in ('train', 'index', 'report', 'all'):
        status, _, err = stage(ran, name)
        assert status == 2 and err.count('\n') == 1
        assert f'{ran}/out is in use by another run. Wait until it is done' in err
    assert stage(ran, 'query', '--image', picture)[0] == 0
    holder.kill()
    holder.wait()
    assert stage(ran, 'index')[0] == 0


def test_an_output_folder_that_is_a_file(fresh, stage):
    (fresh / 'taken').touch()
    replace(fresh / 'config.yaml', 'out: out', 'out: taken')
    status, _, err = stage(fresh, 'train')
    assert status == 2 and f'{fresh}/taken cannot be written to (' in err


# What the files of a run say


def test_files_carry_the_models_hash(ran):
    model = from_json(ran / 'out/model/model.json')['sha256']
    assert from_json(ran / 'out/metrics.json')['model_sha256'] == model
    assert from_json(ran / 'out/index/manifest.json')['model_sha256'] == model


def test_flags_replace_settings(ran, stage, picture):
    assert stage(ran, 'eval', '--k', 1, 3)[0] == 0
    metrics = from_json(ran / 'out/metrics.json')
    assert metrics['k'] == [1, 3]
    ranked = {'recall@1', 'recall@3', 'hit@1', 'hit@3', 'mrr', 'map@3'}
    assert set(metrics['delta']) == ranked | {'micro_ap', 'recall@p90'}
    assert stage(ran, 'query', '--image', picture, '--topk', 2)[0] == 0
    assert len(from_json(ran / 'out/query.json')['hits']) == 2


def test_an_export_in_numpys_format(ran, stage):
    with open(ran / 'config.yaml', 'a') as config:
        config.write('export: {onnx: false, format: npy}\n')
    assert stage(ran, 'export')[0] == 0
    tables = {'candidates.csv', 'candidates.npy', 'queries.csv', 'queries.npy'}
    made = {file.name for file in (ran / 'out/export').iterdir()}
    assert made == tables | {'MODEL_CARD.md', 'export.json'}


# A candidate list that changes


@pytest.fixture
def shortened(ran):
    "The project with one right answer taken out of its candidates"
    truth = pd.read_csv(ran / 'query_gt.csv')
    candidates = pd.read_csv(ran / 'candidates.csv')
    kept = candidates[candidates.cand_path != truth.gt_cand_path[0]]
    assert len(kept) == len(candidates) - 1
    kept.to_csv(ran / 'candidates.csv', index=False)
    return ran


def test_a_query_after_the_table_changed(shortened, stage, picture):
    status, _, err = stage(shortened, 'query', '--image', picture)
    assert status == 0
    assert f'{shortened}/candidates.csv was changed after the index was made' in err


def test_a_right_answer_that_is_gone(shortened, stage):
    status, _, err = stage(shortened, 'index')
    assert status == 2
    assert 'query_gt.csv row 2: ' in err and 'is not among the candidates' in err


def test_an_index_is_brought_up_to_date_once(shortened, stage, picture):
    truth = shortened / 'query_gt.csv'
    pd.read_csv(truth)[1:].to_csv(truth, index=False)
    index = shortened / 'out/index'
    rows = from_json(index / 'manifest.json')['rows']
    status, printed, _ = stage(shortened, 'index')
    assert status == 0 and printed.startswith('index: rebuilt: 1 removed;')
    assert from_json(index / 'manifest.json')['rows'] == rows - 1
    assert stage(shortened, 'query', '--image', picture)[2] == ''
    written = (index / 'vectors.faiss').stat().st_mtime_ns
    assert 'index: up to date;' in stage(shortened, 'index')[1]
    assert (index / 'vectors.faiss').stat().st_mtime_ns == written


# Pictures that cannot be read


def bad_images(project):
    return pd.read_csv(project / 'out/bad_images.csv')


def test_all_missing_files_are_listed(fresh, stage):
    (fresh / 'two.csv').write_text('query_path,cand_path\nline/no.png,color/no.png\n')
    (fresh / 'two.yaml').write_text('data: {images_root: images, pairs: two.csv}')
    status, _, err = stage(fresh, 'train', config='two.yaml')
    assert status == 2
    assert 'two.csv row 2: line/no.png is not a readable image (no such file in' in err
    assert bad_images(fresh).path.tolist() == ['line/no.png', 'color/no.png']


@pytest.fixture
def broken(fresh):
    "(A project, the candidate of its pairs' row 5, which is no picture)"
    path = pd.read_csv(fresh / 'pairs.csv').cand_path[3]
    (fresh / 'images' / path).write_bytes(b'not a picture')
    return fresh, path


@pytest.mark.rest
def test_a_broken_picture_stops_training(broken, stage):
    project, path = broken
    status, _, err = stage(project, 'train')
    assert status == 2 and err.count('two_tower_vs: ') == 1
    assert f'row 5: {path} is not a readable image' in err
    assert bad_images(project)[['row', 'path']].values.tolist() == [[5, path]]


@pytest.mark.rest
def test_a_broken_picture_is_skipped_when_asked(broken, stage):
    project, _ = broken
    replace(project / 'config.yaml', 'query_gt.csv}', 'query_gt.csv, on_bad: skip}')
    status, _, err = stage(project, 'all')
    assert status == 0
    for table in ('pairs.csv', 'candidates.csv'):
        assert f'rows of {project}/{table} are skipped' in err
    files = bad_images(project).file.str.rsplit('/').str[-1]
    assert sorted(files) == ['candidates.csv', 'pairs.csv']


def test_queries_that_training_has_seen(ran, stage):
    truth = pd.read_csv(ran / 'query_gt.csv')[:2].rename(columns={'gt_cand_path': 'cand_path'})
    pairs = pd.read_csv(ran / 'pairs.csv')
    pd.concat([pairs, truth[['query_path', 'cand_path']]]).to_csv(ran / 'pairs.csv', index=False)
    err = stage(ran, 'eval')[2]
    assert 'evaluation queries also stand in the training pairs' in err


# A new project


def test_init_makes_what_all_stages_read(fresh, cli):
    made = fresh / 'own/config.yaml'
    command = ('--stage', 'init', '--images', fresh / 'images/color', '--config', made)
    status, printed, _ = cli(*command)
    assert status == 0 and f'--config \'{made}\' --stage all' in printed
    run = Run(made)
    assert len(run.pairs) and len(run.gt) and len(run.candidates)
    assert run.on_bad('') == 'skip'
    status, _, err = cli(*command)
    assert status == 2 and err.count('\n') == 1
    assert f'{fresh}/own/pairs.csv exists, and init overwrites nothing' in err


def test_an_init_that_is_refused_leaves_nothing(fresh, cli):
    assert cli('--stage', 'init')[0] == 2
    flags = ('--images', fresh / 'images/color', '--layout', 'classes')
    assert cli('--stage', 'init', *flags, '--config', fresh / 'own/config.yaml')[0] == 2
    assert not (fresh / 'own').exists()


# What becomes one line


@pytest.mark.parametrize('text, message', ODD_CONFIGS.values(), ids=ODD_CONFIGS)
def test_odd_config_files(text, message, tmp_path, stage):
    (tmp_path / 'odd.yaml').write_text(text)
    status, _, err = stage(tmp_path, 'train', config='odd.yaml')
    assert status == 2 and message in err
    assert err.count('\n') == 1 and len(err) < 400


@pytest.fixture
def failing(monkeypatch, tmp_path):
    "A function that runs a stage which raises this"
    (tmp_path / 'config.yaml').write_text('{}')

    def run(error):
        def stage(run):
            raise error

        monkeypatch.setitem(module.stages, 'eval', stage)
        return module.main(['--config', str(tmp_path / 'config.yaml'), '--stage', 'eval'])

    return run


def test_a_mistake_of_ours_keeps_its_traceback(failing):
    for error in (ZeroDivisionError(), OSError(errno.EINVAL, 'Invalid argument')):
        with pytest.raises(type(error)):
            failing(error)


REFUSED = [
    (OSError(errno.ENOSPC, 'No space left', 'a\nb'), 2, r'a\nb cannot be used (No space left).'),
    (MemoryError(), 2, 'the memory is not enough.'),
    (RuntimeError('alloc failed'), 2, 'the memory is not enough.'),
    (KeyboardInterrupt(), 1, 'interrupted; '),
]


@pytest.mark.parametrize('error, status, message', REFUSED)
def test_what_the_machine_refuses(error, status, message, failing, capsys):
    assert failing(error) == status
    err = capsys.readouterr().err
    assert err.startswith(f'two_tower_vs: {message}') and err.count('\n') == 1


def test_accelerate_starts_one_process_of_several(fresh):
    "`accelerate launch --cpu --num_processes 2` starts one and says nothing: it is refused"
    flags = ['--cpu', '--num_processes', '2', '-m', 'two_tower_vs']
    command = [sys.executable, '-m', 'accelerate.commands.launch', *flags]
    stage = ['--config', str(fresh / 'config.yaml'), '--stage', 'train']
    r = subprocess.run([*command, *stage], capture_output=True, text=True, env=quiet_home(fresh))
    assert r.returncode != 0
    assert 'Use torchrun --nproc_per_node 2 -m two_tower_vs' in r.stderr
    assert not (fresh / 'out/model').exists()


def quiet_home(folder):
    "An environment without a user's settings of Accelerate"
    return {**os.environ, 'HF_HOME': str(folder / 'home')}


def test_notes_do_not_look_like_warnings(capsys):
    show = module._warn_once()
    for category in (UserWarning, Notice):
        for _ in range(2):
            show(f'a {category.__name__}', category, module.__file__)
    assert capsys.readouterr().err == 'warning: a UserWarning\nnote: a Notice\n'
