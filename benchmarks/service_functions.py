"""A function that trainers and replicas both name."""

from __future__ import annotations

import time

import numpy as np

from shardpipe import Sample

__all__ = ["SLOW_SECONDS", "slow"]

SLOW_SECONDS = 0.005


def slow(sample: Sample, _: np.random.Generator) -> Sample:
    """Takes its time, and no processor: a thread that makes batches so stands for a processor that is elsewhere."""
    time.sleep(SLOW_SECONDS)
    return sample
