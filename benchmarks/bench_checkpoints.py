"""What do checkpoints cost a training, and what does a resume?

A Conformer of some 50 million parameters with AdamW takes steps for 20 seconds: without checkpoints, with one written
beside it as `shardpipe-train` does, and with one for which it waits. Compared is the time of a step, a round by its
steps, over alternating rounds; what it takes longer is the cost of one checkpoint, of which there is to be one a
minute. Then `shardpipe-train` is resumed from checkpoints at counts of some 10^3 and 10^8 samples; compared is the time
from the start of the process to the end of its first step. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from corpus import add_corpus_arguments, corpus_of, packed
from processes import alternate, ratio
from reporting import Checks, table, write_results

from shardpipe import ShardLoader
from shardpipe.settings import size_text
from shardpipe.train.checkpoints import Checkpoint, Checkpoints, Identity, Keep, Progress, Saver
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World
from shardpipe.train.task import SIZES, CharTokenizer, Learner
from shardpipe.train.task.model import Size

MOST = 0.05
"""Of the time of a step, at one checkpoint a minute."""
LATEST = 1.1
"""Times the start at the low count that one at the high count may take."""
COUNTS = (10**3, 10**8)
LONGEST = 4.0
"""Seconds of an utterance: a short step is held up by more, as a share of it."""

REPORT = """\
A Conformer of {parameters:,} parameters, AdamW, float32, a batch of {batch_size} utterances of up to {longest:.0f} s;
a checkpoint has {size} and goes to a local disk. {rounds} alternating rounds of {seconds:.0f} s, one checkpoint each;
medians, a ratio being the median of the rounds'.

{steps}

Written beside the training, a checkpoint held it up for {held:.2f} s and was complete after {written:.1f} s; waited
for, it held it up for {waited:.1f} s.

`shardpipe-train --model tiny` resumed at two counts, {starts} starts each: seconds from the start of the process to the
end of its first step.

{resumes}

## Checks

{checks}
"""


class Training:
    """A model under training on one batch, again and again, and its checkpoints."""

    def __init__(self, data: str, folder: Path, seconds: float, batch_size: int) -> None:
        SIZES["medium"] = Size(width=432, layers=13, heads=8, hidden=1728, kernel=31)
        self.seconds = seconds
        config = TrainConfig(data=data, out=str(folder), model="medium", device="cpu", batch_size=batch_size)
        self._world = World(rank=0, size=1, device=torch.device("cpu"))
        loader = ShardLoader(data, batch_size=batch_size, max_seconds=LONGEST)
        self._batch = next(iter(loader))
        self._learner = Learner(config, self._world, CharTokenizer.from_texts(self._batch.texts), loader.sample_rate)
        self._checkpoints = Checkpoints(str(folder), keep=Keep(newest=2))
        self._saver = Saver(self._checkpoints, self._world, print)
        self._saved = 0
        self.held: dict[str, list[float]] = {"beside": [], "waited for": []}
        self.written: list[float] = []

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._learner.model.parameters())

    @property
    def size(self) -> int:
        return self._checkpoints.peek(self._saved).size

    def step(self) -> None:
        result = self._learner.forward(self._batch, train=True)
        self._learner.engine.backward(result.loss)
        self._learner.engine.update(self._learner.optimizer, weight=result.weight, rate=1e-4)

    def none(self) -> float:
        return self._round(None)

    def beside(self) -> float:
        return self._round("beside")

    def waited_for(self) -> float:
        return self._round("waited for")

    def _round(self, how: str | None) -> float:
        """Seconds of a step."""
        begun, number, saved = time.perf_counter(), 0, how is None
        while time.perf_counter() - begun < self.seconds:
            self.step()
            number += 1
            if not saved and time.perf_counter() - begun > self.seconds / 10:
                saved = True
                self._save(str(how))
        elapsed = time.perf_counter() - begun
        self._saver.wait()  # nothing of it falls into the next round
        self.written += [written.seconds for written in self._saver.written() if how == "beside"]
        return elapsed / number

    def _save(self, how: str) -> None:
        self._saved += 1
        checkpoint = Checkpoint(
            consumed_samples=self._saved,
            progress=Progress(),
            identity=Identity(model="medium", units=(), sample_rate=16000),
            loader={"consumed_samples": self._saved},
        )
        begun = time.perf_counter()
        self._saver.save(self._learner.model, self._learner.optimizer, checkpoint)
        if how == "waited for":
            self._saver.wait()
        self.held[how].append(time.perf_counter() - begun)


class Resumed:
    """A run that has a checkpoint at a count, or at the first one after it."""

    def __init__(self, data: str, folder: Path, count: int, source: str | None) -> None:
        self.out = folder / f"at-{count}"
        epochs = count // ShardLoader(data, batch_size=1).num_samples + 2
        self._command = [sys.executable, "-m", "shardpipe.train", "--data", data, "--out", str(self.out)]
        self._command += ["--model", "tiny", "--device", "cpu", "--batch-size", "4", "--epochs", str(epochs)]
        self._command += ["--save-every", "1000steps"]
        first = [] if source is None else ["--init-from", source, "--resume-samples", str(count)]
        process = self._start([*first, "--save-every", "1steps"])
        while not (found := list(self.out.glob("checkpoints/0*/checkpoint.json"))):
            time.sleep(0.01)
        self._end(process)
        self.checkpoint = str(found[0].parent)

    def seconds(self) -> float:
        """From the start of a process that resumes to the end of its first step."""
        begun = time.perf_counter()
        process = self._start([])
        before = self._steps()
        while self._steps() <= before and process.poll() is None:
            time.sleep(0.002)
        elapsed = time.perf_counter() - begun
        self._end(process)
        return elapsed

    def _start(self, more: list[str]) -> subprocess.Popen[bytes]:
        (self.out / "metrics.jsonl").unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([*self._command, *more], env=environment, stderr=subprocess.DEVNULL)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _steps(self) -> int:
        try:
            lines = (self.out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return 0
        return sum(json.loads(line)["event"] == "step" for line in lines if line.endswith(b"\n"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a round, with one checkpoint")
    parser.add_argument("--starts", type=int, default=7, help="resumes from each count")
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    corpus = corpus_of(options)
    data = str(packed(corpus))
    checks = Checks()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        training = Training(data, Path(work) / "beside", options.seconds, options.batch_size)
        for _ in range(3):
            training.step()  # not counted
        measures: dict[str, Callable[[], float]] = {
            "none": training.none,
            "beside": training.beside,
            "waited for": training.waited_for,
        }
        steps = alternate(options.rounds, measures)
        rows = []
        for name, figures in steps.items():
            longer = ratio(figures, steps["none"]) - 1
            lost = f"{longer * options.seconds:.2f}"
            share = longer * options.seconds / 60
            rows.append([name, f"{median(figures):.4f}", *(["", ""] if name == "none" else [lost, f"{share:.1%}"])])
            if name == "beside":
                text = f"a checkpoint a minute beside the training takes {share:.1%} of it (below {MOST:.0%})"
                checks.add(share < MOST, text)

        low = Resumed(data, Path(work), COUNTS[0], Resumed(data, Path(work), 0, None).checkpoint)
        high = Resumed(data, Path(work), COUNTS[1], low.checkpoint)
        starts = alternate(options.starts, {f"{COUNTS[0]:,}": low.seconds, f"{COUNTS[1]:,}": high.seconds})
        first, last = starts.values()
        later = ratio(last, first)
        resumes = [[name, f"{median(figures):.2f}"] for name, figures in starts.items()]
        checks.add(later < LATEST, f"a resume at 10^8 samples takes {later:.3f} of one at 10^3 (below {LATEST})")
        text = REPORT.format(
            parameters=training.parameters,
            batch_size=options.batch_size,
            longest=LONGEST,
            size=size_text(training.size),
            rounds=options.rounds,
            seconds=options.seconds,
            steps=table(["checkpoints", "seconds a step", "seconds lost by one", "at one a minute"], rows),
            held=median(training.held["beside"]),
            written=median(training.written),
            waited=median(training.held["waited for"]),
            starts=options.starts,
            resumes=table(["samples consumed", "seconds"], resumes),
            checks=checks,
        )
    print(text)
    print(write_results("checkpoints", text, packages=("shardpipe", "torch", "safetensors")).name)
    return 0 if checks.good else 1


if __name__ == "__main__":
    sys.exit(main())
