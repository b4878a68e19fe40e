"""A training step is the same batches, masks and dropout on any number of processes, wherever these change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from shardpipe.train.cli import main
from tests.speech import pack_speech
from tests.training import FLAGS, delivered, events, finish, kill_at, one_thread, steps

SAMPLES = 57


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("worlds"), SAMPLES, shard_samples=8, seconds=(0.3, 0.9))


def assert_same_training(out: Path, whole: Path) -> None:
    assert steps(out) == steps(whole)
    ours, theirs = (events(run, "step") for run in (out, whole))
    assert [step["consumed_samples"] for step in ours] == [step["consumed_samples"] for step in theirs]
    assert [step["loss"] for step in ours] == pytest.approx([step["loss"] for step in theirs], rel=1e-5)


STATIC, BY_SECONDS = ("--batch-size", "2"), ("--batch-seconds", "1.8")


@pytest.mark.parametrize(
    ("size", "batching", "world_size", "number"),
    [
        pytest.param(4, STATIC, 2, 16, id="4 batches"),
        pytest.param(6, BY_SECONDS, 3, 10, id="6 batches, by seconds"),
        pytest.param(4, STATIC, 2, 50, marks=pytest.mark.soak, id="50 steps of 4 batches"),
        pytest.param(6, BY_SECONDS, 3, 50, marks=pytest.mark.soak, id="50 steps of 6 batches, by seconds"),
    ],
)
def test_steps_are_the_same_on_any_world(
    data: Path, tmp_path: Path, size: int, batching: tuple[str, str], world_size: int, number: int
) -> None:
    at = FLAGS.index("--batch-size")
    epochs = -(-number // 5) if size == 6 else -(-number // 8)
    flags = [*FLAGS[:at], *FLAGS[at + 2 :], *batching, "--data", str(data), "--epochs", str(epochs)]
    flags += ["--sub-epochs", "2", "--save-every", "3steps", "--batches-per-step", str(size)]
    whole = tmp_path / "whole"
    with one_thread():
        assert main([*flags, "--out", str(whole)]) == 0
    found = steps(whole)
    assert len(found) >= number
    assert max(map(len, found.values())) == size
    assert min(map(len, found.values())) < size, "an epoch's last step has fewer"
    once = Counter(f"utt{i:05d}" for i in range(SAMPLES))
    assert delivered(whole) == dict.fromkeys(range(epochs), once)

    finish(tmp_path / "together", flags, processes=world_size)
    assert_same_training(tmp_path / "together", whole)

    changing = tmp_path / "changing"
    kill_at(changing, 2 * SAMPLES // 3, flags, processes=5 - world_size)
    kill_at(changing, 4 * SAMPLES // 3, flags)
    finish(changing, flags, processes=world_size)
    assert [event["world_size"] for event in events(changing, "start", "resume")] == [5 - world_size, 1, world_size]
    assert {event["batches_per_step"] for event in events(changing, "start", "resume")} == {size}
    assert_same_training(changing, whole)
