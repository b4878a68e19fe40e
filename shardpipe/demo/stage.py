"""What every demo works with: a folder, the packed corpus, and training as a process that is watched as it goes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from shardpipe.dataset import Index
from shardpipe.demo.chart import Point
from shardpipe.demo.compare import Comparison, Samples, consumed_samples
from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.pack import PackOptions, pack
from shardpipe.store import write_file, writing

__all__ = ["Act", "Course", "Done", "Stage", "last_words"]

_SETTINGS = (
    *("--model", "tiny", "--device", "cpu", "--batch-size", "8", "--seed", "1"),
    *("--learning-rate", "3e-3", "--warmup", "40steps", "--save-every", "150samples", "--log-keys"),
)
_MARKER = ".shardpipe-demo"
_LOOK_EVERY_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Act:
    """What is done once while a run trains: `when` its count is right, and the acts before it are done.

    `do` gets the training's process.
    """

    name: str
    when: Callable[[int], bool]
    do: Callable[[subprocess.Popen[bytes]], None]


@dataclass(frozen=True, kw_only=True)
class Done:
    """An act, when it was done."""

    name: str
    seconds: float
    consumed_samples: int


@dataclass(frozen=True, kw_only=True)
class Course:
    """How a run went: (seconds since its start, consumed samples) as they were seen, and what was done meanwhile."""

    points: list[Point] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)


@dataclass(kw_only=True)
class Stage:
    """Where a demo works, and the commands it has run, with their seconds."""

    out: Path
    epochs: int
    console: Console = field(default_factory=Console)
    commands: list[tuple[str, float | None]] = field(default_factory=list)

    def prepare(self) -> None:
        """Makes the folder, empty but for what marks it as a demo's. Raises ConfigError if it holds something else."""
        out = self.out
        with writing(out):
            if out.exists() and any(out.iterdir()):
                if not (out / _MARKER).is_file():
                    raise ConfigError("out", str(out), "it must be a new folder or an earlier demo's, to be replaced")
                shutil.rmtree(out)
            out.mkdir(parents=True, exist_ok=True)
            (out / _MARKER).touch()

    def pack_corpus(self) -> Samples:
        """Packs both lists of the embedded corpus; returns the bytes of every training sample."""
        start = time.monotonic()
        with as_file(files("shardpipe.demo") / "corpus") as corpus:
            # Several shards, as a real dataset has.
            packed = pack(corpus / "data.list", self.data, options=PackOptions(shard_samples=70))
            command = ["shardpipe", "pack", str(corpus / "data.list"), "-o", str(packed.out), "--shard-samples", "70"]
            self.commands.append((shlex.join(command), time.monotonic() - start))
            start = time.monotonic()
            valid = pack(corpus / "valid.list", self.out / "valid")
            command = ["shardpipe", "pack", str(corpus / "valid.list"), "-o", str(valid.out)]
            self.commands.append((shlex.join(command), time.monotonic() - start))
        self.console.print(
            f"packed {packed.samples} utterances, {packed.seconds / 60:.1f} min, into {packed.shards} shards"
        )
        index = Index.load(str(packed.out))
        sizes: dict[str, int] = {}
        for shard in range(len(index.shards)):
            rows = index.rows(shard).to_pydict()
            sizes.update(zip(rows["key"], rows["size"]))
        return sizes

    @property
    def data(self) -> Path:
        """The dataset to train on."""
        return self.out / "data"

    def train(
        self, name: str, *, run: str, total: int, data: str | None = None, acts: Sequence[Act] = (), ends: int = 0
    ) -> Course:
        """Trains in out/`run` to the end, by `data` instead of the dataset's folder if given, and acts meanwhile.

        Raises ShardpipeError if it ends with another code than `ends`, or before all is done.
        """
        folder, valid = self.out / run, str(self.out / "valid")
        arguments = ["-m", "shardpipe.train", "--data", data or str(self.data), "--valid", valid, "--out", str(folder)]
        arguments += [*_SETTINGS, "--epochs", str(self.epochs)]
        log, start, course = self.out / f"{name}.log", time.monotonic(), Course()
        with open(log, "wb") as output, self._progress(f"train, {name}", total) as show:
            process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output)
            try:
                for count in _counts(process, folder):
                    show(count)
                    _go_on(course, count, time.monotonic() - start, process, acts)
            finally:
                process.kill()
                process.wait()
        self.commands.append((shlex.join(["python", *arguments]), time.monotonic() - start))
        if process.returncode != ends:
            raise ShardpipeError(
                f"training ended with code {process.returncode}: {last_words(log)}",
                where=str(folder),
                fix=f"See {log} for all of it.",
            )
        if left := acts[len(course.done) :]:
            raise ShardpipeError(f"training ended before this was done: {left[0].name}", where=str(folder))
        return course

    def finish(self, comparison: Comparison, page: str) -> None:
        """Writes the report, and shows the comparison on the terminal."""
        path = self.out / "report.html"
        write_file(path, page.encode())
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in ("", *comparison.headings, ""):
            table.add_column(heading)
        for check in comparison.checks:
            verdict = {True: "[green]same[/green]", False: "[bold red]differs[/bold red]", None: ""}[check.passed]
            table.add_row(escape(check.name), escape(check.undisturbed), escape(check.disturbed), verdict)
        self.console.print(table)
        self.console.print(f"The picture: {path}", soft_wrap=True, highlight=False)

    @contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar of samples on a terminal; elsewhere a line when it is done."""
        columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(what, total=total)
            start = time.monotonic()
            yield lambda count: bar.update(task, completed=count)
        if not self.console.is_terminal:
            self.console.print(f"{what}: {time.monotonic() - start:.0f} s")


def last_words(log: Path) -> str:
    """The last line of what a process has said."""
    return (log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1]


def _counts(process: subprocess.Popen[bytes], run: Path) -> Iterator[int]:
    """The samples that a run has consumed, again and again until it ends."""
    while process.poll() is None:
        time.sleep(_LOOK_EVERY_SECONDS)
        yield consumed_samples(run)


def _go_on(course: Course, count: int, seconds: float, process: subprocess.Popen[bytes], acts: Sequence[Act]) -> None:
    """Takes down where a run is, and does what is due."""
    if not course.points or count > course.points[-1][1]:
        course.points.append((seconds, count))
    for act in acts[len(course.done) :]:
        if not act.when(count):
            break
        act.do(process)
        course.done.append(Done(name=act.name, seconds=seconds, consumed_samples=count))
