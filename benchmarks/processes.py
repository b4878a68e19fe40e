"""Measuring in processes of their own, in alternating rounds, so that what is compared meets the same machine.

A child is a script that is started anew, answers every line on its standard input with a line of JSON, and ends with
its input. All children run on the cores that `use_cores` leaves.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import monotonic
from typing import IO, Any

__all__ = ["Child", "ChildFailed", "alternate", "answer_lines", "ratio", "use_cores"]

ROOT = Path(__file__).resolve().parents[1]


class ChildFailed(Exception):
    """A child ended without an answer; the text is the end of what it wrote on its standard error."""


class Child:
    """A script in a fresh process; `python` is that of the environment it wants."""

    def __init__(self, script: str | Path, *arguments: object, python: str | Path = sys.executable) -> None:
        command = [str(python), str(script), *map(str, arguments)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
        self.started = monotonic()
        """The clock is the system's, so that a child can subtract it from its own `time.monotonic()`."""
        self._errors = open(os.memfd_create("errors"), "w+b", buffering=0)  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )
        self.pid = self._process.pid

    def ask(self, **question: object) -> dict[str, Any]:
        """The answer to a question. Raises ChildFailed."""
        stdin, stdout = _open(self._process.stdin), _open(self._process.stdout)
        try:
            stdin.write(json.dumps(question) + "\n")
            stdin.flush()
        except BrokenPipeError:
            pass  # the answer is missing too, and says why
        # Libraries print as they please; an answer is the first line of JSON.
        for line in stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip()
        raise ChildFailed("\n".join(said.splitlines()[-12:]) or f"it ended with code {self._process.returncode}")

    def close(self) -> None:
        """Ends the child: by the end of its input, and if it does not heed that, by force."""
        _open(self._process.stdin).close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _open(self._process.stdout).close()
        self._errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answer_lines() -> Iterator[tuple[dict[str, Any], Callable[[Mapping[str, object]], None]]]:
    """In a child: (question, how to answer it), until the input ends."""
    # What a library prints goes to standard error; only answers leave by the real standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(fields: Mapping[str, object]) -> None:
        out.write(json.dumps(fields) + "\n")
        out.flush()

    for line in sys.stdin:
        yield json.loads(line), answer


def alternate(rounds: int, measures: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """`rounds` figures of every measure: A B C, then B C A, and so on, so that none always follows the same one."""
    names = list(measures)
    figures: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            figures[name].append(measures[name]())
        print(f"round {number + 1} of {rounds}: " + ", ".join(f"{n} {figures[n][-1]:.4g}" for n in names), flush=True)
    return figures


def ratio(figures: Sequence[float], others: Sequence[float]) -> float:
    """The median over rounds of one figure by another of the same round."""
    return median(a / b for a, b in zip(figures, others, strict=True))


def use_cores(count: int) -> int:
    """Keeps this process, and the children it starts, to `count` cores (0: all there are); gives their number."""
    cores = sorted(os.sched_getaffinity(0))
    if count:
        os.sched_setaffinity(0, cores[:count])
    return len(os.sched_getaffinity(0))


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
