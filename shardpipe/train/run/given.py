"""What this process was given in the step under way, and which of it taught nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from shardpipe import Batch, ShardLoader
from shardpipe.train.checkpoints import Progress
from shardpipe.train.engines import World
from shardpipe.train.logs import KeyLog
from shardpipe.train.task import Result

__all__ = ["Given"]

_NOTES_SHOWN = 10


@dataclass(kw_only=True)
class Given:
    """Taken down batch by batch, and written into the key log, if there is one, when the step has ended. `record`
    writes an event at a count.
    """

    loader: ShardLoader
    log: KeyLog | None
    with_keys: bool
    world: World
    progress: Progress
    record: Callable[..., None]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.notes: list[dict[str, Any]] = []
        """Utterances of this process and step that taught nothing."""
        self._lines: list[dict[str, Any]] = []
        self._skips_seen = self._shown = 0

    def take(self, batch: Batch, result: Result) -> None:
        """Takes down a batch, which the loader has just handed over."""
        skipped = self.loader.skipped[self._skips_seen :]
        self._skips_seen += len(skipped)
        self.notes += [{"event": "left_out", **asdict(utterance)} for utterance in result.left_out]
        self.notes += [{"event": "unreadable", "key": sample.key, "reason": sample.reason} for sample in skipped]
        ordinal = dict(zip(batch.keys, batch.ordinals))
        heard = [key for key, weight in zip(batch.keys, batch.weights.tolist()) if weight]
        if not heard and not skipped:
            return  # a repeat, which fills the step up
        line: dict[str, Any] = {"epoch": batch.epoch, "samples": [ordinal[key] for key in heard]}
        if skipped:
            line["unreadable"] = [ordinal[sample.key] for sample in skipped]
        if result.left_out:
            line["left_out"] = [ordinal[utterance.key] for utterance in result.left_out]
        if self.with_keys:
            line["keys"] = heard
        self._lines.append(line)

    def write(self, consumed_samples: int, *, excluded: int = 0, finite: bool = True) -> None:
        """Writes the step that ends at a count. What is to be said of it as a whole the main process is told.

        excluded: samples that the count went by besides. finite: whether the gradient was.
        """
        if self.log is not None:
            facts = ({"excluded": excluded} if excluded else {}) | ({} if finite else {"not_finite": True})
            # First: that the last line is missing can be told by its samples alone.
            for line in [facts, *self._lines] if facts else self._lines:
                self.log.write(consumed_samples, line)
        self._lines.clear()

    def count_notes(self, count: int) -> None:
        """Counts, records and says what taught nothing in any process, in the step that ends at a count."""
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
                self.say(f"sample {count}  {note['key']} {what}")
            if self._shown == _NOTES_SHOWN:
                self.say("further ones like these are listed in metrics.jsonl only")
        self.notes.clear()
