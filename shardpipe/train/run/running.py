"""A run under way: its parts, and what it counts, records, saves and shows."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from shardpipe import Batch, ShardLoader
from shardpipe.errors import ShardpipeError
from shardpipe.train.amount import Done
from shardpipe.train.checkpoints import Progress, Saver
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World
from shardpipe.train.evaluation import evaluate_sets
from shardpipe.train.logs import Display, JsonLines, Recorder
from shardpipe.train.run.doubts import about_counts
from shardpipe.train.run.saves import Saves
from shardpipe.train.run.settings import settings_file
from shardpipe.train.schedule import Schedule
from shardpipe.train.steps import Clock, Tally
from shardpipe.train.task import Learner, Result
from shardpipe.train.validation import FIGURES, named, shown

__all__ = ["Run"]

_NOTES_SHOWN = 10
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
    keys: JsonLines | None
    total: int
    """Samples of all epochs."""
    batches_per_step: int | None
    """None in a run that was begun before steps had a size: they go by its ranks."""

    def __post_init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        """Utterances of this process and step that taught nothing."""
        self._given: list[dict[str, Any]] = []
        self._doubts: set[str] = set()
        self._shown = self._skips_seen = self._excluded_seen = 0
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

    def note(self, batch: Batch, result: Result) -> None:
        """Takes down what this process was given in the step under way, and which of it taught nothing."""
        if self.keys is not None:
            real = [key for key, weight in zip(batch.keys, batch.weights.tolist()) if weight]
            self._given.append({"epoch": batch.epoch, "keys": real})
        self.notes += [{"event": "left_out", **asdict(utterance)} for utterance in result.left_out]
        skipped = self.loader.skipped[self._skips_seen :]
        self.notes += [{"event": "unreadable", "key": sample.key, "reason": sample.reason} for sample in skipped]
        self._skips_seen += len(skipped)

    def count_step(
        self, place: tuple[int, int], count: int, tally: Tally, clock: Clock, *, rate: float, norm: float
    ) -> None:
        """Adds a finished step to the progress, records it and shows it; `tally` is that of all processes."""
        progress = self.progress
        for given in self._given:
            assert self.keys is not None
            self.keys.write({"consumed_samples": count, **given})
        self._given.clear()
        if tally.notes:
            self._count_notes(count)
        self.count_excluded()
        progress.unknown_units += int(tally.unknown_units)
        if count >= _DOUBTED_FROM:
            self._say_doubts(count)
        if math.isfinite(norm):
            progress.skipped_in_a_row = 0
        else:
            progress.skipped_steps += 1
            progress.skipped_in_a_row += 1
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
        }
        if (service := self.loader.service) is not None:
            record |= {
                "servers": service.replicas_up,
                "server_retries": service.retries,
                "server_hedges": service.hedges,
            }
        self.record("step", count, **record)
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

    def count_excluded(self) -> None:
        """Takes over what the loader has left out since the last time."""
        self.progress.excluded += self.loader.num_excluded - self._excluded_seen
        self._excluded_seen = self.loader.num_excluded

    def _count_notes(self, count: int) -> None:
        for note in self.world.gather(self.notes):
            event = note.pop("event")
            if event == "left_out":
                self.progress.left_out += 1
                what = "has {frames} frames and needs {needed} for its text: left out".format(**note)
            else:
                self.progress.unreadable += 1
                what = f"cannot be decoded: skipped ({note['reason']})"
            self.record(event, count, **note)
            self._shown += 1
            if self._shown <= _NOTES_SHOWN:
                self.display.say(f"sample {count}  {note['key']} {what}")
            if self._shown == _NOTES_SHOWN:
                self.display.say("further ones like these are listed in metrics.jsonl only")
        self.notes.clear()

    def evaluate(self) -> None:
        """Loss and error rates on every set: recorded, shown, and noted in the checkpoint of this moment. A set whose
        data cannot be had is left out of it, which is said and recorded; the one that decides something must not be.
        """
        count, config = self.loader.consumed_samples, self.config
        decides = config.keep_best > 0 or config.schedule == "plateau"
        figures: dict[str, float | None] = {}
        needed = config.best_figure.rpartition("/")[0] if decides else None
        for name, found in evaluate_sets(self.learner, self.valid, self.world, needed=needed):
            if isinstance(found, ShardpipeError):
                self.progress.failed_evaluations += 1
                self.record("valid_failed", count, set=name, reason=str(found))
                self.display.say(f"sample {count}  {name} cannot be evaluated, and the training goes on: {found}")
                continue
            self.record("valid", count, set=name, **found)
            text = "loss {loss:.4f}  WER {wer:.2%}  CER {cer:.2%}  {utterances} utterances".format(**found)
            aside = {kind: found[kind] for kind in ("left_out", "excluded", "unreadable") if found[kind]}
            self.display.say(f"sample {count}  {name} {text}" + (f"  {aside}" if aside else ""))
            figures |= {named(name, f): found[f] if math.isfinite(found[f]) else None for f in FIGURES}
        if config.schedule == "plateau":
            self._look_for_a_plateau(figures[config.best_figure])
        self.progress.evaluated = True
        self.saves.mark_evaluated(figures)

    def _look_for_a_plateau(self, figure: float | None) -> None:
        before, config = self.progress.plateau, self.config
        assert before is not None
        after = before.after(figure, patience=config.plateau_patience, factor=config.plateau_factor)
        self.progress.plateau = after
        if after.factor < before.factor:
            text = f"no better {shown(before.by, self.valid)} in {config.plateau_patience} evaluations"
            lowered = f"the rate is lowered to {after.peak * after.factor:.2e}"
            self.display.say(f"sample {self.loader.consumed_samples}  {text}: {lowered}")

    def finish(self) -> None:
        """Says and records that all epochs are done, and what of them taught nothing. Raises StoreError if the last
        checkpoint cannot be written.
        """
        self.saves.wait()
        counts = msgspec.structs.asdict(self.progress)
        for name in ("evaluated", "skipped_in_a_row", "sub_epoch_ends", "plateau"):
            del counts[name]
        self.record("end", self.loader.consumed_samples, **counts)
        aside = {name.replace("_", " "): n for name, n in counts.items() if n and name not in ("steps", "sub_epochs")}
        self.display.say(
            f"done: {self.loader.consumed_samples} samples in {self.progress.steps} steps"
            + (f"; {', '.join(f'{name}: {n}' for name, n in aside.items())}" if aside else "")
        )

    def tell_how_to_go_on(self) -> None:
        """Says what a stopped run needs. Raises StoreError if the last checkpoint cannot be written."""
        self.saves.wait()
        self.record("stop", self.loader.consumed_samples)
        named = {"--resume": self.config.resume != "auto", "--resume-samples": self.config.resume_samples is not None}
        without = "".join(f", without {flag}," for flag, given in named.items() if given)
        self.display.say(
            f"stopped at sample {self.loader.consumed_samples} of {self.total}, saved in {self.saves.url}; the same "
            f"command{without} goes on from there, and so does: {self._command()}"
        )

    def _command(self) -> str:
        settings = shlex.quote(str(settings_file(self.config.out)))
        if self.world.size == 1:
            return f"shardpipe-train --config {settings}"
        return f"-m shardpipe.train --config {settings} (on {self.world.size} processes, as before)"
