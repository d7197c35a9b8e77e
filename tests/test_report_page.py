"Every number on the report's page, read back and compared with the files of the run."

import json
import os
import re
import shutil
import warnings
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from two_tower_vs.bundle import save_index
from two_tower_vs.check import check, save_check
from two_tower_vs.data import read_candidates, read_gt, read_pairs
from two_tower_vs.demo import demo_catalog
from two_tower_vs.embed import embed
from two_tower_vs.errors import InputError
from two_tower_vs.eval import evaluate, save_evaluation
from two_tower_vs.examples import Pictures, drawn_at_random
from two_tower_vs.index import build_index
from two_tower_vs.model import TwoTower
from two_tower_vs.query import load_searcher
from two_tower_vs.report import RunReport, report
from two_tower_vs.runfiles import RunFiles, shown_name
from two_tower_vs.saving import save_model
from two_tower_vs.selection import choose_index
from two_tower_vs.train import train

# Reading a page

pytestmark = pytest.mark.rest


class Page(HTMLParser):
    "Tables by caption, as rows of texts; tags with their attributes; texts by id"

    void = {'meta', 'link', 'input', 'br', 'img', 'path', 'circle', 'use', 'image'}

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.tables = {}
        self.tags = []
        self.stack = []
        self.texts = {}
        self.feed(html)
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in self.void:
            return
        self.stack.append((tag, dict(attrs).get('id')))
        if tag == 'caption':
            self.caption = ''
        if tag == 'tr':
            self.tables.setdefault(self.caption, []).append([])
        if tag in ('td', 'th'):
            self.tables[self.caption][-1].append('')

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, text):
        inside = [tag for tag, _ in self.stack]
        if 'caption' in inside:
            self.caption += text
        elif 'td' in inside or 'th' in inside:
            self.tables[self.caption][-1][-1] += text
        for _, place in self.stack:
            if place:
                self.texts[place] = self.texts.get(place, '') + text

    def table(self, start):
        "The rows of the table whose caption starts so, without its head"
        return next(rows[1:] for caption, rows in self.tables.items() if caption.startswith(start))

    def holds(self, part, *sentences):
        text = ' '.join(self.texts[part].split())
        for sentence in sentences:
            assert sentence in text, (sentence, text)


def percent(value):
    return f'{100 * value:.1f}'


def interval(metric):
    low, high = metric['ci95']
    return f'{percent(low)} to {percent(high)}'


def cell(metric):
    return f'{percent(metric["value"])} ({interval(metric)})'


def title(metric):
    words = {'micro_ap': 'Micro-AP', 'recall@p90': 'Recall at 90 % precision'}
    short = metric.replace('recall', 'Recall').replace('mrr', 'MRR').replace('map', 'MAP')
    return words.get(metric, short)


# Runs


@pytest.fixture(scope='module')
def run(workshop):
    "A run with some 150 queries, of which training gains and loses some"
    folder = workshop / 'for the report'
    demo_catalog(folder, side=64, limit=500)
    images = folder / 'images'
    cache = folder / 'cache'
    out = folder / 'out'
    pairs = read_pairs(folder / 'pairs.csv', images)[:120]
    candidates = read_candidates(folder / 'candidates.csv', images)
    truth = read_gt(folder / 'query_gt.csv', images, candidates)
    # With fewer features, so that training loses some
    model = TwoTower(image_size=64, embed_dim=32, levels=3, grid=1)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        trained = train(
            model,
            pairs,
            images,
            cache,
            views=0,
            epochs=3,
            candidates=candidates.cand_path,
            promote='always',
            precision=0.7,
        )
    model.sha256 = save_model(model, out / 'model')
    (out / 'train').mkdir()
    trained.history.to_csv(out / 'train/history.csv', index=False)
    save_evaluation(evaluate(model, truth, candidates, images, cache, k=(1, 5)), out)
    vectors = embed(model.cand, candidates.cand_path, images, cache)
    query_vectors = embed(model.query, truth.query_path, images, cache).vectors
    save_index(build_index(vectors, model.sha256, query_vectors), out / 'index')
    plain = TwoTower(image_size=64, embed_dim=None, levels=3, grid=1).query
    save_check(check(pairs, candidates, truth, images, plain, cache, turns=0), out, images)
    pairs.to_csv(folder / 'few_pairs.csv', index=False)
    return SimpleNamespace(
        folder=folder,
        images=images,
        cache=cache,
        out=out,
        model=model,
        pairs=pairs,
        candidates=candidates,
        truth=truth,
        vectors=vectors,
        query_vectors=query_vectors,
    )


def page_of(run, out=None, pairs=None):
    pairs = pairs or run.folder / 'few_pairs.csv'
    file = report(out or run.out, run.images, run.folder / 'query_gt.csv', pairs)
    return Page(file.read_text(encoding='utf-8'))


@pytest.fixture(scope='module')
def page(run):
    with warnings.catch_warnings():
        warnings.simplefilter('error')  # there is nothing to warn of
        return page_of(run)


def read(folder, name):
    return json.loads((folder / name).read_text())


def write(folder, name, **new):
    (folder / name).write_text(json.dumps(read(folder, name) | new))


def tried_kind(kind, factory, why='', agreement=None, rate=0, ms=None, build=None, mb=0, **search):
    return dict(
        kind=kind,
        factory=factory,
        search=search,
        agreement=agreement,
        queries_per_s=rate,
        ms=ms,
        build_s=build,
        mb=mb,
        why=why,
    )


TRIED = [
    tried_kind('hnsw', 'HNSW32', '', 0.9871, 41234, 0.0512, 1.26, 731, efSearch=48),
    tried_kind('flat', 'Flat', '', 1.0, 1234, 0.871, 0.04, 512),
    tried_kind(
        'ivf_pq',
        'IVF64,PQ32',
        'under 0.98',
        0.5634,
        2345,
        0.4,
        30.04,
        16,
        nprobe=12,
        k_factor_rf=2.5,
    ),
    tried_kind('ivf_rabitq', 'IVF9', 'over 1024 MB', mb=2048),
]


@pytest.fixture(scope='module')
def full(run, tmp_path_factory):
    "A copy of the run with all that a report can show, and its page"
    out = tmp_path_factory.mktemp('full') / 'out'
    shutil.copytree(run.out, out, ignore=shutil.ignore_patterns('report.html'))
    threshold = float(pd.read_csv(out / 'per_query.csv').top1_score.quantile(0.3).round(2))
    info = run.model.training_info
    run.model.training_info = info | dict(
        matryoshka=[8, 16],
        match=dict(threshold=threshold, precision=0.85, bound=0.861, coverage=1, queries=40),
        chosen=info['chosen'] | dict(epochs=7, blend=0.75, finetune_epochs=3),
    )
    groups = np.where(np.arange(len(run.truth)) % 3, 'tools & <b>toys</b>', 'animals')
    evaluation = evaluate(
        run.model,
        run.truth.assign(group=groups),
        run.candidates,
        run.images,
        run.cache,
        k=(1, 5),
        leaked=run.truth.query_path[:40],
    )
    save_evaluation(evaluation, out)
    index = build_index(run.vectors, save_model(run.model, out / 'model'), run.query_vectors)
    run.model.training_info = info
    index.manifest['tried'] = TRIED
    index.manifest['recall_vs_exact']['value'] = 0.9876
    index.manifest['verify'] = dict(on=False, reason='the details of 1 of 20 <pairs> agree')
    save_index(index, out / 'index')
    steps = enumerate(('decode', 'embed', 'search', 'verify', 'total'), 1)
    asked = dict(
        latency_ms={step: {'p50': 1.11 * i, 'p95': 2.22 * i} for i, step in steps},
        runs=1234,
        threads=7,
        engine='torch',
        threshold=threshold,
    )
    (out / 'query.json').write_text(json.dumps(asked))
    leaked = read(out, 'check.json')['leaked'] | dict(queries=12)
    write(out, 'check.json', leaked=leaked)
    # Pairs of queries that have one already
    more = run.pairs[:20].assign(cand_path=run.pairs.cand_path.iloc[-1])
    pairs = pd.concat([run.pairs, more])
    pairs.to_csv(out.parent / 'more.csv', index=False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        page = page_of(run, out, out.parent / 'more.csv')
    queries = pd.read_csv(out / 'per_query.csv', keep_default_na=False)
    for column in ('rank', 'baseline_rank', 'wrong_score'):
        queries[column] = pd.to_numeric(queries[column])
    return SimpleNamespace(
        out=out,
        page=page,
        metrics=read(out, 'metrics.json'),
        queries=queries,
        threshold=threshold,
        asked=asked,
        pairs=pairs,
        n=len(queries),
    )


def columns_of(metrics):
    better = metrics['centred']['mrr']['value'] > metrics['baseline']['mrr']['value']
    return 'trained', 'baseline', 'centred', 'delta_centred' if better else 'delta'


def four_cells(metrics, values, name):
    return [cell(values[column][name]) for column in columns_of(metrics)]


# A plain run


def test_pictures_are_embedded_once_and_named(page):
    uris = re.findall(r'href="(data:[^"]+)"', page.html)
    used = re.findall(r'<use href="#p(\d+)"', page.html)
    assert len(set(uris)) == len(uris) < len(used)
    assert {int(number) for number in used} == set(range(len(uris)))
    images = [attrs for _, attrs in page.tags if attrs.get('role') == 'img']
    assert images and all(attrs.get('aria-label') for attrs in images)


def test_nothing_leaves_the_page(page):
    for _, attrs in page.tags:
        for name in ('href', 'src', 'action'):
            assert not (attrs.get(name) or '').startswith(('http', '//'))
    (policy,) = [
        attrs['content']
        for _, attrs in page.tags
        if attrs.get('http-equiv') == 'Content-Security-Policy'
    ]
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )


def test_headings_go_down_one_level_at_a_time(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch('h[1-6]', tag)]
    steps = [after - before for before, after in zip(levels, levels[1:])]
    assert [levels[0], levels.count(1), max(steps)] == [1, 1, 1]


def test_a_good_run_lacks_nothing(page):
    assert 'Not there yet' not in page.html and 'Take care' not in page.html
    assert 'timed when this page was made' in page.html
    parts = re.findall('<section id="(.*?)">', page.html)
    assert parts == 'result recall queries match learning index data about'.split()
    assert 'OpenMoji' in page.texts['about'] and 'Apache 2.0' in page.texts['about']


def test_metrics_and_held_out_metrics(run, page):
    metrics = read(run.out, 'metrics.json')
    names = [name for name in metrics['trained'] if not name.startswith('hit')]
    assert page.table('In percent') == [
        [title(name), *four_cells(metrics, metrics, name)] for name in names
    ]
    assert page.texts['headline'] == percent(metrics['trained']['recall@1']['value']) + '%'
    judged = read(run.out, 'model/model.json')['training']['validation']['metrics']
    assert page.table('Held-out pairs that chose nothing') == [
        [
            name.replace('hit', 'Hit').replace('mrr', 'MRR'),
            *(cell(judged[model][name]) for model in ('plain', 'centred', 'trained')),
        ]
        for name in ('hit@1', 'hit@5', 'hit@10', 'mrr')
    ]


# A run that has everything


def test_tables_of_groups_leaks_and_sizes(full):
    page, metrics = full.page, full.metrics
    difference = columns_of(metrics)[-1]
    groups = sorted(
        metrics['groups'].items(), key=lambda item: item[1][difference]['recall@1']['value']
    )
    assert page.table('Recall@1 by group') == [
        [name, f'{group["queries"]}', *four_cells(metrics, group, 'recall@1')]
        for name, group in groups
    ]
    rest = metrics['leak_free']
    assert [rest['leaked'], rest['queries']] == [40, full.n - 40]
    assert page.table('With all queries and without') == [
        [f'Recall@1, all {full.n} queries', *four_cells(metrics, metrics, 'recall@1')],
        [f'Recall@1, {full.n - 40} not leaked', *four_cells(metrics, rest, 'recall@1')],
    ]
    sentence = f'40 of {full.n} evaluation queries are also in the training pairs'
    page.holds('recall', sentence)
    assert list(metrics['sizes']) == ['8', '16', '32']
    assert page.table('Recall of shorter vectors') == [
        [size, f'{4 * int(size):,}', cell(values['recall@1']), cell(values['recall@5'])]
        for size, values in metrics['sizes'].items()
    ]


def test_tables_of_index_times_and_findings(run, full):
    page = full.page
    assert page.table('Kinds that were tried') == [
        ['hnsw', '98.7', '41,234', '0.05', '1.3', '731', 'HNSW32 efSearch 48', ''],
        ['flat', '100.0', '1,234', '0.87', '0.0', '512', 'Flat ', '✓ chosen'],
        [
            'ivf_pq',
            '56.3',
            '2,345',
            '0.40',
            '30.0',
            '16',
            'IVF64,PQ32 nprobe 12, k_factor_rf 2.5',
            'under 0.98',
        ],
        ['ivf_rabitq', '', '', '', '', '2,048', 'IVF9 ', 'over 1024 MB'],
    ]
    chosen = [attrs for _, attrs in page.tags if attrs.get('class') == 'chosen']
    assert chosen == [{'class': 'chosen'}]
    assert page.table('Milliseconds of one search') == [
        [step, f'{ms["p50"]:.2f}', f'{ms["p95"]:.2f}']
        for step, ms in full.asked['latency_ms'].items()
    ]
    page.holds('index', '1,234 single searches, timed by --stage query (torch, 7 threads)')
    findings = read(full.out, 'check.json')['findings']
    assert [[row[0], row[1], row[3]] for row in page.table('Findings')] == [
        [found['severity'], found['finding'], f'{found["pictures"]:,}'] for found in findings
    ]
    recalls = [row for row in page.table('In percent') if row[0].startswith('Recall@')]
    names = ('recall@1', 'recall@5')
    assert recalls == [
        [title(name), *four_cells(full.metrics, full.metrics, name)] for name in names
    ]


def test_tried_kinds_look_as_the_choice_of_an_index_writes_them(run):
    vectors = run.vectors.vectors
    assert list(choose_index(vectors, vectors[:20])[0]) == list(TRIED[0])


def test_sentences_about_the_result(run, full):
    page, metrics, queries = full.page, full.metrics, full.queries
    trained, plain, centred = (
        metrics[model]['recall@1'] for model in ('trained', 'baseline', 'centred')
    )
    n_candidates = len(run.vectors)
    page.holds(
        'result',
        f'on {full.n} queries that look for their answers among {n_candidates} candidates',
        f'{percent(trained["value"])} % of the queries find their right answer first '
        f'(95 % interval {interval(trained)}). With the same network, untrained, it is '
        f'{percent(plain["value"])} % ({interval(plain)}); with each side centred, which needs '
        f'no pairs either, {percent(centred["value"])} % ({interval(centred)}).',
        f'Lines are intervals: 95 % for new queries like these; {full.n} of them.',
    )
    better = 'centred' if columns_of(metrics)[-1] == 'delta_centred' else 'untrained'
    page.holds('recall', f'The difference is to {better}, the better of the two')
    gained, lost = (int((queries.change == kind).sum()) for kind in ('gained', 'lost'))
    assert gained > lost > 0
    page.holds(
        'queries',
        f'Of {full.n} queries, {gained} find a right answer first only since training, '
        f'and {lost} did so only before',
    )
    assert f'Lost: {lost}' in page.html


def test_sentences_about_the_threshold(full):
    queries, match = full.queries, full.metrics['match']
    passed = queries.top1_score >= full.threshold
    right = queries['rank'] == 1
    refused = (queries.wrong_score < full.threshold).mean()
    assert 0 < passed.sum() < full.n and 0 < refused < 1
    full.page.holds(
        'match',
        f'from a score of {full.threshold:.2f}.',
        'so that 85 % of what passes should be right; the lower 95 % confidence bound of that '
        'share is 86.1 %, from 40 held-out queries',
        f'queries {percent(passed.mean())} % have a first hit that passes',
        f'of these hits {percent((passed & right).sum() / passed.sum())} % are right '
        f'({interval(match["precision"])})',
        f'{percent(refused)} % of the queries ({interval(match["refused"])}) would rightly be told',
    )


def test_sentences_about_training_index_and_data(run, full):
    page = full.page
    model = read(full.out, 'model/model.json')
    before = model['training']['validation']['untrained']
    after = model['training']['validation']['trained']
    for key, where in (('new', 'on products never seen'), ('known', 'on products it knows')):
        if key in after:
            page.holds('learning', f'{where} {percent(before[key])} → {percent(after[key])} %')
    assert 'new' in after
    page.holds('learning', '7 epochs of the heads, 75 % of the way', '3 epochs of fine-tuning')
    size = (full.out / 'index/vectors.faiss').stat().st_size
    n = len(run.vectors)
    recall = full.metrics['trained']['recall@1']['value']
    page.holds(
        'index',
        f'{n} candidates lie in an index of the kind flat (Flat)',
        'Several kinds were tried',
        f'bytes a vector{size / n:,.0f}',
        'agrees with exact search98.8 % in the first 10, on',
        f'Recall@1 by exact search{percent(recall)} %',
        'hits are verifiedno the details of 1 of 20 <pairs> agree',
    )
    check = read(full.out, 'check.json')
    page.holds(
        'data',
        f'{check["pictures"]:,} pictures were read: {check["errors"]} error',
        f'12 of {check["leaked"]["of"]} evaluation queries stand in',
    )
    page.holds(
        'about',
        f'pairs{len(full.pairs)} {full.pairs.query_path.nunique()} queries, '
        f'{full.pairs.cand_path.nunique()} candidates',
        f'model{model["sha256"][:8]} so',
        'vectors32 numbers',
    )


def looked_at(queries):
    "Kind -> the queries of that kind, in order"

    def ordered(rows, rank):
        return rows.sort_values(rank, ascending=False, kind='stable')

    ranked = queries.fillna({'rank': 1e9, 'baseline_rank': 1e9})
    return dict(
        lost=ordered(ranked[ranked.change == 'lost'], 'rank')[:50],
        gained=ordered(ranked[ranked.change == 'gained'], 'baseline_rank')[:50],
        worst=ordered(ranked[ranked['rank'] > 1], 'rank')[:200],
    )


def rank_text(rank):
    return 'never' if rank == 1e9 else f'{rank:,.0f}'


def test_cards_of_queries(full):
    cards = re.findall(r'<b>rank (\S+) → (\S+)</b> <bdi>(.*?)</bdi>', full.page.html)
    want = []
    for rows in looked_at(full.queries).values():
        for row in rows[:9].to_dict('records'):
            ranks = rank_text(row['baseline_rank']), rank_text(row['rank'])
            want.append((*ranks, row['query_path']))
    assert cards == want
    assert any(before != after for before, after, _ in cards)


def test_list_of_queries(full):
    kinds = looked_at(full.queries)
    listed = {row[3].split(' (')[0]: row for row in full.page.table('Ranks count')}
    names = [set(rows.query_path) for rows in kinds.values()]
    assert set(listed) == set.union(*names)
    ranked = full.queries.fillna({'rank': 1e9, 'baseline_rank': 1e9}).set_index('query_path')
    for name, (_, _, _, label, rank, before, score, what) in listed.items():
        row = ranked.loc[name]
        assert label == f'{name} ({row.group})'
        ranks = [rank_text(row['rank']), rank_text(row.baseline_rank)]
        assert [rank, before, score] == [*ranks, f'{row.top1_score:.2f}']
        assert set(what.split(', ')) == {
            kind for kind, rows in kinds.items() if name in set(rows.query_path)
        }


def test_searches_are_those_of_the_index(run, full):
    searcher = load_searcher(full.out)
    assert searcher.threshold == full.threshold
    shown = re.findall(
        r'<figure class="([a-z]*)"><svg[^>]*aria-label="hit (\d+): ([^"]+)".*?'
        r'<figcaption>(✓ right )?([\d.]+)( no match)?</figcaption>',
        full.page.html,
        re.S,
    )
    answers = run.truth.groupby('query_path').gt_cand_path.agg(set)
    want = []
    for query in drawn_at_random(full.queries)[:4]:
        for hit in searcher.search(run.images / query, 7).itertuples():
            right = hit.cand_path in answers[query]
            low = hit.score < full.threshold
            look = 'right' if right else 'pale' if low else ''
            marks = '✓ right ' * right, f'{hit.score:.2f}', ' no match' * low
            want.append((look, f'{hit.rank}', hit.cand_path, *marks))
    assert shown == want
    assert {'right', 'pale'} <= {look for look, *_ in shown}


# Charts, read as an eye does: by the numbers at the axes


def chart(html, alt):
    return re.search(rf'<svg class="chart"[^>]*aria-label="{alt}.*?</svg>', html, re.S)[0]


def axes(svg):
    "Two functions from pixels to values"
    labels = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="">(-?[\d.]+)</text>', svg
    )
    xs = [(float(x), float(value)) for x, _, anchor, value in labels if anchor == 'middle']
    ys = [(float(y) - 4, float(value)) for _, y, anchor, value in labels if anchor == 'end']
    return [np.poly1d(np.polyfit(*zip(*points), 1)) for points in (xs, ys)]


def line(svg, cls):
    (path,) = re.findall(rf'<path d="M([^"]+)" class="{cls}"', svg)
    return np.array([[float(v) for v in point.split()] for point in path.split('L')]).T


def test_histogram_of_scores(full):
    svg = chart(full.page.html, 'Histogram of scores')
    x, y = axes(svg)
    mark, _ = line(svg, 'mark')
    assert np.allclose(x(mark), full.threshold, atol=0.005)
    assert f'threshold {full.threshold:.2f}' in svg
    right = full.queries.top1_score[full.queries['rank'] == 1]
    for cls, scores in (('area a', right), ('area b', full.queries.wrong_score.dropna())):
        px, py = line(svg, cls)
        score = x(px)
        height = y(py)
        drawn = height > 1e-6 * height.max() + 0.02
        bar = (score.max() - score.min()) / 40
        ends = [score[drawn].min(), score[drawn].max()]
        assert np.allclose(ends, [scores.min(), scores.max()], atol=bar + 0.005)
        total = height[1:-1][::2].sum()  # in percent of the queries
        assert np.isclose(total, 100 * len(scores) / full.n, atol=1)


def test_dots_of_the_threshold(full):
    svg = chart(full.page.html, 'Precision against coverage')
    x, y = axes(svg)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="5.5" class="dot w"', svg)
    passed = full.queries.top1_score >= full.threshold
    right = (passed & (full.queries['rank'] == 1)).sum()
    with_twins = passed.sum() + (full.queries.wrong_score >= full.threshold).sum()
    coverage = [100 * passed.mean(), 100 * with_twins / (2 * full.n)]
    precision = [100 * right / n for n in (passed.sum(), with_twins)]
    assert np.allclose([x(float(cx)) for cx, _ in dots], coverage, atol=0.5)
    assert np.allclose([y(float(cy)) for _, cy in dots], precision, atol=0.5)


# Damaged files


@pytest.fixture
def changed(run, tmp_path, monkeypatch):
    "A function: change a copy of the run -> (its page, its notes), without pictures"
    monkeypatch.setattr(RunReport, 'searcher', lambda self: None)
    monkeypatch.setattr(Pictures, '_uri', lambda self, path: '')

    def made(change):
        out = tmp_path / 'out'
        shutil.copytree(run.out, out)
        change(out)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            page = page_of(run, out)
        return page, re.findall('<b>Take care:</b> (.*?)</p>', page.html)

    return made


def cut(name):
    return lambda out: (out / name).write_bytes((out / name).read_bytes()[:-200])


def edit(name, **new):
    return lambda out: write(out, name, **new)


def replaced(name, old, new):
    return lambda out: (out / name).write_text((out / name).read_text().replace(old, new, 1))


def upside_down(out):
    trained = read(out, 'metrics.json')['trained']
    recall = {'value': 0.9, 'ci95': [0.95, 0.85]}
    write(out, 'metrics.json', trained=trained | {'recall@1': recall})


@pytest.mark.parametrize(
    'change, name, part',
    [
        (cut('metrics.json'), 'metrics.json', 'recall'),
        (edit('metrics.json', trained=3), 'metrics.json', 'recall'),
        (edit('metrics.json', k=[]), 'metrics.json', 'recall'),
        (upside_down, 'metrics.json', 'recall'),
        (cut('check.json'), 'check.json', 'data'),
        (edit('check.json', findings='x'), 'check.json', 'data'),
        (edit('index/manifest.json', rows='many'), 'manifest.json', 'index'),
        (edit('model/model.json', query={'prep': None}), 'model.json', ''),
        (edit('model/model.json', training=[1]), 'model.json', ''),
        (replaced('per_query.csv', 'query_path', 'q'), 'per_query.csv', 'queries'),
        (replaced('per_query.csv', ',0.', ',much'), 'per_query.csv', 'queries'),
        (replaced('train/history.csv', 'epoch', 'e'), 'history.csv', 'learning'),
        (
            lambda out: (out / 'per_query.csv').write_bytes(b'\0\xff' * 99),
            'per_query.csv',
            'queries',
        ),
    ],
)
def test_a_damaged_file_is_named_and_its_part_left_out(changed, change, name, part):
    page, notes = changed(change)
    assert any(name in note for note in notes)
    assert part not in page.texts


def test_a_table_that_lost_a_row(changed):
    def shorter(out):
        lines = (out / 'per_query.csv').read_text().splitlines(True)
        (out / 'per_query.csv').write_text(''.join(lines[:-1]))

    _, notes = changed(shorter)
    assert [note[:60] for note in notes] == [
        'per_query.csv and metrics.json are not of one evaluation: ex'
    ]


@pytest.mark.parametrize('latency_ms', [{'total': {'p50': 1.0, 'p95': 2.0}}, 3])
def test_times_of_a_query(changed, latency_ms):
    def asked(out):
        query = dict(latency_ms=latency_ms, runs=30, threads=2, engine='openvino')
        (out / 'query.json').write_text(json.dumps(query))

    page, notes = changed(asked)
    good = latency_ms != 3
    assert any('query.json' in note for note in notes) != good
    assert ('timed by --stage query' in page.texts['index']) == good


def test_neither_model_nor_metrics(changed):
    def removed(out):
        shutil.rmtree(out / 'model')
        (out / 'metrics.json').unlink()

    with pytest.raises(InputError, match='neither model/ nor metrics.json'):
        changed(removed)


# Names that mean harm, and 100,000 queries

NASTY = [
    '<script>alert(1)<',
    '"><img src=x onerror=alert(1)>.png',
    "'; --.png",
    'a\u202egnp.png',
    'line\nbreak.png',
    '&amp;.png',
    'x' * 240 + '.png',
    'nan',
]


def known(value):
    return {'value': float(value), 'ci95': [float(value) - 0.01, float(value) + 0.01]}


def all_metrics(value):
    return {name: known(value) for name in ('recall@1', 'hit@1', 'mrr')}


def made_up(folder, n, images):
    "metrics.json, per_query.csv and gt.csv of n queries, the first 300 of them answered worst"
    i = np.arange(n)
    images = np.array(images, object)
    names = [f'q{j}.png' for j in i]
    names[:300] = images[:300]
    names[: len(NASTY)] = NASTY
    kinds = [(i < 300) & (i % 7 == 0), (i >= 300) & (i % 7 > 0)]
    queries = pd.DataFrame(
        {
            'query_path': names,
            'group': np.where(i % 2, '<i>odd</i>', 'even'),
            'answers': 1,
            'rank': np.where(i < 300, 1000 - i, 1),
            'baseline_rank': 1 + i % 7,
            'change': np.select(kinds, ['lost', 'gained'], ''),
            'recall@1': (i >= 300) * 1.0,
            'top1': images[(i + 300) % len(images)],
            'top1_score': 0.9 - i / n / 2,
            'wrong_score': 0.3 + i / n / 3,
            'baseline_top1': images[(i + 600) % len(images)],
        }
    )
    three = dict(
        trained=all_metrics(queries['recall@1'].mean()),
        baseline=all_metrics(0.1),
        delta=all_metrics(0.8),
    )
    changes = {kind: int((queries.change == kind).sum()) for kind in ('gained', 'lost')}
    groups = {group: dict(queries=n // 2, **three) for group in ('<i>odd</i>', 'even')}
    metrics = dict(k=[1], queries=n, candidates=900, changes={'hit@1': changes}, groups=groups)
    folder.mkdir()
    queries.to_csv(folder / 'per_query.csv', index=False)
    (folder / 'metrics.json').write_text(json.dumps(metrics | three))
    answers = queries[['query_path']].assign(gt_cand_path=queries.baseline_top1)
    answers.to_csv(folder / 'gt.csv', index=False)


@pytest.fixture(scope='module')
def large(tmp_path_factory):
    "A report of 100,000 queries whose pictures are noise, which compresses worst; some are gone"
    folder = tmp_path_factory.mktemp('large')
    noise = folder / 'noise'
    noise.mkdir()
    rng = np.random.default_rng(0)
    for j in range(900):
        pixels = rng.integers(0, 256, (112, 112, 3), np.uint8)
        Image.fromarray(pixels).save(noise / f'{j}.bmp')
    for name in NASTY[:4]:
        shutil.copy(noise / '1.bmp', noise / name)
    (noise / '2.bmp').unlink()
    (noise / '20.bmp').write_bytes(b'BM')
    made_up(folder / 'out', 100_000, [f'{j}.bmp' for j in range(900)])
    file = report(folder / 'out', noise, folder / 'out/gt.csv')
    return SimpleNamespace(folder=folder, file=file, page=Page(file.read_text(encoding='utf-8')))


def test_a_large_page_stays_small_and_harmless(large):
    tags = [tag for tag, _ in large.page.tags]
    assert large.file.stat().st_size < 10_000_000
    assert [tags.count(tag) for tag in ('script', 'img', 'i')] == [1, 0, 0]
    assert not any(attrs.get('onerror') for _, attrs in large.page.tags)


def test_the_list_of_a_large_page(large):
    listed = large.page.table('Ranks count')
    worst = [row for row in listed if 'worst' in row[-1]]
    names = [row[3].strip().split(' (')[0] for row in worst]
    assert names[: len(NASTY)] == [shown_name(name) for name in NASTY]
    ranks = [int(row[4].replace(',', '')) for row in worst]
    assert ranks == list(range(1000, 800, -1))
    queries = RunFiles(large.folder / 'out')['per_query.csv']
    for kind in ('lost', 'gained'):
        shown = {row[3].split(' (')[0] for row in listed if kind in row[-1]}
        possible = queries.query_path[queries.change == kind]
        assert len(shown) >= 43 and shown <= {shown_name(name) for name in possible}


def test_pictures_that_are_gone_have_a_name(large):
    gone = [attrs['aria-label'] for _, attrs in large.page.tags if 'gone' in attrs.get('class', '')]
    assert any('20.bmp' in label for label in gone) and any('line' in label for label in gone)


def test_a_folder_and_an_attribution_that_are_no_text(large):
    odd = os.fsdecode(os.fsencode(large.folder) + b'/\xff<b>')
    shutil.copytree(large.folder / 'out', odd)
    (large.folder / 'noise/ATTRIBUTION.txt').write_bytes(b'by \xff<b>me</b>')
    missing = large.folder / 'none.csv'
    html = report(odd, large.folder / 'noise', missing).read_text(encoding='utf-8')
    Page(html)
    assert 'by �&lt;b&gt;me' in html and '<b>me' not in html
    assert r'\udcff&lt;b&gt;' in html
