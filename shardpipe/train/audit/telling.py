"""What an audit finds, as a person and as a program read it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Audit", "EpochFound", "Stretch"]

_SHOWN = 10
_WHY = {
    "elsewhere": "the run went on from another one's checkpoint",
    "not logged": "no key log was kept there",
}
_HEADS = ("epoch", "samples", "consumed", "came once", "left out by length", "unreadable", "too short", "elsewhere")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Counts of consumed samples of which the logs hold nothing, as they say themselves."""

    since: int
    until: int
    why: str


@dataclass(frozen=True, kw_only=True)
class EpochFound:
    """What came of an epoch of a dataset, by the ordinals of its samples."""

    epoch: int
    dataset: str
    """Its fingerprint."""
    samples: int
    consumed: int
    """As far as the epoch has come, by the count."""
    came: int
    """Each counted once; what could not be decoded among them."""
    excluded: int
    """Left out for their length."""
    excluded_ordinals: list[int] | None
    """None of an epoch that is not over, or not all in the logs, and where they are more than 100,000."""
    unreadable: list[int]
    left_out: list[int]
    """Those that came and were too short for their text."""
    elsewhere: int
    """Consumed in a stretch of which the logs hold nothing."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An audit of a run's key logs, from its beginning to its newest checkpoint at `saved_at`."""

    run: str
    saved_at: int
    proved: int
    """Samples up to there that are in the logs, those left out for their length among them."""
    beyond: int
    """Samples in the logs after that checkpoint: a resume does them again."""
    epochs: list[EpochFound]
    stretches: list[Stretch]
    not_finite: list[int]
    """The counts after steps without a finite gradient, which changed nothing."""
    faults: list[str]
    further_faults: int
    bytes_a_sample: float | None
    lengths: str
    """Why the lengths of what was left out could not be compared; empty if they were, or nothing was."""

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        rows = [_HEADS, *map(_row, self.epochs)]
        widths = [max(map(len, column)) for column in zip(*rows)]
        for row in rows if self.epochs else ():
            yield "  ".join(cell.rjust(width) for cell, width in zip(row, widths))
        for stretch in self.stretches:
            why = _WHY.get(stretch.why, stretch.why)
            yield f"samples {stretch.since} to {stretch.until} are not in these logs: {why}"
        if self.not_finite:
            yield f"steps without a finite gradient: {len(self.not_finite)}, ending at {_some(self.not_finite)}"
        if self.lengths:
            yield f"the lengths of what was left out were not looked at: {self.lengths}"
        if self.beyond:
            after = f"{self.beyond} samples after the checkpoint at {self.saved_at}"
            yield f"{after} are not looked at: a resume does them again"
        for fault in self.faults:
            yield f"FAULT: {fault}"
        if self.further_faults:
            yield f"and {self.further_faults} more"
        yield self._verdict()

    def _verdict(self) -> str:
        if not self.ok:
            return f"the logs do not prove that every sample came once: {len(self.faults) + self.further_faults} faults"
        if not self.saved_at:
            return "nothing to prove: no checkpoint yet"
        size = f"; {self.bytes_a_sample:.1f} bytes a sample" if self.bytes_a_sample else ""
        return f"{self.proved} samples up to the checkpoint at {self.saved_at}: every one came once an epoch{size}"


def _row(found: EpochFound) -> tuple[str, ...]:
    numbers = (found.samples, found.consumed, found.came, found.excluded, len(found.unreadable), len(found.left_out))
    return (str(found.epoch), *(f"{number:,}" for number in (*numbers, found.elsewhere)))


def _some(counts: list[int]) -> str:
    return ", ".join(map(str, counts[:_SHOWN])) + (", ..." if len(counts) > _SHOWN else "")
