"""What lies at a destination already: whose it is, and whether it may be replaced.

Files of others are never touched.
"""

from __future__ import annotations

import re

import msgspec

from shardpipe.dataset import MANIFEST, SHARD_LIST
from shardpipe.errors import StoreError
from shardpipe.pack.destination import JOB, Destination
from shardpipe.store import Count, parsed

__all__ = ["REJECTED", "Contents", "another_unfinished", "is_ours", "shard_name", "unfinished"]

REJECTED = "rejected.jsonl"

_SHARD = re.compile(r"shard-\d{6,}\.tar")
_PART = re.compile(r"index/part-\d{5,}\.parquet")


def is_ours(name: str) -> bool:
    """Whether a file of this name is one that packing and indexing write."""
    known = (MANIFEST, SHARD_LIST, REJECTED, JOB)
    return name in known or _SHARD.fullmatch(name) is not None or _PART.fullmatch(name) is not None


def shard_name(number: int) -> str:
    """The name of a packed shard."""
    return f"shard-{number:06d}.tar"


def unfinished(url: str) -> StoreError:
    """The error of a place that cannot take an index, for a pack is to go on there."""
    fix = "Finish that first, or choose another place."
    return StoreError("it holds an unfinished pack", url=url, fix=fix)


def another_unfinished(url: str) -> StoreError:
    """The error of a place that cannot take a pack, for another one is to go on there."""
    fix = "Run that command again to finish it, choose another place, or pass --overwrite to drop it."
    return StoreError("it holds an unfinished pack of another list or other options", url=url, fix=fix)


class Contents:
    """The files at a destination, as they were when this was made. Raises StoreError."""

    def __init__(self, destination: Destination) -> None:
        self._url = destination.url
        self._names = set(destination.listing())
        self._job = _job(destination) if JOB in self._names else _Job()

    @property
    def packed(self) -> str | None:
        """The digest of the job that made the dataset; None if there is none, or shardpipe did not pack it."""
        return self._digest if MANIFEST in self._names and self._shards is not None else None

    @property
    def index(self) -> set[str]:
        """The files of an index, but for its manifest."""
        return {name for name in self._names if _PART.fullmatch(name) or name in (SHARD_LIST, REJECTED, JOB)}

    @property
    def shards(self) -> set[str]:
        """The shards that shardpipe packed, be they of a dataset or of an unfinished pack."""
        if self._digest is None:
            return set()
        if self._shards is None:
            return self._tars
        # Not by counting up to a number that stands in a file.
        return {name for name in self._tars if int(name[len("shard-") : -len(".tar")]) < self._shards}

    def check_free(self, digest: str, *, overwrite: bool) -> None:
        """Raises StoreError unless the job of this digest may be packed here."""
        if MANIFEST in self._names or self._digest is None:
            self.check_index_free(overwrite=overwrite)
        elif self._digest != digest and not overwrite:
            raise another_unfinished(self._url)
        ours = self.index | self.shards if MANIFEST in self._names or self._digest is not None else set[str]()
        for name in (*sorted(self._tars), SHARD_LIST):
            if name in self._names and name not in ours:
                raise self._foreign(name)

    def check_index_free(self, *, overwrite: bool) -> None:
        """Raises StoreError unless an index may be put here, whatever tars lie here."""
        if MANIFEST in self._names:
            if not overwrite:
                fix = "Choose another place, or pass --overwrite."
                raise StoreError("it holds another dataset", url=self._url, fix=fix)
        elif self._digest is not None and self._shards is None:
            raise unfinished(self._url)
        else:
            for name in sorted(self.index - {SHARD_LIST}):
                raise self._foreign(name)

    @property
    def _tars(self) -> set[str]:
        return {name for name in self._names if _SHARD.fullmatch(name)}

    @property
    def _digest(self) -> str | None:
        return self._job.digest

    @property
    def _shards(self) -> int | None:
        """How many the finished job packed; None for an unfinished one."""
        return self._job.shards

    def _foreign(self, name: str) -> StoreError:
        return StoreError(
            f"{name} lies there, which shardpipe did not write",
            url=self._url,
            fix="Choose another place, or move such files away: --overwrite does not touch them.",
        )


class _Job(msgspec.Struct):
    digest: str | None = None
    shards: Count | None = None


def _job(destination: Destination) -> _Job:
    try:
        return parsed(destination.store.read(JOB), _Job)
    except ValueError:
        return _Job()
