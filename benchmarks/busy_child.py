"""A trainer that takes its time over every batch, and how fast batches came to it. Started by bench_busy.py."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children

import torch
from processes import answer_lines

from shardpipe import Batch, ShardLoader

__all__ = ["STEP_SECONDS", "TRAINERS"]

STEP_SECONDS = 0.03
_SETTLE_SECONDS = 2.0
"""At the start of every measurement: by then nothing is left of what was made while nobody asked."""

Work = Callable[[float], None]
"""Does some work, or all there is until that time."""


def asleep() -> Work:
    """As one that waits for a GPU: it leaves both cores and the GIL alone."""
    return lambda until: time.sleep(max(0.0, until - time.monotonic()))


def eager_torch() -> Work:
    """Small operators one after another: each takes the GIL again when it is done."""
    torch.set_num_threads(1)
    network = torch.nn.Sequential(
        torch.nn.Linear(80, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(), torch.nn.Linear(256, 80)
    )
    features = torch.randn(64, 80)

    def work(_: float) -> None:
        network.zero_grad()
        network(features).square().mean().backward()

    return work


def pure_python() -> Work:
    """Never lets go of the GIL: others get it when the interpreter takes it away, every 5 ms at most."""

    def work(_: float) -> None:
        total = 0
        for number in range(2000):
            total += number * number % 7

    return work


TRAINERS = {"asleep": asleep, "eager torch": eager_torch, "pure Python": pure_python}


def endless(loader: ShardLoader) -> Iterator[Batch]:
    while True:
        yield from loader


class Trainer:
    """Takes STEP_SECONDS a batch on average: what one step is late, the next makes good, so that all take the same."""

    def __init__(self, work: Work, batches: Iterator[Batch]) -> None:
        self._work = work
        self._batches = batches
        self._late = 0.0

    def run(self, seconds: float) -> dict[str, float]:
        """Trains so long: utterances a second, and the share of time that went by in waiting for them."""
        begun = time.monotonic()
        samples, waited = 0, 0.0
        while (passed := time.monotonic() - begun) < seconds:
            asked = time.monotonic()
            batch = next(self._batches)
            waited += time.monotonic() - asked
            samples += len(batch.keys)
            self._step()
        return {"rate": samples / passed, "waited": waited / passed}

    def _step(self) -> None:
        until = time.monotonic() + STEP_SECONDS - self._late
        while (now := time.monotonic()) < until:
            self._work(until)
        self._late = now - until


def main() -> None:
    folder, options, name = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    trainer = Trainer(TRAINERS[name](), endless(ShardLoader(folder, batch_size=16, **options)))
    for question, answer in answer_lines():
        trainer.run(_SETTLE_SECONDS)
        answer(trainer.run(question["seconds"]) | {"processes": len(active_children())})


if __name__ == "__main__":
    main()
