"""Padding and stragglers of length-batched plans, beside a bucketing sampler and beside no bucketing at all.

All get the same lengths, the same number of ranks and the same budget of padded seconds a batch, and all are counted
alike: a batch costs its samples times its longest; padding is the share of that which is not audio; straggling is what
ranks wait for a step's costliest batch, as a share of what they compute. The peer is lhotse's DynamicBucketingSampler,
with 30 buckets and a buffer of 20,000, in the environment of the peers (`make bench-env`); without it its rows are left
out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from peering import PEERS, Peer, available
from processes import Child
from reporting import Figure, bars, table, write_results

from shardpipe.dataset import Index
from shardpipe.order import Batching, Order, Plan, steps

BUDGET = 300.0
WINDOWS = (1024, 4096, 8192)
RANKS = (1, 8, 64)
Batches = list[list[np.ndarray]]
"""Steps of batches of lengths in seconds."""

HEADER = ["plan", "ranks", "steps", "padding %", "stragglers %", "together %", "over budget %"]
ABOUT = f"""\
Batches of up to {BUDGET:.0f} padded seconds. Padding: the share of the padded seconds that is not audio. Stragglers:
what ranks wait for a step's costliest batch, as a share of what they compute. Together: what ranks compute and wait,
above the audio. Over budget: the share of batches that cost more than they may."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=1_000_000, help="of the log-normal lengths")
    arguments.add_argument("--data", help="a packed dataset, from whose lengths as many are drawn")
    options = arguments.parse_args()
    rng = np.random.default_rng(0)
    sets = {
        f"{options.samples:,} log-normal lengths, median 6 s, sigma 0.6, clipped to 0.5 .. 30 s": np.clip(
            rng.lognormal(np.log(6), 0.6, options.samples), 0.5, 30
        )
    }
    if options.data:
        index = Index.load(options.data)
        own = np.concatenate([index.seconds(shard) for shard in range(len(index.shards))])
        # In random order, since a list often has like beside like; and so many that 64 ranks take more than a step.
        title = f"{options.samples:,} lengths drawn from {len(own):,} recordings ({own.sum() / 3600:.1f} h)"
        sets[title] = rng.choice(own, options.samples)
    lhotse, missing = available(PEERS, ["lhotse"])
    parts = [ABOUT, *missing]
    figure = None
    for title, lengths in sets.items():
        rows = [row for ranks in RANKS for row in measured(lengths, ranks, lhotse)]
        parts += [f"## {title}", table(HEADER, rows)]
        figure = figure or draw(rows)
    text = "\n\n".join(parts)
    print(text)
    print(write_results("plan", text, packages=("numpy",), figure=figure))


def draw(rows: list[tuple[str, ...]]) -> Figure:
    """What ranks compute and wait above the audio, for each number of ranks."""
    figure = Figure(len(RANKS), height=2.8)
    for panel, ranks in zip(figure.panels, RANKS):
        together = {row[0]: float(row[HEADER.index("together %")]) for row in rows if row[1] == str(ranks)}
        title = f"Padding and stragglers on {ranks} rank{'s' if ranks > 1 else ''}"
        bars(panel, title, together, unit="% above the audio", form="{:.1f}")
    return figure


def measured(lengths: np.ndarray, ranks: int, peers: list[tuple[Peer, str]]) -> Iterator[tuple[str, ...]]:
    for window in WINDOWS:
        if window * ranks <= len(lengths) or window == WINDOWS[-1]:
            yield row(f"shardpipe, window {window:,}", ranks, shardpipe(lengths, ranks, window))
    for peer, version in peers:
        yield row(f"lhotse {version}, 30 buckets", ranks, bucketed(lengths, ranks, peer))
    yield row("shuffled only", ranks, shuffled(lengths, ranks))


def row(name: str, ranks: int, run: Batches) -> tuple[str, ...]:
    costs = [np.array([len(batch) * batch.max() for batch in step]) for step in run]
    audio, padded = sum(batch.sum() for step in run for batch in step), sum(cost.sum() for cost in costs)
    waited = sum(cost.max() * ranks for cost in costs)
    over = np.mean(np.concatenate(costs) > BUDGET * (1 + 1e-9))
    shares = (1 - audio / padded, waited / padded - 1, waited / audio - 1, over)
    return (name, str(ranks), f"{len(run):,}", *(f"{100 * share:.2f}" for share in shares))


def shardpipe(lengths: np.ndarray, ranks: int, window: int) -> Batches:
    # A lane for every rank, or a single one for all where that would not leave each a full window.
    lanes = ranks if window * ranks <= len(lengths) else 1
    order = Order([len(lengths)], seed=0, window=window, lanes=lanes)
    # The lengths are taken as those of the positions: they are in random order already.
    plan = Plan(order, Batching(batch_seconds=BUDGET), seconds=lambda _, positions: lengths[positions])
    return [[lengths[batch.positions] for batch in step.batches] for step in steps(plan.batches(0, 0), ranks)]


def bucketed(lengths: np.ndarray, ranks: int, peer: Peer) -> Batches:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "lengths.npy"
        np.save(file, lengths)
        with Child(Path(__file__).parent / "peers" / "plan_lhotse.py", file, python=peer.python) as child:
            run = child.ask(ranks=ranks, seconds=BUDGET)["steps"]
    return [[np.array(batch) for batch in step] for step in run]


def shuffled(lengths: np.ndarray, ranks: int) -> Batches:
    """Samples as they come, a batch being closed before its padded length exceeds the budget."""
    batches, batch, longest = [], [], 0.0
    for length in lengths.tolist():
        if max(longest, length) * (len(batch) + 1) > BUDGET:
            batches.append(np.array(batch))
            batch, longest = [], 0.0
        batch.append(length)
        longest = max(longest, length)
    batches.append(np.array(batch))
    return [batches[i : i + ranks] for i in range(0, len(batches), ranks)]


if __name__ == "__main__":
    main()
