"""A part of a picture, candidates that are like one of them, and several pictures together."""

import json

import faiss
import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from two_tower_vs.box import read_box
from two_tower_vs.bundle import load_index, save_index
from two_tower_vs.errors import BadImage, InputError
from two_tower_vs.query import load_searcher
from two_tower_vs.serve import make_app
from two_tower_vs.subset import taken_out

BOX = '0.25,0,0.5,0.75'


@pytest.fixture
def searcher(ran):
    return load_searcher(ran / 'out')


@pytest.fixture
def client(ran):
    return TestClient(make_app(ran / 'out', ran / 'images'), base_url='http://127.0.0.1')


@pytest.fixture
def sheet(ran, tmp_path):
    "Four drawings on one sheet: (its file, the drawings)"
    files = sorted((ran / 'images/line').glob('*.png'))[:4]
    drawings = [Image.open(file).convert('RGB').resize((64, 64)) for file in files]
    whole = Image.new('RGB', (128, 128), 'white')
    for i, drawing in enumerate(drawings):
        whole.paste(drawing, (64 * (i % 2), 64 * (i // 2)))
    whole.save(tmp_path / 'sheet.png')
    return tmp_path / 'sheet.png', drawings


def same(hits, others):
    assert list(hits.cand_path) == list(others.cand_path)
    np.testing.assert_allclose(hits.score, others.score, atol=1e-5)


def test_a_part_is_searched_as_if_it_were_alone(searcher, sheet):
    file, drawings = sheet
    for i, drawing in enumerate(drawings):
        box = (0.5 * (i % 2), 0.5 * (i // 2), 0.5, 0.5)
        for source in (file, file.read_bytes(), Image.open(file), np.array(Image.open(file))):
            same(searcher.search(source, 5, box=box), searcher.search(drawing, 5))


def test_a_box_is_that_of_the_upright_picture(searcher, sheet, tmp_path):
    file, drawings = sheet
    turned = Image.open(file).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(tmp_path / 'turned.png', exif=exif)
    same(
        searcher.search(tmp_path / 'turned.png', 5, box='0.5,0,0.5,0.5'),
        searcher.search(drawings[1], 5),
    )


def test_a_large_photo_is_not_reduced_too_far(searcher, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(noise).resize((2400, 1800)).save(tmp_path / 'large.jpg', quality=95)
    given = searcher.given(tmp_path / 'large.jpg', read_box('0.5,0.5,0.1,0.1'))
    assert min(given.shape[:2]) >= searcher.tower.prep['size']


def test_a_part_is_not_the_whole_picture(searcher, ran):
    "the catalogue holds this very file, and a part of it is another picture"
    file = next((ran / 'images/color').glob('*.png'))
    assert 'same_picture' in searcher.search(file, 5)
    assert 'same_picture' not in searcher.search(file, 5, box='0,0,0.9,0.9')


def test_a_part_without_pixels(searcher, sheet):
    with pytest.raises(BadImage, match='fewer than 8 a side'):
        searcher.search(sheet[0], box='0,0,0.01,1')


def test_the_command_line(ran, cli, sheet):
    config = ['--config', ran / 'config.yaml', '--stage', 'query', '--image', sheet[0]]
    status, _, said = cli(*config, '--box', '0,0,0.5,0.5')
    assert status == 0, said
    found = json.loads((ran / 'out/query.json').read_text())
    hits = load_searcher(ran / 'out').search(sheet[1][0], 10)
    assert [hit['cand_path'] for hit in found['hits']] == list(hits.cand_path)
    assert found['box'] == '0,0,0.5,0.5'


@pytest.mark.parametrize(
    'stage, box, words',
    [
        ('query', '1,2,3', 'is not four numbers'),
        ('query', '0.5,0.5,0.6,0.1', 'reaches beyond the picture'),
        ('query', '0,0,0.001,1', 'fewer than 8 a side'),
        ('eval', BOX, 'does not search'),
    ],
)
def test_one_line(ran, cli, sheet, stage, box, words):
    image = ['--image', sheet[0]] if stage == 'query' else []
    args = ['--config', ran / 'config.yaml', '--stage', stage, *image, '--box', box]
    status, _, said = cli(*args)
    assert status == 2 and words in said and said.count('\n') == 1, said


def test_the_server_searches_with_a_part(client, searcher, sheet):
    file, drawings = sheet
    answer = client.post('/search?topk=5&box=0,0.5,0.5,0.5', content=file.read_bytes())
    assert answer.status_code == 200, answer.text
    hits = searcher.search(drawings[2], 5)
    assert [hit['cand_path'] for hit in answer.json()['hits']] == list(hits.cand_path)
    bad = client.post('/search?box=0,0,2,2', content=file.read_bytes())
    assert bad.status_code == 422 and 'reaches beyond' in bad.json()['error']['detail'], bad.text
    known = client.get(f'/search?id=0&box={BOX}').json()['hits']
    assert not any(hit.get('same_picture') for hit in known)


def test_the_server_finds_more_like_a_candidate(client, searcher):
    answer = client.get('/search?like=3&topk=4').json()
    hits = searcher.more_like(searcher.index.paths[3], 4)
    assert [hit['cand_path'] for hit in answer['hits']] == list(hits.cand_path)
    assert [hit['rank'] for hit in answer['hits']] == [1, 2, 3, 4]
    assert answer['tower'] == 'candidate' and 'threshold' not in answer
    assert not any('match' in hit or hit['id'] == 3 for hit in answer['hits'])


@pytest.mark.parametrize(
    'query, status',
    [('like=3&id=3', 422), (f'like=3&box={BOX}', 422), ('like=100000', 404), ('topk=3', 422)],
)
def test_the_server_refuses(client, query, status):
    answer = client.get(f'/search?{query}')
    assert answer.status_code == status and answer.json()['error']['detail'], answer.text


def test_neighbours_are_the_nearest_of_all(searcher, ran):
    from two_tower_vs.embed import embed

    paths = list(searcher.index.paths)
    from two_tower_vs.saving import load_model

    model = load_model(ran / 'out/model')
    vectors = embed(model.cand, paths, ran / 'images', progress=False).vectors
    exact = np.argsort(-(vectors @ vectors[5]), kind='stable')
    found = searcher.more_like(paths[5], 6)
    assert list(found.cand_path) == [paths[row] for row in exact if row != 5][:6]
    assert len(searcher.more_like(paths[5], 10_000)) == len(paths) - 1


def test_vectors_of_several_files():
    vectors = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    both = faiss.IndexShards(8, False, True)
    parts = [faiss.IndexFlatIP(8), faiss.IndexFlatIP(8)]
    for part, some in zip(parts, (vectors[:10], vectors[10:])):
        part.add(some)
        both.add_shard(part)
    np.testing.assert_array_equal(
        taken_out(both, np.array([3, 9, 10, 29])), vectors[[3, 9, 10, 29]]
    )


def test_several_pictures_ask_together(searcher, sheet):
    _, drawings = sheet
    one, other = drawings[:2]
    vectors = searcher.vectors(np.stack([searcher.pixels(each) for each in (one, other)]))
    for less, weight, mixed in (((), 0.5, vectors.sum(0)), ((other,), 0.3, None)):
        sources = [one, other] if mixed is not None else [one]
        wanted = mixed if mixed is not None else vectors[0] - 0.3 * vectors[1]
        hits = searcher.search_together(sources, 5, less, weight)
        same(hits, searcher.index.hits(wanted / np.linalg.norm(wanted), 5))


def test_together_with_nothing(searcher, sheet):
    with pytest.raises(InputError, match='there is no picture'):
        searcher.search_together([])
    with pytest.raises(InputError, match='cancel each other out'):
        searcher.search_together([sheet[1][0]], 5, [sheet[1][0]], 1.0)
    with pytest.raises(InputError, match='from 0 to 2'):
        searcher.search_together([sheet[1][0]], 5, [sheet[1][0]], 9)


def test_a_number_of_the_list_before_means_the_same_candidate(client, ran):
    "after a new index without the first two candidates"
    site = client.app.state.site
    old = site.now.shows
    index = load_index(ran / 'out/index', writable=True)
    rows = len(index.paths) - 2
    flat = faiss.IndexFlatIP(index.faiss.d)
    flat.add(index.faiss.reconstruct_n(2, rows))
    manifest = dict(index.manifest, rows=rows)
    save_index(type(index)(flat, list(index.paths)[2:], manifest), ran / 'out/index')
    assert site.reload()
    answer = client.get('/search', params=dict(like=5, v=old.version, topk=4)).json()
    hits = load_searcher(ran / 'out').more_like(old.paths[5], 4)
    assert [hit['cand_path'] for hit in answer['hits']] == list(hits.cand_path)
    gone = client.get('/search', params=dict(like=0, v=old.version))
    assert gone.status_code == 410 and 'no longer' in gone.json()['error']['detail']


# ---- several pictures as one query, and less like others


def paths_of(answer):
    assert answer.status_code == 200, answer.text
    return [hit['cand_path'] for hit in answer.json()['hits']]


@pytest.fixture
def three(ran):
    "Files of three drawings"
    return sorted((ran / 'images/line').glob('*.png'))[:3]


def test_together_on_the_command_line(ran, cli, searcher, three):
    one, other, third = three
    config = ['--config', ran / 'config.yaml', '--stage', 'query', '--topk', '5']
    status, _, said = cli(*config, '--image', one, other, '--together', '--less', third)
    assert status == 0, said
    found = json.loads((ran / 'out/query.json').read_text())
    hits = searcher.search_together([one, other], 5, [third])
    assert [hit['cand_path'] for hit in found['hits']] == list(hits.cand_path)
    assert found['image'] == str(one) and found['together'] == [str(one), str(other)]
    assert found['less'] == [str(third)] and found['weight'] == 0.5
    assert 'threshold' not in found and not any('match' in hit for hit in found['hits'])


def test_each_picture_asks_alone_unless_told(ran, cli, searcher, three):
    "also where all should be less like another one"
    one, other, third = three
    config = ['--config', ran / 'config.yaml', '--stage', 'query', '--topk', '5']
    assert cli(*config, '--image', one, other)[0] == 0
    found = json.loads((ran / 'out/query.json').read_text())
    assert len(found['queries']) == 2 and not {'together', 'less', 'weight'} & found.keys()
    less = ['--less', third, '--weight', '1.5']
    assert cli(*config, '--image', one, other, *less)[0] == 0
    found = json.loads((ran / 'out/query.json').read_text())
    for image, query in zip((one, other), found['queries']):
        hits = searcher.search_together([image], 5, [third], 1.5)
        assert [hit['cand_path'] for hit in query['hits']] == list(hits.cand_path)
    assert found['weight'] == 1.5


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--less', 'nowhere.png'], '--less nowhere.png: no such file'),
        (['--less', 'BAD'], 'bad.png is not a readable image'),
        (['--weight', '1'], 'there are none'),
        (['--less', 'IMAGE', '--weight', '3'], 'from 0 to 2'),
        (['--less', 'IMAGE', '--weight', '1'], 'cancel each other out'),
    ],
)
def test_one_line_for_each_mistake(ran, cli, three, tmp_path, flags, words):
    (tmp_path / 'bad.png').write_text('no picture')
    given = {'IMAGE': three[0], 'BAD': tmp_path / 'bad.png'}
    flags = [given.get(flag, flag) for flag in flags]
    config = ['--config', ran / 'config.yaml', '--stage', 'query', '--image', three[0]]
    status, _, said = cli(*config, *flags)
    assert status == 2 and words in said and said.count('\n') == 1, said


@pytest.mark.parametrize('flag', [['--together'], ['--less', 'a.png'], ['--fold']])
def test_other_stages_take_none_of_it(ran, cli, flag):
    status, _, said = cli('--config', ran / 'config.yaml', '--stage', 'eval', *flag)
    assert status == 2 and 'does not search' in said and said.count('\n') == 1, said


def test_several_uploads_are_one_query(client, searcher, three):
    one, other, third = three
    files = [('image', one.read_bytes()), ('image', other.read_bytes())]
    hits = searcher.search_together([one, other], 5)
    both = client.post('/search?topk=5', files=files)
    assert paths_of(both) == list(hits.cand_path)
    assert both.json()['asked'] == {'pictures': 2, 'less': 0, 'weight': 0.5}
    assert not any('match' in hit for hit in both.json()['hits'])
    files.append(('less', third.read_bytes()))
    hits = searcher.search_together([(one, '0,0,0.5,1'), other], 5, [third], 0.3)
    less = client.post('/search?topk=5&weight=0.3&box=0,0,0.5,1', files=files)
    assert paths_of(less) == list(hits.cand_path), 'the box is that of the first picture'


def test_candidates_in_a_question(client, searcher, ran, three):
    root = ran / 'images'
    paths = [root / path for path in searcher.index.paths]
    hits = searcher.search_together([paths[3], paths[5]], 5, [paths[7]])
    assert paths_of(client.get('/search?id=3&id=5&less=7&topk=5')) == list(hits.cand_path)
    hits = searcher.search_together([paths[3], three[0]], 5, [paths[7]])
    sent = client.post('/search?id=3&less=7&topk=5', files=[('image', three[0].read_bytes())])
    assert paths_of(sent) == list(hits.cand_path)
    body = client.post('/search?less=7&topk=5', content=three[0].read_bytes())
    assert paths_of(body) == list(searcher.search_together([three[0]], 5, [paths[7]]).cand_path)


def test_more_like_and_less_like_candidates(client, searcher):
    vectors = taken_out(searcher.index.faiss, np.array([3, 7, 9]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    wanted = vectors[0] - 0.5 * vectors[1:].mean(0)
    scores, rows = searcher.index.search(wanted[None] / np.linalg.norm(wanted), 10)
    answer = client.get('/search?like=3&less=7&less=9&topk=5').json()
    assert [hit['id'] for hit in answer['hits']] == [row for row in rows[0] if row != 3][:5]
    assert answer['asked'] == {'pictures': 1, 'less': 2, 'weight': 0.5}


@pytest.mark.parametrize(
    'query, status, words',
    [
        ('less=3', 422, 'Give id, query or like'),
        ('id=3&less=100000', 404, 'counted from 0'),
        ('id=3&less=3&weight=1', 422, 'cancel each other out'),
        ('like=3&less=3&weight=1', 422, 'cancel each other out'),
        ('id=3&less=4&weight=9', 422, 'weight'),
        ('id=3' + '&less=4' * 8, 422, '8 pictures at most'),
        ('id=3' + '&less=4' * 9, 422, '8 at most'),
        ('like=3' + '&less=4' * 8, 422, '7 at most'),
    ],
)
def test_the_server_refuses_questions(client, query, status, words):
    answer = client.get(f'/search?{query}')
    assert answer.status_code == status and words in answer.json()['error']['detail'], answer.text


def test_uploads_that_are_no_question(client, three):
    picture = three[0].read_bytes()
    for files, status, words in (
        ([('less', picture)], 400, 'no picture to search with'),
        ([('image', picture), ('less', b'')], 400, 'empty'),
        ([('image', picture), ('image', b'no picture')], 422, 'not a readable image'),
        ([('image', picture)] * 9, 400, 'Too many files'),
    ):
        answer = client.post('/search', files=files)
        detail = answer.json()['error']['detail']
        assert answer.status_code == status and words in detail, answer.text
