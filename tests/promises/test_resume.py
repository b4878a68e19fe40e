"""The promises: exactly once, from a count alone, on any topology, with the same randomness, reading nothing twice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardpipe import Sample, ShardLoader
from shardpipe.errors import ConfigError, ResumeMismatch
from shardpipe.store import CountingStore, LocalStore
from tests.speech import pack_speech

SAMPLES = 83
STATIC: dict[str, Any] = {"batch_size": 3, "window": 8, "lanes": 4, "seed": 11}
BY_SECONDS: dict[str, Any] = {"batch_seconds": 0.6, "window": 8, "lanes": 4, "seed": 11}
KINDS = pytest.mark.parametrize("plan", [STATIC, BY_SECONDS], ids=["static", "by seconds"])


@dataclass(frozen=True)
class Delivered:
    """One sample as a rank got it: its key and the bytes of its augmented audio."""

    key: str
    audio: bytes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("resume"), SAMPLES, shard_samples=9, seconds=(0.05, 0.3))


def noisy(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = sample.audio + rng.normal(0, 0.01, len(sample.audio)).astype(np.float32)
    return sample


class Run:
    """All ranks of a job, stepping together, as torchrun would have them."""

    def __init__(self, data: Any, world_size: int, **options: Any) -> None:
        options = {"threads": 1, "transform": noisy, **options}
        self.ranks = [ShardLoader(data, rank=r, world_size=world_size, **options) for r in range(world_size)]
        self.repeats = 0

    @property
    def consumed(self) -> int:
        (count,) = {loader.consumed_samples for loader in self.ranks}
        return count

    def steps(self, limit: int | None = None) -> list[list[Delivered]]:
        """What each step of the rest of the sub-epoch delivers, rank 0 first; repeats are counted, not listed."""
        steps: list[list[Delivered]] = []
        iterators = [iter(loader) for loader in self.ranks]
        while (limit is None or len(steps) < limit) and (batches := [next(i, None) for i in iterators])[0] is not None:
            assert all(batch is not None for batch in batches), "ranks take different numbers of steps"
            counts = {batch.consumed_samples for batch in batches}
            assert counts == {self.consumed}, "ranks disagree on the count"
            steps.append([sample for batch in batches for sample in self._real(batch)])
        return steps

    def epoch(self) -> list[Delivered]:
        return [sample for step in self.steps() for sample in step]

    def _real(self, batch: Any) -> list[Delivered]:
        real = []
        for i, weight in enumerate(batch.weights.tolist()):
            audio = batch.audio[i, : batch.lengths[i]].numpy()
            if weight:
                real.append(Delivered(batch.keys[i], audio.tobytes()))
            self.repeats += not weight
        return real


@KINDS
def test_an_epoch_holds_every_sample_once(data: Path, plan: dict[str, Any]) -> None:
    keys = [d.key for d in Run(data, 1, **plan).epoch()]
    assert sorted(keys) == [f"utt{i:05d}" for i in range(SAMPLES)]
    assert keys != sorted(keys)


@KINDS
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_topology_changes_nothing(data: Path, plan: dict[str, Any], world_size: int, threads: int) -> None:
    run = Run(data, world_size, threads=threads, **plan)
    both = run.epoch() + run.epoch()
    alone = Run(data, 1, prefetch=1, **plan)
    assert both == alone.epoch() + alone.epoch()
    assert run.consumed == 2 * SAMPLES


@KINDS
def test_ranks_are_filled_only_in_the_last_step(data: Path, plan: dict[str, Any]) -> None:
    batches = len(ShardLoader(data, **plan))
    world_size = next(w for w in range(4, 9) if batches % w)
    run = Run(data, world_size, **plan)
    steps = run.steps(limit=batches // world_size)
    assert run.repeats == 0
    assert 0 < len(run.epoch()) == SAMPLES - sum(len(step) for step in steps)
    assert run.repeats > 0


@KINDS
@pytest.mark.parametrize("world_size", [1, 3])
def test_stop_at_every_step(data: Path, plan: dict[str, Any], world_size: int) -> None:
    whole = Run(data, world_size, **plan).steps()
    for stop in range(len(whole) + 1):
        first = Run(data, world_size, **plan)
        prefix = first.steps(limit=stop)
        state = json.loads(json.dumps(first.ranks[0].state_dict()))
        rest = Run(data, world_size, **plan)
        for loader in rest.ranks:
            loader.load_state_dict(state)
        if stop == len(whole):
            assert rest.ranks[0].epoch == 1
        else:
            assert prefix + rest.steps() == whole


@KINDS
def test_stop_at_every_count(data: Path, plan: dict[str, Any]) -> None:
    """Also inside a batch: the rest of it comes first."""
    whole = Run(data, 1, **plan).epoch()
    for count in range(SAMPLES):
        for world_size in (1, 3) if count % 5 == 0 else (1,):
            assert Run(data, world_size, resume_samples=count, **plan).epoch() == whole[count:]


@KINDS
def test_the_end_of_an_epoch_is_the_beginning_of_the_next(data: Path, plan: dict[str, Any]) -> None:
    run = Run(data, 2, **plan)
    run.epoch()
    second = run.epoch()
    resumed = Run(data, 2, resume_samples=SAMPLES, **plan)
    assert (resumed.ranks[0].epoch, resumed.ranks[0].sub_epoch) == (1, 0)
    assert resumed.epoch() == second


@KINDS
@pytest.mark.parametrize("stops", [(1, 3), (2, 2), (1, 1)])
def test_a_chain_of_world_sizes(data: Path, plan: dict[str, Any], stops: tuple[int, int]) -> None:
    whole = Run(data, 1, **plan).epoch()
    delivered: list[Delivered] = []
    for world_size, limit in ((8, stops[0]), (3, stops[1]), (5, None)):
        run = Run(data, world_size, resume_samples=len(delivered), **plan)
        delivered += [sample for step in run.steps(limit) for sample in step]
        assert run.consumed == len(delivered)
    assert delivered == whole


@KINDS
def test_epochs_and_seeds_differ(data: Path, plan: dict[str, Any]) -> None:
    run = Run(data, 1, **plan)
    first, second = run.epoch(), run.epoch()
    other = Run(data, 1, **{**plan, "seed": 12}).epoch()
    orders = [[d.key for d in epoch] for epoch in (first, second, other)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # The augmentation of a sample differs between epochs, too.
    assert {d.key: d.audio for d in first} != {d.key: d.audio for d in second}


@KINDS
@pytest.mark.parametrize("prefetch", [1, 16])
def test_a_state_knows_nothing_of_prefetching(data: Path, plan: dict[str, Any], prefetch: int) -> None:
    loader = ShardLoader(data, prefetch=prefetch, **plan)
    seen = 0
    for batch in loader:
        seen += len(batch.keys)
        state = loader.state_dict()
        assert state == loader.state_dict()
        assert state["consumed_samples"] == batch.consumed_samples == seen
        assert not {"rank", "world_size", "workers", "threads", "prefetch", "path", "data"} & set(state)


@KINDS
def test_sub_epochs_are_shares_of_one_epoch(data: Path, plan: dict[str, Any]) -> None:
    whole = Run(data, 2, **plan).epoch()
    run = Run(data, 2, sub_epochs=4, **plan)
    shares = []
    for sub_epoch in range(4):
        assert (run.ranks[0].epoch, run.ranks[0].sub_epoch) == (0, sub_epoch)
        before = run.consumed
        steps = run.steps()
        goal = -(-SAMPLES * (sub_epoch + 1) // 4)
        assert run.consumed >= goal, "the share is reached"
        assert run.consumed - len(steps[-1]) < goal, "by the last step and no earlier"
        assert run.consumed - before == sum(len(step) for step in steps)
        shares += [sample for step in steps for sample in step]
    assert run.ranks[0].epoch == 1
    assert shares == whole


def test_len_is_that_of_a_state_that_was_loaded(data: Path) -> None:
    order = {"window": 64, "lanes": 2, "seed": 1}
    state = next(iter(ShardLoader(data, batch_seconds=0.5, **order))).state
    loader = ShardLoader(data, batch_size=8, **order)
    before = len(loader)
    loader.load_state_dict(state)
    fresh = ShardLoader(data, batch_size=8, **order)
    fresh.load_state_dict(state)
    assert len(loader) == len(fresh) != before
    assert loader.batches_left() == sum(1 for _ in fresh)


@KINDS
@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("sub_epochs", [1, 3, 40])
def test_len_is_what_a_for_yields_wherever_the_run_is(
    data: Path, plan: dict[str, Any], sub_epochs: int, world_size: int
) -> None:
    options = {**plan, "sub_epochs": sub_epochs, "rank": world_size - 1, "world_size": world_size}
    loader = ShardLoader(data, **options)
    while loader.epoch < 2:
        place, whole = (loader.epoch, loader.sub_epoch), len(loader)
        assert loader.batches_left() == whole
        for taken, _ in enumerate(loader, 1):
            if (loader.epoch, loader.sub_epoch) == place:
                assert (len(loader), loader.batches_left()) == (whole, whole - taken)
                resumed = ShardLoader(data, **options)
                resumed.load_state_dict(loader.state_dict())
                assert (len(resumed), resumed.batches_left()) == (whole, whole - taken)
        assert taken == whole


@KINDS
def test_no_byte_of_a_consumed_sample_is_read_again(data: Path, plan: dict[str, Any]) -> None:
    from shardpipe.dataset import Index
    from shardpipe.loading.read import rows_of

    index = Index.load(LocalStore(data))
    places = np.array([(s, i) for s, n in enumerate(index.counts.tolist()) for i in range(n)])
    rows = rows_of(index, places[:, 0], places[:, 1])
    whole = [d.key for d in Run(data, 1, **plan).epoch()]
    for count in range(0, SAMPLES, 7):
        store = CountingStore(LocalStore(data))
        assert [d.key for d in Run(store, 1, resume_samples=count, **plan).epoch()] == whole[count:]
        consumed = set(whole[:count])
        reads = [read for read in store.reads if read[0].endswith(".tar")]
        assert reads
        for row in rows:
            touched = [
                (offset, size)
                for name, offset, size in reads
                if name == row.shard_name
                and offset < row.audio_offset + row.audio_size
                and offset + size > row.audio_offset
            ]
            assert len(touched) == (0 if row.key in consumed else 1), row.key


@KINDS
def test_another_batching_takes_over_at_a_boundary(data: Path, plan: dict[str, Any]) -> None:
    other = {**plan, "batch_size": None, "batch_seconds": None}
    for change in ({"batch_size": 5}, {"batch_seconds": 0.7}):
        for stop in (1, 3, 6):
            first = Run(data, 2, **plan)
            delivered = [s for step in first.steps(limit=stop) for s in step]
            second = Run(data, 1, **{**other, **change})
            second.ranks[0].load_state_dict(first.ranks[0].state_dict())
            delivered += [s for step in second.steps(limit=3) for s in step]
            # Stopped once more, under the new batching.
            third = Run(data, 3, **{**other, **change})
            for loader in third.ranks:
                loader.load_state_dict(second.ranks[0].state_dict())
            delivered += third.epoch()
            assert sorted(d.key for d in delivered) == [f"utt{i:05d}" for i in range(SAMPLES)]
            assert third.epoch() == [*Run(data, 1, resume_samples=SAMPLES, **{**other, **change}).epoch()]


def test_the_old_batching_finishes_its_rung(data: Path) -> None:
    whole = Run(data, 1, **STATIC).epoch()
    first = Run(data, 1, **STATIC)
    first.steps(limit=5)
    second = Run(data, 1, **{**STATIC, "batch_size": 7})
    second.ranks[0].load_state_dict(first.ranks[0].state_dict())
    sizes = [len(step) for step in second.steps()]
    # A rung is a batch of each of 4 lanes: three batches of 3 are left of the second rung.
    assert sizes[:4] == [3, 3, 3, 7]
    assert Run(data, 1, resume_samples=24, **STATIC).epoch() == whole[24:]


@pytest.mark.parametrize(
    ("field", "change"),
    [("seed", {"seed": 12}), ("window", {"window": 16}), ("lanes", {"lanes": 2}), ("shuffle", {"shuffle": False})],
)
def test_a_state_of_another_order_is_refused(data: Path, field: str, change: dict[str, Any]) -> None:
    state = ShardLoader(data, **STATIC).state_dict()
    with pytest.raises(ResumeMismatch) as error:
        ShardLoader(data, **{**STATIC, **change}).load_state_dict(state)
    assert error.value.field == field


def test_a_state_of_another_dataset_is_refused(data: Path, tmp_path: Path) -> None:
    other = pack_speech(tmp_path, SAMPLES, shard_samples=9, seconds=(0.05, 0.3), seed=1)
    with pytest.raises(ResumeMismatch) as error:
        ShardLoader(other, **STATIC).load_state_dict(ShardLoader(data, **STATIC).state_dict())
    assert error.value.field == "fingerprint"


@KINDS
def test_left_out_samples_are_counted(data: Path, plan: dict[str, Any]) -> None:
    limits = {"min_seconds": 0.1, "max_seconds": 0.25}
    run = Run(data, 2, sub_epochs=3, **plan, **limits)
    delivered = []
    while run.ranks[0].epoch == 0:
        delivered += run.epoch()
    kept = {d.key: len(d.audio) / 4 / 16000 for d in delivered}
    assert len(kept) == len(delivered) == SAMPLES - run.ranks[0].num_excluded < SAMPLES
    assert all(0.1 <= seconds <= 0.25 for seconds in kept.values())
    assert run.consumed == SAMPLES
    for count in range(SAMPLES):
        rest = Run(data, 1, resume_samples=count, **plan, **limits)
        got = rest.epoch()
        assert got == delivered[len(delivered) - len(got) :]
        assert rest.consumed == SAMPLES


@KINDS
def test_limits_that_leave_nothing_are_refused(data: Path, plan: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="min_seconds"):
        list(ShardLoader(data, min_seconds=9, **plan))


@pytest.mark.parametrize(
    "change",
    [
        {"consumed_samples": -5},
        {"consumed_samples": 3.7},
        {"consumed_samples": "3"},
        {"consumed_samples": 2**63},
        {"plan": None},
        {"plan": {"window": 8192}},
        {"origin": 300},
        {"origin": -3},
        {"unknown": 1},
    ],
)
def test_a_damaged_state_is_refused(data: Path, change: dict[str, Any]) -> None:
    loader = ShardLoader(data, **STATIC)
    state = loader.state_dict()
    for name, value in change.items():
        (state if name in state else state["plan"])[name] = value
    with pytest.raises(ConfigError, match="load what state_dict"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("state", [None, [], "state"])
def test_what_is_no_state_is_refused(data: Path, state: Any) -> None:
    with pytest.raises(ConfigError, match="it must be a dict"):
        ShardLoader(data, **STATIC).load_state_dict(state)


def test_numpy_numbers_are_numbers_and_fractions_no_counts(data: Path) -> None:
    loader = ShardLoader(data, batch_size=np.int64(4), seed=np.int64(1), resume_samples=np.int64(5))
    assert json.loads(json.dumps(loader.state_dict())) == loader.state_dict()
    for name in ("seed", "window", "lanes", "batch_size", "resume_samples"):
        with pytest.raises(ConfigError, match=f"{name} is 2.5, but it must be a whole number"):
            ShardLoader(data, **{"batch_size": 4, name: 2.5})
    for name in ("resume_samples", "threads", "prefetch", "world_size"):
        with pytest.raises(ConfigError, match=f"{name} is {2**63}, but it must be below"):
            ShardLoader(data, batch_size=4, **{name: 2**63})
