"""A training step is the same batches, masks and dropout on any number of processes, wherever these change."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpipe.train.cli import main
from tests.speech import pack_speech
from tests.training import FLAGS, delivered, events, finish, kill_at, one_thread, steps

SAMPLES = 57
STEPS = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("worlds"), SAMPLES, shard_samples=8, seconds=(0.3, 0.9))


def assert_same_training(out: Path, whole: Path) -> None:
    assert steps(out) == steps(whole)
    ours, theirs = (events(run, "step") for run in (out, whole))
    assert [step["consumed_samples"] for step in ours] == [step["consumed_samples"] for step in theirs]
    assert [step["loss"] for step in ours] == pytest.approx([step["loss"] for step in theirs], rel=1e-5)


@pytest.mark.parametrize(
    ("size", "epochs", "batching", "world_size"),
    [(4, 7, ("--batch-size", "2"), 2), (6, 10, ("--batch-seconds", "1.8"), 3)],
    ids=["4 batches", "6 batches, by seconds"],
)
def test_steps_are_the_same_on_any_world(
    data: Path, tmp_path: Path, size: int, epochs: int, batching: tuple[str, str], world_size: int
) -> None:
    without_size = [flag for at, flag in enumerate(FLAGS) if "--batch-size" not in FLAGS[max(0, at - 1) : at + 1]]
    flags = [*without_size, *batching, "--data", str(data), "--epochs", str(epochs), "--sub-epochs", "2"]
    flags += ["--save-every", "8steps", "--batches-per-step", str(size)]
    whole = tmp_path / "whole"
    with one_thread():
        assert main([*flags, "--out", str(whole)]) == 0
    found = steps(whole)
    assert len(found) >= STEPS
    assert {min(size, len(batches)) for batches in found.values()} > {size}, "an epoch's last step has fewer"
    assert set(delivered(whole)[0].values()) == {1}

    finish(tmp_path / "together", flags, processes=world_size)
    assert_same_training(tmp_path / "together", whole)

    changing = tmp_path / "changing"
    kill_at(changing, SAMPLES, flags, processes=5 - world_size)
    kill_at(changing, 3 * SAMPLES, flags)
    finish(changing, flags, processes=world_size)
    assert [event["world_size"] for event in events(changing, "start", "resume")] == [5 - world_size, 1, world_size]
    assert {event["batches_per_step"] for event in events(changing, "start", "resume")} == {size}
    assert_same_training(changing, whole)
