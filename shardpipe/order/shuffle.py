"""The order of an epoch as a pure function: position <-> sample, for any position, at the same small cost.

Nothing here is an iterator and nothing keeps state: (seed, epoch, position) decides. Like the bijections that it is
made of, it is part of every checkpoint's meaning, and pinned by golden vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from shardpipe.errors import ConfigError
from shardpipe.order.bijection import SHARDS, WINDOW, Words, hash_key, permute, unpermute

__all__ = ["COUNT_MAX", "DEFAULT_WINDOW", "Ints", "Order", "by_shard", "default_lanes"]

COUNT_MAX = 2**63
"""Counts of consumed samples stay below: they, and the epochs that they make, are hashed as 64-bit words."""
DEFAULT_WINDOW = 8192
"""Samples of a lane that are shuffled together."""

Ints = npt.NDArray[np.int64]

# Arrays of this many elements stay in the cache through all rounds of the bijection.
_CHUNK = 1 << 14
# At least 2**11 cells, so that with few shards a cell seldom holds two.
_CELL_BITS = 12
_DEFAULT_LANES_MAX = 64
_LANE_SHARDS_MIN = 8
_SEED_MAX = 2**63
_WINDOW_MAX = 2**48
_LANES_MAX = 2**16  # a rung holds a batch of every lane, and is planned as a whole


def default_lanes(counts: npt.ArrayLike, window: int) -> int:
    """The largest power of two up to 64 that leaves every lane one full window and 8 shards, else 1."""
    shards = np.asarray(counts)
    lanes = _DEFAULT_LANES_MAX
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
        if not 1 <= window <= _WINDOW_MAX:
            raise ConfigError("window", window, "it must be in [1, 2**48]")
        if not 1 <= lanes <= _LANES_MAX:
            raise ConfigError("lanes", lanes, "it must be in [1, 65536]")
        if shuffle not in (True, False):
            raise ConfigError("shuffle", shuffle, "it must be True or False")
        self.seed = seed
        self.window = window
        self.lanes = lanes
        self.shuffle = bool(shuffle)
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

    def stretch(self, lane: int, window: int, epoch: int) -> list[tuple[int, int, int]]:
        """What a window of a lane draws from, shard by shard: (shard, first, stop) for its samples first..stop-1. Empty
        beyond the lane's end.
        """
        short, longer = divmod(self.num_samples, self.lanes)
        begin, length = lane * short + min(lane, longer), short + (lane < longer)
        low, high = (begin + min(k * self.window, length) for k in (window, window + 1))
        permuted, starts, _, _ = self._axis(epoch)
        stops = starts + self.counts[permuted]
        ranks = range(int(np.searchsorted(stops, low, side="right")), int(np.searchsorted(starts, high)))
        spans = ((permuted[r], max(low, starts[r]) - starts[r], min(high, stops[r]) - starts[r]) for r in ranks)
        return [(int(shard), int(first), int(stop)) for shard, first, stop in spans if first < stop]

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

    def _shuffled(
        self, bijection: Callable[[Words, int, Words], Words], inside: Words, lane: Words, window: Words, epoch: int
    ) -> Words:
        if not self.shuffle:
            return inside
        short, longer = divmod(self.num_samples, self.lanes)
        keys = hash_key(self.seed, epoch, WINDOW, lane, window)
        length = np.uint64(short) + (lane < np.uint64(longer))
        size = np.minimum(np.uint64(self.window), length - window * np.uint64(self.window))
        out = np.empty_like(inside)
        # Three sizes at most: full windows, and the last ones of the shorter and of the longer lanes.
        for n in (self.window, short % self.window, (short + 1) % self.window):
            here = size == np.uint64(n)
            if here.all():
                return bijection(inside, n, keys)
            if here.any():
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
        self._shift = max(0, total.bit_length() - max(_CELL_BITS, (2 * len(ends)).bit_length()))
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


def by_shard(shards: Ints) -> dict[int, Ints]:
    """Where each shard comes in `shards`, as indices into it; the shards in rising order."""
    grouped = np.argsort(shards, kind="stable")
    present, first = np.unique(shards[grouped], return_index=True)
    return dict(zip(present.tolist(), np.split(grouped, first[1:])))


def _chunks(size: int) -> list[slice]:
    return [slice(start, start + _CHUNK) for start in range(0, size, _CHUNK)]
