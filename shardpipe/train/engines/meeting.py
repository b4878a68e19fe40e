"""How the processes of one start find each other, and nobody else."""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

__all__ = ["join_group"]

_LOOKS_FIRST, _LOOKS_MOST = 0.02, 0.5  # seconds


def join_group(backend: str, timeout: timedelta | None) -> None:
    """Makes the process group of all processes, which find each other by the environment, as torchrun sets it.

    torchrun's agent keeps one store for all its restarts, in which addresses of processes that are gone still lie;
    taken for those of the new ones, they are refused. So the processes first agree on a name that is new, under which
    there is nothing yet. `timeout` is that of all that they do together; None has torch's own.
    """
    options: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    store, rank, size = next(dist.rendezvous("env://", **options))  # type: ignore[attr-defined]
    name = _lead(store, size) if rank == 0 else _follow(store, rank)
    store = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _lead(store: Any, size: int) -> str:
    """Gives out a new name, and says who has taken it."""
    name = uuid.uuid4().hex
    store.set("shardpipe", name)
    present = [store.get(f"{name}/{rank}").decode() for rank in range(1, size)]
    store.set(f"{name}/all", json.dumps(present))
    return name


def _follow(store: Any, rank: int) -> str:
    """Takes the name that is given out, until it is one whose giver knows that this very process has taken it."""
    own, taken, looks = uuid.uuid4().hex, "", _LOOKS_FIRST
    while True:
        name: str = store.get("shardpipe").decode()
        if name != taken:
            store.set(f"{name}/{rank}", own)
            taken = name
        if store.check([f"{name}/all"]) and own in json.loads(store.get(f"{name}/all")):
            return name
        time.sleep(looks)
        looks = min(2 * looks, _LOOKS_MOST)
