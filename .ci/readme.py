"""README.md and its figures from nbs/index.ipynb, without Quarto.  usage: readme.py [--check]"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pypandoc
import yaml
from nbconvert import MarkdownExporter
from nbdev import serve_drv
from nbdev.processors import FilterDefaults

ROOT = Path(__file__).resolve().parent.parent


def to_markdown(path):
    "The front matter, the Markdown body and the figures (name: bytes) of a processed notebook"
    nb = nbformat.read(path, 4)
    nb.metadata.setdefault('language_info', {'name': 'python'})
    alts = quarto_options(nb)
    names = {'output_files_dir': f'{path.stem}_files', 'unique_key': path.stem}
    text, res = MarkdownExporter(exclude_input_prompt=True).from_notebook_node(nb, names)
    text = re.sub(
        r'!\[\w*\](?=\(\S+_(\d+)_\d+\.\w+\))', lambda m: f'![{alts.get(int(m[1]), "")}]', text
    )
    head, body = re.match(r'\s*(?:---\n(.*?)\n---\n)?(.*)', text, re.S).groups()
    return yaml.safe_load(head or '') or {}, body, res['outputs']


def quarto_options(nb):
    "Takes Quarto's options out of the code and obeys `echo`; returns the `fig-alt` of each cell"
    alts = {}
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != 'code':
            continue
        options = (
            yaml.safe_load('\n'.join(re.findall(r'^#\|\s*([\w-]+:.*)$', cell.source, re.M))) or {}
        )
        cell.source = re.sub(r'^#\|\s*[\w-]+:.*\n?', '', cell.source, flags=re.M)
        if options.get('echo') is False:
            cell.metadata['transient'] = {'remove_source': True}
        alts[i] = options.get('fig-alt', '')
    return alts


def pandoc(text, to, *args):
    "Convert `text`; a warning is an error"
    cmd = [
        pypandoc.get_pandoc_path(),
        '-f',
        'markdown+emoji-implicit_figures',
        '-t',
        to,
        '--fail-if-warnings',
        *args,
    ]
    r = subprocess.run(cmd, input=text, text=True, capture_output=True)
    if r.returncode:
        raise ValueError(f'pandoc: {r.stderr.strip()}')
    return r.stdout


def render():
    "README's text, and the figures that it shows"
    with tempfile.TemporaryDirectory() as tmp:
        processed = Path(tmp) / 'index.ipynb'
        serve_drv.main((ROOT / 'nbs/index.ipynb', processed, FilterDefaults))
        meta, body, figures = to_markdown(processed)
    text = f"# {meta['title']}\n\n> {meta['description']}\n\n" + pandoc(body, 'gfm', '--wrap=none')
    return text, {name: data for name, data in figures.items() if name in text}


def committed():
    return {
        p.relative_to(ROOT).as_posix(): p.read_bytes() for p in (ROOT / 'index_files').glob('*')
    }


def problems(text, figures):
    "What is wrong with the README in the working tree"

    def squeeze(s):
        return ' '.join(s.split())  # nbconvert's versions differ in white space

    readme = ROOT / 'README.md'
    have = committed()
    if not readme.exists() or squeeze(readme.read_text(encoding='utf-8')) != squeeze(text):
        yield 'README.md is not nbs/index.ipynb: run make readme'
    for name in sorted({*have, *figures}):
        if have.get(name) != figures.get(name):
            yield f'{name} is not in step with nbs/index.ipynb: run make readme'
    for tag in re.findall(r'<(?:style|script)', text):
        yield f'index.ipynb: GitHub shows the text of {tag}> in an output; show a Markdown table'
    for link in re.findall(r'\]\(([^)\s]+)|(?:src|href)="([^"]+)', text):
        link = ''.join(link).split('#')[0]
        if link and not re.match(r'[a-z]+:', link) and link not in figures:
            where = 'leads nowhere from README.md: link to the address of the page on the site'
            yield f'index.ipynb: {link} {where}'


def write(text, figures):
    for name in committed():
        (ROOT / name).unlink()
    for name, data in figures.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)
    (ROOT / 'README.md').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    text, figures = render()
    if '--check' not in sys.argv:
        write(text, figures)
    found = list(problems(text, figures))
    print(*found, f'README.md: figures: {len(figures)}, problems: {len(found)}', sep='\n')
    sys.exit(bool(found))
