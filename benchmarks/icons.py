"""Pairs of pictures out of npm packages: two families of icons draw things of the same name.

Half of the shared names are pairs to train on, the other half are queries to answer; the
candidates are the whole second family. Needs npm, and nothing else from outside.
"""

import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd

SIDE = 160  # pixels
EDGE = 8  # pixels of white around a picture

# name: (family that asks, family that answers, names that are left out)
STYLES = '(-bold|-light|-thin|-fill|-duotone|-filled)$'
SETS = {
    'lucide to tabler': ('lucide@1.2.137', 'tabler@1.2.41', STYLES),
    'bootstrap to phosphor': ('bi@1.2.7', 'ph@1.2.2', STYLES),
    'logos in black to logos in colour': ('simple-icons@1.2.103', 'logos@1.2.19', None),
    'round flags to flags': ('circle-flags@1.2.11', 'flagpack@1.2.8', None),
}


def family(pack: str, folder: Path) -> dict:
    "Name -> SVG of a package of Iconify, which npm fetches once"
    file = folder / f'{pack}.tgz'
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ['npm', 'pack', '--silent', f'@iconify-json/{pack}']
        made = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        (folder / made.stdout.split()[-1]).rename(file)
    with tarfile.open(file) as archive:
        found = json.load(archive.extractfile('package/icons.json'))
    return {name: _svg(icon, found) for name, icon in found['icons'].items()}


def _svg(icon, family):
    "As large as it will be in the square"
    width = icon.get('width', family.get('width', 16))
    height = icon.get('height', family.get('height', 16))
    view = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
    share = (SIDE - 2 * EDGE) / max(width, height)
    body = icon['body'].replace('currentColor', '#000')
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width * share}" height="{height * share}" viewBox="{view}">{body}</svg>'
    )


def drawn(svg: str):  # PIL.Image
    "An icon in the middle of a white square"
    import resvg_py
    from PIL import Image

    data = resvg_py.svg_to_bytes(svg_string=svg)
    icon = Image.open(io.BytesIO(bytes(data))).convert('RGBA')
    square = Image.new('RGBA', (SIDE, SIDE), 'white')
    square.alpha_composite(icon, tuple((SIDE - side) // 2 for side in icon.size))
    return square.convert('RGB')


def _draw_all(icons, names, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        drawn(icons[name]).save(folder / f'{name}.png')


def icon_set(name: str, work: Path) -> Path:  # a folder as --stage init would take it
    "Draw a set of SETS once: images/, pairs.csv, query_gt.csv, candidates.csv"
    folder = work / name.replace(' ', '_')
    if (folder / 'candidates.csv').exists():
        return folder
    asks, answers, left_out = SETS[name]
    queries = family(asks, work / 'packages')
    cands = family(answers, work / 'packages')
    if left_out:
        cands = {key: svg for key, svg in cands.items() if not re.search(left_out, key)}
    shared = sorted(set(queries) & set(cands))
    _draw_all(queries, shared, folder / 'images/asks')
    _draw_all(cands, sorted(cands), folder / 'images/answers')
    shuffled = np.random.default_rng(0).permutation(shared)
    train, test = np.array_split(shuffled, 2)
    _table(train, 'cand_path').to_csv(folder / 'pairs.csv', index=False)
    _table(test, 'gt_cand_path').to_csv(folder / 'query_gt.csv', index=False)
    paths = [f'answers/{key}.png' for key in sorted(cands)]
    pd.DataFrame({'cand_path': paths}).to_csv(folder / 'candidates.csv', index=False)
    return folder


def _table(names, column):
    names = sorted(names)
    asks = [f'asks/{name}.png' for name in names]
    return pd.DataFrame({'query_path': asks, column: [f'answers/{name}.png' for name in names]})
