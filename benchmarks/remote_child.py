"""Epochs of a dataset through a line of some latency and bandwidth. Started by bench_remote.py."""

from __future__ import annotations

import json
import sys
import tempfile
from math import inf
from time import monotonic
from typing import Any

from processes import answer_lines
from tracing import Request, TracingStore, payload_overlap, payloads_of, round_trips

from shardpipe import ShardLoader
from shardpipe.dataset import Index
from shardpipe.store import SlowStore, Store, open_store


def line_to(folder: str, latency: float, bandwidth: float) -> TracingStore:
    store: Store = open_store(folder)
    return TracingStore(SlowStore(store, latency, bandwidth) if latency else store)


def trips_to(keys: list[str], folder: str, requests: list[Request]) -> int:
    """Round trips until all audio of a batch was there: what is read on while it is decoded is not on its way."""
    payloads = payloads_of(Index.load(open_store(folder)), keys)
    last = max((r.ended for r in requests if payload_overlap([r], payloads)), default=inf)
    return round_trips([r for r in requests if r.ended <= last])


def epoch(folder: str, store: TracingStore, options: dict[str, Any], first_window: int) -> dict[str, Any]:
    """Reads an epoch from a loader made anew; rates are of what follows the first `first_window` samples."""
    before = len(store.requests)
    begun = monotonic()
    loader = ShardLoader(store, **options)
    loaded, opened = monotonic(), len(store.requests)
    first = behind = 0.0
    skipped = frames = 0
    for batch in loader:
        if not first:
            first = monotonic()
            keys, requests = batch.keys, store.requests[opened:]
        if not behind and batch.consumed_samples >= first_window:
            behind, skipped = monotonic(), batch.consumed_samples
        frames += int(batch.lengths.sum())
    ended = monotonic()
    return {
        "rate": (loader.num_samples - skipped) / (ended - behind),
        "whole rate": loader.num_samples / (ended - begun),
        "load": loaded - begun,
        "first batch": first - loaded,
        "round trips": trips_to(keys, folder, requests),
        "bytes": sum(request.size for request in store.requests[before:]),
        "requests": len(store.requests) - before,
        "frames": frames,
    }


def main() -> None:
    folder, settings = sys.argv[1], json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory(dir=settings["scratch"]) as scratch:
        for question, answer in answer_lines():
            store = line_to(folder, settings["latency"], settings["bandwidth"])
            options = settings["loader"] | ({"cache_dir": scratch} if question["cache"] else {})
            answer(epoch(folder, store, options, settings["first_window"]))


if __name__ == "__main__":
    main()
