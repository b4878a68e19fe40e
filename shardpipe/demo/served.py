"""A run by batches of a data service whose replicas died and froze, held against one that made its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardpipe.demo.compare import Check, Comparison, History, Samples, same_training
from shardpipe.demo.stage import Course, Done

__all__ = ["FROZEN", "GOES_ON", "KILLED", "LISTENS", "STARTED", "Served", "compare_served"]

# What is done to the replicas A and B, in this order.
KILLED = "Replica A: SIGKILL"
FROZEN = "Replica B: SIGSTOP"
STARTED = "Replica A: started anew"
LISTENS = "Replica A: can be asked"
GOES_ON = "Replica B: SIGCONT"


@dataclass(frozen=True, kw_only=True)
class Served(Comparison):
    """A run by itself, and one by a service, each with how it went."""

    alone: Course
    served: Course

    def done(self, name: str) -> Done:
        """What was done to a replica, when it was."""
        return next(done for done in self.served.done if done.name == name)


def compare_served(
    undisturbed: Path, disturbed: Path, *, alone: Course, served: Course, samples: Samples, epochs: int
) -> Served:
    """Holds a run that had the service against one that had none."""
    histories = History.read(undisturbed), History.read(disturbed)
    waits = [_waits(history) for history in histories]
    shares = [sum(wait for wait, _ in steps) / sum(seconds for _, seconds in steps) for steps in waits]
    steps = histories[1].steps
    in_use = [step["servers"] for step in steps]
    checks = [
        *same_training(undisturbed, disturbed, samples=samples, epochs=epochs),
        *(_told(done.name, f"sample {done.consumed_samples:,}, {done.seconds:.1f} s") for done in served.done),
        _told("Servers in use, by step", f"{min(in_use)} to {max(in_use)}, at last {in_use[-1]}"),
        _told("Requests made again", str(steps[-1]["server_retries"])),
        _told("Slow ones, made of two", str(steps[-1]["server_hedges"])),
        _told("Longest wait for a batch", *(f"{max(wait for wait, _ in steps):.2f} s" for steps in reversed(waits))),
        _told("Share of time in waiting", *(f"{share:.1%}" for share in reversed(shares))),
    ]
    return Served(
        headings=("by itself", "by two replicas"),
        undisturbed=histories[0],
        disturbed=histories[1],
        samples=samples,
        epochs=epochs,
        checks=checks,
        alone=alone,
        served=served,
    )


def _told(name: str, disturbed: str, undisturbed: str = "") -> Check:
    return Check(name=name, undisturbed=undisturbed, disturbed=disturbed, passed=None)


def _waits(history: History) -> list[tuple[float, float]]:
    """The seconds that each step but the first, before which things start, waited for its batch, and took in all."""

    def seconds(before: Mapping[str, Any], step: Mapping[str, Any]) -> tuple[float, float]:
        took = (step["consumed_samples"] - before["consumed_samples"]) / step["utt_per_s"]
        return step["data_wait"] * took, took

    return [seconds(before, step) for before, step in pairwise(history.steps)]
