"""What all benchmarks share: a description of the machine, tables, and dated result files.

A figure is worth something only with the machine and the versions it was taken on, so every file says both. Neither
host name nor paths are in it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["RESULTS", "machine", "table", "write_results"]

RESULTS = Path(__file__).parent / "results"


def machine(*packages: str) -> str:
    """One line: processor, cores, memory, system, Python, and the versions of `packages`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [_processor(), f"{cores} cores", f"{memory:.0f} GiB", f"{platform.system()} {platform.machine()}"]
    parts.append(f"Python {platform.python_version()}")
    return ", ".join(parts + [f"{package} {_version(package)}" for package in packages])


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table whose columns line up in a terminal as well; all but the first column are right-aligned."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    widths = [max(3, *(len(line[column]) for line in cells)) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(line, widths))) + " |"
        for line in cells
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def write_results(theme: str, text: str, *, packages: Sequence[str]) -> Path:
    """Writes results/<theme>-<date>.md: what was run and where, then `text`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{theme}-{date.today().isoformat()}.md"
    path.write_text(
        f"# {theme}, {date.today().isoformat()}\n\n"
        f"`python benchmarks/bench_{theme}.py` on {machine(*packages)}.\n\n{text.strip()}\n",
        encoding="utf-8",
    )
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
