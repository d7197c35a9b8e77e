"""The search page in a real browser: Debian's Chromium, driven by Playwright, against `--stage serve` on a free port.

    python .ci/browser.py                 # on a small catalogue made for it
    python .ci/browser.py --project DIR   # on one that is there: DIR/config.yaml, after --stage all
    python .ci/browser.py --shots DIR     # and leave screenshots there

Prints a line for each test; exit status 1 if one failed. Needs Chromium; axe-core comes from npm, once.
"""
import argparse, base64, contextlib, json, os, re, shutil, signal, subprocess, sys, tempfile, time, urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT/'nbs/attacks')]
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
         '--disable-component-update', '--disable-sync']
PHONE,DESKTOP = dict(width=390, height=844), dict(width=1280, height=900)
TESTS = []
def test(f): TESTS.append(f); return f

@contextlib.contextmanager
def server(config):   # its address
    env = {**os.environ, 'PYTHONPATH':str(ROOT)}
    p = subprocess.Popen([sys.executable, '-m', 'two_tower_vs', '--config', str(config), '--stage', 'serve', '--port', '0'],
                         stdout=subprocess.PIPE, text=True, env=env)
    try:
        line = p.stdout.readline()
        if not (m := re.search(r'http://\S+', line)): raise RuntimeError(f'the server did not start: {line}')
        yield m[0]
    finally: p.send_signal(signal.SIGTERM); p.wait(30)
    if p.returncode: raise RuntimeError(f'the server ended with status {p.returncode}')

def axe_file():   # axe-core's script, or None where npm is missing
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home()/'.cache'))/'two_tower_vs'; file = cache/'node_modules/axe-core/axe.min.js'
    if not file.exists():
        if not shutil.which('npm'): return
        cache.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(['npm', 'install', '--prefix', cache, '--no-audit', '--no-fund', 'axe-core@4'], capture_output=True, text=True)
        if done.returncode: print(f'axe-core can not be fetched: {done.stderr[-200:]}')
    return file if file.exists() else None

class Visit:
    "A page in a browser context of its own, with what went wrong on it"
    def __init__(self, browser, url, **context):
        self.url,self.problems,self.missing = url, [], []
        self.context = browser.new_context(**context); self.page = p = self.context.new_page(); p.set_default_timeout(10_000)
        p.on('console', lambda m: m.type in ('error','warning') and self._said(m.text))
        p.on('pageerror', lambda e: self.problems.append(f'script: {e}'))
        p.on('response', lambda r: r.status == 404 and self.missing.append(r.url))
        p.route('**/*', self._watch); p.goto(url); p.locator('#strip button').first.wait_for()
    def _said(self, text):
        if 'Failed to load resource' not in text: self.problems.append(f'console: {text}')   # a refused upload is one
    def _watch(self, route):
        if not route.request.url.startswith((self.url, 'blob:', 'data:')): self.problems.append(f'another host: {route.request.url}')
        route.continue_()
    def wait(self, text): self.page.wait_for_function('t => document.querySelector("#status").textContent.includes(t)', arg=text)
    def status(self): return self.page.locator('#status').text_content()
    def names(self): return self.page.locator('#hits .name').all_text_contents()
    def give(self, data, how, name='photo.png', kind='image/png'):
        "Drop or paste a file"
        self.page.evaluate('''([b64, how, name, type]) => {
            const d = new DataTransfer(); d.items.add(new File([Uint8Array.from(atob(b64), c => c.charCodeAt(0))], name, {type}))
            const e = how === 'drop' ? new DragEvent('drop', {dataTransfer: d, bubbles: true, cancelable: true})
                                     : new ClipboardEvent('paste', {clipboardData: d, bubbles: true, cancelable: true})
            document.querySelector('#drop').dispatchEvent(e) }''', [base64.b64encode(data).decode(), how, name, kind])
    def close(self): self.context.close(); return self.problems

@test
def drop(v, pic):
    "drop a picture: hits with scores, times and the line between match and no match"
    v.give(pic, 'drop'); v.wait(' ms')
    assert len(v.names()) == 10 and re.search(r'10 hits in [\d.]+ ms', v.status()), v.status()
    assert v.page.locator('#hits li.limit').count() <= 1 and v.page.locator('#preview').is_visible()
    tiles = v.page.locator('#hits img'); tiles.last.scroll_into_view_if_needed()
    v.page.wait_for_function('() => [...document.querySelectorAll("#hits img")].every(i => i.complete && i.naturalWidth)')
    v.page.select_option('#topk', '20'); v.page.wait_for_function('() => document.querySelectorAll("#hits .name").length === 20')

@test
def click(v, pic):
    "click a hit to search with it; back returns to the picture before, forward to the hit"
    v.give(pic, 'drop'); v.wait(' ms'); first = v.names(); name = first[1]
    v.page.locator('#hits button').nth(1).click(); v.page.wait_for_function('n => document.querySelector("#hits .name").textContent === n', arg=name)
    assert 'id=' in v.page.url; second = v.names()
    for step,want in (('back', first), ('forward', second), ('back', first)):
        getattr(v.page, f'go_{step}')(); v.page.wait_for_function('n => [...document.querySelectorAll("#hits .name")].map(e => e.textContent).join() === n', arg=','.join(want))
    v.page.go_back(); v.page.locator('#results').wait_for(state='hidden')

@test
def choose(v, pic):
    "choose a file; an address with a hit can be opened anew"
    with v.page.expect_file_chooser() as c: v.page.locator('#choose').click()
    c.value.set_files({'name':'photo.png', 'mimeType':'image/png', 'buffer':pic}); v.wait(' ms')
    v.page.locator('#hits button').nth(0).click(); v.page.wait_for_url('**id=*'); v.wait(' ms'); was = v.names()
    v.page.reload(); v.wait(' ms'); assert v.names() == was

@test
def paste(v, pic):
    "paste a picture; pasting text says so"
    v.give(pic, 'paste'); v.wait(' ms'); assert len(v.names()) == 10
    v.page.evaluate('() => document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: new DataTransfer(), bubbles: true}))')
    v.wait('no picture in the clipboard')

@test
def broken(v, pic):
    "a broken, an empty and a too large file give a message in words"
    v.give(pic[:100], 'drop'); v.wait('not a readable image'); assert v.page.locator('#results').is_hidden()
    v.give(b'', 'drop'); v.wait('empty')
    v.page.evaluate('() => { const d = new DataTransfer(); d.items.add(new File([new Uint8Array(21*2**20)], "big.png", {type: "image/png"}));'
                    'document.querySelector("#drop").dispatchEvent(new DragEvent("drop", {dataTransfer: d, bubbles: true})) }'); v.wait('larger than 20 MB')
    v.give(pic, 'drop'); v.wait(' ms')   # and the next one works

@test
def examples(v, pic):
    "browse successes and failures; right answers are marked with a tick and the word"
    kinds = v.page.locator('#kinds button').all_text_contents(); assert kinds[0].startswith('All'), kinds
    v.page.locator('#strip button').filter(has_text='found').first.click(); v.wait(' ms')
    assert '✓ right' in v.page.locator('#hits li.isright').first.text_content()
    assert 'Evaluation query' in v.page.locator('#told').text_content()
    for k in kinds:
        v.page.locator('#kinds button').filter(has_text=k).click()
        v.page.wait_for_function('k => document.querySelector("#kinds [aria-pressed=true]")?.textContent === k', arg=k)

@test
def keyboard(v, pic):
    "by keyboard: / to choose, Tab into the hits, arrows between them, Enter to search"
    p = v.page; p.keyboard.press('/'); assert p.evaluate('() => document.activeElement.id') == 'choose'
    v.give(pic, 'drop'); v.wait(' ms')
    p.keyboard.press('Tab'); assert p.evaluate('() => !!document.activeElement.closest("#hits")'), 'Tab does not lead to the first hit'
    p.keyboard.press('ArrowRight'); at = p.evaluate('() => [...document.querySelectorAll("#hits button")].indexOf(document.activeElement)'); assert at == 1, at
    assert p.evaluate('() => getComputedStyle(document.activeElement).outlineStyle') != 'none', 'focus is not visible'
    name = v.names()[1]; p.keyboard.press('Enter'); p.wait_for_function('n => document.querySelector("#hits .name").textContent === n', arg=name)

@test
def docs(v, pic):
    "/docs shows the API without a file from another host"
    v.page.goto(f'{v.url}/docs'); v.page.locator('.opblock').first.wait_for(); assert v.page.locator('.opblock').count() >= 7
    v.problems[:] = [p for p in v.problems if 'style' not in p]

def shapes(browser, url, pic, shots, axe):   # yields (name, problems)
    "Both widths, light and dark: nothing to scroll sideways, nothing that axe-core finds serious"
    for size,view in (('phone', PHONE), ('desktop', DESKTOP)):
        for scheme in ('light','dark'):
            v = Visit(browser, url, viewport=view, color_scheme=scheme, has_touch=size == 'phone', is_mobile=size == 'phone'); found = []
            def look(step):
                if v.page.evaluate('() => document.documentElement.scrollWidth > innerWidth'): found.append(f'{step}: scrolls sideways')
                if axe: found.extend(f'{step}: {f["id"]} ({f["impact"]}): {f["nodes"][0]["html"][:120]}' for f in serious(v, axe))
                if shots: v.page.wait_for_timeout(400); v.page.screenshot(path=Path(shots)/f'{size}-{scheme}-{step}.png', full_page=step != 'start')
            try:
                look('start'); v.give(pic, 'drop'); v.wait(' ms'); look('hits')
                v.page.locator('#strip button').first.click(); v.page.locator('#told strong', has_text='Evaluation query').wait_for(); v.wait(' ms'); look('example')
                v.give(pic[:99], 'drop'); v.wait('not a readable'); look('broken')
            except Exception as e: found.append(f'{type(e).__name__}: {str(e)[:300]}')
            yield f'{size}, {scheme}: fits, and axe-core finds nothing serious' if axe else f'{size}, {scheme}: fits', found + v.close()

def serious(v, axe):
    v.page.evaluate(axe)   # by the debugger, which the page's policy does not stop
    r = v.page.evaluate('() => axe.run(document, {resultTypes: ["violations"]})')
    return [f for f in r['violations'] if f['impact'] in ('serious','critical')]

def small_project(work):
    "A catalogue of 60 emojis with a small model, as the attacks use"
    from attack import project
    return project(work)

def results(project=None, shots=None):   # yields (test, problems)
    "All tests; none where there is no Chromium"
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if not chromium: print('skipped: there is no Chromium (apt-get install chromium)'); return
    from playwright.sync_api import sync_playwright
    axe = axe_file(); axe = axe and axe.read_text(encoding='utf-8')
    if not axe: print('skipped: axe-core, since npm is missing or has no network')
    if shots: Path(shots).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        project = Path(project or small_project(stack.enter_context(tempfile.TemporaryDirectory(prefix='browser '))))
        url = stack.enter_context(server(project/'config.yaml')); pic = first_query(url)
        browser = stack.enter_context(sync_playwright()).chromium.launch(executable_path=chromium, args=FLAGS); stack.callback(browser.close)
        for f in TESTS:
            v = Visit(browser, url, viewport=DESKTOP)
            try: f(v, pic); found = []
            except Exception as e: found = [f'{type(e).__name__}: {str(e)[:600]}']
            yield f.__doc__, found + v.close()
        yield from shapes(browser, url, pic, shots, axe)

def first_query(url):
    with urllib.request.urlopen(f'{url}/query/0') as r: return r.read()

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--project', metavar='DIR'); p.add_argument('--shots', metavar='DIR')
    a = p.parse_args(); start,failed = time.time(), 0
    for name,problems in results(a.project, a.shots):
        failed += bool(problems); print(f'{"FAILED" if problems else "ok":6}  {name}', *problems, sep='\n        ', flush=True)
    print(f'{failed} failed ({time.time()-start:.0f} s)')
    return bool(failed)

if __name__ == '__main__': sys.exit(main())
