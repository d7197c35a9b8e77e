"""Hits of a search as a notebook shows them, in a real browser."""

import pytest
from pages import DESKTOP, PHONE

from two_tower_vs.query import load_searcher


@pytest.mark.parametrize('size', [DESKTOP, PHONE], ids=['desktop', 'phone'])
def test_hits_in_a_notebook(browser, finished, shots, size):
    "Every picture is shown, the query at the left of the hits; nothing is asked of any host"
    searcher = load_searcher(finished / 'out', images_root=finished / 'images')
    drawing = sorted((finished / 'images/line').glob('*.png'))[0]
    hits = searcher.search(drawing, 8, box='0,0,1,0.6')
    page = browser.new_page(viewport=size)
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.set_content(f'<meta charset="utf-8">{hits._repr_html_()}', wait_until='load')
    if shots:
        page.screenshot(path=f'{shots}/notebook_hits_{size["width"]}.png')
    boxes = page.eval_on_selector_all(
        'img', 'is => is.map(i => [i.naturalWidth, i.getBoundingClientRect().left])'
    )
    wide = page.evaluate('document.documentElement.scrollWidth - innerWidth')
    page.close()
    assert len(boxes) == 9 and all(width > 0 for width, _ in boxes)
    assert boxes[0][1] < min(left for _, left in boxes[1:])
    assert wide <= 0, f'{wide} pixels too wide'
    assert all(address.startswith('data:') for address in asked)
