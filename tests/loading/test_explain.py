"""Answers about a run must be what the loader then does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpipe import ShardLoader
from shardpipe.dataset import Index
from shardpipe.errors import ConfigError
from shardpipe.loading.explain import given_at, plan_cost, visits
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import Batching
from tests.speech import pack_speech

SAMPLES = 50
PLANS: list[dict[str, Any]] = [{"batch_size": 3}, {"batch_seconds": 1.0}, {"batch_seconds": 1.0, "max_seconds": 0.2}]
ORDER: dict[str, Any] = {"window": 8, "lanes": 4, "seed": 2}
KINDS = pytest.mark.parametrize("plan", PLANS, ids=["static", "by seconds", "limited"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("explain"), SAMPLES, shard_samples=9, seconds=(0.05, 0.3))


def sequence(data: Path, plan: dict[str, Any]) -> BatchSequence:
    return BatchSequence(Index.load(str(data)), Batching(**plan), **ORDER)


def delivered(data: Path, plan: dict[str, Any], world_size: int) -> list[tuple[int, int, list[list[str]]]]:
    """(count before, count after, keys by rank) of every step of two epochs, as loaders give them."""
    ranks = [ShardLoader(data, rank=r, world_size=world_size, **plan, **ORDER) for r in range(world_size)]
    steps = []
    for _ in range(2):
        for batches in zip(*ranks):
            before = steps[-1][1] if steps else 0
            keys = [[k for k, w in zip(b.keys, b.weights.tolist()) if w] for b in batches]
            steps.append((before, batches[0].consumed_samples, [k for k in keys if k]))
    return steps


@KINDS
@pytest.mark.parametrize("world_size", [1, 3])
def test_what_came_at_a_count(data: Path, plan: dict[str, Any], world_size: int) -> None:
    numbers = {0: -1, 1: -1}
    for before, after, keys in delivered(data, plan, world_size):
        epoch = before // SAMPLES
        numbers[epoch] += 1
        for consumed in {before, after - 1}:
            given = given_at(sequence(data, plan), consumed, world_size=world_size)
            assert (given.epoch, given.step, given.keys) == (epoch, numbers[epoch], keys)
            assert (given.consumed_before, given.consumed_after) == (before, after)


@KINDS
@pytest.mark.parametrize("world_size", [1, 3])
def test_when_a_sample_comes(data: Path, plan: dict[str, Any], world_size: int) -> None:
    came = {
        (before // SAMPLES, key): (rank, before, after)
        for before, after, keys in delivered(data, plan, world_size)
        for rank, batch in enumerate(keys)
        for key in batch
    }
    planned = sequence(data, plan)
    for number in range(0, SAMPLES, 7):
        key = f"utt{number:05d}"
        for visit in visits(planned, key, epochs=2, world_size=world_size):
            assert planned.keys(visit.epoch, np.array([visit.position])) == [key]
            expected = came.get((visit.epoch, key), (None, None, None))
            assert (visit.rank, visit.consumed_before, visit.consumed_after) == expected


def test_a_key_that_is_not_there(data: Path) -> None:
    with pytest.raises(ConfigError, match="KEY is 'nobody'"):
        visits(sequence(data, PLANS[0]), "nobody", epochs=1)


@KINDS
@pytest.mark.parametrize("world_size", [1, 4, 5])
def test_what_a_plan_costs(data: Path, plan: dict[str, Any], world_size: int) -> None:
    cost = plan_cost(sequence(data, plan), world_size=world_size)
    ranks = [ShardLoader(data, rank=r, world_size=world_size, **plan, **ORDER) for r in range(world_size)]
    audio = padded = waited = 0
    steps = samples = 0
    for batches in zip(*ranks):
        real = [batch for batch in batches if batch.weights.any()]
        steps, samples = steps + 1, samples + sum(len(batch.keys) for batch in real)
        audio += sum(int(batch.lengths.sum()) for batch in real)
        padded += sum(batch.audio.numel() for batch in real)
        waited += world_size * max(batch.audio.numel() for batch in real)
    assert (cost.steps, cost.samples, cost.excluded) == (steps, samples, SAMPLES - samples)
    assert cost.seconds == pytest.approx(audio / 16000, abs=1e-3)
    assert cost.padding_percent == pytest.approx(100 * (1 - audio / padded))
    assert cost.straggler_percent == pytest.approx(100 * (waited / padded - 1))
    assert cost.shards == 6
    assert cost.shards / world_size <= cost.shards_a_rank <= cost.shards
