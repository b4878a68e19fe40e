"""What a person sees of a run: a progress bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

__all__ = ["Display", "duration"]

_SECONDS_BETWEEN_LINES = 30.0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody listens any more, as when a terminal is closed: no reason to end, as rich would."""


class Display:
    """Shows steps and says things, on standard error; a quiet one (not the main process) shows nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = _Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._next_line = 0.0

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line, above the bar if there is one."""
        self._console.print(text, markup=False)

    def start(self, *, total: int, consumed_samples: int) -> None:
        """Shows the way from `consumed_samples` to `total`."""
        if self._console.is_terminal:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=self._console)
            self._bar.add_task("", total=total, completed=consumed_samples)
            self._bar.start()

    def step(self, consumed_samples: int, record: Mapping[str, Any]) -> None:
        """Shows a training step's record."""
        text = "epoch {epoch} {progress:.1%}  loss {loss:.4f}  lr {lr:.2e}  {utt_per_s:.1f} utt/s".format(**record)
        text += f"  wait {record['data_wait']:.0%}"
        if "servers" in record:
            text += "  {servers} servers, {server_retries} retries, {server_hedges} hedges".format(**record)
        text += f"  {duration(record['eta'])} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=consumed_samples, description=text)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            self.say(f"sample {consumed_samples}  {text}")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
