"""Writing files so that a reader, or a run after a crash, never sees half of one.

Every file of a dataset is written beside its place, flushed to the disk and renamed; a rename is the commit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardpipe.errors import StoreError

__all__ = ["flush", "put_in_place", "write_file", "writing"]


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the OSError of a write to `path` into a StoreError that says what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            what, fix = "the disk is full", "Make room and run the same command again: what is finished is kept."
        else:
            what = f"cannot be written ({error.strerror or error})"
            fix = "Check the path and the permissions, then run the same command again."
        raise StoreError(what, url=os.fspath(path), fix=fix) from error


def flush(path: str | os.PathLike[str]) -> None:
    """Brings a file's bytes, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(staged: Path, final: Path) -> None:
    """Moves a written and closed file into its place, replacing what is there; durable on return."""
    with writing(final):
        flush(staged)
        staged.replace(final)
        flush(final.parent)


def write_file(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step."""
    staged = path.with_name(path.name + ".new")
    try:
        with writing(path):
            staged.write_bytes(data)
        put_in_place(staged, path)
    except StoreError:
        with suppress(OSError):
            staged.unlink()  # it takes room where there may be none left
        raise
