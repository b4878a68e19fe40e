"""Is memory flat from epoch to epoch, and does no more lie ahead of the loop than was allowed?

Epochs of the packed corpus, FLAC, in batches of 16 and by padded seconds, each in a process of its own; growth is from
the last quarter of the first epoch to the last quarter of every later one, medians of the resident memory there. For
the bounds the loop is slow (40 ms a batch), so that everything made ahead piles up; a transform counts what is decoded
and not yet handed over, a store what has been read. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from corpus import add_corpus_arguments, corpus_of, packed
from processes import Child, use_cores
from reporting import Checks, Figure, table, write_results

BATCHINGS: dict[str, dict[str, Any]] = {
    "batches of 16": {"batch_size": 16},
    "batches of 150 s": {"batch_seconds": 150.0},
}
GROWTH = 0.02
PREFETCH = 6
PREFETCH_BYTES = 48 << 20
Noted = list[tuple[float, int, int]]
"""(seconds, bytes resident, epoch)."""

REPORT = """\
{about}. On {cores} cores, {epochs} epochs, windows of {window}.

MB resident, median of each epoch's last quarter:

{table}

The most that lay ahead of a slow loop, in batches of 16: decoded samples, MB of decoded audio, MB of shards read:

{ahead}

## Checks

{checks}
"""


def late(noted: Noted, epoch: int) -> float:
    """Median bytes in the last quarter of an epoch."""
    of_epoch = [size for _, size, number in noted if number == epoch]
    return median(of_epoch[len(of_epoch) * 3 // 4 :])


def child(folder: Path, options: dict[str, Any]) -> Child:
    return Child(Path(__file__).with_name("memory_child.py"), folder, json.dumps(options))


def measure_ahead(folder: Path, window: int, checks: Checks) -> str:
    """The table of what lay ahead, local and over a slow line, under each bound."""
    rows = []
    for bound, options in (
        (f"prefetch={PREFETCH}", {"prefetch": PREFETCH, "threads": 2}),
        (
            f"prefetch_bytes={PREFETCH_BYTES >> 20} MiB",
            {"prefetch": 64, "prefetch_bytes": PREFETCH_BYTES, "threads": 2},
        ),
    ):
        for slow in (False, True):
            with child(folder, {"batch_size": 16, "window": window}) as one:
                found = one.ask(do="ahead", options=options, slow=slow)
            name = f"{bound}, {'30 ms and 100 MB/s' if slow else 'local disk'}"
            rows.append([name, f"{found['samples']}", f"{found['bytes'] / 1e6:.0f}", f"{found['read'] / 1e6:.0f}"])
            if "prefetch_bytes" in options:
                most = PREFETCH_BYTES + found["batch bytes"]
                held = max(found["bytes"], found["read"])
                text = f"{name}: {held / 1e6:.0f} MB ahead (at most that and a batch, {most / 1e6:.0f} MB)"
                checks.add(held <= most, text)
            else:
                # What a thread is working on when the loop takes one comes on top.
                most = 16 * (PREFETCH + 1)
                checks.add(found["samples"] <= most, f"{name}: {found['samples']} samples ahead (at most {most})")
    return table(["bound", "samples", "MB decoded", "MB read"], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser, utterances=4000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--window", type=int, default=1024, help="of the loader (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=2, help="0: all (default: %(default)s)")
    options = parser.parse_args()
    corpus = corpus_of(options)
    folder = packed(corpus)
    cores = use_cores(options.cores)
    checks = Checks()
    runs: dict[str, Noted] = {}
    for batching, arguments in BATCHINGS.items():
        with child(folder, arguments | {"window": options.window}) as one:
            runs[batching] = one.ask(do="epochs", number=options.epochs)["noted"]
        first = late(runs[batching], 0)
        growth = max(late(runs[batching], epoch) for epoch in range(1, options.epochs)) / first - 1
        text = f"{batching}: {100 * growth:+.2f} % after the first epoch (under {100 * GROWTH:.0f} %)"
        checks.add(growth < GROWTH, text)
        print(checks.lines[-1], flush=True)
    text = REPORT.format(
        about=corpus.describe(),
        cores=cores,
        epochs=options.epochs,
        window=options.window,
        table=table(
            ["", *(f"epoch {epoch + 1}" for epoch in range(options.epochs)), "most"],
            [
                [
                    name,
                    *(f"{late(noted, e) / 1e6:.1f}" for e in range(options.epochs)),
                    f"{max(n[1] for n in noted) / 1e6:.1f}",
                ]
                for name, noted in runs.items()
            ],
        ),
        ahead=measure_ahead(folder, options.window, checks),
        checks=checks,
    )
    print(text)
    print(write_results("memory", text, packages=("shardpipe", "numpy", "torch"), figure=draw(runs)).name)
    return 0 if checks.good else 1


def draw(runs: dict[str, Noted]) -> Figure:
    figure = Figure(len(runs))
    top = max(size for noted in runs.values() for _, size, _ in noted) / 1e6
    for panel, (name, noted) in zip(figure.panels, runs.items()):
        panel.plot([seconds for seconds, _, _ in noted], [size / 1e6 for _, size, _ in noted], color="#1f6fb4")
        for (before, _, epoch), (seconds, _, other) in pairwise(noted):
            if epoch != other:
                panel.axvline((before + seconds) / 2, color="#b9bfc6", linestyle="--", linewidth=1)
        panel.set_title(f"Resident memory over {noted[-1][2] + 1} epochs, {name}")
        panel.set_xlabel("seconds")
        panel.set_ylabel("MB")
        panel.set_ylim(0, 1.1 * top)
    return figure


if __name__ == "__main__":
    sys.exit(main())
