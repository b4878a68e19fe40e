"""`shardpipe-train`: settings and environment in, exit codes and one-line errors out."""

from __future__ import annotations

import json
import os
import sys
import time
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path

import docstring_parser
from jsonargparse import ActionConfigFile, ActionYesNo, ArgumentParser  # type: ignore[attr-defined]

from shardpipe.errors import ShardpipeError
from shardpipe.train.config import TrainConfig
from shardpipe.train.ending import exit_code_of, leaving

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains as the command line says, or does something with what a run has left.

    Returns 0 when done, or when this start has had its part, 1 for bad data, 2 for bad settings, 75 if it was stopped
    and is to be started again.

    It runs alone, or as one of torchrun's processes, which find their place in RANK, WORLD_SIZE and LOCAL_RANK.
    """
    began = time.monotonic()
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given and given[0] in _TOOLS:
        return _use_tool(given)
    settings = _parser().parse_args(given).as_dict()
    files = settings.pop("config") or []
    if not any(argument == "--out" or argument.startswith("--out=") for argument in given):
        # The config.yaml of a run means that run, wherever it has been moved and wherever this is started.
        for folder in (Path(str(file)).parent for file in files):
            if (folder / "metrics.jsonl").exists():
                settings["out"] = str(folder)
    # Read by libraries as they start. Threads that spin while they wait take the time of those that decode audio.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # cuBLAS is not deterministic without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rank, local_rank, world_size = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    try:
        config = TrainConfig(**settings)
        with leaving():
            _check_installed()
            # torch, which all of this needs, takes seconds to import: too long for --help and a misspelt flag.
            from shardpipe.train.job import run_job

            return run_job(config, rank=rank, local_rank=local_rank, world_size=world_size, began=began)
    except ShardpipeError as error:
        return _failed(error, f" (rank {rank})" if rank else "")


def _failed(error: ShardpipeError, who: str = "") -> int:
    print(f"shardpipe-train{who}: {error}", file=sys.stderr)
    return exit_code_of(error)


def _use_tool(arguments: list[str]) -> int:
    """`shardpipe-train audit`, `checkpoints`, `export` or `average`."""
    given = _TOOLS[arguments[0]]().parse_args(arguments[1:])
    try:
        _check_installed()
        from shardpipe.train.audit import audit
        from shardpipe.train.tools import average, export, list_checkpoints

        if arguments[0] == "audit":
            found = audit(given.run)
            if given.json:
                print(json.dumps(found.as_json()))
            else:
                print(*found.lines(), sep="\n")
            return 0 if found.ok else 1
        if arguments[0] == "checkpoints":
            return 0 if list_checkpoints(given.run, print, verify=given.verify) else 1
        if arguments[0] == "export":
            path = export(given.run, given.output, at=given.at, best=given.best)
        else:
            path = average(
                given.run,
                given.output,
                best=given.best,
                newest=given.newest,
                sub_epochs=given.sub_epochs,
                by=given.by,
            )
    except ShardpipeError as error:
        return _failed(error)
    print(path)
    return 0


_RUN = "The run's folder, or the folder or URL of its checkpoints."


def _tool_parser(name: str, what: str, *, run: str = _RUN, writes: str | None = None) -> ArgumentParser:
    parser = ArgumentParser(prog=f"shardpipe-train {name}", allow_abbrev=False, description=what)
    parser.add_argument("run", type=str, help=run)
    if writes is not None:
        text = f"The file; by default {writes} in the run."
        parser.add_argument("-o", "--output", type=str | None, help=text)
    return parser


def _audit_parser() -> ArgumentParser:
    what = "Prove by its key logs that a run was given every sample of every epoch once. Exit code 1 if they do not."
    parser = _tool_parser("audit", what, run="The run's folder.")
    parser.add_argument("--json", action="store_true", help="Print one JSON document.")
    return parser


def _checkpoints_parser() -> ArgumentParser:
    what = "List a run's checkpoints: count, place, size, validation figures, why they are kept."
    parser = _tool_parser("checkpoints", what)
    parser.add_argument("--verify", action="store_true", help="Read all of them, and compare checksums.")
    return parser


def _export_parser() -> ArgumentParser:
    what = "Write the model of a checkpoint, by default the newest, as safetensors; its settings and units beside."
    parser = _tool_parser("export", what, writes="model.safetensors")
    parser.add_argument("--at", type=int | None, help="The checkpoint at this count of samples.")
    parser.add_argument("--best", type=str | None, help="The best one by this figure of its evaluation.")
    return parser


def _average_parser() -> ArgumentParser:
    what = "Write the mean of the models of several checkpoints, as export does that of one."
    parser = _tool_parser("average", what, writes="average.safetensors")
    parser.add_argument("--best", type=int | None, help="So many of the best.")
    parser.add_argument("--newest", type=int | None, help="So many of the newest.")
    parser.add_argument("--sub-epochs", type=int | None, help="Those at the ends of the last so many sub-epochs.")
    parser.add_argument("--by", type=str | None, help="The figure that is low in the best; by default the run's.")
    return parser


_TOOLS = {
    "audit": _audit_parser,
    "average": _average_parser,
    "checkpoints": _checkpoints_parser,
    "export": _export_parser,
}


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
        usage="%(prog)s --data DIR --out RUN [--config FILE] [options]\n"
        "       %(prog)s audit | checkpoints | export | average RUN [options]",
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
