"""Where a dataset is to lie: a folder of this machine, or a URL. The rest of packing and indexing sees no difference.

It grows in a staging folder, which is always local. For a folder that is DIR/.packing, and all of it stays there until
it is whole. For a URL, a finished shard is uploaded at once and leaves the disk, and what tells of it stays.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Protocol

from shardpipe.dataset import MANIFEST
from shardpipe.errors import ConfigError
from shardpipe.settings import check
from shardpipe.store import (
    Stat,
    Store,
    Uploads,
    flush,
    is_url,
    is_utf8,
    local_path,
    named,
    only_local,
    open_store,
    put_in_place,
    writing,
)

__all__ = ["JOB", "Destination", "destination_at"]

JOB = "index/job.json"
"""Says that shardpipe packed this dataset, from which list and options (a digest), in how many shards. At a URL it is
there from the first shard on, without the number."""
_FOLDER = ".packing"


class Destination(Protocol):
    """A place for one dataset. Every call raises StoreError where the place cannot be reached or written."""

    staging: Path

    @property
    def url(self) -> str:
        """For messages and for opening the dataset."""

    @property
    def store(self) -> Store:
        """For reading what lies there."""

    def listing(self) -> dict[str, Stat]:
        """The files there: the folder's own and those in index/."""

    def claim(self, job: Path) -> None:
        """Makes ready for shards; `job` says whose they are."""

    def keep(self, tar: Path, name: str) -> Stat:
        """Moves a finished shard where it waits for the rest."""

    def kept(self) -> dict[str, Stat]:
        """The finished shards as they are now, among other files."""

    def place(self, staged: Path, name: str) -> None:
        """Moves a staged file to its final place, replacing what is there."""

    def remove(self, names: list[str]) -> None:
        """Removes what of `names` is there."""


class _Folder:
    """A folder of this machine: moving is renaming, so a shard waits in the staging folder until all are there."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.staging = path / _FOLDER

    @property
    def url(self) -> str:
        return str(self._path)

    @property
    def store(self) -> Store:
        return open_store(self._path)

    def listing(self) -> dict[str, Stat]:
        return _files(self._path, "*") | _files(self._path, "index/*")

    def claim(self, job: Path) -> None:
        pass  # nothing comes to the folder itself before all is there

    def keep(self, tar: Path, name: str) -> Stat:
        put_in_place(tar, self.staging / name)
        return self.kept()[name]

    def kept(self) -> dict[str, Stat]:
        return _files(self.staging, "*.tar")

    def place(self, staged: Path, name: str) -> None:
        path = self._path / name
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        put_in_place(staged, path)

    def remove(self, names: list[str]) -> None:
        with writing(self._path):
            for name in names:
                (self._path / name).unlink(missing_ok=True)
            flush(self._path)


class _Url:
    """A place that fsspec can write to: moving is uploading, so a finished shard goes to its final place at once."""

    def __init__(self, url: str, staging: Path) -> None:
        self._uploads = Uploads(url)
        # By the URL, so that the next run finds what this one leaves behind.
        readable = re.sub(r"\W+", "-", self.url).strip("-")[-40:]
        self.staging = staging / f"{readable}-{hashlib.sha256(self.url.encode()).hexdigest()[:12]}"

    @property
    def url(self) -> str:
        return self._uploads.url

    @property
    def store(self) -> Store:
        return self._uploads.store

    def listing(self) -> dict[str, Stat]:
        return self._uploads.listing() | self._uploads.listing("index")

    def claim(self, job: Path) -> None:
        # In this order: a manifest must not tell of shards that are being replaced, and what lies there without a
        # manifest must be known for ours, even where this staging folder is lost.
        self._uploads.put(job, JOB)
        self.remove([MANIFEST])

    def keep(self, tar: Path, name: str) -> Stat:
        found = self._uploads.put(tar, name)
        with writing(tar):
            tar.unlink()
        return found

    def kept(self) -> dict[str, Stat]:
        return self._uploads.listing()

    def place(self, staged: Path, name: str) -> None:
        self.keep(staged, name)

    def remove(self, names: list[str]) -> None:
        present = self.listing()
        for name in names:
            if name in present:
                self._uploads.remove(name)


def _files(folder: Path, pattern: str) -> dict[str, Stat]:
    """Without versions: a rename keeps a file as it is, and its time says nothing more."""
    return {path.relative_to(folder).as_posix(): Stat(path.lstat().st_size, "") for path in folder.glob(pattern)}


def destination_at(out: str | os.PathLike[str], staging: str | os.PathLike[str] | None) -> Destination:
    """The destination that a user names. Raises ConfigError for a URL that holds credentials."""
    shown = named("out", out)
    check("out", shown, is_utf8(shown), "its path must be UTF-8")
    if not is_url(shown):
        if staging is not None:
            found = only_local("staging", staging)
            raise ConfigError("staging", found, f"{shown} is a folder of this machine, which needs none")
        return _Folder(Path(local_path(shown)))
    return _Url(shown, Path(only_local("staging", "~/.cache/shardpipe/packing" if staging is None else staging)))
