"""The map of a catalogue in a real browser, as `Explorer` writes it."""

import math

import pages
import pytest
from pages import Look, MapVisit


@pytest.fixture
def visit(browser, map_file, request):
    "The map in a page of its own; `phone` in the test's marks makes it one"
    phone = request.node.get_closest_marker('phone') is not None
    size = pages.PHONE if phone else pages.DESKTOP
    visit = MapVisit(browser, map_file.as_uri(), viewport=size, has_touch=phone, is_mobile=phone)
    yield visit
    problems = visit.close()
    assert not problems


@pytest.mark.phone
def test_pinch(visit):
    """the map: two fingers zoom, and what is below each of them stays there; one finger drags; a
    tap chooses
    """
    x, y = visit.centre()
    start = [(x - 40, y - 10), (x + 30, y + 20)]
    end = [(x - 130, y - 20), (x + 80, y + 70)]  # not turned: a map stays upright
    was = [visit.place(*p) for p in start]
    before = visit.view()
    visit.fingers(start, end)
    now = [visit.place(*p) for p in end]
    after = visit.view()
    ratio = math.dist(*end) / math.dist(*start)
    assert abs(after['k'] / before['k'] / ratio - 1) < 0.02, (
        f'{after["k"] / before["k"]:.2f} and not {ratio:.2f} times as large'
    )
    slips = [math.dist(a[:2], b[:2]) * b[2] for a, b in zip(was, now)]
    assert max(slips) < 2, f'what lay below the fingers has slipped by {slips} pixels'
    assert after['chosen'] == -1, 'a pinch is no tap'
    visit.fingers(end, start)
    assert visit.view()['k'] < after['k'] / 2, 'closing the fingers does not zoom out'
    was = visit.place(x, y)
    k = visit.view()['k']
    visit.fingers([(x, y)], [(x + 60, y - 40)])
    now = visit.place(x + 60, y - 40)
    assert math.dist(was[:2], now[:2]) * now[2] < 8 and visit.view()['k'] == k, (
        'one finger should drag'
    )
    assert visit.page.evaluate('() => visualViewport.scale') == 1 and visit.view()['chosen'] == -1
    visit.whole()
    # Both on pictures
    first, *others = visit.free()
    a = visit.spot(first)
    b = min((visit.spot(i) for i in others), key=lambda s: math.dist(s, (x, y)))
    visit.fingers([a, b], [a, (b[0] + 2, b[1] + 1)], 1)
    assert visit.view()['chosen'] == -1, 'two fingers are no tap, however still'
    visit.whole()
    visit.choose(first)
    name = visit.read('i => D.names[i]', first)
    visit.page.locator('#panel h2', has_text=name).wait_for()


def test_mouse(visit):
    """the map: the wheel zooms about the pointer, dragging moves it, a click chooses, and what is
    found is told
    """
    x, y = visit.centre()
    x += 50
    visit.page.mouse.move(x, y)
    was = visit.place(x, y)
    k = visit.view()['k']
    visit.page.mouse.wheel(0, -400)
    visit.page.wait_for_function('k => view.k > k', arg=k * 1.5)
    now = visit.place(x, y)
    assert math.dist(was[:2], now[:2]) * now[2] < 1, 'the wheel should zoom about the pointer'
    visit.page.mouse.down()
    visit.page.mouse.move(x + 70, y + 30, steps=5)
    visit.page.mouse.up()
    there = visit.place(x + 70, y + 30)
    assert math.dist(there[:2], was[:2]) * now[2] < 8
    visit.page.locator('#whole').click()
    i = visit.free()[2]
    visit.page.mouse.click(*visit.spot(i))
    assert visit.view()['chosen'] == i
    near = visit.page.evaluate('i => D.near[i].map(j => D.names[j])', i)
    shown = [
        b.get_attribute('title')
        for b in visit.page.locator('#panel ol').first.get_by_role('button').all()
    ]
    score = visit.page.evaluate('i => (D.score[i][0] / 1000).toFixed(2)', i)
    assert visit.page.get_by_role('button', name=f'{near[0]} {score}').count() == 1, (
        'a screen reader hears no name or no score'
    )
    assert shown == near and visit.page.locator('#told').text_content() == visit.page.evaluate(
        'i => D.names[i] + ": candidate"', i
    )


def test_keyboard(visit):
    "the map: by keyboard from picture to picture, find by name, Escape closes"
    p = visit.page
    p.locator('#map').focus()
    p.keyboard.press('ArrowRight')
    first = visit.view()['at']
    assert first >= 0
    at = visit.spot(first)
    p.keyboard.press('ArrowRight')
    second = visit.view()['at']
    assert second != first and visit.spot(second)[0] > at[0]
    p.keyboard.press('Enter')
    assert visit.view()['chosen'] == second
    k = visit.view()['k']
    p.keyboard.press('+')
    assert visit.view()['k'] > k
    p.keyboard.press('Escape')
    assert visit.view()['chosen'] == -1 and p.locator('#hint').is_visible()
    p.keyboard.press('0')
    assert visit.view()['k'] == 1
    name = p.evaluate('() => D.names[3]')
    p.get_by_role('searchbox').or_(p.get_by_role('combobox')).first.fill(name)
    p.keyboard.press('Enter')
    assert visit.view()['chosen'] == 3 and visit.focused('#panel') == 0
    p.locator('#name').fill('no such name')
    p.keyboard.press('Enter')
    assert p.evaluate('() => $("name").validationMessage').startswith('No name')
    assert visit.view()['chosen'] == 3


@pytest.mark.parametrize('view', pages.VIEWS)
def test_map_fits(browser, map_file, shots, axe, view):
    "it fits, and axe-core finds nothing serious"
    name, context = view
    visit = MapVisit(browser, map_file.as_uri(), **context)
    look = Look(visit, f'map-{name}', shots, axe)
    look('start')
    visit.page.evaluate('() => choose(M, true)')
    look('query')
    visit.page.evaluate('() => choose(D.right[0][0], true)')
    look('candidate')
    # The panel scrolls by itself
    high = visit.page.evaluate('() => document.documentElement.scrollHeight')
    if high > context['viewport']['height']:
        look.found.append(f'{high} pixels high, and scrolls into nothing')
    look.judge()
