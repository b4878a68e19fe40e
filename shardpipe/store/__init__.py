"""Byte ranges of a dataset, wherever it lies. The only package that knows fsspec.

A store is rooted at a dataset's folder; names are relative to it, as the manifest writes them, or absolute.
"""

from shardpipe.runtime.stopping import abandon_when, abandoned, pool
from shardpipe.store.base import Over, Stat, Store, close
from shardpipe.store.local import LocalStore
from shardpipe.store.opening import open_store
from shardpipe.store.remote.reading import FsspecStore
from shardpipe.store.resolving import resolving
from shardpipe.store.retry import Retry, RetryingStore
from shardpipe.store.testing.counting import CountingStore
from shardpipe.store.testing.failing import FailingStore, Fault
from shardpipe.store.testing.slow import SlowStore
from shardpipe.store.urls import shown_in

__all__ = [
    "CountingStore",
    "FailingStore",
    "Fault",
    "FsspecStore",
    "LocalStore",
    "Over",
    "Retry",
    "RetryingStore",
    "SlowStore",
    "Stat",
    "Store",
    "abandon_when",
    "abandoned",
    "close",
    "open_store",
    "pool",
    "resolving",
    "shown_in",
]
