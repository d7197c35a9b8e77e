"""The search page and the map in a real browser: Debian's Chromium, driven by Playwright, against `--stage serve`
on a free port, and against a map as `Explorer` writes it.

    python .ci/browser.py                 # on a small catalogue made for it
    python .ci/browser.py --project DIR   # on one that is there: DIR/config.yaml, after --stage all
    python .ci/browser.py --shots DIR     # and leave screenshots there

Prints a line for each test; exit status 1 if one failed. Needs Chromium; axe-core comes from npm, once.
"""

import argparse
import base64
import contextlib
import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'nbs/attacks')]
FLAGS = [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
]
PHONE = dict(width=390, height=844)
DESKTOP = dict(width=1280, height=900)
TESTS = []
MAP_TESTS = []


def test(f):
    TESTS.append(f)
    return f


def map_test(f):
    MAP_TESTS.append(f)
    return f


@contextlib.contextmanager
def server(config):  # its address
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    p = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'two_tower_vs',
            '--config',
            str(config),
            '--stage',
            'serve',
            '--port',
            '0',
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        line = p.stdout.readline()
        if not (m := re.search(r'http://\S+', line)):
            raise RuntimeError(f'the server did not start: {line}')
        yield m[0]
    finally:
        p.send_signal(signal.SIGTERM)
        p.wait(30)
    if p.returncode:
        raise RuntimeError(f'the server ended with status {p.returncode}')


def axe_file():  # axe-core's script, or None where npm is missing
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'two_tower_vs'
    file = cache / 'node_modules/axe-core/axe.min.js'
    if not file.exists():
        if not shutil.which('npm'):
            return None
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ['npm', 'install', '--prefix', cache, '--no-audit', '--no-fund', 'axe-core@4'],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            print(f'axe-core can not be fetched: {done.stderr[-200:]}')
    return file if file.exists() else None


def rows(file):
    with open(file, encoding='utf-8', newline='') as f:
        return list(csv.DictReader(f))


class Truth:
    "What the page should show of the evaluation, read from the run's own files by other means than the server's"

    def __init__(self, project):
        import yaml

        d = yaml.safe_load((project / 'config.yaml').read_text())
        out = project / d.get('out', 'out')
        self.queries = rows(out / 'per_query.csv')
        self.right = {}
        self.candidates = [r['cand_path'] for r in rows(out / 'index/candidates.csv')]
        for r in rows(project / d['data']['query_gt']):
            self.right.setdefault(r['query_path'], []).append(r['gt_cand_path'])

    def of(self, kind):  # paths of the queries of a kind
        is_ = dict(
            all=lambda q: True,
            found=lambda q: q['rank'] == '1',
            missed=lambda q: q['rank'] != '1',
            gained=lambda q: q['change'] == 'gained',
            lost=lambda q: q['change'] == 'lost',
        )[kind]
        return [q['query_path'] for q in self.queries if is_(q)]


class Visit:
    "A page in a browser context of its own, with what went wrong on it"

    def __init__(self, browser, url, truth=None, wait='#strip button', **context):
        self.url = url
        self.truth = truth
        self.problems = []
        self.refused = []
        self.context = browser.new_context(**context)
        self.page = p = self.context.new_page()
        p.set_default_timeout(10_000)
        p.on('console', lambda m: m.type in ('error', 'warning') and self._said(m.text))
        p.on('pageerror', lambda e: self.problems.append(f'script: {e}'))
        p.on('response', self._answered)
        p.route('**/*', self._watch)
        p.goto(url)
        p.locator(wait).first.wait_for()

    def _said(self, text):
        if 'Failed to load resource: the server responded' not in text:
            self.problems.append(f'console: {text}')  # see `refused`

    def _answered(self, r):
        if r.status >= 400:
            self.refused.append(r.status)
        if r.url.startswith(self.url) and not (
            r.headers.get('x-content-type-options') == 'nosniff'
            and {"default-src 'none'", "frame-ancestors 'none'"}
            <= set(r.headers.get('content-security-policy', '').split('; '))
        ):
            self.problems.append(f'no policy: {r.url}')

    def _watch(self, route):
        if not route.request.url.startswith((self.url, 'blob:', 'data:')):
            self.problems.append(f'another host: {route.request.url}')
        route.continue_()

    def wait(self, text):
        self.page.wait_for_function(
            't => document.querySelector("#status").textContent.includes(t)', arg=text
        )

    def status(self):
        return self.page.locator('#status').text_content()

    def names(self):
        return self.page.locator('#hits .name').all_text_contents()

    def focused(self, of):
        return self.page.evaluate(
            's => [...document.querySelectorAll(s)].indexOf(document.activeElement)', of
        )

    def answer(self, do):  # what the API says to the search that `do` begins
        with self.page.expect_response(lambda r: '/search?' in r.url) as r:
            do()
        a = r.value.json()
        self.wait(' ms')
        return a

    def change(self, f):  # searches by address get answers that `f` has changed
        def answer(route):
            r = route.fetch()
            route.fulfill(response=r, json=f(r.json()))

        self.page.route(lambda u: u.startswith(f'{self.url}/search?query='), answer)

    def expected(self, *statuses):  # refusals that this test wanted, each once
        self.page.wait_for_timeout(50)
        assert self.refused == list(statuses), f'refused: {self.refused}'
        self.refused.clear()

    def told(self, of):  # and what it wanted the console to say
        mine = [p for p in self.problems if of in p]
        self.problems[:] = [p for p in self.problems if of not in p]
        return mine

    def give(self, data, how, name='photo.png', kind='image/png'):
        "Drop or paste a file; was the browser's own way with it prevented?"
        return self.page.evaluate(
            """([b64, how, name, type]) => {
            const d = new DataTransfer(); d.items.add(new File([Uint8Array.from(atob(b64), c => c.charCodeAt(0))], name, {type}))
            const at = document.querySelector('#drop'), drag = k => new DragEvent(k, {dataTransfer: d, bubbles: true, cancelable: true})
            if (how === 'paste') return !at.dispatchEvent(new ClipboardEvent('paste', {clipboardData: d, bubbles: true, cancelable: true}))
            at.dispatchEvent(drag('dragenter')); const lit = document.body.classList.contains('over')
            return !at.dispatchEvent(drag('dragover')) & !at.dispatchEvent(drag('drop')) & lit & !document.body.classList.contains('over')
            }""",
            [base64.b64encode(data).decode(), how, name, kind],
        )

    def close(self):
        self.context.close()
        return self.problems + ([f'answers with status {self.refused}'] if self.refused else [])


@test
def drop(v, pic):
    "drop a picture: hits as the API gave them, with scores and time"
    assert (
        v.page.get_by_role('contentinfo')
        .text_content()
        .startswith('Runs on this machine; pictures stay there')
    )
    a = v.answer(lambda: setattr(v, 'kept', v.give(pic, 'drop')))
    assert v.kept, (
        'the browser would open a dropped file itself, or the page does not show where to drop'
    )
    assert v.names() == [h['cand_path'] for h in a['hits']] and len(a['hits']) == 10
    ms = a['latency_ms']['total']
    assert (
        f'10 hits in {ms:.1f} ms' in v.status()
        or ms >= 10
        and f'10 hits in {ms:.0f} ms' in v.status()
    ), v.status()
    for i, h in enumerate(a['hits'], 1):
        b = v.page.locator('#hits button').nth(i - 1)
        said = b.text_content()
        assert said.startswith(f'Hit {i}score {h["score"]:.3f}'), said
    assert v.page.get_by_role('img', name='Your picture', exact=True).is_visible()
    tiles = v.page.locator('#hits img')
    tiles.last.scroll_into_view_if_needed()
    v.page.wait_for_function(
        '() => [...document.querySelectorAll("#hits img")].every(i => i.complete && i.naturalWidth)'
    )
    v.page.select_option('#topk', '20')
    v.page.wait_for_function('() => document.querySelectorAll("#hits .name").length === 20')
    v.page.evaluate(
        '() => document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: new DataTransfer(), bubbles: true}))'
    )
    v.wait('no file')


@test
def click(v, pic):
    "click a hit to search with it; back returns to the picture before, forward to the hit"
    first = [h['cand_path'] for h in v.answer(lambda: v.give(pic, 'drop'))['hits']]
    name = first[1]
    at = v.truth.candidates.index(name)
    a = v.answer(lambda: v.page.locator('#hits button').nth(1).click())
    assert f'id={at}&v={a["version"]}' in v.page.url, v.page.url
    second = v.names()
    assert second[0] == name
    assert v.page.get_by_role('img', name='The candidate that was searched with').is_visible()
    for step, want in (('back', first), ('forward', second), ('back', first)):
        getattr(v.page, f'go_{step}')()
        v.page.wait_for_function(
            'n => [...document.querySelectorAll("#hits .name")].map(e => e.textContent).join() === n',
            arg=','.join(want),
        )
    v.page.go_back()
    v.page.locator('#results').wait_for(state='hidden')


@test
def choose(v, pic):
    "choose a file, and the same one again; an address with a hit can be opened anew"

    def pick():
        with v.page.expect_file_chooser() as c:
            v.page.locator('#choose').click()
        c.value.set_files({'name': 'photo.png', 'mimeType': 'image/png', 'buffer': pic})

    a = v.answer(pick)
    b = v.answer(pick)
    assert a['hits'] == b['hits']
    assert v.page.locator('#file').input_value() == '', (
        'a browser would not tell of the same file once more'
    )
    v.page.locator('#hits button').nth(0).click()
    v.page.wait_for_url('**id=*')
    v.wait(' ms')
    was = v.names()
    v.page.reload()
    v.wait(' ms')
    assert v.names() == was


@test
def paste(v, pic):
    "paste a picture; pasting text says so"
    v.give(pic, 'paste')
    v.wait(' ms')
    assert len(v.names()) == 10
    v.page.evaluate(
        '() => document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: new DataTransfer(), bubbles: true}))'
    )
    v.wait('no picture in the clipboard')


@test
def broken(v, pic):
    "a broken, an empty and a too large file give a message in words instead of hits"
    v.give(pic, 'drop')
    v.wait(' ms')
    plain = v.page.evaluate('() => getComputedStyle(document.querySelector("#status")).color')
    v.give(pic[:100], 'drop')
    v.wait('not a readable image')
    assert v.page.locator('#results').is_hidden()
    assert (
        v.page.evaluate('() => getComputedStyle(document.querySelector("#status")).color') != plain
    ), 'looks like any other message'
    v.give(b'', 'drop')
    v.wait('empty')
    v.expected(422, 400)
    v.page.evaluate(
        '() => { const d = new DataTransfer(); d.items.add(new File([new Uint8Array(21*2**20)], "big.png", {type: "image/png"}));'
        'document.querySelector("#drop").dispatchEvent(new DragEvent("drop", {dataTransfer: d, bubbles: true})) }'
    )
    v.wait('larger than 20 MB')
    v.give(pic, 'drop')
    v.wait(' ms')  # and the next one works
    from PIL import Image

    tiff = io.BytesIO()
    Image.open(io.BytesIO(pic)).convert('RGB').save(tiff, 'TIFF')
    v.give(tiff.getvalue(), 'drop', 'scan.tif', 'image/tiff')
    v.wait(' ms')  # one that Chromium can't show
    v.page.locator('#preview').wait_for(state='hidden')


def matched(n):  # an answer with n matches; None: where no threshold is known
    def f(a):
        for i, h in enumerate(a['hits']):
            h.pop('match', 0)
            n is None or h.update(match=i < n)
        a.pop('threshold', 0)
        edges = [2, *(h['score'] for h in a['hits']), -1]
        return a if n is None else a | {'threshold': (edges[n] + edges[n + 1]) / 2}

    return f


@test
def no_match(v, pic):
    "a line with the threshold stands where the matches end; what comes after is paler, and said to be no match"
    now = None
    v.change(lambda a: matched(now)(a))
    for now, line, said in (
        (3, 'No match from here on', '3 of them a match'),
        (0, 'No match', 'none of them a match'),
        (10, None, '10 of them a match'),
        (None, None, None),
    ):
        a = v.answer(lambda: v.page.goto(f'{v.url}/?query=0'))
        least = a.get('threshold')
        want = (
            [f'{h["cand_path"]}' for h in a['hits']]
            if line is None
            else [*v.names()[:now], f'{line}: scores under {least:.2f}', *v.names()[now:]]
        )
        have = [
            li.text_content()
            if 'limit' in (li.get_attribute('class') or '')
            else li.locator('.name').text_content()
            for li in v.page.locator('#hits li').all()
        ]
        assert have == want, have
        assert (said or 'ms') in v.status() and ('match' in v.status()) == (said is not None), (
            v.status()
        )
        pale = v.page.evaluate(
            '() => [...document.querySelectorAll("#hits .tile")].map(t => getComputedStyle(t).opacity < 1)'
        )
        assert pale == [now is not None and i >= now for i in range(10)], pale
        spoken = [
            re.search(r'(, (no )?match)?\. Search with this picture$', b.text_content()).group(1)
            for b in v.page.locator('#hits button').all()
        ]
        assert spoken == [
            None if now is None else ', match' if i < now else ', no match' for i in range(10)
        ], spoken


@test
def same(v, pic):
    "the picture that is searched with is marked as the same picture, and is neither match nor no match"
    for matches in (1, 0):

        def changed(route):
            r = route.fetch()
            a = r.json()
            hits = a['hits']
            assert hits[0]['same_picture'] and 'match' not in hits[0]
            for i, h in enumerate(hits[1:]):
                h['match'] = i < matches
            route.fulfill(response=r, json=a | {'threshold': 0.5})

        v.page.route(lambda u: u.startswith(f'{v.url}/search?id='), changed)
        v.page.goto(f'{v.url}/?id=3')
        v.wait(' ms')
        marks = (
            v.page.locator('#hits li', has=v.page.locator('.same', has_text='The same picture'))
            .locator('.name')
            .all_text_contents()
        )
        assert marks == [v.truth.candidates[3]], marks
        assert ('1 of them a match' if matches else 'none of them a match') in v.status(), (
            v.status()
        )
        line = v.page.locator('#hits .limit').text_content()
        assert line.startswith('No match from here on:' if matches else 'No match:'), line
        at = [li.get_attribute('class') or '' for li in v.page.locator('#hits li').all()].index(
            'limit'
        )
        assert at == 1 + matches
        assert v.page.locator('#hits button').first.text_content().count('match') == 0
        v.page.unroute_all()
        v.page.route('**/*', v._watch)


@test
def examples(v, pic):
    "browse all queries, successes and failures: the kinds, their counts and their pictures are those of per_query.csv"

    def strip():
        return [b.get_attribute('title') for b in v.page.locator('#strip button').all()]

    names = dict(
        all='All',
        found='Found first',
        missed='Not found first',
        gained='Gained by training',
        lost='Lost by training',
    )
    kinds = (
        v.page.get_by_role('group', name='Which queries').get_by_role('button').all_text_contents()
    )
    assert kinds == [f'{n} {len(v.truth.of(k)):,}' for k, n in names.items() if v.truth.of(k)], (
        kinds
    )
    for k, n in reversed(names.items()):
        if not (want := v.truth.of(k)):
            continue
        v.page.locator('#kinds button').filter(has_text=re.compile(rf'^{n} \d')).click()
        v.page.wait_for_function(
            'k => document.querySelector("#kinds [aria-pressed=true]")?.textContent.startsWith(k)',
            arg=f'{n} ',
        )
        v.page.wait_for_function(
            'n => document.querySelectorAll("#strip button").length === n', arg=min(24, len(want))
        )
        assert strip() == want[:24], k
    for _ in range(3):
        if v.page.locator('#more').is_hidden():
            break
        n = len(strip())
        v.page.locator('#more').click()
        v.page.wait_for_function(
            'n => document.querySelectorAll("#strip button").length > n', arg=n
        )
    assert len(v.truth.queries) > 72 or strip() == v.truth.of('all')
    i = min(4, len(v.truth.queries) - 1)
    v.answer(
        lambda: v.page.get_by_role(
            'button', name=f'Query {v.truth.queries[i]["query_path"]}'
        ).click()
    )
    assert f'query={i}&' in v.page.url, v.page.url


@test
def right(v, pic):
    "right answers are marked with a tick and the word, and no others; those beyond the hits are shown beside the query"

    def place(r):
        return f'rank {r}' if r else 'not found'

    for i, q in enumerate(v.truth.queries[:6]):
        v.answer(lambda: v.page.goto(f'{v.url}/?query={i}'))
        answers = v.truth.right[q['query_path']]
        told = v.page.locator('#told').text_content()
        assert (
            q['query_path'] in told
            and f'In the evaluation: {place(q["rank"])}; before training: {place(q["baseline_rank"])}'
            in told
        ), told
        found = [n for n in v.names() if n in answers]
        n = len(found)
        said = (
            f'✓ {n} right answer{"s" * (n > 1)} among the hits'
            if n
            else 'No right answer among the hits'
        )
        assert said in told, told
        assert (
            v.page.locator('#hits li', has=v.page.locator('.right', has_text='✓ right'))
            .locator('.name')
            .all_text_contents()
            == found
        )
        assert v.page.locator('#hits li.isright .name').all_text_contents() == found
        beyond = [c for c in answers if c in v.truth.candidates and c not in found][:5]
        assert [
            b.get_attribute('title') for b in v.page.locator('#told .answers button').all()
        ] == beyond
        for c in beyond[:1]:
            v.answer(
                lambda: v.page.get_by_role(
                    'button', name=f'Right answer {c}. Search with it'
                ).click()
            )
            assert v.names()[0] == c and f'id={v.truth.candidates.index(c)}&' in v.page.url


@test
def keyboard(v, pic):
    "by keyboard: / to choose, Tab into the hits, arrows among them, Enter to search; the skip link leads to the hits"
    p = v.page
    p.keyboard.press('Tab')
    skip = p.locator('a.skip')
    assert skip.evaluate('e => e === document.activeElement')
    assert skip.bounding_box()['x'] >= 0, 'the skip link is not to be seen'
    p.keyboard.press('Enter')
    assert v.focused('#choose') == 0, 'without hits, the skip link leads nowhere'
    p.locator('h1 a').focus()
    p.keyboard.press('/')
    assert v.focused('#choose') == 0
    v.give(pic, 'drop')
    v.wait(' ms')
    p.keyboard.press('Tab')
    assert v.focused('#hits button') == 0, 'Tab does not lead to the first hit'
    tops = p.evaluate(
        '() => [...document.querySelectorAll("#hits button")].map(b => b.getBoundingClientRect().top)'
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
        at = v.focused('#hits button')
        assert at == want, f'{key} leads to {at}, not {want}'
    ring = p.evaluate(
        '() => { const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)] }'
    )
    assert ring[0] != 'none' and ring[1] >= 2, f'focus is not visible: {ring}'
    skip.focus()
    was = v.names()
    p.keyboard.press('Enter')
    p.wait_for_timeout(100)
    assert v.focused('#results') == 0 and p.locator('#results').is_visible() and v.names() == was, (
        'the skip link does not lead to the hits'
    )
    p.locator('#hits button').nth(1).focus()
    name = v.names()[1]
    p.keyboard.press('Enter')
    p.wait_for_function('n => document.querySelector("#hits .name").textContent === n', arg=name)


@test
def spoken(v, pic):
    "a screen reader hears what the eye sees: names of controls and pictures, and the outcome when it comes"
    p = v.page
    paths = [q['query_path'] for q in v.truth.queries[:3]]
    for q in paths:
        assert (
            p.get_by_role('button', name=f'Query {q}').get_by_role('img', name=f'Query {q}').count()
            == 1
        ), q
    assert (
        p.get_by_role('status').get_attribute('aria-live') == 'polite'
        and p.get_by_role('combobox', name='Hits', exact=True).is_visible()
    )
    a = v.answer(lambda: v.give(pic, 'drop'))
    assert p.get_by_role('status').text_content().startswith('10 hits')
    for h in a['hits'][:3]:
        name = f'Hit {h["rank"]} score {h["score"]:.3f} {h["cand_path"]}'
        assert p.get_by_role('region', name='Hits').get_by_role('button', name=name).count() == 1, (
            name
        )
        assert 'Search with this picture' in p.get_by_role('button', name=name).text_content()
    for region in ('Your picture', 'Hits', 'Try one of the evaluation queries'):
        assert p.get_by_role('region', name=region, exact=True).count() == 1, region
    p.goto(f'{v.url}/?query=0')
    p.get_by_role('img', name='The evaluation query', exact=True).wait_for()


@test
def overtaken(v, pic):
    "an answer that comes late is not shown over that of the next search"
    held = []
    v.page.route(lambda u: u.startswith(f'{v.url}/search?query=0'), lambda r: held.append(r))
    v.page.locator('#strip button').nth(0).click()
    v.page.wait_for_timeout(50)
    a = v.answer(lambda: v.page.locator('#strip button').nth(1).click())
    assert held, 'the first search was not sent'
    with contextlib.suppress(Exception):
        held[0].continue_()
    v.page.wait_for_timeout(400)
    assert v.names() == [h['cand_path'] for h in a['hits']] and 'query=1' in v.page.url
    assert v.truth.queries[1]['query_path'] in v.page.locator('#told').text_content()


@test
def kept(v, pic):
    "a reload keeps the number of hits, and says that a dropped picture has gone"
    v.give(pic, 'drop')
    v.wait(' ms')
    v.page.select_option('#topk', '20')
    v.page.wait_for_function('() => document.querySelectorAll("#hits .name").length === 20')
    v.page.reload()
    v.wait('That picture is no longer here')
    assert v.page.locator('#topk').input_value() == '20' and v.page.locator('#results').is_hidden()
    v.page.locator('#home').click()
    v.page.wait_for_function('() => !document.querySelector("#status").textContent')


@test
def stale(v, pic):
    "an address of an index that has been replaced is refused in words, and so is a server that has gone"
    v.page.goto(f'{v.url}/?id=0&v=another')
    v.wait('has been replaced')
    assert v.page.locator('#results').is_hidden()
    v.page.locator('#preview').wait_for(state='hidden')
    v.page.wait_for_load_state('networkidle')
    assert set(v.refused) == {410}, v.refused
    v.refused.clear()
    v.page.route(lambda u: u.startswith(f'{v.url}/search?'), lambda r: r.abort())
    v.page.locator('#strip button').first.click()
    v.wait('The server does not answer')
    assert v.told('net::ERR_FAILED')


@test
def names_are_text(v, pic):
    "names of pictures may hold anything: they are shown as text"
    evil = '<img src=x onerror=alert(1)><b>&amp;"\'.png'

    def f(a):
        a['hits'][0]['cand_path'] = a['query']['query_path'] = evil
        a['query']['answers'] = [dict(cand_path=evil, id=57)]
        return a

    v.change(f)
    v.page.goto(f'{v.url}/?query=0')
    v.wait(' ms')
    assert v.names()[0] == evil and v.page.locator('#told p').first.text_content() == evil
    assert (
        v.page.locator('#told .answers button').get_attribute('title') == evil
        and v.page.locator('b, img[src=x]').count() == 0
    )


OUTSIDE = 'http://127.0.0.9:9'


@test
def policy(v, pic):
    "the policy stops what the page would never do: other hosts, inline scripts and styles, frames, forms"
    stopped = v.page.evaluate(
        """async host => {
        const kinds = new Set(), make = (tag, o) => { const e = Object.assign(document.createElement(tag), o); document.body.append(e); return e }
        document.addEventListener('securitypolicyviolation', e => kinds.add(e.effectiveDirective))
        await fetch(host + '/x').catch(() => 0); make('img', {src: host + '/x.png'}); make('script', {textContent: 'globalThis.ran = 1'})
        make('script', {src: host + '/x.js'}); make('style', {textContent: 'h1 {color: red}'}); make('link', {rel: 'stylesheet', href: host + '/x.css'})
        make('iframe', {src: host}); make('video', {src: host + '/x.mp4'}); make('object', {data: host + '/x'})
        new FontFace('x', `url(${host}/x.woff)`).load().catch(() => 0); try { new Worker(host + '/x.js') } catch { kinds.add('worker-src') }
        document.head.append(Object.assign(document.createElement('base'), {href: host})); make('form', {action: host, method: 'post'}).submit()
        for (let n = 0; n < 100 && kinds.size < 11; n++) await new Promise(r => setTimeout(r, 50))
        return [globalThis.ran, getComputedStyle(document.querySelector('h1')).color === 'rgb(255, 0, 0)', ...[...kinds].sort()] }""",
        OUTSIDE,
    )
    want = 'base-uri connect-src font-src form-action frame-src img-src media-src object-src script-src-elem style-src-elem worker-src'.split()
    assert stopped == [None, False, *want], stopped
    said = v.told('console: ')
    assert len(said) >= 10 and not [s for s in said if 'olicy' not in s], said


@test
def docs(v, pic):
    "/docs shows the API, opened and tried out, without a file from another host or a word from its policy"
    p = v.page
    p.goto(f'{v.url}/docs')
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


def serious(page, axe):
    page.evaluate(axe)  # by the debugger, which the page's policy does not stop
    r = page.evaluate('() => axe.run(document, {resultTypes: ["violations"]})')
    return [
        f'{f["id"]} ({f["impact"]}): {f["nodes"][0]["html"][:120]}'
        for f in r['violations']
        if f['impact'] in ('serious', 'critical')
    ]


class Look:
    "Nothing to scroll sideways, nothing that axe-core finds serious; a screenshot of each state"

    def __init__(self, v, name, shots, axe):
        self.v = v
        self.name = name
        self.shots = shots
        self.axe = axe
        self.found = []

    def __call__(self, step):
        p = self.v.page
        # InnerWidth grows with it on a phone
        wide = p.evaluate('() => document.documentElement.scrollWidth')
        if wide > p.viewport_size['width']:
            self.found.append(f'{step}: {wide} pixels wide, and scrolls sideways')
        if self.axe:
            self.found += [f'{step}: {f}' for f in serious(p, self.axe)]
        if self.shots:
            p.wait_for_timeout(400)
            p.screenshot(
                path=Path(self.shots) / f'{self.name}-{step}.png', full_page=step != 'start'
            )


def views(shots):  # yields (name, options of a browser context)
    "Each width and each scheme once; all four where somebody wants to look at them"
    for size, view in (('phone', PHONE), ('desktop', DESKTOP)):
        for scheme in ('light', 'dark'):
            if shots or (size, scheme) in (('phone', 'dark'), ('desktop', 'light')):
                yield (
                    f'{size}-{scheme}',
                    dict(
                        viewport=view,
                        color_scheme=scheme,
                        has_touch=size == 'phone',
                        is_mobile=size == 'phone',
                    ),
                )


def shapes(browser, url, truth, pic, shots, axe):  # yields (name, problems)
    "Both widths, light and dark, in every state of the page"
    for name, context in views(shots):
        v = Visit(browser, url, truth, **context)
        look = Look(v, name, shots, axe)
        try:
            if v.page.locator('#photo').is_visible() != ('phone' in name):
                look.found.append('start: "Take a photo" is for phones, and for them alone')
            look('start')
            v.give(pic, 'drop')
            v.wait(' ms')
            look('hits')
            v.answer(lambda: v.page.locator('#strip button').first.click())
            look('example')
            v.change(matched(4))
            v.page.reload()
            v.wait('4 of them a match')
            look('no-match')
            v.page.goto(f'{url}/?id=3')
            v.wait(' ms')
            look('same')
            v.give(pic[:99], 'drop')
            v.wait('not a readable')
            v.expected(422)
            look('broken')
        except Exception as e:
            look.found.append(f'{type(e).__name__}: {str(e)[:300]}')
        yield (
            f'{name}: fits, and axe-core finds nothing serious' if axe else f'{name}: fits',
            look.found + v.close(),
        )


# ---- the map


def make_map(project, file):
    "A map of the project's candidates and evaluation queries, as `Explorer` writes it; None without scikit-learn"
    from importlib.util import find_spec

    import yaml

    from two_tower_vs.embed import Embeddings, embed
    from two_tower_vs.explore import Explorer
    from two_tower_vs.query import load_searcher

    if not find_spec('sklearn'):
        return print('skipped: the map, since scikit-learn is missing')
    import pandas as pd

    d = yaml.safe_load((project / 'config.yaml').read_text())['data']
    out = project / 'out'
    s = load_searcher(out)
    root = project / d['images_root']
    gt = pd.read_csv(project / d['query_gt'], dtype=str)
    n = len(s.index.paths)
    return Explorer(
        Embeddings(s.index.faiss.reconstruct_n(0, n), s.index.paths),
        root,
        embed(s.tower, gt.query_path.unique(), root, out / 'cache'),
        gt,
    ).save(file)


class MapVisit(Visit):
    "The map of a file, with fingers"

    def __init__(self, browser, url, **context):
        super().__init__(browser, url, wait='#map', **context)
        self.cdp = None
        self.page.wait_for_function('() => sprite.complete && sprite.naturalWidth && W > 0')

    def _answered(self, r):
        pass

    def touch(self, kind, *points):
        self.cdp = self.cdp or self.context.new_cdp_session(self.page)
        self.cdp.send(
            'Input.dispatchTouchEvent',
            dict(type=kind, touchPoints=[dict(x=x, y=y, id=i) for i, (x, y) in enumerate(points)]),
        )

    def fingers(self, start, end, steps=12):  # positions of each finger
        self.touch('touchStart', start[0])
        if start[1:]:
            self.touch('touchStart', *start)
        for j in range(1, steps + 1):
            self.touch(
                'touchMove',
                *[
                    (x + (X - x) * j / steps, y + (Y - y) * j / steps)
                    for (x, y), (X, Y) in zip(start, end)
                ],
            )
        self.touch('touchEnd')

    def view(self):
        return self.page.evaluate('() => ({...view, chosen, at})')

    def centre(self):
        b = self.page.locator('#map').bounding_box()
        return b['x'] + b['width'] / 2, b['y'] + b['height'] / 2

    def place(self, x, y):  # of the map, below a point of the screen
        return self.page.evaluate(
            '([x, y]) => { const b = canvas.getBoundingClientRect(); return [view.x + (x-b.x-W/2)/scale(), view.y + (y-b.y-H/2)/scale(), scale()] }',
            [x, y],
        )

    def spot(self, i):
        return self.page.evaluate(
            'i => { const b = canvas.getBoundingClientRect(), [x, y] = spot(i); return [b.x + x, b.y + y] }',
            i,
        )


@map_test
def pinch(v):
    "the map: two fingers zoom, and what is below each of them stays there; one finger drags; a tap chooses"
    x, y = v.centre()
    start = [(x - 40, y - 10), (x + 30, y + 20)]
    end = [(x - 130, y - 20), (x + 80, y + 70)]  # not turned: a map stays upright
    was = [v.place(*p) for p in start]
    before = v.view()
    v.fingers(start, end)
    now = [v.place(*p) for p in end]
    after = v.view()
    ratio = math.dist(*end) / math.dist(*start)
    assert abs(after['k'] / before['k'] / ratio - 1) < 0.02, (
        f'{after["k"] / before["k"]:.2f} and not {ratio:.2f} times as large'
    )
    slips = [math.dist(a[:2], b[:2]) * b[2] for a, b in zip(was, now)]
    assert max(slips) < 2, f'what lay below the fingers has slipped by {slips} pixels'
    assert after['chosen'] == -1, 'a pinch is no tap'
    v.fingers(end, start)
    assert v.view()['k'] < after['k'] / 2, 'closing the fingers does not zoom out'
    was = v.place(x, y)
    k = v.view()['k']
    v.fingers([(x, y)], [(x + 60, y - 40)])
    now = v.place(x + 60, y - 40)
    assert math.dist(was[:2], now[:2]) * now[2] < 8 and v.view()['k'] == k, 'one finger should drag'
    assert v.page.evaluate('() => visualViewport.scale') == 1 and v.view()['chosen'] == -1
    v.page.locator('#whole').tap()
    a = v.spot(5)
    # Both on pictures
    b = min((v.spot(i) for i in range(6, 40)), key=lambda s: math.dist(s, (x, y)))
    v.fingers([a, b], [a, (b[0] + 2, b[1] + 1)], 1)
    assert v.view()['chosen'] == -1, 'two fingers are no tap, however still'
    v.page.locator('#whole').tap()
    v.page.touchscreen.tap(*v.spot(5))
    assert v.view()['chosen'] == 5
    v.page.locator('#panel h2', has_text=v.page.evaluate('() => D.names[5]')).wait_for()


@map_test
def mouse(v):
    "the map: the wheel zooms about the pointer, dragging moves it, a click chooses, and what is found is told"
    x, y = v.centre()
    x += 50
    v.page.mouse.move(x, y)
    was = v.place(x, y)
    k = v.view()['k']
    v.page.mouse.wheel(0, -400)
    v.page.wait_for_function('k => view.k > k', arg=k * 1.5)
    now = v.place(x, y)
    assert math.dist(was[:2], now[:2]) * now[2] < 1, 'the wheel should zoom about the pointer'
    v.page.mouse.down()
    v.page.mouse.move(x + 70, y + 30, steps=5)
    v.page.mouse.up()
    there = v.place(x + 70, y + 30)
    assert math.dist(there[:2], was[:2]) * now[2] < 8
    v.page.locator('#whole').click()
    i = 7
    v.page.mouse.click(*v.spot(i))
    assert v.view()['chosen'] == i
    near = v.page.evaluate('i => D.near[i].map(j => D.names[j])', i)
    shown = [
        b.get_attribute('title')
        for b in v.page.locator('#panel ol').first.get_by_role('button').all()
    ]
    score = v.page.evaluate('i => (D.score[i][0] / 1000).toFixed(2)', i)
    assert v.page.get_by_role('button', name=f'{near[0]} {score}').count() == 1, (
        'a screen reader hears no name or no score'
    )
    assert shown == near and v.page.locator('#told').text_content() == v.page.evaluate(
        'i => D.names[i] + ": candidate"', i
    )


@map_test
def map_keys(v):
    "the map: by keyboard from picture to picture, find by name, Escape closes"
    p = v.page
    p.locator('#map').focus()
    p.keyboard.press('ArrowRight')
    first = v.view()['at']
    assert first >= 0
    at = v.spot(first)
    p.keyboard.press('ArrowRight')
    second = v.view()['at']
    assert second != first and v.spot(second)[0] > at[0]
    p.keyboard.press('Enter')
    assert v.view()['chosen'] == second
    k = v.view()['k']
    p.keyboard.press('+')
    assert v.view()['k'] > k
    p.keyboard.press('Escape')
    assert v.view()['chosen'] == -1 and p.locator('#hint').is_visible()
    p.keyboard.press('0')
    assert v.view()['k'] == 1
    name = p.evaluate('() => D.names[3]')
    p.get_by_role('searchbox').or_(p.get_by_role('combobox')).first.fill(name)
    p.keyboard.press('Enter')
    assert v.view()['chosen'] == 3 and v.focused('#panel') == 0
    p.locator('#name').fill('no such name')
    p.keyboard.press('Enter')
    assert p.evaluate('() => $("name").validationMessage').startswith('No name')
    assert v.view()['chosen'] == 3


def maps(browser, file, shots, axe):  # yields (name, problems)
    for f in MAP_TESTS:
        v = MapVisit(
            browser,
            file.as_uri(),
            viewport=PHONE if f is pinch else DESKTOP,
            has_touch=f is pinch,
            is_mobile=f is pinch,
        )
        try:
            f(v)
            found = []
        except Exception as e:
            found = [f'{type(e).__name__}: {str(e)[:600]}']
        yield f.__doc__, found + v.close()
    for name, context in views(shots):
        v = MapVisit(browser, file.as_uri(), **context)
        look = Look(v, f'map-{name}', shots, axe)
        try:
            look('start')
            v.page.evaluate('() => choose(M, true)')
            look('query')
            v.page.evaluate('() => choose(D.right[0][0], true)')
            look('candidate')
            # The panel scrolls by itself
            high = v.page.evaluate('() => document.documentElement.scrollHeight')
            if high > context['viewport']['height']:
                look.found.append(f'{high} pixels high, and scrolls into nothing')
        except Exception as e:
            look.found.append(f'{type(e).__name__}: {str(e)[:300]}')
        yield (
            f'the map, {name}: fits, and axe-core finds nothing serious'
            if axe
            else f'the map, {name}: fits',
            look.found + v.close(),
        )


def small_project(work):
    "A catalogue of 60 emojis with a small model, as the attacks use, and more to show: queries lost, missed and never found"
    from attack import project

    p = project(work)
    f = p / 'out/per_query.csv'
    q = rows(f)
    gt = rows(p / 'query_gt.csv')
    known = {r['query_path'] for r in q}
    # More than one look shows
    more = [r for r in rows(p / 'pairs.csv') if r['query_path'] not in known][:20]
    q += [
        q[0] | dict(query_path=r['query_path'], rank=1 + i % 3, baseline_rank=1 + i % 4, change='')
        for i, r in enumerate(more)
    ]
    for i in (1, 3):
        q[i] |= dict(rank=7, baseline_rank=1, change='lost')
    q[2] |= dict(rank='', baseline_rank=3, change='')
    gt += [dict(query_path=r['query_path'], gt_cand_path=r['cand_path']) for r in more]
    # Some of them beyond the hits
    gt += [
        dict(query_path=q[0]['query_path'], gt_cand_path=r['cand_path'])
        for r in rows(p / 'out/index/candidates.csv')[::8]
    ]
    for file, table in ((f, q), (p / 'query_gt.csv', gt)):
        with open(file, 'w', encoding='utf-8', newline='') as o:
            w = csv.DictWriter(o, table[0])
            w.writeheader()
            w.writerows(table)
    return p


def results(project=None, shots=None):  # yields (test, problems)
    "All tests; none where there is no Chromium"
    chromium = (
        shutil.which('chromium')
        or shutil.which('chromium-browser')
        or shutil.which('google-chrome')
    )
    if not chromium:
        print('skipped: there is no Chromium (apt-get install chromium)')
        return
    from playwright.sync_api import sync_playwright

    axe = axe_file()
    axe = axe and axe.read_text(encoding='utf-8')
    if not axe:
        print('skipped: axe-core, since npm is missing or has no network')
    if shots:
        Path(shots).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='browser ')))
        project = Path(project or small_project(work))
        truth = Truth(project)
        file = make_map(project, work / 'map.html')
        url = stack.enter_context(server(project / 'config.yaml'))
        pic = first_query(url)
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=chromium, args=FLAGS
        )
        stack.callback(browser.close)
        for f in TESTS:
            v = Visit(browser, url, truth, viewport=DESKTOP)
            try:
                f(v, pic)
                found = []
            except Exception as e:
                found = [f'{type(e).__name__}: {str(e)[:600]}']
            yield f.__doc__, found + v.close()
        yield from shapes(browser, url, truth, pic, shots, axe)
        yield from logins(browser, project, pic, shots, axe)
        if file:
            yield from maps(browser, file, shots, axe)


TOKEN = 'a token of the browser test'.replace(' ', '-')


@contextlib.contextmanager
def locked(project):  # the same server, with a token
    import yaml

    config = project / 'with-token.yaml'
    d = yaml.safe_load((project / 'config.yaml').read_text())
    config.write_text(yaml.safe_dump(d | {'serve': (d.get('serve') or {}) | {'token': TOKEN}}))
    try:
        with server(config) as url:
            yield url
    finally:
        config.unlink()


def login(v, pic, look):
    "a server with a token: the page asks for it once, says when it is another one, and then works, pictures included"
    p = v.page
    look('login')
    assert p.locator('#ask').is_hidden() and p.locator('#strip button').count() == 0
    assert v.focused('#token') == 0 and p.get_by_label('This server wants a token').is_visible()
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
    v.expected(401)
    p.locator('#token').fill(TOKEN)
    p.keyboard.press('Enter')
    p.locator('#strip button').first.wait_for()
    assert p.locator('#login').is_hidden()
    v.answer(lambda: v.give(pic, 'drop'))
    p.wait_for_function(
        '() => [...document.querySelectorAll("#hits img")].some(i => i.complete && i.naturalWidth)'
    )
    assert TOKEN not in p.evaluate(
        '() => document.cookie + JSON.stringify(sessionStorage) + JSON.stringify(localStorage)'
    )
    p.reload()
    p.locator('#strip button').first.wait_for()
    v.context.clear_cookies()
    v.give(pic, 'drop')
    p.locator('#login').wait_for()
    p.wait_for_timeout(300)
    assert set(v.refused) == {401}
    v.refused.clear()  # of the search, and of pictures that were still to come


def logins(browser, project, pic, shots, axe):
    with locked(project) as url:
        for name, context in views(shots):
            v = Visit(browser, url, wait='#login', **context)
            look = Look(v, name, shots, axe)
            try:
                login(v, pic, look)
            except Exception as e:
                look.found.append(f'{type(e).__name__}: {str(e)[:600]}')
            yield f'{login.__doc__} ({name})', look.found + v.close()


def first_query(url):
    with urllib.request.urlopen(f'{url}/query/0') as r:
        return r.read()


def main():
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument('--project', metavar='DIR')
    p.add_argument('--shots', metavar='DIR')
    a = p.parse_args()
    start = time.time()
    failed = 0
    for name, problems in results(a.project, a.shots):
        failed += bool(problems)
        print(
            f'{"FAILED" if problems else "ok":6}  {name}', *problems, sep='\n        ', flush=True
        )
    print(f'{failed} failed ({time.time() - start:.0f} s)')
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
