"""The cache of features: what is found again, and what a damaged file costs."""

import hashlib

import numpy as np
import pytest

from two_tower_vs.cache import DamagedShard, FeatureCache, RowTable


def keys_of(numbers):
    "SHA-256 of the numbers' digits, uint8 (n, 32)"
    digests = [hashlib.sha256(str(number).encode()).digest() for number in numbers]
    return np.frombuffer(b''.join(digests), np.uint8).reshape(-1, 32)


@pytest.fixture
def filled(tmp_path):
    "A folder with 3,000 features, and the order in which they came"
    numbers = np.random.default_rng(0).permutation(3000)
    cache = FeatureCache(tmp_path / 'cache', shard=400)
    for part in numbers.reshape(-1, 100):
        cache.add(keys_of(part), np.tile(part[:, None], 3))
        cache.see(keys_of(part)[:, 16:], keys_of(part))
    cache.flush()
    return tmp_path / 'cache', numbers


def test_rows_of_many_parts():
    table = RowTable()
    numbers = np.random.default_rng(1).permutation(1000)
    for part in numbers.reshape(-1, 10):
        table.add(keys_of(part)[:, :16], part)
    assert len(table.parts) <= 16
    assert np.array_equal(table.find(keys_of(range(1000))[:, :16]), np.arange(1000))
    assert table.find(keys_of([1001])[:, :16]) == -1


def test_a_shard_that_was_cut_short(filled):
    folder, numbers = filled
    shard = sorted(folder.glob('*.safetensors'))[0]
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.warns(UserWarning, match='is damaged .* read again') as caught:
        cache = FeatureCache(folder)
    assert len(caught) == 1
    rows = cache.contents.find(keys_of(numbers)[:, :16])
    assert (rows < 0).sum() == 400
    # stamps of lost contents count for nothing
    assert np.array_equal(cache.stamps.find(keys_of(numbers)[:, 16:]) < 0, rows < 0)
    assert np.array_equal(cache.vectors(rows[rows >= 0])[:, 0], numbers[rows >= 0])
    assert not shard.exists()


@pytest.mark.parametrize('precision,dtype', [('float32', np.float32), ('bfloat16', np.float16)])
def test_every_bit_counts(tmp_path, precision, dtype):
    cache = FeatureCache(tmp_path / 'cache', precision)
    features = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    cache.add(keys_of(range(4)), features)
    cache.flush()
    (file,) = cache.files
    data = file.read_bytes()
    start = data.index(features.astype(dtype).tobytes())
    for bit in range(8 * 12 * np.dtype(dtype).itemsize):
        changed = bytearray(data)
        changed[start + bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        with pytest.raises(DamagedShard):
            cache.vectors(np.arange(4))
    file.write_bytes(data)
    assert np.array_equal(cache.vectors(np.arange(4)), features.astype(dtype))
