"""One set of photos as queries and gallery: no query is its own hit, unless it is marked right."""

import json
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from two_tower_vs.embed import embed
from two_tower_vs.eval import evaluate
from two_tower_vs.model import TwoTower
from two_tower_vs.saving import load_model, save_model
from two_tower_vs.train import train


def ordered_pairs(classes):
    "All ordered pairs of different photos of one class"
    return [pair for photos in classes for pair in permutations(photos, 2)]


def tables(classes):
    "The pairs as training table and as truth, and the list of photos"
    rows = ordered_pairs(classes)
    pairs = pd.DataFrame(rows, columns=['query_path', 'cand_path'])
    truth = pd.DataFrame(rows, columns=['query_path', 'gt_cand_path'])
    photos = pd.DataFrame({'cand_path': sorted(photo for photos in classes for photo in photos)})
    return pairs, truth, photos


@pytest.fixture(scope='module')
def gallery(tmp_path_factory):
    "40 classes of 8 photos: a colour and a pattern for each class, noise for each photo"
    root = tmp_path_factory.mktemp('one gallery')
    rng = np.random.default_rng(0)
    classes = []
    for number in range(40):
        pattern = rng.integers(0, 256, (4, 4, 3))
        photos = []
        for photo in range(8):
            pixels = pattern.repeat(12, 0).repeat(12, 1) + rng.normal(0, 60, (48, 48, 3))
            name = f'{number:02}-{photo}.png'
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name)
            photos.append(name)
        classes.append(photos)
    return root, classes


@pytest.fixture(scope='module')
def model():
    return TwoTower(image_size=48, embed_dim=32, levels=1)


def brute_force(vectors, label):
    "Leave-one-out metrics of each photo, answer by answer; scores within 1e-6 are equal"
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    place = np.arange(len(scores))
    rows = []
    for i in place:
        ranks = []
        for j in np.flatnonzero((label == label[i]) & (place != i)):
            lead = scores[i] - scores[i, j]
            ranks.append(1 + (lead > 1e-6).sum() + ((abs(lead) <= 1e-6) & (place < j)).sum())
        ranks = np.array(ranks)
        rows.append(
            {
                'recall@1': (ranks <= 1).mean(),
                'recall@5': (ranks <= 5).mean(),
                'hit@1': float(ranks.min() == 1),
                'hit@5': float(ranks.min() <= 5),
                'mrr': 1 / ranks.min(),
            }
        )
    return pd.DataFrame(rows)


def test_leave_one_out_equals_brute_force(gallery, model):
    root, classes = gallery
    _, truth, photos = tables(classes)
    found = evaluate(model, truth, photos, root, k=[1, 5], embedding={'engine': 'torch'})
    vectors = embed(model.cand, photos.cand_path, root, engine='torch').vectors.astype(np.float64)
    label = photos.cand_path.str[:2].to_numpy()
    want = brute_force(vectors, label)
    assert 0 < want['hit@1'].mean() < 1
    queries = found.queries.set_index('query_path').loc[photos.cand_path]
    for metric in ('recall@1', 'recall@5'):
        assert np.abs(queries[metric].to_numpy() - want[metric].to_numpy()).max() < 1e-9
    for metric in want:  # metrics.json has six digits
        assert found.metrics['trained'][metric]['value'] == pytest.approx(
            want[metric].mean(), abs=6e-7
        ), metric
    assert found.metrics['self_excluded'] == 320
    assert (queries.top1.to_numpy() != photos.cand_path.to_numpy()).all()
    assert found.metrics['intervals'] == {'unit': 'product', 'clusters': 40}


def test_a_copy_under_another_name_is_the_same_picture(gallery, model, tmp_path):
    root, classes = gallery
    names = [classes[0][0], classes[0][1], classes[1][0]]
    for name in names:
        (tmp_path / name).write_bytes((root / name).read_bytes())
    (tmp_path / 'copy.png').write_bytes((root / names[0]).read_bytes())
    candidates = pd.DataFrame({'cand_path': ['copy.png', *names[1:]]})
    truth = pd.DataFrame({'query_path': names[:1], 'gt_cand_path': names[1:2]})
    found = evaluate(model, truth, candidates, tmp_path, k=[1])
    assert found.metrics['self_excluded'] == 1
    assert found.queries.top1[0] != 'copy.png'
    marked = pd.DataFrame({'query_path': names[:1], 'gt_cand_path': ['copy.png']})
    found = evaluate(model, marked, candidates, tmp_path, k=[1])
    assert found.metrics['self_excluded'] == 0
    assert found.metrics['trained']['recall@1']['value'] == 1


@pytest.mark.rest
def test_training_sees_no_photo_as_wrong_for_itself(gallery, model):
    root, classes = gallery
    pairs, truth, photos = tables(classes[:20])
    t = train(TwoTower(image_size=48, embed_dim=32, levels=1), pairs, root, epochs=2, views=0)
    assert t.baseline['new'] > 0
    assert 'known' not in t.baseline  # every query is a candidate
    assert t.gain['clusters'] == 20 or t.gain['clusters'] >= 3


@pytest.mark.rest
def test_pairs_in_both_directions(gallery):
    root, classes = gallery
    one_way = pd.DataFrame([(a, b) for a, b, *_ in classes], columns=['query_path', 'cand_path'])
    both = pd.concat(
        [one_way, one_way.rename(columns={'query_path': 'cand_path', 'cand_path': 'query_path'})]
    )
    both = both[['query_path', 'cand_path']].reset_index(drop=True)
    t = train(TwoTower(image_size=48, embed_dim=32, levels=1), both, root, epochs=2, views=0)
    masked = t.history[t.history.epoch > 0].masked
    assert (masked > 0).all()
    assert t.baseline['new'] > 0


@pytest.mark.rest
def test_the_centred_baseline_is_saved_with_the_model(gallery, tmp_path):
    root, classes = gallery
    pairs, _, _ = tables(classes[:4])
    model = TwoTower(image_size=48, embed_dim=32, levels=1)
    train(model, pairs, root, epochs=0, views=0)
    save_model(model, tmp_path / 'model')
    again = load_model(tmp_path / 'model')
    assert np.array_equal(again.centre_weight.numpy(), model.centre_weight.numpy())
    names = classes[0][:2]
    a, b = (embed(m.centred().query, names, root, engine='torch').vectors for m in (model, again))
    assert np.allclose(a, b, atol=1e-6)
    described = json.loads((tmp_path / 'model' / 'model.json').read_text())['training']
    assert described['kept'] in ('trained', 'plain', 'centred')


@pytest.mark.slow
def test_grocery_photos_as_one_gallery_train_and_improve(grocery, tmp_path):
    "20 products that training never saw, 8 photos each, leave-one-out"
    pairs = pd.read_csv(grocery / 'pairs.csv')
    photos = [list(g.head(8)) for _, g in pairs.groupby('cand_path').query_path if len(g) >= 8]
    seen, _, _ = tables(photos[20:])
    _, truth, candidates = tables(photos[:20])
    model = TwoTower()
    t = train(model, seen, grocery / 'images', tmp_path / 'cache', views=0)
    assert t.promoted
    found = evaluate(model, truth, candidates, grocery / 'images', tmp_path / 'cache', k=[1, 5])
    print(
        len(photos) - 20,
        t.chosen,
        t.gain,
        {name: found.metrics[name]['mrr'] for name in ('baseline', 'centred', 'trained')},
    )
    print({name: found.metrics[name]['hit@1'] for name in ('baseline', 'centred', 'trained')})
    assert 0.5 < found.metrics['baseline']['hit@1']['value'] < 0.95
    for metric in ('mrr', 'hit@1', 'recall@5'):
        assert (
            found.metrics['trained'][metric]['value'] > found.metrics['baseline'][metric]['value']
        )
