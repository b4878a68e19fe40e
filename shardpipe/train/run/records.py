"""The files that a run appends to: cut back to where it goes on, and continued."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from shardpipe import ShardLoader
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World
from shardpipe.train.logs import Basis, KeyLog, Recorder, cut_back, cut_back_keys, key_logs, last_basis, last_count
from shardpipe.train.run.start import Start

__all__ = ["cut_records", "open_records"]

_METRICS = "metrics.jsonl"


def cut_records(folder: Path, start: Start, say: Callable[[str], None], *, own: bool) -> None:
    """Drops what lies beyond the start; of key logs all, if what came before is not the run's `own` past. For the main
    process. Raises StoreError.
    """
    dropped = {folder / _METRICS: cut_back(folder / _METRICS, start.samples, evaluated=start.evaluated)}
    last = start.samples if own else -1
    dropped |= {path: cut_back_keys(path, last) for path in key_logs(folder).values()}
    for path, lines in dropped.items():
        if lines:
            beyond = f"beyond sample {start.samples}" if own or path.name == _METRICS else "of another past"
            say(f"{path.name}: dropped {lines} lines {beyond}")


def open_records(
    config: TrainConfig, world: World, start: Start, loader: ShardLoader, stack: ExitStack, *, own: bool
) -> tuple[Recorder | None, KeyLog | None]:
    """metrics.jsonl, which the main process has, and the key log of each; what its lines mean is written first, unless
    those before them mean the same.

    own: whether what came before the start is the run's own past.
    """
    folder, recorder, log = Path(config.out), None, None
    if world.is_main:
        recorder = Recorder(folder, consumed_samples=start.samples)
        stack.callback(recorder.close)
    if config.log_samples or world.is_main:
        path = key_logs(folder).get(world.rank)
        before = (last_basis(path), last_count(path)) if world.is_main and path is not None else (None, None)
        log = KeyLog(folder, world.rank)
        stack.callback(log.close)
        if world.is_main:
            basis = Basis(
                dataset=loader.state_dict()["fingerprint"], num_samples=loader.num_samples, logged=config.log_samples
            )
            if (said := _said(basis, before, start.samples, own=own)) is not None:
                log.write(start.samples, {"basis": msgspec.to_builtins(said)})
    return recorder, log if config.log_samples else None


def _said(basis: Basis, before: tuple[Basis | None, int | None], here: int, *, own: bool) -> Basis | None:
    """What is to be said of the lines to come, after those `before`; None if nothing is."""
    last, reached = before
    since = reached or 0
    plain = None if last is None else msgspec.structs.replace(last, since=None, why=None)
    if plain == basis and (since == here or not basis.logged):
        return None
    # A gap that nothing explains stays one, for an audit to find. (Of another past there are no lines any more.)
    if since < here and (last is None or not last.logged):
        return msgspec.structs.replace(basis, since=since, why="not logged" if own else "elsewhere")
    return None if plain == basis else basis
