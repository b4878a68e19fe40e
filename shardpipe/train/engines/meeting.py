"""How the processes of one start find each other, and nobody else."""

from __future__ import annotations

import json
import time
import uuid
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from shardpipe.errors import ShardpipeError

__all__ = ["join_group"]

_LOOKS_FIRST, _LOOKS_MOST = 0.02, 0.5  # seconds
_PATIENCE = timedelta(minutes=10)


def join_group(backend: str, timeout: timedelta | None) -> None:
    """Makes the process group of all processes, which find each other by the environment, as torchrun sets it.
    `timeout` is that of all that they do together; None has torch's own.

    torchrun's agent keeps one store for all its restarts, in which addresses of processes that are gone still lie;
    taken for those of the new ones, they are refused. So the processes first agree on a name that is new, under which
    there is nothing yet.

    Raises ShardpipeError if they do not come together within ten minutes.
    """
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_PATIENCE))  # type: ignore[attr-defined]
        name = _lead(store, size) if rank == 0 else _follow(store, rank)
        store = dist.PrefixStore(name, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except RuntimeError as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        fix = "See that all of them are started, and that MASTER_ADDR and MASTER_PORT are the same free place for all."
        raise ShardpipeError(f"the processes of the run do not come together ({line})", fix=fix) from error


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
    until = time.monotonic() + _PATIENCE.total_seconds()
    while time.monotonic() < until:
        name: str = store.get("shardpipe").decode()
        if name != taken:
            store.set(f"{name}/{rank}", own)
            taken = name
        if store.check([f"{name}/all"]) and own in json.loads(store.get(f"{name}/all")):
            return name
        time.sleep(looks)
        looks = min(2 * looks, _LOOKS_MOST)
    raise RuntimeError(f"process 0 has not answered within {_PATIENCE}")
