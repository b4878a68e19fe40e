"""A step of `batches_per_step` batches is the same on any number of ranks, wherever runs stop and go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardpipe import Batch, ShardLoader
from shardpipe.errors import ConfigError, ResumeMismatch
from tests.speech import pack_speech

SAMPLES = 41
STATIC: dict[str, Any] = {"batch_size": 2}
BY_SECONDS: dict[str, Any] = {"batch_seconds": 0.5}
THINNED: dict[str, Any] = {"batch_seconds": 0.5, "min_seconds": 0.08, "max_seconds": 0.25}
KINDS = [STATIC, BY_SECONDS, THINNED, {**STATIC, "max_seconds": 0.2}]
ORDER: dict[str, Any] = {"window": 8, "lanes": 2, "seed": 5, "threads": 1}

Step = tuple[int, list[tuple[int, list[str]]]]
"""The count after a step, and (seed, keys) of each of its batches."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("steps"), SAMPLES, shard_samples=9, seconds=(0.05, 0.3))


class Job:
    """All ranks of a job, in step."""

    def __init__(self, data: Path, world_size: int, state: dict[str, Any] | None = None, **options: Any) -> None:
        made = [ShardLoader(data, rank=rank, world_size=world_size, **ORDER, **options) for rank in range(world_size)]
        self.ranks = made
        for loader in self.ranks if state is not None else ():
            loader.load_state_dict(json.loads(json.dumps(state)))

    def batches(self) -> Iterator[list[Batch]]:
        """Of all ranks, batch by batch, to the end of the sub-epoch."""
        yield from zip(*self.ranks, strict=True)

    def steps(self) -> Iterator[Step]:
        before = self.ranks[0].consumed_samples
        begun: list[tuple[int, list[str]]] = []
        for batches in self.batches():
            (ends,) = {batch.ends_step for batch in batches}
            (count,) = {batch.consumed_samples for batch in batches}
            assert all(loader.consumed_samples == count for loader in self.ranks)
            assert all(batch.state == self.ranks[0].state_dict() for batch in batches)
            assert (count > before) if ends else (count == before)
            begun += [(batch.seed, list(batch.keys)) for batch in batches if batch.weights.any()]
            assert all(set(batch.weights.tolist()) in ({0.0}, {1.0}) for batch in batches)
            if ends:
                yield count, begun
                before, begun = count, []
        assert not begun


def run(job: Job, epochs: int = 2) -> list[Step]:
    steps: list[Step] = []
    while job.ranks[0].epoch < epochs:
        steps += job.steps()
    return steps


@pytest.mark.parametrize("sub_epochs", [1, 3])
@pytest.mark.parametrize("size", [1, 4, 6, 100])
@pytest.mark.parametrize("plan", KINDS, ids=["static", "by seconds", "thinned", "static, thinned"])
def test_steps_are_the_same_on_any_world(data: Path, plan: dict[str, Any], size: int, sub_epochs: int) -> None:
    options = {**plan, "batches_per_step": size, "sub_epochs": sub_epochs}
    alone = run(Job(data, 1, **options))
    assert all(len(batches) <= size for _, batches in alone)
    for world_size in (2, 3, 8):
        assert run(Job(data, world_size, **options)) == alone
    # What stands in them is the one sequence that there is.
    flat = [keys for _, batches in run(Job(data, 1, **plan)) for _, keys in batches]
    assert [keys for _, batches in alone for _, keys in batches] == flat
    assert len({seed for _, batches in alone for seed, _ in batches}) == len(flat)


@settings(max_examples=40)
@given(
    plan=st.sampled_from(KINDS),
    size=st.integers(1, 9),
    sub_epochs=st.integers(1, 3),
    stops=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 12)), max_size=4),
)
def test_wherever_runs_stop_steps_are_whole(
    data: Path, plan: dict[str, Any], size: int, sub_epochs: int, stops: list[tuple[int, int]]
) -> None:
    options = {**plan, "batches_per_step": size, "sub_epochs": sub_epochs}
    undisturbed = Job(data, 1, **options)
    state, whole, taken = undisturbed.ranks[0].state_dict(), run(undisturbed, epochs=6), list[Step]()
    for world_size, batches in stops:
        # Stopped after so many batches, as a rule in the middle of a step: what its batches carried is its start.
        job = Job(data, world_size, state, **options)
        state = [state, *(ranks[-1].state for ranks in islice(job.batches(), batches))][-1]
    for world_size in (3, 1):
        job = Job(data, world_size, state, **options)
        steps = list(job.steps())
        at = [count for count, _ in whole].index(steps[0][0])
        assert whole[at : at + len(steps)] == steps[: len(whole) - at]
        taken = taken or steps
        assert taken == steps


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_next_loop_goes_on_in_a_step_and_a_resume_begins_it_anew(data: Path, world_size: int) -> None:
    whole = [batch for ranks in Job(data, world_size, **STATIC, batches_per_step=6).batches() for batch in ranks]
    steps = list(Job(data, 1, **STATIC, batches_per_step=6).steps())
    job = Job(data, world_size, **STATIC, batches_per_step=6)
    given: list[Batch] = []
    for number in (1, 2, 0, 3, 100):
        left = {loader.batches_left() for loader in job.ranks}
        part = list(islice(job.batches(), number))
        given += [batch for ranks in part for batch in ranks]
        state = job.ranks[0].state_dict()
        assert left == {len(part) + (0 if number == 100 else job.ranks[0].batches_left())}
        if number == 3:
            begun = list(Job(data, 1, state, **STATIC, batches_per_step=6).steps())
            assert begun == [step for step in steps if step[0] > state["consumed_samples"]]
    assert [(batch.seed, *batch.keys) for batch in given] == [(batch.seed, *batch.keys) for batch in whole]
    assert job.ranks[0].consumed_samples == SAMPLES

    job = Job(data, world_size, **STATIC, batches_per_step=6)
    for _ in islice(job.batches(), 1):
        pass
    for loader in job.ranks:
        loader.load_state_dict(loader.state_dict())
    assert next(job.batches())[0].keys == whole[0].keys


@pytest.mark.parametrize("plan", KINDS, ids=["static", "by seconds", "thinned", "static, thinned"])
def test_lengths_are_those_of_loops(data: Path, plan: dict[str, Any]) -> None:
    for world_size in (1, 2, 5):
        loader = ShardLoader(data, rank=0, world_size=world_size, **ORDER, **plan, batches_per_step=4, sub_epochs=2)
        told = list(islice(loader.lengths(), 5))
        assert told == [sum(1 for _ in loader) for _ in range(5)]
        assert len(loader) == told[-1] or loader.sub_epoch == 1


def test_ranks_stay_in_their_lanes_where_they_divide_lanes_and_steps(data: Path) -> None:
    lane_of: dict[str, int] = {}
    for number, batch in enumerate(ShardLoader(data, **ORDER, **STATIC)):
        lane_of |= dict.fromkeys(batch.keys, number % 2)
    for rank in range(2):
        loader = ShardLoader(data, rank=rank, world_size=2, **ORDER, **STATIC, batches_per_step=6)
        assert {lane_of[key] for batch in loader if batch.weights.all() for key in batch.keys} == {rank}


def test_a_state_keeps_the_size_of_steps(data: Path) -> None:
    state = ShardLoader(data, **ORDER, **STATIC, batches_per_step=4).state_dict()
    assert (state["format"], state["batches_per_step"]) == (2, 4)
    for other in (None, 6):
        with pytest.raises(ResumeMismatch, match="batches_per_step .* 4 .*load state"):
            ShardLoader(data, **ORDER, **STATIC, batches_per_step=other).load_state_dict(state)
    ShardLoader(data, **ORDER, **STATIC, batches_per_step=6).load_state_dict(state | {"batches_per_step": 6})
    for damaged in (state | {"batches_per_step": None}, state | {"batches_per_step": 0}, state | {"format": 1}):
        with pytest.raises(ConfigError, match="state|batches_per_step"):
            ShardLoader(data, **ORDER, **STATIC, batches_per_step=4).load_state_dict(damaged)
    with pytest.raises(ResumeMismatch, match="another version"):
        ShardLoader(data, **ORDER, **STATIC, batches_per_step=4).load_state_dict(state | {"format": 3})
    for wrong in (0, 1.5, True):
        with pytest.raises(ConfigError, match="batches_per_step"):
            ShardLoader(data, **ORDER, **STATIC, batches_per_step=wrong)  # type: ignore[arg-type]


def test_a_run_of_one_batch_a_rank_may_take_steps_from_then_on(data: Path) -> None:
    before = Job(data, 3, **STATIC)
    for _ in islice(before.batches(), 2):
        pass
    state = before.ranks[0].state_dict()
    assert state["format"] == 1
    assert "batches_per_step" not in state
    one, two = (list(Job(data, world_size, state, **STATIC, batches_per_step=4).steps()) for world_size in (1, 2))
    assert one == two
    assert one[0][0] == state["consumed_samples"] + 8


def test_without_it_every_batch_ends_a_step(data: Path) -> None:
    for rank in range(3):
        assert all(batch.ends_step for batch in ShardLoader(data, rank=rank, world_size=3, **ORDER, **STATIC))
