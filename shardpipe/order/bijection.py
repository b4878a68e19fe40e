"""Keys and keyed bijections: everything random in shardpipe is drawn from here, and from nothing that keeps state.

What these functions return is part of every checkpoint's meaning. A change breaks every run in the world that is under
way, so golden vectors in tests/order/test_bijection.py pin them, and ALGORITHM must be raised with any change. That is
also why no library's `shuffle` or `permutation` is used: their streams may change between versions.

Sources: the 64-bit finaliser is variant 13 of Stafford's mixers, as used by Steele, Lea and Flood's SplitMix64 (OOPSLA
2014); the bijection is the generalized Feistel network with cycle walking of Black and Rogaway, "Ciphers with Arbitrary
Finite Domains" (CT-RSA 2002). Eight rounds: with 4 the differences of neighbours are visibly uneven after 10^5
permutations of a few hundred to some thousands, with 6 still at n = 512, with 8 no longer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ALGORITHM",
    "AUGMENT",
    "BATCH",
    "RUNGS",
    "SHARDS",
    "STEP",
    "WINDOW",
    "Words",
    "hash_key",
    "permute",
    "unpermute",
]

ALGORITHM = 1
"""Version of everything that decides the order. A saved state of another version is refused."""

# What a key is for. Two purposes never share a stream of random numbers.
SHARDS, WINDOW, RUNGS, AUGMENT, STEP, BATCH = range(1, 7)

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ROUND_KEYS = tuple(
    np.uint64(odd)
    for odd in (
        0xD1342543DE82EF95,
        0x2545F4914F6CDD1D,
        0xA0761D6478BD642F,
        0xE7037ED1A0B428DB,
        0x8EBC6AF09C88C6E3,
        0x589965CC75374CC3,
        0x1D8E4E27C47D124F,
        0xEB44ACCAB455D165,
    )
)
# Up to here a table sorted by hash is as fast as the network and free of its small-domain weakness.
_TABLE_MAX = 256
# Entries of the tables that are built at a time, when every element has a key of its own.
_TABLE_ENTRIES = 1 << 18


def hash_key(*fields: int | npt.NDArray[Any]) -> Words:
    """A 64-bit key from integers >= 0, broadcast over arrays; shape [1] if all are scalars.

    Every field is mixed in with a bijection of 64 bits, so (seed 5, epoch 1) has nothing to do with (seed 6, epoch 0).
    """
    key = _mix(np.full(1, ALGORITHM, np.uint64))
    for field in fields:
        key = _mix((key ^ np.asarray(field).astype(np.uint64)) + _GOLDEN)
    return key


def permute(x: npt.NDArray[Any], n: int, key: Words) -> Words:
    """Map x in [0, n) by the keyed bijection of [0, n); `key` has x's shape, or shape [1] for all of x."""
    return _walk(x, n, key, inverse=False)


def unpermute(y: npt.NDArray[Any], n: int, key: Words) -> Words:
    """The inverse of `permute`: `unpermute(permute(x, n, key), n, key) == x`."""
    return _walk(y, n, key, inverse=True)


def _mix(x: Words) -> Words:
    z = x >> np.uint64(30)
    z ^= x
    z *= _MIX_1
    z ^= z >> np.uint64(27)
    z *= _MIX_2
    z ^= z >> np.uint64(31)
    return z


def _walk(x: npt.NDArray[Any], n: int, key: Words, *, inverse: bool) -> Words:
    """Apply the network until the value lies in [0, n): a bijection of it, as the network is one of a bit more."""
    x = x.astype(np.uint64)
    if n <= _TABLE_MAX:
        return _by_table(x, n, key, inverse=inverse)
    out = _network(x, n, key, inverse=inverse)
    (outside,) = np.nonzero(out >= np.uint64(n))
    while outside.size:
        again = _network(out[outside], n, key if key.size == 1 else key[outside], inverse=inverse)
        out[outside] = again
        outside = outside[again >= np.uint64(n)]
    return out


def _network(x: Words, n: int, key: Words, *, inverse: bool) -> Words:
    """Feistel rounds on a high and a low part. The inverse runs them backwards and takes away what they add.

    The low part has half of n's bits and every value of them; the high part only as many values as n needs. So hardly
    a value lands outside, where powers of two alone would send up to half of them on.
    """
    low_bits = np.uint64((n - 1).bit_length() // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    highs = np.uint64((n - 1) // (int(low_mask) + 1) + 1)
    high, low = x >> low_bits, x & low_mask
    rounds = range(len(_ROUND_KEYS))
    for i in reversed(rounds) if inverse else rounds:
        if i % 2:
            low ^= _mixed(high, key, i) >> (np.uint64(64) - low_bits)
        else:
            # 32 bits scaled to [0, highs), which is 2**32 at most.
            z = (_mixed(low, key, i) >> np.uint64(32)) * highs >> np.uint64(32)
            high = high + highs - z if inverse else high + z
            # Below `highs` the difference wraps around to something large.
            high = np.minimum(high, high - highs)
    return (high << low_bits) | low


def _mixed(part: Words, key: Words, i: int) -> Words:
    """The round function: 64 bits of which the upper ones are well mixed."""
    z = (key * _ROUND_KEYS[i]) ^ part
    z *= _MIX_1
    z ^= z >> np.uint64(32)
    z *= _MIX_2
    return z


def _by_table(x: Words, n: int, key: Words, *, inverse: bool) -> Words:
    keys, row = np.unique(key, return_inverse=True)
    values = _mix(np.arange(n, dtype=np.uint64) + _GOLDEN)
    out = np.empty_like(x)
    row = np.broadcast_to(row, x.shape)
    step = max(1, _TABLE_ENTRIES // max(n, 1))
    for first in range(0, len(keys), step):
        table = np.argsort(_mix(keys[first : first + step, None] ^ values), axis=1, kind="stable")
        if inverse:
            table = np.argsort(table, axis=1, kind="stable")
        here = slice(None) if len(keys) <= step else (row >= first) & (row < first + step)
        out[here] = table[row[here] - first, x[here].astype(np.int64)].astype(np.uint64)
    return out
