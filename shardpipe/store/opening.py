"""From what a user gives as a dataset's place to its store."""

from __future__ import annotations

import os

from shardpipe.errors import ConfigError
from shardpipe.store.base import Store
from shardpipe.store.local import LocalStore
from shardpipe.store.places import is_url, local_path, named
from shardpipe.store.redact import shown_url
from shardpipe.store.remote import FsspecStore

__all__ = ["open_store"]


def open_store(data: str | os.PathLike[str] | Store) -> Store:
    """The store for a directory, a `file://` or other fsspec URL, or a store itself.

    Raises ConfigError and StoreError.
    """
    if isinstance(data, Store):
        return data
    url = named("data", data)
    if url.startswith("shardpipe+"):
        fix = "Have a ShardLoader or shardpipe-train ask it; for all else give the place where the dataset lies."
        raise ConfigError("data", shown_url(url), "a service makes batches, and gives no files", fix=fix)
    return FsspecStore(url) if is_url(url) else LocalStore(local_path(url))
