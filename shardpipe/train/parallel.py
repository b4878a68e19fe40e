"""The processes of one run: what they add up, agree on and wait for. One process alone needs no process group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from shardpipe.errors import ShardpipeError
from shardpipe.order import STEP, hash_key

__all__ = ["World", "gradients_later", "seed_generators"]

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

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over the processes during the backward pass."""
        if self.size == 1:
            return model
        return DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)

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

    def gather(self, items: list[Any]) -> list[Any]:
        """The items of all processes, by rank."""
        if self.size == 1:
            return items
        gathered: list[list[Any]] = [[] for _ in range(self.size)]
        dist.all_gather_object(gathered, items)
        return [item for part in gathered for item in part]

    def wait(self) -> None:
        """Returns when every process has come here."""
        self.sum([0.0])


def gradients_later(model: nn.Module, later: bool) -> AbstractContextManager[None]:
    """Within it, `later` lets gradients add up in each process without exchanging them."""
    if later and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


def seed_generators(seed: int, *place: int) -> None:
    """Makes what this process draws from here on (dropout, SpecAugment) a function of the seed and the place."""
    torch.manual_seed(int(hash_key(seed, STEP, *place)[0] >> 1))
