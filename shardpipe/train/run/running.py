"""A run under way: its parts, and what it counts, records, saves and shows."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from shardpipe import Batch, ShardLoader
from shardpipe.errors import StoreError
from shardpipe.train.checkpoints import Checkpoint, Progress, Saver
from shardpipe.train.config import FIGURES, TrainConfig
from shardpipe.train.engines import World
from shardpipe.train.evaluation import evaluate
from shardpipe.train.logs import Display, JsonLines, Recorder
from shardpipe.train.schedule import Schedule
from shardpipe.train.steps import Clock, Tally
from shardpipe.train.task import Learner, Result

__all__ = ["Run"]

_NOTES_SHOWN = 10


@dataclass(kw_only=True)
class Run:
    """The parts of a run; every process has one, and only the main process's records and shows."""

    config: TrainConfig
    world: World
    display: Display
    loader: ShardLoader
    valid: ShardLoader | None
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
        self._shown = self._skips_seen = self._excluded_seen = 0
        self._held: dict[int, float] = {}
        self._figures: dict[int, dict[str, float | None]] = {}
        self._started_at = self._saved_at = self.loader.consumed_samples
        self._started_time = self._saved_time = time.monotonic()

    @property
    def by_ranks(self) -> tuple[int, int] | None:
        """(rank, batches of each in a step) where steps go by ranks."""
        return None if self.batches_per_step is not None else (self.world.rank, self.config.accumulate or 1)

    def record(self, event: str, consumed_samples: int, **fields: Any) -> None:
        """A line of metrics.jsonl, if this is the main process."""
        if self.recorder is not None:
            self.recorder.write(event, consumed_samples, **fields)

    def announce(self, *, resumes: bool) -> None:
        """Says and records where the run starts."""
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
        if math.isfinite(norm):
            progress.skipped_in_a_row = 0
        else:
            progress.skipped_steps += 1
            progress.skipped_in_a_row += 1
            self.display.say(f"sample {count}  no finite gradient: the model stays as it was")
        epochs = count / self.loader.num_samples - place[0]
        pace = (count - self._started_at) / (time.monotonic() - self._started_time)
        record = {
            "step": progress.steps,
            "loss": tally.loss / tally.weight if tally.weight else math.nan,
            "lr": rate,
            "grad_norm": norm,
            "epoch": place[0],
            "sub_epoch": place[1],
            "epoch_progress": min(1.0, epochs),
            "sub_epoch_progress": min(1.0, epochs * self.config.sub_epochs - place[1]),
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

    def save_due(self, before: int) -> bool:
        """Whether the step under way, begun at count `before`, is to be followed by a checkpoint.

        In samples or steps that is a matter of the count alone: each multiple of the interval, whenever the run was
        stopped. In time it is the main process's clock that decides. And one that could not be written is due again.
        """
        self._note_written()
        if self.saver.has_failed:
            return True
        interval = self.config.save_interval
        if interval.unit == "seconds":
            return self.world.is_main and time.monotonic() - self._saved_time >= interval.count
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
        began = time.monotonic()
        for log in (self.recorder, self.keys):
            if log is not None:
                log.flush()
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

    def _wait_saved(self) -> None:
        """Returns when this moment's checkpoint is complete. Raises StoreError if it cannot be written, tried twice."""
        if not self._settle():
            self._saved_at = -1
            self.save()
            self.saver.wait()
            self._note_written()

    def _note_written(self) -> None:
        for written in self.saver.written():
            count = written.consumed_samples
            self.record("checkpoint", count, seconds=self._held.pop(count, 0.0), writing=written.seconds)

    def evaluate(self) -> None:
        """Loss and error rates on the validation data: recorded, shown, and noted in the checkpoint of this moment."""
        assert self.valid is not None
        result = evaluate(self.learner, self.valid, self.world)
        count = self.loader.consumed_samples
        self.record("valid", count, **result)
        text = "valid loss {loss:.4f}  WER {wer:.2%}  CER {cer:.2%}  {utterances} utterances".format(**result)
        aside = {name: result[name] for name in ("left_out", "excluded", "unreadable") if result[name]}
        self.display.say(f"sample {count}  {text}" + (f"  {aside}" if aside else ""))
        self.progress.evaluated = True
        if self.world.is_main:
            found = {str(name): result[name] for name in FIGURES}
            figures = {name: value if math.isfinite(value) else None for name, value in found.items()}
            self._figures = {count: figures}
            self.saver.mark_evaluated(count, figures)

    def finish(self) -> None:
        """Says and records that all epochs are done, and what of them taught nothing. Raises StoreError if the last
        checkpoint cannot be written.
        """
        self._wait_saved()
        counts = msgspec.structs.asdict(self.progress)
        del counts["evaluated"], counts["skipped_in_a_row"]
        self.record("end", self.loader.consumed_samples, **counts)
        aside = {name.replace("_", " "): n for name, n in counts.items() if n and name != "steps"}
        self.display.say(
            f"done: {self.loader.consumed_samples} samples in {self.progress.steps} steps"
            + (f"; {', '.join(f'{name}: {n}' for name, n in aside.items())}" if aside else "")
        )

    def tell_how_to_go_on(self) -> None:
        """Says what a stopped run needs. Raises StoreError if the last checkpoint cannot be written."""
        self._wait_saved()
        self.record("stop", self.loader.consumed_samples)
        named = {"--resume": self.config.resume != "auto", "--resume-samples": self.config.resume_samples is not None}
        without = "".join(f", without {flag}," for flag, given in named.items() if given)
        self.display.say(
            f"stopped at sample {self.loader.consumed_samples} of {self.total}, saved in {self.saver.url}; the same "
            f"command{without} goes on from there"
        )
