"""The order of an epoch as a pure function: position <-> sample, for any position, at the same small cost.

Nothing here is an iterator and nothing keeps state: (seed, epoch, position) decides. The functions below are part of
every checkpoint's meaning. Changing what they return breaks every run in the world that is under way, so the golden
vectors in tests/test_order.py pin them and ALGORITHM must be raised with any change. That is also why no library's
`shuffle` or `permutation` is used: their streams may change between versions.

Sources: the 64-bit finaliser is variant 13 of Stafford's mixers, as used by Steele, Lea and Flood's SplitMix64 (OOPSLA
2014); the bijection is an unbalanced Feistel network with cycle walking, after Black and Rogaway, "Ciphers with
Arbitrary Finite Domains" (CT-RSA 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shardpipe.errors import ConfigError

__all__ = ["ALGORITHM", "AUGMENT", "RUNGS", "STEP", "Order", "default_lanes", "hash_key", "permute", "unpermute"]

ALGORITHM = 1
"""Version of everything that decides the order. A saved state of another version is refused."""

# What a key is for. Two purposes never share a stream of random numbers.
SHARDS, WINDOW, RUNGS, AUGMENT, STEP = range(1, 6)

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Bijection = Callable[[Words, int, Words], Words]

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
# Arrays of this many elements stay in the cache through all rounds.
_CHUNK = 1 << 14
_LANES_MAX = 64
_LANE_SHARDS_MIN = 8
_SEED_MAX = 2**63


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
    return _walk(x, n, key, _forward, inverse=False)


def unpermute(y: npt.NDArray[Any], n: int, key: Words) -> Words:
    """The inverse of `permute`: `unpermute(permute(x, n, key), n, key) == x`."""
    return _walk(y, n, key, _backward, inverse=True)


def default_lanes(counts: npt.ArrayLike, window: int) -> int:
    """The largest power of two up to 64 that leaves every lane one full window and 8 shards, else 1."""
    shards = np.asarray(counts)
    lanes = _LANES_MAX
    while lanes > 1 and (int(shards.sum()) // lanes < window or len(shards) // lanes < _LANE_SHARDS_MIN):
        lanes //= 2
    return lanes


class Order:
    """The order of samples in every epoch of a dataset whose shard s holds counts[s] samples.

    The shards are permuted and laid end to end; lane l of `lanes` holds a contiguous slice of that axis; each lane is
    cut into windows of `window` samples, and each window is permuted. Position p is sample p // lanes of lane
    p % lanes. With shuffle=False neither permutation is made, and one lane gives the samples as packed.

    Memory is O(shards). Both methods take and return int64 arrays, cost the same at any position, and are safe to
    call from many threads.
    """

    def __init__(
        self,
        counts: npt.ArrayLike | Sequence[int],
        *,
        seed: int,
        window: int,
        lanes: int,
        shuffle: bool = True,
    ) -> None:
        self.counts: Ints = np.array(counts, dtype=np.int64).reshape(-1)
        if (self.counts < 0).any():
            raise ValueError("counts must not be negative")
        if not 0 <= seed < _SEED_MAX:
            raise ConfigError("seed", seed, "it must be in [0, 2**63)")
        if window < 1:
            raise ConfigError("window", window, "it must be at least 1")
        if lanes < 1:
            raise ConfigError("lanes", lanes, "it must be at least 1")
        self.seed = seed
        self.window = window
        self.lanes = lanes
        self.shuffle = shuffle
        self.num_samples = int(self.counts.sum())
        self._axes: tuple[int, tuple[Ints, Ints, Ints, _Cells]] | None = None

    def sample_at(self, positions: npt.ArrayLike, epoch: int) -> tuple[Ints, Ints]:
        """(shard, index in the shard) of each position 0..N-1, both of the shape of `positions`."""
        p = self._checked(positions, self.num_samples, "position")
        shard, index = np.empty_like(p), np.empty_like(p)
        permuted, starts, _, cells = self._axis(epoch)
        for part in _chunks(p.size):
            axis = self._axis_at(p[part], epoch)
            rank = cells.find(axis)
            shard[part] = permuted[rank]
            index[part] = axis - starts[rank]
        shape = np.shape(positions)
        return shard.reshape(shape), index.reshape(shape)

    def position_of(self, shard: npt.ArrayLike, index: npt.ArrayLike, epoch: int) -> Ints:
        """The position 0..N-1 of sample `index` of `shard`, of their broadcast shape: the inverse of `sample_at`."""
        shards, indices = np.broadcast_arrays(np.asarray(shard, np.int64), np.asarray(index, np.int64))
        s = self._checked(shards, len(self.counts), "shard")
        i = indices.ravel()
        if ((i < 0) | (i >= self.counts[s])).any():
            raise ValueError("index lies outside its shard")
        position = np.empty_like(s)
        _, starts, rank, _ = self._axis(epoch)
        for part in _chunks(s.size):
            position[part] = self._position_of_axis(starts[rank[s[part]]] + i[part], epoch)
        return position.reshape(shards.shape)

    def _axis(self, epoch: int) -> tuple[Ints, Ints, Ints, _Cells]:
        """(shards in the epoch's order, their starts on the axis, each shard's rank, the starts made searchable)."""
        cached = self._axes
        if cached is None or cached[0] != epoch:
            permuted = np.arange(len(self.counts), dtype=np.int64)
            if self.shuffle:
                permuted = permute(permuted, len(permuted), hash_key(self.seed, epoch, SHARDS)).astype(np.int64)
            ends = np.cumsum(self.counts[permuted])
            rank = np.empty_like(permuted)
            rank[permuted] = np.arange(len(permuted))
            # One assignment of one tuple, so that threads see the old epoch or the new one, never a mixture.
            self._axes = cached = (epoch, (permuted, ends - self.counts[permuted], rank, _Cells(ends)))
        return cached[1]

    def _axis_at(self, positions: Ints, epoch: int) -> Ints:
        p = positions.view(np.uint64)
        offset = p // np.uint64(self.lanes)
        lane = p - offset * np.uint64(self.lanes)
        window, inside = self._split(offset)
        inside = self._shuffled(permute, inside, lane, window, epoch)
        short, longer = divmod(self.num_samples, self.lanes)
        start = lane * np.uint64(short) + np.minimum(lane, np.uint64(longer))
        return (start + window * np.uint64(self.window) + inside).view(np.int64)

    def _position_of_axis(self, axis: Ints, epoch: int) -> Ints:
        a = axis.view(np.uint64)
        short, longer = divmod(self.num_samples, self.lanes)
        # The first `longer` lanes hold short + 1 samples, the others short; short is 0 if there are more lanes than
        # samples, and then nothing lies behind the longer ones.
        bend = np.uint64(longer * (short + 1))
        lane = np.where(
            a < bend,
            a // np.uint64(short + 1),
            np.uint64(longer) + (np.maximum(a, bend) - bend) // np.uint64(max(short, 1)),
        )
        offset = a - (lane * np.uint64(short) + np.minimum(lane, np.uint64(longer)))
        window, inside = self._split(offset)
        inside = self._shuffled(unpermute, inside, lane, window, epoch)
        return ((window * np.uint64(self.window) + inside) * np.uint64(self.lanes) + lane).view(np.int64)

    def _split(self, offset: Words) -> tuple[Words, Words]:
        window = offset // np.uint64(self.window)
        return window, offset - window * np.uint64(self.window)

    def _shuffled(self, bijection: Bijection, inside: Words, lane: Words, window: Words, epoch: int) -> Words:
        if not self.shuffle:
            return inside
        short, longer = divmod(self.num_samples, self.lanes)
        keys = hash_key(self.seed, epoch, WINDOW, lane, window)
        length = np.uint64(short) + (lane < np.uint64(longer))
        size = np.minimum(np.uint64(self.window), length - window * np.uint64(self.window))
        out = np.empty_like(inside)
        # Three sizes at most: full windows, and the last ones of the shorter and of the longer lanes.
        for n in {self.window, short % self.window, (short + 1) % self.window}:
            here = size == np.uint64(n)
            if here.all():
                return bijection(inside, n, keys)
            out[here] = bijection(inside[here], n, keys[here])
        return out

    @staticmethod
    def _checked(values: npt.ArrayLike, end: int, what: str) -> Ints:
        array = np.ascontiguousarray(values, dtype=np.int64).reshape(-1)
        if array.size and not (array.min() >= 0 and array.max() < end):
            raise ValueError(f"{what} must be in [0, {end})")
        return array


class _Cells:
    """Finds the shard of an axis position in a step or two, where a binary search over 10^6 shards takes twenty."""

    def __init__(self, ends: Ints) -> None:
        total = int(ends[-1]) if len(ends) else 0
        self._ends = ends
        self._shift = max(0, total.bit_length() - (2 * len(ends)).bit_length())
        self._first: Ints = np.searchsorted(ends, np.arange((total >> self._shift) + 1) << self._shift, side="right")

    def find(self, axis: Ints) -> Ints:
        rank: Ints = self._first[axis >> self._shift]
        (behind,) = np.nonzero(self._ends[rank] <= axis)
        for _ in range(4):
            if not behind.size:
                return rank
            rank[behind] += 1
            behind = behind[self._ends[rank[behind]] <= axis[behind]]
        # Shards of very unequal size crowd in one cell.
        rank[behind] = np.searchsorted(self._ends, axis[behind], side="right")
        return rank


def _mix(x: Words) -> Words:
    z = x >> np.uint64(30)
    z ^= x
    z *= _MIX_1
    z ^= z >> np.uint64(27)
    z *= _MIX_2
    z ^= z >> np.uint64(31)
    return z


def _walk(x: npt.NDArray[Any], n: int, key: Words, network: Bijection, *, inverse: bool) -> Words:
    """Apply the network until the value lies in [0, n): a bijection of [0, n), since the network is one of 2**bits."""
    x = x.astype(np.uint64)
    if n <= _TABLE_MAX:
        return _by_table(x, n, key, inverse=inverse)
    bits = (n - 1).bit_length()
    out = network(x, bits, key)
    (outside,) = np.nonzero(out >= np.uint64(n))
    while outside.size:
        again = network(out[outside], bits, key if key.size == 1 else key[outside])
        out[outside] = again
        outside = outside[again >= np.uint64(n)]
    return out


def _forward(x: Words, bits: int, key: Words) -> Words:
    return _network(x, bits, key, range(len(_ROUND_KEYS)))


def _backward(y: Words, bits: int, key: Words) -> Words:
    return _network(y, bits, key, reversed(range(len(_ROUND_KEYS))))


def _network(x: Words, bits: int, key: Words, rounds: Iterable[int]) -> Words:
    """Feistel rounds on halves of bits // 2 bits and the rest. A round undoes itself: the inverse runs them backwards."""
    widths = (bits // 2, bits - bits // 2)
    low = np.uint64(widths[1])
    halves = (x >> low, x & ((np.uint64(1) << low) - np.uint64(1)))
    for i in rounds:
        side = i % 2
        z = key * _ROUND_KEYS[i]
        z = np.bitwise_xor(z, halves[1 - side], out=z if z.size == x.size else None)
        z *= _MIX_1
        z ^= z >> np.uint64(32)
        z *= _MIX_2
        z >>= np.uint64(64 - widths[side])
        np.bitwise_xor(halves[side], z, out=halves[side])
    return (halves[0] << low) | halves[1]


def _by_table(x: Words, n: int, key: Words, *, inverse: bool) -> Words:
    keys, row = np.unique(key, return_inverse=True)
    values = _mix(np.arange(n, dtype=np.uint64) + _GOLDEN)
    out = np.empty_like(x)
    row = np.broadcast_to(row, x.shape)
    # A few thousand tables at a time bound the memory when every x has a key of its own.
    step = max(1, _CHUNK // max(n, 1))
    for first in range(0, len(keys), step):
        table = np.argsort(_mix(keys[first : first + step, None] ^ values), axis=1, kind="stable")
        if inverse:
            table = np.argsort(table, axis=1, kind="stable")
        here = slice(None) if len(keys) <= step else (row >= first) & (row < first + step)
        out[here] = table[row[here] - first, x[here].astype(np.int64)].astype(np.uint64)
    return out


def _chunks(size: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, size, _CHUNK)]
