"""Where a run starts: at a checkpoint of its own, at another run's, or at the beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from shardpipe.errors import ConfigError, StoreError
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, Keep
from shardpipe.train.config import TrainConfig, checkpoints_in
from shardpipe.train.logs import last_saved
from shardpipe.train.run.settings import found_at, last_settings

__all__ = ["Start", "find_start"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """Samples consumed at the start, and the checkpoint to load: all of it (`resumes`), or only model and optimizer.

    `goes_back` if the place was named: later checkpoints of the run then have to make way.
    """

    samples: int = 0
    checkpoint: Checkpoint | None = None
    resumes: bool = False
    goes_back: bool = False

    @property
    def batches_per_step(self) -> int | None:
        """Batches of a step of the run that goes on; None if it says nothing of them."""
        return self.checkpoint.loader.get("batches_per_step") if self.checkpoint and self.resumes else None

    @property
    def steps_by_ranks(self) -> bool:
        """Whether a run goes on that was begun before steps had a size."""
        return self.checkpoint is not None and self.resumes and self.batches_per_step is None

    @property
    def evaluated(self) -> bool:
        """Whether no evaluation is due at the start."""
        return not (self.resumes and self.checkpoint is not None) or self.checkpoint.progress.evaluated


def find_start(config: TrainConfig, checkpoints: Checkpoints, say: Callable[[str], None]) -> Start:
    """Decides by `resume`, `resume_samples` and `init_from`, and tells `say` which damaged checkpoints it passes over.

    The run's newest checkpoint comes before `init_from`, so that a command can be repeated until the run is done.
    Changes nothing.
    Raises StoreError if what is asked for is not there, ConfigError if `resume` is never and the folder is used, or if
    the run has its checkpoints elsewhere.
    """
    if config.resume == "auto":
        _check_place(config)
    out, counts, wanted = Path(config.out), checkpoints.counts(), config.resume_samples
    if config.resume == "never":
        if counts or (out / "metrics.jsonl").exists():
            rule = f"{out} holds a run already"
            raise ConfigError("resume", "never", rule, fix="Choose another --out, or go on with --resume auto.")
        return _fresh(config, counts, say)
    if config.resume != "auto":
        return _back_to(found_at(config.resume, say))
    if wanted is not None and wanted in counts:
        return _back_to(checkpoints.read(wanted))
    if wanted is not None and config.init_from is None:
        return replace(_fresh(config, counts, say), goes_back=True)
    newest = checkpoints.newest(say)
    if newest is not None:
        return Start(samples=newest.consumed_samples, checkpoint=newest, resumes=True)
    if counts:
        fix = "Name another with --resume PATH, or begin anew with --resume-samples 0."
        raise StoreError("none of the checkpoints is whole", url=checkpoints.url, fix=fix)
    if (lost := last_saved(out / "metrics.jsonl")) is not None and wanted is None:
        fix = "Give their place with --checkpoints, or begin anew with --resume-samples 0."
        raise StoreError(
            f"there is no checkpoint, and the run in {out} has had one at sample {lost}", url=checkpoints.url, fix=fix
        )
    return _fresh(config, counts, say)


def _check_place(config: TrainConfig) -> None:
    """Raises ConfigError where the run has its checkpoints elsewhere: it would go on from others, or none."""
    now, said = config.checkpoints_at, (last_settings(config.out) or {}).get("checkpoints")
    before = said if isinstance(said, str) else checkpoints_in(config.out)
    if before == now or Path(before).absolute() == Path(now).absolute():
        return
    if counts := Checkpoints(before, keep=Keep()).counts():
        rule = f"the run has its own, {counts[-1]} samples and before, in {before}"
        fix = f"Give that place with --checkpoints; or, to move, this one with --resume {before}, once."
        raise ConfigError("checkpoints", now, rule, fix=fix)


def _fresh(config: TrainConfig, counts: list[int], say: Callable[[str], None]) -> Start:
    samples = config.resume_samples or 0
    if config.init_from is not None:
        return Start(samples=samples, checkpoint=found_at(config.init_from, say))
    if samples:
        found = f"there are checkpoints at {', '.join(map(str, counts))}" if counts else "there is no checkpoint"
        fix = "Choose one of these, or give the model and the optimizer with --init-from." if counts else ""
        raise StoreError(
            f"no checkpoint at sample {samples}; {found}",
            url=config.checkpoints_at,
            fix=fix or "Give the model and the optimizer with --init-from.",
        )
    return Start()


def _back_to(checkpoint: Checkpoint) -> Start:
    return Start(samples=checkpoint.consumed_samples, checkpoint=checkpoint, resumes=True, goes_back=True)
