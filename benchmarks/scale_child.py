"""A process that starts on an index, plans, and walks on through the epoch, or says what comes when. Started by
bench_scale.py.

Nothing but shardpipe is imported, so that its memory is its own.
"""

from __future__ import annotations

import json
import sys
from time import monotonic
from typing import Any


def resident() -> int:
    """Bytes of this process in memory, what it shares with others included."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmRSS"))


def start(folder: str, how: str, batching: dict[str, float]) -> tuple[dict[str, Any], Any]:
    """(figures, the sequence of batches); `how` is loader, or index: what plans without it, and without torch."""
    from shardpipe.dataset import Index
    from shardpipe.loading import BatchSequence

    if how == "loader":
        from shardpipe import ShardLoader

        # Made in the first loader's place: the class is there when the clock starts.
        figures: dict[str, Any] = {"imported": monotonic(), "imports bytes": resident()}
        begun = monotonic()
        loader = ShardLoader(folder, **batching)
        sequence = loader._sequence
    else:
        from shardpipe.order import Batching

        figures = {"imported": monotonic(), "imports bytes": resident()}
        begun = monotonic()
        sequence = BatchSequence(Index.load(folder), Batching(**batching))
    figures |= {"start": monotonic() - begun, "start bytes": resident()}
    for name, share in (("plan", 0), ("plan at 99 %", 99)):
        begun = monotonic()
        next(sequence.steps(sequence.num_samples * share // 100))
        figures[name] = monotonic() - begun
    return figures | {"plan bytes": resident()}, sequence


def walk(sequence: Any, samples: int, every: int) -> list[tuple[int, float, int]]:
    """(samples, seconds, bytes resident) along the epoch, its batches looked up as the loader does."""
    from shardpipe.loading.work import works

    noted: list[tuple[int, float, int]] = []
    begun = monotonic()
    for work in works(sequence, sequence.steps(0), 0, 1):
        if not noted or work.place.consumed_samples >= noted[-1][0] + every:
            noted.append((work.place.consumed_samples, monotonic() - begun, resident()))
        if work.place.consumed_samples >= samples:
            break
    return noted


def explain(sequence: Any, key: str) -> dict[str, float]:
    """Seconds to plan one super-window, to say what comes in the middle of another, to look up a key, and to say when
    its sample comes, once it is found.
    """
    from shardpipe.loading import given_at, visits

    span = sequence.order.window * sequence.order.lanes
    window = sequence.num_samples // span // 2
    begun = monotonic()
    next(batch for batch in sequence.batches(window * span) if batch.count >= (window + 1) * span)
    figures = {"super-window": monotonic() - begun}
    begun = monotonic()
    given_at(sequence, (window + 5) * span + span // 2)
    figures["at"] = monotonic() - begun
    begun = monotonic()
    found = sequence.index.find(key)
    figures["find"] = monotonic() - begun
    sequence.index.find = lambda _: found
    begun = monotonic()
    visits(sequence, key, epochs=1)
    return figures | {"where": monotonic() - begun}


def main() -> None:
    folder, how, batching = sys.argv[1:]
    figures, sequence = start(folder, how, json.loads(batching))
    for line in sys.stdin:
        question = json.loads(line)
        if samples := question.get("walk"):
            answer: dict[str, Any] = {"walk": walk(sequence, samples, question["every"])}
        else:
            answer = explain(sequence, question["find"]) if "find" in question else figures
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
