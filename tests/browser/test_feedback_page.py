"""Verdicts on hits, and labelling, on the search page."""

import shutil

import pages
import pandas as pd
import pytest
from pages import VIEWS, Look, Visit

from two_tower_vs.feedback import read_feedback


def copied(project, folder, **train):
    "The project with feedback, and with photos to label"
    shutil.copytree(project, folder)
    config = folder / 'config.yaml'
    truth = pd.read_csv(folder / 'query_gt.csv')
    truth[['query_path']].drop_duplicates().head(8).to_csv(folder / 'queries.csv', index=False)
    config.write_text(config.read_text() + 'serve: {feedback: true}\n')
    return folder


@pytest.fixture
def shop(small_project, tmp_path):
    return copied(small_project, tmp_path / 'shop')


@pytest.fixture
def visit(browser, shop):
    with pages.server(shop / 'config.yaml') as url:
        visit = Visit(browser, url, viewport=pages.DESKTOP)
        yield visit
        assert not visit.close()


def test_right_and_wrong_are_written_down_and_shown_again(visit, shop, picture):
    page = visit.page
    visit.answer(lambda: visit.give(picture, 'drop'))
    names = visit.names()
    hits = page.locator('#hits li:not(.limit)')
    hits.nth(0).get_by_role('button', name='Right').click()
    visit.wait('Written down: 1 right and 0 wrong')
    hits.nth(1).get_by_role('button', name='Wrong').click()
    visit.wait('1 right and 1 wrong')
    found = read_feedback(shop / 'out')
    assert list(found.cand_path) == names[:2]
    assert (shop / 'out' / found.query_picture[0]).read_bytes() == picture
    visit.answer(lambda: page.locator('#topk').select_option('5'))
    assert hits.nth(0).locator('[data-verdict=right]').get_attribute('aria-pressed') == 'true'
    assert hits.nth(1).locator('[data-verdict=wrong]').get_attribute('aria-pressed') == 'true'
    hits.nth(0).get_by_role('button', name='Right').click()
    visit.wait('Taken back: 0 right and 1 wrong')


def test_the_keyboard_alone(visit, shop):
    page = visit.page
    page.locator('#strip button').first.focus()
    visit.answer(lambda: page.keyboard.press('Enter'))
    page.locator('#hits li:not(.limit) button').first.focus()
    page.keyboard.press('w')
    visit.wait('0 right and 1 wrong')
    page.keyboard.press('r')
    visit.wait('1 right and 0 wrong')
    assert list(read_feedback(shop / 'out').verdict) == ['right']


def test_a_question_of_several_pictures_has_no_buttons(visit, picture):
    page = visit.page
    visit.answer(lambda: page.locator('#strip button').first.click())
    assert page.locator('#hits [data-verdict]').count() == 20
    visit.answer(lambda: page.locator('#hits li:not(.limit) .like').first.click())
    assert page.locator('#hits [data-verdict]').count() == 0


def test_without_feedback_there_are_none(browser, served):
    visit = Visit(browser, served.url, viewport=pages.DESKTOP)
    visit.answer(lambda: visit.page.locator('#strip button').first.click())
    assert visit.page.locator('#hits [data-verdict]').count() == 0
    assert not visit.close()


@pytest.fixture
def labelling(browser, shop):
    with pages.server(shop / 'config.yaml', 'label') as url:
        visit = Visit(browser, url, wait='#hits .name', viewport=pages.DESKTOP)
        yield visit
        assert not visit.close()


def test_labelling_goes_from_picture_to_picture(labelling, shop):
    page = labelling.page
    assert page.locator('#label-place').text_content() == 'Picture 1 of 8'
    third = labelling.names()[2]
    page.keyboard.press('3')
    page.locator('#label-place', has_text='Picture 2 of 8').wait_for()
    assert list(read_feedback(shop / 'out').cand_path) == [third]
    page.keyboard.press('s')
    page.locator('#label-place', has_text='Picture 3 of 8').wait_for()
    labelling.wait(' ms')
    page.locator('#label-none').click()
    page.locator('#label-place', has_text='Picture 4 of 8').wait_for()
    found = read_feedback(shop / 'out')
    assert list(found.verdict) == ['right'] + ['wrong'] * 10
    assert page.locator('#label-count').text_content() == '2 judged, 1 right'


def test_labelling_goes_on_where_it_was_left(browser, shop):
    for left in (8, 7):
        with pages.server(shop / 'config.yaml', 'label') as url:
            visit = Visit(browser, url, wait='#hits .name', viewport=pages.DESKTOP)
            assert visit.page.locator('#label-place').text_content() == f'Picture 1 of {left}'
            visit.page.keyboard.press('1')
            visit.page.locator('#label-place', has_text='Picture 2').wait_for()
            assert not visit.close()


@pytest.mark.parametrize('view', VIEWS)
def test_it_fits_and_is_accessible(browser, shop, view, shots, axe):
    name, options = view
    with pages.server(shop / 'config.yaml', 'label') as url:
        visit = Visit(browser, url, wait='#hits .name', **options)
        look = Look(visit, f'label-{name}', shots, axe)
        visit.wait(' ms')
        look('first')
        visit.page.get_by_role('button', name='Wrong').first.click()
        visit.wait('1 wrong')
        look('wrong')
        look.judge()
