"""What a store is, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, runtime_checkable

from shardpipe.errors import StoreError
from shardpipe.store.faults import may_pass, told_fault
from shardpipe.store.redact import safe_cause, scrub

__all__ = ["Over", "Stat", "Store", "as_store_error", "close", "whole"]


class Stat(NamedTuple):
    """What a store knows of a file without reading it."""

    size: int
    """In bytes."""
    version: str
    """Another one whenever the content is another: an object's ETag, a file's time of change."""


@runtime_checkable
class Store(Protocol):
    """What the read side needs of a place that holds a dataset. Safe to call from many threads."""

    @property
    def url(self) -> str:
        """The root, for messages; it holds no credentials."""

    @property
    def parallel(self) -> int:
        """Reads worth having under way at once: 1 where one waits for nothing, many where each takes a round trip."""

    def stat(self, name: str) -> Stat:
        """Size and version of `name` as they are now. Raises StoreError."""

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """`length` bytes of `name` from `offset`, the rest of it if None. Raises StoreError, on a short read too."""


class Over:
    """What a store that stands before another one passes on."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def parallel(self) -> int:
        return self._inner.parallel

    def close(self) -> None:
        close(self._inner)


def close(store: Store) -> None:
    """Has a store let go of what it keeps open for the next read, if it has a `close`; it may be read from again."""
    getattr(store, "close", lambda: None)()


def whole(data: bytes, url: str, offset: int, length: int, *, transient: bool = False) -> bytes:
    """`data`, if it is as long as it was asked to be. `transient` says whether another attempt may bring the rest."""
    if len(data) == length:
        return data
    fix = "The file is shorter than its index says: run `shardpipe verify` on the dataset."
    if transient:
        fix = "The connection ends early: check the network, and proxies on the way."
    elif len(data) > length:
        fix = "What serves the file ignores ranges of bytes: serve it by something that knows them."
    raise StoreError(f"asked for {length} bytes at {offset}, got {len(data)}", url=url, fix=fix, transient=transient)


@contextmanager
def as_store_error(
    url: str, secrets: frozenset[str] = frozenset(), *, done: str = "read", fix: str = ""
) -> Iterator[None]:
    """Turns what a file system raises into a StoreError, which says whether it may pass and quotes no secret.

    `done` says what was to be done, `fix` what to do next where that does not depend on what went wrong.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        # Not only OSError: file systems raise what their client libraries do, missing credentials for instance.
        fault = told_fault(error)
        transient = may_pass(fault)
        if isinstance(fault, FileNotFoundError) and done == "read":
            what, advice = "there is no such file", "Check the path, and that the dataset is whole."
        else:
            what = f"cannot be {done} ({scrub(str(fault).strip() or type(fault).__name__, secrets)})"
            advice = "Check the network and the server." if transient else "Check the path and the permissions."
            if isinstance(fault, ImportError):
                advice = "What reads such URLs comes with a package of its own."
        raise StoreError(what, url=url, fix=fix or advice, transient=transient) from safe_cause(error, secrets)
