"""Keys and lengths of samples by their place in the dataset, as far as it can be read."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from shardpipe.dataset import Index
from shardpipe.errors import ShardpipeError

__all__ = ["Names"]


class Names:
    """Of one dataset; without its index, or with that of another one, samples are known by their ordinals alone."""

    def __init__(self, data: object, fingerprint: str | None, schemes: str = "") -> None:
        self._index: Index | None = None
        self.reason = "the run's settings name no dataset"
        """Why there is no index."""
        if isinstance(data, str):
            try:
                index = Index.load(data, schemes=schemes.split(",") if schemes else ())
            except ShardpipeError as error:
                self.reason = str(error)
                return
            if index.fingerprint == fingerprint:
                self._index = index
                self._starts = np.concatenate([[0], np.cumsum(index.counts)])
            else:
                self.reason = f"what lies in {data} now is another dataset"

    def __bool__(self) -> bool:
        return self._index is not None

    def name(self, ordinal: int) -> str:
        """The ordinal and, if it can be found, the key."""
        if self._index is not None and 0 <= ordinal < self._index.num_samples:
            shard = self._shard(ordinal)
            with suppress(ShardpipeError):
                key = self._index.rows(shard).column("key")[int(ordinal - self._starts[shard])].as_py()
                return f"{ordinal} ({key})"
        return str(ordinal)

    def names(self, ordinals: Iterable[int], most: int = 10) -> str:
        """The first few, by name."""
        known = list(ordinals)
        more = f" and {len(known) - most:,} more" if len(known) > most else ""
        return ", ".join(self.name(ordinal) for ordinal in known[:most]) + more

    def lengths(self, ordinals: npt.NDArray[np.int64]) -> np.ndarray | None:
        """Seconds of each, float64; None if they cannot be read."""
        if self._index is None:
            return None
        seconds = np.empty(len(ordinals))
        shards = np.searchsorted(self._starts, ordinals, side="right") - 1
        try:
            for shard in np.unique(shards).tolist():
                here = shards == shard
                seconds[here] = self._index.seconds(shard)[ordinals[here] - self._starts[shard]]
        except ShardpipeError as error:
            self.reason = str(error)
            return None
        return seconds

    def _shard(self, ordinal: int) -> int:
        return int(np.searchsorted(self._starts, ordinal, side="right")) - 1
