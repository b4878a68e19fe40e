"""The staging folder: where a dataset grows until it is whole, so that no reader ever finds half of one.

Everything is written here first. Publishing is a row of moves to the destination, the manifest last; whichever of them
was the last to happen, the next command that writes to the destination goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from shardpipe.dataset import MANIFEST
from shardpipe.errors import StoreError
from shardpipe.pack.contents import is_ours
from shardpipe.pack.destination import Destination
from shardpipe.store import parsed, write_file, writing

__all__ = ["Staging"]

_LOCK = "lock"
_JOB = "job.json"
_PUBLISHING = "publishing"


class _Job(msgspec.Struct):
    digest: str


class _Publishing(msgspec.Struct):
    names: list[str]
    stale: list[str]


class Staging:
    """The staging folder of a destination, locked against a second writer."""

    def __init__(self, destination: Destination) -> None:
        self.destination = destination
        self.path = destination.staging
        self.has_finished_earlier = False
        """Whether opening it finished the publishing that an earlier process had begun."""

    @classmethod
    @contextmanager
    def open(cls, destination: Destination) -> Iterator[Staging]:
        """Makes and locks the folder. Afterwards, also after an error, unfinished files are gone; finished ones stay.

        Raises StoreError if another process holds it or it cannot be made.
        """
        staging = cls(destination)
        around = staging.path.parent
        made = not around.exists()
        with writing(staging.path):
            lock = _lock(staging.path / _LOCK, destination.url)
        try:
            if (staging.path / _PUBLISHING).exists():
                staging._finish()
                staging.has_finished_earlier = True
            staging._sweep()
            yield staging
        finally:
            staging._sweep()
            if not list(staging.path.glob("shard-*")) and not (staging.path / _PUBLISHING).exists():
                shutil.rmtree(staging.path, ignore_errors=True)
            if made:
                with suppress(OSError):  # not empty: there is something to keep
                    around.rmdir()
            os.close(lock)

    @property
    def job(self) -> str | None:
        """The digest of the job that this folder was made for."""
        try:
            return parsed((self.path / _JOB).read_bytes(), _Job).digest
        except (OSError, ValueError):
            return None

    def begin(self, digest: str) -> None:
        """Makes folder and destination ready for a job, be it new or the one they were made for."""
        if self.job != digest:
            self.remove()
            write_file(self.path / _JOB, json.dumps({"digest": digest}).encode())
        self.destination.claim(self.path / _JOB)

    def publish(self, names: list[str], *, stale: set[str]) -> None:
        """Moves the named files to the destination, the manifest last, and removes what `stale` names of an older
        dataset.
        """
        assert names[-1] == MANIFEST
        plan = {"names": names, "stale": sorted(stale - set(names))}
        write_file(self.path / _PUBLISHING, json.dumps(plan).encode())
        self._finish()

    def _finish(self) -> None:
        plan = self._plan()
        if (self.path / MANIFEST).exists():
            self.destination.remove([MANIFEST])
            self.destination.remove(plan.stale)
            for name in plan.names:
                if name == MANIFEST:
                    self._check_all_there(plan.names)
                if (self.path / name).exists():
                    self.destination.place(self.path / name, name)
        self.remove()

    def _plan(self) -> _Publishing:
        """What publishing is to do: nothing to files that are not ours, whoever wrote it down."""
        path = self.path / _PUBLISHING
        try:
            plan = parsed(path.read_bytes(), _Publishing)
            if strange := [name for name in (*plan.names, *plan.stale) if not is_ours(name)]:
                raise ValueError(f"it names {strange[0]!r}")
        except ValueError as error:
            fix = f"Remove {self.path}, and run the same command again."
            raise StoreError(f"it is not what packing writes there ({error})", url=str(path), fix=fix) from error
        return plan

    def _check_all_there(self, names: list[str]) -> None:
        if lost := sorted(set(names) - {MANIFEST, *self.destination.listing()}):
            with writing(self.path):
                (self.path / _PUBLISHING).unlink()
            fix = "Run the same command again: what is lost is made again."
            raise StoreError(f"{lost[0]} is not there any more", url=self.destination.url, fix=fix)

    def remove(self) -> None:
        """Empties the folder. What says that publishing has begun goes last, so that the removal can be finished."""
        with writing(self.path):
            for path in sorted(self.path.iterdir(), key=lambda path: (path.name == _PUBLISHING, path.name == _JOB)):
                if path.name != _LOCK:
                    _remove(path)

    def _sweep(self) -> None:
        """Removes what was not finished: a shard is once its rows lie beside it."""
        if (self.path / _PUBLISHING).exists():
            return
        for path in self.path.iterdir():
            finished = re.fullmatch(r"shard-\d+\.(tar|parquet)", path.name) and path.with_suffix(".parquet").exists()
            if not finished and path.name not in (_LOCK, _JOB):
                _remove(path)


def _lock(path: Path, url: str) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # the holder before us is just removing the folder: make it again
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            fix = "Wait until it has ended, or stop it."
            raise StoreError("another process is writing there", url=url, fix=fix) from None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed while we waited for it


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
