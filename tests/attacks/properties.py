"""What must hold for every table, score matrix and index: Hypothesis looks for counterexamples,
the same each time.
"""

import csv
import io
import traceback
import warnings

import numpy as np
from attack import Case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# data

SIGNS = st.characters(exclude_categories=('Cs', 'Cc'), exclude_characters='\ufeff')
PATHS = st.text(SIGNS, min_size=1, max_size=20).filter(lambda s: not s.isspace())
ODD = st.text(st.sampled_from('a.,;|\t"\'\r\n #=\\/é\u2028'), min_size=1, max_size=8).filter(
    lambda s: not s.isspace()
)


def table(work, data, columns=('query_path', 'cand_path')):
    "(what read_table gives, None) or (None, the refusal)"
    from two_tower_vs.errors import InputError
    from two_tower_vs.tables import read_table

    p = work / 'p.csv'
    p.write_bytes(data)
    try:
        return read_table(p, list(columns)), None
    except InputError as e:
        return None, str(e)


def written(work, rows, sep, end, code, blanks, quoting):
    "Paths that Python's csv writes come back unchanged, with the rows that csv counts"
    # Before Python 3.13, csv puts no quotes around line breaks other than its own
    if quoting == csv.QUOTE_MINIMAL:
        rows = [[''.join(s for s in c if s not in '\r\n' or s in end) for c in r] for r in rows]
    rows = [[c if c.strip() else 'a' for c in r] for r in rows]
    f = io.StringIO(newline='')
    w = csv.writer(f, delimiter=sep, lineterminator=end, quoting=quoting)
    w.writerow(['query_path', 'cand_path'])
    want = []
    for i, r in enumerate(rows):
        if i in blanks:
            f.write(end)
        want.append((2 + i + sum(b <= i for b in blanks if b < len(rows)), *r))
        w.writerow(r)
    df, said = table(work, f.getvalue().encode(code))
    assert said is None, said
    assert list(df.itertuples(name=None)) == want, (list(df.itertuples(name=None)), want)


def any_bytes(work, head, body):
    "Any bytes are a table or refused in one line that names the file"
    df, said = table(work, head + body)
    if df is None:
        assert 'p.csv' in said and '\n' not in said and said.isprintable(), said
    else:
        assert (
            len(df)
            and list(df.columns) == ['query_path', 'cand_path']
            and not (df == '').any(axis=None)
        )


def readers_agree(work, rows):
    "Where pandas' own parser takes a plain table, it reads the same"
    import pandas as pd

    f = io.StringIO(newline='')
    csv.writer(f, quoting=csv.QUOTE_ALL).writerows([['query_path', 'cand_path'], *rows])
    df, said = table(work, f.getvalue().encode())
    other = pd.read_csv(io.StringIO(f.getvalue()), dtype=str, keep_default_na=False)
    assert said is None and df.values.tolist() == other.values.tolist(), (said, df, other)


def divisions(work, edges, frac, seed, named, gallery):
    """No pair is lost or doubled, no held-out product or query is trained on, no series is cut, no
    candidate is `known`
    """
    import pandas as pd

    from two_tower_vs.division import divide
    from two_tower_vs.pairtable import PairTable

    df = pd.DataFrame(sorted(edges), columns=['query_path', 'cand_path']).astype(str)
    if not gallery:
        df.cand_path = 'c' + df.cand_path  # else some queries are candidates too
    t = PairTable(df)
    series = np.array([int(q) // 3 for q in t.queries]) if named else None
    d = divide(t, frac=frac, seed=seed, series=series)
    train = d.train
    new = d.new
    known = d.known
    seen = np.concatenate([train, known])

    def among(of, some, others):
        return bool(np.isin(of[some], of[others]).any())

    assert len(train) and not among(t.product, new, seen) and not among(t.ci, new, seen)
    assert not among(t.qi, new, seen) and not among(t.qi, known, train)
    assert np.isin(t.ci[known], t.ci[train]).all()
    if named:
        assert not among(series[t.qi], known, train)
    assert not np.isin(t.same.query_numbers[t.qi[known]], t.same.cand_numbers[t.ci[seen]]).any()
    each = np.concatenate([train, new, known])
    assert len(np.unique(each)) == len(each)
    left = np.setdiff1d(np.arange(len(t)), each)  # pairs of a held-out query with another product
    assert np.isin(t.qi[left], t.qi[new]).all() and not among(t.product, left, new)


# metrics


def units(rng, n, d, few):
    "Unit vectors; `few`: of few kinds, so that scores tie"
    x = (
        rng.integers(-1, 2, (n, d)).astype(np.float32)
        if few
        else rng.normal(size=(n, d)).astype(np.float32)
    )
    x[~x.any(1), 0] = 1
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def by_hand(s, right, ks):
    """Metrics and ranks of a query, by sorting: of candidates within 1e-6 of the answer's score,
    the earlier is first
    """

    def before(j, a):
        return s[j] - s[a] > 1e-6 or abs(s[j] - s[a]) <= 1e-6 and j < a

    # -1: no candidate
    rank = sorted(1 + sum(before(j, a) for j in range(len(s))) if a >= 0 else np.inf for a in right)
    K = max(ks)
    out = {f'recall@{k}': sum(r <= k for r in rank) / len(rank) for k in ks} | {
        f'hit@{k}': float(rank[0] <= k) for k in ks
    }
    average = sum((i + 1) / r for i, r in enumerate(rank) if r <= K) / min(len(rank), K)
    return out | {'mrr': 1 / rank[0], f'map@{K}': average}, rank


def metrics(work, seed, n, m, d, few, block):
    """Ranks and metrics are those of sorting all candidates; within [0, 1]; no smaller for a
    longer list
    """
    from two_tower_vs.ranks import never, per_query, ranks

    rng = np.random.default_rng(seed)
    q = units(rng, n, d, few)
    c = units(rng, m, d, few)
    ks = (1, 2, 3, 5, 20)[: rng.integers(1, 6)]
    right = [
        sorted((rng.permutation(m + 1) - 1)[: rng.integers(1, min(m, 5) + 1)].tolist())
        for _ in range(n)
    ]
    qrow = np.repeat(np.arange(n), [len(r) for r in right])
    crow = np.concatenate(right)
    rank = ranks(q, c, qrow, crow, rows=block, cols=block + 1)
    t = per_query(rank, qrow, ks)
    s = q.astype(np.float64) @ c.astype(np.float64).T
    for i in range(n):
        want, r = by_hand(s[i], right[i], ks)
        mine = [np.inf if o == never else o for o in sorted(rank[qrow == i].tolist())]
        assert mine == r, (i, mine, r)
        assert all(abs(t[k][i] - v) < 1e-9 for k, v in want.items()), (t.loc[i].to_dict(), want)
    assert ((t >= 0) & (t <= 1 + 1e-12)).all(axis=None)
    for a, b in zip(ks, ks[1:]):
        for name in ('recall', 'hit'):
            assert (t[f'{name}@{a}'] <= t[f'{name}@{b}']).all()
    if not few:  # without ties, the candidates' order does not matter
        p = rng.permutation(m)
        o = np.where(crow < 0, -1, np.argsort(p)[crow])
        by = np.lexsort((o, qrow))
        assert np.array_equal(np.sort(ranks(q, c[p], qrow, o[by])), np.sort(rank))


def against_torchmetrics(work, seed, n, m):
    """Without ties, recall, hit rate, MRR and, of whole lists, MAP are torchmetrics' (which takes
    scores above 0 only)
    """
    import torch
    from torchmetrics.functional.retrieval import (
        retrieval_average_precision as ap,
    )
    from torchmetrics.functional.retrieval import (
        retrieval_hit_rate as hit,
    )
    from torchmetrics.functional.retrieval import (
        retrieval_recall as recall,
    )
    from torchmetrics.functional.retrieval import (
        retrieval_reciprocal_rank as mrr,
    )

    from two_tower_vs.ranks import per_query, ranks

    rng = np.random.default_rng(seed)
    q = units(rng, n, 16, False)
    c = units(rng, m, 16, False)
    right = [np.sort(rng.permutation(m)[: rng.integers(1, min(m, 4) + 1)]) for _ in range(n)]
    qrow = np.repeat(np.arange(n), [len(r) for r in right])
    t = per_query(ranks(q, c, qrow, np.concatenate(right)), qrow, (1, 3, m))
    for i in range(n):
        s = torch.from_numpy(c @ q[i]) + 2
        y = torch.zeros(m, dtype=torch.bool)
        y[right[i]] = True
        for k in (1, 3):
            assert abs(recall(s, y, top_k=min(k, m)).item() - t[f'recall@{k}'][i]) < 1e-6
            assert hit(s, y, top_k=min(k, m)).item() == t[f'hit@{k}'][i]
        assert (
            abs(mrr(s, y).item() - t.mrr[i]) < 1e-6
            and abs(ap(s, y).item() - t[f'map@{max(3, m)}'][i]) < 1e-6
        )


def intervals(work, seed, n, m, products):
    """Means lie in their intervals, hits alone have Wilson's, names and order of products do not
    matter, nor which model is first
    """
    from scipy.stats import binomtest

    from two_tower_vs.statistics import interval

    rng = np.random.default_rng(seed)
    x = np.c_[rng.integers(0, 2, (n, m)), rng.random(n)].astype(float)
    clusters = rng.integers(0, products, n)
    found = interval(x, clusters)
    assert np.allclose(found.mean, x.mean(0)) and found.clusters == len(np.unique(clusters))
    assert (
        (found.low >= 0)
        & (found.low <= found.mean)
        & (found.mean <= found.high)
        & (found.high <= 1)
    ).all()
    assert found.clusters > 1 or (found.low == 0).all() and (found.high == 1).all()
    order = rng.permutation(n)
    again = interval(x[order], 7 - clusters[order])
    assert np.allclose([found.low, found.high], [again.low, again.high])
    alone = interval(x)
    for hits, *ends in zip(x.sum(0)[:m].astype(int), alone.low, alone.high):
        wilson = binomtest(int(hits), n).proportion_ci(method='wilson')
        assert n == 1 or np.allclose(ends, [wilson.low, wilson.high])
    difference = x[:, 0] - x[:, m]
    one = interval(difference, clusters, paired=True)
    other = interval(-difference, clusters, paired=True)
    assert np.allclose(one.ci95, [-other.high, -other.low])


# index


def embeddings(x, names=None):
    from two_tower_vs.vectors import Embeddings

    return Embeddings(
        np.ascontiguousarray(x), [f'{i}.png' for i in (range(len(x)) if names is None else names)]
    )


def table_of(hits):
    return [list(h.itertuples(index=False, name=None)) for h in hits]


def same_hits(got, q, e, k):
    """Are these the k best of all, best first, each with its score? Names may differ where scores
    tie
    """
    s = q.astype(np.float64) @ e.vectors.astype(np.float64).T
    at = {p: i for i, p in enumerate(e.paths)}
    got = list(got)
    assert len(got) == len(q)
    for i, h in enumerate(got):
        assert (
            h['rank'].tolist() == list(range(1, min(k, len(e.paths)) + 1)) and h.cand_path.is_unique
        )
        best = np.sort(s[i])[::-1][:k]
        assert np.allclose(h.score, best, atol=2e-6)
        assert np.allclose(s[i][[at[p] for p in h.cand_path]], best, atol=2e-6)


def flat(work, seed, n, d, k, few):
    """An exact index finds what brute force finds, one by one and in batches, after saving and
    loading, for any k
    """
    from two_tower_vs.bundle import load_index, save_index
    from two_tower_vs.index import build_index

    rng = np.random.default_rng(seed)
    e = embeddings(units(rng, n, d, few))
    q = units(rng, 7, d, few)
    index = build_index(e, 'm', q, kind='flat')
    got = list(index.batch_hits(q, k, block=3))
    same_hits(got, q, e, k)
    one = [index.hits(v, k) for v in q]
    same_hits(one, q, e, k)
    assert index.search(q, k)[1].shape == (7, min(k, n))
    if not few:
        assert [h.cand_path.tolist() for h in one] == [h.cand_path.tolist() for h in got]
    save_index(index, work / 'index')
    again = load_index(work / 'index', 'm')
    assert again.paths == e.paths and table_of(again.batch_hits(q, k, block=3)) == table_of(got)


def updates(work, seed, d, few, steps):
    """Candidates added, removed and changed in turn: the index is as one rebuilt, also when
    saved in between
    """
    from two_tower_vs.bundle import load_index, save_index
    from two_tower_vs.index import build_index
    from two_tower_vs.update import update_index

    rng = np.random.default_rng(seed)
    q = units(rng, 5, d, few)
    names = list(range(30))
    x = dict(zip(names, units(rng, 30, d, few)))

    def now():
        return embeddings(np.stack([x[i] for i in names]), names)

    index = build_index(now(), 'm', q, kind='flat')
    for step, (add, drop, change, shuffle) in enumerate(steps):
        for i in rng.permutation(names)[: min(drop, len(names) - 1)].tolist():
            names.remove(i)
        for i in rng.permutation(names)[:change].tolist():
            x[i] = units(rng, 1, d, few)[0]
        for i in range(100 * step + 100, 100 * step + 100 + add):
            x[i] = units(rng, 1, d, few)[0]
            names.append(i)
        if shuffle:
            names = rng.permutation(names).tolist()
        index, said = update_index(index, now(), 'm', q, kind='flat')
        assert sorted(index.paths) == sorted(now().paths), said
        same_hits(index.batch_hits(q, 99), q, now(), 99)
        m = index.manifest
        assert m['rows'] == len(names) == index.faiss.ntotal, (said, m)
        # Which of equal ones is nearest is open
        assert few or m['recall_vs_exact']['value'] == 1, (said, m)
        if step % 2:
            save_index(index, work / 'index')
            index = load_index(work / 'index', 'm', writable=True)


def updates_ivf(work, seed, kind, add, drop, change):
    """The same for the kinds that are trained: what they find after an update stays near what they
    find when rebuilt
    """
    from two_tower_vs.index import build_index
    from two_tower_vs.update import update_index

    rng = np.random.default_rng(seed)
    n = 900
    d = 16
    x = units(rng, n + add, d, False)
    q = units(rng, 50, d, False)
    index = build_index(embeddings(x[:n]), 'm', q, kind=kind, recall_target=0.9)
    keep = np.sort(rng.permutation(n)[drop:])
    x[keep[:change]] = units(rng, change, d, False)
    rows = np.r_[keep, n : n + add]
    e = embeddings(x[rows], rows)
    index, said = update_index(index, e, 'm', q, kind=kind, recall_target=0.9)
    best = np.argsort(-q @ e.vectors.T, 1)[:, :10]
    found = [h.cand_path for h in index.batch_hits(q, 10)]
    agree = np.mean([len(set(f) & {e.paths[i] for i in b}) / 10 for f, b in zip(found, best)])
    m = index.manifest
    assert m['rows'] == len(e.paths) == index.faiss.ntotal, (said, m)
    assert agree >= 0.9 and abs(agree - m['recall_vs_exact']['value']) < 0.02, (said, agree, m)


ints = st.integers
SOME = st.sampled_from([0, 0, 1, 4, 9])
NONE = st.just(0)
# Added, dropped, changed
MORE, MIXED = (st.tuples(*o, st.booleans()) for o in ((SOME, NONE, NONE), (SOME, SOME, SOME)))
ROWS = st.lists(st.tuples(*[st.one_of(PATHS, ODD)] * 2).map(list), min_size=1, max_size=12)
STARTS = [
    b'',
    b'query_path,cand_path\n',
    b'query_path;cand_path\r\n',
    b'\xff\xfe',
    b'\xfe\xff',
    b'\xef\xbb\xbf',
    b'sep=;\n',
    *('query_path,cand_path\n'.encode(c) for c in ('utf-16', 'utf-16-le', 'utf-16-be')),
]
PIECES = st.sampled_from(
    [b'a', b',', b';', b'"', b'\n', b'\r', b'\0', b'\xff', b'\xc3\xa9', b' ', b'#', b'query_path']
)
PIECES = st.lists(PIECES, max_size=60).map(b''.join)
# what is said of it, the property, how many tries: short, long; what it is tried with
PROPERTIES = [
    (
        "data: paths that csv writes come back unchanged, with their rows",
        written,
        100,
        3000,
        dict(
            rows=ROWS,
            sep=st.sampled_from(',;\t|'),
            end=st.sampled_from(['\n', '\r\n', '\r']),
            blanks=st.sets(ints(0, 12), max_size=3),
            code=st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be']),
            quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        ),
    ),
    (
        "data: fuzzed bytes are a table, or refused in one line",
        any_bytes,
        200,
        5000,
        dict(head=st.sampled_from(STARTS), body=st.one_of(st.binary(max_size=200), PIECES)),
    ),
    (
        "data: pandas' parser reads the same",
        readers_agree,
        50,
        1000,
        dict(rows=st.lists(st.tuples(PATHS, PATHS).map(list), min_size=1, max_size=9)),
    ),
    (
        "validation: a division loses nothing and leaks nothing",
        divisions,
        100,
        2000,
        dict(
            edges=st.sets(st.tuples(ints(0, 15), ints(0, 5)), min_size=1, max_size=60),
            frac=st.floats(0, 0.9),
            seed=ints(0, 9),
            named=st.booleans(),
            gallery=st.booleans(),
        ),
    ),
    (
        "metrics: ranks and means are those of sorting all, with ties",
        metrics,
        100,
        2000,
        dict(
            seed=ints(0, 2**32),
            n=ints(1, 9),
            m=ints(1, 30),
            d=ints(2, 9),
            few=st.booleans(),
            block=ints(1, 40),
        ),
    ),
    (
        "metrics: recall, hit rate, MRR and MAP are torchmetrics'",
        against_torchmetrics,
        30,
        500,
        dict(seed=ints(0, 2**32), n=ints(1, 6), m=ints(1, 30)),
    ),
    (
        "metrics: intervals that count products",
        intervals,
        50,
        1000,
        dict(seed=ints(0, 2**32), n=ints(1, 80), m=ints(1, 4), products=ints(1, 20)),
    ),
    (
        "index: exact search is brute force, single, batched, saved and loaded",
        flat,
        60,
        1000,
        dict(seed=ints(0, 2**32), n=ints(1, 60), d=ints(2, 20), k=ints(1, 80), few=st.booleans()),
    ),
    (
        "index: after any updates as if rebuilt",
        updates,
        60,
        1000,
        dict(
            seed=ints(0, 2**32),
            d=ints(4, 12),
            few=st.booleans(),
            steps=st.lists(st.one_of(MORE, MIXED), min_size=1, max_size=6),
        ),
    ),
    (
        "index: IVF after updates finds what it found, or is rebuilt",
        updates_ivf,
        4,
        60,
        dict(
            seed=ints(0, 2**32),
            kind=st.sampled_from(['ivf_pq', 'ivf_rabitq']),
            add=ints(0, 200),
            drop=ints(0, 150),
            change=ints(0, 50),
        ),
    ),
]


SAME_EACH_TIME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
)


def tried(work, name, check, how, tries):
    "A case of as many examples as Hypothesis made: it failed if one did"
    ran = 0

    def counted(**kw):
        nonlocal ran
        ran += 1
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            check(work, **kw)

    run = settings(SAME_EACH_TIME, max_examples=tries)(given(**how)(counted))
    why = ''
    try:
        run()
    except Exception as e:
        why = ''.join(traceback.format_exception(e))[-2500:]
    rule = ' '.join(check.__doc__.split())
    return Case(f'property: {name}', not why, int(bool(why)), rule, why, ran)
