"""How soon is the first batch there, and what is read for it, at 0 %, 50 % and 99 % of an epoch?

A run of each loader saves its state at those places. Then each start is a fresh process that loads the state and takes
one batch, FLAC in batches of 16 (for shardpipe also of 300 padded seconds), without worker processes; rounds go over
all loaders and places in turn. Seconds count from the start of the process; the imports are in them and told apart.
Bytes are what the process reads by system calls between its imports and its first batch. Once for each place the rest
of the epoch is read and compared: it must be exactly what the saving run had not delivered. For shardpipe the bytes are
looked at one by one as well: of consumed samples' audio none may be read. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from corpus import Corpus, add_corpus_arguments, corpus_of
from peering import RESUMING, SHARDPIPE, Peer, available
from processes import ChildFailed, alternate, ratio, use_cores
from reporting import Checks, Figure, table, write_results
from tracing import TracingStore, payload_overlap, payloads_of

from shardpipe import ShardLoader
from shardpipe.dataset import Index
from shardpipe.store import open_store

PLACES = (0, 50, 99)
"""Percent of the epoch."""
LATEST = 1.1
OURS = {"shardpipe, batches of 16": "0 threads", "shardpipe, batches of 300 s": "300 seconds"}


class Entry:
    """One loader: its states, what was left at each, and every round's figures."""

    def __init__(self, name: str, peer: Peer, setting: str) -> None:
        self.name, self.peer, self.setting = name, peer, setting
        self.states: dict[int, Path | None] = {0: None}
        self.exact: dict[int, bool] = {}
        self.rounds: dict[int, list[dict[str, float]]] = {place: [] for place in PLACES}

    def save_states(self, corpus: Corpus, folder: Path) -> None:
        """Makes the states, each by a run from the epoch's start, and reads the rest of the epoch from each."""
        for place in PLACES[1:]:
            state = folder / f"{self.name.replace(' ', '-')}-{place}"
            with self.peer.resume(corpus, setting=self.setting, state=None) as child:
                done = child.ask(do="save", samples=corpus.utterances * place // 100, to=str(state))
            with self.peer.resume(corpus, setting=self.setting, state=state) as child:
                rest = child.ask(do="rest")
            whole = {"samples": corpus.utterances, "frames": corpus.frames, "frames_squared": corpus.frames_squared}
            self.exact[place] = all(done[what] + rest[what] == whole[what] for what in whole)
            self.states[place] = state

    def measure(self, corpus: Corpus, place: int) -> float:
        with self.peer.resume(corpus, setting=self.setting, state=self.states[place]) as child:
            figures = child.ask(do="figures")
            first = figures["first"] - child.started
            imports = figures["imported"] - child.started
        self.rounds[place].append({"first": first, "after imports": first - imports, "read": figures["read"]})
        return float(first)

    def figure(self, place: int, name: str) -> float:
        return median(figures[name] for figures in self.rounds[place])

    def later(self, place: int, name: str = "first") -> float:
        """How many times the first batch at 0 % the one at this place takes: the median of the rounds' ratios."""
        return ratio([f[name] for f in self.rounds[place]], [f[name] for f in self.rounds[0]])


def consumed_bytes_read(folder: Path, options: dict[str, Any], place: int) -> tuple[int, int]:
    """(bytes of consumed samples' audio, bytes in all) that the rest of the epoch reads from a place on."""
    first = ShardLoader(folder, **options)
    keys: set[str] = set()
    largest = 0
    for batch in first:
        keys.update(batch.keys)
        largest = max(largest, len(batch.keys))
        if len(keys) + largest > first.num_samples * place // 100:
            break
    consumed = payloads_of(Index.load(open_store(folder)), keys)
    store = TracingStore(open_store(folder))
    loader = ShardLoader(store, resume_samples=first.consumed_samples, **options)
    left = sum(len(batch.keys) for batch in loader)
    assert left == first.num_samples - len(keys), f"{left} samples after {len(keys)}"
    return payload_overlap(store.requests, consumed), sum(request.size for request in store.requests)


REPORT = """\
{about}. On {cores} cores, no worker processes, medians of {rounds} rounds. Peers: {versions}. {missing}

Seconds from the start of the process to the first batch, of that after the imports, and MB read after the imports:

{table}

"Exact": the state's rest of the epoch is what had not been delivered.

## Checks

{checks}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser, utterances=4000)
    parser.add_argument("--peers", nargs="*", help="modules of benchmarks/peers (default: all that can resume)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cores", type=int, default=2, help="0: all (default: %(default)s)")
    options = parser.parse_args()
    corpus = corpus_of(options)
    found, missing = available(RESUMING, options.peers)
    entries = [Entry(name, SHARDPIPE, setting) for name, setting in OURS.items()]
    for peer, _ in found:
        peer.folder(corpus)
        entries.append(Entry(peer.name, peer, "1 threads" if peer.module == "grain" else "0 workers"))
    cores = use_cores(options.cores)
    checks = Checks()
    for name, arguments in zip(OURS, ({"batch_size": 16}, {"batch_seconds": 300.0})):
        for place in PLACES[1:]:
            again, read = consumed_bytes_read(SHARDPIPE.folder(corpus), arguments, place)
            text = f"{name}, {place} %: {again} bytes of consumed samples' audio read, of {read:,} in all (none)"
            checks.add(again == 0, text)
    with tempfile.TemporaryDirectory() as states:
        for entry in list(entries):
            print(f"saving states of {entry.name}", flush=True)
            try:
                entry.save_states(corpus, Path(states))
            except ChildFailed as error:
                entries.remove(entry)
                missing.append(f"{entry.name} is left out: {str(error).splitlines()[-1]}")
                print(error, flush=True)
        measures: dict[str, Callable[[], float]] = {
            f"{entry.name} {place} %": partial(entry.measure, corpus, place) for entry in entries for place in PLACES
        }
        alternate(options.rounds, measures)
    check(checks, entries)
    text = REPORT.format(
        about=corpus.describe(),
        cores=cores,
        rounds=options.rounds,
        versions=", ".join(f"{peer.name} {version}" for peer, version in found) or "none",
        missing=" ".join(f"{line}." for line in missing),
        table=resume_table(entries),
        checks=checks,
    )
    print(text)
    packages = ("shardpipe", "numpy", "torch")
    print(write_results("resume", text, packages=packages, figure=draw(entries)).name)
    return 0 if checks.good else 1


def check(checks: Checks, entries: list[Entry]) -> None:
    for entry in entries:
        if entry.peer is not SHARDPIPE:
            continue
        checks.add(all(entry.exact.values()), f"{entry.name}: the rest of the epoch is what had not been delivered")
        later = entry.later(99)
        checks.add(
            later <= LATEST, f"{entry.name}: the first batch at 99 % takes {later:.3f}x that at 0 % (at most {LATEST}x)"
        )


def resume_table(entries: list[Entry]) -> str:
    header = ["loader", *(f"{place} %" for place in PLACES), *(f"{place} %, own" for place in PLACES)]
    header += ["99 % / 0 %", "own", *(f"MB at {place} %" for place in PLACES), "exact"]
    rows = []
    for entry in entries:
        seconds = [f"{entry.figure(place, name):.2f}" for name in ("first", "after imports") for place in PLACES]
        times = [f"{entry.later(99):.2f}", f"{entry.later(99, 'after imports'):.2f}"]
        read = [f"{entry.figure(place, 'read') / 1e6:.1f}" for place in PLACES]
        rows.append([entry.name, *seconds, *times, *read, "yes" if all(entry.exact.values()) else "no"])
    return table(header, rows)


def draw(entries: list[Entry]) -> Figure:
    figure = Figure(2, width=6.5)
    left, right = figure.panels
    for panel, name, title, unit, scale in (
        (left, "after imports", "From the imports to the first batch", "seconds", 1.0),
        (right, "read", "Read for it", "MB", 1e-6),
    ):
        for number, place in enumerate(PLACES):
            at = [len(entries) - 1 - i + 0.25 - 0.25 * number for i in range(len(entries))]
            values = [entry.figure(place, name) * scale for entry in entries]
            colour = ("#b9d4ea", "#5a9bd0", "#1f6fb4")[number]
            drawn = panel.barh(at, values, height=0.22, color=colour, label=f"at {place} %")
            panel.bar_label(drawn, labels=[f"{value:.2g}" for value in values], padding=3, fontsize=7)
        panel.set_yticks(range(len(entries)), [entry.name for entry in reversed(entries)])
        panel.set_title(title)
        panel.set_xlabel(unit)
        panel.grid(axis="y", visible=False)
    right.set_yticklabels([])
    left.legend(loc="best")
    return figure


if __name__ == "__main__":
    sys.exit(main())
