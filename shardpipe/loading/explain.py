"""Answers about a run that need no run: what came at a count, when a sample comes, what a plan costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from shardpipe.errors import ConfigError
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import PlannedBatch

__all__ = ["Cost", "InStep", "Turn", "Visit", "given_at", "plan_cost", "step_of", "visits"]

_STEPS_AT_ONCE = 256


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A batch of a run: number `batch` of those that begin in a super-window, from 0 on; its lane; the counts between
    which it is consumed, samples that are left out on the way among them; and the rank that takes it, which is None
    where the whole epoch's plan decides (`step_of`). The rank is that of a run with as many since the epoch began: one
    that resumes within it deals its steps from there.
    """

    epoch: int
    super_window: int
    batch: int
    lane: int
    rank: int | None
    consumed_before: int
    consumed_after: int
    keys: list[str]


@dataclass(frozen=True, kw_only=True)
class Visit:
    """When a sample comes in an epoch: at which position of the order, and in which batch. None: it is left out for its
    length.
    """

    epoch: int
    position: int
    turn: Turn | None


@dataclass(frozen=True, kw_only=True)
class InStep:
    """The step of an epoch to which a batch belongs, from 0 on; the rank that takes the batch; the counts before and
    after the step, and the keys that each rank is given in it, repeats apart.
    """

    number: int
    rank: int
    consumed_before: int
    consumed_after: int
    keys: list[list[str]]


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


def given_at(sequence: BatchSequence, consumed: int, *, world_size: int = 1) -> Turn:
    """The batch with which a run of `world_size` ranks consumes sample number `consumed` (the first is number 0).

    It takes the plan of one super-window, and of those beside it only where samples are left out for their length.
    Raises ConfigError if all of the epoch's are.
    """
    epoch, count = divmod(consumed, sequence.num_samples)
    turn = _turn(sequence, epoch, sequence.plan.window_of(count), lambda batch: batch.count > count, world_size)
    if turn is None:
        raise ConfigError("consumed", consumed, f"the samples of epoch {epoch} are all left out for their length")
    return turn


def visits(sequence: BatchSequence, key: str, *, epochs: int, world_size: int = 1) -> list[Visit]:
    """When the sample comes in each of the first `epochs` epochs, each found as by `given_at`, once the key is looked
    up in the index. Raises ConfigError for a key that is not there.
    """
    found = sequence.index.find(key)
    if found is None:
        raise ConfigError("KEY", key, f"no sample of {sequence.index.store.url} has it")
    return [_visit(sequence, epoch, found, world_size) for epoch in range(epochs)]


def step_of(sequence: BatchSequence, turn: Turn, *, world_size: int = 1) -> InStep:
    """The step that the batch belongs to, if there have been `world_size` ranks since the epoch began: plans the epoch
    up to there.
    """
    begin = turn.epoch * sequence.num_samples
    for number, step in enumerate(sequence.steps(begin, world_size=world_size)):
        counts = [batch.count for batch in step.batches]
        if turn.consumed_after in counts:
            keys = [sequence.keys(turn.epoch, batch.positions) for batch in step.batches]
            return InStep(
                number=number,
                rank=counts.index(turn.consumed_after) % world_size,
                consumed_before=step.begin,
                consumed_after=step.count,
                keys=[list(chain(*keys[rank::world_size])) for rank in range(min(world_size, len(keys)))],
            )
    raise ConfigError("turn", turn, "it is of another plan")


def plan_cost(sequence: BatchSequence, *, world_size: int = 1) -> Cost:
    """Plans epoch 0 as a whole, from the lengths in the index."""
    order, steps = sequence.order, sequence.steps(0, world_size=world_size)
    number = batches = delivered = 0
    audio = padded = waited = 0.0
    touched = np.zeros((world_size, len(order.counts)), np.bool_)
    while some := list(islice(steps, _STEPS_AT_ONCE)):
        flat = [batch.positions for step in some for batch in step.batches]
        ends = np.cumsum([len(positions) for positions in flat])
        together = np.concatenate(flat)
        lengths = sequence.seconds(0, together)
        costs = np.maximum.reduceat(lengths, ends - np.diff(ends, prepend=0)) * np.diff(ends, prepend=0)
        ranks = np.concatenate([np.arange(len(step.batches)) % world_size for step in some])
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


def _visit(sequence: BatchSequence, epoch: int, sample: tuple[int, int], world_size: int) -> Visit:
    position = int(sequence.order.position_of(*sample, epoch))
    turn = None
    if sequence.batching.keeps(sequence.seconds(epoch, np.array([position]))).all():
        window = sequence.plan.window_of(position)
        turn = _turn(sequence, epoch, window, lambda batch: position in batch.positions, world_size)
    return Visit(epoch=epoch, position=position, turn=turn)


def _turn(
    sequence: BatchSequence, epoch: int, window: int, wanted: Callable[[PlannedBatch], bool], world_size: int
) -> Turn | None:
    """The first batch of an epoch that is wanted; only where samples are left out may it lie before this window."""
    plan, base = sequence.plan, epoch * sequence.num_samples
    excludes = plan.batching.excludes
    strays = plan.order.lanes % world_size or sequence.step_size(world_size) % world_size
    ranks_stay = world_size == 1 or not (excludes or strays)
    for first in _backwards(window):
        start = plan.window_start(first)
        # What is left out goes with the batch before it, which may lie in an earlier window.
        before = None if excludes and first else start
        number, here = -1, first
        for batch in plan.batches(epoch, start):
            begins = plan.window_of(int(batch.positions[0]))
            number, here = number + 1 if begins == here else 0, begins
            if not wanted(batch):
                before = batch.count
            elif before is None:
                break
            else:
                return Turn(
                    epoch=epoch,
                    super_window=here,
                    batch=number,
                    lane=int(batch.positions[0]) % plan.order.lanes,
                    rank=number % world_size if ranks_stay else None,
                    consumed_before=base + before,
                    consumed_after=base + batch.count,
                    keys=sequence.keys(epoch, batch.positions),
                )
    return None


def _backwards(window: int) -> Iterator[int]:
    """This window and earlier ones, at growing distances, at last number 0."""
    back = 0
    while back < window:
        yield window - back
        back = 2 * back + 1
    yield 0
