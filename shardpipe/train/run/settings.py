"""The settings of a run: config.yaml, by which it goes on, and those of each start."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from shardpipe.errors import ConfigError
from shardpipe.store import checked_url, converted, is_url, is_utf8, only_local, open_store, write_file, writing
from shardpipe.train.amount import Amount
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, Keep, count_of, name_of, read_checkpoint
from shardpipe.train.config import TrainConfig, checkpoints_in
from shardpipe.train.validation import ONLY, figure_of, sets_of

__all__ = ["changes", "checkpoints_of", "found_at", "last_settings", "limits_of", "settings_file", "write_settings"]

_FILE = "config.yaml"
_STARTS = "starts"
_LONGEST = 1 << 20  # bytes
_DAYS = 1e9  # seconds
_PLACES = ("data", "out", "valid", "units", "cache_dir", "checkpoints", "init_from", "token_file", "tls_ca")
_OF_ONE_START = {"out", "resume", "resume_samples", "init_from", "max_sub_epochs", "max_minutes"}


def settings_file(folder: str) -> Path:
    """By which the run in a folder goes on: `shardpipe-train --config FILE`."""
    return Path(folder) / _FILE


def write_settings(config: TrainConfig, samples: int, *, resumes: bool) -> None:
    """Into the run's folder: of the start at a count of samples, and without where it was to start, to go on by. What
    later starts had is removed. Raises StoreError.

    resumes: whether it went on from a checkpoint. One that began with another run's model at a count has none yet, and
    begins there again until it has.
    """
    folder = Path(config.out)
    with writing(folder / _STARTS):
        (folder / _STARTS).mkdir(exist_ok=True)
        for count, name in _starts(folder).items():
            if count > samples:
                (folder / _STARTS / name).unlink()
    anywhere = replace(config, **{name: _meaning(name, getattr(config, name)) for name in _PLACES})
    write_file(folder / _STARTS / f"{name_of(samples)}.yaml", _yaml(anywhere))
    again = None if resumes or config.init_from is None else config.resume_samples
    write_file(settings_file(config.out), _yaml(replace(anywhere, resume="auto", resume_samples=again)))


def changes(config: TrainConfig, samples: int) -> dict[str, tuple[Any, Any]]:
    """The settings that were others up to a count of samples, with what they were and what they are. Those that are a
    start's own business, and what cannot be a setting, are not among them.
    """
    there = [f"{_STARTS}/{name}" for count, name in _starts(Path(config.out)).items() if count <= samples]
    found = (last_settings(config.out, file) for file in (*there[-1:], _FILE))
    before = next((settings for settings in found if settings), None)
    if before is None:
        return {}
    defaults = {setting.name: setting.default for setting in fields(TrainConfig)}
    changed = {}
    for name, value in yaml.safe_load(_yaml(config)).items():
        was = before.get(name, defaults[name])
        if name not in _OF_ONE_START and _can_be_a_setting(was) and _says(name, was) != _says(name, value):
            changed[name] = (was, value)
    return changed


def _says(name: str, value: Any) -> str:
    return json.dumps(_meaning(name, value))  # of sets the order counts, for the first one decides


def _can_be_a_setting(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(each, str) and is_utf8(each) for pair in value.items() for each in pair)
    if isinstance(value, str):
        return is_utf8(value)
    return value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))


def _meaning(name: str, value: Any) -> Any:
    """What a setting says, wherever the process runs, and in one of the ways to say it."""
    if name not in _PLACES or value is None:
        return value
    with suppress(ConfigError):
        if name != "valid":
            return value if is_url(value) else str(Path(only_local(name, value)).absolute())
        return {each: _meaning("data", place) for each, place in sets_of(value).items()}
    return value


def _starts(folder: Path) -> dict[int, str]:
    """The files of starts by their counts, ascending."""
    names = [path.name for path in (folder / _STARTS).glob("*.yaml")]
    found = {count: name for name in names if (count := count_of(name.removesuffix(".yaml"))) is not None}
    return dict(sorted(found.items()))


def _yaml(config: TrainConfig) -> bytes:
    return yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True).encode()


def last_settings(folder: str, file: str = _FILE) -> dict[str, Any] | None:
    """Those in a file of a run's folder, by which it goes on unless another is named; None where there is none, or
    something else lies there.
    """
    try:
        found = open_store(folder)
        if found.stat(file).size > _LONGEST:
            return None
        settings = yaml.safe_load(found.read(file))
    except Exception:  # there is nothing that a YAML of a stranger may not raise
        return None
    return settings if isinstance(settings, dict) else None


def limits_of(folder: str) -> list[tuple[int, float, float | None, float | None]]:
    """From which count up to which one the starts of a run were in force, and their limits of seconds."""
    starts = _starts(Path(folder))
    found = []
    for since, until in zip(starts, [*list(starts)[1:], math.inf]):
        settings = last_settings(folder, f"{_STARTS}/{starts[since]}") or {}
        limits = (settings.get(name) for name in ("min_seconds", "max_seconds"))
        low, high = (limit if isinstance(limit, int | float) and 0 <= limit < _DAYS else None for limit in limits)
        found.append((since, until, low, high))
    return found


class _Keeping(msgspec.Struct):
    """The settings that say where checkpoints lie and which are kept."""

    checkpoints: str | None = None
    keep: Annotated[int, msgspec.Meta(ge=1)] = 3
    keep_every: str | None = None
    keep_best: Annotated[int, msgspec.Meta(ge=0)] = 0
    best_by: str = "loss"
    valid: dict[str, str] | str | None = None


def checkpoints_of(run: str) -> Checkpoints:
    """Those of the run in a folder, wherever its latest start has put them; or of a place of checkpoints.

    They are kept as that start has said. Raises ConfigError for a URL that holds credentials.
    """
    if is_url(run):
        return Checkpoints(checked_url("run", run).rstrip("/"), keep=Keep())
    folder = only_local("run", run)
    inner = checkpoints_in(folder)
    settings, every, by, sets = _Keeping(), None, Keep.by, {}
    # Of another version, or somebody else's, each of them may be none.
    with suppress(ValueError):
        settings = converted(last_settings(folder) or {}, _Keeping)
    with suppress(ConfigError):
        every = settings.keep_every and Amount.parse("keep_every", settings.keep_every, clock=False)
    with suppress(ConfigError):
        sets = sets_of(settings.valid)
        by = figure_of("best_by", settings.best_by, sets or [ONLY])
    keep = Keep(newest=settings.keep, every=every or None, best=settings.keep_best, by=by, sets=tuple(sets))
    if settings.checkpoints is None:
        return Checkpoints(inner if Path(inner).is_dir() else folder, keep=keep)
    place = settings.checkpoints
    return Checkpoints(checked_url("checkpoints", place) if is_url(place) else place, keep=keep)


def found_at(place: str, say: Callable[[str], None]) -> Checkpoint:
    """The checkpoint at a path or a URL, or the newest one of the run, or of the checkpoints, that lie there.

    Raises StoreError.
    """
    newest = checkpoints_of(place).newest(say)
    return read_checkpoint(place) if newest is None else newest
