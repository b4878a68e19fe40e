"""Reading through a line of 30 ms and 100 MB/s: is it the line that limits, how soon is the first batch there, and how
many bytes does an epoch take?

The line is shardpipe.store.SlowStore before the packed corpus, FLAC in batches of 16; rounds alternate between the
local disk, the line, the line with an empty cache_dir and the line with a filled one, each round's passes in a process
started anew. Rates are of what follows the first window. Round trips are the longest chain of requests each of which
began after the one before had ended, from the loader being built until its first batch's audio was there. The last
table says how many distinct shards a node reads in an epoch: a simulation on the order alone. Exits with 1 if a target
is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from corpus import add_corpus_arguments, corpus_of, packed
from nodes import shards_a_node
from processes import Child, alternate, use_cores
from reporting import Checks, Figure, bars, table, write_results

from shardpipe.dataset import Index
from shardpipe.order import default_lanes
from shardpipe.store import open_store

BATCH = 16
OF_LINE = 0.9
ROUND_TRIPS = 10
EXCESS = 1.02
LOCAL, REMOTE, COLD, WARM = "local disk", "line", "line, empty cache", "line, filled cache"
NODES = (1, 2, 3, 4, 8, 12, 16, 32, 48, 64)
SIMULATED = (10_000, 1000)
"""Shards, and samples of each."""
RANKS = 8
WINDOW = 8192


class Lines:
    """The four ways to the corpus, and every round's figures of each."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self._folder = folder
        self._settings = settings
        self.rounds: dict[str, list[dict[str, float]]] = {name: [] for name in (LOCAL, REMOTE, COLD, WARM)}

    def measures(self) -> dict[str, Callable[[], float]]:
        return {LOCAL: self._local, REMOTE: self._remote, "line, cache": self._cached}

    def figure(self, name: str, figure: str) -> float:
        return median(figures[figure] for figures in self.rounds[name])

    def paired(self, compute: Callable[..., float], *names: str) -> float:
        """The median over rounds of a figure of several ways together."""
        return median(compute(*figures) for figures in zip(*(self.rounds[name] for name in names), strict=True))

    def _local(self) -> float:
        with self._child(latency=0) as child:
            return self._noted(LOCAL, child.ask(cache=False))

    def _remote(self) -> float:
        with self._child() as child:
            return self._noted(REMOTE, child.ask(cache=False))

    def _cached(self) -> float:
        with self._child() as child:
            rate = self._noted(COLD, child.ask(cache=True))
            self._noted(WARM, child.ask(cache=True))
            return rate

    def _noted(self, name: str, figures: dict[str, float]) -> float:
        self.rounds[name].append(figures)
        return figures["rate"]

    def _child(self, **changed: object) -> Child:
        return Child(Path(__file__).with_name("remote_child.py"), self._folder, json.dumps(self._settings | changed))


REPORT = """\
{about}. Packed: {size:.0f} MB in {shards} shards, {files:.0f} MB with the index. The line: {latency:.0f} ms,
{bandwidth:.0f} MB/s. On {cores} cores; windows of {window}, {lanes} lanes; medians of {rounds} rounds.

{table}

"After the first window": what follows its {first:,} samples. The line alone would carry {line:,.0f} utt/s.

## Distinct shards a node

{shards_simulated:,} shards of {samples_simulated:,} samples, batches of {batch}, windows of {sim_window:,}, {sim_lanes}
lanes by default; ideal is shards / nodes. With {ranks} ranks a node also with as many lanes as ranks, if more.

{simulation}

## Checks

{checks}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser)
    parser.add_argument("--latency", type=float, default=30.0, help="ms (default: %(default)s)")
    parser.add_argument("--bandwidth", type=float, default=100.0, help="MB/s (default: %(default)s)")
    parser.add_argument("--window", type=int, default=512, help="of the loader (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2, help="0: all (default: %(default)s)")
    options = parser.parse_args()
    corpus = corpus_of(options)
    folder = packed(corpus)
    cores = use_cores(options.cores)
    index = Index.load(open_store(folder))
    lanes = default_lanes(index.counts, options.window)
    first_window = options.window * lanes
    if 2 * first_window > index.num_samples:
        parser.error(f"--window {options.window} with {lanes} lanes leaves little behind the first window")
    settings = {
        "latency": options.latency / 1000,
        "bandwidth": options.bandwidth * 1e6,
        "loader": {"batch_size": BATCH, "window": options.window},
        "first_window": first_window,
        "scratch": str(options.work),
    }
    lines = Lines(folder, settings)
    alternate(options.rounds, lines.measures())
    checks = Checks()
    carried = options.bandwidth * 1e6 / (corpus.bytes / corpus.utterances)
    files = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    check(checks, lines, carried, files, options.latency / 1000)
    simulated = simulate()
    text = REPORT.format(
        about=corpus.describe(),
        size=index.totals.size / 1e6,
        shards=len(index.shards),
        files=files / 1e6,
        latency=options.latency,
        bandwidth=options.bandwidth,
        cores=cores,
        window=options.window,
        lanes=lanes,
        rounds=options.rounds,
        table=lines_table(lines, files),
        first=first_window,
        line=carried,
        shards_simulated=SIMULATED[0],
        samples_simulated=SIMULATED[1],
        batch=BATCH,
        sim_window=WINDOW,
        sim_lanes=default_lanes(np.full(*SIMULATED), WINDOW),
        ranks=RANKS,
        simulation=simulation_table(simulated),
        checks=checks,
    )
    print(text)
    figure = draw(lines, carried, simulated)
    print(write_results("remote", text, packages=("shardpipe", "numpy", "torch"), figure=figure).name)
    return 0 if checks.good else 1


def check(checks: Checks, lines: Lines, carried: float, files: int, latency: float) -> None:
    frames = {figures["frames"] for rounds in lines.rounds.values() for figures in rounds}
    checks.add(len(frames) == 1, f"every pass delivered the same audio ({', '.join(f'{f:,}' for f in frames)} frames)")
    for name in (REMOTE, COLD):
        share = lines.paired(lambda far, near: far["rate"] / min(carried, near["rate"]), name, LOCAL)
        text = f"{name}: {100 * share:.0f} % of min(bandwidth, local rate) after the first window"
        checks.add(share >= OF_LINE, f"{text} (at least {100 * OF_LINE:.0f} %)")
        excess = max(figures["bytes"] for figures in lines.rounds[name]) / files
        checks.add(excess <= EXCESS, f"{name}: an epoch reads {excess:.3f}x the dataset (at most {EXCESS}x)")
        trips = max(figures["round trips"] for figures in lines.rounds[name])
        text = f"{name}: {trips:.0f} round trips, one after another, to the first batch's audio (at most {ROUND_TRIPS})"
        checks.add(trips <= ROUND_TRIPS, text)
        waited = lines.paired(lambda far, near: (far["first batch"] - near["first batch"]) / latency, name, LOCAL)
        text = f"{name}: the first batch comes {waited:.1f} round trips later than from the local disk"
        checks.add(waited <= ROUND_TRIPS, f"{text} (at most {ROUND_TRIPS})")
    reread = max(figures["bytes"] for figures in lines.rounds[WARM]) / files
    checks.add(reread < 0.05, f"{WARM}: an epoch reads {100 * reread:.1f} % of the dataset over the line (under 5 %)")


def lines_table(lines: Lines, files: int) -> str:
    header = ["", "utt/s after the first window", "whole epoch", "index ms", "first batch ms"]
    header += ["round trips", "requests", "bytes / dataset"]
    rows = []
    for name in lines.rounds:
        figures = [f"{lines.figure(name, figure):,.0f}" for figure in ("rate", "whole rate")]
        figures += [f"{1000 * lines.figure(name, figure):,.0f}" for figure in ("load", "first batch")]
        figures += [f"{lines.figure(name, figure):,.0f}" for figure in ("round trips", "requests")]
        rows.append([name, *figures, f"{lines.figure(name, 'bytes') / files:.3f}"])
    return table(header, rows)


def simulate() -> dict[str, list[float]]:
    """Shards a node by number of nodes, for each way to run them."""
    counts = np.full(*SIMULATED)
    found: dict[str, list[float]] = {"ideal": [SIMULATED[0] / nodes for nodes in NODES]}
    lanes = default_lanes(counts, WINDOW)
    for name, ranks, more in (
        ("1 rank a node", 1, False),
        (f"{RANKS} ranks a node", RANKS, False),
        (f"{RANKS} ranks, a lane for each", RANKS, True),
    ):
        found[name] = [
            shards_a_node(
                counts,
                nodes,
                ranks=ranks,
                batch_size=BATCH,
                window=WINDOW,
                lanes=max(lanes, nodes * ranks) if more else 0,
            )
            for nodes in NODES
        ]
    return found


def simulation_table(simulated: dict[str, list[float]]) -> str:
    names = [name for name in simulated if name != "ideal"]
    header = ["nodes", "ideal", *(part for name in names for part in (name, "x ideal"))]
    rows = []
    for i, nodes in enumerate(NODES):
        ideal = simulated["ideal"][i]
        rows.append([str(nodes), f"{ideal:,.1f}"])
        rows[-1] += [part for n in names for part in (f"{simulated[n][i]:,.1f}", f"{simulated[n][i] / ideal:.2f}")]
    return table(header, rows)


def draw(lines: Lines, carried: float, simulated: dict[str, list[float]]) -> Figure:
    figure = Figure(2)
    left, right = figure.panels
    rates = {name: lines.figure(name, "rate") for name in lines.rounds}
    bars(left, "FLAC after the first window", rates, unit="utterances / s", ours="line")
    left.axvline(carried, color="#c0392b", linestyle="--", linewidth=1)
    left.text(carried, -0.62, " bandwidth", color="#c0392b", fontsize=8, va="bottom")
    for name, shards in simulated.items():
        marker, dashes = ("", "--") if name == "ideal" else (".", "-")
        right.plot(NODES, shards, label=name, marker=marker, linestyle=dashes)
    right.set_xscale("log", base=2)
    right.set_yscale("log")
    right.set_xticks(NODES, [str(nodes) for nodes in NODES])
    right.set_title(f"Distinct shards a node reads, of {SIMULATED[0]:,}")
    right.set_xlabel("nodes")
    right.legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
