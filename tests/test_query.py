"""Searching with a picture: its forms, refusals, the picture itself, other processes."""

import asyncio
import copy
import io
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import warnings

import attack
import faiss
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from two_tower_vs.ask import image_files, query, save_answers
from two_tower_vs.errors import BadImage, InputError
from two_tower_vs.hits import others, show_hits
from two_tower_vs.index import Index
from two_tower_vs.latency import latency
from two_tower_vs.query import Searcher, load_searcher, on_gpu
from two_tower_vs.saving import load_model


@pytest.fixture(scope='module')
def project(workshop):
    "A finished project; its threshold for a match is set so that some hits reach it"
    return attack.project(workshop, run=True)


@pytest.fixture(scope='module')
def searcher(project):
    return load_searcher(project / 'out')


@pytest.fixture(scope='module')
def picture(project):
    return sorted((project / 'images/line').iterdir())[0]


@pytest.fixture
def forks():
    "Where processes can be forked; Python warns of that where there are threads"
    if not hasattr(os, 'fork'):
        pytest.skip('this system does not fork')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


# What a picture is given as


def test_every_form_of_a_picture(searcher, picture):
    data = picture.read_bytes()
    want = searcher.search(picture, 5)
    with open(picture, 'rb') as file:
        forms = [
            str(picture),
            data,
            bytearray(data),
            memoryview(data),
            io.BytesIO(data),
            file,
            Image.open(picture),
            np.array(Image.open(picture).convert('RGB')),
        ]
        for form in forms:
            pd.testing.assert_frame_equal(searcher.search(form, 5), want)


@pytest.mark.parametrize(
    'mode',
    [
        '1',
        'L',
        'LA',
        'La',
        'P',
        'PA',
        'RGB',
        'RGBA',
        'RGBa',
        'RGBX',
        'CMYK',
        'YCbCr',
        'HSV',
        'LAB',
        'I',
        'F',
        'I;16',
        'I;16B',
    ],
)
def test_every_mode_of_pillow(searcher, picture, mode):
    image = Image.open(picture).convert('RGB')
    if mode == 'LAB':
        from PIL import ImageCms

        profiles = ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB')
        image = ImageCms.profileToProfile(image, *profiles, outputMode='LAB')
    elif mode in ('La', 'PA', 'RGBa'):
        image = image.convert('LA' if mode != 'RGBa' else 'RGBA').convert(mode)
    elif mode[0] == 'I' or mode == 'F':
        grey = np.array(image.convert('L')).astype(np.uint16) * 257
        kinds = {'I': np.int32, 'F': np.float32, 'I;16': np.uint16, 'I;16B': '>u2'}
        image = Image.frombytes(mode, image.size, grey.astype(kinds[mode]).tobytes())
    else:
        image = image.convert(mode)
    assert image.mode == mode
    assert len(searcher.search(image, 3)) == 3


def test_a_picture_in_memory_is_turned_as_its_file_is(searcher, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(picture).convert('RGB').save(tmp_path / 'turned.png', exif=exif)
    a = searcher.search(tmp_path / 'turned.png', 5)
    b = searcher.search(Image.open(tmp_path / 'turned.png'), 5)
    pd.testing.assert_frame_equal(a, b)


def test_arrays_of_pixels(searcher, picture):
    grey = np.array(Image.open(picture).convert('L'))
    color = np.dstack([grey] * 3)
    want = searcher.search(color, 5)
    for array in (
        grey,
        np.dstack([color, np.full_like(grey, 255)]),
        color[::-1][::-1],
        np.asfortranarray(color),
    ):
        pd.testing.assert_frame_equal(searcher.search(array, 5), want)
    for array in (
        color / 255,
        color.astype(np.int64),
        color[..., :2],
        color[None],
        color.transpose(2, 0, 1),
        grey[0],
        np.array('a'),
        np.zeros((4, 4, 3), object),
        grey > 9,
    ):
        with pytest.raises(InputError, match='is no picture. Give uint8'):
            searcher.search(array)
    for empty in (color[:0], Image.new('RGB', (0, 5))):
        with pytest.raises(BadImage, match='no pixels'):
            searcher.search(empty)


def test_what_is_no_picture_is_refused_with_a_sentence(searcher, picture, tmp_path):
    import torch

    with open(picture, encoding='latin-1') as text:
        for wrong in (
            None,
            3,
            2.5,
            [str(picture)],
            {'a': 1},
            object(),
            text,
            io.StringIO('a'),
            torch.zeros(3, 8, 8),
        ):
            with pytest.raises(InputError, match='is no picture. Give a path, bytes'):
                searcher.search(wrong)
    for wrong in ('', 'nowhere.png', b'', b'text', io.BytesIO(), tmp_path):
        with pytest.raises(BadImage):
            searcher.search(wrong)
    small = copy.copy(searcher)
    small.max_pixels = 100
    with pytest.raises(BadImage, match='over the limit'):
        small.search(Image.open(picture))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, 'PNG')
    cut = Image.open(io.BytesIO(data.getvalue()[:5000]))
    with pytest.raises(BadImage, match='cannot be decoded'):
        searcher.search(cut)


def test_numbers_of_hits_that_make_no_sense(searcher, picture):
    for topk in (0, -1, 2.5, '3', None, True, float('nan')):
        for call in (
            searcher.search,
            lambda p, k: query(searcher, [p], k),
            lambda p, k: latency(searcher, [p], k),
        ):
            with pytest.raises(InputError, match='whole number'):
                call(picture, topk)
    for runs in (0, -1, None, '3'):
        for call in (query, latency):
            with pytest.raises(InputError, match='runs is'):
                call(searcher, [picture], runs=runs)
    with pytest.raises(InputError, match='batch_size'):
        query(searcher, [picture], batch_size=0)
    assert len(searcher.search(picture, 10**9)) == len(searcher.index.paths)


def test_paths_and_tables_that_are_none(searcher, picture, project):
    for wrong in (3, None, [None], [b'a']):
        with pytest.raises(InputError, match='is no path'):
            query(searcher, wrong)
    assert len(query(searcher, str(picture), topk=2, runs=1).hits) == 1
    with pytest.raises(InputError, match='no pictures to time'):
        latency(searcher, [])
    hits = searcher.search(picture, 2)
    for wrong in ({}, None, [hits], {picture: None}, {picture: hits[['rank']]}, 'abc'):
        with pytest.raises(InputError, match='no hits to show'):
            show_hits(wrong, project / 'images')
    # A query that found nothing is shown alone
    show_hits({picture: hits[:0]}, project / 'images', threshold=0.5)
    for wrong in (None, 3):
        with pytest.raises(InputError, match='is no folder'):
            load_searcher(wrong)


def test_subfolders_are_counted(searcher, picture, tmp_path):
    inside = tmp_path / 'some'
    (inside / 'below').mkdir(parents=True)
    (inside / '.hidden').mkdir()
    with (
        pytest.raises(InputError, match='no files other than in subfolders'),
        pytest.warns(UserWarning, match='1 subfolders'),
    ):
        image_files([inside])
    shutil.copy(picture, inside / 'below')
    shutil.copy(picture, inside)
    (inside / 'other').mkdir()
    with pytest.warns(UserWarning, match='its 2 subfolders are left out'):
        assert image_files([inside]) == [inside / picture.name]


# The picture itself


def test_the_picture_itself_is_shown_and_does_not_count(project, tmp_path):
    s = load_searcher(project / 'out')
    own = sorted((project / 'images/color').iterdir())[0]
    hits = s.search(own, 5)
    assert hits.same_picture.tolist() == [True] + [False] * 4
    assert hits.cand_path[0] == f'color/{own.name}'
    assert len(others(hits)) == 4
    second = float(hits.score[1])
    for threshold, match in ((second + 1e-4, False), (second - 1e-4, True)):
        s.threshold = threshold
        answers = query(s, [own], topk=5, runs=1)
        assert answers.table().match.tolist() == [False, match, False, False, False]
        written = answers.json()['hits']
        assert [h['same_picture'] for h in written] == [True] + [False] * 4
        assert [h['match'] for h in written] == [False, match, False, False, False]
    save_answers(answers, tmp_path, project / 'images')
    assert json.loads((tmp_path / 'query.json').read_text())['hits'][0]['same_picture'] is True


def titles(monkeypatch, hits, **options):
    "What show_hits writes above the pictures"
    import two_tower_vs.hits as module

    seen = []
    monkeypatch.setattr(module, 'image_grid', lambda rows, titles, **kw: seen.extend(titles))
    show_hits(hits, 'nowhere', **options)
    return seen


def test_titles_of_the_picture_itself(monkeypatch):
    hits = pd.DataFrame(
        {
            'rank': [1, 2],
            'cand_path': ['a', 'b'],
            'score': [1.0, 0.5],
            'same_picture': [True, False],
        }
    )
    assert titles(monkeypatch, {'a': hits}, threshold=0.6) == [
        ['no match', 'the same picture', '2: 0.50']
    ]
    assert titles(monkeypatch, {'a': hits}, threshold=0.4) == [
        ['query', 'the same picture', '2: 0.50']
    ]
    assert titles(monkeypatch, {'a': hits}) == [['query', 'the same picture', '2: 0.50']]
    # Nothing else is known
    assert titles(monkeypatch, {'a': hits[:1]}, threshold=0.6) == [['query', 'the same picture']]
    plain = hits.drop(columns='same_picture')
    assert titles(monkeypatch, {'a': plain}, threshold=0.6) == [['query', '1: 1.00', '2: 0.50']]


def test_other_pictures_have_no_such_column(project, searcher, picture):
    assert list(searcher.search(picture, 2)) == ['rank', 'cand_path', 'score']
    assert 'same_picture' not in query(searcher, [picture], 2, 1).json()['hits'][0]
    own = sorted((project / 'images/color').iterdir())[1]
    both = query(searcher, [picture, own], topk=2, runs=1).table()
    assert both.same_picture.tolist() == [False, False, True, False]
    assert both.same_picture.dtype == bool


def test_an_edited_copy_is_another_picture(searcher, project, tmp_path):
    own = sorted((project / 'images/color').iterdir())[0]
    Image.open(own).convert('RGB').save(tmp_path / 'copy.png', compress_level=1)
    assert 'same_picture' not in searcher.search(tmp_path / 'copy.png', 2)


# How vectors are made


def test_query_obeys_the_settings_of_embed(project, picture, cli):
    "And the index notes what made its vectors; a mismatch warns once"
    config = project / 'config.yaml'
    was = config.read_text()

    def run(stage, embed, *more):
        config.write_text(f'{was}\nembed: {embed}\nquery: {{runs: 1}}\n')
        status, out, err = cli('--config', config, '--stage', stage, *more)
        assert status == 0, err
        return out, err

    try:
        run('index', '{engine: torch, precision: float32}')
        manifest = json.loads((project / 'out/index/manifest.json').read_text())
        run('query', '{engine: torch, precision: float32}', '--image', picture)
        assert json.loads((project / 'out/query.json').read_text())['engine'] == 'torch'
        _, err = run('query', '{engine: torch, precision: bfloat16}', '--image', picture)
        assert err.count('were embedded in float32, and queries are in bfloat16') == 1
        _, err = run('query', '{}', '--image', picture)
        assert 'were embedded in' not in err
    finally:
        config.write_text(was)
        shutil.rmtree(project / 'out/index')
        assert cli('--config', config, '--stage', 'index')[0] == 0
    manifest = json.loads((project / 'out/index/manifest.json').read_text())
    assert manifest['precision'] in ('float32', 'bfloat16')
    assert manifest['engine'] in ('openvino', 'torch')
    assert {'torch', 'numpy', 'pillow', 'two_tower_vs'} <= set(manifest['libraries'])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load_searcher(project / 'out')


def test_an_engine_of_another_name_is_refused(project):
    for options in (dict(engine='tensorrt'), dict(precision='float16')):
        with pytest.raises(InputError, match='Use auto'):
            load_searcher(project / 'out', **options)


def test_bfloat16_is_what_it_says(project, picture):
    from two_tower_vs.engine import Engine

    tower = load_model(project / 'out/model').query
    pixels = tower.pixels(Image.open(picture).convert('RGB'))[None]
    exact, low = (Engine(tower, 'torch', precision=p)(pixels) for p in ('float32', 'bfloat16'))
    assert 1e-7 < 1 - (exact * low).sum() < 0.05


# Showing hits


def test_pale_pictures(searcher, picture, project):
    def brightness(threshold):
        grid = show_hits({picture: hits}, project / 'images', threshold=threshold)
        return np.asarray(grid.convert('L'), float).mean()

    hits = searcher.search(picture, 5)
    below, above = hits.score.min() - 0.01, hits.score.max() + 0.01
    assert brightness(above) > brightness(None) + 1
    assert brightness(below) == brightness(None)


def test_a_hit_whose_picture_is_gone(picture, searcher):
    show_hits({picture: searcher.search(picture, 2)}, 'nowhere', threshold=2)


def test_heads_of_several_queries(monkeypatch, searcher, project):
    pictures = sorted((project / 'images/line').iterdir())[:3]
    answers = {path: searcher.search(path) for path in pictures}
    best = min(hits.score[0] for hits in answers.values())
    for threshold, head in ((None, 'query'), (2, 'no match'), (best, 'query')):
        heads = [row[0] for row in titles(monkeypatch, answers, threshold=threshold)]
        assert heads == [head] * 3


# Several pictures at once


def test_many_pictures_share_one_search(monkeypatch, searcher, project):
    files = sorted((project / 'images/line').iterdir())[:40]
    sizes = []
    real = searcher.index.batch_hits

    def counted(vectors, *args, **options):
        sizes.append(len(vectors))
        return real(vectors, *args, **options)

    monkeypatch.setattr(searcher.index, 'batch_hits', counted)
    together = pd.concat(query(searcher, files, topk=4, runs=1).hits.values())
    assert sizes[0] == len(files)
    alone = pd.concat([searcher.search(file, 4) for file in files])
    assert together.cand_path.tolist() == alone.cand_path.tolist()
    assert np.allclose(together.score, alone.score, atol=1e-5)


def test_answers_with_and_without_a_threshold(project, picture):
    s = load_searcher(project / 'out')
    files = sorted((project / 'images/line').iterdir())[:3]
    s.threshold = 0.74
    answers = query(s, files, topk=2, runs=1)
    written = answers.json()
    assert list(written)[0] == 'queries' and len(answers.hits) == 3
    matches = [hit['match'] for one in written['queries'] for hit in one['hits']]
    assert answers.table().match.tolist() == matches
    assert (answers.table().match == (answers.table().score >= 0.74)).all()
    s.threshold = None
    plain = query(s, [picture], topk=3, runs=1)
    columns = ['rank', 'cand_path', 'score']
    assert list(plain.table()) == list(plain.json()['hits'][0]) == columns
    keys = ['image', 'hits', 'latency_ms', 'runs', 'threads', 'engine']
    assert list(plain.json()) == keys
    assert len(query(s, [picture], topk=5000, runs=1).table()) == len(s.index.paths)


def test_a_folder_without_a_readable_picture(searcher, tmp_path):
    for name in ('a.txt', 'b.txt'):
        (tmp_path / name).write_text('no picture')
    with pytest.warns(UserWarning), pytest.raises(InputError, match='None of the 2 files'):
        query(searcher, tmp_path)


# GPUs


class FakeGpu:
    "Stands for the copy that FAISS makes on a GPU; it serves one thread at a time"

    def __init__(self, cpu):
        self.cpu = cpu
        self.busy = False
        self.calls = 0

    def search(self, vectors, k):
        assert not self.busy
        self.busy = True
        time.sleep(0.002)
        self.calls += 1
        self.busy = False
        return self.cpu.search(vectors, k)


def test_exact_search_on_a_gpu(monkeypatch, project, searcher, picture):
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(faiss, 'get_num_gpus', lambda: 1)
    monkeypatch.setattr(faiss, 'index_cpu_to_all_gpus', FakeGpu, raising=False)
    s = load_searcher(project / 'out')
    gpu = s.index.gpu.gpu
    pd.testing.assert_frame_equal(s.search(picture), searcher.search(picture))
    assert gpu.calls == 1
    vectors = s.index.faiss.reconstruct_n(0, 20)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(s.index.hits, vectors))
    assert gpu.calls == 21
    # Too many for a GPU
    assert len(s.index.gpu.search(vectors[:1], 3000)[0][0]) == 3000 and gpu.calls == 21
    assert on_gpu(Index(faiss.IndexHNSWFlat(32, 8), [], {})).gpu is None


def test_a_gpu_without_room(monkeypatch, project, searcher, picture):
    def full(index):
        raise RuntimeError('out of memory')

    monkeypatch.setattr(faiss, 'get_num_gpus', lambda: 1)
    monkeypatch.setattr(faiss, 'index_cpu_to_all_gpus', full, raising=False)
    with pytest.warns(UserWarning, match=r'FAISS cannot use the GPU \(out of memory\)'):
        s = load_searcher(project / 'out')
    assert s.index.gpu is None
    pd.testing.assert_frame_equal(s.search(picture), searcher.search(picture))


# The threshold


def test_shorter_vectors_and_untrained_models_have_no_threshold(project, searcher):
    model = load_model(project / 'out/model')
    model.training_info = {'match': {'threshold': 0.74}}
    assert Searcher(model, searcher.index).threshold == 0.74
    shorter = copy.copy(searcher.index)
    shorter.manifest = searcher.index.manifest | dict(dim=16, model_dim=32)
    with pytest.warns(UserWarning, match='hits are not marked'):
        assert Searcher(model, shorter).threshold is None
    model.training_info = {}
    assert Searcher(model, searcher.index).threshold is None


# Other processes


def hits_of(s, picture, results=None):
    found = s.search(picture, 3).cand_path.tolist()
    return found if results is None else results.put(found)


def in_process(method, searcher, picture):
    "What a child process finds"
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=hits_of, args=(searcher, picture, results))
    child.start()
    try:
        return results.get(timeout=90)
    finally:
        child.join(10)
        child.kill()


def test_a_forked_process_answers(forks, searcher, picture):
    want = hits_of(searcher, picture)
    assert in_process('fork', searcher, picture) == want


def test_a_spawned_process_answers(searcher, picture):
    assert in_process('spawn', searcher, picture) == hits_of(searcher, picture)


def test_a_pickle_is_a_folder_and_options(project, searcher, picture):
    s = load_searcher(project / 'out', max_pixels=12345)
    data = pickle.dumps(s)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.max_pixels == 12345
    assert hits_of(again, picture) == hits_of(searcher, picture)
    in_memory = Searcher(load_model(project / 'out/model'), searcher.index)
    with pytest.raises(InputError, match='made in memory'):
        pickle.dumps(in_memory)
    assert copy.copy(in_memory).engine is in_memory.engine


def waited(pid, seconds=90):
    "Exit status of a child process; None where it hangs"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)


def forked(check):
    "Exit status of a child that runs check(): 0 where that is true"
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        except BaseException:
            os._exit(2)
    return waited(pid)


def test_preloaded_as_gunicorn_does(forks, searcher, picture):
    "A master loads and forks two workers; one forks again, and its threads answer as well"
    want = hits_of(searcher, picture)
    time.sleep(1.1)  # OpenVINO's threads have come to rest

    def right():
        return hits_of(searcher, picture) == want

    def threads():
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(4) as pool:
            return all(pool.map(lambda _: right(), range(12)))

    assert forked(lambda: right() and threads() and searcher.engine.name == 'openvino') == 0
    assert forked(lambda: forked(right) == 0 and right()) == 0
    assert right()


def test_forks_while_threads_search(forks, project, searcher, picture):
    "A thread may hold a lock of OpenVINO: the child does without it, also after loading again"
    want = hits_of(searcher, picture)
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            searcher.search(picture, 3)

    def answers_on_pytorch():
        with pytest.warns(
            UserWarning, match='it was running when this process was forked.*PyTorch'
        ):
            assert hits_of(searcher, picture) == want
        again = load_searcher(project / 'out')
        return (
            hits_of(again, picture) == want and searcher.engine.name == again.engine.name == 'torch'
        )

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert forked(answers_on_pytorch) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_batch_in_a_forked_process(forks, searcher, project):
    "FAISS and PyTorch share a batch among threads, which the child has not"
    vectors = np.tile(searcher.index.faiss.reconstruct_n(0, -1), (200, 1))
    want = searcher.index.search(vectors, 3)[1]
    assert forked(lambda: np.array_equal(searcher.index.search(vectors, 3)[1], want)) == 0


class Pictures:
    "A dataset whose items are hits"

    def __init__(self, searcher, files):
        self.searcher = searcher
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        return hits_of(self.searcher, self.files[i])[0]


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_workers_of_pytorch(forks, searcher, project, method):
    from torch.utils.data import DataLoader

    files = sorted((project / 'images/line').iterdir())[:6]
    want = [hits_of(searcher, file)[0] for file in files]
    loader = DataLoader(
        Pictures(searcher, files),
        batch_size=3,
        num_workers=1,
        multiprocessing_context=method,
        timeout=90,
    )
    assert [path for batch in loader for path in batch] == want


def test_asyncio(searcher, picture):
    async def several():
        return await asyncio.gather(
            *(asyncio.to_thread(hits_of, searcher, picture) for _ in range(8))
        )

    assert asyncio.run(several()) == [hits_of(searcher, picture)] * 8


@pytest.mark.parametrize('engine', ['torch', 'openvino'])
def test_each_engine_in_a_forked_process(forks, project, picture, engine):
    s = load_searcher(project / 'out', engine=engine)
    want = hits_of(s, picture)
    assert forked(lambda: hits_of(s, picture) == want) == 0


OVERWRITTEN = '''
import sys
from pathlib import Path
from two_tower_vs.query import load_searcher
s = load_searcher(sys.argv[1])
before = s.search(sys.argv[2], 5).score.tolist()
for file in Path(sys.argv[1]).rglob('*'):
    if file.is_file(): open(file, 'r+b').truncate(0)
assert s.search(sys.argv[2], 5).score.tolist() == before
print('answered')
'''


def test_files_overwritten_in_place_do_not_end_the_process(ran, picture):
    "The index, the model, and the network that OpenVINO keeps"
    ended = subprocess.run(
        [sys.executable, '-c', OVERWRITTEN, ran / 'out', picture], capture_output=True, text=True
    )
    assert ended.returncode == 0, (ended.returncode, ended.stderr[-800:])
    assert ended.stdout == 'answered\n'


# The stage index


@pytest.mark.rest
def test_index_needs_only_model_candidates_and_pictures(ran, cli, picture):
    for name in ('pairs.csv', 'query_gt.csv'):
        (ran / name).unlink()
    for kept in ('index', 'cache', 'train'):
        shutil.rmtree(ran / 'out' / kept)
    shutil.rmtree(ran / 'images/line')
    status, out, err = cli('--config', ran / 'config.yaml', '--stage', 'index')
    assert status == 0, err
    assert 'it is not tuned' in err and 'index: built' in out
    assert cli('--config', ran / 'config.yaml', '--stage', 'query', '--image', picture)[0] == 0


@pytest.mark.rest
def test_the_stage_index_sees_replaced_pictures_under_coarse_codes(ran, cli):
    with open(ran / 'config.yaml', 'a') as config:
        config.write('index: {factory: PQ4x4}\n')

    def index():
        status, out, err = cli('--config', ran / 'config.yaml', '--stage', 'index')
        assert status == 0, err
        return out

    assert 'rebuilt' in index()
    assert 'up to date' in index()
    pictures = sorted((ran / 'images/color').iterdir())
    for a, b in zip(pictures[:3], pictures[10:13]):
        shutil.copy(b, a)
    assert '3 changed' in index()
    s = load_searcher(ran / 'out')
    assert (
        s.search(pictures[10], 60).set_index('cand_path').same_picture[f'color/{pictures[0].name}']
    )
