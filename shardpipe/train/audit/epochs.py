"""What came of an epoch, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

__all__ = ["Epoch", "Ordinals"]

Ordinals = npt.NDArray[np.int64]

_AT_ONCE = 1 << 16
_NAMED = 100


@dataclass(kw_only=True)
class Epoch:
    """The account of one epoch of a dataset: a byte a sample, set when it has come."""

    number: int
    dataset: str
    """Its fingerprint."""
    size: int
    """Samples of the dataset."""
    reached: int = 0
    """The count of consumed samples within the epoch up to which this account goes."""
    excluded: int = 0
    """Samples that are said to have been left out for their length."""
    elsewhere: int = 0
    """Samples of which the logs hold nothing, as they say."""
    unreadable: list[int] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._came = np.zeros(self.size, np.bool_)
        self._held: list[int] = []
        self.again: list[int] = []
        """The first ordinals that came more than once."""
        self.strange: list[int] = []
        """The first ordinals that the dataset does not have."""

    def add(self, samples: list[int], unreadable: list[int], left_out: list[int]) -> None:
        """Samples came, in any order."""
        self._held += samples
        self._held += unreadable
        self.unreadable += unreadable
        self.left_out += left_out
        if len(self._held) >= _AT_ONCE:
            self._settle()

    @property
    def came(self) -> int:
        """Samples that came, each counted once."""
        self._settle()
        return int(np.count_nonzero(self._came))

    def missing(self) -> Ordinals:
        """Ordinals of those that did not come."""
        self._settle()
        return np.flatnonzero(~self._came)

    def _settle(self) -> None:
        ordinals = np.array(self._held, np.int64)
        self._held.clear()
        there = ordinals < self.size
        self.strange += ordinals[~there][: _NAMED - len(self.strange)].tolist()
        ordinals = ordinals[there]
        found, times = np.unique(ordinals, return_counts=True)
        self.again += found[(times > 1) | self._came[found]][: _NAMED - len(self.again)].tolist()
        self._came[found] = True
