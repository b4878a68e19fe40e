"""From the steps of a run to work for its threads: which samples a batch holds, and where their bytes lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from shardpipe.loading.read import SampleRow, rows_of
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import BATCH, Share, Step, hash_key

__all__ = ["Place", "Work", "works"]

_MOST_SAMPLES = 1024
"""Looked up together: what numpy and Arrow cost a call is then little a sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a batch stands in its run."""

    epoch: int
    consumed_samples: int
    """Of the run, all ranks together, after this step; with a step's earlier batches still before it."""
    state: dict[str, Any]
    """What `ShardLoader.load_state_dict` takes to go on after this step, or at its start; JSON-able."""
    ends_step: bool
    """Whether it is this rank's last batch of the step."""
    seed: int
    """The batch's own on any world, below 2**62: what is random about it can be keyed by it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Work:
    """One batch to make: everything a thread or a process needs to know of it."""

    place: Place
    end: int
    """The count that the batch's last sample brings the sequence to, which says how far reading has come."""
    delivered: int
    """Samples that the count's move goes by: those of this step, all ranks together; 0 before its last batch."""
    rows: list[SampleRow]
    epochs: list[int]
    """Of each sample: what is random about it is keyed by it."""
    ordinals: list[int]
    """Each sample's place in the whole dataset."""
    weights: list[float]
    """0 for a repeat that fills a step, else 1."""


def works(
    sequence: BatchSequence, steps: Iterable[Step], rank: int, world_size: int, *, given: int = 0
) -> Iterator[Work]:
    """The rank's batches of every step, without those `given` of the first. They are looked up in groups that begin
    with one and double: the first batch is not to wait for others.
    """
    shares = ((step, share) for step in steps for share in step.of_rank(rank, world_size))
    for group in _groups(islice(shares, given, None)):
        batches = [share.batch for _, share in group]
        epoch = (batches[0].count - 1) // sequence.num_samples
        shards, places, ordinals = sequence.samples(epoch, np.concatenate([batch.positions for batch in batches]))
        rows = rows_of(sequence.index, shards, places)
        ends = np.array([batch.count for batch in batches])
        seeds = (hash_key(sequence.order.seed, BATCH, ends) >> np.uint64(2)).tolist()
        start = 0
        for (step, share), seed in zip(group, seeds):
            stop = start + len(share.batch.positions)
            count = step.count if share.last else step.begin
            yield Work(
                place=Place(
                    epoch=epoch,
                    consumed_samples=count,
                    state=sequence.state(count),
                    ends_step=share.last,
                    seed=seed,
                ),
                end=share.batch.count,
                delivered=sum(len(batch.positions) for batch in step.batches) if share.last else 0,
                rows=rows[start:stop],
                epochs=[epoch] * (stop - start),
                ordinals=ordinals[start:stop].tolist(),
                weights=[float(share.real)] * (stop - start),
            )
            start = stop


def _groups(shares: Iterable[tuple[Step, Share]]) -> Iterator[list[tuple[Step, Share]]]:
    """All of one epoch."""
    group: list[tuple[Step, Share]] = []
    length, samples = 1, 0
    for step, share in shares:
        group.append((step, share))
        samples += len(share.batch.positions)
        if len(group) >= length or samples >= _MOST_SAMPLES:
            yield group
            group, length, samples = [], 2 * length, 0
    if group:
        yield group
