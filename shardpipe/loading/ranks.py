"""Which of how many processes a loader delivers to, as users say it, and where none should be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from shardpipe.errors import ConfigError
from shardpipe.settings import check, integer

__all__ = ["Rank", "finder"]

Rank: TypeAlias = int | Literal["auto"] | DeviceMesh | None

_AUTO = 'Give rank="auto", which takes both from torch.distributed.'


def finder(rank: Rank, world_size: int | None) -> Callable[[], tuple[int, int]]:
    """What finds (rank, world_size) when a loop begins: as given, or as torch.distributed has them by then.

    Raises ConfigError, and so does what it returns where several processes would be given the same batches.
    """
    if isinstance(rank, DeviceMesh):
        check("world_size", world_size, world_size is None, "the mesh that rank is says that already")
        check("rank", rank, rank.ndim == 1, 'it must be one dimension of the mesh, such as mesh["dp"]')
        return partial(_given, rank.get_local_rank(), rank.size())
    if isinstance(rank, str):
        check("rank", rank, rank == "auto", 'it must be a number, "auto", or a dimension of a DeviceMesh')
        check("world_size", world_size, world_size is None, 'rank="auto" finds it as well')
        return _of_torch
    if rank is None and world_size is None:
        return _alone
    if world_size is None:
        raise ConfigError("world_size", None, f"it must be given with rank, which is {rank}", fix=_AUTO)
    size = integer("world_size", world_size, least=1)
    if rank is None and size > 1:
        raise ConfigError("rank", None, f"it must be given, as world_size is {size}", fix=_AUTO)
    number = integer("rank", 0 if rank is None else rank, least=0)
    check("rank", number, number < size, f"it must be below world_size, which is {size}")
    return partial(_given, number, size)


def _given(rank: int, world_size: int) -> tuple[int, int]:
    return rank, world_size


def _of_torch() -> tuple[int, int]:
    if _initialized():
        return dist.get_rank(), dist.get_world_size()
    rule = "torchrun has started this process, but torch.distributed knows of no others yet"
    check("rank", "auto", not (dist.is_available() and dist.is_torchelastic_launched()), rule)
    return 0, 1


def _alone() -> tuple[int, int]:
    if _initialized() and (size := dist.get_world_size()) > 1:
        rule = f"torch.distributed has {size} processes, and all of them would be given the same batches"
        fix = (
            f"{_AUTO} In Lightning, transformers or Accelerate, see shardpipe.integrations. Where each is to see all "
            "data, or one alone does, say so: rank=0, world_size=1."
        )
        raise ConfigError("rank", None, rule, fix=fix)
    return 0, 1


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()
