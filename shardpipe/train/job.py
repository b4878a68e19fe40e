"""One process of a training job: its device, its process group, its signals."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.train.compat import leave_group
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World
from shardpipe.train.logs import Display
from shardpipe.train.loop import train

__all__ = ["run_job"]


def run_job(config: TrainConfig, *, rank: int, local_rank: int, world_size: int) -> None:
    """Trains as process `rank` of `world_size`, the `local_rank`-th of its machine.

    SIGTERM and SIGINT, and the end of `max_minutes`, which begin here, end it after the step under way, with a
    checkpoint. Raises ShardpipeError.
    """
    device = _device(config, local_rank)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    with (
        _world(config, rank, world_size, device) as world,
        Display(quiet=not world.is_main) as display,
        _stops(display, config.max_minutes) as stop,
    ):
        try:
            train(config, world, display, stop=stop)
        except torch.OutOfMemoryError as error:
            what = f"the memory of {device} is full ({str(error).splitlines()[0]})"
            fix = "Give --activation-checkpointing, or smaller batches; the run goes on from its last checkpoint."
            raise ShardpipeError(what, fix=fix) from error
        except RuntimeError as error:
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
        # torchrun has put the address of the meeting point into the environment, where torch looks for it.
        dist.init_process_group(backend)
    elif config.engine == "fsdp":  # it asks for a group of one, too
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if dist.is_initialized():
            leave_group()


@contextmanager
def _stops(display: Display, minutes: float | None) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT has come, which do nothing else meanwhile, or so many minutes have gone by."""
    ends = math.inf if minutes is None else time.monotonic() + 60 * minutes
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not received:
            display.say(f"{signal.Signals(number).name}: stopping after this step")
        received.append(number)

    def stops() -> bool:
        if not received and time.monotonic() >= ends:
            display.say(f"{minutes:g} minutes are over: stopping")
            received.append(0)
        return bool(received)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
