"""A checkpoint that is there: what it says, and whether its files are as they were written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from shardpipe.errors import StoreError
from shardpipe.store import Store, close, open_store
from shardpipe.train.checkpoints.marker import FIX, MARKER, Checkpoint, Sum, damaged, parse_marker

__all__ = ["looks_whole", "peek", "read_checkpoint", "read_file", "verify"]

_BLOCK = 16 << 20  # bytes
_LONGEST = 64 << 20
"""Bytes of a checkpoint.json, whose files may be some hundred thousand."""


def peek(store: Store) -> Checkpoint:
    """What the checkpoint there says; its files are not looked at. Raises StoreError if it is none."""
    try:
        size = store.stat(MARKER).size
        data = store.read(MARKER, 0, size) if size <= _LONGEST else b""
    except StoreError as error:
        if error.transient:
            raise
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise StoreError("is no complete checkpoint", url=store.url, fix=FIX) from error
        raise damaged(store.url, f"{MARKER} cannot be read ({error.what})") from error
    if size > _LONGEST:
        raise damaged(store.url, f"{MARKER} has {size} bytes")
    return replace(parse_marker(data, store.url), store=store)


def verify(checkpoint: Checkpoint) -> Checkpoint:
    """The same, if every file of it has the size and the checksum that were written. Raises StoreError."""
    store = checkpoint.store
    assert store is not None
    try:
        for name, written in checkpoint.files.items():
            with _as_damage(checkpoint, name):
                found = Sum.of(_blocks(store, name))
            _check(checkpoint, name, found, written)
    finally:
        close(store)
    return checkpoint


def read_checkpoint(place: str) -> Checkpoint:
    """The checkpoint at a path or a URL, its files checked. Raises StoreError if it is none, or not as written."""
    return verify(peek(open_store(place)))


def read_file(checkpoint: Checkpoint, name: str) -> bytes:
    """A file of a checkpoint, as it was written. Raises StoreError."""
    assert checkpoint.store is not None
    written = checkpoint.files[name]
    with _as_damage(checkpoint, name):
        # What has grown since it was checked may be of any size.
        data = checkpoint.store.read(name, 0, min(written.size, checkpoint.store.stat(name).size))
    _check(checkpoint, name, Sum.of([data]), written)
    return data


def looks_whole(checkpoint: Checkpoint) -> bool:
    """Whether its files are all there, of their size: what can be told of it without reading it all. Raises StoreError
    where that cannot be told.
    """
    assert checkpoint.store is not None
    try:
        return all(checkpoint.store.stat(name).size == written.size for name, written in checkpoint.files.items())
    except StoreError as error:
        if error.transient:
            raise
        return False


def _blocks(store: Store, name: str) -> Iterator[bytes]:
    size = store.stat(name).size
    for offset in range(0, size, _BLOCK):
        yield store.read(name, offset, min(_BLOCK, size - offset))


def _check(checkpoint: Checkpoint, name: str, found: Sum, written: Sum) -> None:
    if found != written:
        what = f"{name} has {found.size} bytes and checksum {found.crc32:08x}"
        what += f", not the {written.size} and {written.crc32:08x} that were written"
        raise damaged(checkpoint.where, what)


@contextmanager
def _as_damage(checkpoint: Checkpoint, name: str) -> Iterator[None]:
    """Around what reads a file: one that is not there or cannot be read is damage, a fault that may pass is none."""
    try:
        yield
    except StoreError as error:
        if error.transient:
            raise
        raise damaged(checkpoint.where, f"{name} cannot be read ({error.what})") from error
