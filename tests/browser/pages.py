"""What the tests in a browser share: a server, pages that note what goes wrong, and what is
expected.
"""

import base64
import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PHONE = dict(width=390, height=844)
DESKTOP = dict(width=1280, height=900)
TOKEN = 'a token of the browser test'.replace(' ', '-')


@contextlib.contextmanager
def server(config, stage='serve'):  # its address
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    p = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'two_tower_vs',
            '--config',
            str(config),
            '--stage',
            stage,
            '--port',
            '0',
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    )
    try:
        said = []
        for line in p.stdout:
            said.append(line)
            if m := re.search(r'http://\S+', line):
                break
        else:
            raise RuntimeError(f'the server did not start: {"".join(said)}')
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
            print(f'axe-core cannot be fetched: {done.stderr[-200:]}')
    return file if file.exists() else None


def rows(file):
    with open(file, encoding='utf-8', newline='') as f:
        return list(csv.DictReader(f))


class Truth:
    """What the page should show of the evaluation, read from the run's own files by other means
    than the server's
    """

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
            const d = new DataTransfer();
            const bytes = Uint8Array.from(atob(b64), c => c.charCodeAt(0))
            d.items.add(new File([bytes], name, {type}))
            const at = document.querySelector('#drop'), both = {bubbles: true, cancelable: true}
            const drag = k => new DragEvent(k, {dataTransfer: d, ...both})
            if (how === 'paste')
                return !at.dispatchEvent(new ClipboardEvent('paste', {clipboardData: d, ...both}))
            at.dispatchEvent(drag('dragenter'));
            const lit = document.body.classList.contains('over')
            const stopped = !at.dispatchEvent(drag('dragover')) & !at.dispatchEvent(drag('drop'))
            return stopped & lit & !document.body.classList.contains('over')
            }""",
            [base64.b64encode(data).decode(), how, name, kind],
        )

    def close(self):
        self.context.close()
        return self.problems + ([f'answers with status {self.refused}'] if self.refused else [])


def matched(n):  # an answer with n matches; None: where no threshold is known
    def f(a):
        for i, h in enumerate(a['hits']):
            h.pop('match', 0)
            n is None or h.update(match=i < n)
        a.pop('threshold', 0)
        edges = [2, *(h['score'] for h in a['hits']), -1]
        return a if n is None else a | {'threshold': (edges[n] + edges[n + 1]) / 2}

    return f


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

    def judge(self):
        "Close the page: nothing was found, and nothing went wrong on it"
        problems = self.found + self.v.close()
        assert not problems
        if not self.axe:
            pytest.skip('it fits; axe-core was not asked, since npm is missing or has no network')


def view(name, size, scheme, mobile):
    "A name, and the options of a browser context"
    options = dict(viewport=size, color_scheme=scheme, has_touch=mobile, is_mobile=mobile)
    marks = [] if name in ('phone-dark', 'desktop-light') else [pytest.mark.long]
    return pytest.param((name, options), id=name, marks=marks)


# Each width and each scheme once; all four in the long run
VIEWS = [
    view('phone-light', PHONE, 'light', True),
    view('phone-dark', PHONE, 'dark', True),
    view('desktop-light', DESKTOP, 'light', False),
    view('desktop-dark', DESKTOP, 'dark', False),
]


def make_map(project, file):
    "A map of the project's candidates and evaluation queries, as `Explorer` writes it"
    import pandas as pd
    import yaml

    from two_tower_vs.embed import embed
    from two_tower_vs.explore import Explorer
    from two_tower_vs.query import load_searcher
    from two_tower_vs.vectors import Embeddings

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

    def read(self, script, value=None):
        """What `script` says once the page has handled what was done to it: a touch is acknowledged
        before its events arrive, which is with the next frame
        """
        self.page.evaluate(
            '() => new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))'
        )
        return self.page.evaluate(script, value)

    def view(self):
        return self.read('() => ({...view, chosen, at})')

    def whole(self):
        "Show the whole map, by a tap"
        self.page.locator('#whole').tap()
        self.page.wait_for_function('() => view.k === 1')

    def free(self):
        "Numbers of pictures that nothing lies over: no other picture, no panel, no button"
        return self.read(
            '() => { const b = canvas.getBoundingClientRect(); return D.x.map((_, i) => i).filter('
            'i => { const [x, y] = spot(i); return under(x, y) === i && '
            'document.elementFromPoint(b.x + x, b.y + y) === canvas; }) }'
        )

    def choose(self, i):
        "Tap on a picture, and wait until it is chosen"
        self.page.touchscreen.tap(*self.spot(i))
        self.page.wait_for_function('i => chosen === i', arg=i)

    def centre(self):
        b = self.page.locator('#map').bounding_box()
        return b['x'] + b['width'] / 2, b['y'] + b['height'] / 2

    def place(self, x, y):  # of the map, below a point of the screen
        return self.read(
            '([x, y]) => { const b = canvas.getBoundingClientRect(); return [view.x + '
            '(x-b.x-W/2)/scale(), view.y + (y-b.y-H/2)/scale(), scale()] }',
            [x, y],
        )

    def spot(self, i):
        return self.read(
            'i => { const b = canvas.getBoundingClientRect(), [x, y] = spot(i); return '
            '[b.x + x, b.y + y] }',
            i,
        )


def small_project(work):
    """A catalogue of 60 emojis with a small model, as the attacks use, and more to show: queries
    lost, missed and never found
    """
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


@contextlib.contextmanager
def with_settings(project, name, **settings):  # the same server, with other settings
    import yaml

    config = project / name
    d = yaml.safe_load((project / 'config.yaml').read_text())
    for section, values in settings.items():
        d[section] = (d.get(section) or {}) | values
    config.write_text(yaml.safe_dump(d))
    try:
        with server(config) as url:
            yield url
    finally:
        config.unlink()


def locked(project):  # with a token
    return with_settings(project, 'with-token.yaml', serve={'token': TOKEN})


def verifying(project):  # with hits compared detail by detail
    return with_settings(project, 'verifying.yaml', query={'verify': 'always'})


def first_query(url):
    with urllib.request.urlopen(f'{url}/query/0') as r:
        return r.read()
