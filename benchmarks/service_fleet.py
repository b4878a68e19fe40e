"""How many processors of replicas trainers need: a simulation, of times that were measured on one machine.

Every replica has one core that makes one batch at a time; a trainer keeps so many requests under way, chooses replicas
as clients do (by rendezvous, who has more than its share last), spends its own time on every answer, in order, and then
steps. Networks, storage and faults are not in it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np

from shardpipe.loading.feeding.sharing import CALLS

__all__ = ["CORES", "TRAINERS", "Costs", "cores_of_gpu", "simulated"]

CORES = (1, 2, 4, 8, 16, 32, 64)
TRAINERS = 8
_BATCHES = 400
"""Of every trainer; the first quarter is not counted."""
_SPREAD = 0.35
"""Of the logarithm of a batch's seconds: batches of utterances are not all alike."""


class Costs:
    """Seconds of a processor that a batch takes: where it is made, and where it is taken."""

    def __init__(self, *, replica: float, trainer: float, audio: float) -> None:
        self.replica = replica
        self.trainer = trainer
        self.audio = audio
        """Seconds of audio in it."""


def cores_of_gpu(costs: Costs, consumed: float) -> tuple[float, float]:
    """(processors of replicas, of the trainer) for a GPU that trains on so many seconds of audio a second."""
    batches = consumed / costs.audio
    return batches * costs.replica, batches * costs.trainer


class _Fleet:
    """Replicas, each with a queue, and what trainers have asked them."""

    def __init__(self, cores: int, costs: Costs, rng: np.random.Generator) -> None:
        self._cores = cores
        self._costs = costs
        self._rng = rng
        self._queues: list[deque[tuple[int, int]]] = [deque() for _ in range(cores)]
        self._open = np.zeros((TRAINERS, cores), np.int64)
        self._working = [False] * cores
        self.events: list[tuple[float, str, int, tuple[int, int]]] = []

    def ask(self, now: float, trainer: int, number: int) -> None:
        mine = self._open[trainer]
        most = 1.25 * mine.sum() / self._cores + 1
        order = self._rng.permutation(self._cores)
        replica = int(next((one for one in order if mine[one] <= most), order[0]))
        mine[replica] += 1
        self._queues[replica].append((trainer, number))
        self._go_on(now, replica)

    def made(self, now: float, replica: int, asked: tuple[int, int]) -> None:
        self._open[asked[0], replica] -= 1
        self._working[replica] = False
        self._go_on(now, replica)

    def _go_on(self, now: float, replica: int) -> None:
        if self._queues[replica] and not self._working[replica]:
            self._working[replica] = True
            takes = self._costs.replica * self._rng.lognormal(-(_SPREAD**2) / 2, _SPREAD)
            heapq.heappush(self.events, (now + takes, "made", replica, self._queues[replica].popleft()))


def simulated(costs: Costs, cores: int, step: float) -> tuple[float, float]:
    """(batches a second of all trainers together, the share of time that a trainer waits), with steps of so long."""
    fleet = _Fleet(cores, costs, np.random.default_rng(cores))
    here: list[set[int]] = [set() for _ in range(TRAINERS)]
    taken, asked = [0] * TRAINERS, [CALLS] * TRAINERS
    steps: list[list[float]] = [[] for _ in range(TRAINERS)]
    idle = [True] * TRAINERS
    for number in range(CALLS):
        for trainer in range(TRAINERS):
            fleet.ask(0.0, trainer, number)
    while fleet.events and min(taken) < _BATCHES:
        now, kind, who, batch = heapq.heappop(fleet.events)
        if kind == "made":
            fleet.made(now, who, batch)
            trainer = batch[0]
            here[trainer].add(batch[1])
        else:
            trainer = who
            idle[trainer] = True
        if idle[trainer] and taken[trainer] in here[trainer]:
            here[trainer].remove(taken[trainer])
            taken[trainer] += 1
            idle[trainer] = False
            steps[trainer].append(now)
            fleet.ask(now, trainer, asked[trainer])
            asked[trainer] += 1
            heapq.heappush(fleet.events, (now + max(step, costs.trainer), "step", trainer, (trainer, 0)))
    return _rate(steps, step)


def _rate(steps: Sequence[Sequence[float]], step: float) -> tuple[float, float]:
    rates = []
    for times in steps:
        counted = times[_BATCHES // 4 : _BATCHES]
        rates.append((len(counted) - 1) / (counted[-1] - counted[0]))
    return sum(rates), max(0.0, 1 - step * sum(rates) / len(rates))
