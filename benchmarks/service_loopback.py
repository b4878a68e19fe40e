"""What bench_service.py measures of real processes: trainers, replicas, and what both take."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from processes import Child, alternate, ratio
from replicas import Replica, Secured, peak_memory
from service_functions import SLOW_SECONDS

__all__ = [
    "APART",
    "BATCH",
    "LAGS",
    "LOCAL",
    "RATE",
    "SECURED",
    "SERVED",
    "SIZES",
    "Equal",
    "Firsts",
    "Jobs",
    "Latencies",
    "Waiting",
    "loaded",
]

BATCH = 16
RATE = 16000
LOCAL, SERVED, SECURED = "local", "served", "served, TLS and token"
SIZES = (1, 5, 20, 50)
"""MB of float32 a batch."""
LAGS = (0, 5, 20)
APART, LOCALS = "served, other seeds", "local, both"


def served(replica: Replica, name: str = "set") -> str:
    return f"shardpipe+{replica.url}/{name}"


def trainer(data: object, **options: object) -> Child:
    return Child(Path(__file__).with_name("service_child.py"), data, json.dumps(options))


class Rounds:
    """Alternating rounds of several measures."""

    def __init__(self) -> None:
        self.told: dict[str, dict[str, list[float]]] = {}
        """Every round's figures by measure and name."""

    def figure(self, name: str, figure: str) -> float:
        return median(self.told[name][figure])

    def times(self, name: str, other: str, figure: str) -> float:
        """A measure's figure by that of another in the same round."""
        return ratio(self.told[name][figure], self.told[other][figure])

    def run(self, rounds: int, asks: Mapping[str, Callable[[], Mapping[str, float]]], figure: str) -> None:
        self.told = {name: {} for name in asks}

        def measure(name: str) -> float:
            answer = asks[name]()
            for one, value in answer.items():
                self.told[name].setdefault(one, []).append(value)
            return answer[figure]

        alternate(rounds, {name: partial(measure, name) for name in asks})


class Equal(Rounds):
    """The same batches at equal cores: made by the trainer's own threads, or by a replica beside it."""

    def __init__(
        self, data: Path, batching: Mapping[str, float], secured: Secured, rounds: int, *, settle: float, seconds: float
    ) -> None:
        super().__init__()
        with ExitStack() as stack:
            plain = stack.enter_context(Replica(data))
            safe = stack.enter_context(Replica(data, *secured.of_server))
            children = {
                LOCAL: (stack.enter_context(trainer(data, **batching)), []),
                SERVED: (stack.enter_context(trainer(served(plain), **batching)), [plain.pid]),
                SECURED: (
                    stack.enter_context(trainer(served(safe), **batching, **secured.of_client)),
                    [safe.pid],
                ),
            }
            how = {"settle": settle, "seconds": seconds}
            asks = {name: partial(child.ask, do="run", how=how | {"pids": p}) for name, (child, p) in children.items()}
            for ask in asks.values():
                ask()  # not counted: caches and memory are warm after it
            self.run(rounds, asks, "rate")


class Waiting(Rounds):
    """A trainer's share of waiting with 0, 1 and 2 replicas beside its own making, at several steps.

    The transform sleeps, so one thread of each stands for a core of each.
    """

    REPLICAS = (0, 1, 2)

    def __init__(self, data: Path, folder: Path, rounds: int, *, settle: float, seconds: float) -> None:
        super().__init__()
        config = folder / "serve.yaml"
        functions = {"slow": "service_functions:slow"}
        config.write_text(json.dumps({"datasets": {"set": {"data": str(data), "transforms": functions}}}))
        self.making = BATCH * SLOW_SECONDS
        """Seconds at least that a batch takes one thread."""
        self.steps = tuple(self.making * share for share in (1.2, 0.6, 0.4))
        with ExitStack() as stack:
            arguments = ("--config", config, "--threads", 1)
            replicas = [stack.enter_context(Replica(*arguments)) for _ in range(max(self.REPLICAS))]
            asks: dict[str, Callable[[], Mapping[str, float]]] = {}
            for number in self.REPLICAS:
                for step in self.steps:
                    # A seed of its own, for no other trainer's batches are to be there already.
                    options: dict[str, Any] = {"batch_size": BATCH, "threads": 1, "slow": True, "seed": len(asks)}
                    if number:
                        urls = [f"{replica.url}/set" for replica in replicas[:number]]
                        options |= {"servers": urls, "local": True}
                    child = stack.enter_context(trainer(data, **options))
                    how = {"settle": settle, "seconds": seconds, "step": step, "pids": []}
                    asks[self.name(number, step)] = partial(child.ask, do="run", how=how)
            self.run(rounds, asks, "waited")

    @staticmethod
    def name(number: int, step: float) -> str:
        return f"{number} replicas, {1000 * step:.0f} ms"

    def least(self, number: int, step: float) -> float:
        """The share that it must wait, if nothing but making took any time."""
        return max(0.0, 1 - step * (1 + number) / self.making)


class Latencies:
    """Milliseconds from a question to the batch, of several sizes, one question after another."""

    def __init__(self, data: Path, rounds: int, count: int) -> None:
        self.told: dict[int, dict[str, list[float]]] = {size: {} for size in SIZES}
        self._seed = 0
        with ExitStack() as stack:
            replica = stack.enter_context(Replica(data))
            measures = {f"{size} MB": partial(self._ask, served(replica), size, count) for size in SIZES}
            alternate(rounds, measures)

    def _ask(self, data: str, size: int, count: int) -> float:
        self._seed += 1
        seconds = size * 1e6 / 4 / RATE
        with trainer(data, batch_seconds=seconds, max_seconds=min(seconds, 30.0), seed=self._seed) as child:
            answer = child.ask(do="latencies", count=count)
        for kind, values in answer.items():
            self.told[size].setdefault(kind, []).extend(values)
        return float(median(answer["made"]))

    def percentiles(self, size: int, kind: str) -> list[float]:
        return [float(one) for one in np.percentile(self.told[size][kind], [50, 95, 99])]


class Jobs(Rounds):
    """Two trainers at a time, in step: on one run, the second some batches behind, or on two. What is measured is whole
    epochs, so that as much was asked for as was taken.
    """

    def __init__(self, data: Path, rounds: int, *, step: float, batches: int) -> None:
        super().__init__()
        with ExitStack() as stack:
            replica = stack.enter_context(Replica(data))
            asks: dict[str, Callable[[], Mapping[str, float]]] = {}
            # Seeds of their own, so that nothing is kept for one that another has asked for.
            pairs = {self.name(lag): (served(replica), (lag + 1, lag + 1), lag) for lag in LAGS}
            pairs |= {APART: (served(replica), (101, 102), 0), LOCALS: (str(data), (103, 104), 0)}
            for name, (where, seeds, lag) in pairs.items():
                two = [stack.enter_context(trainer(where, batch_size=BATCH, seed=seed)) for seed in seeds]
                if lag:
                    two[0].ask(do="run", how={"batches": lag, "step": step, "pids": []})
                pids = [] if name == LOCALS else [replica.pid]
                asks[name] = partial(_both, two, step, batches, pids)
            for ask in asks.values():
                ask()
            self.run(rounds, asks, "processor")

    @staticmethod
    def name(lag: int) -> str:
        return f"served, one run, {lag} behind"


def _both(two: Sequence[Child], step: float, batches: int, pids: list[int]) -> dict[str, float]:
    """Processor time a batch of all processes, and the share of waiting, of two that train at the same time."""
    how = {"batches": batches, "step": step}
    # The first measures all processes, over its own batches; the second takes as many meanwhile.
    answers = at_once(two, [how | {"pids": [two[1].pid, *pids]}, how | {"pids": []}])
    return {"processor": answers[0]["processor"] / 2, "waited": median(answer["waited"] for answer in answers)}


def at_once(children: Sequence[Child], hows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What children answer that train at the same time."""
    with ThreadPoolExecutor(len(children)) as threads:
        return list(threads.map(lambda child, how: child.ask(do="run", how=how), children, hows))


def loaded(data: Path, *, memory: int, keep: int, trainers: int, seconds: float) -> tuple[int, int, int]:
    """(bytes of a replica that has just come up, the most under load, batches it gave) with such bounds, in MiB."""
    with ExitStack() as stack:
        replica = stack.enter_context(Replica(data, "--memory", f"{memory}MiB", "--keep", f"{keep}MiB"))
        base = peak_memory(replica.pid)
        children = [
            stack.enter_context(trainer(served(replica), batch_size=BATCH, seed=seed)) for seed in range(trainers)
        ]
        answers = at_once(children, [{"seconds": seconds, "pids": []}] * trainers)
        return base, peak_memory(replica.pid), int(sum(answer["batches"] for answer in answers))


class Firsts(Rounds):
    """Seconds from the start of a process to its first batch, of an index that it reads itself or through a replica."""

    def __init__(self, data: Path, rounds: int) -> None:
        super().__init__()
        self._seed = 0
        with Replica(data, "--name", "set") as replica:
            asks = {LOCAL: partial(self._ask, str(data)), SERVED: partial(self._ask, served(replica))}
            self.run(rounds, asks, "first")

    def _ask(self, data: str) -> dict[str, float]:
        self._seed += 1  # of which nothing is known yet
        with trainer(data, batch_size=BATCH, seed=self._seed) as child:
            answer = child.ask(do="first")
            first = answer["first"] - child.started
            return {"first": first, "own": answer["first"] - answer["imported"]}
