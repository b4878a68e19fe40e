"""When a run's checkpoints are due, what they hold of it, and what is said of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from shardpipe import ShardLoader
from shardpipe.errors import StoreError
from shardpipe.train.amount import Amount
from shardpipe.train.checkpoints import Checkpoint, Progress, Saver
from shardpipe.train.engines import World
from shardpipe.train.logs import Display
from shardpipe.train.run.goodput import Goodput
from shardpipe.train.task import Learner

__all__ = ["Saves"]


@dataclass(kw_only=True)
class Saves:
    """Every process has one. `record` writes an event at a count; `flush` brings what was recorded to the disk."""

    interval: Amount
    world: World
    display: Display
    loader: ShardLoader
    learner: Learner
    progress: Progress
    saver: Saver
    record: Callable[..., None]
    flush: Callable[[], None]
    goodput: Goodput

    def __post_init__(self) -> None:
        self._held: dict[int, float] = {}
        self._figures: dict[int, Mapping[str, float | None]] = {}
        self._saved_at = self.loader.consumed_samples
        self._saved_time = time.monotonic()

    @property
    def url(self) -> str:
        """Where they go, for messages."""
        return self.saver.url

    def due(self, before: int) -> bool:
        """Whether the step under way, begun at count `before`, is to be followed by a checkpoint.

        In samples or steps that is a matter of the count alone: each multiple of the interval, whenever the run was
        stopped. In time it is the main process's clock that decides. And one that could not be written is due again.
        """
        self._note_written()
        if self.saver.has_failed:
            return True
        interval = self.interval
        if interval.unit == "seconds":
            return self.world.is_main and time.monotonic() - self._saved_time >= interval.count
        if interval.unit == "sub_epochs":
            return False  # each ends with one
        done, now = before, self.loader.consumed_samples
        if interval.unit == "steps":
            done, now = self.progress.steps, self.progress.steps + 1
        return now // interval.count > done // interval.count

    def save(self) -> None:
        """Begins a checkpoint of this moment, unless the run has started or was last saved here.

        If the last one could not be written, for a reason that may pass, that is said and recorded. Raises StoreError
        for what does not pass.
        """
        count = self.loader.consumed_samples
        if count == self._saved_at:
            return
        with self.goodput.spending("checkpoints"):
            self._begin(count)
        self.goodput.note(count)

    def _begin(self, count: int) -> None:
        began = time.monotonic()
        self.flush()
        self._settle()
        checkpoint = Checkpoint(
            consumed_samples=count,
            progress=msgspec.structs.replace(self.progress),
            identity=self.learner.identity,
            loader=self.loader.state_dict(),
            scale=self.learner.engine.precision.scale,
            epoch=self.loader.epoch,
            sub_epoch=self.loader.sub_epoch,
            valid=self._figures.get(count),
        )
        self.saver.save(self.learner.model, self.learner.optimizer, checkpoint)
        self._saved_at, self._saved_time = count, time.monotonic()
        self._held = {count: time.monotonic() - began}

    def wait(self) -> None:
        """Returns when this moment's checkpoint is complete. Raises StoreError if it cannot be written, tried twice."""
        with self.goodput.spending("checkpoints"):
            if not self._settle():
                self._begin(self.loader.consumed_samples)
                self.saver.wait()
                self._note_written()

    def mark_evaluated(self, figures: Mapping[str, float | None]) -> None:
        """Notes in the checkpoint of this moment what an evaluation has found, and what that has changed."""
        if self.world.is_main:
            count = self.loader.consumed_samples
            self._figures = {count: figures}
            self.saver.mark_evaluated(count, msgspec.structs.replace(self.progress), figures)

    def _settle(self) -> bool:
        """Waits for the checkpoint that is being written, and returns whether it is complete. If not, for a reason that
        may pass, that is said and recorded. Raises StoreError for another one.
        """
        try:
            self.saver.wait()
        except StoreError as error:
            if not error.transient:
                raise
            self.record("checkpoint_failed", self._saved_at, reason=str(error))
            self.display.say(
                f"sample {self._saved_at}  a checkpoint was not written, and another one is begun: {error}"
            )
            return False
        self._note_written()
        return True

    def _note_written(self) -> None:
        for written in self.saver.written():
            count = written.consumed_samples
            self.record("checkpoint", count, seconds=self._held.pop(count, 0.0), writing=written.seconds)
