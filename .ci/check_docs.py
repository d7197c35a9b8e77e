"""The docs without Quarto: nbdev processes every notebook, as `nbdev_docs` does, pandoc renders
it, then each internal link is followed. Says nothing about Quarto's themes, search and page
templates.
"""

import json
import posixpath
import re
import sys
from html.parser import HTMLParser
from urllib.parse import unquote

import yaml
from nbdev.config import get_config
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from readme import pandoc, to_markdown


class Page(HTMLParser):
    "The ids and the links of an HTML page"

    def __init__(self, html):
        super().__init__()
        self.ids = set()
        self.links = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs:
            self.ids.add(attrs['id'])
        self.links += [attrs[k] for k in ('href', 'src') if attrs.get(k)]


def merge(a, b):
    "Quarto's merge of two settings: dicts are joined, lists are chained, the later value wins"
    if isinstance(a, dict) and isinstance(b, dict):
        return {**a, **{k: merge(a[k], v) if k in a else v for k, v in b.items()}}
    return a + b if isinstance(a, list) and isinstance(b, list) else b


def site_config(folder):
    "`_quarto.yml` joined with its metadata-files"
    cfg = yaml.safe_load((folder / '_quarto.yml').read_text(encoding='utf-8'))
    for f in cfg.pop('metadata-files', []):
        cfg = merge(cfg, yaml.safe_load((folder / f).read_text(encoding='utf-8')))
    return cfg


def sidebar_pages(contents):
    for o in contents:
        if isinstance(o, str):
            yield o
        else:
            yield from ([o['href']] if 'href' in o else []) + list(
                sidebar_pages(o.get('contents', []))
            )


def cell_problems(nb):
    for cell in nb['cells']:
        if cell['cell_type'] != 'code':
            continue
        left = re.search(r'^#\|\s*(export\w*|default_exp|hide)\b.*', ''.join(cell['source']), re.M)
        if left:
            yield f'directive left on the page: {left[0]}'
        for o in cell['outputs']:
            if o['output_type'] == 'error':
                yield f"stored error {o['ename']}: {o['evalue']}"


def render(nb, problems):
    "The notebook's address on the site, its page, and the names of its figures"
    meta, body, figures = to_markdown(nb)
    if not meta.get('title'):
        problems.append(
            f'{nb.name}: no title; the first Markdown cell is "# Title" and "> sentence"'
        )
    problems += [
        f'{nb.name}: {p}' for p in cell_problems(json.loads(nb.read_text(encoding='utf-8')))
    ]
    html = ''
    try:
        html = pandoc(
            body,
            'html5',
            '--standalone',
            '--mathjax',
            '--metadata',
            f"title={meta.get('title', nb.stem)}",
        )
    except ValueError as e:
        problems.append(f'{nb.name}: {e}')
    return meta.get('output-file', nb.stem + '.html'), Page(html), set(figures)


def main():
    cfg = get_config()
    problems = []
    nbs = cfg.nbs_path
    base = cfg.doc_host.rstrip('/') + '/' + cfg.doc_baseurl.strip('/')
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__(path=nbs)
    # nbdev_proc_nbs without its installation of Quarto, and without what notebooks write: the real
    # site lacks it too
    proc = proc_nbs(nbs, force=True, n_workers=2, skip_folder_re=r'^([_.]|(demo|out)$)')

    site = site_config(proc)
    side = sorted(sidebar_pages(site['website']['sidebar']['contents']))
    want = sorted(p.relative_to(nbs).as_posix() for p in nbs.rglob('*.ipynb'))
    want = [p for p in want if not re.search(r'(^|/)[_.]', p)]
    if side != want:
        problems.append(f'the sidebar has {side}, the notebooks are {want}')
    for nb in want:
        if not any(
            posixpath.dirname('/' + nb) == posixpath.dirname(glob)
            for glob in site['project']['render']
        ):
            problems.append(f'{nb}: its folder is not in `render` of _quarto.yml')
    if site['project']['output-dir'] != cfg.doc_path.name:
        problems.append('output-dir of _quarto.yml is not doc_path of settings.ini')
    if not (proc / site['format']['html']['css']).exists():
        problems.append('the css of _quarto.yml is missing')

    pages = {}
    html = {}
    files = set()  # address: page, notebook: address, addresses of figures
    for nb in want:
        if not (proc / nb).exists():
            problems.append(
                f'{nb}: nbdev made no page; does a folder above the repository begin with a dot?'
            )
            continue
        folder = posixpath.dirname(nb)
        name, page, figures = render(proc / nb, problems)
        html[nb] = posixpath.join(folder, name)
        pages[html[nb]] = page
        files |= {posixpath.join(folder, f) for f in figures}

    links = 0
    for address, page in pages.items():
        for link in page.links:
            if link == base or link.startswith(base + '/'):
                target = link[len(base) :].lstrip('/') or 'index.html'
            elif re.match(r'[a-z]+:|//', link):
                continue
            elif link[0] == '#':
                target = address + link
            else:
                target = posixpath.normpath(posixpath.join(posixpath.dirname(address), link))
            links += 1
            path, _, anchor = map(unquote, target.partition('#'))
            path = html.get(path, path)
            if path in pages:
                if anchor and anchor not in pages[path].ids:
                    problems.append(f'{address}: no #{anchor} in {path}')
            elif path not in files and not (proc / path).is_file():
                problems.append(f'{address}: broken link {link}')
    print(
        *problems, f'{len(pages)} pages, {links} internal links, {len(problems)} problems', sep='\n'
    )
    return bool(problems)


if __name__ == '__main__':
    sys.exit(main())
