"""Does finding a place cost the same in a dataset of 10^12 samples as in one of 10^4, and memory only for its shards?

Measures `Order.sample_at`, `Order.position_of` and planning at a count, near an epoch's start and near its end. Every
dataset lives in a process of its own, started anew, so that its memory can be told; rounds go over all of them in turn,
so that a busy moment of the machine hits all alike, and medians are reported. Exits with 1 if a figure that should be
flat is not within 3x over all datasets, or if memory grows with more than the shards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import numpy.typing as npt
import psutil
from processes import Child, answer_lines
from reporting import Checks, Figure, table, write_results

from shardpipe.order import Batching, Ints, Order, Plan, default_lanes

SIZES = [(10**4, 10), (10**6, 10**3), (10**8, 10**5), (10**10, 10**6), (10**12, 10**6)]
SPREADS = {"even": 0.1, "uneven": 1.5}
"""Sigma of the log-normal number of samples in a shard; of the uneven ones every hundredth is empty besides."""
WINDOW = 8192
CALLS = 8192
"""Samples a call, for all datasets."""
FLAT = 3.0
SHARD_BYTES = 100
FIXED_BYTES = 10 << 20
RULE = f"{FIXED_BYTES >> 20} MiB + {SHARD_BYTES} bytes a shard"
PLACES = ("start", "end")
CHECKED = ("sample_at", "position_of", "plan by size", "plan by seconds")

Figures = dict[str, float]
Floats = npt.NDArray[np.float64]


def counts_of(samples: int, shards: int, sigma: float) -> Ints:
    """Samples of every shard, `samples` together."""
    rng = np.random.default_rng(samples)
    weights = rng.lognormal(0, sigma, shards)
    if sigma > 1:
        weights[::100] = 0
    counts: Ints = (weights / weights.sum() * samples).astype(np.int64)
    counts[np.argmax(counts)] += samples - counts.sum()
    return counts


class Dataset:
    """One dataset's order and plans, and the calls that are timed."""

    def __init__(self, samples: int, shards: int, sigma: float) -> None:
        counts = counts_of(samples, shards, sigma)
        self.order = Order(counts, seed=1, window=WINDOW, lanes=default_lanes(counts, WINDOW))
        # One lane for all, since planning is per super-window and the smallest dataset has no second lane.
        lane = Order(counts, seed=1, window=WINDOW, lanes=1)
        lengths: Floats = np.clip(np.exp(np.random.default_rng(0).normal(np.log(6), 0.6, 1 << 16)), 0.5, 30)

        def seconds(_: int, positions: Ints) -> Floats:
            asked: Floats = lengths[positions & 0xFFFF]
            return asked

        def plan(order: Order, batching: Batching) -> Plan:
            return Plan(order, batching, seconds=seconds)

        self.by_size = plan(lane, Batching(batch_size=32))
        self.by_seconds = plan(lane, Batching(batch_seconds=300.0))
        self.by_default = plan(self.order, Batching(batch_seconds=300.0))
        self.rng = np.random.default_rng(2)

    def round(self) -> Figures:
        """Nanoseconds a sample, of every operation at every place."""
        order, n = self.order, self.order.num_samples
        last = n // WINDOW * WINDOW - WINDOW
        figures: Figures = {}
        for place, low in (("start", 0), ("end", max(0, n - 5 * CALLS))):
            at = low + np.arange(CALLS) + int(self.rng.integers(0, min(n - low - CALLS, 4 * CALLS)))
            figures |= self._lookups(place, at)
            count = (last if place == "end" else 0) + int(self.rng.integers(0, WINDOW // 2))
            by_size, by_seconds = (
                partial(first_batch, self.by_size, count),
                partial(first_batch, self.by_seconds, count),
            )
            figures[f"plan by size, {place}"] = timed(by_size, 9) / 4096
            figures[f"plan by seconds, {place}"] = timed(by_seconds, 2) / WINDOW
        figures |= self._lookups("anywhere", self.rng.integers(0, n, CALLS))
        window = min(n, WINDOW * order.lanes)
        figures["plan by seconds, default lanes"] = timed(lambda: self.by_default.block(0, 0), 1) / window
        figures["epoch"] = timed(lambda: order.sample_at(0, int(self.rng.integers(1, 10**6))), 1)
        order.sample_at(0, 0)
        return figures

    def _lookups(self, place: str, positions: np.ndarray) -> Figures:
        shard, index = self.order.sample_at(positions, 0)
        return {
            f"sample_at, {place}": timed(lambda: self.order.sample_at(positions, 0), 9) / CALLS,
            f"position_of, {place}": timed(lambda: self.order.position_of(shard, index, 0), 9) / CALLS,
        }


def first_batch(plan: Plan, count: int) -> object:
    return next(plan.batches(0, count))


def timed(call: Callable[[], object], times: int) -> float:
    """Median nanoseconds of a call."""
    taken = []
    for _ in range(times):
        start = perf_counter()
        call()
        taken.append((perf_counter() - start) * 1e9)
    return median(taken)


def child(samples: int, shards: int, spread: str) -> None:
    """Answers every question with a round of figures, the first one with the memory in bytes."""
    process = psutil.Process()
    before = process.memory_info().rss
    dataset = Dataset(samples, shards, SPREADS[spread])
    dataset.order.sample_at(0, 0)
    memory = process.memory_info().rss - before
    dataset.round()
    for question, answer in answer_lines():
        if question["do"] == "memory":
            answer({"order": memory, "after work": process.memory_info().rss - before})
        else:
            answer(dataset.round())


class Measured:
    """One dataset in its process, and the figures of all rounds."""

    def __init__(self, samples: int, shards: int, spread: str) -> None:
        self.samples, self.shards, self.spread = samples, shards, spread
        self._child = Child(__file__, "--child", samples, shards, spread)
        self.memory = self._child.ask(do="memory")
        self._rounds: list[Figures] = []

    def round(self) -> None:
        self._rounds.append(self._child.ask(do="round"))

    def figure(self, name: str) -> float:
        return median(figures[name] for figures in self._rounds)

    def close(self) -> None:
        self._child.close()

    @property
    def name(self) -> str:
        return f"10^{len(str(self.samples)) - 1} {self.spread}"


def check(children: list[Measured]) -> Checks:
    found = Checks()
    for operation in CHECKED:
        figures = [child.figure(f"{operation}, {place}") for child in children for place in PLACES]
        ratio = max(figures) / min(figures)
        found.add(ratio <= FLAT, f"{operation}: slowest {ratio:.2f}x the fastest over all")
    for child in children:
        bound = FIXED_BYTES + SHARD_BYTES * child.shards
        text = f"{child.name}: {mib(child.memory['order'])} MiB, at most {mib(bound)} ({RULE})"
        found.add(child.memory["order"] <= bound, text)
    return found


def mib(size: float) -> str:
    return f"{size / 2**20:.1f}"


REPORT = """\
Medians of {rounds} rounds, each over all datasets in turn. Even shards differ by 10 %; uneven ones are log-normal with
sigma {sigma}, every hundredth empty. "start" and "end" lie near the epoch's first and last sample, "anywhere" is random
access.

Nanoseconds a sample, {calls} samples a call, default lanes (up to 64) of windows of {window}:

{lookups}

Nanoseconds a planned sample, from a count to the first batch: batches of 32 (blocks of 4096 samples), and of 300 padded
seconds (super-windows of {window}, one lane). "Default lanes" is a super-window of those, where numpy works on all
lanes at once. Lengths come from a table, so that planning alone is timed:

{plans}

Milliseconds of what is done once an epoch, in proportion to the shards, and resident MiB of the order, and after all
the work above:

{memory}

Checks (the figures at start and end of all datasets within {flat}x; memory of the order):

{checks}
"""


def report(children: list[Measured], rounds: int, found: Checks) -> str:
    lookups = [f"{op}, {place}" for op in ("sample_at", "position_of") for place in (*PLACES, "anywhere")]
    plans = [f"{op}, {place}" for op in ("plan by size", "plan by seconds") for place in PLACES]
    plans.append("plan by seconds, default lanes")

    def figures(names: list[str]) -> str:
        header = ["samples", "shards", *(name.replace("plan ", "").replace(",", "") for name in names)]
        rows = [[one.name, f"{one.shards:,}", *(f"{one.figure(name):.0f}" for name in names)] for one in children]
        return table(header, rows)

    memory = [
        [one.name, f"{one.shards:,}", f"{one.figure('epoch') / 1e6:.2f}", *(mib(size) for size in one.memory.values())]
        for one in children
    ]
    return REPORT.format(
        rounds=rounds,
        sigma=SPREADS["uneven"],
        calls=CALLS,
        window=WINDOW,
        lookups=figures(lookups),
        plans=figures(plans),
        memory=table(["samples", "shards", "epoch ms", "order MiB", "after work MiB"], memory),
        flat=FLAT,
        checks=found,
    )


def draw(children: list[Measured]) -> Figure:
    figure = Figure(1, width=7)
    for operation in CHECKED:
        for spread in SPREADS:
            some = [child for child in children if child.spread == spread]
            sizes, nanoseconds = (
                [child.samples for child in some],
                [child.figure(f"{operation}, end") for child in some],
            )
            dashes = "-" if spread == "even" else "--"
            figure.panels[0].plot(sizes, nanoseconds, dashes, marker=".", label=f"{operation}, {spread}")
    panel = figure.panels[0]
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_title("Finding a place near an epoch's end")
    panel.set_xlabel("samples of the dataset")
    panel.set_ylabel("nanoseconds a sample")
    panel.legend(ncols=2, fontsize=7)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        samples, shards, spread = arguments.child
        child(int(samples), int(shards), spread)
        return 0
    children = [Measured(samples, shards, spread) for samples, shards in SIZES for spread in SPREADS]
    for _ in range(arguments.rounds):
        for one in children:
            one.round()
    found = check(children)
    text = report(children, arguments.rounds, found)
    figure = draw(children)
    for one in children:
        one.close()
    print(text)
    print(f"\nwritten to {write_results('order', text, packages=['numpy'], figure=figure).name}")
    return 0 if found.good else 1


if __name__ == "__main__":
    sys.exit(main())
