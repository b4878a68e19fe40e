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

__all__ = ["Check", "Comparison", "History", "Samples", "consumed_samples", "same_training"]

# What a training step computes; the rest of its record is about time.
_COMPUTED = ("consumed_samples", "step", "loss", "grad_norm", "lr")
_EVALUATED = ("consumed_samples", "loss", "wer", "cer")

Samples = Mapping[str, int]
"""Bytes of every sample of the dataset, by key."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """A row of the comparison: what it came to in either run, and whether that is as promised (None: just so)."""

    name: str
    undisturbed: str
    disturbed: str
    passed: bool | None


@dataclass(frozen=True, kw_only=True)
class History:
    """A run's records: metrics.jsonl, and the keys of every step."""

    metrics: Sequence[Mapping[str, Any]]
    deliveries: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, run: Path) -> History:
        """The records of a run's folder as they are now; a last line that a kill cut short is left out."""
        deliveries = [line for line in _read_lines(run / "keys-rank0.jsonl") if "keys" in line]
        return cls(metrics=_read_lines(run / "metrics.jsonl"), deliveries=deliveries)

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
    """An undisturbed run beside one that ought to have come out the same; `headings` name the two in tables."""

    headings: tuple[str, str]
    undisturbed: History
    disturbed: History
    samples: Samples
    epochs: int
    checks: Sequence[Check]

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    @property
    def failed(self) -> str:
        """What differs."""
        return "; ".join(check.name for check in self.checks if check.passed is False)


def same_training(undisturbed: Path, disturbed: Path, *, samples: Samples, epochs: int) -> list[Check]:
    """Holds two finished runs against each other: what they were given, what they computed, what they saved."""
    histories = History.read(undisturbed), History.read(disturbed)
    digests = _digest_of_last_checkpoint(undisturbed), _digest_of_last_checkpoint(disturbed)
    faults = [_delivery_faults(history, samples, epochs) for history in histories]
    complete = f"{epochs} epochs of {len(samples)}"
    batches = [[line["keys"] for line in history.deliveries] for history in histories]
    return [
        Check(
            name="Every sample once an epoch",
            undisturbed=faults[0] or complete,
            disturbed=faults[1] or complete,
            passed=not any(faults),
        ),
        _equal("Batches: keys and order", "batches", *batches),
        _equal_records("Loss, gradient norm, rate", "step", _COMPUTED, *histories),
        _equal_records("Validation loss, WER, CER", "valid", _EVALUATED, *histories),
        Check(
            name="Final checkpoint, every byte",
            undisturbed=f"sha256 {digests[0][:8]}",
            disturbed=f"sha256 {digests[1][:8]}",
            passed=digests[0] == digests[1],
        ),
    ]


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
        undisturbed=f"{len(first)} {what}",
        disturbed=f"{differ} of {len(second)} differ" if differ else f"{len(second)}, all equal",
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
