"""A run under way: its parts, and what it counts, records, saves and shows."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from shardpipe import Batch, ShardLoader
from shardpipe.train.amount import Done
from shardpipe.train.checkpoints import Progress, Saver
from shardpipe.train.config import TrainConfig
from shardpipe.train.ending import AGAIN, ExitFile, Outcome, Watchdog
from shardpipe.train.engines import World
from shardpipe.train.logs import Display, KeyLog, Recorder
from shardpipe.train.run.doubts import about_counts
from shardpipe.train.run.evaluating import Evaluation
from shardpipe.train.run.given import Given
from shardpipe.train.run.goodput import Goodput
from shardpipe.train.run.saves import Saves
from shardpipe.train.run.settings import settings_file
from shardpipe.train.schedule import Schedule
from shardpipe.train.steps import Clock, Tally
from shardpipe.train.task import Learner

__all__ = ["Run"]

_DOUBTED_FROM = 200  # samples: fewer may well be a bad start


@dataclass(kw_only=True)
class Run:
    """The parts of a run; every process has one, and only the main process's records and shows."""

    config: TrainConfig
    world: World
    display: Display
    loader: ShardLoader
    valid: Mapping[str, ShardLoader]
    learner: Learner
    schedule: Schedule
    saver: Saver
    progress: Progress
    recorder: Recorder | None
    keys: KeyLog | None
    goodput: Goodput
    watchdog: Watchdog
    exit_file: ExitFile
    total: int
    """Samples of all epochs."""
    batches_per_step: int | None
    """None in a run that was begun before steps had a size: they go by its ranks."""

    def __post_init__(self) -> None:
        self._doubts: set[str] = set()
        self._excluded_seen = 0
        self._started_at = self.loader.consumed_samples
        self._started_time = time.monotonic()
        self._sub_epochs_left = self.config.max_sub_epochs
        self.saves = Saves(
            interval=self.config.save_interval,
            world=self.world,
            display=self.display,
            loader=self.loader,
            learner=self.learner,
            progress=self.progress,
            saver=self.saver,
            record=self.record,
            flush=self._flush,
            goodput=self.goodput,
        )
        self.evaluation = Evaluation(
            config=self.config,
            world=self.world,
            display=self.display,
            loader=self.loader,
            valid=self.valid,
            learner=self.learner,
            progress=self.progress,
            saves=self.saves,
            record=self.record,
            watchdog=self.watchdog,
            goodput=self.goodput,
        )
        self.given = Given(
            loader=self.loader,
            log=self.keys,
            with_keys=self.config.log_keys,
            world=self.world,
            progress=self.progress,
            record=self.record,
            say=self.display.say,
        )

    @property
    def by_ranks(self) -> tuple[int, int] | None:
        """(rank, batches of each in a step) where steps go by ranks."""
        return None if self.batches_per_step is not None else (self.world.rank, self.config.accumulate or 1)

    def record(self, event: str, consumed_samples: int, **fields: Any) -> None:
        """A line of metrics.jsonl, if this is the main process."""
        if self.recorder is not None:
            self.recorder.write(event, consumed_samples, **fields)

    def _flush(self) -> None:
        for log in (self.recorder, self.keys):
            if log is not None:
                log.flush()

    def announce(self, *, resumes: bool, changed: Mapping[str, tuple[Any, Any]]) -> None:
        """Says and records where the run starts, and which settings change there."""
        count = self.loader.consumed_samples
        facts = {
            "total_samples": self.total,
            "num_samples": self.loader.num_samples,
            "parameters": sum(p.numel() for p in self.learner.model.parameters()),
            "units": len(self.learner.tokenizer.units),
            "world_size": self.world.size,
            "batches_per_step": self.batches_per_step or self.world.size * (self.config.accumulate or 1),
            "device": str(self.world.device),
        }
        self.record("resume" if resumes else "start", count, **facts)
        text = "{parameters:,} parameters, {units} units, {world_size} x {device}, ".format(**facts)
        text += "steps of {batches_per_step} batches".format(**facts)
        self.display.say(f"{'going on' if resumes else 'starting'} at sample {count} of {self.total}: {text}")
        if changed:
            self.record("changed", count, **changed)
        for name, (was, value) in changed.items():
            self.display.say(f"changed from sample {count} on: {name} from {was} to {value}")
        self.display.start(total=self.total, consumed_samples=count)

    def count_step(
        self, place: tuple[int, int], count: int, tally: Tally, clock: Clock, *, rate: float, norm: float
    ) -> None:
        """Adds a finished step to the progress, records it and shows it; `tally` is that of all processes."""
        progress, finite = self.progress, math.isfinite(norm)
        self.given.write(count, excluded=self._newly_excluded(), finite=finite)
        if tally.notes:
            self.given.count_notes(count)
        progress.unknown_units += int(tally.unknown_units)
        if count >= _DOUBTED_FROM:
            self._say_doubts(count)
        self.goodput.spend("data", clock.waited)
        if finite:
            progress.skipped_in_a_row = 0
        else:
            progress.skipped_steps += 1
            progress.skipped_in_a_row += 1
            self.goodput.spend("lost", clock.elapsed - clock.waited)
            self.display.say(f"sample {count}  no finite gradient: the model stays as it was")
        pace = (count - self._started_at) / (time.monotonic() - self._started_time)
        record = {
            "step": progress.steps,
            "loss": tally.loss / tally.weight if tally.weight else math.nan,
            "lr": rate,
            "grad_norm": norm,
            "epoch": place[0],
            "sub_epoch": place[1],
            "epoch_progress": min(1.0, count / self.loader.num_samples - place[0]),
            "sub_epoch_progress": self._share(place, count),
            "progress": count / self.total,
            "utt_per_s": tally.utterances / clock.elapsed,
            "audio_s_per_s": tally.seconds / clock.elapsed,
            "data_wait": clock.waited / clock.elapsed,
            "eta": max(0, self.total - count) / pace,
            "goodput": self.goodput.share,
        }
        if (service := self.loader.service) is not None:
            record |= {
                "servers": service.replicas_up,
                "server_retries": service.retries,
                "server_hedges": service.hedges,
            }
        self.record("step", count, **record)
        self.goodput.note(count, now=False)
        self.display.step(count, record)

    def rate(self, place: tuple[int, int], count: int) -> float:
        """The learning rate of the step, begun at `place`, that comes to a count."""
        ended = (self.progress.sub_epochs or 0) + self._share(place, count)
        done = Done(samples=count, steps=self.progress.steps, sub_epochs=ended)
        return self.schedule.at(done, self.progress.plateau)

    def _share(self, place: tuple[int, int], count: int) -> float:
        """Of the sub-epoch at `place`, when so many samples are consumed."""
        epochs = count / self.loader.num_samples - place[0]
        return min(1.0, epochs * self.loader.sub_epochs - place[1])

    def end_sub_epoch(self, place: tuple[int, int]) -> None:
        """Counts the one at `place`, and those that its last step went beyond."""
        number, count = self.loader.sub_epochs, self.loader.consumed_samples
        ended = (self.loader.epoch - place[0]) * number + self.loader.sub_epoch - place[1]
        self.progress.sub_epochs = (self.progress.sub_epochs or 0) + ended
        self.progress.sub_epoch_ends = (*self.progress.sub_epoch_ends[-1:], count)
        if self._sub_epochs_left is not None:
            self._sub_epochs_left -= ended
        self._say_doubts(count)

    @property
    def has_moved(self) -> bool:
        """Whether this start has taken a step."""
        return self.loader.consumed_samples > self._started_at

    @property
    def has_had_its_part(self) -> bool:
        """Whether this start was to go through so many sub-epochs, and has."""
        return self._sub_epochs_left is not None and self._sub_epochs_left <= 0

    def _say_doubts(self, count: int) -> None:
        for kind, doubt in about_counts(self.progress, count).items():
            if kind not in self._doubts:
                self._doubts.add(kind)
                self.display.say(f"warning: sample {count}  {doubt}")

    def count_the_rest(self) -> None:
        """Takes over what the loader has left out after the last step: an epoch may end in nothing else."""
        if excluded := self._newly_excluded():
            self.given.write(self.loader.consumed_samples, excluded=excluded)

    def _newly_excluded(self) -> int:
        number = self.loader.num_excluded - self._excluded_seen
        self._excluded_seen += number
        self.progress.excluded += number
        return number if self.world.is_main else 0

    def took(self, batch: Batch) -> None:
        """Training begins with a batch."""
        self.watchdog.saw(f"the step after sample {self.loader.consumed_samples}", batch.keys)

    def finish(self) -> None:
        """Says and records that all epochs are done, and what of them taught nothing. Raises StoreError if the last
        checkpoint cannot be written.
        """
        self.saves.wait()
        counts = msgspec.structs.asdict(self.progress)
        for name in ("evaluated", "skipped_in_a_row", "sub_epoch_ends", "plateau"):
            del counts[name]
        self.goodput.note(count := self.loader.consumed_samples)
        self.record("end", count, **counts, goodput=self.goodput.seconds)
        aside = {name.replace("_", " "): n for name, n in counts.items() if n and name not in ("steps", "sub_epochs")}
        self.display.say(str(self.goodput))
        self.display.say(
            f"done: {count} samples in {self.progress.steps} steps"
            + (f"; {', '.join(f'{name}: {n}' for name, n in aside.items())}" if aside else "")
        )
        self._tell_starter("done", 0, f"all {self.config.epochs} epochs are done")

    def tell_how_to_go_on(self, outcome: Outcome) -> int:
        """Says what a stopped run needs, and returns the exit code that says whether it was only to have its part.
        Raises StoreError if the last checkpoint cannot be written.
        """
        self.saves.wait()
        self.goodput.note(count := self.loader.consumed_samples)
        self.record("stop", count, goodput=self.goodput.seconds)
        named = {"--resume": self.config.resume != "auto", "--resume-samples": self.config.resume_samples is not None}
        without = "".join(f", without {flag}," for flag, given in named.items() if given)
        self.display.say(str(self.goodput))
        code = AGAIN if outcome == "stopped" else 0
        if code:
            self.display.say(f"exit code {code}: to be started again; {self.exit_file.path} says so, too")
        self.display.say(
            f"stopped at sample {count} of {self.total}, saved in {self.saves.url}; the same "
            f"command{without} goes on from there, and so does: {self._command()}"
        )
        self._tell_starter(outcome, code, f"stopped at sample {count} of {self.total}")
        return code

    def _tell_starter(self, outcome: Outcome, code: int, reason: str) -> None:
        if self.world.is_main:
            self.exit_file.write(outcome, code, reason)

    def _command(self) -> str:
        settings = shlex.quote(str(settings_file(self.config.out)))
        if self.world.size == 1:
            return f"shardpipe-train --config {settings}"
        return f"-m shardpipe.train --config {settings} (on {self.world.size} processes, as before)"
