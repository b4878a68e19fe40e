"""The batches of this process, step by step, and what their randomness is seeded with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from shardpipe import Batch, ShardLoader
from shardpipe.train.engines import seed_of
from shardpipe.train.steps.tally import Clock

__all__ = ["MicroBatch", "micro_batches"]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """A batch, and its part in the step."""

    batch: Batch
    ends_step: bool
    """Whether it is the last of this process."""
    seed: int | None
    """For the generators before its forward pass; None if they go on."""


def micro_batches(loader: ShardLoader, clock: Clock, *, by_ranks: tuple[int, int] | None) -> Iterator[MicroBatch]:
    """The rest of the sub-epoch; `clock` is told what it takes to wait for it.

    SpecAugment and dropout are a function of the batch's place in the run, on any world. by_ranks: (rank, accumulate)
    in a run that was begun before steps had a size.
    """
    batches = _waited(iter(loader), clock)
    if by_ranks is not None:
        yield from _by_ranks(loader, batches, *by_ranks)
        return
    for batch in batches:
        yield MicroBatch(batch=batch, ends_step=batch.ends_step, seed=batch.seed)


def _by_ranks(loader: ShardLoader, batches: Iterator[Batch], rank: int, accumulate: int) -> Iterator[MicroBatch]:
    """As version 0.1 did it, to the bit: a process's generators are seeded once a step, by (count before it, rank)."""
    before = loader.consumed_samples
    while group := list(islice(batches, accumulate)):
        seed: int | None = seed_of(loader.state_dict()["seed"], before, rank)
        for batch in group:
            yield MicroBatch(batch=batch, ends_step=batch is group[-1], seed=seed)
            seed = None
        before = group[-1].consumed_samples


def _waited(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        clock.waited += time.perf_counter() - asked
        if batch is None:
            return
        yield batch
