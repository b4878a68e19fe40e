"""Does the model that comes with shardpipe learn, in slots as short as a night leaves?

Overfit: 200 recorded prompts, trained on and read back. Held out: the embedded corpus with its own held-out part, and
the English prompts with every tenth held out, in 5 and in 30 minutes, cut into slots by `--max-minutes`: each is a
process of its own, which ends with a checkpoint and from which the next goes on. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

from reporting import Checks, Figure, table, write_results

import shardpipe.demo
from shardpipe.pack import pack

CORPUS = Path(shardpipe.demo.__file__).parent / "corpus"
OVERFIT = 0.05
"""The character error rate on what was trained on."""
PROMPTS = 200
EPOCHS = 60
HELD_OUT = 10
"""One in so many."""
SLOTS = {5: 1.0, 30: 5.0}
"""Minutes in all, and of a slot."""
TRIAL = 1.0
"""Minutes by which the epochs of a run are reckoned."""
_FLAGS = [
    *("--model", "tiny", "--device", "cpu", "--batch-seconds", "60", "--max-seconds", "20", "--warmup", "100steps"),
    *("--learning-rate", "2e-3", "--keep-best", "3", "--best-by", "cer"),
]

REPORT = """\
The tiny model (484,000 parameters) of `shardpipe-train` on two cores, loading among it: {flags}.
Every slot is a process that `--max-minutes` ends with a checkpoint; the next one goes on. Character error rates
(CER) are those of greedy decoding, characters as the data have them: capitals and punctuation count.

## Overfit: {prompts} recorded prompts, read back

`--no-spec-augment --schedule constant`, {overfit_epochs} epochs in {overfit_slots} slots, {overfit_minutes:.1f} min:
CER {overfit:.2%}.

## Held out

Cosine to the end of as many epochs as the minutes hold, by a trial of one minute; minutes are those of the processes,
with their starts and evaluations (one an epoch).

{runs}

Means of the last five evaluations of each third of a run:

{thirds}

The embedded corpus is 420 short commands by espeak-ng in six voices, 36 more held out. The prompts are Asterisk's in
English, by `tools/get_speech.py`, 8 kHz, one voice: {train} to train on, {held} held out.

## Checks

{checks}
"""


@dataclass
class Run:
    """What came of a run: evaluations as (share of it, CER), and the minutes of its slots."""

    name: str
    minutes: int
    samples: int = 0
    epochs: int = 0
    slots: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    curve: list[tuple[float, float]] = field(default_factory=list)

    def third(self, number: int) -> float:
        """The mean CER of the last five evaluations of a third."""
        inside = [cer for share, cer in self.curve if share <= (number + 1) / 3]
        return mean(inside[-5:])


def main() -> int:
    arguments = _parser().parse_args()
    work = Path(tempfile.mkdtemp(prefix="learning-", dir=arguments.work))
    lists = _lists(arguments.speech, work)
    for name, path in lists.items():
        pack(path, work / name)
    overfit = _overfit(work)
    print(f"overfit: CER {overfit.curve[-1][1]:.2%} after {sum(overfit.slots):.1f} minutes", flush=True)
    runs = []
    for name in ("embedded", "prompts"):
        for minutes, slot in SLOTS.items():
            runs.append(_held_out(work, name, minutes, slot))
            print(f"{name}, {minutes} minutes: CER {runs[-1].curve[-1][1]:.2%}", flush=True)
    checks = _checks(overfit, runs)
    text = REPORT.format(
        flags="`" + " ".join(_FLAGS) + "`",
        prompts=PROMPTS,
        overfit_epochs=EPOCHS,
        overfit_slots=len(overfit.slots),
        overfit_minutes=sum(overfit.slots),
        overfit=overfit.curve[-1][1],
        runs=_table_of_runs(runs),
        thirds=_table_of_thirds(runs),
        train=_count(lists["prompts"]),
        held=_count(lists["prompts-held"]),
        checks=checks,
    )
    print(text)
    packages = ("torch", "torchaudio")
    path = write_results("learning", text, packages=packages, figure=_figure(runs), folder=arguments.results)
    print(path)
    return 0 if checks.good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True, help="What tools/get_speech.py has made, with English.")
    parser.add_argument("--work", type=Path, help="Where runs are kept; by default in the system's temporary folder.")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[1] / "docs" / "results")
    return parser


def _lists(speech: Path, work: Path) -> dict[str, Path]:
    """Lists by the names of the datasets."""
    lines = [json.loads(line) for line in (speech / "data.list").read_text(encoding="utf-8").splitlines()]
    english = [line | {"wav": str(speech / line["wav"])} for line in lines if line.get("lang") == "en"]
    parts = {
        "overfit": english[:PROMPTS],
        "prompts": [line for i, line in enumerate(english) if i % HELD_OUT],
        "prompts-held": english[::HELD_OUT],
    }
    found = {"embedded": CORPUS / "data.list", "embedded-held": CORPUS / "valid.list"}
    for name, part in parts.items():
        found[name] = work / f"{name}.list"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in part)
        found[name].write_text(text, encoding="utf-8")
    return found


def _count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _overfit(work: Path) -> Run:
    run = Run("overfit", 0, epochs=EPOCHS)
    flags = ["--data", "overfit", "--valid", "overfit", "--no-spec-augment", "--schedule", "constant"]
    return _train(run, work, flags, slot=1.0)


def _held_out(work: Path, name: str, minutes: int, slot: float) -> Run:
    flags = ["--data", name, "--valid", f"{name}-held"]
    trial = Run(f"{name}-trial-{minutes}", minutes, epochs=10**6)
    _slot(trial, work, flags, TRIAL)
    events = _events(work / trial.name)
    size, consumed = events[0]["num_samples"], events[-1]["consumed_samples"]
    epochs = max(3, round(consumed / trial.slots[0] * minutes / size))
    return _train(Run(f"{name}-{minutes}", minutes, epochs=epochs), work, flags, slot=slot)


def _train(run: Run, work: Path, flags: list[str], *, slot: float) -> Run:
    """In slots, until all epochs are done."""
    events: list[dict[str, Any]] = []
    while not any(event["event"] == "end" for event in events):
        _slot(run, work, flags, slot)
        events = _events(work / run.name)
        run.ends.append(events[-1]["consumed_samples"])
    total = run.ends[-1]
    run.samples = total
    run.ends = [end / total for end in run.ends]
    run.curve = [(event["consumed_samples"] / total, event["cer"]) for event in events if event["event"] == "valid"]
    return run


def _slot(run: Run, work: Path, flags: list[str], minutes: float) -> None:
    command = [sys.executable, "-m", "shardpipe.train", *flags, *_FLAGS, "--out", run.name]
    command += ["--epochs", str(run.epochs), "--max-minutes", str(minutes)]
    began = time.monotonic()
    with (work / f"{run.name}.log").open("a") as log:
        subprocess.run(command, cwd=work, check=True, stderr=log)
    run.slots.append((time.monotonic() - began) / 60)


def _events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _checks(overfit: Run, runs: list[Run]) -> Checks:
    checks = Checks()
    cer = overfit.curve[-1][1]
    checks.add(cer < OVERFIT, f"overfit: CER {cer:.2%}, to be under {OVERFIT:.0%}")
    for run in runs:
        if run.minutes == max(SLOTS):
            thirds = [run.third(number) for number in range(3)]
            falls = " > ".join(f"{cer:.2%}" for cer in thirds)
            checks.add(thirds == sorted(thirds, reverse=True) and len(set(thirds)) == 3, f"{run.name}: CER {falls}")
    return checks


def _table_of_runs(runs: list[Run]) -> str:
    rows = [
        (
            run.name.rpartition("-")[0],
            f"{sum(run.slots):.1f}",
            len(run.slots),
            run.epochs,
            f"{run.samples:,}",
            f"{min(cer for _, cer in run.curve):.2%}",
            f"{run.curve[-1][1]:.2%}",
        )
        for run in runs
    ]
    return table(("corpus", "minutes", "slots", "epochs", "samples", "best CER", "last CER"), rows)


def _table_of_thirds(runs: list[Run]) -> str:
    rows = [
        (f"{run.name.rpartition('-')[0]}, {run.minutes} min", *(f"{run.third(number):.2%}" for number in range(3)))
        for run in runs
    ]
    return table(("run", "first", "second", "last third"), rows)


def _figure(runs: list[Run]) -> Figure:
    figure = Figure(len(runs))
    for axes, run in zip(figure.panels, runs):
        minutes = sum(run.slots)
        axes.plot([share * minutes for share, _ in run.curve], [100 * cer for _, cer in run.curve], color="#1f6fb4")
        for end in run.ends[:-1]:
            axes.axvline(end * minutes, color="#b9bfc6", linestyle="--", linewidth=1)
        axes.set_title(f"{run.name.rpartition('-')[0]}, {run.minutes} minutes")
        axes.set_xlabel("minutes; dashed: a slot ended, the next one went on")
        axes.set_ylabel("held-out CER, %")
        axes.set_ylim(0, 110)
    return figure


if __name__ == "__main__":
    sys.exit(main())
