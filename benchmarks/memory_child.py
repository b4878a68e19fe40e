"""A training process's share of the loader: epochs with the memory noted, or what is made ahead of a slow loop.

Started by bench_memory.py.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from typing import Any

import numpy as np
from processes import answer_lines
from scale_child import resident
from tracing import TracingStore

from shardpipe import Sample, ShardLoader
from shardpipe.dataset import Index
from shardpipe.store import SlowStore, Store, open_store

_NOTED_EVERY = 0.05
_LOOP_SECONDS = 0.04
_LOOP_BATCHES = 60


def epochs(folder: str, options: dict[str, Any], number: int) -> dict[str, Any]:
    """Memory at about every 50 ms: (seconds, bytes, epoch)."""
    loader = ShardLoader(folder, **options)
    noted: list[tuple[float, int, int]] = []
    begun = time.monotonic()
    for epoch in range(number):
        for _ in loader:
            now = time.monotonic() - begun
            if not noted or now - noted[-1][0] >= _NOTED_EVERY:
                noted.append((now, resident(), epoch))
    return {"noted": noted}


class Ahead:
    """Counts what has been decoded and not yet been handed over."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._samples = self._bytes = 0
        self.most_samples = self.most_bytes = 0

    def __call__(self, sample: Sample, _: np.random.Generator) -> Sample:
        self.add(1, sample.audio.nbytes)
        return sample

    def add(self, samples: int, size: int) -> None:
        with self._lock:
            self._samples += samples
            self._bytes += size
            self.most_samples = max(self.most_samples, self._samples)
            self.most_bytes = max(self.most_bytes, self._bytes)


def ahead(folder: str, options: dict[str, Any], slow: bool) -> dict[str, Any]:
    """The most that lay ahead of a slow loop (samples, bytes decoded, bytes read), and the largest batch."""
    store = open_store(folder)
    traced = TracingStore(SlowStore(store, 0.03, 100e6) if slow else store)
    counted = Ahead()
    loader = ShardLoader(traced, transform=counted, **options)
    sizes = payload_sizes(open_store(folder))
    batch_bytes = consumed = most_read = read = seen = 0
    for number, batch in enumerate(loader):
        size = int(batch.lengths.sum()) * batch.audio.element_size()
        counted.add(-len(batch.keys), -size)
        batch_bytes = max(batch_bytes, batch.audio.nbytes)
        time.sleep(_LOOP_SECONDS)
        requests = traced.requests[seen:]
        seen += len(requests)
        read += sum(request.size for request in requests if request.name.endswith(".tar"))
        consumed += sum(sizes[key] for key in batch.keys)
        most_read = max(most_read, read - consumed)
        if number == _LOOP_BATCHES:
            break
    return {
        "samples": counted.most_samples,
        "bytes": counted.most_bytes,
        "read": most_read,
        "batch bytes": batch_bytes,
    }


def payload_sizes(store: Store) -> dict[str, int]:
    """Bytes of the encoded audio by key."""
    index = Index.load(store)
    sizes: dict[str, int] = {}
    for shard in range(len(index.shards)):
        rows = index.rows(shard)
        sizes.update(zip(rows.column("key").to_pylist(), rows.column("audio_size").to_pylist()))
    return sizes


def main() -> None:
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    for question, answer in answer_lines():
        if question["do"] == "epochs":
            answer(epochs(folder, options, question["number"]))
        else:
            answer(ahead(folder, options | question["options"], question["slow"]))


if __name__ == "__main__":
    main()
