"""What a server counts, for Prometheus and for `shardpipe top`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Metrics:
    """Counters by dataset, in a registry of their own; those of `datasets` are there from the start."""

    def __init__(self, datasets: Iterable[str] = ()) -> None:
        self._registry = registry = CollectorRegistry()
        by = ["dataset"]
        self.batches = Counter("shardpipe_batches", "Batches sent.", by, registry=registry)
        self.samples = Counter("shardpipe_samples", "Samples of the batches sent.", by, registry=registry)
        self.bytes = Counter("shardpipe_bytes", "Bytes of the batches sent.", by, registry=registry)
        self.hits = Counter(
            "shardpipe_cache_hits", "Batches that were made already, or being made for others.", by, registry=registry
        )
        self.making = Histogram(
            "shardpipe_making_seconds", "Seconds to make a batch.", by, registry=registry, buckets=_SECONDS
        )
        self.refusals = Counter(
            "shardpipe_refusals", "Requests that got nothing, by HTTP status.", ["status"], registry=registry
        )
        for name in datasets:  # a rate from nothing to 1 is none
            for counter in (self.batches, self.samples, self.bytes, self.hits, self.making):
                counter.labels(name)
        self.connections = Gauge("shardpipe_connections", "Connections that are open.", registry=registry)
        self._queue = Gauge("shardpipe_queue", "Batches being made, or waiting to be.", registry=registry)
        self._used = Gauge("shardpipe_memory_bytes", "Bytes of batches being made or sent.", registry=registry)
        self._kept = Gauge("shardpipe_kept_bytes", "Bytes of batches that are kept for others.", registry=registry)

    def watch(self, *, queue: Callable[[], float], used: Callable[[], float], kept: Callable[[], float]) -> None:
        """What is asked whenever somebody looks."""
        self._queue.set_function(queue)
        self._used.set_function(used)
        self._kept.set_function(kept)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
