"""What two training runs wrote down, held against each other."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["Check", "Comparison", "History", "Samples", "compare", "consumed_samples"]

# What a training step computes; the rest of its record is about time.
_COMPUTED = ("consumed_samples", "step", "loss", "grad_norm", "lr")
_EVALUATED = ("consumed_samples", "loss", "wer", "cer")

Samples = Mapping[str, int]
"""Bytes of every sample of the dataset, by key."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A row of the comparison: what it came to in either run, and whether that is as promised (None: just so)."""

    name: str
    uninterrupted: str
    resumed: str
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class History:
    """A run's records: metrics.jsonl, and the keys of every step."""

    metrics: Sequence[Mapping[str, Any]]
    deliveries: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, run: Path) -> History:
        """The records of a run's folder as they are now; a last line that a kill cut short is left out."""
        return cls(metrics=_read_lines(run / "metrics.jsonl"), deliveries=_read_lines(run / "keys-rank0.jsonl"))

    @cached_property
    def steps(self) -> list[Mapping[str, Any]]:
        return self.of("step")

    @property
    def consumed_samples(self) -> int:
        """The count after the last step."""
        return int(self.steps[-1]["consumed_samples"])

    def of(self, event: str) -> list[Mapping[str, Any]]:
        """The records of one kind."""
        return [record for record in self.metrics if record["event"] == event]

    def keys(self, epoch: int) -> list[str]:
        """The keys of an epoch in the order of delivery."""
        return [key for line in self.deliveries if line["epoch"] == epoch for key in line["keys"]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """An uninterrupted run beside one that was killed at one count and went on from a checkpoint at another."""

    uninterrupted: History
    killed: History
    """The second run as the kill left it."""
    resumed: History
    """The second run when it was done: the records of both its processes, joined by the resume."""
    samples: Samples
    epochs: int
    checkpoint: int
    """Count of the checkpoint that the second process started from."""
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def killed_at(self) -> int:
        """Samples that the killed process had consumed."""
        return self.killed.consumed_samples

    @property
    def killed_epoch(self) -> int:
        """The epoch, from 0, of the checkpoint."""
        return self.checkpoint // len(self.samples)


def compare(uninterrupted: Path, killed: History, resumed: Path, *, samples: Samples, epochs: int) -> Comparison:
    """Holds two finished runs against each other; `killed` is the second one's history before it was resumed."""
    whole, joined = History.read(uninterrupted), History.read(resumed)
    start = joined.of("resume")
    checkpoint = int(start[-1]["consumed_samples"]) if start else 0
    digests = _digest_of_last_checkpoint(uninterrupted), _digest_of_last_checkpoint(resumed)
    faults = [_delivery_faults(history, samples, epochs) for history in (whole, joined)]
    complete = f"{epochs} epochs of {len(samples)}"
    batches = [[line["keys"] for line in history.deliveries] for history in (whole, joined)]
    spared = joined.keys(checkpoint // len(samples))[: checkpoint % len(samples)]
    spared_bytes = sum(samples.get(key, 0) for key in spared)
    checks = [
        Check(
            name="Every sample once an epoch",
            uninterrupted=faults[0] or complete,
            resumed=faults[1] or complete,
            passed=not any(faults),
        ),
        _equal("Batches: keys and order", "batches", *batches),
        _equal_records("Loss, gradient norm, rate", "step", _COMPUTED, whole, joined),
        _equal_records("Validation loss, WER, CER", "valid", _EVALUATED, whole, joined),
        Check(
            name="Final checkpoint, every byte",
            uninterrupted=f"sha256 {digests[0][:8]}",
            resumed=f"sha256 {digests[1][:8]}",
            passed=digests[0] == digests[1],
        ),
        Check(
            name=f"Not replayed of epoch {checkpoint // len(samples) + 1}",
            uninterrupted="",
            resumed=f"{len(spared)} samples, {spared_bytes / 1e6:.2f} MB",
            passed=None,
        ),
        Check(
            name="Lost in the kill, redone",
            uninterrupted="",
            resumed=f"{killed.consumed_samples - checkpoint} samples",
            passed=None,
        ),
    ]
    return Comparison(
        uninterrupted=whole,
        killed=killed,
        resumed=joined,
        samples=samples,
        epochs=epochs,
        checkpoint=checkpoint,
        checks=checks,
    )


def _delivery_faults(history: History, samples: Samples, epochs: int) -> str:
    faults = []
    for epoch in range(epochs):
        given = Counter(history.keys(epoch))
        missing = len(samples.keys() - given.keys())
        again = sum(given.values()) - len(given)
        unknown = len(given.keys() - samples.keys())
        counts = {"missing": missing, "twice": again, "unknown": unknown}
        said = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
        if said:
            faults.append(f"epoch {epoch + 1}: {said}")
    return "; ".join(faults)


def _equal_records(name: str, event: str, fields: Sequence[str], first: History, second: History) -> Check:
    # Python writes a float so that it reads back as the same bits, so equal numbers here were equal bits there.
    rows = [[[record[field] for field in fields] for record in history.of(event)] for history in (first, second)]
    return _equal(name, "steps" if event == "step" else "evaluations", *rows)


def _equal(name: str, what: str, first: list[Any], second: list[Any]) -> Check:
    differ = sum(a != b for a, b in zip(first, second)) + abs(len(first) - len(second))
    return Check(
        name=name,
        uninterrupted=f"{len(first)} {what}",
        resumed=f"{differ} of {len(second)} differ" if differ else f"{len(second)}, all equal",
        passed=not differ and bool(first),
    )


def _digest_of_last_checkpoint(run: Path) -> str:
    digest = hashlib.sha256()
    folder = max((run / "checkpoints").glob("[0-9]*"))
    for file in sorted(folder.iterdir()):
        digest.update(f"{folder.name}/{file.name} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def consumed_samples(run: Path) -> int:
    """The count that a run has come to, 0 before it has written anything."""
    metrics = run / "metrics.jsonl"
    lines = _read_lines(metrics) if metrics.exists() else []
    return int(lines[-1]["consumed_samples"]) if lines else 0


def _read_lines(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    # Whole lines end with a newline, so the last part is empty or torn.
    return [json.loads(line) for line in lines[:-1]]
