"""The batches that lhotse's DynamicBucketingSampler makes of given lengths. Started by bench_plan.py.

Its budget is of padded seconds, as ours is, but a batch's last sample may exceed it.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
from lhotse import CutSet, MonoCut
from lhotse.dataset import DynamicBucketingSampler
from processes import answer_lines


def batches(lengths: np.ndarray, ranks: int, seconds: float) -> list[list[list[float]]]:
    """Steps of the batches of all ranks, as lengths in seconds."""
    cuts = CutSet.from_cuts(MonoCut(id=str(i), start=0, duration=float(d), channel=0) for i, d in enumerate(lengths))
    warnings.filterwarnings("ignore", message="You are using DynamicBucketingSampler with an eagerly read CutSet")
    sampler = DynamicBucketingSampler(
        cuts, max_duration=seconds, num_buckets=30, buffer_size=20_000, shuffle=True, seed=0, world_size=ranks, rank=0
    )
    iter(sampler)
    steps: list[list[list[float]]] = []
    while True:
        step: list[list[float]] = []
        try:
            for _ in range(ranks):
                # Each rank draws the batches of all and keeps its own; here all are wanted, so they are drawn once.
                step.append([cut.duration for cut in sampler._next_batch()])
        except StopIteration:
            return [*steps, step] if step else steps
        steps.append(step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lengths", help="a file of numpy's")
    lengths = np.load(parser.parse_args().lengths)
    for question, answer in answer_lines():
        answer({"steps": batches(lengths, question["ranks"], question["seconds"])})


if __name__ == "__main__":
    main()
