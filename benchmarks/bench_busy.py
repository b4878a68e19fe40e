"""Do batches still come in time if the trainer itself is busy, and holds the GIL?

A trainer that takes 30 ms over a batch of 16 sleeps that long, trains a small network in eager torch, or calculates in
pure Python; its batches are made by threads, by worker processes, or as workers="auto" finds better. Each pair is a
process of its own on the same two cores, and rounds go over all of them in turn. Rates are compared with that of the
same round of a trainer asleep, fed by threads. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from busy_child import STEP_SECONDS, TRAINERS
from corpus import add_corpus_arguments, corpus_of, packed
from processes import Child, alternate, ratio, use_cores
from reporting import Checks, Figure, table, write_results

SETTINGS: dict[str, dict[str, Any]] = {
    "threads": {},
    'workers="auto"': {"workers": "auto"},
    "workers=2": {"workers": 2},
}
Pair = tuple[str, str]
"""A trainer and a setting."""
BASELINE: Pair = ("asleep", "threads")
TARGETS: dict[Pair, float] = {("eager torch", "threads"): 0.95, ("pure Python", 'workers="auto"'): 0.90}
"""Shares of the baseline's rate that are to be reached."""

REPORT = """\
{about}. On {cores} cores, batches of 16, a trainer of {step:.0f} ms a batch; medians of {rounds} alternating rounds of
{seconds:.0f} s, after {warm:.0f} s that are not counted. Waiting is the trainer's, for its next batch.

{table}

## Checks

{checks}
"""


class Runs:
    """What came of every pair, round by round."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures: dict[Pair, list[float]] = {}
        self.waited: dict[Pair, list[float]] = {}
        self.processes: dict[Pair, int] = {}

    def run(self, rounds: int, seconds: float, warm: float) -> None:
        pairs = {f"{trainer}, {setting}": (trainer, setting) for trainer in TRAINERS for setting in SETTINGS}
        self.waited = {pair: [] for pair in pairs.values()}
        with ExitStack() as children:
            measures = {}
            for name, (trainer, setting) in pairs.items():
                child = children.enter_context(
                    Child(
                        Path(__file__).with_name("busy_child.py"), self.folder, json.dumps(SETTINGS[setting]), trainer
                    )
                )
                print(f"warming up: {name}", flush=True)
                child.ask(seconds=warm)
                measures[name] = partial(self._ask, child, (trainer, setting), seconds)
            figures = alternate(rounds, measures)
        self.figures = {pair: figures[name] for name, pair in pairs.items()}

    def _ask(self, child: Child, pair: Pair, seconds: float) -> float:
        answer = child.ask(seconds=seconds)
        self.waited[pair].append(answer["waited"])
        self.processes[pair] = answer["processes"]
        return float(answer["rate"])

    def share(self, pair: Pair) -> float:
        return ratio(self.figures[pair], self.figures[BASELINE])

    def table(self) -> str:
        rows = [
            [
                trainer,
                setting,
                f"{median(figures):,.0f}",
                f"{min(figures):,.0f} .. {max(figures):,.0f}",
                f"{100 * self.share((trainer, setting)):.1f} %",
                f"{100 * median(self.waited[trainer, setting]):.1f} %",
                self.processes[trainer, setting],
            ]
            for (trainer, setting), figures in self.figures.items()
        ]
        return table(
            ["trainer", "loader", "utt/s", "all rounds", "of asleep, threads", "waiting", "worker processes"], rows
        )

    def check(self, checks: Checks) -> None:
        for pair, target in TARGETS.items():
            text = f"{', '.join(pair)}: {100 * self.share(pair):.1f} % of {', '.join(BASELINE)}"
            checks.add(self.share(pair) >= target, f"{text} (at least {100 * target:.0f} %)")

    def draw(self) -> Figure:
        figure = Figure(2, height=3.4)
        rates, waits = figure.panels
        for number, (setting, colour) in enumerate(zip(SETTINGS, ("#b9bfc6", "#1f6fb4", "#6c757d"))):
            places = [place + 0.27 * (number - 1) for place in range(len(TRAINERS))]
            pairs = [(trainer, setting) for trainer in TRAINERS]
            rates.bar(places, [median(self.figures[pair]) for pair in pairs], 0.25, color=colour, label=setting)
            waits.bar(places, [100 * median(self.waited[pair]) for pair in pairs], 0.25, color=colour, label=setting)
        rates.set_title(f"FLAC to a trainer of {1000 * STEP_SECONDS:.0f} ms a batch")
        rates.set_ylabel("utterances / s")
        rates.axhline(16 / STEP_SECONDS, color="#c0392b", linestyle="--", linewidth=1)
        waits.set_title("Its time that goes by in waiting")
        waits.set_ylabel("%")
        waits.legend()
        for panel in figure.panels:
            panel.set_xticks(range(len(TRAINERS)), list(TRAINERS))
            panel.grid(axis="x", visible=False)
        return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of every measurement (default: %(default)s)")
    parser.add_argument(
        "--warm",
        type=float,
        default=15.0,
        help='seconds before the first, by which workers="auto" has to have decided (default: %(default)s)',
    )
    parser.add_argument("--cores", type=int, default=2, help="0: all (default: %(default)s)")
    options = parser.parse_args()
    corpus = corpus_of(options)
    runs = Runs(packed(corpus))
    cores = use_cores(options.cores)
    runs.run(options.rounds, options.seconds, options.warm)
    checks = Checks()
    runs.check(checks)
    text = REPORT.format(
        about=corpus.describe(),
        cores=cores,
        step=1000 * STEP_SECONDS,
        rounds=options.rounds,
        seconds=options.seconds,
        warm=options.warm,
        table=runs.table(),
        checks=checks,
    )
    print(text)
    print(write_results("busy", text, packages=("shardpipe", "numpy", "torch"), figure=runs.draw()).name)
    return 0 if checks.good else 1


if __name__ == "__main__":
    sys.exit(main())
