"""Answers about a run must be what the loader then does."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpipe import ShardLoader
from shardpipe.dataset import Index
from shardpipe.errors import ConfigError
from shardpipe.loading.explain import given_at, plan_cost, step_of, visits
from shardpipe.loading.sequence import BatchSequence
from shardpipe.order import Batching
from shardpipe.order import plan as plan_module
from shardpipe.pack import PackOptions, pack
from tests.speech import make_wav, pack_speech

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


def turns(data: Path, plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every batch of two epochs, as a loader gives them: its turn, but for the rank."""
    order = sequence(data, plan).order
    found: list[dict[str, Any]] = []
    number = {"window": -1}
    for before, after, ((keys,)) in delivered(data, plan, 1):
        epoch = before // SAMPLES
        # Keys are numbered in the order in which they were packed, 9 to a shard.
        positions = [int(order.position_of(*divmod(int(key[3:]), 9), epoch)) for key in keys]
        offset = positions[0] // order.lanes
        begins = offset - offset % plan.get("batch_size", 1)
        here = (epoch, begins // order.window)
        number = {"window": here, "batch": number["batch"] + 1 if number["window"] == here else 0}
        assert {position % order.lanes for position in positions} == {positions[0] % order.lanes}
        found.append(
            {
                "epoch": epoch,
                "super_window": begins // order.window,
                "batch": number["batch"],
                "lane": positions[0] % order.lanes,
                "consumed_before": before,
                "consumed_after": after,
                "keys": keys,
            }
        )
    return found


@KINDS
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_what_came_at_a_count(data: Path, plan: dict[str, Any], world_size: int) -> None:
    ranks = {
        (before // SAMPLES, key): (number, rank, before, after, step)
        for epoch in range(2)
        for number, (before, after, step) in enumerate(
            step for step in delivered(data, plan, world_size) if step[0] // SAMPLES == epoch
        )
        for rank, keys in enumerate(step)
        for key in keys
    }
    planned = sequence(data, plan)
    stays = world_size == 1 or (world_size in (2, 4) and "max_seconds" not in plan)
    for turn in turns(data, plan):
        number, rank, before, after, keys = ranks[turn["epoch"], turn["keys"][0]]
        for consumed in {turn["consumed_before"], turn["consumed_after"] - 1}:
            given = given_at(planned, consumed, world_size=world_size)
            assert asdict(given) == turn | {"rank": rank if stays else None}
        step = step_of(planned, given, world_size=world_size)
        assert (step.number, step.rank, step.keys) == (number, rank, keys)
        assert (step.consumed_before, step.consumed_after) == (before, after)


@KINDS
@pytest.mark.parametrize("world_size", [1, 3])
def test_when_a_sample_comes(data: Path, plan: dict[str, Any], world_size: int) -> None:
    came = {(turn["epoch"], key): turn for turn in turns(data, plan) for key in turn["keys"]}
    planned = sequence(data, plan)
    left_out = 0
    for number in range(SAMPLES):
        key = f"utt{number:05d}"
        for visit in visits(planned, key, epochs=2, world_size=world_size):
            assert planned.keys(visit.epoch, np.array([visit.position])) == [key]
            expected = came.get((visit.epoch, key))
            assert (visit.turn and asdict(visit.turn) | {"rank": 0}) == (expected and expected | {"rank": 0})
            left_out += visit.turn is None
    assert (left_out > 0) == ("max_seconds" in plan)


@pytest.mark.parametrize("limits", [{}, {"max_seconds": 0.2}], ids=["all", "limited"])
@pytest.mark.parametrize("batching", [{"batch_size": 3}, {"batch_seconds": 0.5}], ids=["static", "by seconds"])
def test_they_plan_a_super_window_and_not_the_epoch(
    data: Path, monkeypatch: pytest.MonkeyPatch, batching: dict[str, Any], limits: dict[str, Any]
) -> None:
    asked: list[int] = []
    real = BatchSequence.seconds
    monkeypatch.setattr(
        BatchSequence,
        "seconds",
        lambda self, epoch, positions: asked.extend(positions.tolist()) or real(self, epoch, positions),
    )
    monkeypatch.setattr(plan_module, "_STATIC_BLOCK", 3)
    planned = BatchSequence(Index.load(str(data)), Batching(**batching, **limits), window=6, lanes=1, seed=2)
    for consumed in range(SAMPLES):
        asked.clear()
        given_at(planned, consumed)
        # That of the count and, for what is left out between two batches, those before and after it.
        assert all(abs(position - consumed) < (18 if limits else 12) for position in asked)
        assert asked or batching == {"batch_size": 3}


def test_where_whole_super_windows_are_left_out(tmp_path: Path) -> None:
    """Long samples lie among many that are too short: what these take of the count goes with the one before."""
    folder = tmp_path / "speech"
    lines = []
    for number in range(40):
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        seconds = 1.0 if number in (7, 8, 23) else 0.1
        (folder / f"audio/{number}.wav").write_bytes(make_wav(int(seconds * 16000)))
        lines.append(json.dumps({"key": f"utt{number:05d}", "wav": f"audio/{number}.wav", "txt": "a"}) + "\n")
    (folder / "data.list").write_text("".join(lines))
    pack(folder / "data.list", tmp_path / "out", options=PackOptions(shard_samples=9))
    index = Index.load(str(tmp_path / "out"))
    for batching in (Batching(batch_size=2, min_seconds=0.5), Batching(batch_seconds=2, min_seconds=0.5)):
        planned = BatchSequence(index, batching, window=2, lanes=1, shuffle=False)
        batches = list(planned.batches(0))
        before = 0
        for batch in batches:
            for consumed in range(before, batch.count):
                given = given_at(planned, consumed, world_size=2)
                assert (given.consumed_before, given.consumed_after) == (before, batch.count)
                assert given.keys == planned.keys(0, batch.positions)
            before = batch.count
        assert before == 40
        assert [visit.turn for visit in visits(planned, "utt00003", epochs=1)] == [None]
    none = BatchSequence(index, Batching(batch_size=2, min_seconds=5), window=2)
    with pytest.raises(ConfigError, match="of epoch 1 are all left out"):
        given_at(none, 41)


def test_a_key_that_is_not_there(data: Path) -> None:
    with pytest.raises(ConfigError, match="KEY is 'nobody'"):
        visits(sequence(data, PLANS[0]), "nobody", epochs=1)
    with pytest.raises(ConfigError, match=r"KEY is '\\udcff'"):
        visits(sequence(data, PLANS[0]), os.fsdecode(b"\xff"), epochs=1)


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
