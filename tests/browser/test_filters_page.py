"""Filters on the search page, and more like a hit."""

import shutil
import subprocess
import sys

import pages
import pandas as pd
import pytest
from pages import Look, Visit


@pytest.fixture(scope='module')
def shop(small_project, tmp_path_factory):
    "A copy of the project whose candidates have attributes"
    folder = tmp_path_factory.mktemp('filters') / 'shop'
    shutil.copytree(small_project, folder)
    table = pd.read_csv(folder / 'candidates.csv')
    table['price'] = range(len(table))
    table['brand'] = [['Acme', "O'Neill"][row % 2] for row in range(len(table))]
    table['tags'] = ['["new","red"]' if row % 3 else '["red"]' for row in range(len(table))]
    table['since'] = [f'2026-01-{1 + row % 28:02}' for row in range(len(table))]
    table['sku'] = [f'S{row:05}' for row in range(len(table))]
    table.to_csv(folder / 'candidates.csv', index=False)
    command = [sys.executable, '-m', 'two_tower_vs', '--config', folder / 'config.yaml']
    subprocess.run([*command, '--stage', 'index'], check=True, capture_output=True)
    return folder, table.set_index('cand_path')


@pytest.fixture(scope='module')
def filtered_server(shop):
    with pages.server(shop[0] / 'config.yaml') as url:
        yield url


@pytest.fixture
def visit(browser, filtered_server):
    visit = Visit(browser, filtered_server, viewport=pages.DESKTOP)
    visit.page.locator('#filters summary').click()
    yield visit
    assert not visit.close()


def prices(visit, table):
    return set(table.price[visit.names()])


def test_chips_and_ranges_write_an_expression(visit, shop, picture):
    _, table = shop
    page = visit.page
    visit.answer(lambda: visit.give(picture, 'drop'))
    visit.answer(lambda: page.locator('#attributes button', has_text="O'Neill").click())
    assert {price % 2 for price in prices(visit, table)} == {1}
    top = page.get_by_label('price to')
    top.fill('20')
    visit.answer(lambda: top.press('Tab'))
    assert prices(visit, table) <= set(range(1, 21, 2))
    written = page.locator('#where-text').input_value()
    assert written == '"brand" in (\'O\'\'Neill\') and "price" <= 20'
    assert 'brand O\'Neill · tags' in page.locator('#hits .facts').first.text_content()
    visit.answer(lambda: page.locator('#attributes button', has_text='new').click())
    assert not any(price % 3 == 0 for price in prices(visit, table))
    visit.answer(lambda: page.locator('#clear').click())
    assert len(visit.names()) == 10 and page.locator('#attributes [aria-pressed=true]').count() == 0


def test_an_address_has_the_filter(visit, shop, browser, filtered_server):
    "another visitor sees the same hits, and a search with a hit keeps the filter"
    _, table = shop
    page = visit.page
    visit.answer(lambda: page.locator('#strip button').first.click())
    page.locator('#where-text').fill('price < 30 and since >= \'2026-01-10\'')
    visit.answer(lambda: page.locator('#filters button', has_text='Search').click())
    assert max(prices(visit, table)) < 30
    second = Visit(browser, page.url, wait='#hits .name', viewport=pages.DESKTOP)
    assert second.names() == visit.names()
    second.context.close()
    visit.answer(lambda: page.locator('#hits button:not(.like)').nth(1).click())
    assert max(prices(visit, table)) < 30 and 'where=' in page.url


def test_a_wrong_filter_says_why(visit):
    page = visit.page
    visit.answer(lambda: page.locator('#strip button').first.click())
    page.locator('#where-text').fill('prise < 30')
    page.locator('#filters button', has_text='Search').click()
    visit.wait('Did you mean price?')
    visit.expected(422)


def test_names_are_no_chips(visit):
    "a column in which nearly every value is another one"
    assert visit.page.get_by_role('group', name='sku').count() == 0
    assert visit.page.get_by_role('group', name='brand').count() == 1


def test_more_like_a_hit(visit, shop, picture):
    page = visit.page
    visit.answer(lambda: visit.give(picture, 'drop'))
    first = visit.names()
    answer = visit.answer(lambda: page.get_by_role('button', name='More like this: hit 2').click())
    assert answer['tower'] == 'candidate' and 'like=' in page.url
    assert first[1] not in visit.names() == [hit['cand_path'] for hit in answer['hits']]
    assert 'the tower of the candidates answers' in page.locator('#told').text_content()
    page.go_back()
    page.wait_for_function(
        'n => document.querySelector("#hits .name").textContent === n', arg=first[0]
    )


@pytest.mark.parametrize('view', pages.VIEWS)
def test_filters_fit(browser, filtered_server, shots, axe, view):
    name, context = view
    visit = Visit(browser, filtered_server, **context)
    look = Look(visit, f'filters-{name}', shots, axe)
    visit.answer(lambda: visit.page.locator('#strip button').first.click())
    visit.page.locator('#filters summary').click()
    visit.answer(lambda: visit.page.locator('#attributes button').first.click())
    look('open')
    look.judge()


def test_a_box_keeps_the_filter(visit, shop):
    page = visit.page
    visit.answer(lambda: page.goto(f'{visit.url}/?id=3&where=price+%3C+30'))
    page.get_by_role('button', name='Search with a part').press('Enter')
    visit.answer(lambda: page.keyboard.press('Enter'))
    assert 'box=' in page.url and max(prices(visit, shop[1])) < 30
    visit.answer(lambda: page.locator('#clear').evaluate('button => button.click()'))
    assert 'box=' in page.url and 'where=' not in page.url
