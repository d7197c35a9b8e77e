"""Small tables: nothing is judged by what training saw, and what was not seen is not lost."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastcore.basics import NS

from two_tower_vs.baselines import centred_heads, plain_heads
from two_tower_vs.division import divide
from two_tower_vs.features import PairFeatures, short_forms
from two_tower_vs.heads import PairHeads, principal_axes
from two_tower_vs.judging import with_baselines
from two_tower_vs.negatives import hard_negatives
from two_tower_vs.pairtable import PairTable
from two_tower_vs.promotion import best_of
from two_tower_vs.ranking import HeldOutAnswers
from two_tower_vs.validation import hold_out

WIDTH = 900


def unit(x):
    return F.normalize(x, dim=-1)


@pytest.fixture
def pictures():
    "Queries near their candidates, each side with a shift of its own; all differ most in 10 ways"
    chance = torch.Generator().manual_seed(3)
    common = torch.randn(300, 10, generator=chance) @ torch.randn(10, WIDTH, generator=chance)
    things = unit(unit(common) + 0.5 * unit(torch.randn(300, WIDTH, generator=chance)))
    drawn = things + 0.01 * torch.randn(300, WIDTH, generator=chance)
    shift = unit(torch.randn(2, WIDTH, generator=chance))
    return unit(drawn + 0.5 * shift[0]), unit(things + 0.5 * shift[1])


def model(dim=256):
    tower = NS(head=torch.nn.Linear(WIDTH, dim))
    return NS(query=tower, cand=NS(head=torch.nn.Linear(WIDTH, dim)))


def table(pairs, others=()):
    names = [str(number) for number in range(pairs)]
    frame = pd.DataFrame({'query_path': [f'q{name}' for name in names], 'cand_path': names})
    return PairTable(frame, others=others)


@pytest.mark.parametrize('pairs, most', [(2, 0.05), (10, 0.03), (40, 0.015)])
def test_a_short_backbone_keeps_the_cosines_of_the_whole_one(pictures, pairs, most):
    queries, cands = pictures
    heads = plain_heads(queries[:pairs], cands[:pairs], 256, WIDTH)
    missed = heads.query(queries) @ heads.cand(cands).T - queries @ cands.T
    assert missed.abs().mean() < most


@pytest.mark.parametrize('pairs, most', [(10, 0.04), (40, 0.02)])
def test_centring_keeps_what_no_picture_spans(pictures, pairs, most):
    queries, cands = pictures
    heads = centred_heads(queries[:pairs], cands[:pairs], 256)
    whole_queries = unit(queries - queries[:pairs].mean(0))
    whole_cands = unit(cands - cands[:pairs].mean(0))
    missed = heads.query(queries) @ heads.cand(cands).T - whole_queries @ whole_cands.T
    assert missed.abs().mean() < most


def shares(queries, cands):
    "Share of the last 200 queries that find their partner"
    return (
        (unit(queries) @ unit(cands).T).argmax(1)[-200:].eq(torch.arange(600, 800)).float().mean()
    )


@pytest.mark.parametrize('pairs', [20, 100, 600])
def test_the_centred_rival_is_not_weakened_by_its_length(pairs):
    "However many pictures there are: main directions alone would lose what is small"
    chance = torch.Generator().manual_seed(4)
    many = torch.arange(2000) < 64
    things = torch.where(many, 1.0, 0.2) * torch.randn(800, 2000, generator=chance)
    seen = things + torch.where(many, 3.0, 0.02) * torch.randn(800, 2000, generator=chance)
    queries, cands = unit(seen), unit(things)
    features = PairFeatures(table(800), queries[None], cands[None], None, 256)
    heads = features.baseline('centred', np.arange(pairs), 64, False)
    assert heads.weight.shape == (256, 2000)
    whole = shares(queries - queries[:pairs].mean(0), cands - cands[:pairs].mean(0))
    assert shares(heads.query(queries), heads.cand(cands)) > whole - 0.1


def test_held_out_pairs_judge_the_centred_rival_with_all_features(pictures):
    queries, cands = pictures
    features = PairFeatures(table(300), queries[None], cands[None], cands[:0], WIDTH)
    held = hold_out(features.table)
    job = NS(model=NS(query=NS(head=torch.nn.Linear(WIDTH, 8)), cand=None), features=features)
    rival = with_baselines(job, held, {})['centred']['new']
    seen = np.unique(features.table.qi[held.rows])
    whole = unit(queries - queries[seen].mean(0)) @ unit(cands - cands[seen].mean(0)).T
    scores = whole[rival.queries][:, held.searched]
    torch.testing.assert_close(torch.from_numpy(rival.score), scores.max(1).values)
    right = scores.gather(1, torch.from_numpy(rival.queries)[:, None])
    assert np.array_equal(rival.rank, 1 + (scores > right).sum(1).numpy())


def answered(rank):
    ones = np.ones(30)
    return HeldOutAnswers(np.arange(30), ones, rank * ones.astype(int), ones)


def test_the_form_that_is_kept_is_the_better_one_on_held_out_pairs():
    ranks = {'centred mixed': 3, 'centred short': 2, 'plain short': 1}
    answers = {form: {'new': answered(rank)} for form, rank in ranks.items()}
    assert best_of(answers, {'new': 1.0}, np.arange(30)) == 'plain short'
    answers['centred short'] = answers['plain short']
    assert best_of(answers, {'new': 1.0}, np.arange(30)) == 'centred short'  # the first of equals


@pytest.mark.parametrize('better, kept', [(0, 'centred'), (1, 'centred'), (9, 'plain')])
def test_held_out_pairs_that_cannot_tell_leave_each_side_centred(better, kept):
    answers = {form: {'new': answered(2)} for form in short_forms}
    answers['plain short']['new'].rank[:better] = 1
    best = best_of(answers, {'new': 1.0}, np.arange(30))
    assert short_forms[best] == kept


def test_divisions_ask_products_that_were_not_asked():
    pairs = table(100)
    first = divide(pairs, frac=0.5).new
    second = divide(pairs, frac=0.5, seed=43, last=pairs.product[first]).new
    assert not set(first) & set(second)
    assert len(first) + len(second) == 100


def test_copies_of_one_picture_span_one_direction(pictures):
    queries, _ = pictures
    copies = queries[:1].repeat(50, 1)
    axes = principal_axes(copies, 100, centre=False, stretch=1.0)
    longer = ((WIDTH - 1) / 99) ** 0.5
    lengths = axes.norm(dim=0)
    torch.testing.assert_close(lengths[1:], torch.full((99,), longer))
    torch.testing.assert_close(lengths[:1], torch.ones(1))


def test_held_out_pictures_have_no_say_in_the_axes(pictures):
    queries, cands = pictures
    rows = np.arange(0, 60, 2)
    changed = [side.clone() for side in (queries, cands)]
    for side in changed:
        side[1:60:2] = side[1:60:2].flip(1)
    found = []
    for one, other in ((queries, cands), changed):
        closed = PairHeads(model(), one[:60], other[:60])
        stats = closed.stats(rows, rows)
        closed.put(stats, closed.maps(stats, 0.1), 0.5)
        found.append(closed.model.query.head.weight.detach().clone())
    torch.testing.assert_close(*found)


def test_held_out_queries_are_searched_for_among_others_too(pictures):
    queries, cands = pictures
    others = [f'other {number}' for number in range(200)]
    pairs = table(100, others)
    features = PairFeatures(pairs, queries[None, :100], cands[None, :100], cands[100:], WIDTH)
    held = hold_out(pairs)
    assert np.array_equal(held.searched, np.arange(300))
    assert held.rows.max() < 100
    answers = features.plain_answers(held)['new']
    # A query as near to another picture of the catalogue as to nothing else is answered wrongly
    first = answers.queries[0]
    features.queries[0][first] = cands[250]
    assert features.plain_answers(held)['new'].hits[0][0] == 250
    assert features.plain_answers(held)['new'].rank[0] > 1


def test_others_are_no_negatives(pictures):
    queries, cands = pictures
    pairs = table(100, [f'other {number}' for number in range(200)])
    rows = np.arange(100)
    found = hard_negatives(queries[:100], cands[:100], pairs, rows, count=5)
    assert found.max() < 100


def test_others_count_as_unknown_products():
    pairs = table(30)
    more = table(30, [f'other {number}' for number in range(970)])
    assert hold_out(pairs, known_share=1.0).weight == hold_out(more, known_share=1.0).weight


def test_pairs_that_are_no_verdicts_are_held_out_first():
    numbers = range(400)
    frame = pd.DataFrame({'query_path': [f'q{n}' for n in numbers], 'cand_path': map(str, numbers)})
    frame['feedback'] = [number >= 100 for number in numbers]
    held = hold_out(PairTable(frame))
    asked = held.all_queries()
    assert len(asked) == 60 and (asked < 100).all()
    second = hold_out(PairTable(frame), seed=43, last=held.product[asked])
    fresh = np.setdiff1d(second.all_queries(), asked)
    assert len(fresh) == 40  # all hundred are asked in two divisions
    verdicts = frame.assign(feedback=True)
    assert len(hold_out(PairTable(verdicts)).all_queries()) == 60
