"""What can be asked on the search page beyond one whole picture."""

from urllib.parse import parse_qs, urlsplit

import pages
import pytest
from pages import Look, Visit


@pytest.fixture
def phone(browser, served):
    "The search page on a phone"
    visit = Visit(browser, served.url, viewport=pages.PHONE, has_touch=True, is_mobile=True)
    yield visit
    assert not visit.close()


def asked(visit):
    "Parameters of the address: name -> list"
    return parse_qs(urlsplit(visit.page.url).query)


def box_of(visit):
    return [float(number) for number in asked(visit)['box'][0].split(',')]


def rectangle(visit, of):
    box = visit.page.locator(of).bounding_box()
    return box['x'], box['y'], box['width'], box['height']


def place(visit, x, y):
    "Of a point of the picture, in shares, on the screen"
    visit.page.locator('#preview').scroll_into_view_if_needed()
    left, top, width, height = rectangle(visit, '.part-field')
    return left + x * width, top + y * height


def drag(visit, start, end):
    mouse = visit.page.mouse
    mouse.move(*place(visit, *start))
    mouse.down()
    mouse.move(*place(visit, 0.6, 0.6), steps=3)
    mouse.move(*place(visit, *end), steps=3)
    mouse.up()


def shown(visit):
    "Wait for the picture that is searched with"
    visit.page.wait_for_function('() => document.querySelector("#preview").naturalWidth > 0')
    visit.page.locator('.part-field').wait_for()


def from_api(visit, query):
    "Paths of the hits that the API gives to this query"
    answer = visit.page.request.get(f'{visit.url}/search?{query}')
    assert answer.ok, answer.text()
    return [hit['cand_path'] for hit in answer.json()['hits']]


# ---- a part of the picture


def test_a_box_is_drawn_with_the_mouse(visit):
    "and moved, and resized at a corner; each time the part is searched with, as the API does"
    page = visit.page
    visit.answer(lambda: page.goto(f'{visit.url}/?id=3'))
    shown(visit)
    whole = visit.names()
    visit.answer(lambda: drag(visit, (0.2, 0.1), (0.7, 0.8)))
    assert box_of(visit) == pytest.approx([0.2, 0.1, 0.5, 0.7], abs=0.02)
    written = asked(visit)['box'][0]
    assert visit.names() == from_api(visit, f'id=3&topk=10&box={written}') != whole
    visit.answer(lambda: drag(visit, (0.4, 0.4), (0.5, 0.3)))
    assert box_of(visit) == pytest.approx([0.3, 0, 0.5, 0.7], abs=0.02)
    visit.answer(lambda: drag(visit, (0.8, 0.7), (0.6, 0.4)))
    assert box_of(visit) == pytest.approx([0.3, 0, 0.3, 0.4], abs=0.02)
    visit.answer(lambda: page.go_back())
    assert box_of(visit) == pytest.approx([0.3, 0, 0.5, 0.7], abs=0.02)
    visit.answer(lambda: page.get_by_role('button', name='Whole picture').click())
    assert visit.names() == whole and 'box' not in asked(visit)
    assert page.locator('.part-box').is_hidden()


def test_a_click_draws_nothing(visit):
    page = visit.page
    visit.answer(lambda: page.goto(f'{visit.url}/?id=3'))
    shown(visit)
    page.mouse.click(*place(visit, 0.5, 0.5))
    page.wait_for_timeout(100)
    assert 'box' not in asked(visit) and page.locator('.part-box').is_hidden()


def test_a_part_by_keyboard_alone(visit, picture):
    page = visit.page
    visit.answer(lambda: visit.give(picture, 'drop'))
    whole = visit.names()
    page.get_by_role('button', name='Search with a part').press('Enter')
    help = page.locator('#part-help').text_content()
    assert all(key in help for key in ('arrow keys', 'Shift', 'Enter', 'Escape'))
    box = page.get_by_role('application')
    assert box.evaluate('e => e === document.activeElement')
    assert 'Left 25 %, top 25 %, 50 % wide, 50 % high' in box.get_attribute('aria-label')
    for key in ('ArrowLeft', 'ArrowLeft', 'ArrowUp', 'Shift+ArrowRight', 'Shift+ArrowUp'):
        page.keyboard.press(key)
    assert 'Left 21 %, top 23 %, 52 % wide, 48 % high' in box.get_attribute('aria-label')
    assert 'box' not in asked(visit), 'the arrows alone do not search'
    visit.answer(lambda: page.keyboard.press('Enter'))
    assert box_of(visit) == pytest.approx([0.21, 0.23, 0.52, 0.48])
    assert visit.names() != whole and box.evaluate('e => e === document.activeElement')
    for _ in range(60):
        page.keyboard.press('ArrowRight')
    assert 'Left 48 %' in box.get_attribute('aria-label'), 'it stays in the picture'
    visit.answer(lambda: page.keyboard.press('Escape'))
    assert visit.names() == whole and 'box' not in asked(visit)
    assert visit.focused('#part-start') == 0


def test_a_part_with_a_finger(phone):
    "the page does not scroll meanwhile; where no part is being chosen it does"
    page = phone.page
    phone.answer(lambda: page.goto(f'{phone.url}/?id=3'))
    shown(phone)
    touch = page.locator('.part-field').evaluate('e => getComputedStyle(e).touchAction')
    assert touch == 'auto', 'a picture in the way of a scrolling finger'
    page.get_by_role('button', name='Search with a part').tap()
    page.wait_for_timeout(100)
    cdp = phone.context.new_cdp_session(page)

    def finger(kind, *at):
        points = [dict(zip('xy', place(phone, *at)))] if at else []
        cdp.send('Input.dispatchTouchEvent', dict(type=kind, touchPoints=points))

    def draw():
        finger('touchStart', 0.1, 0.05)
        for y in (0.2, 0.5, 0.9):
            finger('touchMove', 0.1 + y / 2, y)
        finger('touchEnd')

    before = page.evaluate('scrollY')
    phone.answer(draw)
    assert page.evaluate('scrollY') == before
    assert box_of(phone) == pytest.approx([0.1, 0.05, 0.45, 0.85], abs=0.03)


def test_a_vector_has_no_parts(visit):
    page = visit.page
    visit.answer(lambda: page.goto(f'{visit.url}/?like=3'))
    assert page.locator('#part').is_hidden()
    drag(visit, (0.2, 0.1), (0.7, 0.8))
    page.wait_for_timeout(100)
    assert 'box' not in asked(visit)


@pytest.mark.parametrize('view', pages.VIEWS)
def test_the_box_fits(browser, served, shots, axe, view):
    name, context = view
    visit = Visit(browser, served.url, **context)
    look = Look(visit, f'query-{name}', shots, axe)
    visit.answer(lambda: visit.page.goto(f'{served.url}/?id=3&box=0.2,0.1,0.5,0.6'))
    shown(visit)
    look('box')
    look.judge()
