"""Which positions of the order form which batch: pure, and never more than a window's work from any count.

An epoch's sequence is made of blocks that can each be planned alone: some rungs (static), or one super-window
(length-batched). A count of consumed samples finds its block by a division and its batch by a search in the block, so
planning at sample 10^12 costs what it costs at sample 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from shardpipe.errors import ConfigError
from shardpipe.order.batching import Batching, Floats
from shardpipe.order.bijection import RUNGS, hash_key, permute
from shardpipe.order.cut import cut
from shardpipe.order.shuffle import Ints, Order

__all__ = ["Block", "Plan", "PlannedBatch", "Share", "Step", "steps"]

# Rungs are planned together until they hold about this many samples: one batch at a time is slow in numpy.
_STATIC_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Block:
    """A run of consecutive batches. Batch i holds positions[bounds[i]:bounds[i + 1]].

    counts[i] samples of the epoch are consumed before batch i and counts[i + 1] after it: those it delivers first,
    then the excluded ones that go with it. counts[0] is above `start` if the block begins with excluded batches. A
    block all of whose samples are excluded has no batch, and counts is its end.
    """

    start: int
    end: int
    positions: Ints
    bounds: Ints
    counts: Ints
    excluded: Ints


@dataclass(frozen=True, kw_only=True)
class PlannedBatch:
    """Positions of one batch, and the epoch's count once it is consumed."""

    positions: Ints
    count: int


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a rank takes of a step at a time: a batch that is its own, or a repeat of one, which fills the step up."""

    batch: PlannedBatch
    real: bool
    last: bool
    """Of those that the rank takes in this step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The batches of one optimizer step, and the counts before and after it."""

    batches: tuple[PlannedBatch, ...]
    begin: int

    @property
    def count(self) -> int:
        return self.batches[-1].count

    def times(self, world_size: int) -> int:
        """How many batches each of so many ranks takes of the step, repeats among them: as many as the others."""
        return -(-len(self.batches) // world_size)

    def of_rank(self, rank: int, world_size: int) -> list[Share]:
        """Batches rank, rank + world_size, ...; for what is not there, the first that it takes, or else another."""
        number, times = len(self.batches), self.times(world_size)
        mine = range(rank, rank + times * world_size, world_size)
        return [
            Share(batch=self.batches[i if i < number else rank % number], real=i < number, last=i == mine[-1])
            for i in mine
        ]


def steps(batches: Iterator[PlannedBatch], size: int, *, begin: int = 0) -> Iterator[Step]:
    """A sequence of batches, `size` to a step; only the last one may be short. `begin` is the count before them."""
    while group := tuple(islice(batches, size)):
        step = Step(batches=group, begin=begin)
        yield step
        begin = step.count


class Plan:
    """The batches of every epoch, as a function of (order, batching, lengths).

    `seconds(epoch, positions)` gives the lengths of samples in seconds, and is asked only where lengths matter;
    `name(epoch, position)` names one in an error.
    """

    def __init__(
        self,
        order: Order,
        batching: Batching,
        *,
        seconds: Callable[[int, Ints], Floats],
        name: Callable[[int, int], str] = lambda epoch, position: f"at position {position} of epoch {epoch}",
    ) -> None:
        self.order = order
        self.batching = batching
        self._seconds = seconds
        self._name = name
        # A batch takes a lane's rest at most; a rung of larger ones would be planned with room for what is not there.
        self._size = min(batching.batch_size or 1, max(1, -(-order.num_samples // order.lanes)))

    def batches(self, epoch: int, count: int, stop: int | None = None) -> Iterator[PlannedBatch]:
        """The epoch's batches from `count` consumed samples on, the rest of a begun batch first, up to count `stop`.

        The last one takes along whatever excluded samples are left: its count is `stop`, the epoch's end if None.
        """
        end = self.order.num_samples if stop is None else stop
        held: PlannedBatch | None = None
        for batch in self._batches(epoch, count, end):
            if held is not None:
                yield held
            held = batch
        if held is not None:
            yield replace(held, count=end)

    def _batches(self, epoch: int, count: int, end: int) -> Iterator[PlannedBatch]:
        k = self._block_of(count)
        while count < end:
            block = self.block(epoch, k)
            first = int(np.searchsorted(block.counts, count, side="right")) - 1
            for i in range(max(0, first), len(block.bounds) - 1):
                if int(block.counts[i]) >= end:
                    return
                begun = max(0, count - int(block.counts[i]))
                positions = block.positions[block.bounds[i] + begun : block.bounds[i + 1]]
                if len(positions):
                    yield PlannedBatch(positions=positions, count=int(block.counts[i + 1]))
            count = block.end
            k += 1

    def block(self, epoch: int, k: int) -> Block:
        """Block k >= 0 of the epoch; both kinds count their blocks from the batching's origin."""
        if self.batching.batch_seconds is None:
            return self._static_block(epoch, k)
        return self._length_block(epoch, k, self.batching.batch_seconds)

    def next_boundary(self, count: int) -> int:
        """The lane offset at which another batching can take over: the end of the rung or super-window of `count`."""
        lanes, origin = self.order.lanes, self.batching.origin
        offset = max(origin, -(-count // lanes))
        if self.batching.batch_size is not None:
            return origin + -(-(offset - origin) // self._size) * self._size
        window = self.order.window
        return offset if offset == origin else -(-offset // window) * window

    def count_at(self, offset: int) -> int:
        """Samples consumed when every lane has given `offset` of them."""
        return min(offset * self.order.lanes, self.order.num_samples)

    def window_of(self, position: int) -> int:
        """The super-window in which the batch of a position begins."""
        offset, origin = position // self.order.lanes, self.batching.origin
        if self.batching.batch_size is not None:
            offset -= (offset - origin) % self._size
        return offset // self.order.window

    def window_start(self, window: int) -> int:
        """The samples of the epoch that come before the first batch that begins in a super-window."""
        return self.count_at(self.next_boundary(window * self.order.window * self.order.lanes))

    def _block_of(self, count: int) -> int:
        offset = max(count // self.order.lanes, self.batching.origin)
        if self.batching.batch_size is not None:
            return (offset - self.batching.origin) // self._static_span()
        return offset // self.order.window - self.batching.origin // self.order.window

    def _static_span(self) -> int:
        """Lane offsets of a static block: whole rungs."""
        return self._size * max(1, _STATIC_BLOCK // (self._size * self.order.lanes))

    def _static_block(self, epoch: int, k: int) -> Block:
        size, lanes = self._size, self.order.lanes
        span = self._static_span()
        first = self.batching.origin + k * span
        start, end = self.count_at(first), self.count_at(first + span)
        # Axes: rung, lane, sample of the batch. Only the lanes' ragged ends lie behind the last position.
        grid = first + np.arange(span, dtype=np.int64).reshape(-1, 1, size)
        grid = grid * lanes + np.arange(lanes, dtype=np.int64).reshape(1, -1, 1)
        there = grid < self.order.num_samples
        consumed = there.sum(axis=2).ravel()
        kept = there
        if self.batching.excludes:
            kept = there.copy()
            kept[there] = self.batching.keeps(self._seconds(epoch, grid[there]))
        sizes = kept.sum(axis=2).ravel()
        counts = start + np.cumsum(consumed) - consumed
        # What an all-excluded batch consumes goes with the batch before it.
        counts = np.append(counts[sizes > 0], end)
        return Block(
            start=start,
            end=end,
            positions=grid[kept],
            bounds=_bounds(sizes[sizes > 0]),
            counts=counts,
            excluded=grid[there & ~kept],
        )

    def _length_block(self, epoch: int, k: int, budget: float) -> Block:
        window, lanes, origin = self.order.window, self.order.lanes, self.batching.origin
        w = origin // window + k
        first, last = max(origin, w * window), (w + 1) * window
        start, end = self.count_at(first), self.count_at(last)
        # Axes: lane, sample of the lane's window.
        width = -(-(end - start) // lanes)
        grid = (first + np.arange(width, dtype=np.int64)) * lanes + np.arange(lanes, dtype=np.int64).reshape(-1, 1)
        there = grid < self.order.num_samples
        lengths = np.full(grid.shape, np.inf)
        lengths[there] = self._seconds(epoch, grid[there])
        kept = there & self.batching.keeps(lengths)
        self._refuse_too_long(epoch, grid[kept], lengths[kept], budget)
        lengths[~kept] = np.inf
        by_length = np.argsort(lengths, axis=1, kind="stable")
        cuts = cut(np.take_along_axis(lengths, by_length, axis=1), kept.sum(axis=1), budget)
        rungs = self._permuted_rungs(epoch, w, cuts)
        grid = np.take_along_axis(grid, by_length, axis=1)
        highs, lows = cuts[:, :-1].T[rungs].ravel(), cuts[:, 1:].T[rungs].ravel()
        owner = np.tile(np.arange(lanes), len(rungs))
        full = highs > lows
        pieces = [grid[lane, low:high] for lane, low, high in zip(owner[full], lows[full], highs[full])]
        bounds = _bounds(highs[full] - lows[full])
        # The excluded are consumed when their window ends: with its last batch.
        counts = start + bounds
        counts[-1] = end
        return Block(
            start=start,
            end=end,
            positions=np.concatenate(pieces) if pieces else np.empty(0, np.int64),
            bounds=bounds,
            counts=counts,
            excluded=np.sort(grid[np.take_along_axis(there & ~kept, by_length, axis=1)]),
        )

    def _permuted_rungs(self, epoch: int, window: int, cuts: Ints) -> Ints:
        number = cuts.shape[1] - 1
        rungs = np.arange(number, dtype=np.int64)
        if self.order.shuffle:
            rungs = permute(rungs, number, hash_key(self.order.seed, epoch, RUNGS, window)).astype(np.int64)
        # A rung that some lane has no batch for comes last, so that the others stay one batch of every lane.
        lacking = (np.diff(cuts, axis=1) == 0).any(axis=0)
        return rungs[np.argsort(lacking[rungs], kind="stable")]

    def _refuse_too_long(self, epoch: int, positions: Ints, lengths: Floats, budget: float) -> None:
        if lengths.size and lengths.max() > budget:
            worst = int(np.argmax(lengths))
            name = self._name(epoch, int(positions[worst]))
            raise ConfigError(
                "batch_seconds",
                budget,
                f"the sample {name} alone lasts {lengths[worst]:.2f} s",
                fix="Raise batch_seconds, or leave such samples out with max_seconds.",
            )


def _bounds(sizes: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
