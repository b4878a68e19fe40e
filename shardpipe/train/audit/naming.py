"""Keys and lengths of samples by their place in the dataset, as far as it can be read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property

import numpy as np
import numpy.typing as npt

from shardpipe.dataset import Index
from shardpipe.errors import ShardpipeError

__all__ = ["Names"]


class Names:
    """Of one dataset; without its index, or with that of another one, samples are known by their ordinals alone. It is
    opened when the first one is to be named.
    """

    def __init__(self, data: object, fingerprint: str, schemes: object) -> None:
        self._fingerprint = fingerprint
        self._data = data
        self._schemes = schemes.split(",") if isinstance(schemes, str) and schemes else ()
        self.reason = "the run's settings name no dataset"
        """Why there is no index."""

    @cached_property
    def _index(self) -> Index | None:
        if not isinstance(self._data, str):
            return None
        try:
            index = Index.load(self._data, schemes=self._schemes)
        except ShardpipeError as error:
            self.reason = str(error)
            return None
        if index.fingerprint == self._fingerprint:
            return index
        self.reason = f"what lies in {self._data} now is another dataset"
        return None

    @cached_property
    def _starts(self) -> npt.NDArray[np.int64]:
        """The first ordinal of each shard, and that after the last."""
        assert self._index is not None
        return np.concatenate([[0], np.cumsum(self._index.counts)])

    def name(self, ordinal: int) -> str:
        """The ordinal and, if it can be found, the key."""
        if self._index is not None and 0 <= ordinal < self._index.num_samples:
            shard = int(np.searchsorted(self._starts, ordinal, side="right")) - 1
            with suppress(ShardpipeError):
                key = self._index.rows(shard).column("key")[int(ordinal - self._starts[shard])].as_py()
                return f"{ordinal} ({key})"
        return str(ordinal)

    def names(self, ordinals: Sequence[int] | npt.NDArray[np.int64], most: int = 10) -> str:
        """The first few, by name."""
        more = f" and {len(ordinals) - most:,} more" if len(ordinals) > most else ""
        return ", ".join(self.name(int(ordinal)) for ordinal in ordinals[:most]) + more

    def lengths(self, ordinals: npt.NDArray[np.int64]) -> npt.NDArray[np.float64] | None:
        """Seconds of each of some ascending ordinals; None if they cannot be read."""
        if self._index is None or (len(ordinals) and int(ordinals[-1]) >= self._index.num_samples):
            return None
        seconds = np.empty(len(ordinals))
        edges = np.searchsorted(ordinals, self._starts)
        try:
            for shard in np.flatnonzero(np.diff(edges)).tolist():
                here = slice(edges[shard], edges[shard + 1])
                seconds[here] = self._index.seconds(shard)[ordinals[here] - self._starts[shard]]
        except ShardpipeError as error:
            self.reason = str(error)
            return None
        return seconds
