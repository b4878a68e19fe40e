"""Keys and bijections: exact for every n, as good as random where it is looked at, and the same for ever."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import shardpipe.order.bijection
from shardpipe.order.bijection import (
    AUGMENT,
    BATCH,
    RUNGS,
    SHARDS,
    STEP,
    WINDOW,
    Words,
    hash_key,
    permute,
    unpermute,
)

KEYS = 100_000
ALPHA = 1e-4  # seeds are fixed, so a test at this level passes always or never

edges = [0, 1, *(2**k + d for k in range(1, 13) for d in (-1, 0, 1))]
sizes = st.one_of(st.sampled_from(edges), st.integers(0, 3000))
keys = st.integers(0, 2**64 - 1).map(lambda key: np.full(1, key, np.uint64))


@given(n=sizes, key=keys)
def test_permute_is_a_bijection_of_exactly_n(n: int, key: Words) -> None:
    x = np.arange(n)
    y = permute(x, n, key)
    assert y.dtype == np.uint64
    assert sorted(y.tolist()) == list(range(n))
    assert unpermute(y, n, key).tolist() == list(range(n))


@pytest.mark.parametrize("n", edges)
def test_permute_is_a_bijection_at_the_edges(n: int) -> None:
    key = hash_key(n)
    y = permute(np.arange(n), n, key)
    assert sorted(y.tolist()) == list(range(n))
    assert unpermute(y, n, key).tolist() == list(range(n))


@given(data=st.data(), n=st.integers(1, 2**63 - 1), key=keys)
def test_unpermute_inverts_permute_at_any_size(data: st.DataObject, n: int, key: Words) -> None:
    x = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True)))
    y = permute(x, n, key)
    assert (y < n).all()
    assert len(set(y.tolist())) == len(x)
    assert (unpermute(y, n, key) == x).all()


@given(data=st.data(), n=st.one_of(st.sampled_from(edges[1:]), st.integers(1, 2**63 - 1)))
def test_a_key_of_its_own_for_every_element_gives_what_each_gives_alone(data: st.DataObject, n: int) -> None:
    x = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    own = hash_key(np.arange(len(x)) // 2)
    for apply in permute, unpermute:
        alone = [apply(x[i : i + 1], n, own[i : i + 1])[0] for i in range(len(x))]
        assert apply(x, n, own).tolist() == [int(y) for y in alone]


def test_a_key_of_its_own_for_every_element_of_many_tables() -> None:
    """More keys than are made into tables at once."""
    n, x = 200, np.arange(5000) % 200
    own = hash_key(np.arange(5000))
    y = permute(x, n, own)
    assert (unpermute(y, n, own) == x).all()
    assert all(y[i] == permute(x[i : i + 1], n, own[i : i + 1])[0] for i in range(0, 5000, 7))


@pytest.mark.parametrize("n", [256, 8192])
def test_input_is_left_alone(n: int) -> None:
    x, key = np.arange(n, dtype=np.uint64), hash_key(1)
    kept = key.copy()
    permute(x, n, key)
    unpermute(x, n, key)
    assert (x == np.arange(n)).all()
    assert (key == kept).all()


def test_hash_key_broadcasts() -> None:
    assert hash_key(1, 2).shape == (1,)
    seeds, epochs = np.arange(3)[:, None], np.arange(4)
    together = hash_key(seeds, epochs, WINDOW)
    assert together.shape == (3, 4)
    assert together.dtype == np.uint64
    assert all(together[s, e] == hash_key(s, e, WINDOW)[0] for s in range(3) for e in range(4))


def test_hash_key_tells_all_fields_apart() -> None:
    assert len(np.unique(hash_key(np.arange(1000)[:, None], np.arange(1000)))) == 10**6
    assert len({int(hash_key(7, 3, purpose)[0]) for purpose in (SHARDS, WINDOW, RUNGS, AUGMENT, STEP, BATCH)}) == 6
    assert hash_key(1, 2) != hash_key(2, 1)
    assert hash_key(1) != hash_key(1, 0)
    assert hash_key(0) != hash_key(0, 0)


def test_one_bit_of_any_field_changes_half_of_the_key() -> None:
    values = np.arange(4000)
    for bit in range(0, 63, 3):
        for field in range(3):
            fields = [values, values + 5, values + 9]
            before = hash_key(*fields)
            fields[field] = fields[field] ^ (1 << bit)
            flipped = np.bitwise_count(before ^ hash_key(*fields)).mean()
            assert abs(flipped - 32) < 5 * 4 / math.sqrt(4000), (bit, field)


# Statistics. A random permutation, looked at in one place under many keys, is uniform: so is the value of one element,
# so is the difference of two (over 1..n-1), and so is the difference of one element under two unrelated keys.


def uniform(counts: np.ndarray) -> float:
    """The p value of a chi-square test for equal counts."""
    return float(stats.chisquare(counts).pvalue)


def binned(values: np.ndarray, n: int, low: int = 0) -> np.ndarray:
    """Counts of the values low..n-1: of each, or in 512 bins where n is so large that these are equal."""
    if n <= 10_000:
        return np.bincount(values, minlength=n)[low:]
    assert 2**20 < n < 2**53
    return np.bincount((values * (512 / n)).astype(np.int64), minlength=512)


def keys_for(n: int) -> int:
    """How many keys to look under: making a table takes n times as long as one value of the network."""
    return KEYS // 5 if n <= 256 else KEYS


def difference_p(n: int, distance: int, *, keys: int, places: int = 16) -> float:
    """Whether permute(x + distance) - permute(x) is uniform, for x at some places under `keys` keys."""
    at = np.arange(0, n, max(1, n // places))
    pairs = np.concatenate([at, (at + distance) % n])
    counts: np.ndarray = np.zeros(1, np.int64)
    for some in np.array_split(np.arange(keys), keys // 1000):  # what stays in the cache
        own = np.repeat(hash_key(11, some, WINDOW), len(pairs))
        y = permute(np.tile(pairs, len(some)), n, own).astype(np.int64).reshape(len(some), 2, len(at))
        counts = counts + binned((y[:, 1] - y[:, 0]).ravel() % n, n, low=1)
    return uniform(counts)


# Both sides of the table's limit, powers of two and their neighbours, the default window, and sizes of large datasets.
LOOKED_AT = [3, 16, 256, 257, 300, 512, 513, 1024, 8192, 2**20 + 1, 10**12]


@pytest.mark.parametrize("n", LOOKED_AT)
def test_every_position_is_equally_likely(n: int) -> None:
    own = hash_key(12, np.arange(keys_for(n)), WINDOW)
    for x in (0, n // 2, n - 1):
        for apply in permute, unpermute:
            assert uniform(binned(apply(np.full(len(own), x), n, own).astype(np.int64), n)) > ALPHA


@pytest.mark.parametrize("n", LOOKED_AT)
def test_neighbours_end_anywhere_relative_to_each_other(n: int) -> None:
    assert difference_p(n, 1, keys=keys_for(n)) > ALPHA


@pytest.mark.parametrize("n", LOOKED_AT)
def test_halves_end_anywhere_relative_to_each_other(n: int) -> None:
    assert difference_p(n, n // 2, keys=keys_for(n)) > ALPHA


@pytest.mark.parametrize("n", [3, 4, 5])
def test_all_permutations_of_a_few_are_equally_likely(n: int) -> None:
    own = np.repeat(hash_key(13, np.arange(KEYS), WINDOW), n)
    tables = permute(np.tile(np.arange(n), KEYS), n, own).reshape(KEYS, n).astype(np.int64)
    _, counts = np.unique(tables @ n ** np.arange(n), return_counts=True)
    assert len(counts) == math.factorial(n)
    assert uniform(counts) > ALPHA


@pytest.mark.parametrize("n", [200, 512, 8192, 10**12])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param((0, 1), (0, 2), id="epochs"),
        pytest.param((0, 1), (1, 1), id="seeds"),
        # The trap of `seed + epoch`: with it, seed 5 epoch 1 is seed 6 epoch 0.
        pytest.param((0, 1), (1, 0), id="seed+1-epoch-1"),
    ],
)
def test_seeds_and_epochs_have_nothing_to_do_with_each_other(
    n: int, one: tuple[int, int], other: tuple[int, int]
) -> None:
    seeds = np.arange(keys_for(n))
    x = np.random.default_rng(14).integers(0, n, len(seeds))
    first, second = (
        permute(x, n, hash_key(seeds + seed, epoch, WINDOW, 3, 5)).astype(np.int64) for seed, epoch in (one, other)
    )
    assert uniform(binned((first - second) % n, n)) > ALPHA


@pytest.mark.parametrize("n", [200, 512, 8192])
@pytest.mark.parametrize(("one", "other"), [((3, 5), (3, 6)), ((3, 5), (4, 5)), ((3, 5), (5, 3)), ((3, 5), (4, 4))])
def test_lanes_and_windows_have_nothing_to_do_with_each_other(
    n: int, one: tuple[int, int], other: tuple[int, int]
) -> None:
    seeds = np.arange(keys_for(n))
    x = np.random.default_rng(15).integers(0, n, len(seeds))
    first, second = (permute(x, n, hash_key(seeds, 1, WINDOW, *place)).astype(np.int64) for place in (one, other))
    assert uniform(binned((first - second) % n, n)) > ALPHA


def rounds(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(shardpipe.order.bijection, "_ROUND_KEYS", shardpipe.order.bijection._ROUND_KEYS[:number])


@pytest.mark.parametrize(("n", "distance"), [(512, 1), (512, 256), (300, 1), (1000, 500), (8192, 4096)])
def test_the_statistics_see_four_rounds(monkeypatch: pytest.MonkeyPatch, n: int, distance: int) -> None:
    assert difference_p(n, distance, keys=KEYS) > ALPHA
    rounds(monkeypatch, 4)
    assert difference_p(n, distance, keys=KEYS) < 1e-6


def test_six_rounds_show_with_more_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why there are eight."""
    assert difference_p(512, 16, keys=2 * KEYS, places=64) > ALPHA
    rounds(monkeypatch, 6)
    assert difference_p(512, 16, keys=2 * KEYS, places=64) < 1e-6


# Golden vectors. A saved run is a count into this order: if a value below changes, every checkpoint in the world goes
# on with other samples than it stopped at, silently. They may change only together with ALGORITHM, which refuses such a
# resume.


def test_golden_keys() -> None:
    assert hash_key(0).tolist() == [0xBFEF8030DDC2D772]
    assert hash_key(5, 1, WINDOW, 0, 0).tolist() == [0x9C6EA27140356170]
    assert hash_key(6, 0, WINDOW, 0, 0).tolist() == [0x9285B525F3D9F2A6]
    assert hash_key(2**63 - 1, 2**40, SHARDS).tolist() == [0x3C40C1A853B7B9AC]
    assert (SHARDS, WINDOW, RUNGS, AUGMENT, STEP, BATCH) == (1, 2, 3, 4, 5, 6)
    assert shardpipe.order.bijection.ALGORITHM == 1


GOLDEN = {
    10: [5, 0, 1, 3, 8, 2, 9, 7],  # a table
    256: [223, 235, 63, 97, 236, 36, 94, 40],  # the largest table
    257: [246, 252, 102, 93, 124, 139, 66, 241],  # the smallest network: many of its values walk on
    8192: [5263, 2173, 7821, 4272, 5080, 6244, 4088, 4265],  # the default window: no walk
    10_000: [414, 9012, 5280, 1173, 4510, 5767, 8361, 4943],  # few walk
    # 40 bits, and a size beyond 32 of them
    10**12 + 1: [
        566946004115,
        271298416173,
        688178452713,
        869054406054,
        132728069381,
        747192889400,
        943073193269,
        632285293495,
    ],
}


@pytest.mark.parametrize("n", GOLDEN)
def test_golden_permutations(n: int) -> None:
    assert permute(np.arange(n - 8, n), n, hash_key(7, 3, WINDOW)).tolist() == GOLDEN[n]
