"""A run that was killed and resumed, held against one that nothing stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shardpipe.demo.compare import Check, Comparison, History, Samples, same_training

__all__ = ["Resumed", "compare"]


@dataclass(frozen=True, kw_only=True)
class Resumed(Comparison):
    """An uninterrupted run beside one that was killed at one count and went on from a checkpoint at another.

    `disturbed` is the second run when it was done: the records of both its processes, joined by the resume.
    """

    killed: History
    """The second run as the kill left it."""
    checkpoint: int
    """Count of the checkpoint that the second process started from."""

    @property
    def killed_at(self) -> int:
        """Samples that the killed process had consumed."""
        return self.killed.consumed_samples

    @property
    def killed_epoch(self) -> int:
        """The epoch, from 0, of the checkpoint."""
        return self.checkpoint // len(self.samples)


def compare(uninterrupted: Path, killed: History, resumed: Path, *, samples: Samples, epochs: int) -> Resumed:
    """Holds two finished runs against each other; `killed` is the second one's history before it was resumed."""
    joined = History.read(resumed)
    start = joined.of("resume")
    checkpoint = int(start[-1]["consumed_samples"]) if start else 0
    epoch, place = divmod(checkpoint, len(samples))
    spared = joined.keys(epoch)[:place]
    spared_bytes = sum(samples.get(key, 0) for key in spared)
    redone = killed.consumed_samples - checkpoint
    checks = [
        *same_training(uninterrupted, resumed, samples=samples, epochs=epochs),
        Check(
            name=f"Not replayed of epoch {epoch + 1}",
            undisturbed="",
            disturbed=f"{len(spared)} samples, {spared_bytes / 1e6:.2f} MB",
            passed=None,
        ),
        Check(name="Lost in the kill, redone", undisturbed="", disturbed=f"{redone} samples", passed=None),
    ]
    return Resumed(
        headings=("uninterrupted", "killed and resumed"),
        undisturbed=History.read(uninterrupted),
        disturbed=joined,
        samples=samples,
        epochs=epochs,
        checks=checks,
        killed=killed,
        checkpoint=checkpoint,
    )
