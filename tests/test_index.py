"""The index: what it refuses, what it finds, what it keeps of its rows, and files that change while it is used."""
import hashlib
import warnings

import faiss
import numpy as np
import pytest

from two_tower_vs import ann
from two_tower_vs.data import InputError
from two_tower_vs.embed import Embeddings
from two_tower_vs.index import Index, build_index, load_index, save_index, update_index


def unit(vectors):
    return (vectors/np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def names(n):
    return [f'{i:05}.png' for i in range(n)]


def some(n=300, d=16, seed=0):
    "Embeddings of n pictures, each file with a content of its own"
    rng = np.random.default_rng(seed)
    contents = rng.integers(0, 256, (n, 16)).astype(np.uint8)
    return Embeddings(unit(rng.standard_normal((n, d))), names(n), contents=contents)


def truly_found(index, x, queries, k=10):
    "Share of the hits of exact search that an index finds, by brute force; copies are as good as each other"
    exact = queries.astype(np.float64) @ x.T.astype(np.float64)
    least = np.sort(exact, axis=1)[:, -k]
    _,rows = index.search(queries, k)
    found = 0
    for scores,limit,own in zip(exact, least, rows.tolist()):
        found += sum(scores[row] >= limit - 1e-5 for row in set(own) - {-1})
    return found/(k*len(queries))


def test_the_same_picture_is_known_by_its_content(tmp_path):
    cands = some(40)
    cands.contents[7] = cands.contents[5]   # a copy under another name
    digest = hashlib.sha256(b'a picture').digest()
    cands.contents[3] = np.frombuffer(digest[:16], np.uint8)
    save_index(build_index(cands, 'm'), tmp_path/'i')
    index = load_index(tmp_path/'i')
    rows = np.array([3, 5, 7, -1])
    for content in (digest, digest[:16], np.frombuffer(digest[:16], np.uint8)):
        assert index.same_picture(rows, content).tolist() == [True, False, False, False]
    assert index.same_picture(rows, cands.contents[5].tobytes()).tolist() == [False, True, True, False]
    assert index.same_picture(rows[None], cands.contents[5]).shape == (1, 4)
    assert index.same_picture(rows, None).tolist() == [False]*4
    unknown = build_index(Embeddings(cands.vectors, cands.paths), 'm')
    assert not unknown.same_picture(rows, digest).any()
    assert index.same_picture(rows, digest).dtype == bool
