"""A model's weights out of checkpoints: one file of safetensors, which other tools read, settings and units beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import Tensor

from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.store import is_url, only_local, write_file, writing
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, best_of, read_checkpoint, read_weights
from shardpipe.train.config import Figure
from shardpipe.train.run import checkpoints_of, last_settings
from shardpipe.train.task import SIZES, CharTokenizer

__all__ = ["average", "export"]

_SUFFIX = ".safetensors"
_PLACES = {
    *("data", "out", "valid", "units", "cache_dir", "checkpoints", "resume", "init_from"),
    *("servers", "token_file", "tls_ca"),
}
"""Settings that say where things lie: of no use elsewhere, and nobody else's business."""


def export(run: str, out: str | None, *, at: int | None = None, best: Figure | None = None) -> Path:
    """Writes the model of a run's newest checkpoint, of the one at a count, or of the best one by a figure, and returns
    the file; without `out` it is model.safetensors in the run's folder.

    `run` may be a single checkpoint, too. Raises ShardpipeError.
    """
    checkpoints = checkpoints_of(run)
    counts = checkpoints.counts()
    if at is not None:
        if at not in counts:
            there = f"there are {', '.join(map(str, counts))}" if counts else "there is none"
            raise ConfigError("at", at, f"no checkpoint is there; {there}")
        found = checkpoints.read(at)
    elif best is not None:
        found = _best(checkpoints, 1, best)[0]
    elif counts:
        found = checkpoints.read(counts[-1])
    else:
        found = read_checkpoint(run)
    return _write(run, out, "model", [found])


def average(
    run: str, out: str | None, *, best: int | None = None, newest: int | None = None, by: Figure | None = None
) -> Path:
    """Writes the mean of the models of a run's so many best or newest checkpoints, weight by weight, and returns the
    file; without `out` it is average.safetensors in the run's folder.

    Raises ShardpipeError, also where there are fewer.
    """
    checkpoints = checkpoints_of(run)
    if (best is None) == (newest is None):
        raise ConfigError("best", best, f"newest is {newest}", fix="Give one of the two, and a number.")
    name, number = ("best", best) if newest is None else ("newest", newest)
    assert number is not None
    if number < 1:
        raise ConfigError(name, number, "it must be at least 1")
    if newest is None:
        return _write(run, out, "average", _best(checkpoints, number, by or checkpoints.keep.by))
    counts = checkpoints.counts()[-number:]
    if len(counts) < number:
        raise ConfigError("newest", number, f"there are {len(counts)} checkpoints", fix="Keep more: --keep.")
    return _write(run, out, "average", [checkpoints.read(count) for count in counts])


def _best(checkpoints: Checkpoints, number: int, by: Figure) -> list[Checkpoint]:
    counts = best_of(checkpoints.whole(), number, by)
    if len(counts) < number:
        rule = f"{len(counts)} of the checkpoints have a {by} on validation data"
        raise ConfigError("best", number, rule, fix="Ask for fewer; train with --valid, and keep more: --keep-best.")
    return [checkpoints.read(count) for count in sorted(counts)]


def _write(run: str, out: str | None, name: str, found: Sequence[Checkpoint]) -> Path:
    if out is None and is_url(run):
        raise ConfigError("output", None, "a URL is no folder to write to", fix="Give one, like -o model.safetensors.")
    path = Path(only_local("output", f"{run}/{name}{_SUFFIX}" if out is None else out))
    for other in found[1:]:
        found[0].identity.check(other.identity, other.where)
    weights = _mean(found)
    identity = found[0].identity
    trained = (None if is_url(run) else last_settings(run)) or {}
    settings = {
        "checkpoints": [checkpoint.consumed_samples for checkpoint in found],
        "model": identity.model,
        "architecture": asdict(SIZES[identity.model]) if identity.model in SIZES else None,
        "units": len(identity.units),
        "sample_rate": identity.sample_rate,
        "training": {name: value for name, value in trained.items() if name not in _PLACES},
    }
    beside = path.with_name(path.name.removesuffix(_SUFFIX))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    CharTokenizer(identity.units).save(beside.with_name(f"{beside.name}.units.txt"))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_file(beside.with_name(f"{beside.name}.config.yaml"), text.encode())
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
            raise ShardpipeError(what, where=checkpoint.where, fix="Average checkpoints of one run.")
        for name, total in sums.items():
            total += others[name]
        weights = others
    means = {name: (total / len(found)).to(weights[name].dtype) for name, total in sums.items()}
    return weights | means


def _kind(weights: dict[str, Tensor], name: str) -> tuple[torch.Size, torch.dtype] | None:
    return (weights[name].shape, weights[name].dtype) if name in weights else None
