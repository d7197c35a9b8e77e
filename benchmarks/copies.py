"""Search harshly edited copies by hash, as the peers do, and by trained towers with what proves
more and more; write copies.json.

    python benchmarks/copies.py           # some ten minutes on two idle cores
    python benchmarks/copies.py --times   # only milliseconds, into the copies.json that is there
    python benchmarks/copies.py --quick   # a few pictures: does everything still run?

The edits are harsher than those that training makes (two_tower_vs.copies), and others. Half of
the queries were made from pictures of things that are not in the catalogue. Grocery photos are
taken where ../shared/data/grocery is beside the repository, emojis always.
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
HITS = 50  # that verification compares
FIRST = 10  # hits of each query that count
SEEDS = 11, 12, 13  # of pictures, edits and training; nothing was chosen on them
NEIGHBOURS = 1, 3, 10, 30  # bystanders; 3 is what the package takes


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


def grocery(part):
    "Photos of a part, and the product of each; none where they are not beside the repository"
    folder = ROOT.parent / 'shared/data/grocery/images' / part
    files = sorted(folder.rglob('*.jpg'))
    return files, [file.parent.name for file in files]


def emojis():
    "Colour emojis; each is a product of its own"
    from two_tower_vs.demo import demo_catalog

    files = sorted((demo_catalog(ROOT / 'nbs/demo') / 'images/color').glob('*.png'))
    return files, [file.stem for file in files]


class Copies:
    "A catalogue of pictures, and harsh copies of some of them and of strangers"

    def __init__(self, files, products, seed, count, queries, folder):
        rng = random.Random(seed)
        names = sorted(set(products))
        rng.shuffle(names)
        ours = set(names[: 2 * len(names) // 3])  # strangers are of other products
        pictures = list(zip(files, products))
        rng.shuffle(pictures)
        known = [picture for picture in pictures if picture[1] in ours][:count]
        strange = [picture for picture in pictures if picture[1] not in ours]
        half = queries // 2
        self.catalogue = [str(file) for file, _ in known]
        self.answers = np.r_[np.arange(half), np.full(half, -1)]  # row of the catalogue; -1: none
        sources = [*known[:half], *strange[:half]]
        self.products = np.unique([product for _, product in sources], return_inverse=True)[1]
        self.edits = [list(EDITS)[i % len(EDITS)] for i in range(2 * half)]
        fillers = [opened(file) for file, _ in strange[half : half + 40]]
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = []
        for i, ((file, _), edit) in enumerate(zip(sources, self.edits)):
            rng = random.Random(1000 * seed + i)
            copy = EDITS[edit](opened(file), rng, fillers)
            self.paths.append(str(folder / f'{i}.jpg'))
            Path(self.paths[-1]).write_bytes(as_jpeg(copy, rng.randint(35, 75)))

    @property
    def asked(self):
        return np.flatnonzero(self.answers >= 0)


def first_hits(scores, count=HITS):
    "(rows, scores) of the best candidates of each query"
    rows = np.argsort(-scores, 1, kind='stable')[:, :count]
    return rows, np.take_along_axis(scores, rows, 1)


def in_order(rows, scores):
    "The first hits after another score"
    order = np.argsort(-scores, 1, kind='stable')[:, :FIRST]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def listed(copies, rows, scores):
    "All first hits as one list"
    from two_tower_vs.microap import first_predictions

    return first_predictions(*in_order(rows, scores), copies.asked, copies.answers[copies.asked])


def padded(found, count):
    "The same, with the queries that have no answer counted too"
    from dataclasses import replace

    return replace(found, answers=np.pad(found.answers, (0, count - len(found.answers))))


def rounded(cell):
    return dict(value=round(cell['value'], 4), ci95=[round(end, 4) for end in cell['ci95']])


def judged(copies, hits, baseline):
    "micro-AP, recall at 90 % precision, Recall@1, the gain over the baseline, and by edit"
    from two_tower_vs.one_ranking import OneRanking
    from two_tower_vs.statistics import interval

    count = len(copies.paths)
    lists = {'trained': listed(copies, *hits), 'baseline': listed(copies, *baseline)}
    lists = {name: padded(found, count) for name, found in lists.items()}
    found = OneRanking(lists, copies.products, count).compared()
    checked_by_sklearn(copies, *hits, found['trained']['micro_ap']['value'])
    rows, _ = in_order(*hits)
    right = rows[copies.asked, 0] == copies.answers[copies.asked]
    first = interval(right.astype(float), copies.products[copies.asked])
    edits = np.array(copies.edits)[copies.asked]
    return {
        **{name: rounded(cell) for name, cell in found['trained'].items()},
        'recall@1': rounded(dict(value=first.mean, ci95=first.ci95)),
        'gain': {name: rounded(cell) for name, cell in found['delta'].items()},
        'edits': {edit: round(float(right[edits == edit].mean()), 4) for edit in EDITS},
    }


def checked_by_sklearn(copies, rows, scores, ours):
    "scikit-learn's average precision, scaled by the share of right answers among the hits"
    from sklearn.metrics import average_precision_score

    rows, scores = in_order(rows, scores)
    right = (rows == copies.answers[:, None]).ravel()
    theirs = average_precision_score(right, scores.ravel())
    theirs *= right.sum() / len(copies.asked)
    assert abs(theirs - ours) < 1e-3, (theirs, ours)


def by_hash(copies):
    "Bits in common of the 64 of ImageHash's pHash"
    from imagehash import phash

    def bits(paths):
        return np.array([phash(opened(path)).hash.ravel() for path in paths], np.float32)

    candidates = 2 * bits(copies.catalogue) - 1
    return first_hits((2 * bits(copies.paths) - 1) @ candidates.T / 64)


def vectors(copies, model, cache):
    "(of queries, of candidates)"
    from two_tower_vs.embed import embed

    candidates = embed(model.cand, copies.catalogue, '', cache, progress=False).vectors
    queries = embed(model.query, copies.paths, '', progress=False).vectors
    return queries, candidates


def inliers_of(copies, rows):
    "Details that agree (n, k)"
    from two_tower_vs.pictures import load_pixels
    from two_tower_vs.rescore import Verifier
    from two_tower_vs.threads import in_threads

    verifier = Verifier('', keep=len(copies.catalogue))
    queries = in_threads(lambda path: verifier.query(load_pixels(path, side=400)), copies.paths)
    inliers = []
    for found, some in zip(queries, rows):
        evidence = verifier.evidence(found, [copies.catalogue[row] for row in some])
        inliers.append([one.inliers for one in evidence])
    return np.array(inliers)


def trained(copies, scratch, seed):
    "Towers trained on the edited copies that `init` makes of the catalogue, and what came of it"
    import pandas as pd

    from two_tower_vs.copies import make_copies
    from two_tower_vs.model import TwoTower
    from two_tower_vs.train import train

    folder = scratch / 'copies'
    table, _ = make_copies(copies.catalogue, '', folder, seed, progress=False)
    originals = dict(zip(table[~table['copy']].thing, table[~table['copy']].path))
    made = table[table['copy']]
    pairs = pd.DataFrame(
        {
            'query_path': [str(folder / path) for path in made.path],
            'cand_path': [originals[thing] for thing in made.thing],
        }
    )
    model = TwoTower(seed=seed)
    options = dict(candidates=copies.catalogue, seed=seed, progress=False)
    return model, train(model, pairs, '', scratch / 'cache', **options)


def decisions(model, training):
    "What `auto` decides from held-out copies of its own"
    from two_tower_vs.paying import decide
    from two_tower_vs.rescore import Verifier

    normalizing = model.training_info['normalizing'] or dict(gains=False, why='not tried')
    found = decide(training.held_lists, Verifier(''), normalizing['gains'])
    return dict(
        kept=training.kept,
        normalize=dict(on=normalizing['gains'], why=normalizing['why']),
        verify=dict(on=bool(found['on']), why=found['reason']),
    )


def measured(copies, scratch, seed):
    "Every method's figures, and what is decided"
    from two_tower_vs.bystanders import columns_of, levels, neighbours
    from two_tower_vs.model import TwoTower
    from two_tower_vs.rescore import combined

    plain, candidates = vectors(copies, TwoTower(levels=0, embed_dim=None), scratch / 'cache')
    peers = first_hits(plain @ candidates.T)
    hits = {'pHash': by_hash(copies), 'frozen backbone': peers}
    proven = combined(peers[1], inliers_of(copies, peers[0]))
    hits['frozen backbone, verified'] = peers[0], proven
    model, training = trained(copies, scratch, seed)
    queries, candidates = vectors(copies, model, scratch / 'cache')
    similar = queries @ candidates.T
    rows, scores = first_hits(similar)
    # The catalogue's pictures are the candidates of the training pairs, so they are the bystanders
    first = columns_of(rows[:, 0], np.arange(len(copies.catalogue)))
    level = {k: levels(similar, first, k)[:, None] for k in NEIGHBOURS}
    hits |= of_trained(rows, scores, level[neighbours], inliers_of(copies, rows))
    by_neighbours = {k: (rows, scores - level[k]) for k in level}
    return dict(
        methods={name: judged(copies, found, peers) for name, found in hits.items()},
        neighbours=without_edits(copies, by_neighbours, hits['trained towers']),
        decided=decisions(model, training),
    )


def of_trained(rows, scores, level, inliers):
    "Hits of the trained towers, as they are, normalised and verified"
    from two_tower_vs.rescore import combined

    return {
        'trained towers': (rows, scores),
        'trained, normalised': (rows, scores - level),
        'trained, verified': (rows, combined(scores, inliers)),
        'trained, normalised, verified': (rows, combined(scores - level, inliers)),
    }


def without_edits(copies, by_neighbours, others):
    "Figures for each number of bystanders, against plain scores"
    figures = {}
    for k, found in by_neighbours.items():
        cell = judged(copies, found, others)
        figures[k] = {name: cell[name] for name in ('micro_ap', 'recall@p90', 'gain')}
    return figures


def weights(count, queries, scratch):
    "The weight of evidence: other photos than those that judge it, by the frozen backbone"
    from two_tower_vs.model import TwoTower
    from two_tower_vs.rescore import combined

    files, products = grocery('train')
    copies = Copies(files, products, 0, count, queries, scratch / 'queries')
    queries, candidates = vectors(copies, TwoTower(levels=0, embed_dim=None), scratch / 'cache')
    rows, scores = first_hits(queries @ candidates.T)
    inliers = inliers_of(copies, rows)
    return {
        weight: judged(copies, (rows, combined(scores, inliers, weight)), (rows, scores))[
            'micro_ap'
        ]
        for weight in (0, 0.5, 1, 2, 4)
    }


def one_at_a_time(work, items):
    "Quantiles of the milliseconds of each"
    ms = []
    for item in items:
        start = time.perf_counter()
        work(item)
        ms.append(1000 * (time.perf_counter() - start))
    return dict(p50=round(float(np.median(ms)), 2), p95=round(float(np.quantile(ms, 0.95)), 2))


def searcher_of(copies, model, engine):
    "What answers single queries"
    from two_tower_vs.embed import embed
    from two_tower_vs.index import build_index
    from two_tower_vs.query import Searcher

    candidates = embed(model.cand, copies.catalogue, '', progress=False, engine=engine)
    index = build_index(candidates, '0' * 64, kind='flat')
    return Searcher(model, index, engine=engine, images_root='')


def milliseconds(copies, runs):
    "Of single queries, from the file to the hits; every file is another one"
    from imagehash import phash

    from two_tower_vs.latency import latency
    from two_tower_vs.model import TwoTower

    files = copies.paths[: runs + 3]
    hashes = np.array([phash(opened(path)).hash.ravel() for path in copies.catalogue])
    found = {
        'pHash': {
            'total': one_at_a_time(
                lambda path: (hashes == phash(opened(path)).hash.ravel()).sum(1).argsort(), files
            )
        }
    }
    peers = searcher_of(copies, TwoTower(levels=0, embed_dim=None), 'torch')
    found['frozen backbone'] = card_of(latency(peers, files, 10, runs))
    towers = searcher_of(copies, TwoTower(), 'auto')
    found['trained towers'] = card_of(latency(towers, files, 10, runs))
    always = towers.with_verify('always')
    found['verified, candidates not seen before'] = card_of(latency(always, files, 10, runs))
    found['verified, candidates seen before'] = card_of(latency(always, files, 10, runs))
    return found


def card_of(table):
    "Step -> p50 and p95"
    return {step: dict(p50=row.p50, p95=row.p95) for step, row in table.iterrows()}


def in_scratch(work, *args):
    "The result of a function that gets an empty folder"
    with tempfile.TemporaryDirectory() as folder:
        return work(*args, Path(folder))


def one_run(name, pictures, seed, sizes, scratch):
    copies = Copies(*pictures, seed, *sizes, scratch / 'queries')
    start = time.perf_counter()
    found = measured(copies, scratch, seed)
    best = found['methods']['trained, normalised, verified']
    print(f'{name}, seed {seed}: {time.perf_counter() - start:.0f} s', best, flush=True)
    return found


def timed(pictures, sizes, runs, scratch):
    return milliseconds(Copies(*pictures, SEEDS[0], *sizes, scratch / 'queries'), runs)


def runs(name, found, seeds, sizes):
    "A run for each seed"
    return {seed: in_scratch(one_run, name, found, seed, sizes) for seed in seeds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--quick', action='store_true', help='a few pictures each')
    parser.add_argument('--times', action='store_true', help='measure the milliseconds alone')
    parser.add_argument('--out', type=Path, default=RESULTS / 'copies.json')
    args = parser.parse_args()
    from two_tower_vs.files import replacing

    sizes = (90, 28) if args.quick else (300, 140)
    sets = {'grocery photos': grocery('test'), 'emojis': emojis()}
    sets = {name: found for name, found in sets.items() if found[0]}
    first = next(iter(sets.values()))
    out = json.loads(args.out.read_text()) if args.times else {}
    if not args.times:
        out = dict(candidates=sizes[0], queries=sizes[1], first=FIRST, date=str(date.today()))
        seeds = SEEDS[:1] if args.quick else SEEDS
        out['runs'] = {name: runs(name, found, seeds, sizes) for name, found in sets.items()}
        if 'grocery photos' in sets:
            out['weights'] = in_scratch(weights, *sizes)
    out['times'] = dict(machine=machine(), date=str(date.today()))
    out['times']['ms'] = in_scratch(timed, first, sizes, 10 if args.quick else 100)
    with replacing(args.out) as (file,):
        file.write_text(json.dumps(out, indent=1) + '\n')


if __name__ == '__main__':
    main()
