"""The page of --stage report in a browser.  usage: .venv/bin/python .ci/report_page.py OUT   (OUT holds report.html)
No request leaves it, nothing is said on the console, it fits a phone, and axe-core finds nothing serious, light and dark."""
import shutil, subprocess, sys, tempfile
from pathlib import Path

FLAGS = ('--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()

def skip(why): print(f'skipped: {why}'); sys.exit(0)

def axe(folder):
    "The source of axe-core, from npm"
    r = subprocess.run(['npm', 'install', '--silent', '--no-audit', '--no-fund', 'axe-core@4'], cwd=folder, capture_output=True, text=True)
    file = Path(folder)/'node_modules/axe-core/axe.min.js'
    if r.returncode or not file.exists(): skip(f'npm can not install axe-core ({" ".join(r.stderr.split())[:100]})')
    return file.read_text(encoding='utf-8')

def opened(browser, url, width=1280, scheme='light', **kw):
    "A page, and what it asked for and said"
    page = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme, **kw); asked,said = [], []
    page.on('request', lambda r: asked.append(r.url)); page.on('pageerror', lambda e: said.append(str(e)))
    page.on('console', lambda m: said.append(m.text)); page.goto(url, wait_until='load')
    return page, [u for u in asked if u != url and not u.startswith('data:')], said

def filters(page):
    "What is wrong with the list of queries"
    if not page.query_selector('#all'): return []
    page.click('#all summary'); rows = '.rows tbody tr:not([hidden])'; n = len(page.query_selector_all(rows))
    kinds = page.eval_on_selector_all('.filter option', 'os => os.map(o => o.value).filter(Boolean)')
    page.select_option('.filter select', kinds[-1]); some = len(page.query_selector_all(rows))
    right = page.eval_on_selector_all(rows, '(rs, k) => rs.every(r => r.dataset.kind.split(" ").includes(k))', kinds[-1])
    page.fill('.filter [name=find]', 'no such name at all'); none = len(page.query_selector_all(rows))
    return [] if n >= some > 0 == none and right else [f'{n} queries, {some} of the kind {kinds[-1]}, {none} of no name']

def serious(page, source):
    "What axe-core finds serious"
    page.evaluate(source); found = page.evaluate('axe.run(document, {resultTypes: ["violations"]})')['violations']
    return [f'{v["id"]}: {v["help"]}: {v["nodes"][0]["html"][:120]}' for v in found if v['impact'] in ('serious','critical')]

def checks(browser, url, source):
    "name, problems"
    page,asked,said = opened(browser, url)
    yield 'no request leaves the page', asked
    yield 'the list of queries is filtered', filters(page)
    yield 'nothing on the console', said
    for scheme in ('light','dark'):
        page,*_ = opened(browser, url, scheme=scheme); page.evaluate('document.querySelectorAll("details").forEach(d => d.open = true)')
        yield f'axe-core finds nothing serious, {scheme}', serious(page, source)
    for width in (1280, 390):
        page,*_ = opened(browser, url, width); wide = page.evaluate('document.documentElement.scrollWidth')
        yield f'no horizontal scroll at {width} px', [f'{wide} px wide'] if wide > width else []
    page,asked,_ = opened(browser, url, java_script_enabled=False)
    yield 'readable without scripts', [] if page.inner_text('h2') and not page.is_visible('.filter') else ['no heading, or a dead form']

def main(out):
    file = Path(out).resolve()/'report.html'; chromium = shutil.which('chromium')
    if not file.exists(): sys.exit(f'{file} is missing. Make it with --stage report.')
    if not chromium or not shutil.which('npm'): skip('Chromium and npm are needed')
    try: from playwright.sync_api import sync_playwright
    except ImportError: skip('playwright is not installed')
    failed = 0
    with tempfile.TemporaryDirectory() as tmp, sync_playwright() as p:
        source = axe(tmp); browser = p.chromium.launch(executable_path=chromium, args=FLAGS)
        for name,problems in checks(browser, file.as_uri(), source):
            failed += bool(problems); print(f'{"FAILED" if problems else "ok":6}  {name}', *problems[:5], sep='\n        ' if problems else '', flush=True)
        browser.close()
    return bool(failed)

if __name__ == '__main__': sys.exit(main(sys.argv[1]))
