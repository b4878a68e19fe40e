"""What the commands print: times for people, tables, progress."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from shardpipe.errors import StoreError
from shardpipe.settings import size_text

__all__ = ["Report", "print_drawn", "print_json", "print_table", "progress", "time_text"]

_SECONDS_BETWEEN_LINES = 10.0
_WIDE = 200

Report = Callable[[int, int, int], None]
"""Called with (done, of how many, bytes so far)."""


def time_text(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `4.2 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    with _standard_output():
        print(json.dumps(value, ensure_ascii=False, indent=2), flush=True)


def print_table(title: str, rows: Mapping[str, str]) -> None:
    """A two-column table on standard output."""
    table = Table(title=escape(title), title_justify="left", show_header=False, box=None, pad_edge=False)
    for name, value in rows.items():
        table.add_row(f"[bold]{escape(name)}[/bold]", escape(value))
    with _standard_output():
        Console().print(table)


def print_drawn(draw: Callable[[int], RenderableType]) -> None:
    """What rich draws in a width, on standard output: the terminal's, or a generous one where there is none."""
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    with _standard_output():
        console.print(draw(console.width))


@contextmanager
def _standard_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # a reader that has seen enough, such as head
    except OSError as error:
        raise StoreError(
            f"cannot be written ({error.strerror})", url="standard output", fix="Make room, or send it elsewhere."
        ) from error


@contextmanager
def progress(what: str) -> Iterator[Report]:
    """Shows (done, total, bytes) on standard error: a bar on a terminal, a plain line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from _bar(what)
    else:
        yield _lines(what)


def _bar(what: str) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None, rate="")
        start = time.monotonic()

        def report(done: int, total: int, size: int) -> None:
            bar.update(task, completed=done, total=total, rate=_rate(done, size, time.monotonic() - start))

        yield report


def _lines(what: str) -> Report:
    start = last = time.monotonic()

    def report(done: int, total: int, size: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES and not (done == total and now - start >= _SECONDS_BETWEEN_LINES):
            return
        last = now
        left = f", ETA {time_text((now - start) * (total - done) / done)}" if done else ""
        print(f"{what}: {done:,} of {total:,}, {_rate(done, size, now - start)}{left}", file=sys.stderr, flush=True)

    return report


def _rate(done: int, size: int, seconds: float) -> str:
    seconds = max(seconds, 1e-9)
    return f"{done / seconds:,.0f}/s, {size_text(size / seconds)}/s"
