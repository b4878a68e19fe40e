"""What the configuration of tests' servers names."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from shardpipe import Place, Sample

__all__ = ["broken", "everything", "louder", "placed", "slow", "strange", "unsendable"]


def louder(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = sample.audio * np.float32(rng.uniform(0.1, 0.9))
    sample.extras["gain"] = float(rng.normal())
    return sample


def broken(sample: Sample, rng: np.random.Generator) -> Sample:
    raise KeyError(f"no such thing as {sample.key} in /secret/place")


def strange(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = sample.audio[:0]
    return sample


def everything(samples: list[Sample]) -> dict[Any, Any]:
    """One of each kind that can travel."""
    return {
        "keys": [sample.key for sample in samples],
        "sums": torch.tensor([float(sample.audio.sum()) for sample in samples], dtype=torch.float64),
        "halves": torch.ones(2, 3, dtype=torch.bfloat16),
        "turned": torch.arange(6).reshape(2, 3).T,
        "empty": torch.zeros(0, 4),
        "array": np.arange(3, dtype=np.int16),
        "scalar": np.float32(0.1),
        "number": torch.tensor(7),
        "odd": (None, True, -0.0, float("inf"), 1 << 70, "ö\u2028", b"" == b""),
        3: {"nested": [[], {}, ()]},
    }


def placed(samples: list[Sample], place: Place) -> dict[str, Any]:
    return {"keys": [sample.key for sample in samples], "consumed": place.consumed_samples, "state": place.state}


def unsendable(samples: list[Sample]) -> Any:
    return {"samples": samples}


def slow(sample: Sample, rng: np.random.Generator) -> Sample:
    time.sleep(2)
    return sample
