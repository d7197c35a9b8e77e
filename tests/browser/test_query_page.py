"""What can be asked on the search page beyond one whole picture."""

import shutil
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import pages
import pandas as pd
import pytest
from pages import Look, Visit
from PIL import Image


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


# ---- several pictures at once, and less like others


def of_api(visit, query, **files):
    "Paths of the hits to a form"
    form = {}
    for name, data in files.items():
        form[name] = dict(name='p.png', mimeType='image/png', buffer=data)
    answer = visit.page.request.post(f'{visit.url}/search?{query}', multipart=form)
    assert answer.ok, answer.text()
    return [hit['cand_path'] for hit in answer.json()['hits']]


def add(visit, data, name='second.png'):
    with visit.page.expect_file_chooser() as chooser:
        visit.page.get_by_role('button', name='Add another picture').click()
    file = dict(name=name, mimeType='image/png', buffer=data)
    return visit.answer(lambda: chooser.value.set_files(file))


def second_picture(visit):
    return visit.page.request.get(f'{visit.url}/query/1').body()


def test_another_picture_joins_or_repels(visit, picture):
    "an uploaded one: both are one query; less like it; without it all is as before"
    page = visit.page
    visit.answer(lambda: visit.give(picture, 'drop'))
    alone = visit.names()
    second = second_picture(visit)
    answer = add(visit, second)
    assert answer['asked'] == {'pictures': 2, 'less': 0, 'weight': 0.5}
    both = visit.names()
    assert both != alone and 'Also like second.png' in page.locator('#mixed').text_content()
    answer = visit.answer(lambda: page.get_by_role('button', name='Less like it').click())
    assert answer['asked'] == {'pictures': 1, 'less': 1, 'weight': 0.5}
    assert visit.names() == of_api(visit, 'topk=10&fold=1', image=picture, less=second)
    assert 'Less like second.png' in page.locator('#mixed').text_content()
    visit.answer(lambda: page.get_by_role('button', name='Remove').click())
    assert visit.names() == alone and page.locator('#mixed').is_hidden()
    visit.answer(lambda: [page.go_back(), page.go_back()][0])
    page.wait_for_function(
        'n => [...document.querySelectorAll("#hits .name")].map(e => e.textContent).join() === n',
        arg=','.join(both),
    )


def test_a_picture_joins_a_candidate_with_a_box(visit, picture):
    "the box stays that of the first picture; a reload says that the uploaded one is gone"
    page = visit.page
    visit.answer(lambda: page.goto(f'{visit.url}/?id=3&box=0.1,0.1,0.6,0.6'))
    add(visit, picture)
    query = 'id=3&box=0.1,0.1,0.6,0.6&topk=10&fold=1'
    assert visit.names() == of_api(visit, query, image=picture)
    page.reload()
    visit.wait('That picture is no longer here')


def test_less_like_a_hit(visit, picture):
    "by keyboard: it is in the address, can be removed, and a search with a hit begins anew"
    page = visit.page
    answer = visit.answer(lambda: visit.give(picture, 'drop'))
    first = answer['hits'][0]
    less = page.locator('#hits li').first.get_by_role('button', name='Less like this: hit 1')
    visit.answer(lambda: less.press('Enter'))
    assert asked(visit)['less'] == [str(first['id'])]
    query = f'less={first["id"]}&topk=10&fold=1'
    assert visit.names() == of_api(visit, query, image=picture) and visit.names()[0] != first
    assert f'Less like {first["cand_path"]}' in page.locator('#mixed').text_content()
    visit.answer(lambda: page.get_by_role('button', name='Remove').press('Enter'))
    assert 'less' not in asked(visit)
    assert visit.names() == [hit['cand_path'] for hit in answer['hits']]
    visit.answer(lambda: page.get_by_role('button', name='More like this: hit 2').click())
    assert page.get_by_role('button', name='Add another picture').is_hidden()
    visit.answer(
        lambda: page.get_by_role('button', name='Less like this: hit 1', exact=True).click()
    )
    at = asked(visit)
    query = f'like={at["like"][0]}&less={at["less"][0]}&topk=10&fold=1'
    assert visit.names() == from_api(visit, query)
    visit.answer(lambda: page.locator('#hits li').first.get_by_role('button').first.click())
    assert not {'like', 'less', 'box'} & asked(visit).keys()


# ---- near copies


@pytest.fixture(scope='module')
def burst(small_project, tmp_path_factory):
    "The address of a server in whose catalogue one emoji is there four times, and its number"
    folder = tmp_path_factory.mktemp('burst') / 'project'
    shutil.copytree(small_project, folder)
    table = pd.read_csv(folder / 'candidates.csv')
    first = 'color/1F9A3.png'
    image = Image.open(folder / 'images' / first).convert('RGB')
    names = [f'color/again{size}.png' for size in (62, 60, 58)]
    for name, size in zip(names, (62, 60, 58)):
        image.resize((size, size)).save(folder / 'images' / name)
    more = pd.DataFrame({'cand_path': names})
    pd.concat([table[['cand_path']], more]).to_csv(folder / 'candidates.csv', index=False)
    command = [sys.executable, '-m', 'two_tower_vs', '--config', folder / 'config.yaml']
    subprocess.run([*command, '--stage', 'index'], check=True, capture_output=True)
    with pages.server(folder / 'config.yaml') as url:
        yield url, list(table.cand_path).index(first), names


@pytest.fixture
def folding(browser, burst):
    visit = Visit(browser, burst[0], viewport=pages.DESKTOP)
    yield visit, *burst[1:]
    assert not visit.close()


def test_near_copies_are_folded(folding):
    "with a count that opens; the switch turns it off, and stays off after a reload"
    visit, number, names = folding
    page = visit.page
    answer = visit.answer(lambda: page.goto(f'{visit.url}/?like={number}'))
    (standing,) = [hit for hit in answer['hits'] if 'folded' in hit]
    paths = {standing['cand_path'], *(copy['cand_path'] for copy in standing['copies'])}
    assert paths == set(names) and '2 near copies folded into them' in visit.status()
    assert len(visit.names()) == 10 and len(paths & set(visit.names())) == 1
    count = page.get_by_role('button', name='+ 2 near copies')
    assert count.get_attribute('aria-expanded') == 'false' and page.locator('.copies').is_hidden()
    count.press('Enter')
    assert count.get_attribute('aria-expanded') == 'true'
    opened = page.get_by_role('button', name='Near copy')
    assert opened.count() == 2
    switch = page.get_by_role('checkbox', name='Fold near copies')
    visit.answer(lambda: switch.press('Space'))
    assert paths <= set(visit.names()) and page.locator('.copies').count() == 0
    visit.answer(lambda: page.reload())
    assert not switch.is_checked() and paths <= set(visit.names())
    visit.answer(lambda: switch.click())
    page.get_by_role('button', name='+ 2 near copies').click()
    copy = standing['copies'][0]
    visit.answer(lambda: opened.first.click())
    assert f'id={copy["id"]}&' in page.url


# ---- the searches of this visit, and links

STORED = 'JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])'


def test_searches_of_this_visit(visit, picture):
    "each once, the newest first; a click brings one back with its picture, box and filter"
    page = visit.page
    visit.answer(lambda: visit.give(picture, 'drop', name='mine.png'))
    assert page.locator('#past').is_hidden(), 'there is nothing to go back to'
    dropped = visit.names()
    visit.answer(lambda: page.locator('#strip button').nth(1).click())
    visit.answer(
        lambda: page.get_by_role('button', name='More like this: hit 1', exact=True).click()
    )
    liked = visit.names()
    words = page.locator('#past-list .name').all_text_contents()
    assert len(words) == 3 and words[2] == 'mine.png' and words[0].startswith('More like color/')
    assert page.locator('#past-list [aria-current]').count() == 1
    visit.answer(lambda: page.locator('#past-list button').nth(2).press('Enter'))
    assert visit.names() == dropped and page.locator('#preview').get_attribute('src')[:5] == 'blob:'
    assert page.locator('#past-list .name').all_text_contents()[0] == 'mine.png'
    visit.answer(lambda: page.locator('#past-list button').nth(1).click())
    assert visit.names() == liked and page.locator('#past-list button').count() == 3
    page.locator('#home').click()
    page.locator('#results').wait_for(state='hidden')
    assert page.locator('#past').is_visible() and 'mine.png' not in page.evaluate(STORED)
    page.reload()
    page.locator('#strip button').first.wait_for()
    assert page.locator('#past-list button').count() == 0


def test_a_link_brings_a_search_back(visit, browser, picture):
    "for another visitor, with all of it; of an upload there is none, and the page says so"
    page = visit.page
    visit.answer(lambda: page.goto(f'{visit.url}/?id=3&box=0.1,0.1,0.8,0.8'))
    visit.answer(lambda: page.get_by_role('button', name='Less like this: hit 2').click())
    visit.answer(lambda: page.select_option('#topk', '20'))
    visit.answer(lambda: page.locator('#fold').click())
    visit.context.grant_permissions(['clipboard-read', 'clipboard-write'])
    page.get_by_role('button', name='Copy a link').click()
    page.locator('#copied', has_text='The link is copied').wait_for()
    link = page.evaluate('navigator.clipboard.readText()')
    second = Visit(browser, link, wait='#hits .name', viewport=pages.DESKTOP)
    second.url = visit.url
    second.wait(' ms')
    assert second.names() == visit.names() and len(second.names()) == 20
    assert not second.page.locator('#fold').is_checked() and 'topk' not in asked(second)
    second.context.close()
    visit.answer(lambda: visit.give(picture, 'drop'))
    assert page.get_by_role('button', name='Copy a link').is_hidden()
    assert page.get_by_text('A link cannot carry an uploaded picture').is_visible()


@pytest.mark.parametrize('view', pages.VIEWS)
def test_questions_fit(browser, burst, picture, shots, axe, view):
    name, context = view
    visit = Visit(browser, burst[0], **context)
    page = visit.page
    look = Look(visit, f'query-{name}', shots, axe)
    visit.answer(lambda: page.goto(f'{visit.url}/?like={burst[1]}'))
    page.get_by_role('button', name='+ 2 near copies').click()
    look('folded')
    visit.answer(lambda: visit.give(picture, 'drop', name='a photo.png'))
    add(visit, second_picture(visit))
    visit.answer(lambda: page.get_by_role('button', name='Less like this: hit 3').click())
    look('mixed')
    page.locator('#home').click()
    page.locator('#results').wait_for(state='hidden')
    look('past')
    look.judge()
