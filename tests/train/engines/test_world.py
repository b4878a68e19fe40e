"""What the processes of a run do together, and each in its own way."""

from __future__ import annotations

import torch

from shardpipe.train.engines import seed_of


def test_seeds_differ_by_seed_place_and_rank() -> None:
    seen = set()
    for seed in (0, 1):
        for place in ((), (0, 0), (0, 1), (1, 0), (8, 0)):
            torch.manual_seed(seed_of(seed, *place))
            seen.add(float(torch.rand(1, dtype=torch.float64)))
    assert len(seen) == 10
