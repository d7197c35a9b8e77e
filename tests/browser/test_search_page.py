"""The search page in a real browser, against `--stage serve` on a free port."""

import contextlib
import io
import re

import pages
import pytest
from pages import TOKEN, Look, Visit, matched


def test_drop_a_picture(visit, picture):
    "drop a picture: hits as the API gave them, with scores and time"
    assert (
        visit.page.get_by_role('contentinfo')
        .text_content()
        .startswith('Runs on this machine; pictures stay there')
    )
    a = visit.answer(lambda: setattr(visit, 'kept', visit.give(picture, 'drop')))
    assert visit.kept, (
        'the browser would open a dropped file itself, or the page does not show where to drop'
    )
    assert visit.names() == [h['cand_path'] for h in a['hits']] and len(a['hits']) == 10
    ms = a['latency_ms']['total']
    assert (
        f'10 hits in {ms:.1f} ms' in visit.status()
        or ms >= 10
        and f'10 hits in {ms:.0f} ms' in visit.status()
    ), visit.status()
    for i, h in enumerate(a['hits'], 1):
        b = visit.page.locator('#hits button:not(.like)').nth(i - 1)
        said = b.text_content()
        assert said.startswith(f'Hit {i}score {h["score"]:.3f}'), said
    assert visit.page.get_by_role('img', name='Your picture', exact=True).is_visible()
    tiles = visit.page.locator('#hits img')
    tiles.last.scroll_into_view_if_needed()
    visit.page.wait_for_function(
        '() => [...document.querySelectorAll("#hits img")].every(i => i.complete && i.naturalWidth)'
    )
    visit.page.select_option('#topk', '20')
    visit.page.wait_for_function('() => document.querySelectorAll("#hits .name").length === 20')
    visit.page.evaluate(
        '() => document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: new '
        'DataTransfer(), bubbles: true}))'
    )
    visit.wait('no file')


def test_click_a_hit(visit, picture):
    "click a hit to search with it; back returns to the picture before, forward to the hit"
    first = [h['cand_path'] for h in visit.answer(lambda: visit.give(picture, 'drop'))['hits']]
    name = first[1]
    at = visit.truth.candidates.index(name)
    a = visit.answer(lambda: visit.page.locator('#hits button:not(.like)').nth(1).click())
    assert f'id={at}&v={a["version"]}' in visit.page.url, visit.page.url
    second = visit.names()
    assert second[0] == name
    assert visit.page.get_by_role('img', name='The candidate that was searched with').is_visible()
    for step, want in (('back', first), ('forward', second), ('back', first)):
        getattr(visit.page, f'go_{step}')()
        visit.page.wait_for_function(
            'n => [...document.querySelectorAll("#hits .name")].map(e => '
            'e.textContent).join() === n',
            arg=','.join(want),
        )
    visit.page.go_back()
    visit.page.locator('#results').wait_for(state='hidden')


def test_choose_a_file(visit, picture):
    "choose a file, and the same one again; an address with a hit can be opened anew"

    def pick():
        with visit.page.expect_file_chooser() as c:
            visit.page.locator('#choose').click()
        c.value.set_files({'name': 'photo.png', 'mimeType': 'image/png', 'buffer': picture})

    a = visit.answer(pick)
    b = visit.answer(pick)
    assert a['hits'] == b['hits']
    assert visit.page.locator('#file').input_value() == '', (
        'a browser would not tell of the same file once more'
    )
    visit.page.locator('#hits button:not(.like)').nth(0).click()
    visit.page.wait_for_url('**id=*')
    visit.wait(' ms')
    was = visit.names()
    visit.page.reload()
    visit.wait(' ms')
    assert visit.names() == was


def test_paste_a_picture(visit, picture):
    "paste a picture; pasting text says so"
    visit.give(picture, 'paste')
    visit.wait(' ms')
    assert len(visit.names()) == 10
    visit.page.evaluate(
        '() => document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: new '
        'DataTransfer(), bubbles: true}))'
    )
    visit.wait('no picture in the clipboard')


def test_broken_pictures(visit, picture):
    "a broken, an empty and a too large file give a message in words instead of hits"
    visit.give(picture, 'drop')
    visit.wait(' ms')
    plain = visit.page.evaluate('() => getComputedStyle(document.querySelector("#status")).color')
    visit.give(picture[:100], 'drop')
    visit.wait('not a readable image')
    assert visit.page.locator('#results').is_hidden()
    assert (
        visit.page.evaluate('() => getComputedStyle(document.querySelector("#status")).color')
        != plain
    ), 'looks like any other message'
    visit.give(b'', 'drop')
    visit.wait('empty')
    visit.expected(422, 400)
    visit.page.evaluate(
        '() => { const d = new DataTransfer(); d.items.add(new File([new '
        'Uint8Array(21*2**20)], "big.png", {type: "image/png"}));'
        'document.querySelector("#drop").dispatchEvent(new DragEvent("drop", '
        '{dataTransfer: d, bubbles: true})) }'
    )
    visit.wait('larger than 20 MB')
    visit.give(picture, 'drop')
    visit.wait(' ms')  # and the next one works
    from PIL import Image

    tiff = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert('RGB').save(tiff, 'TIFF')
    visit.give(tiff.getvalue(), 'drop', 'scan.tif', 'image/tiff')
    visit.wait(' ms')  # one that Chromium can't show
    visit.page.locator('#preview').wait_for(state='hidden')


def test_where_matches_end(visit, picture):
    """a line with the threshold stands where the matches end; what comes after is paler, and said
    to be no match
    """
    now = None
    visit.change(lambda a: matched(now)(a))
    for now, line, said in (
        (3, 'No match from here on', '3 of them a match'),
        (0, 'No match', 'none of them a match'),
        (10, None, '10 of them a match'),
        (None, None, None),
    ):
        a = visit.answer(lambda: visit.page.goto(f'{visit.url}/?query=0'))
        least = a.get('threshold')
        want = (
            [f'{h["cand_path"]}' for h in a['hits']]
            if line is None
            else [*visit.names()[:now], f'{line}: scores under {least:.2f}', *visit.names()[now:]]
        )
        have = [
            li.text_content()
            if 'limit' in (li.get_attribute('class') or '')
            else li.locator('.name').text_content()
            for li in visit.page.locator('#hits li').all()
        ]
        assert have == want, have
        assert (said or 'ms') in visit.status() and ('match' in visit.status()) == (
            said is not None
        ), visit.status()
        pale = visit.page.evaluate(
            '() => [...document.querySelectorAll("#hits .tile")].map(t => '
            'getComputedStyle(t).opacity < 1)'
        )
        assert pale == [now is not None and i >= now for i in range(10)], pale
        spoken = [
            re.search(r'(, (no )?match)?\. Search with this picture$', b.text_content()).group(1)
            for b in visit.page.locator('#hits button:not(.like)').all()
        ]
        assert spoken == [
            None if now is None else ', match' if i < now else ', no match' for i in range(10)
        ], spoken


def test_the_same_picture_is_marked(visit, picture):
    """the picture that is searched with is marked as the same picture, and is neither match nor no
    match
    """
    for matches in (1, 0):

        def changed(route):
            r = route.fetch()
            a = r.json()
            hits = a['hits']
            assert hits[0]['same_picture'] and 'match' not in hits[0]
            for i, h in enumerate(hits[1:]):
                h['match'] = i < matches
            route.fulfill(response=r, json=a | {'threshold': 0.5})

        visit.page.route(lambda u: u.startswith(f'{visit.url}/search?id='), changed)
        visit.page.goto(f'{visit.url}/?id=3')
        visit.wait(' ms')
        marks = (
            visit.page.locator(
                '#hits li', has=visit.page.locator('.same', has_text='The same picture')
            )
            .locator('.name')
            .all_text_contents()
        )
        assert marks == [visit.truth.candidates[3]], marks
        assert ('1 of them a match' if matches else 'none of them a match') in visit.status(), (
            visit.status()
        )
        line = visit.page.locator('#hits .limit').text_content()
        assert line.startswith('No match from here on:' if matches else 'No match:'), line
        at = [li.get_attribute('class') or '' for li in visit.page.locator('#hits li').all()].index(
            'limit'
        )
        assert at == 1 + matches
        assert (
            visit.page.locator('#hits button:not(.like)').first.text_content().count('match') == 0
        )
        visit.page.unroute_all()
        visit.page.route('**/*', visit._watch)


def test_browse_queries(visit, picture):
    """browse all queries, successes and failures: the kinds, their counts and their pictures are
    those of per_query.csv
    """

    def strip():
        return [b.get_attribute('title') for b in visit.page.locator('#strip button').all()]

    names = dict(
        all='All',
        found='Found first',
        missed='Not found first',
        gained='Gained by training',
        lost='Lost by training',
    )
    kinds = (
        visit.page.get_by_role('group', name='Which queries')
        .get_by_role('button')
        .all_text_contents()
    )
    assert kinds == [
        f'{n} {len(visit.truth.of(k)):,}' for k, n in names.items() if visit.truth.of(k)
    ], kinds
    for k, n in reversed(names.items()):
        if not (want := visit.truth.of(k)):
            continue
        visit.page.locator('#kinds button').filter(has_text=re.compile(rf'^{n} \d')).click()
        visit.page.wait_for_function(
            'k => document.querySelector("#kinds [aria-pressed=true]")?.textContent.startsWith(k)',
            arg=f'{n} ',
        )
        visit.page.wait_for_function(
            'n => document.querySelectorAll("#strip button").length === n', arg=min(24, len(want))
        )
        assert strip() == want[:24], k
    for _ in range(3):
        if visit.page.locator('#more').is_hidden():
            break
        n = len(strip())
        visit.page.locator('#more').click()
        visit.page.wait_for_function(
            'n => document.querySelectorAll("#strip button").length > n', arg=n
        )
    assert len(visit.truth.queries) > 72 or strip() == visit.truth.of('all')
    i = min(4, len(visit.truth.queries) - 1)
    visit.answer(
        lambda: visit.page.get_by_role(
            'button', name=f'Query {visit.truth.queries[i]["query_path"]}'
        ).click()
    )
    assert f'query={i}&' in visit.page.url, visit.page.url


def test_right_answers_are_marked(visit, picture):
    """right answers are marked with a tick and the word, and no others; those beyond the hits are
    shown beside the query
    """

    def place(r):
        return f'rank {r}' if r else 'not found'

    for i, q in enumerate(visit.truth.queries[:6]):
        visit.answer(lambda: visit.page.goto(f'{visit.url}/?query={i}'))
        answers = visit.truth.right[q['query_path']]
        told = visit.page.locator('#told').text_content()
        assert (
            q['query_path'] in told
            and f'In the evaluation: {place(q["rank"])}; '
            f'before training: {place(q["baseline_rank"])}'
            in told
        ), told
        found = [n for n in visit.names() if n in answers]
        n = len(found)
        said = (
            f'✓ {n} right answer{"s" * (n > 1)} among the hits'
            if n
            else 'No right answer among the hits'
        )
        assert said in told, told
        assert (
            visit.page.locator('#hits li', has=visit.page.locator('.right', has_text='✓ right'))
            .locator('.name')
            .all_text_contents()
            == found
        )
        assert visit.page.locator('#hits li.isright .name').all_text_contents() == found
        beyond = [c for c in answers if c in visit.truth.candidates and c not in found][:5]
        assert [
            b.get_attribute('title') for b in visit.page.locator('#told .answers button').all()
        ] == beyond
        for c in beyond[:1]:
            visit.answer(
                lambda: visit.page.get_by_role(
                    'button', name=f'Right answer {c}. Search with it'
                ).click()
            )
            assert (
                visit.names()[0] == c and f'id={visit.truth.candidates.index(c)}&' in visit.page.url
            )


def test_keyboard(visit, picture):
    """by keyboard: / to choose, Tab into the hits, arrows among them, Enter to search; the skip
    link leads to the hits
    """
    p = visit.page
    p.keyboard.press('Tab')
    skip = p.locator('a.skip')
    assert skip.evaluate('e => e === document.activeElement')
    assert skip.bounding_box()['x'] >= 0, 'the skip link is not to be seen'
    p.keyboard.press('Enter')
    assert visit.focused('#choose') == 0, 'without hits, the skip link leads nowhere'
    p.locator('h1 a').focus()
    p.keyboard.press('/')
    assert visit.focused('#choose') == 0
    visit.give(picture, 'drop')
    visit.wait(' ms')
    p.keyboard.press('Tab')
    assert visit.focused('#hits button:not(.like)') == 0, 'Tab does not lead to the first hit'
    tops = p.evaluate(
        '() => [...document.querySelectorAll("#hits button:not(.like)")].map(b => '
        'b.getBoundingClientRect().top)'
    )
    n = tops.count(tops[0])
    assert 1 < n < 9
    for key, want in (
        ('ArrowRight', 1),
        ('ArrowDown', 1 + n),
        ('ArrowLeft', n),
        ('ArrowUp', 0),
        ('ArrowLeft', 0),
        ('ArrowRight', 1),
    ):
        p.keyboard.press(key)
        at = visit.focused('#hits button:not(.like)')
        assert at == want, f'{key} leads to {at}, not {want}'
    ring = p.evaluate(
        '() => { const s = getComputedStyle(document.activeElement); return '
        '[s.outlineStyle, parseFloat(s.outlineWidth)] }'
    )
    assert ring[0] != 'none' and ring[1] >= 2, f'focus is not visible: {ring}'
    skip.focus()
    was = visit.names()
    p.keyboard.press('Enter')
    p.wait_for_timeout(100)
    assert (
        visit.focused('#results') == 0
        and p.locator('#results').is_visible()
        and visit.names() == was
    ), 'the skip link does not lead to the hits'
    p.locator('#hits button:not(.like)').nth(1).focus()
    name = visit.names()[1]
    p.keyboard.press('Enter')
    p.wait_for_function('n => document.querySelector("#hits .name").textContent === n', arg=name)


def button_of(hits, h):
    "What is proven of a hit stands between its score and its path"
    button = hits.get_by_role('button', name=f'Hit {h["rank"]} score {h["score"]:.3f} ')
    assert button.count() == 1, h
    assert hits.get_by_role('button', name=f' {h["cand_path"]}').count() == 1, h
    return button


def test_screen_reader(visit, picture):
    "a screen reader hears what the eye sees: names of controls and pictures, and the outcome"
    p = visit.page
    paths = [q['query_path'] for q in visit.truth.queries[:3]]
    for q in paths:
        assert (
            p.get_by_role('button', name=f'Query {q}').get_by_role('img', name=f'Query {q}').count()
            == 1
        ), q
    assert (
        p.get_by_role('status').get_attribute('aria-live') == 'polite'
        and p.get_by_role('combobox', name='Hits', exact=True).is_visible()
    )
    a = visit.answer(lambda: visit.give(picture, 'drop'))
    assert p.get_by_role('status').text_content().startswith('10 hits')
    for h in a['hits'][:3]:
        button = button_of(p.get_by_role('region', name='Hits'), h)
        assert 'Search with this picture' in button.text_content()
    for region in ('Your picture', 'Hits', 'Try one of the evaluation queries'):
        assert p.get_by_role('region', name=region, exact=True).count() == 1, region
    p.goto(f'{visit.url}/?query=0')
    p.get_by_role('img', name='The evaluation query', exact=True).wait_for()


def test_late_answers(visit, picture):
    "an answer that comes late is not shown over that of the next search"
    held = []
    visit.page.route(
        lambda u: u.startswith(f'{visit.url}/search?query=0'), lambda r: held.append(r)
    )
    visit.page.locator('#strip button').nth(0).click()
    visit.page.wait_for_timeout(50)
    a = visit.answer(lambda: visit.page.locator('#strip button').nth(1).click())
    assert held, 'the first search was not sent'
    with contextlib.suppress(Exception):
        held[0].continue_()
    visit.page.wait_for_timeout(400)
    assert visit.names() == [h['cand_path'] for h in a['hits']] and 'query=1' in visit.page.url
    assert visit.truth.queries[1]['query_path'] in visit.page.locator('#told').text_content()


def test_reload(visit, picture):
    "a reload keeps the number of hits, and says that a dropped picture has gone"
    visit.give(picture, 'drop')
    visit.wait(' ms')
    visit.page.select_option('#topk', '20')
    visit.page.wait_for_function('() => document.querySelectorAll("#hits .name").length === 20')
    visit.page.reload()
    visit.wait('That picture is no longer here')
    assert (
        visit.page.locator('#topk').input_value() == '20'
        and visit.page.locator('#results').is_hidden()
    )
    visit.page.locator('#home').click()
    visit.page.wait_for_function('() => !document.querySelector("#status").textContent')


def test_replaced_index(visit, picture):
    """an address of an index that has been replaced is refused in words, and so is a server that
    has gone
    """
    visit.page.goto(f'{visit.url}/?id=0&v=another')
    visit.wait('has been replaced')
    assert visit.page.locator('#results').is_hidden()
    visit.page.locator('#preview').wait_for(state='hidden')
    visit.page.wait_for_load_state('networkidle')
    assert set(visit.refused) == {410}, visit.refused
    visit.refused.clear()
    visit.page.route(lambda u: u.startswith(f'{visit.url}/search?'), lambda r: r.abort())
    visit.page.locator('#strip button').first.click()
    visit.wait('The server does not answer')
    assert visit.told('net::ERR_FAILED')


def test_names_are_text(visit, picture):
    "names of pictures may hold anything: they are shown as text"
    evil = '<img src=x onerror=alert(1)><b>&amp;"\'.png'

    def f(a):
        a['hits'][0]['cand_path'] = a['query']['query_path'] = evil
        a['query']['answers'] = [dict(cand_path=evil, id=57)]
        return a

    visit.change(f)
    visit.page.goto(f'{visit.url}/?query=0')
    visit.wait(' ms')
    assert visit.names()[0] == evil and visit.page.locator('#told p').first.text_content() == evil
    assert (
        visit.page.locator('#told .answers button').get_attribute('title') == evil
        and visit.page.locator('b, img[src=x]').count() == 0
    )


OUTSIDE = 'http://127.0.0.9:9'
# Tries what the page never does; the kinds that the policy stopped, after what got through
FORBIDDEN = """async host => {
    const kinds = new Set()
    const element = (tag, o) => Object.assign(document.createElement(tag), o)
    const make = (tag, o) => { const e = element(tag, o); document.body.append(e); return e }
    document.addEventListener('securitypolicyviolation', e => kinds.add(e.effectiveDirective))
    await fetch(host + '/x').catch(() => 0);
    make('img', {src: host + '/x.png'});
    make('script', {textContent: 'globalThis.ran = 1'})
    make('script', {src: host + '/x.js'});
    make('style', {textContent: 'h1 {color: red}'});
    make('link', {rel: 'stylesheet', href: host + '/x.css'})
    make('iframe', {src: host});
    make('video', {src: host + '/x.mp4'});
    make('object', {data: host + '/x'})
    new FontFace('x', `url(${host}/x.woff)`).load().catch(() => 0);
    try { new Worker(host + '/x.js') } catch { kinds.add('worker-src') }
    document.head.append(element('base', {href: host}));
    make('form', {action: host, method: 'post'}).submit()
    for (let n = 0; n < 100 && kinds.size < 11; n++)
        await new Promise(r => setTimeout(r, 50))
    const red = getComputedStyle(document.querySelector('h1')).color === 'rgb(255, 0, 0)'
    return [globalThis.ran, red, ...[...kinds].sort()] }"""


def test_policy(visit, picture):
    "the policy stops what the page would never do: other hosts, inline scripts, frames, forms"
    stopped = visit.page.evaluate(FORBIDDEN, OUTSIDE)
    want = (
        'base-uri connect-src font-src form-action frame-src img-src media-src object-src'.split()
    )
    want += ['script-src-elem', 'style-src-elem', 'worker-src']
    assert stopped == [None, False, *want], stopped
    said = visit.told('console: ')
    assert len(said) >= 10 and not [s for s in said if 'olicy' not in s], said


def test_docs(visit, picture):
    """/docs shows the API, opened and tried out, without a file from another host or a word from
    its policy
    """
    p = visit.page
    p.goto(f'{visit.url}/docs')
    p.locator('.opblock').first.wait_for()
    n = p.locator('.opblock').count()
    assert n >= 7
    for b in p.locator('.opblock-summary-control').all():
        b.click()
    block = p.locator('.opblock', has=p.locator('[data-path="/image/{id}"]'))
    block.locator('.try-out__btn').click()
    block.locator('input[placeholder=id]').fill('0')
    block.locator('.execute').click()
    shown = block.locator('.live-responses-table img')
    shown.wait_for()
    shown.evaluate('i => i.decode()')
    assert p.locator('.opblock.is-open').count() == n


@pytest.mark.parametrize('view', pages.VIEWS)
def test_page_fits(browser, served, picture, shots, axe, view):
    "in every state of the page: it fits, and axe-core finds nothing serious"
    name, context = view
    visit = Visit(browser, served.url, served.truth, **context)
    look = Look(visit, name, shots, axe)
    assert visit.page.locator('#photo').is_visible() == ('phone' in name), 'it is for phones alone'
    look('start')
    visit.give(picture, 'drop')
    visit.wait(' ms')
    look('hits')
    visit.answer(lambda: visit.page.locator('#strip button').first.click())
    look('example')
    visit.change(matched(4))
    visit.page.reload()
    visit.wait('4 of them a match')
    look('no-match')
    visit.page.goto(f'{served.url}/?id=3')
    visit.wait(' ms')
    look('same')
    visit.give(picture[:99], 'drop')
    visit.wait('not a readable')
    visit.expected(422)
    look('broken')
    look.judge()


@pytest.mark.parametrize('view', pages.VIEWS)
def test_token(browser, locked, picture, shots, axe, view):
    "a server with a token: the page asks for it once, says when it is another one, and then works"
    name, context = view
    visit = Visit(browser, locked, wait='#login', **context)
    look = Look(visit, name, shots, axe)
    p = visit.page
    look('login')
    assert p.locator('#ask').is_hidden() and p.locator('#strip button').count() == 0
    assert visit.focused('#token') == 0 and p.get_by_label('This server wants a token').is_visible()
    p.locator('#token').fill('not the token')
    p.keyboard.press('Enter')
    p.locator('#refused', has_text='not the token of this server').wait_for()
    p.locator('#token').fill('another-token')
    p.keyboard.press('Enter')
    p.wait_for_function(
        '() => document.querySelector("#refused").textContent.includes("not the token")'
    )
    look('login-refused')
    p.wait_for_timeout(100)
    visit.expected(401)
    p.locator('#token').fill(TOKEN)
    p.keyboard.press('Enter')
    p.locator('#strip button').first.wait_for()
    assert p.locator('#login').is_hidden()
    visit.answer(lambda: visit.give(picture, 'drop'))
    p.wait_for_function(
        '() => [...document.querySelectorAll("#hits img")].some(i => i.complete && i.naturalWidth)'
    )
    assert TOKEN not in p.evaluate(
        '() => document.cookie + JSON.stringify(sessionStorage) + JSON.stringify(localStorage)'
    )
    p.reload()
    p.locator('#strip button').first.wait_for()
    visit.context.clear_cookies()
    visit.give(picture, 'drop')
    p.locator('#login').wait_for()
    p.wait_for_timeout(300)
    assert set(visit.refused) == {401}
    visit.refused.clear()  # of the search, and of pictures that were still to come
    look.judge()
