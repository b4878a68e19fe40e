"""One process of a training job: its device, its process group, what it may be stopped by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.train.compat import leave_group
from shardpipe.train.config import TrainConfig
from shardpipe.train.ending import ending_of, stopping
from shardpipe.train.engines import World, join_group
from shardpipe.train.logs import Display
from shardpipe.train.loop import train

__all__ = ["run_job"]


def run_job(config: TrainConfig, *, rank: int, local_rank: int, world_size: int, began: float) -> int:
    """Trains as process `rank` of `world_size`, the `local_rank`-th of its machine, which `began` at that time.

    SIGTERM, SIGINT and SIGUSR1, and the end of `max_minutes`, which begin here, end it after the step under way, with a
    checkpoint. Returns the exit code. Raises ShardpipeError.
    """
    device = _device(config, local_rank)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with (
        _world(config, rank, world_size, device) as world,
        Display(quiet=not world.is_main) as display,
        stopping(display.say, config.max_minutes) as stop,
    ):
        try:
            return train(config, world, display, stop=stop, began=began)
        except torch.OutOfMemoryError as error:
            what = f"the memory of {device} is full ({str(error).splitlines()[0]})"
            fix = "Give --activation-checkpointing, or smaller batches; the run goes on from its last checkpoint."
            raise ShardpipeError(what, fix=fix) from error
        except RuntimeError as error:
            if (ended := ending_of(error)) is not error:
                raise ended from error
            if not any(kind.__module__.startswith("torch._dynamo") for kind in type(error).__mro__):
                raise
            what = f"the model cannot be compiled ({str(error).splitlines()[0]})"
            raise ShardpipeError(what, fix="Train without --compile, or see what torch.compile needs.") from error


def _device(config: TrainConfig, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if config.device == "cpu" or (config.device == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise ConfigError("device", "cuda", "this machine has no CUDA device that torch can use")
    if local_rank >= torch.cuda.device_count():
        rule = f"process {local_rank} of this machine has no GPU of its own"
        raise ConfigError("device", config.device, rule, fix="Start one process a GPU, or give --device cpu.")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


@contextmanager
def _world(config: TrainConfig, rank: int, size: int, device: torch.device) -> Iterator[World]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if size > 1:
        # Its own patience is to end after that of the watchdog, which says more.
        minutes = config.hang_minutes
        join_group(backend, None if minutes is None else timedelta(minutes=30 + 2 * minutes))
    elif config.engine == "fsdp":  # it asks for a group of one, too
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if dist.is_initialized():
            leave_group()
