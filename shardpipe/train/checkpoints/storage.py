"""Where checkpoints lie: a folder, or a URL that fsspec can write to.

Either way one is written beside or without its marker, which comes last: what has none is no checkpoint, whatever
stopped its writing, and makes way for the next one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from shardpipe.errors import StoreError
from shardpipe.settings import size_text
from shardpipe.store import Store, Uploads, flush, is_url, open_store, write_file, writing
from shardpipe.train.checkpoints.marker import MARKER, Sum, count_of

__all__ = ["PLACE_FIX", "Storage", "storage_at"]

_ASIDE = ".aside"
_STAGED = ".tmp-"
_OLD = "old-"
_OURS = re.compile(r"checkpoint\.json|tensors\.json|rank[0-9]+-[0-9]+\.safetensors")
"""Files that may be removed: a URL may have been meant for something else, or hold something else as well."""
PLACE_FIX = "Check the place of the checkpoints, then run the same command again: it goes on from the last one."
_SPARE = 1 << 20
"""Bytes to leave free beside a checkpoint: for its JSON, and for the run's logs."""


class Storage(Protocol):
    """All raise StoreError. `name` is that of a checkpoint."""

    url: str
    """For messages; it holds no credentials."""

    def names(self) -> list[str]:
        """Of complete checkpoints, and of what else has a marker."""

    def holds(self, name: str, where: str) -> bool:
        """Whether a checkpoint that was read at `where` is the one of that name here."""

    def open(self, name: str) -> Store:
        """To read what lies in a checkpoint."""

    def begin(self, name: str, size: int) -> None:
        """Makes room for a checkpoint of `size` bytes, of which nothing is to be seen before it is complete. What was
        left half written is removed.
        """

    def write(self, name: str, file: str, fill: Callable[[Path], object]) -> Sum:
        """A file of a checkpoint that is begun, which `fill` writes to a path; any process may."""

    def complete(self, name: str, marker: bytes) -> None:
        """Makes what is written a checkpoint, in one step; one of that name is replaced."""

    def abandon(self, name: str) -> None:
        """Removes what is written of a checkpoint that cannot be completed, where that is of no great cost."""

    def mark(self, name: str, marker: bytes) -> None:
        """Replaces a checkpoint's marker, in one step."""

    def remove(self, name: str) -> None:
        """Removes a checkpoint: at first it is none any more."""

    def set_aside(self, name: str) -> str:
        """Moves a checkpoint out of the way, and says where to."""


class _Folder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.url = str(path)

    def names(self) -> list[str]:
        return [marker.parent.name for marker in self._path.glob(f"*/{MARKER}")]

    def holds(self, name: str, where: str) -> bool:
        return not is_url(where) and Path(where).resolve() == (self._path / name).resolve()

    def open(self, name: str) -> Store:
        return open_store(str(self._path / name))

    def begin(self, name: str, size: int) -> None:
        staged = self._staged(name)
        with writing(staged):
            self._clear()
            staged.mkdir(parents=True)
            free = shutil.disk_usage(staged).free
            if free < size + _SPARE:
                staged.rmdir()
                fix = "Make room, keep fewer of them (--keep), or have them elsewhere (--checkpoints)."
                raise StoreError(
                    f"a checkpoint takes {size_text(size)}, and the disk has {size_text(free)} left",
                    url=self.url,
                    fix=f"{fix} Then run the same command again: it goes on from the last one.",
                )

    def write(self, name: str, file: str, fill: Callable[[Path], object]) -> Sum:
        path = self._staged(name) / file
        with writing(path):
            fill(path)
            flush(path)
            return _sum_of(path)

    def complete(self, name: str, marker: bytes) -> None:
        staged, final = self._staged(name), self._path / name
        write_file(staged / MARKER, marker)
        with writing(final):
            flush(staged)
            if final.exists():
                final.replace(self._staged(_OLD + name))
            staged.replace(final)
            flush(self._path)
            self._clear()

    def abandon(self, name: str) -> None:
        shutil.rmtree(self._staged(name), ignore_errors=True)

    def mark(self, name: str, marker: bytes) -> None:
        write_file(self._path / name / MARKER, marker)

    def remove(self, name: str) -> None:
        with writing(self._path / name):
            # A renamed folder cannot be taken for complete.
            (self._path / name).replace(self._staged(_OLD + name))
            self._clear()

    def set_aside(self, name: str) -> str:
        aside = self._path / _ASIDE
        with writing(aside):
            aside.mkdir(exist_ok=True)
            shutil.rmtree(aside / name, ignore_errors=True)
            (self._path / name).replace(aside / name)
        return str(aside)

    def _staged(self, name: str) -> Path:
        return self._path / f"{_STAGED}{name}"

    def _clear(self) -> None:
        for leftover in self._path.glob(f"{_STAGED}*"):
            if count_of(leftover.name.removeprefix(_STAGED).removeprefix(_OLD)) is not None:
                shutil.rmtree(leftover)


class _Url:
    """Files go to their place at once, and what is there without a marker is nothing."""

    def __init__(self, url: str) -> None:
        self._there = Uploads(url, fix=PLACE_FIX)
        self._given = url.rstrip("/")
        self.url = self._there.url

    def names(self) -> list[str]:
        folders = [name for name in self._there.folders() if name != _ASIDE]
        return [name for name in folders if f"{name}/{MARKER}" in self._there.listing(name)]

    def holds(self, name: str, where: str) -> bool:
        return where == f"{self.url}/{name}"

    def open(self, name: str) -> Store:
        return open_store(f"{self._given}/{name}")

    def begin(self, name: str, size: int) -> None:
        del size  # nobody says how much room there is
        for other in {name, *self._there.folders()}:
            left = count_of(other) is not None and f"{other}/{MARKER}" not in self._there.listing(other)
            if other == name or left:
                self.remove(other)

    def write(self, name: str, file: str, fill: Callable[[Path], object]) -> Sum:
        with TemporaryDirectory(prefix="shardpipe-") as folder:
            path = Path(folder) / file
            with writing(path):
                fill(path)
                found = _sum_of(path)
            self._there.put(path, f"{name}/{file}")
        return found

    def complete(self, name: str, marker: bytes) -> None:
        self.mark(name, marker)

    def abandon(self, name: str) -> None:
        pass  # it may well be the network that fails; the next one removes it

    def mark(self, name: str, marker: bytes) -> None:
        self._there.write(marker, f"{name}/{MARKER}")

    def remove(self, name: str) -> None:
        for file in self._marker_first(name):
            self._there.remove(file)

    def set_aside(self, name: str) -> str:
        files = self._marker_first(name)
        for file in reversed(files):
            self._there.copy(file, f"{_ASIDE}/{file}")
        self.remove(name)
        return f"{self.url}/{_ASIDE}"

    def _marker_first(self, name: str) -> list[str]:
        files = [file for file in self._there.listing(name) if _OURS.fullmatch(file.removeprefix(f"{name}/"))]
        return sorted(files, key=lambda file: file != f"{name}/{MARKER}")


def _sum_of(path: Path) -> Sum:
    with path.open("rb") as file:
        return Sum.of(iter(partial(file.read, 1 << 20), b""))


def storage_at(place: str) -> Storage:
    """What a path or a URL names; nothing is looked at. Raises ConfigError for a URL that holds credentials."""
    return _Url(place) if is_url(place) else _Folder(Path(place))
