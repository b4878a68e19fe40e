"""A step's size is settled when a run starts, kept, and contradicted by no flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shardpipe.errors import ConfigError
from shardpipe.train.cli import main
from shardpipe.train.config import TrainConfig
from shardpipe.train.steps import batches_per_step
from tests.speech import pack_speech
from tests.training import FLAGS, events, steps


def config(**given: Any) -> TrainConfig:
    return TrainConfig(data="data", out="out", **given)


@pytest.mark.parametrize(
    ("given", "world_size", "kept", "size"),
    [
        ({}, 1, None, 1),
        ({}, 8, None, 8),
        ({"accumulate": 4}, 8, None, 32),
        ({"batches_per_step": 6}, 4, None, 6),
        ({"batches_per_step": 6, "accumulate": 2}, 4, None, 6),
        ({}, 3, 32, 32),
        ({"accumulate": 4}, 8, 32, 32),
        ({"accumulate": 11}, 3, 32, 32),
        ({"batches_per_step": 32}, 3, 32, 32),
        ({"batches_per_step": 16}, 4, 32, 16),
    ],
)
def test_what_a_step_has(given: dict[str, Any], world_size: int, kept: int | None, size: int) -> None:
    assert batches_per_step(config(**given), world_size, kept=kept) == size


def test_a_run_begun_before_keeps_its_way_until_it_is_given_another() -> None:
    assert batches_per_step(config(accumulate=3), 2, by_ranks=True) is None
    assert batches_per_step(config(batches_per_step=4), 2, by_ranks=True) == 4


@pytest.mark.parametrize(
    ("given", "world_size", "kept", "said"),
    [
        ({"accumulate": 4}, 4, 32, "a step of 32 batches takes 8 of each of 4 processes"),
        ({"accumulate": 1}, 1, 2, "takes 2 of each of 1 processes"),
        ({"accumulate": 3, "batches_per_step": 6}, 4, None, "takes 2 of each of 4 processes"),
        ({"accumulate": 8, "batches_per_step": 16}, 4, 32, "takes 4 of each of 4 processes"),
    ],
)
def test_contradictions(given: dict[str, Any], world_size: int, kept: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        batches_per_step(config(**given), world_size, kept=kept)


def test_a_run_keeps_it_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pack_speech(tmp_path, 17, seconds=(0.3, 0.5))
    out = tmp_path / "run"
    flags = [*FLAGS, "--data", str(data), "--out", str(out), "--save-every", "1steps"]
    assert main([*flags, "--epochs", "1", "--accumulate", "3"]) == 0
    assert "steps of 3 batches" in capsys.readouterr().err
    kept = yaml.safe_load((out / "config.yaml").read_text())
    assert (kept["batches_per_step"], kept["accumulate"]) == (3, None)
    assert main([*flags, "--epochs", "2", "--accumulate", "2"]) == 2
    said = capsys.readouterr().err
    assert "accumulate is 2, but a step of 3 batches takes 3 of each of 1 processes. Leave it out" in said
    # Its own settings, and none.
    assert main([*flags, "--epochs", "2", "--config", str(out / "config.yaml"), "--epochs", "2"]) == 0
    assert main([*flags, "--epochs", "3"]) == 0
    assert main([*flags, "--epochs", "4", "--batches-per-step", "2"]) == 0
    assert main([*flags, "--epochs", "5"]) == 0
    assert [event["batches_per_step"] for event in events(out, "start", "resume")] == [3, 3, 3, 2, 2]
    assert [len(batches) for batches in steps(out).values()] == [*([3, 2] * 3), *([2, 2, 1] * 2)]
