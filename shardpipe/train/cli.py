"""`shardpipe-train`: settings and environment in, exit codes and one-line errors out."""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module

import docstring_parser
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser  # type: ignore[attr-defined]

from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.train.config import TrainConfig

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says. Returns 0 when done or stopped on request, 1 for bad data, 2 for bad settings.

    It runs alone, or as one of torchrun's processes, which find their place in RANK, WORLD_SIZE and LOCAL_RANK.
    """
    settings = _parser().parse_args(arguments).as_dict()
    del settings["config"]
    # Read by libraries as they start. Threads that spin while they wait take the time of those that decode audio.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # cuBLAS is not deterministic without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rank, local_rank, world_size = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    try:
        config = TrainConfig(**settings)
        _check_installed()
        # torch, which all of this needs, takes seconds to import: too long for --help and a misspelt flag.
        from shardpipe.train.job import run_job

        run_job(config, rank=rank, local_rank=local_rank, world_size=world_size)
    except ShardpipeError as error:
        print(f"shardpipe-train{f' (rank {rank})' if rank else ''}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _check_installed() -> None:
    """Raises ShardpipeError where the extra `train` is missing, or is not for the torch that is there."""
    for name in ("torchaudio", "safetensors", "tensorboard"):
        try:
            import_module(name)
        except (ImportError, OSError) as error:
            raise ShardpipeError(
                f"{name} cannot be imported ({(str(error) or type(error).__name__).splitlines()[0]})",
                fix="Install what training needs: pip install 'shardpipe[train]', and where torch is to stay what it "
                "is, the torchaudio of the same version with it.",
            ) from error


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
