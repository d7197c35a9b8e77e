"""The map and the search box: odd vectors, odd names, missing packages, what a press shows."""

import json
import re
import sys
import types

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from two_tower_vs.errors import InputError
from two_tower_vs.explore import (
    Explorer,
    catalogue_map,
    draw_rows,
    has_kernel,
    layout,
    packed_sheet,
    show_training,
    thumb_tile,
    to_grid,
)
from two_tower_vs.query import load_searcher
from two_tower_vs.searchbox import search_widget
from two_tower_vs.vectors import Embeddings

pytest.importorskip('sklearn')


def unit(n, d=16, seed=0):
    "Unit vectors (n, d) drawn at random"
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def named(vectors, start='c'):
    return Embeddings(vectors, [f'{start}{i}.png' for i in range(len(vectors))])


def best_rank(queries, candidates, i, j):
    "The rank of candidate j for query i, counted in plain NumPy"
    scores = candidates.vectors @ queries.vectors[i]
    return 1 + (scores > scores[j] + 1e-6).sum()


@pytest.fixture(scope='module')
def model():
    "(queries, candidates, which answers which): query i is near candidate i"
    candidates = named(unit(60))
    noisy = candidates.vectors[:30] + 1.5 * unit(30, seed=1)
    queries = named(noisy / np.linalg.norm(noisy, axis=1, keepdims=True), 'q')
    truth = pd.DataFrame({'query_path': queries.paths, 'gt_cand_path': candidates.paths[:30]})
    return queries, candidates, truth


@pytest.fixture
def kernel(monkeypatch):
    "As if a notebook's kernel ran this"
    ipython = types.ModuleType('IPython')
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)
    monkeypatch.setitem(sys.modules, 'IPython', ipython)


# Places


@pytest.mark.parametrize('n', [0, 1, 2, 3, 7, 8, 9])
def test_few_vectors_have_places(n):
    places = layout(unit(n))
    assert places.shape == (n, 2)
    assert np.isfinite(places).all()
    if n == 1:
        assert places.tolist() == [[0.5, 0.5]]
    if n > 1:
        assert places.min() >= 0
        assert np.ptp(places) == 1


def test_equal_vectors_and_vectors_of_one_number_have_places():
    assert np.isfinite(layout(np.repeat(unit(1), 12, 0))).all()
    assert layout(unit(9)[:, :1]).shape == (9, 2)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    with pytest.raises(InputError, match='A map needs scikit-learn, which is not installed'):
        layout(unit(9))


@pytest.mark.parametrize('places', [unit(287, 2), np.zeros((7, 2)), unit(1, 2)])
def test_no_cell_is_taken_twice(places):
    assert len({tuple(cell) for cell in to_grid(places, 20)}) == len(places)


def test_no_places_need_no_cells():
    assert to_grid(np.zeros((0, 2)), 3).shape == (0, 2)


# Thumbnails


def test_what_cannot_be_read_is_a_cross(tmp_path):
    (tmp_path / 'broken.png').write_bytes(b'no picture')
    for name in ('broken.png', 'gone.png'):
        tile, is_read = thumb_tile(tmp_path / name, 48)
        assert not is_read
        assert tile.getpixel((24, 24))[3] > 0
        assert tile.getpixel((2, 2))[3] == 0


def test_a_wide_picture_lies_in_the_middle(tmp_path):
    Image.new('RGB', (80, 20), 'red').save(tmp_path / 'wide.png')
    tile, is_read = thumb_tile(tmp_path / 'wide.png', 48)
    assert is_read
    assert tile.getpixel((24, 24)) == (255, 0, 0, 255)
    assert tile.getpixel((2, 2))[3] == 0


def test_a_draw_repeats_and_takes_all_of_few():
    assert draw_rows(5, 9, 0).tolist() == list(range(5))
    assert draw_rows(5000, 99, 0).tolist() == draw_rows(5000, 99, 0).tolist()
    assert draw_rows(5000, 99, 0).tolist() != draw_rows(5000, 99, 1).tolist()


def test_a_sheet_of_noise_fits_with_smaller_tiles():
    noise = np.random.default_rng(0).integers(0, 255, (64 * 20, 64 * 25, 3), dtype=np.uint8)
    sheet = Image.fromarray(noise)
    packed, side = packed_sheet(sheet, 25, 300_000)
    assert len(packed) < 300_000
    assert side < 64
    assert packed_sheet(sheet.crop((0, 0, 640, 640)), 10, 1_200_000)[1] == 64


# The still pictures


def test_a_map_is_small_and_repeats(ran):
    paths = sorted(path.name for path in (ran / 'images/color').iterdir())
    candidates = Embeddings(unit(len(paths)), paths)
    still = catalogue_map(candidates, ran / 'images/color')
    assert len(still._repr_png_()) < 30_000
    assert still.tobytes() == catalogue_map(candidates, ran / 'images/color').tobytes()


def test_a_map_of_one_missing_picture_has_a_tile(tmp_path):
    image = catalogue_map(named(unit(1)), tmp_path, colors=0)
    assert image.getpixel((1, 1)) == (241, 243, 246)
    assert image.getpixel((12, 12)) != (241, 243, 246)


@pytest.mark.parametrize('make', [catalogue_map, Explorer])
def test_no_candidates_are_refused(make, tmp_path):
    with pytest.raises(InputError, match='no candidates'):
        make(named(unit(0)), tmp_path)


@pytest.fixture
def titles(monkeypatch):
    "What the halves of a before-and-after were titled; no picture is drawn"
    found = []

    def note(fig, **options):
        found.extend(ax.get_title() for ax in fig.axes)

    monkeypatch.setattr('two_tower_vs.explore.picture', note)
    return found


def test_titles_count_ranks_in_the_whole_catalogue(model, titles, tmp_path):
    queries, candidates, truth = model
    before = named(unit(30, seed=5), 'q'), candidates
    show_training(before, (queries, candidates), truth, tmp_path, pairs=12, others=20)
    rows = [int(path[1:-4]) for path in truth.query_path.iloc[draw_rows(30, 12, 42)]]
    for title, (q, c) in zip(titles, (before, (queries, candidates)), strict=True):
        ranks = np.array([best_rank(q, c, i, i) for i in rows])
        assert f'{(ranks == 1).sum()} of 12 find' in title
        assert f'median rank {np.median(ranks):g}' in title


def test_one_pair_without_a_picture_is_drawn(model, titles, tmp_path):
    queries, candidates, truth = model
    show_training((queries, candidates), (queries, candidates), truth.head(1), tmp_path, others=0)
    assert '1 of 1 find' in titles[0]


# The page


def page_data(page):
    return json.loads(page.split('id="data">')[1].split('</script>')[0])


def test_names_reach_the_page_as_data(tmp_path):
    evil = [
        '</script><script>alert(1)</script>.png',
        '<img src=x onerror=alert(1)>&"\'.png',
        'ü\u2028\n.png',
        '/*js*/',
        'a\udcff.png',
        r'\1\g<0>.png',
    ]
    explorer = Explorer(Embeddings(unit(6), evil), tmp_path)
    page = explorer.html()
    assert page.count('<script') == page.count('</script>') == 2
    assert page_data(page)['names'] == evil
    assert page_data(page)['missing'] == list(range(6))
    saved = explorer.save(tmp_path / 'odd.html').read_text(encoding='utf-8')
    assert page_data(saved)['names'][:3] == evil[:3]


def test_the_page_loads_nothing_from_elsewhere(model, tmp_path):
    page = Explorer(model[1], tmp_path).html()
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?!data:)[a-z/]', page.split('id="data">')[0])
    assert 'innerHTML' not in page
    assert 'insertAdjacentHTML' not in page
    assert "default-src 'none'" in page


def test_the_page_repeats_and_no_picture_covers_another(model, tmp_path):
    queries, candidates, truth = model
    explorer = Explorer(candidates, tmp_path, queries, truth, most=40, most_queries=9)
    again = Explorer(candidates, tmp_path, queries, truth, most=40, most_queries=9)
    assert explorer.data == again.data
    places = np.c_[explorer.data['x'], explorer.data['y']]
    gaps = np.abs(places[:, None] - places).max(2) + np.eye(len(places))
    assert gaps.min() >= explorer.data['cell']


def test_ranks_on_the_page_count_the_whole_catalogue(model, tmp_path):
    queries, candidates, truth = model
    data = Explorer(candidates, tmp_path, queries, truth, most=40, most_queries=9).data
    asked = [int(name[1:-4]) for name in data['names'][40:]]
    assert len(asked) == 9
    assert 1 in data['rank']
    assert max(data['rank']) > 1
    for i, right, rank in zip(asked, data['right'], data['rank'], strict=True):
        assert [data['names'][row] for row in right] == [f'c{i}.png']
        assert rank == best_rank(queries, candidates, i, i)


def test_an_answer_that_is_no_candidate_counts_for_nothing(model, tmp_path):
    queries, candidates, truth = model
    nowhere = truth.assign(gt_cand_path='nowhere.png')
    data = Explorer(candidates, tmp_path, queries, nowhere).data
    assert data['words'] == '60 candidates'
    both = pd.concat([truth.head(3), nowhere.head(3)])
    data = Explorer(candidates, tmp_path, queries, both).data
    assert [len(right) for right in data['right']] == [1, 1, 1]
    assert min(data['rank']) > 0


def test_a_candidate_is_not_its_own_neighbour(tmp_path):
    assert Explorer(named(unit(1)), tmp_path).data['near'] == [[]]
    equal = Explorer(named(np.repeat(unit(1), 12, 0)), tmp_path).data['near']
    for i, near in enumerate(equal):
        assert i not in near
        assert len(set(near)) == 8


def test_a_frame_shows_the_saved_file_or_the_page(model, tmp_path, kernel, monkeypatch):
    explorer = Explorer(model[1], tmp_path)
    assert has_kernel()
    assert explorer._repr_png_() is None
    assert 'srcdoc="&lt;!doctype' in explorer._repr_html_()
    monkeypatch.chdir(tmp_path)
    explorer.save(tmp_path / 'a map.html')
    assert 'src="a%20map.html"' in explorer._repr_html_()
    assert len(explorer._repr_html_()) < 300


def test_without_a_kernel_a_still_picture_is_shown(model, tmp_path):
    explorer = Explorer(model[1], tmp_path)
    assert explorer._repr_html_() is None
    assert explorer._repr_png_().startswith(b'\x89PNG')


# The search box


@pytest.fixture
def truth(ran):
    return pd.read_csv(ran / 'query_gt.csv')


@pytest.fixture
def box(ran, truth):
    pytest.importorskip('ipywidgets')
    searcher = load_searcher(ran / 'out')
    searcher.threshold = None
    return search_widget(searcher, ran / 'images', truth)


def words(widget):
    "The text of a widget and of its children, without tags"
    value = getattr(widget, 'value', '')
    texts = [value] if isinstance(value, str) else []
    texts += [words(child) for child in getattr(widget, 'children', ())]
    return re.sub('<[^>]+>', '', ' '.join(texts)).strip()


def upload(box, name, data):
    box.upload.value = (
        {
            'name': name,
            'type': 'image/png',
            'size': len(data),
            'content': memoryview(data),
            'last_modified': pd.Timestamp(0, tz='UTC').to_pydatetime(),
        },
    )


def test_a_press_shows_the_hits_and_marks_the_right_ones(box, ran):
    assert box.hits.children == ()
    box.buttons[0].click()
    hits = box.searcher.search(ran / 'images' / box.examples[0], 8)
    tiles = box.hits.children[1:]  # after the query
    for tile, hit in zip(tiles, hits.itertuples(), strict=True):
        is_right = hit.cand_path in box.right[box.examples[0]]
        assert hit.cand_path in words(tile)
        assert f'{hit.score:.2f}' in words(tile)
        assert ('✓ right' in words(tile)) == is_right


def test_an_upload_is_searched_with(box, ran):
    upload(box, 'mine.png', (ran / 'images' / box.examples[0]).read_bytes())
    assert box.message.value == 'mine.png: 8 hits'


def test_an_upload_that_is_no_picture_is_refused_and_its_name_escaped(box):
    box.buttons[0].click()
    upload(box, '<b>notes.txt', b'no picture')
    start = '&lt;b&gt;notes.txt cannot be searched with: not an image'
    assert box.message.value.startswith(start)
    assert box.hits.children == ()


def test_a_line_separates_matches_from_the_rest(box, ran):
    hits = box.searcher.search(ran / 'images' / box.examples[0], 8)
    box.searcher.threshold = float(hits.score[2])
    box.buttons[0].click()
    assert len(box.hits.children) == 10
    assert words(box.hits.children[4]) == f'no match: below {box.searcher.threshold:.2f}'


def test_no_match_is_said_in_a_sentence(box):
    box.searcher.threshold = 2
    box.buttons[0].click()
    assert ': no match, since the best hit scores' in box.message.value
    assert len(box.hits.children) == 9


def test_a_box_shows_a_picture_where_no_kernel_runs(box, ran):
    image = box._repr_mimebundle_()['image/png']
    assert image.startswith(b'\x89PNG')
    assert len(image) < 30_000
    empty = search_widget(box.searcher, ran / 'images')
    assert empty.buttons == []
    assert list(empty._repr_mimebundle_()) == ['text/plain']


def test_a_box_is_a_widget_where_a_kernel_runs(box, kernel):
    assert 'application/vnd.jupyter.widget-view+json' in box._repr_mimebundle_()


def test_a_box_without_ipywidgets_is_refused(box, ran, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    with pytest.raises(InputError, match='The search box needs ipywidgets'):
        search_widget(box.searcher, ran / 'images')
