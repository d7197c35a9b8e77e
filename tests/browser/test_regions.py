"""The part that a hit shares with the picture: outlined on both, and in words."""

import io

import numpy as np
import pages
import pytest
from pages import Look, Visit
from PIL import Image, ImageOps

# Corners on the screen, and what they should be from the API's fractions: the picture is fitted
# into its tile, which has a border of 5 %
CORNERS = """(outline) => {
    const img = outline.parentNode.querySelector('img'), b = img.getBoundingClientRect()
    const inner = 0.9 * b.width, scale = inner / Math.max(img.naturalWidth, img.naturalHeight)
    const line = outline.querySelector('polygon'), to = line.getScreenCTM()
    const at = p => { const q = p.matrixTransform(to); return [q.x, q.y] }
    const size = [img.naturalWidth * scale, img.naturalHeight * scale]
    return {drawn: [...line.points].map(at), size,
            start: [b.x + (b.width - size[0]) / 2, b.y + (b.height - size[1]) / 2]}
}"""


@pytest.fixture(scope='module')
def collage(small_project):
    "A wide picture, and the candidate that is mirrored in its right half: that with most details"
    from two_tower_vs.keypoints import keypoints

    root = small_project / 'images'
    rows = pages.rows(small_project / 'out/index/candidates.csv')
    images = {row['cand_path']: Image.open(root / row['cand_path']).convert('RGB') for row in rows}
    path = max(images, key=lambda path: len(keypoints(np.asarray(images[path]))))
    canvas = Image.new('RGB', (200, 100), '#f0f0f0')
    canvas.paste(ImageOps.mirror(images[path]), (120, 20))
    file = io.BytesIO()
    canvas.save(file, 'PNG')
    return file.getvalue(), path


def is_drawn(outline, corners):
    "Do the corners lie on the picture where the API says?"
    outline.scroll_into_view_if_needed()
    outline.page.wait_for_function(
        '() => [...document.querySelectorAll(".outline polygon")].every(p => p.points.length === 4)'
    )
    found = outline.evaluate(CORNERS)
    wanted = np.array(found['start']) + np.array(corners) * found['size']
    np.testing.assert_allclose(found['drawn'], wanted, atol=1.5)


def test_the_region_is_outlined_on_both_pictures_and_said(browser, verifying, served, collage):
    visit = Visit(browser, verifying, served.truth, viewport=pages.DESKTOP)
    data, path = collage
    answer = visit.answer(lambda: visit.give(data, 'drop'))
    best = answer['hits'][0]
    copies = [hit for hit in answer['hits'] if 'region' in hit]
    assert best['cand_path'] == path and best in copies
    page = visit.page
    assert f', {len(copies)} with the same details' in visit.status()
    # Both pictures
    is_drawn(page.locator('#frame .outline'), best['region']['query'])
    is_drawn(page.locator('#hits li').first.locator('.outline'), best['region']['candidate'])
    assert page.locator('#hits .outline').count() == len(copies)
    line = page.locator('#hits .outline polygon').last
    assert line.evaluate('e => getComputedStyle(e).stroke') == 'rgb(0, 200, 83)'
    # In words, as part of the button's name; the outline itself is nothing for a screen reader
    words = f'{best["inliers"]} details agree: the right part of your picture is '
    name = f'Hit 1 score {best["score"]:.3f} {words}the middle part of this one, mirrored {path}'
    said = page.locator('#hits button:not(.like)').first.text_content()
    assert page.get_by_role('button', name=name).count() == 1, said
    assert page.locator('.outline:not([aria-hidden=true])').count() == 0
    assert page.locator('#shared').text_content() == 'Outlined: what it shares with hit 1'
    problems = visit.close()
    assert not problems


REGION = [[0.1, 0.1], [0.4, 0.1], [0.4, 0.5], [0.1, 0.5]]


def two_copies(answer):
    "The answer, with outlines on its first hit and its third"
    shared = {'query': REGION, 'candidate': REGION, 'mirrored': False}
    answer['hits'][2] |= {'region': shared, 'inliers': 7}
    whole = [[0, 0.05], [1, 0.05], [1, 0.9], [0, 0.9]]
    shared = {'query': REGION[::-1], 'candidate': whole, 'mirrored': False}
    answer['hits'][0] |= {'region': shared, 'inliers': 9}
    return answer


def test_the_outline_follows_the_keyboard_and_the_pointer(browser, verifying, served, collage):
    visit = Visit(browser, verifying, served.truth, viewport=pages.DESKTOP)
    visit.change(two_copies)
    page = visit.page
    page.locator('#strip button').first.click()
    visit.wait(' ms')
    shared = page.locator('#shared')
    assert shared.text_content() == 'Outlined: what it shares with hit 1'
    is_drawn(page.locator('#frame .outline'), REGION[::-1])
    page.locator('#hits button:not(.like)').nth(1).focus()
    page.keyboard.press('ArrowRight')
    assert visit.focused('#hits button:not(.like)') == 2
    assert shared.text_content() == 'Outlined: what it shares with hit 3'
    is_drawn(page.locator('#frame .outline'), REGION)
    assert page.locator('#frame .outline').count() == 1
    assert 'the upper left part of the query is the upper left part of this one' in (
        page.locator('#hits button:not(.like)').nth(2).text_content()
    )
    first = page.locator('#hits button:not(.like)').first
    assert 'the upper left part of the query is nearly all of this one' in first.text_content()
    first.hover()
    assert shared.text_content() == 'Outlined: what it shares with hit 1'
    assert not visit.close()


def test_another_picture_has_no_outline(browser, verifying, served, collage):
    visit = Visit(browser, verifying, served.truth, viewport=pages.DESKTOP)
    visit.change(two_copies)
    page = visit.page
    page.goto(f'{visit.url}/?id=0')
    visit.wait(' ms')
    page.evaluate('() => document.querySelector("#home").click()')
    assert page.locator('#frame .outline').count() == 0 or page.locator('#query').is_hidden()
    assert not visit.close()


@pytest.mark.parametrize('view', pages.VIEWS)
def test_outlines_fit(browser, verifying, served, collage, shots, axe, view):
    "with outlines too, the page fits, and axe-core finds nothing serious"
    name, context = view
    visit = Visit(browser, verifying, served.truth, **context)
    look = Look(visit, name, shots, axe)
    visit.answer(lambda: visit.give(collage[0], 'drop'))
    look('regions')
    look.judge()
