"""Stores for tests: each stands before another one and counts, slows down or breaks its reads."""

from shardpipe.store.testing.counting import CountingStore
from shardpipe.store.testing.failing import FailingStore, Fault
from shardpipe.store.testing.slow import SlowStore

__all__ = ["CountingStore", "FailingStore", "Fault", "SlowStore"]
