"""A dataset whose index lies in one place and whose shards lie in others."""

from __future__ import annotations

from collections.abc import Iterable

from shardpipe.errors import StoreError
from shardpipe.store.base import Over, Stat, Store, close
from shardpipe.store.opening import open_store
from shardpipe.store.places import is_url
from shardpipe.store.urls import scheme_of

__all__ = ["resolving"]


_PLAIN = frozenset({"abfs", "abfss", "az", "gcs", "gs", "http", "https", "memory", "s3", "s3a"})
"""A URL of these is a file on a server, or in this process's memory, and nothing else: no file of this machine, no file
within another one, no program."""


def resolving(store: Store, names: Iterable[str], schemes: Iterable[str] = ()) -> Store:
    """The store itself, or one that opens as well those of `names` that are URLs of a kind which it does not know.

    Whoever made a dataset chose the names. So their schemes must be the store's own, plain ones, or among `schemes`,
    which the user names; and one that is opened is no chain of fsspec's. Raises StoreError.
    """
    own = scheme_of(store.url)
    allowed = {own, "", *_PLAIN, *schemes}
    elsewhere: dict[str, Store] = {}
    for name in names:
        scheme = scheme_of(name)
        if scheme not in allowed or (scheme not in (own, *schemes) and "::" in name):
            raise StoreError(
                f"a shard is named by {scheme}://, which may lead anywhere",
                url=store.url,
                fix=f"If you trust whoever made the dataset, allow {scheme!r}, by `--scheme` or `schemes=`.",
            )
        if is_url(name) and scheme not in (own, *elsewhere):
            elsewhere[scheme] = open_store(name.rpartition("/")[0])
    return _ResolvingStore(store, elsewhere) if elsewhere else store


class _ResolvingStore(Over):
    """A store, and for every scheme of absolute names beyond it another one."""

    def __init__(self, inner: Store, elsewhere: dict[str, Store]) -> None:
        super().__init__(inner)
        self._elsewhere = elsewhere

    @property
    def parallel(self) -> int:
        return max(store.parallel for store in (self._inner, *self._elsewhere.values()))

    def close(self) -> None:
        for store in (self._inner, *self._elsewhere.values()):
            close(store)

    def stat(self, name: str) -> Stat:
        return self._of(name).stat(name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._of(name).read(name, offset, length)

    def _of(self, name: str) -> Store:
        return self._elsewhere.get(scheme_of(name), self._inner)
