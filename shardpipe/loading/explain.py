"""Answers about a run that need no run: what came at a count, when a sample comes, what a plan costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.compute as pc

from shardpipe.errors import ConfigError
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import Step

__all__ = ["Cost", "Given", "Visit", "given_at", "plan_cost", "visits"]

_STEPS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Given:
    """A step of a run: the keys every rank was given, and the counts before and after it."""

    epoch: int
    step: int
    consumed_before: int
    consumed_after: int
    keys: list[list[str]]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """When a sample comes in an epoch; step, rank and counts are None if its length leaves it out."""

    epoch: int
    position: int
    step: int | None
    rank: int | None
    consumed_before: int | None
    consumed_after: int | None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What an epoch costs on `world_size` ranks. Straggling is the time ranks wait for the step's longest batch."""

    steps: int
    batches: int
    samples: int
    excluded: int
    seconds: float
    padding_percent: float
    straggler_percent: float
    shards: int
    shards_a_rank: float
    """Distinct shards that a rank reads from, on average; shards / world_size would be ideal."""


def given_at(sequence: BatchSequence, consumed: int, *, world_size: int = 1) -> Given:
    """The step during which a run of `world_size` ranks, begun at the epoch's start, consumed sample number `consumed`
    (the first is number 0).
    """
    epoch = consumed // sequence.num_samples
    for number, before, step in _numbered(sequence, epoch, world_size):
        if consumed < step.count:
            keys = [sequence.keys(epoch, positions) for positions in step.batches]
            return Given(epoch=epoch, step=number, consumed_before=before, consumed_after=step.count, keys=keys)
    raise ConfigError("consumed", consumed, f"the samples left of epoch {epoch} are all excluded by their length")


def visits(sequence: BatchSequence, key: str, *, epochs: int, world_size: int = 1) -> list[Visit]:
    """When the sample comes in each of the first `epochs` epochs. Raises ConfigError for a key that is not there."""
    shard, place = _find(sequence, key)
    found = []
    for epoch in range(epochs):
        position = int(sequence.order.position_of(shard, place, epoch))
        hit: tuple[int | None, ...] = (None, None, None, None)
        for number, before, step in _numbered(sequence, epoch, world_size):
            rank = next((r for r, positions in enumerate(step.batches) if position in positions), None)
            if rank is not None:
                hit = (number, rank, before, step.count)
                break
        step_number, at_rank, before_step, after_step = hit
        found.append(
            Visit(
                epoch=epoch,
                position=position,
                step=step_number,
                rank=at_rank,
                consumed_before=before_step,
                consumed_after=after_step,
            )
        )
    return found


def plan_cost(sequence: BatchSequence, *, world_size: int = 1) -> Cost:
    """Plans epoch 0 as a whole, from the lengths in the index."""
    order, steps = sequence.order, sequence.steps(0, world_size=world_size)
    number = batches = delivered = 0
    audio = padded = waited = 0.0
    touched = np.zeros((world_size, len(order.counts)), np.bool_)
    while some := list(islice(steps, _STEPS_AT_ONCE)):
        flat = [positions for step in some for positions in step.batches]
        ends = np.cumsum([len(positions) for positions in flat])
        together = np.concatenate(flat)
        lengths = sequence.seconds(0, together)
        costs = np.maximum.reduceat(lengths, ends - np.diff(ends, prepend=0)) * np.diff(ends, prepend=0)
        ranks = np.concatenate([np.arange(len(step.batches)) for step in some])
        touched[np.repeat(ranks, np.diff(ends, prepend=0)), order.sample_at(together, 0)[0]] = True
        slowest = np.maximum.reduceat(costs, np.flatnonzero(ranks == 0))
        number, batches, delivered = number + len(some), batches + len(flat), delivered + len(together)
        audio, padded = audio + lengths.sum(), padded + costs.sum()
        waited += float(slowest.sum()) * world_size
    return Cost(
        steps=number,
        batches=batches,
        samples=delivered,
        excluded=sequence.num_samples - delivered,
        seconds=round(float(audio), 3),
        padding_percent=100 * (1 - audio / padded) if padded else 0.0,
        straggler_percent=100 * (waited / padded - 1) if padded else 0.0,
        shards=int((order.counts > 0).sum()),
        shards_a_rank=float(touched.sum(axis=1).mean()),
    )


def _numbered(sequence: BatchSequence, epoch: int, world_size: int) -> Iterator[tuple[int, int, Step]]:
    """(number in the epoch, count before, step) of an epoch's steps."""
    before = epoch * sequence.num_samples
    for number, step in enumerate(sequence.steps(before, world_size=world_size)):
        yield number, before, step
        before = step.count


def _find(sequence: BatchSequence, key: str) -> tuple[int, int]:
    for shard in range(len(sequence.index.shards)):
        place = pc.index(sequence.index.rows(shard).column("key"), key).as_py()
        if place >= 0:
            return shard, place
    raise ConfigError("KEY", key, f"no sample of {sequence.index.store.url} has it")
