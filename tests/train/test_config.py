"""Settings are checked before anything starts."""

from __future__ import annotations

import math

import pytest

from shardpipe.errors import ConfigError
from shardpipe.train.config import TrainConfig


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"accumulate": 0},
        {"keep": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"clip": -1.0},
        {"weight_decay": -0.1},
        {"resume_samples": -1},
        {"resume": ""},
        {"resume": "somewhere", "resume_samples": 3},
        {"save_every": "0steps"},
        {"save_every": "soon"},
        {"warmup": "10min"},
    ],
)
def test_settings_outside_their_rule_are_refused(setting: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(data="d", out="o", **setting)  # type: ignore[arg-type]
    assert caught.value.name in setting
