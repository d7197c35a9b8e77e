"""The page of --stage report in a browser.  usage: .venv/bin/python .ci/report_page.py OUT   (OUT holds report.html)
No request leaves it, nothing is said on the console, it fits a phone, and axe-core finds nothing serious, light and dark:
as it is, and as it would be with all that a report can hold. Whether its numbers are right is tested in nbs/07_report.ipynb."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = (
    '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'
).split()


def skip(why):
    print(f'skipped: {why}')
    sys.exit(0)


def axe(folder):
    "The source of axe-core, from npm"
    r = subprocess.run(
        ['npm', 'install', '--silent', '--no-audit', '--no-fund', 'axe-core@4'],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    file = Path(folder) / 'node_modules/axe-core/axe.min.js'
    if r.returncode or not file.exists():
        skip(f'npm can not install axe-core ({" ".join(r.stderr.split())[:100]})')
    return file.read_text(encoding='utf-8')


def opened(browser, url, width=1280, scheme='light', **kw):
    "A page, and what it asked for and said"
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme, **kw)
    asked = []
    said = []
    page.on('request', lambda r: asked.append(r.url))
    page.on('pageerror', lambda e: said.append(str(e)))
    page.on('console', lambda m: said.append(m.text))
    page.goto(url, wait_until='load')
    return page, [u for u in asked if u != url and not u.startswith('data:')], said


def filters(page):
    "What is wrong with the list of queries"
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


def serious(page, source):
    "What axe-core finds serious"
    page.evaluate(source)
    found = page.evaluate('axe.run(document, {resultTypes: ["violations"]})')['violations']
    return [
        f'{v["id"]}: {v["help"]}: {v["nodes"][0]["html"][:120]}'
        for v in found
        if v['impact'] in ('serious', 'critical')
    ]


def stopped(page):
    "What the page's policy does not stop, of what it never does"
    some = page.evaluate("""async () => {
        const kinds = new Set(), host = 'http://127.0.0.9:9', make = (tag, o) => document.body.append(Object.assign(document.createElement(tag), o))
        document.addEventListener('securitypolicyviolation', e => kinds.add(e.effectiveDirective))
        await fetch(host).catch(() => 0); make('img', {src: host + '/x.png'}); make('script', {src: host + '/x.js'})
        make('link', {rel: 'stylesheet', href: host + '/x.css'}); make('iframe', {src: host}); document.head.append(Object.assign(document.createElement('base'), {href: host}))
        make('form', {action: host}); document.forms[document.forms.length-1].submit()
        for (let n = 0; n < 100 && kinds.size < 7; n++) await new Promise(r => setTimeout(r, 50))
        return [...kinds] }""")
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
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from two_tower_vs.report import report

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
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return report(
            to, out.parent / 'images', out.parent / 'query_gt.csv', out.parent / 'pairs.csv'
        )


def parts(page):
    "Parts that the made-up page should have, and has not"
    have = page.evaluate(
        '[...document.querySelectorAll("h3, caption, th, .note, .verdict, #recall p, #match b")].map(e => e.textContent).join("; ")'
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


def looks(browser, url, source):  # yields (name, problems)
    for scheme in ('light', 'dark'):
        page, *_ = opened(browser, url, scheme=scheme)
        page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
        yield f'axe-core finds nothing serious, {scheme}', serious(page, source)
        for width in (390, 1280):
            page.set_viewport_size(dict(width=width, height=900))
            wide = page.evaluate('document.documentElement.scrollWidth')
            yield (
                f'no horizontal scroll at {width} px, {scheme}',
                [f'{wide} px wide'] if wide > width else [],
            )


def checks(browser, url, made_up, source):
    "name, problems"
    page, asked, said = opened(browser, url)
    yield 'no request leaves the page', asked
    yield 'the list of queries is filtered', filters(page)
    yield 'nothing on the console', said
    yield 'the policy lets nothing else in', stopped(page)
    for name, problems in looks(browser, url, source):
        yield name, problems
    page, asked, said = opened(browser, made_up)
    yield (
        'a page with every part: it has them, asks for nothing and says nothing',
        parts(page) + asked + said,
    )
    for name, problems in looks(browser, made_up, source):
        yield f'a page with every part: {name}', problems
    page, asked, _ = opened(browser, url, java_script_enabled=False)
    yield (
        'readable without scripts',
        []
        if page.inner_text('h2') and not page.is_visible('.filter')
        else ['no heading, or a dead form'],
    )


def main(out):
    file = Path(out).resolve() / 'report.html'
    chromium = shutil.which('chromium')
    if not file.exists():
        sys.exit(f'{file} is missing. Make it with --stage report.')
    if not chromium or not shutil.which('npm'):
        skip('Chromium and npm are needed')
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip('playwright is not installed')
    failed = 0
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as p:
        source = axe(tmp)
        browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        made_up = full(file.parent, Path(tmp) / 'full')
        for name, problems in checks(browser, file.as_uri(), made_up.as_uri(), source):
            failed += bool(problems)
            print(
                f'{"FAILED" if problems else "ok":6}  {name}',
                *problems[:5],
                sep='\n        ' if problems else '',
                flush=True,
            )
        browser.close()
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1]))
