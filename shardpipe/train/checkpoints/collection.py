"""The checkpoints of a run: which there are, which is the newest, which are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import msgspec

from shardpipe.errors import StoreError
from shardpipe.train.checkpoints.keeping import Keep, kept
from shardpipe.train.checkpoints.marker import Checkpoint, Progress, count_of, marker_of, name_of
from shardpipe.train.checkpoints.reading import looks_whole, peek, verify
from shardpipe.train.checkpoints.storage import storage_at

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints of one run, in a folder or at a URL, by their counts of consumed samples."""

    def __init__(self, place: str, *, keep: Keep) -> None:
        self.storage = storage_at(place)
        self.keep = keep
        self._damaged: set[int] = set()

    @property
    def url(self) -> str:
        """For messages."""
        return self.storage.url

    def counts(self) -> list[int]:
        """The counts of consumed samples at which there is a complete checkpoint, ascending."""
        return sorted(count for name in self.storage.names() if (count := count_of(name)) is not None)

    def peek(self, consumed_samples: int) -> Checkpoint:
        """What the one there says; its files are not looked at. Raises StoreError."""
        return peek(self.storage.open(name_of(consumed_samples)))

    def read(self, consumed_samples: int) -> Checkpoint:
        """The one there, if it is as it was written. Raises StoreError."""
        try:
            return verify(self.peek(consumed_samples))
        except StoreError as error:
            if not error.transient:
                self._damaged.add(consumed_samples)
            raise

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest one that is as it was written; those passed over are reported to `say`. Raises StoreError where
        that cannot be told.
        """
        for count in reversed(self.counts()):
            try:
                return self.read(count)
            except StoreError as error:
                if error.transient:
                    raise
                say(f"passed over {error.where}: it {error.what}")
        return None

    def whole(self) -> dict[int, Checkpoint]:
        """Those that seem to be whole, ascending by their counts."""
        return self._whole(self.counts())

    def _whole(self, counts: Iterable[int]) -> dict[int, Checkpoint]:
        found = {}
        for count in counts:
            try:
                checkpoint = self.peek(count)
            except StoreError as error:
                if error.transient:
                    raise
                continue
            if count not in self._damaged and looks_whole(checkpoint):
                found[count] = checkpoint
        return found

    def holds(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint that was read is one of these."""
        return self.storage.holds(name_of(checkpoint.consumed_samples), checkpoint.where)

    def written(self, consumed_samples: int) -> None:
        """Takes note that the one there has just been written."""
        self._damaged.discard(consumed_samples)

    def mark_evaluated(self, consumed_samples: int, progress: Progress, valid: Mapping[str, float | None]) -> None:
        """Notes in the one there that the evaluation it was waiting for is done, and what came of it."""
        found = self.peek(consumed_samples)
        marked = replace(found, progress=progress, valid=valid)
        if found.format == 1:  # it has room for no more than that, and what decides the rate is to be found again
            if progress.plateau is not None:
                return
            marked = replace(found, progress=msgspec.structs.replace(found.progress, evaluated=True))
        self.storage.mark(name_of(consumed_samples), marker_of(marked))

    def set_aside(self, counts: Iterable[int]) -> str:
        """Moves those there out of the way, and says where they are."""
        where = [self.storage.set_aside(name_of(count)) for count in counts]
        return where[0] if where else ""

    def prune(self, saved: int) -> None:
        """Deletes what need not be kept: what is older than the one just saved and than the newest that are whole, and
        is kept for no other reason.
        """
        counts = self.counts()
        whole = self._whole(counts)
        oldest = min([saved, *list(whole)[-self.keep.newest :]])
        reasons = kept(whole, self.keep)
        for count in counts:
            if count < oldest and count not in reasons:
                self.storage.remove(name_of(count))
