"""The page of --stage report: it asks for nothing, fits a phone, and is there for everybody.

As it is, and as it would be with all that a report can hold. Whether its numbers are right is
tested in tests/test_report.py.
"""

import json
import shutil
import warnings
from dataclasses import dataclass

import pytest
from pages import serious

from two_tower_vs.report import report


@dataclass
class Opened:
    """A page, and what it asked for and said."""

    page: object
    asked: list
    said: list


def opened(browser, url, width=1280, scheme='light', **options):
    """Open a page and note its requests, its errors and its words on the console."""
    size = {'width': width, 'height': 900}
    page = browser.new_page(viewport=size, color_scheme=scheme, **options)
    asked = []
    said = []
    page.on('request', lambda request: asked.append(request.url))
    page.on('pageerror', lambda error: said.append(str(error)))
    page.on('console', lambda message: said.append(message.text))
    page.goto(url, wait_until='load')
    others = [address for address in asked if address != url and not address.startswith('data:')]
    return Opened(page, others, said)


def filters(page):
    "What is wrong with the list of queries, where there is one"
    if not page.query_selector('#all'):
        return []
    page.click('#all summary')
    rows = '.rows tbody tr:not([hidden])'
    n = len(page.query_selector_all(rows))
    kinds = page.eval_on_selector_all(
        '.filter option', 'os => os.map(o => o.value).filter(Boolean)'
    )
    page.select_option('.filter select', kinds[-1])
    some = len(page.query_selector_all(rows))
    right = page.eval_on_selector_all(
        rows, '(rs, k) => rs.every(r => r.dataset.kind.split(" ").includes(k))', kinds[-1]
    )
    page.fill('.filter [name=find]', 'no such name at all')
    none = len(page.query_selector_all(rows))
    return (
        []
        if n >= some > 0 == none and right
        else [f'{n} queries, {some} of the kind {kinds[-1]}, {none} of no name']
    )


# Tries what the page never does, and tells which kinds the policy stopped
FORBIDDEN = """async () => {
    const kinds = new Set(), host = 'http://127.0.0.9:9'
    const element = (tag, o) => Object.assign(document.createElement(tag), o)
    const make = (tag, o) => document.body.append(element(tag, o))
    document.addEventListener('securitypolicyviolation', e => kinds.add(e.effectiveDirective))
    await fetch(host).catch(() => 0);
    make('img', {src: host + '/x.png'});
    make('script', {src: host + '/x.js'})
    make('link', {rel: 'stylesheet', href: host + '/x.css'});
    make('iframe', {src: host});
    document.head.append(element('base', {href: host}))
    make('form', {action: host}); document.forms[document.forms.length-1].submit()
    for (let n = 0; n < 100 && kinds.size < 7; n++) await new Promise(r => setTimeout(r, 50))
    return [...kinds] }"""


def stopped(page):
    "What the page's policy does not stop, of what it never does"
    some = page.evaluate(FORBIDDEN)
    return sorted(
        {
            'base-uri',
            'connect-src',
            'form-action',
            'frame-src',
            'img-src',
            'script-src-elem',
            'style-src-elem',
        }
        - set(some)
    )


def full(out, to):
    "The page of a copy of the run, with what it lacks made up: only its looks matter here"
    shutil.copytree(out, to, ignore=shutil.ignore_patterns('cache'))

    def read(n):
        return json.loads((to / n).read_text(encoding='utf-8'))

    m = read('metrics.json')
    x = read('index/manifest.json')
    three = {
        k: m[k] for k in ('trained', 'baseline', 'delta', 'centred', 'delta_centred') if k in m
    }
    cell = m['trained']['mrr']
    # As if training had not been promoted
    m |= dict(
        leak_free=dict(queries=m['queries'] - 3, leaked=3, **three),
        groups={
            g: dict(queries=9, **three)
            for g in ('animals', 'a group with a long name, as they have')
        },
        sizes={'16': m['baseline'], '32': m['trained']},
        match=dict(
            threshold=0.6, wanted_precision=0.9, precision=cell, coverage=cell, refused=cell
        ),
        self_excluded=3,
        intervals=dict(unit='product', clusters=5),
        kept='centred',
    )
    t = dict(
        kind='hnsw',
        factory='HNSW32',
        search=dict(efSearch=48),
        agreement=0.99,
        queries_per_s=41234,
        ms=0.05,
        build_s=1.2,
        mb=731,
        why='',
    )
    x['tried'] = [
        t,
        t | dict(kind=x['kind'], factory=x['factory']),
        t | dict(kind='ivf_pq', factory='IVF64,PQ32,Refine(SQ8)', why='under 0.98'),
        t | dict(agreement=None, ms=None, build_s=None, why='over 1024 MB'),
    ]
    x.pop('sha256', None)  # that of what it said before
    for n, d in (('metrics.json', m), ('index/manifest.json', x)):
        (to / n).write_text(json.dumps(d), encoding='utf-8')
    (to / 'query.json').write_text('{')  # damaged: the page says so at its top
    (to / 'bad_images.csv').write_text(
        'file,row,path,reason\npairs.csv,3,line/a picture that is broken.png,truncated\n',
        encoding='utf-8',
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return report(
            to, out.parent / 'images', out.parent / 'query_gt.csv', out.parent / 'pairs.csv'
        )


def parts(page):
    "Parts that the made-up page should have, and has not"
    have = page.evaluate(
        '[...document.querySelectorAll("h3, caption, th, .note, .verdict, #recall p, '
        '#match b")].map(e => e.textContent).join("; ")'
    )
    return [
        w
        for w in (
            'Without leaked queries',
            'Groups',
            'Shorter vectors',
            'Kinds that were tried',
            'Pictures that were left out',
            'Take care',
            '0.60',
            'for new products like these; 5 of them',
            '3 of ',
            'kept (centred)',
            'Training was not promoted',
            'Held-out pairs that chose nothing',
        )
        if w not in have
    ]


@pytest.fixture(scope='module')
def plain(finished):
    """The address of the page of a small run."""
    file = finished / 'out/report.html'
    assert file.exists()
    return file.as_uri()


@pytest.fixture(scope='module')
def made_up(finished, tmp_path_factory):
    """The address of a page that holds all that a report can hold."""
    return full(finished / 'out', tmp_path_factory.mktemp('report') / 'full').as_uri()


@pytest.fixture(params=['plain', 'made_up'])
def address(request):
    """Both pages."""
    return request.getfixturevalue(request.param)


def test_no_request_and_no_word_leave_the_page(browser, address):
    visit = opened(browser, address)
    assert visit.asked == [] and visit.said == []


def test_the_list_of_queries_is_filtered(browser, plain):
    assert filters(opened(browser, plain).page) == []


def test_the_policy_lets_nothing_else_in(browser, plain):
    assert stopped(opened(browser, plain).page) == []


def test_a_page_with_every_part_has_them(browser, made_up):
    assert parts(opened(browser, made_up).page) == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_axe_finds_nothing_serious(browser, axe, address, scheme):
    if not axe:
        pytest.skip('axe-core is not there: npm is missing or has no network')
    page = opened(browser, address, scheme=scheme).page
    page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    assert serious(page, axe) == []


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1280])
def test_no_horizontal_scroll(browser, address, scheme, width):
    page = opened(browser, address, scheme=scheme).page
    page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
    page.set_viewport_size({'width': width, 'height': 900})
    assert page.evaluate('document.documentElement.scrollWidth') <= width


def test_readable_without_scripts(browser, plain):
    page = opened(browser, plain, java_script_enabled=False).page
    assert page.inner_text('h2') and not page.is_visible('.filter')
