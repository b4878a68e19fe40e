"""From the steps of a run to work for its threads: which samples a batch holds, and where their bytes lie."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardpipe.loading.read import SampleRow, rows_of
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import Step

__all__ = ["Place", "Work", "works"]

_MOST_SAMPLES = 1024
"""Looked up together: what numpy and Arrow cost a call is then little a sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a batch stands in its run."""

    epoch: int
    consumed_samples: int
    """Of the run, all ranks together, after this step."""
    state: dict[str, Any]
    """What `ShardLoader.load_state_dict` takes to go on after this step; JSON-able."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One batch to make: everything a thread or a process needs to know of it."""

    place: Place
    delivered: int
    """Samples of this step, all ranks together."""
    rows: list[SampleRow]
    epochs: list[int]
    """Of each sample: what is random about it is keyed by it."""
    ordinals: list[int]
    """Each sample's place in the whole dataset."""
    weights: list[float]
    """0 for a repeat that fills an epoch's last step, else 1."""


def works(sequence: BatchSequence, steps: Iterable[Step], rank: int) -> Iterator[Work]:
    """The rank's batch of every step. Steps are looked up in groups that begin with one and double: the first batch is
    not to wait for others.
    """
    for group in _groups(steps):
        epoch = (group[0].count - 1) // sequence.num_samples
        batches = [step.of_rank(rank) for step in group]
        shards, places, ordinals = sequence.samples(epoch, np.concatenate([positions for positions, _ in batches]))
        rows = rows_of(sequence.index, shards, places)
        start = 0
        for step, (positions, real) in zip(group, batches):
            stop = start + len(positions)
            yield Work(
                place=Place(epoch=epoch, consumed_samples=step.count, state=sequence.state(step.count)),
                delivered=sum(len(of_rank) for of_rank in step.batches),
                rows=rows[start:stop],
                epochs=[epoch] * len(positions),
                ordinals=ordinals[start:stop].tolist(),
                weights=[float(real)] * len(positions),
            )
            start = stop


def _groups(steps: Iterable[Step]) -> Iterator[list[Step]]:
    """All of one epoch."""
    group: list[Step] = []
    length, samples = 1, 0
    for step in steps:
        group.append(step)
        samples += max(len(positions) for positions in step.batches)
        if len(group) >= length or samples >= _MOST_SAMPLES:
            yield group
            group, length, samples = [], 2 * length, 0
    if group:
        yield group
