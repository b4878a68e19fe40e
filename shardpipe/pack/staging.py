"""DIR/.packing: where a dataset grows until it is whole, so that DIR never holds half of one.

Everything is written under .packing first. Publishing it is a row of renames, the manifest last; whichever of them was
the last to happen, the next command that writes to DIR goes on from there.
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

from shardpipe.errors import StoreError
from shardpipe.index import MANIFEST, SHARD_LIST
from shardpipe.publish import flush, publish, write_file, writing

__all__ = ["JOB", "REJECTED", "Staging", "occupied", "shard_name"]

REJECTED = "rejected.jsonl"
JOB = "index/job.json"
"""Says that shardpipe packed this dataset, from which list and options (a digest), in how many shards."""
_FOLDER = ".packing"
_LOCK = "lock"
_JOB = "job.json"
_PUBLISHING = "publishing"


def shard_name(number: int) -> str:
    """The name of a packed shard."""
    return f"shard-{number:06d}.tar"


class Staging:
    """The staging folder of `out`, locked against a second writer."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out / _FOLDER
        self.has_finished_earlier = False
        """Whether opening it finished the publishing that an earlier process had begun."""

    @classmethod
    @contextmanager
    def open(cls, out: Path) -> Iterator[Staging]:
        """Makes and locks the folder. Afterwards, also after an error, unfinished files are gone; finished ones stay.

        Raises StoreError if another process holds it or it cannot be made.
        """
        made = not out.exists()
        staging = cls(out)
        with writing(staging.path):
            lock = _lock(staging.path / _LOCK)
        try:
            if (staging.path / _PUBLISHING).exists():
                staging._finish()
                staging.has_finished_earlier = True
            staging._sweep()
            yield staging
        finally:
            staging._sweep()
            if not any(staging.path.glob("shard-*")) and not (staging.path / _PUBLISHING).exists():
                shutil.rmtree(staging.path, ignore_errors=True)
            if made:
                with suppress(OSError):  # not empty: there is something to keep
                    out.rmdir()
            os.close(lock)

    @property
    def job(self) -> str | None:
        """The digest of the job that this folder was made for."""
        return _digest(self.path / _JOB)

    @property
    def packed(self) -> str | None:
        """The digest of the job that made the dataset in `out`; None if shardpipe did not pack it."""
        return _digest(self.out / JOB)

    def begin(self, digest: str) -> None:
        """Empties the folder for a new job."""
        self.remove()
        write_file(self.path / _JOB, json.dumps({"digest": digest}).encode())

    def check_free(self, *, overwrite: bool) -> None:
        """Raises StoreError unless a dataset may be packed into `out`: files of others are never touched."""
        self.check_index_free(overwrite=overwrite)
        ours = self.old_index() | self.old_shards() if (self.out / MANIFEST).exists() else set()
        tars = (path.name for path in self.out.glob("shard-*.tar") if re.fullmatch(r"shard-\d{6,}\.tar", path.name))
        for name in (*sorted(tars), SHARD_LIST):
            if name not in ours and (self.out / name).exists():
                raise _foreign(self.out, name)

    def check_index_free(self, *, overwrite: bool) -> None:
        """Raises StoreError unless an index may be put into `out`, whatever tars lie there."""
        if (self.out / MANIFEST).exists():
            if not overwrite:
                raise occupied(self.out, "it holds another dataset", "Choose another folder, or pass --overwrite.")
        else:
            for name in sorted(self.old_index() - {SHARD_LIST}):
                if (self.out / name).exists():
                    raise _foreign(self.out, name)

    def publish(self, names: list[str], *, stale: set[str]) -> None:
        """Moves the named files into `out`, the manifest last, and removes what `stale` names of an older dataset.

        Until here the older dataset is whole.
        """
        assert names[-1] == MANIFEST
        plan = {"names": names, "stale": sorted(stale - set(names))}
        write_file(self.path / _PUBLISHING, json.dumps(plan).encode())
        self._finish()

    def _finish(self) -> None:
        plan = json.loads((self.path / _PUBLISHING).read_bytes())
        if (self.path / MANIFEST).exists():
            with writing(self.out):
                (self.out / MANIFEST).unlink(missing_ok=True)
                (self.out / "index").mkdir(exist_ok=True)
                flush(self.out)
                for name in plan["stale"]:
                    (self.out / name).unlink(missing_ok=True)
            for name in plan["names"]:
                if (self.path / name).exists():
                    publish(self.path / name, self.out / name)
        self.remove()

    def remove(self) -> None:
        """Empties the folder. What says that publishing has begun goes last, so that the removal can be finished."""
        with writing(self.path):
            for path in sorted(self.path.iterdir(), key=lambda path: (path.name == _PUBLISHING, path.name == _JOB)):
                if path.name != _LOCK:
                    _remove(path)

    def old_index(self) -> set[str]:
        """The files of the index in `out`, but for its manifest."""
        return {*(f"index/{path.name}" for path in self.out.glob("index/part-*.parquet")), SHARD_LIST, REJECTED, JOB}

    def old_shards(self) -> set[str]:
        """The shards in `out`, if shardpipe packed them."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return {shard_name(number) for number in range(int(json.loads((self.out / JOB).read_bytes())["shards"]))}
        return set()

    def _sweep(self) -> None:
        """Removes what was not finished: a shard is once its rows lie beside it."""
        if (self.path / _PUBLISHING).exists():
            return
        for path in self.path.iterdir():
            finished = re.fullmatch(r"shard-\d+\.(tar|parquet)", path.name) and path.with_suffix(".parquet").exists()
            if not finished and path.name not in (_LOCK, _JOB):
                _remove(path)


def _lock(path: Path) -> int:
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
            raise occupied(
                path.parent.parent, "another process is writing there", "Wait until it has ended, or stop it."
            ) from None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # removed while we waited for it


def _digest(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_bytes())["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def occupied(out: Path, what: str, fix: str) -> StoreError:
    """The error of a folder that cannot be written to because of what it holds."""
    return StoreError(what, url=str(out), fix=fix)


def _foreign(out: Path, name: str) -> StoreError:
    return occupied(
        out,
        f"{name} lies there, which shardpipe did not write",
        "Choose another folder, or move such files away: --overwrite does not touch them.",
    )
