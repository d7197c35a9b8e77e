"""Embeddings without pictures, for tests of what searches them."""

import tarfile
from io import BytesIO

import numpy as np

from two_tower_vs.vectors import Embeddings


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def names(n):
    return [f'{i:05}.png' for i in range(n)]


def some(n=300, d=16, seed=0):
    "Embeddings of n pictures, each file with a content of its own"
    rng = np.random.default_rng(seed)
    contents = rng.integers(0, 256, (n, 16)).astype(np.uint8)
    return Embeddings(unit(rng.standard_normal((n, d))), names(n), contents=contents)


def clusters(n=1915, d=32, queries=200, seed=0):
    "Embeddings that lie in clusters, as pictures do, and vectors of queries near some of them"
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((n // 20, d))
    vectors = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.standard_normal((n, d))
    near = vectors[rng.choice(n, queries, replace=False)] + 0.3 * rng.standard_normal((queries, d))
    contents = rng.integers(0, 256, (n, 16)).astype(np.uint8)
    return Embeddings(unit(vectors), names(n), contents=contents), unit(near)


def make_tar(path, *names):
    "A tar whose members hold one byte each"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, BytesIO(b'x'))
