"""The function of the serving tutorial that asks with `fetch`, in a browser."""

import base64
import sys
from pathlib import Path

import pytest
from pages import TOKEN

from two_tower_vs.query import load_searcher

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from test_examples import examples

ASK = """async ([url, token, picture, params]) => {
  const bytes = Uint8Array.from(atob(picture), letter => letter.charCodeAt(0))
  const search = eval('(' + %r + ')')
  return await search(url, token, new Blob([bytes]), params)
}"""


def test_the_function_of_the_tutorial(browser, locked, small_project):
    function = examples('js')[0]
    drawing = sorted((small_project / 'images/line').glob('*.png'))[0]
    data = base64.b64encode(drawing.read_bytes()).decode()
    address = locked.rstrip('/')
    page = browser.new_page()
    page.goto(locked)
    for params in ({}, {'box': '0,0,0.6,1'}):
        asked = [address, TOKEN, data, {'topk': 5, **params}]
        hits = page.evaluate(ASK % function.strip(), asked)
        wanted = load_searcher(small_project / 'out').search(drawing, 5, **params)
        assert [hit['cand_path'] for hit in hits] == list(wanted.cand_path)
        assert [hit['score'] for hit in hits] == pytest.approx(list(wanted.score), abs=1e-4)
    with pytest.raises(Exception, match='token'):
        page.evaluate(ASK % function.strip(), [address, 'x' * 20, data, {}])
    page.close()
