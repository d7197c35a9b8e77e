"""Hits as pictures in a notebook: what is embedded, escaped, bounded, and still a table."""

import copy
import io
import pickle
import re
import shutil
import tarfile
from base64 import b64decode
from io import BytesIO

import attack
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from two_tower_vs.ask import query
from two_tower_vs.attributes import attributes_of
from two_tower_vs.pictured import Asked, Hits, hits_html
from two_tower_vs.query import load_searcher

IMAGE = re.compile(r'<img alt="([^"]*)" src="data:image/webp;base64,([^"]+)"')


def pictures(page):
    "(what each picture is called, the picture)"
    found = IMAGE.findall(page)
    return [(words, Image.open(BytesIO(b64decode(data)))) for words, data in found]


@pytest.fixture(scope='module')
def place(workshop):
    "A finished project that these tests share"
    return attack.project(workshop, run=True)


@pytest.fixture(scope='module')
def loaded(place):
    return load_searcher(place / 'out', images_root=place / 'images')


@pytest.fixture
def searcher(loaded):
    return copy.copy(loaded)


@pytest.fixture
def drawing(place):
    return sorted((place / 'images/line').glob('*.png'))[0]


def test_a_search_shows_its_query_and_its_hits(searcher, drawing, place):
    hits = searcher.search(drawing, 5)
    shown = pictures(hits._repr_html_())
    assert [words for words, _ in shown] == [
        f'query: {drawing.name}',
        *(f'hit {rank}: {path}' for rank, path in zip(hits['rank'], hits.cand_path)),
    ]
    for (_, small), path in zip(shown[1:], hits.cand_path):
        whole = Image.open(place / 'images' / path).convert('RGBA')
        ground = Image.new('RGBA', whole.size, 'white')
        wanted = Image.alpha_composite(ground, whole).convert('RGB').resize(small.size)
        gap = np.asarray(small.convert('RGB'), float) - np.asarray(wanted, float)
        assert max(small.size) <= 112 and np.abs(gap).mean() < 12
    for score in hits.score:
        assert f': {score:.2f}' in hits._repr_html_()


def test_the_value_is_the_table_it_was(searcher, drawing):
    hits = searcher.search(drawing, 5)
    table = searcher.index.hits(searcher.vectors(searcher.pixels(drawing)[None])[0], 5)
    pd.testing.assert_frame_equal(pd.DataFrame(hits), table)
    assert isinstance(hits, pd.DataFrame) and hits.to_dict('records') == table.to_dict('records')
    for made in (
        hits[hits.score > 0],
        hits.copy(),
        copy.copy(hits),
        pd.concat([hits]),
        hits.head(2),
    ):
        assert type(made) is pd.DataFrame
    again = pickle.loads(pickle.dumps(hits))
    assert again.equals(hits) and again._repr_html_() == hits._repr_html_()


def test_a_table_that_lost_its_columns_is_shown_as_one(searcher, drawing):
    hits = searcher.search(drawing, 3)
    del hits['score']
    assert 'dataframe' in hits._repr_html_() and not pictures(hits._repr_html_())


@pytest.mark.parametrize('form', ['bytes', 'file', 'image', 'array', 'text'])
def test_each_form_of_a_query_is_shown(searcher, drawing, form):
    image = Image.open(drawing).convert('RGB')
    source = {
        'bytes': drawing.read_bytes(),
        'file': io.BytesIO(drawing.read_bytes()),
        'image': image,
        'array': np.asarray(image),
        'text': str(drawing),
    }[form]
    hits = searcher.search(source, 2)
    name = drawing.name if form == 'text' else 'your picture'
    assert [words for words, _ in pictures(hits._repr_html_())][0] == f'query: {name}'
    assert hits.equals(searcher.search(drawing, 2))


def test_what_cannot_be_read_says_so(searcher, drawing, place, tmp_path):
    drawing = shutil.copy(drawing, tmp_path / 'query.png')
    searcher.images_root = shutil.copytree(place / 'images', tmp_path / 'images')
    hits = searcher.search(drawing, 3)
    (searcher.images_root / hits.cand_path[1]).write_bytes(b'no picture')
    page = hits._repr_html_()
    assert page.count('This picture cannot be read') == 1 and len(pictures(page)) == 3
    drawing.unlink()
    page = hits._repr_html_()
    assert page.count('This picture cannot be read') == 2
    assert len(hits) == 3


def test_pictures_are_few(searcher, drawing):
    page = searcher.search(drawing, 30)._repr_html_()
    assert len(pictures(page)) == 13 and 'the first 12 of 30 hits' in page
    assert len(page) < 60_000


def test_every_text_is_escaped(tmp_path):
    bad = '<script>alert(1)</script>"\'&'
    table = pd.DataFrame({'rank': [1], 'cand_path': [bad], 'score': [0.5], bad: [bad]})
    asked = Asked([(f'/{bad}', None)], tmp_path, 0.6, where=bad)
    page = hits_html(table, asked)
    assert '<script' not in page and page.count('&lt;script') >= 4
    assert not re.search(r'alt="[^"]*"[^ >]', page)
    odd = table.assign(cand_path=pd.Series(['caf\udce9.png'], dtype=object))
    hits_html(odd, asked).encode()  # a notebook is UTF-8


def test_a_candidate_in_an_archive_is_shown(tmp_path, drawing):
    with tarfile.open(tmp_path / 'photos.tar', 'w') as archive:
        archive.add(drawing, 'a.png')
    table = pd.DataFrame({'rank': [1], 'cand_path': ['photos.tar/a.png'], 'score': [0.5]})
    shown = pictures(Hits(table, asked=Asked([], tmp_path))._repr_html_())
    assert [words for words, _ in shown] == ['hit 1: photos.tar/a.png']


def test_a_box_is_outlined_in_the_whole_picture(searcher, drawing):
    whole = pictures(searcher.search(drawing, 1)._repr_html_())[0][1]
    page = searcher.search(drawing, 1, box='0.2,0.2,0.5,0.5')._repr_html_()
    part = pictures(page)[0][1]
    assert part.size == whole.size and 'box 0.2,0.2,0.5,0.5' in page

    def green(image):
        red, green, blue = np.asarray(image.convert('RGB'), int).transpose(2, 0, 1)
        return ((green > red + 60) & (green > blue + 60)).sum()

    assert green(part) > green(whole) + 20


def test_where_and_no_hits_are_named(searcher, drawing):
    paths = searcher.index.paths
    table = pd.DataFrame({'cand_path': list(paths), 'price': range(len(paths))})
    searcher.index = copy.copy(searcher.index)
    searcher.index.attributes = attributes_of(table, paths)
    page = searcher.search(drawing, 3, where='price < 0')._repr_html_()
    assert 'no hits' in page and 'where price &lt; 0' in page
    hits = searcher.search(drawing, 3, where='price < 9')
    assert 'where price &lt; 9' in hits._repr_html_()
    for price in hits.price:
        assert f'price: {price}' in hits._repr_html_()


def test_hits_below_the_threshold_are_pale(searcher, drawing):
    hits = searcher.search(drawing, 5)
    searcher.threshold = (hits.score[1] + hits.score[2]) / 2
    page = searcher.search(drawing, 5)._repr_html_()
    assert page.count('opacity:0.4') == 3 == page.count(', no match')
    assert page.index(', no match') > page.index('<b>3</b>')


def test_without_the_folder_it_says_how_to_see_pictures(searcher, drawing):
    searcher.images_root = None
    page = searcher.search(drawing, 2)._repr_html_()
    assert 'load_searcher(out, images_root=…)' in page and len(pictures(page)) == 1


def test_more_like_and_together(searcher, drawing):
    path = searcher.index.paths[3]
    shown = pictures(searcher.more_like(path, 2)._repr_html_())
    assert shown[0][0] == f'query: {path.split("/")[-1]}' and len(shown) == 3
    hits = searcher.search_together([drawing, (drawing, (0, 0, 1, 0.5))], 2, less=[drawing])
    words = [words.split(':')[0] for words, _ in pictures(hits._repr_html_())]
    assert words == ['query', 'query', 'less like', 'hit 1', 'hit 2']


def test_answers_to_several_pictures(searcher, place):
    answers = query(searcher, [place / 'images/line'], topk=2, runs=1, box='0,0,1,0.5')
    page = answers._repr_html_()
    assert len(pictures(page)) == 8 * 3 and f'the first 8 of {len(answers.hits)} pictures' in page
    assert page.count('box 0,0,1,0.5') == 8
    assert isinstance(answers.hits, dict) and answers.json()['box'] == '0,0,1,0.5'
