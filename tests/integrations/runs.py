"""Trainings under other frameworks, in processes of their own: many of them in one, for the imports take longest.

A test hands `run` a list of jobs; a script beside this module does them (`main`), each in the folder that it names,
where a training step writes down what it was given and the weights are left at the end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from shardpipe import ShardLoader
from shardpipe.train.compat import leave_group

__all__ = [
    "BY_SECONDS",
    "LOADER",
    "SAMPLES",
    "STATIC",
    "Framework",
    "Net",
    "Trained",
    "check_resumed",
    "main",
    "run",
    "trained",
]

ROOT = Path(__file__).parents[2]
SAMPLES = 40
LOADER: dict[str, Any] = {"window": 8, "lanes": 2, "seed": 3}
STATIC = {"batch_size": 3}
BY_SECONDS = {"batch_seconds": 1.0}


class Net(nn.Module):
    """Has dropout, so that its weights tell what was drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.Linear(16, 1))

    def forward(self, audio: Tensor, weights: Tensor, **_: Any) -> dict[str, Tensor]:
        values = self.layers(audio[:, :4])[:, 0]
        return {"loss": (values * weights).sum() / weights.sum().clamp(min=1), "logits": values}


class Trained:
    """The log that a training step writes: the samples that count, in the order in which they come."""

    def __init__(self, out: str) -> None:
        Path(out).mkdir(parents=True, exist_ok=True)
        rank = int(os.environ.get("RANK", 0))
        self._file: TextIO = open(f"{out}/trained-{rank}.jsonl", "a", encoding="utf-8")  # noqa: SIM115

    def note(self, batch: Any) -> None:
        for key, weight in zip(list(batch["keys"]), batch["weights"]):
            if weight:
                self._file.write(json.dumps([batch["epoch"], key]) + "\n")
        self._file.flush()


def main(fit: Callable[..., None]) -> None:
    """What the scripts do: `fit(**job)` for each job in the file that is named."""
    torch.set_num_threads(1)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        fit(**job)
    if torch.distributed.is_initialized():
        leave_group()


def run(script: str, jobs: list[dict[str, Any]], *, processes: int = 1, fails: bool = False) -> str:
    """Does jobs by a script of this folder; returns what it said on stderr. It must fail if that is expected."""
    for job in jobs:
        shutil.rmtree(job["out"], ignore_errors=True)
        Path(job["out"]).mkdir(parents=True)
    plan = Path(jobs[0]["out"]) / "jobs.json"
    plan.write_text(json.dumps(jobs))
    launcher = [sys.executable, "-W", "ignore"]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launcher, str(Path(__file__).parent / script), str(plan)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert bool(done.returncode) == fails, done.stderr[-6000:]
    return done.stderr


def trained(out: Path) -> list[tuple[int, str]]:
    """(epoch, key) of all that the training steps were given, rank after rank."""
    lines = [line for path in sorted(out.glob("trained-*.jsonl")) for line in path.read_text().splitlines()]
    return [(epoch, key) for epoch, key in map(json.loads, lines)]


def sequence(data: Path, samples: int, **options: Any) -> list[tuple[int, str]]:
    """What a run that is never stopped is given, by the loader itself."""
    loader, given = ShardLoader(data, **{**LOADER, **options}), []
    while len(given) < samples:
        given += [(batch.epoch, key) for batch in loader for key in batch.keys]
    return given[:samples]


def check_resumed(whole: list[tuple[int, str]], begun: Path, resumed: Path, place: int) -> None:
    """On one process a run resumed at a place is given exactly the rest of the whole one, and has the same weights."""
    assert trained(resumed) == whole[place:], resumed
    _check_weights(begun, resumed)


@dataclass(frozen=True)
class Framework:
    """One that trains: its script, what it saves in a run's folder, and the count of consumed samples in that."""

    script: str
    saved: Callable[[Path], Iterable[Path]]
    place: Callable[[Path], int]

    def check_everywhere(
        self, data: Path, folder: Path, configs: dict[str, dict[str, Any]], number: int
    ) -> list[tuple[str, Path, Path, Path]]:
        """Runs of several kinds, each resumed from some of what it has saved: (name, run, saved, resumed) of all."""
        begun = {name: {"out": str(folder / name), "data": str(data), **options} for name, options in configs.items()}
        run(self.script, [{"save": True, **job} for job in begun.values()])
        resumes, jobs = [], []
        for name, job in begun.items():
            whole = trained(folder / name)
            assert whole == sequence(data, len(whole), **job["loader"]), name
            for saved in self._some(folder / name, number):
                out = folder / f"{name} from {saved.stem}"
                resumes.append((name, folder / name, saved, out))
                jobs.append({**job, "resume": str(saved), "out": str(out)})
        run(self.script, jobs)
        for _, before, saved, after in resumes:
            check_resumed(trained(before), before, after, self.place(saved))
        return resumes

    def check_other_worlds(
        self, data: Path, folder: Path, options: dict[str, Any], number: int
    ) -> list[tuple[Path, Path]]:
        """From two processes to two and to one, from one to two: (run, resumed) of all."""
        options = {"data": str(data), **options}
        one, two = folder / "one", folder / "two"
        run(self.script, [{**options, "save": True, "out": str(one)}])
        run(self.script, [{**options, "save": True, "out": str(two)}], processes=2)
        whole = trained(one)
        assert sorted(trained(two)) == sorted(whole)
        assert whole == sequence(data, len(whole), **options["loader"])
        found = []
        for processes, sources in ((2, (two, one)), (1, (two,))):
            pairs = [(source, saved) for source in sources for saved in self._some(source, number)]
            outs = [folder / f"{source.name} {saved.stem} on {processes}" for source, saved in pairs]
            jobs = [{**options, "resume": str(saved), "out": str(out)} for out, (_, saved) in zip(outs, pairs)]
            run(self.script, jobs, processes=processes)
            for out, (source, saved) in zip(outs, pairs):
                assert sorted(trained(out)) == sorted(whole[self.place(saved) :]), out
                if source == two and processes == 2:
                    _check_weights(source, out)
                found.append((source, out))
        return found

    def _some(self, folder: Path, number: int) -> list[Path]:
        saved = sorted(self.saved(folder))
        return random.Random(folder.name).sample(saved, min(number, len(saved)))


def _check_weights(begun: Path, resumed: Path) -> None:
    wanted, got = (torch.load(path / "weights.pt", weights_only=True) for path in (begun, resumed))
    assert all(torch.equal(wanted[name], got[name]) for name in wanted), resumed
