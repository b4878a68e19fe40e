"""`shardpipe-train`: settings and environment in, exit codes and one-line errors out."""

from __future__ import annotations

import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from types import FrameType

import docstring_parser
import torch
import torch.distributed as dist
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser  # type: ignore[attr-defined]

from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.train.config import TrainConfig
from shardpipe.train.display import Display
from shardpipe.train.loop import train
from shardpipe.train.parallel import World

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says. Returns 0 when done or stopped on request, 1 for bad data, 2 for bad settings.

    It runs alone, or as one of torchrun's processes, which find their place in RANK, WORLD_SIZE and LOCAL_RANK.
    """
    config_fields = _parser().parse_args(arguments).as_dict()
    del config_fields["config"]
    rank = int(os.environ.get("RANK", "0"))
    try:
        config = TrainConfig(**config_fields)
        with (
            _world(config, rank) as world,
            Display(quiet=not world.is_main) as display,
            _stop_signals(display) as stop,
        ):
            train(config, world, display, stop=stop)
    except ConfigError as error:
        return _fail(error, rank, code=2)
    except ShardpipeError as error:
        return _fail(error, rank, code=1)
    except torch.OutOfMemoryError as error:
        fix = "Take smaller batches and --accumulate more of them; the run goes on from its last checkpoint."
        return _fail(f"the device's memory is full ({str(error).splitlines()[0]}). {fix}", rank, code=1)
    return 0


def _fail(error: object, rank: int, *, code: int) -> int:
    # Standard error is the only place that both a person and torchrun's log collection look at.
    print(f"shardpipe-train{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
    return code


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="shardpipe-train",
        usage="%(prog)s --data DIR --out RUN [--config FILE] [options]",
        allow_abbrev=False,
        description="Train a CTC Conformer on a packed dataset. Stop it anywhere: the same command goes on.",
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of these settings, with underscores.")
    described = {p.arg_name: p.description for p in docstring_parser.parse(TrainConfig.__doc__ or "").params}
    hints = typing.get_type_hints(TrainConfig)
    for setting in fields(TrainConfig):
        flag = "--" + setting.name.replace("_", "-")
        text = described[setting.name]
        if hints[setting.name] is bool:
            parser.add_argument(flag, action=ActionYesNo(no_prefix="no-"), default=setting.default, help=text)
        elif setting.default is MISSING:
            parser.add_argument(flag, type=hints[setting.name], required=True, help=text)
        else:
            parser.add_argument(flag, type=hints[setting.name], default=setting.default, help=text)
    return parser


@contextmanager
def _world(config: TrainConfig, rank: int) -> Iterator[World]:
    """This process's place, its device made ready, and the process group if there are others."""
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError("device", "cuda", "this machine has no CUDA device that torch can use")
    device = torch.device("cpu")
    if config.device != "cpu" and available:
        if local >= torch.cuda.device_count():
            fix = "Start one process a GPU, or give --device cpu."
            raise ConfigError("device", "cuda", f"process {local} of this machine has no GPU of its own", fix=fix)
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if config.deterministic:
        # cuBLAS reads this when it starts, and is not deterministic without.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        if size > 1:
            dist.destroy_process_group()


@contextmanager
def _stop_signals(display: Display) -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT has come; within it these only ask the loop to stop after its step."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not received:
            display.say(f"{signal.Signals(number).name}: stopping after this step")
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
