"""Near copies of a better hit are folded into it: in Python, on the command line and over HTTP."""

import json
import shutil
from inspect import signature

import faiss
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image, ImageEnhance
from starlette.testclient import TestClient

from two_tower_vs.check import check
from two_tower_vs.errors import InputError
from two_tower_vs.folding import NearCopies, can_fold, grouped, lengths
from two_tower_vs.query import load_searcher
from two_tower_vs.serve import make_app
from two_tower_vs.subset import taken_out

COPIES = 'copies/again.png', 'copies/small.jpg', 'copies/dim.png'


@pytest.fixture(scope='module')
def burst(workshop, tmp_path_factory):
    "A project in which one emoji is there four times: (its folder, the path of that emoji)"
    import attack

    folder = tmp_path_factory.mktemp('burst') / 'project'
    shutil.copytree(attack.project(workshop, run=True), folder)
    table = pd.read_csv(folder / 'candidates.csv')
    first = 'color/1F9A3.png'  # no symmetry: small changes leave its hash alone
    (folder / 'images/copies').mkdir()
    again, small, dim = (folder / 'images' / path for path in COPIES)
    shutil.copy(folder / 'images' / first, again)
    image = Image.open(again).convert('RGB')
    image.resize((60, 60)).save(small, quality=95)
    ImageEnhance.Brightness(image).enhance(0.97).save(dim)
    more = pd.DataFrame({'cand_path': COPIES})
    pd.concat([table[['cand_path']], more]).to_csv(folder / 'candidates.csv', index=False)
    config = folder / 'config.yaml'
    settings = yaml.safe_load(config.read_text())
    settings['query'] = dict(settings.get('query') or {}, verify='never')  # see the test with it
    config.write_text(yaml.safe_dump(settings))
    status, _, said = attack.cli('--config', config, '--stage', 'index')
    assert status == 0, said
    return folder, first


@pytest.fixture(scope='module')
def searcher(burst):
    return load_searcher(burst[0] / 'out', images_root=burst[0] / 'images')


@pytest.fixture(scope='module')
def client(burst):
    app = make_app(burst[0] / 'out', burst[0] / 'images', burst[0] / 'query_gt.csv')
    return TestClient(app, base_url='http://127.0.0.1')


@pytest.fixture
def drawing(burst):
    "The drawing of that emoji"
    folder, first = burst
    pairs = pd.concat(
        [
            pd.read_csv(folder / 'pairs.csv'),
            pd.read_csv(folder / 'query_gt.csv').set_axis(['query_path', 'cand_path'], axis=1),
        ]
    )
    return folder / 'images' / pairs.query_path[pairs.cand_path == first].iloc[0]


def family(burst):
    return {burst[1], *COPIES}


def check_folded(hits, plain, burst, k):
    "k hits, of which one stands for all four; the others are those of a plain search"
    assert len(hits) == k
    (standing,) = [hit for hit in hits if hit['cand_path'] in family(burst)]
    paths = [copy if isinstance(copy, str) else copy['cand_path'] for copy in standing['copies']]
    assert standing['folded'] == 3 and {standing['cand_path'], *paths} == family(burst)
    best_first = [path for path in plain if path in family(burst)]
    assert [standing['cand_path'], *paths] == best_first
    wanted = [path for path in plain if path not in best_first[1:]][:k]
    assert [hit['cand_path'] for hit in hits] == wanted
    assert [hit['rank'] for hit in hits] == list(range(1, k + 1))


def test_in_python(searcher, burst, drawing):
    plain = list(searcher.search(drawing, 100).cand_path)
    hits = searcher.search(drawing, 6, fold=True)
    check_folded(hits.to_dict('records'), plain, burst, 6)
    assert 'folded' not in searcher.search(drawing, 6)
    for ask in (searcher.search_together, searcher.more_like):
        given = [drawing, drawing] if ask == searcher.search_together else burst[1]
        hits = ask(given, 5, fold=True)
        plain = list(ask(given, 100).cand_path)
        paths = [path for path in plain if path in family(burst)]
        assert hits.copies[hits.cand_path == paths[0]].item() == paths[1:] and len(hits) == 5


def test_the_very_picture_takes_nothing_in(searcher, burst):
    hits = searcher.search(searcher.images_root / burst[1], 6, fold=True)
    own = hits[hits.same_picture]
    assert set(own.cand_path) | set(own.copies.sum()) == {burst[1], 'copies/again.png'}
    assert set(hits.cand_path[~hits.same_picture]) & set(COPIES), 'others stay by themselves'


def test_verified_hits_are_folded(searcher, burst, drawing):
    pytest.importorskip('cv2')
    hits = searcher.with_verify('always').search(drawing, 6, fold=True)
    assert len(hits) == 6 and hits.folded.sum() == 3 and hits.score.is_monotonic_decreasing


def test_more_is_asked_for_until_it_suffices(searcher, drawing, monkeypatch):
    "where the first 50 hits are copies of each other: 12 and 48 are too few for three"
    plain = list(searcher.search(drawing, 100).cand_path)
    alike = set(plain[:50])
    grey = 0, np.zeros((8, 8, 3))
    monkeypatch.setattr(searcher.copies, 'look', lambda path: grey if path in alike else None)
    monkeypatch.setattr(searcher.copies, 'cosine', -2)
    hits = searcher.search(drawing, 3, fold=True)
    assert list(hits.cand_path) == [plain[0], plain[50], plain[51]]
    assert list(hits.folded) == [49, 0, 0]


def test_the_rule(searcher, burst):
    "bits of the doctor; hash and vectors must agree; blank and missing pictures are no copies"
    copies = NearCopies(burst[0] / 'images')
    assert copies.near == signature(check).parameters['near'].default
    index = searcher.index
    rows = np.arange(len(index.paths))
    vectors = taken_out(index.faiss, rows)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for first, *others in grouped(copies, index, rows):
        for other in others:
            assert vectors[first] @ vectors[other] >= copies.cosine
            paths = index.paths[first], index.paths[other]
            assert copies.look_alike(*paths) or set(paths) == {burst[1], 'copies/again.png'}
    Image.new('RGB', (64, 64), 'white').save(burst[0] / 'images/copies/blank.png')
    blank = 'copies/blank.png'
    assert not copies.look_alike(blank, blank) and not copies.look_alike('none.png', 'none.png')
    assert list(lengths(1000, 10**6)) == [2000], 'no more than 2,000 are compared'


def test_the_command_line(burst, drawing, cli):
    folder, _ = burst
    config = ['--config', folder / 'config.yaml', '--stage', 'query', '--topk', '6']
    status, out, said = cli(*config, '--image', drawing, '--fold')
    assert status == 0, said
    answer = json.loads((folder / 'out/query.json').read_text())
    assert answer['fold'] is True and 'folded' in out
    plain = load_searcher(folder / 'out').search(drawing, 100)
    check_folded(answer['hits'], list(plain.cand_path), burst, 6)
    assert cli(*config, '--image', drawing)[0] == 0
    answer = json.loads((folder / 'out/query.json').read_text())
    assert 'fold' not in answer and not any('folded' in hit for hit in answer['hits'])


def test_http(client, burst, searcher, drawing):
    data = drawing.read_bytes()
    plain = list(searcher.search(drawing, 100).cand_path)
    answer = client.post('/search?topk=6&fold=1', content=data).json()
    standing = [hit for hit in answer['hits'] if 'folded' in hit]
    assert len(standing) == 1
    hits = [{'folded': 0, 'copies': [], **hit} for hit in answer['hits']]
    check_folded(hits, plain, burst, 6)
    for copy in standing[0]['copies']:
        assert searcher.index.paths[copy['id']] == copy['cand_path'] and copy['score'] <= 1
    assert not any('folded' in hit for hit in client.get('/search?id=3').json()['hits'])
    assert client.get('/health').json()['folds'] is True
    row = list(searcher.index.paths).index(burst[1])
    for query in (f'like={row}&topk=5', f'id={row}&id=3&topk=5'):
        hits = client.get(f'/search?{query}&fold=1').json()['hits']
        assert len(hits) == 5 and sum(hit.get('folded', 0) for hit in hits) >= 2


def test_right_answers_among_the_copies(client, burst):
    "of an evaluation query: each copy says whether it is one"
    queries = pd.read_csv(burst[0] / 'query_gt.csv')
    shows = client.app.state.site.now.shows
    answers = queries.gt_cand_path[queries.query_path == shows.queries.query_path[0]]
    answer = client.get('/search?query=0&topk=50&fold=1').json()
    copies = [copy for hit in answer['hits'] for copy in hit.get('copies', ())]
    assert copies and all(copy['right'] == (copy['cand_path'] in set(answers)) for copy in copies)


def test_where_it_is_not_possible(burst, searcher, drawing):
    with pytest.raises(InputError, match='only with images_root'):
        load_searcher(burst[0] / 'out').search(drawing, fold=True)
    index = load_searcher(burst[0] / 'out').index
    index.faiss = faiss.IndexIDMap(faiss.IndexFlatIP(index.faiss.d))
    assert not can_fold(index)
    with pytest.raises(InputError, match='cannot be taken out'):
        grouped(searcher.copies, index, np.arange(3))
