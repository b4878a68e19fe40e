"""The demo's runs, each a process of its own, started and killed as a person would."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from shardpipe.demo.compare import Comparison, History, Samples, compare, consumed_samples
from shardpipe.demo.report import report
from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.pack import PackOptions, pack
from shardpipe.store import write_file, writing

__all__ = ["run_demo"]

# In mid-epoch and between two checkpoints, for 5 epochs as for 1.
_KILL_AT = 0.55
_SETTINGS = (
    *("--model", "tiny", "--device", "cpu", "--batch-size", "8", "--seed", "1"),
    *("--learning-rate", "3e-3", "--warmup", "40steps", "--save-every", "150samples", "--log-keys"),
)
_MARKER = ".shardpipe-demo"
_LOOK_EVERY_SECONDS = 0.02


def run_demo(out: Path, *, epochs: int = 5) -> Comparison:
    """Runs the demo in the folder `out`, shows the comparison on the terminal and writes out/report.html.

    An earlier demo's folder is used again, what is in it removed. Raises ConfigError for a folder that holds something
    else, and ShardpipeError if a run fails; whether the two runs came out the same is for the caller to look at.
    """
    _prepare(out)
    stage = _Stage(out=out, epochs=epochs)
    samples = _pack_corpus(stage)
    total = epochs * len(samples)
    whole, broken = out / "uninterrupted", out / "killed"
    stage.train(whole, "uninterrupted", total=total)
    stage.train(broken, "killed", total=total, kill_at=round(_KILL_AT * total))
    killed = History.read(broken)
    stage.train(broken, "resumed", total=total)
    comparison = compare(whole, killed, broken, samples=samples, epochs=epochs)
    path = out / "report.html"
    write_file(path, report(comparison, stage.commands).encode())
    _show(stage.console, comparison, path)
    return comparison


@dataclass(kw_only=True)
class _Stage:
    """Where the demo works, and the commands it has run, with their seconds."""

    out: Path
    epochs: int
    console: Console = field(default_factory=Console)
    commands: list[tuple[str, float]] = field(default_factory=list)

    def train(self, run: Path, name: str, *, total: int, kill_at: int | None = None) -> None:
        """Trains in `run` to the end, or until `kill_at` samples are consumed. Raises ShardpipeError if it fails."""
        data, valid = str(self.out / "data"), str(self.out / "valid")
        arguments = ["-m", "shardpipe.train", "--data", data, "--valid", valid, "--out", str(run)]
        arguments += [*_SETTINGS, "--epochs", str(self.epochs)]
        log, start = self.out / f"{name}.log", time.monotonic()
        with open(log, "wb") as output, _progress(self.console, f"train, {name}", total) as show:
            process = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=output)
            try:
                _watch(process, run, show, kill_at)
            finally:
                # SIGKILL, which no process can catch or prepare for; it does nothing to one that has ended.
                process.kill()
                process.wait()
        self.commands.append((shlex.join(["python", *arguments]), time.monotonic() - start))
        if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
            last = (log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1]
            raise ShardpipeError(
                f"training ended with code {process.returncode}: {last}",
                where=str(run),
                fix=f"See {log} for all of it.",
            )


def _prepare(out: Path) -> None:
    """Makes the folder, empty but for what marks it as a demo's."""
    with writing(out):
        if out.exists() and any(out.iterdir()):
            if not (out / _MARKER).is_file():
                raise ConfigError("out", str(out), "it must be a new folder or an earlier demo's, to be replaced")
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARKER).touch()


def _pack_corpus(stage: _Stage) -> Samples:
    """Packs both lists of the embedded corpus; returns the bytes of every training sample."""
    start = time.monotonic()
    with as_file(files("shardpipe.demo") / "corpus") as corpus:
        # Several shards, as a real dataset has.
        packed = pack(corpus / "data.list", stage.out / "data", options=PackOptions(shard_samples=70))
        command = ["shardpipe", "pack", str(corpus / "data.list"), "-o", str(packed.out), "--shard-samples", "70"]
        stage.commands.append((shlex.join(command), time.monotonic() - start))
        start = time.monotonic()
        valid = pack(corpus / "valid.list", stage.out / "valid")
        command = ["shardpipe", "pack", str(corpus / "valid.list"), "-o", str(valid.out)]
        stage.commands.append((shlex.join(command), time.monotonic() - start))
    stage.console.print(
        f"packed {packed.samples} utterances, {packed.seconds / 60:.1f} min, into {packed.shards} shards"
    )
    index = Index.load(str(packed.out))
    sizes: dict[str, int] = {}
    for shard in range(len(index.shards)):
        rows = index.rows(shard).to_pydict()
        sizes.update(zip(rows["key"], rows["size"]))
    return sizes


def _watch(process: subprocess.Popen[bytes], run: Path, show: Callable[[int], None], kill_at: int | None) -> None:
    """Follows a run until it ends or has consumed `kill_at` samples."""
    count = 0
    while process.poll() is None and (kill_at is None or count < kill_at):
        time.sleep(_LOOK_EVERY_SECONDS)
        count = consumed_samples(run)
        show(count)


@contextmanager
def _progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of samples on a terminal; elsewhere a line when it is done."""
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        start = time.monotonic()
        yield lambda count: bar.update(task, completed=count)
    if not console.is_terminal:
        console.print(f"{what}: {time.monotonic() - start:.0f} s")


def _show(console: Console, comparison: Comparison, path: Path) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "uninterrupted", "killed and resumed", ""):
        table.add_column(heading)
    for check in comparison.checks:
        verdict = {True: "[green]same[/green]", False: "[bold red]differs[/bold red]", None: ""}[check.passed]
        table.add_row(escape(check.name), escape(check.uninterrupted), escape(check.resumed), verdict)
    console.print(table)
    console.print(f"The picture: {path}", soft_wrap=True, highlight=False)
