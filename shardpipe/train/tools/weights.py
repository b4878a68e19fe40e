"""A model's weights out of checkpoints: one file of safetensors, which other tools read, settings and units beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor

from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.store import is_url, is_utf8, only_local, write_file, writing
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, best_of, read_checkpoint, read_weights, sets_in
from shardpipe.train.config import TrainConfig
from shardpipe.train.run import checkpoints_of, last_settings
from shardpipe.train.task import SIZES, CharTokenizer
from shardpipe.train.validation import ONLY, figure_of, shown

__all__ = ["average", "export"]

_SUFFIX = ".safetensors"
_ONE_RUN = "Average checkpoints of one run."
_PLACES = {
    *("data", "out", "valid", "units", "cache_dir", "checkpoints", "resume", "init_from"),
    *("servers", "token_file", "tls_ca"),
}
"""Settings that say where things lie: of no use elsewhere, and nobody else's business."""


def export(run: str, out: str | None, *, at: int | None = None, best: str | None = None) -> Path:
    """Writes the model of a run's newest checkpoint, of the one at a count, or of the best one by a figure, and returns
    the file; without `out` it is model.safetensors in the run's folder.

    `run` may be a single checkpoint, too. Raises ShardpipeError.
    """
    path = _file(run, out, "model")
    if at is not None and best is not None:
        raise ConfigError("at", at, f"best is {best}", fix="Give one of the two.")
    checkpoints = checkpoints_of(run)
    counts = checkpoints.counts()
    if at is not None:
        if at not in counts:
            there = f"there are {', '.join(map(str, counts))}" if counts else "there is none"
            raise ConfigError("at", at, f"no checkpoint is there; {there}")
        found = checkpoints.read(at)
    elif best is not None:
        found = _best(checkpoints, 1, best, "best")[0]
    elif counts:
        found = checkpoints.read(counts[-1])
    else:
        found = read_checkpoint(run)
    return _write(path, run, [found])


def average(
    run: str,
    out: str | None,
    *,
    best: int | None = None,
    newest: int | None = None,
    sub_epochs: int | None = None,
    by: str | None = None,
) -> Path:
    """Writes the mean of the models of several of a run's checkpoints, weight by weight, and returns the file; without
    `out` it is average.safetensors in the run's folder. They are so many of the best, of the newest, or of those at
    which the last sub-epochs ended.

    Raises ShardpipeError, also where there are fewer.
    """
    path = _file(run, out, "average")
    choices = {"best": best, "newest": newest, "sub_epochs": sub_epochs}
    given = {name: number for name, number in choices.items() if number is not None}
    if len(given) != 1 or (by is not None and best is None):
        found = given | ({} if by is None else {"by": by})
        fix = "Give one of --best N, with a figure by --by, --newest N and --sub-epochs N."
        raise ConfigError("choice", found, "it does not say which checkpoints to take", fix=fix)
    ((name, number),) = given.items()
    if number < 1:
        raise ConfigError(name, number, "it must be at least 1")
    checkpoints = checkpoints_of(run)
    if best is not None:
        return _write(path, run, _best(checkpoints, number, by or checkpoints.keep.by, "by"))
    if sub_epochs is not None:
        return _write(path, run, [checkpoints.read(count) for count in _ends(checkpoints, number)])
    counts = checkpoints.counts()[-number:]
    if len(counts) < number:
        raise ConfigError(name, number, f"there are {len(counts)} checkpoints", fix="Keep more: --keep.")
    return _write(path, run, [checkpoints.read(count) for count in counts])


def _ends(checkpoints: Checkpoints, number: int) -> list[int]:
    """The counts at which the last so many sub-epochs ended, ascending. Raises ConfigError unless all are there."""
    whole = checkpoints.whole()
    ends = whole[max(whole)].progress.sub_epoch_ends if whole else ()
    found: list[int] = []
    while len(found) < number:
        if not ends:
            raise ConfigError("sub_epochs", number, f"the run tells of the ends of {len(found)}", fix="Ask for fewer.")
        if ends[-1] not in whole:
            rule = f"the checkpoint at {ends[-1]}, where one of them ended, is not there"
            raise ConfigError("sub_epochs", number, rule, fix="Keep the next ones: --keep-every 1sub-epoch.")
        found.append(ends[-1])
        ends = whole[ends[-1]].progress.sub_epoch_ends[:-1]
    return found[::-1]


def _best(checkpoints: Checkpoints, number: int, by: str, setting: str) -> list[Checkpoint]:
    whole = checkpoints.whole()
    sets = list(dict.fromkeys([*checkpoints.keep.sets, *sets_in(whole)])) or [ONLY]
    by = figure_of(setting, by, sets)
    counts = best_of(whole, number, by)
    if len(counts) < number:
        rule = f"{len(counts)} of the checkpoints have a {shown(by, sets)} on validation data"
        raise ConfigError("best", number, rule, fix="Ask for fewer; train with --valid, and keep more: --keep-best.")
    return [checkpoints.read(count) for count in sorted(counts)]


def _file(run: str, out: str | None, name: str) -> Path:
    """Where to write to. Raises ConfigError for what is no file, or none of this machine, before anything is read."""
    if out is None:
        if is_url(run):
            fix = "Give one, like -o model.safetensors."
            raise ConfigError("output", None, "a URL is no folder to write to", fix=fix)
        out = str(Path(only_local("run", run)) / f"{name}{_SUFFIX}")
    path = Path(only_local("output", out))
    named = path.name.removesuffix(_SUFFIX) not in ("", "..") and not out.endswith("/") and is_utf8(out)
    if not named or (path.exists() and not path.is_file()):
        raise ConfigError("output", out, "it must name a file", fix="Like -o model.safetensors.")
    return path


def _write(path: Path, run: str, found: Sequence[Checkpoint]) -> Path:
    identity = found[0].identity
    for other in found[1:]:
        if other.identity != identity:
            what = f"is of another model, other units or another rate than {found[0].where}"
            raise ShardpipeError(what, where=other.where, fix=_ONE_RUN)
    weights = _mean(found)
    trained = (None if is_url(run) else last_settings(only_local("run", run))) or {}
    names = {setting.name for setting in fields(TrainConfig)} - _PLACES
    settings = {
        "checkpoints": [checkpoint.consumed_samples for checkpoint in found],
        "model": identity.model,
        "architecture": asdict(SIZES[identity.model]) if identity.model in SIZES else None,
        "units": len(identity.units),
        "sample_rate": identity.sample_rate,
        "training": {
            name: value
            for name, value in trained.items()
            if name in names and isinstance(value, str | int | float | None)
        },
    }
    tokenizer = CharTokenizer.saved(identity.units, found[0].where)
    beside = path.name.removesuffix(_SUFFIX)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path.with_name(f"{beside}.units.txt"))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_file(path.with_name(f"{beside}.config.yaml"), text.encode())
    write_file(path, to_safetensors(weights, {"format": "pt"}))
    return path


def _mean(found: Sequence[Checkpoint]) -> dict[str, Tensor]:
    """Summed in float64, so that the mean of one, or of equal ones, is that one. What is no float is the last one's."""
    weights = read_weights(found[0])
    sums = {name: tensor.double() for name, tensor in weights.items() if tensor.is_floating_point()}
    for checkpoint in found[1:]:
        others = read_weights(checkpoint)
        if differ := {name for name in weights.keys() | others.keys() if _kind(weights, name) != _kind(others, name)}:
            what = f"has another {min(differ)} than {found[0].where}"
            raise ShardpipeError(what, where=checkpoint.where, fix=_ONE_RUN)
        for name, total in sums.items():
            total += others[name]
        weights = others
    means = {name: (total / len(found)).to(weights[name].dtype) for name, total in sums.items()}
    return weights | means


def _kind(weights: dict[str, Tensor], name: str) -> tuple[torch.Size, torch.dtype] | None:
    return (weights[name].shape, weights[name].dtype) if name in weights else None
