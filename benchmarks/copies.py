"""Search edited copies of photos by methods that prove more and more; write copies.json.

python benchmarks/copies.py           # needs ../shared/data/grocery
python benchmarks/copies.py --quick   # a few pictures: does everything still run?

The edits are harsher than those that training makes (two_tower_vs.copies), and others. Half of
the queries were made from photos that are not in the catalogue.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from datetime import date
from io import BytesIO
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from peers import RESULTS, ROOT, machine

WORDS = 'WHEN you finally find THE one nobody told me about this is fine monday again'.split()
HITS = 50
FIRST = 10  # hits of each query that count


def write(image, box, rng, fill, outline=None):
    "A few words in a box (x, y, width, height)"
    from PIL import ImageDraw, ImageFont

    x, y, width, height = box
    words = ' '.join(rng.sample(WORDS, 4)).upper()
    font = ImageFont.load_default(max(8, min(0.7 * height, 1.7 * width / len(words))))
    ImageDraw.Draw(image).text(
        (x + width / 2, y + height / 2),
        words,
        fill=fill,
        font=font,
        anchor='mm',
        stroke_width=2 if outline else 0,
        stroke_fill=outline,
    )


def as_jpeg(image, quality):
    "The bytes of a JPEG file"
    file = BytesIO()
    image.save(file, 'JPEG', quality=quality)
    return file.getvalue()


def overlay(image, rng, others):
    "Three opaque shapes and a line of text over it"
    from PIL import ImageDraw

    image = image.copy()
    draw = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(3):
        w = rng.uniform(0.3, 0.5) * width
        h = rng.uniform(0.2, 0.4) * height
        x = rng.uniform(0, width - w)
        y = rng.uniform(0, height - h)
        color = tuple(rng.randrange(256) for _ in 'rgb')
        rng.choice([draw.ellipse, draw.rectangle])((x, y, x + w, y + h), fill=color)
    write(image, (0, 0.4 * height, width, 0.2 * height), rng, 'white', 'black')
    return image


def in_an_app(image, rng):
    "As shown by some app: bars with text around it"
    from PIL import Image

    width, height = image.size
    top = round(height * rng.uniform(0.1, 0.25))
    bottom = round(height * rng.uniform(0.1, 0.35))
    side = round(width * rng.uniform(0, 0.15))
    ground, ink = rng.choice([('white', 'black'), ('#111', 'white'), ('#eef', 'black')])
    canvas = Image.new('RGB', (width + 2 * side, height + top + bottom), ground)
    canvas.paste(image, (side, top))
    write(canvas, (0, 0, canvas.width, top), rng, ink)
    write(canvas, (0, top + height, canvas.width, bottom / 2), rng, ink)
    return canvas


def screenshots(image, rng, others):
    "A screenshot of a screenshot, each smaller and compressed again"
    from PIL import Image

    for _ in range(2):
        image = in_an_app(image, rng)
        factor = rng.uniform(0.5, 0.75)
        image = image.resize([round(factor * side) for side in image.size], Image.BILINEAR)
        image = Image.open(BytesIO(as_jpeg(image, rng.randint(30, 60)))).convert('RGB')
    return image


def crop(image, rng, others):
    "A fifth of its area"
    width, height = image.size
    ratio = rng.uniform(0.75, 1.33)
    w = min(width, round((0.2 * width * height * ratio) ** 0.5))
    h = min(height, round((0.2 * width * height / ratio) ** 0.5))
    x = rng.randint(0, width - w)
    y = rng.randint(0, height - h)
    return image.crop((x, y, x + w, y + h))


def meme(image, rng, others):
    "Bars with text above and below, text across, more contrast"
    from PIL import Image, ImageEnhance

    width, height = image.size
    bar = height // 4
    canvas = Image.new('RGB', (width, height + 2 * bar), 'white')
    canvas.paste(ImageEnhance.Contrast(image).enhance(1.5), (0, bar))
    write(canvas, (0, 0, width, bar), rng, 'black')
    write(canvas, (0, height + bar, width, bar), rng, 'black')
    write(canvas, (0, bar + 0.2 * height, width, 0.2 * height), rng, 'white', 'black')
    write(canvas, (0, bar + 0.8 * height, width, 0.15 * height), rng, 'yellow', 'black')
    return canvas


def collage(image, rng, others):
    "One of four pictures"
    from PIL import Image, ImageOps

    side = round(0.6 * max(image.size))
    tiles = [image, *rng.sample(others, 3)]
    rng.shuffle(tiles)
    canvas = Image.new('RGB', (2 * side, 2 * side), 'white')
    for i, tile in enumerate(tiles):
        canvas.paste(
            ImageOps.fit(tile, (side - 4, side - 4)), (i % 2 * side + 2, i // 2 * side + 2)
        )
    return canvas


def mirror(image, rng, others):
    "Mirrored, and cropped"
    from PIL import ImageOps

    width, height = image.size
    left, top, right, bottom = (rng.uniform(0, 0.25) for _ in range(4))
    box = left * width, top * height, (1 - right) * width, (1 - bottom) * height
    return ImageOps.mirror(image).crop([round(edge) for edge in box])


def screen(image, rng, others):
    "A photo of a screen: in perspective, blurred, in another light"
    from PIL import Image, ImageEnhance, ImageFilter

    width, height = image.size
    canvas = Image.new('RGB', (round(1.6 * width), round(1.6 * height)), '#654')
    canvas.paste(image, (round(0.3 * width), round(0.3 * height)))

    def near():
        return rng.uniform(0, 0.25)

    def far():
        return rng.uniform(1.35, 1.6)

    corners = [(near(), near()), (near(), far()), (far(), far()), (far(), near())]
    flat = []
    for x, y in corners:
        flat += [x * width, y * height]
    size = round(1.2 * width), round(1.2 * height)
    image = canvas.transform(size, Image.Transform.QUAD, flat, Image.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    return ImageEnhance.Brightness(image).enhance(rng.uniform(0.6, 1.3))


EDITS = {
    'overlay': overlay,
    'screenshot twice': screenshots,
    'crop to 20 %': crop,
    'meme': meme,
    'collage': collage,
    'mirrored': mirror,
    'photo of a screen': screen,
}


def opened(path, side=512):
    from PIL import Image

    image = Image.open(path).convert('RGB')
    image.thumbnail((side, side))
    return image


class Copies:
    "A catalogue of photos, and harsh copies of some of them and of strangers"

    def __init__(self, part, count, queries, folder):
        photos = ROOT.parent / 'shared/data/grocery/images' / part
        files = sorted(photos.rglob('*.jpg'))
        products = sorted({file.parent.name for file in files})
        rng = random.Random(0)
        rng.shuffle(products)
        ours = set(products[: 2 * len(products) // 3])  # strangers are of other products
        rng.shuffle(files)
        self.catalogue = [str(f) for f in files if f.parent.name in ours][:count]
        strangers = [f for f in files if f.parent.name not in ours]
        half = queries // 2
        fillers = [opened(f) for f in strangers[half : half + 40]]
        names = list(EDITS)
        self.paths = []
        self.edits = [names[i % len(names)] for i in range(2 * half)]
        self.answers = np.r_[np.arange(half), np.full(half, -1)]  # row of the catalogue; -1: none
        folder.mkdir(parents=True, exist_ok=True)
        for i, edit in enumerate(self.edits):
            source = self.catalogue[i] if i < half else strangers[i - half]
            rng = random.Random(i)
            copy = EDITS[edit](opened(source), rng, fillers)
            self.paths.append(str(folder / f'{i}.jpg'))
            Path(self.paths[-1]).write_bytes(as_jpeg(copy, rng.randint(35, 75)))


def first_hits(scores, count=HITS):
    "(rows, scores) of the best candidates of each query"
    rows = np.argsort(-scores, 1, kind='stable')[:, :count]
    return rows, np.take_along_axis(scores, rows, 1)


def judged(copies, rows, scores):
    "micro-AP and recall at 90 % precision over the first hits; Recall@1 of each edit"
    from two_tower_vs.microap import first_predictions, micro_ap, recall_at_precision

    order = np.argsort(-scores, 1, kind='stable')[:, :FIRST]
    rows = np.take_along_axis(rows, order, 1)
    scores = np.take_along_axis(scores, order, 1)
    asked = np.flatnonzero(copies.answers >= 0)
    found = first_predictions(rows, scores, asked, copies.answers[asked])
    pairs = found.scores, found.right, len(asked)
    right = rows[asked, 0] == copies.answers[asked]
    edits = np.array(copies.edits)[asked]
    each = {edit: round(float(right[edits == edit].mean()), 4) for edit in EDITS}
    return {
        'micro_ap': round(micro_ap(*pairs), 4),
        'recall@p90': round(recall_at_precision(*pairs).recall, 4),
        'recall@1': round(float(right.mean()), 4),
        'edits': each,
    }


def checked_by_sklearn(copies, rows, scores, ours):
    "scikit-learn's average precision, scaled by the share of right answers among the hits"
    from sklearn.metrics import average_precision_score

    rows = rows[:, :FIRST]
    right = (rows == copies.answers[:, None]).ravel()
    theirs = average_precision_score(right, scores[:, :FIRST].ravel())
    theirs *= right.sum() / (copies.answers >= 0).sum()
    assert abs(theirs - ours) < 1e-3, (theirs, ours)


def by_hash(copies):
    "Bits in common of the 64 of ImageHash's pHash, and ms to compare"
    from imagehash import phash

    def bits(paths):
        return np.array([phash(opened(path)).hash.ravel() for path in paths], np.float32)

    candidates = 2 * bits(copies.catalogue) - 1
    start = time.perf_counter()
    queries = 2 * bits(copies.paths) - 1
    scores = queries @ candidates.T / 64
    ms = 1000 * (time.perf_counter() - start) / len(queries)
    return first_hits(scores), ms


def by_vectors(copies, model, cache):
    "Cosines of a model's vectors, and ms to embed and search"
    from two_tower_vs.embed import embed

    candidates = embed(model.cand, copies.catalogue, '', cache, progress=False).vectors
    embed(model.query, copies.paths[:8], '', progress=False)
    start = time.perf_counter()
    queries = embed(model.query, copies.paths, '', progress=False).vectors
    scores = queries @ candidates.T
    ms = 1000 * (time.perf_counter() - start) / len(queries)
    return first_hits(scores), ms


def inliers_of(copies, rows):
    "Details that agree (n, k); ms of a query's keypoints, a candidate's, and 50 comparisons"
    from two_tower_vs.pictures import load_pixels
    from two_tower_vs.rescore import Verifier

    verifier = Verifier('', keep=len(copies.catalogue))
    start = time.perf_counter()
    needed = sorted({int(row) for row in rows.ravel()})
    for row in needed:
        verifier.candidate(copies.catalogue[row])
    each = 1000 * (time.perf_counter() - start) / len(needed)
    start = time.perf_counter()
    queries = [verifier.query(load_pixels(path, side=400)) for path in copies.paths]
    query = 1000 * (time.perf_counter() - start) / len(queries)
    start = time.perf_counter()
    inliers = []
    for found, some in zip(queries, rows):
        evidence = verifier.evidence(found, [copies.catalogue[row] for row in some])
        inliers.append([one.inliers for one in evidence])
    compare = 1000 * (time.perf_counter() - start) / len(queries)
    ms = dict(query=round(query, 1), candidate=round(each, 1), compare=round(compare, 1))
    return np.array(inliers), ms


def trained(copies, scratch):
    "Towers trained on the edited copies that `init` makes of the catalogue"
    import pandas as pd

    from two_tower_vs.copies import make_copies
    from two_tower_vs.model import TwoTower
    from two_tower_vs.train import train

    table, _ = make_copies(copies.catalogue, '', scratch / 'copies', progress=False)
    originals = dict(zip(table[~table["copy"]].thing, table[~table["copy"]].path))
    made = table[table["copy"]]
    pairs = pd.DataFrame(
        {
            'query_path': [str(scratch / 'copies' / path) for path in made.path],
            'cand_path': [originals[thing] for thing in made.thing],
        }
    )
    model = TwoTower()
    train(model, pairs, '', scratch / 'cache', candidates=copies.catalogue, progress=False)
    return model


def measured(copies, scratch, weights, train_too):
    "Every method's figures; of verification for each weight"
    from two_tower_vs.model import TwoTower
    from two_tower_vs.rescore import combined

    (rows, scores), ms = by_hash(copies)
    cells = {'pHash': {**judged(copies, rows, scores), 'ms': round(ms, 1)}}
    models = {'plain backbone': TwoTower(levels=0, embed_dim=None)}
    if train_too:
        models['trained towers'] = trained(copies, scratch)
    for name, model in models.items():
        (rows, scores), ms = by_vectors(copies, model, scratch / 'cache')
        cells[name] = {**judged(copies, rows, scores), 'ms': round(ms, 1)}
        checked_by_sklearn(copies, rows, scores, cells[name]['micro_ap'])
        inliers, stage = inliers_of(copies, rows)
        for weight in weights:
            found = judged(copies, rows, combined(scores, inliers, weight))
            cells[f'{name}, verified, weight {weight}'] = {**found, 'ms': round(ms, 1), **stage}
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--quick', action='store_true', help='a few pictures each')
    parser.add_argument('--out', type=Path, default=RESULTS / 'copies.json')
    args = parser.parse_args()
    from two_tower_vs.files import replacing

    if not (ROOT.parent / 'shared/data/grocery').is_dir():
        sys.exit('No ../shared/data/grocery beside the repository: nothing to search.')
    count, queries = (60, 28) if args.quick else (300, 140)
    results = {}
    # The weight is chosen on one part, and used on the other
    for part, weights in (('train', (0.5, 1, 2, 4)), ('test', (2,))):
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            copies = Copies(part, count, queries, scratch / 'queries')
            results[part] = measured(copies, scratch, weights, part == 'test')
            print(part, json.dumps(results[part], indent=1), flush=True)
    out = dict(
        date=str(date.today()),
        machine=machine(),
        candidates=count,
        queries=queries,
        first=FIRST,
        results=results,
    )
    with replacing(args.out) as (file,):
        file.write_text(json.dumps(out, indent=1) + '\n')


if __name__ == '__main__':
    main()
