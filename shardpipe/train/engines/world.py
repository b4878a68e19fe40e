"""The processes of one run: what they add up, agree on and wait for. One process alone needs no process group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from shardpipe.errors import ShardpipeError
from shardpipe.order import STEP, hash_key

__all__ = ["World", "seed_of"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place among those of the run, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files and speaks for all."""
        return self.rank == 0

    def seed(self, seed: int) -> None:
        """Seeds what this process draws from, on the processor and on its device, as `torch.manual_seed` does; that one
        takes 0.2 ms for devices that are not used, which is too much for every batch.
        """
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each value summed over the processes; the same bits on all of them."""
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def from_main(self, find: Callable[[], T]) -> T:
        """What `find` returns, or the ShardpipeError it raises, in the main process: the same for all of them."""
        found: T | ShardpipeError | None = None
        if self.is_main:
            try:
                found = find()
            except ShardpipeError as error:
                found = error
        first: T | ShardpipeError = self.gather([found])[0]
        if isinstance(first, ShardpipeError):
            raise first
        return first

    def agree(self, failed: Exception | None) -> None:
        """Raises, in all processes, the error of the first one that has one."""
        if self.any(failed is not None):
            raise next(error for error in self.gather([failed]) if error is not None)

    def any(self, holds: bool) -> bool:
        """Whether it holds in any process."""
        return self.sum([float(holds)])[0] > 0

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, by rank."""
        if self.size == 1:
            return items
        gathered: list[list[Any]] = [[] for _ in range(self.size)]
        dist.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]


def seed_of(seed: int, *place: int) -> int:
    """What generators are seeded with, so that what they draw is a function of the run's seed and the place."""
    return int(hash_key(seed, STEP, *place)[0] >> 1)
