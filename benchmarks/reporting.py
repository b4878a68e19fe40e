"""What all benchmarks share: a description of the machine, tables, checks, plots, and dated result files.

A figure is worth something only with the machine and the versions it was taken on, so every file says both. Neither
host name nor paths are in it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.axes import Axes
except ModuleNotFoundError as error:
    # Now, and not when there is something to draw after an hour.
    raise SystemExit(f"{error}: `make bench-env` installs what benchmarks need") from None

__all__ = ["RESULTS", "Checks", "Figure", "bars", "machine", "table", "write_results"]

RESULTS = Path(__file__).parent / "results"
_OURS, _OTHERS, _NEUTRAL = "#1f6fb4", "#b9bfc6", "#6c757d"


class Checks:
    """The targets of a benchmark: each holds or fails, and all together decide how the script ends."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.good = True

    def add(self, holds: bool, text: str) -> None:
        self.good = self.good and bool(holds)
        self.lines.append(f"- {'ok' if holds else 'FAILED'}: {text}")

    def __str__(self) -> str:
        return "\n".join(self.lines)


def machine(*packages: str, cores: int | None = None) -> str:
    """One line: processor, cores, memory, system, Python, and the versions of `packages`; `cores` if fewer are used."""
    if cores is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    used = f"{cores} of {os.cpu_count()} cores" if cores != os.cpu_count() else f"{cores} cores"
    parts = [_processor(), used, f"{memory:.0f} GiB", f"{platform.system()} {platform.machine()}"]
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


def write_results(
    theme: str, text: str, *, packages: Sequence[str], figure: Figure | None = None, folder: Path = RESULTS
) -> Path:
    """Writes <theme>-<date>.md into a folder: what was run and where, then `text`; and a plot beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{theme}-{date.today().isoformat()}.md"
    plot = ""
    if figure is not None:
        image = path.with_suffix(".png")
        figure.save(image, theme)
        plot = f"\n![{theme}]({image.name})\n"
    path.write_text(
        f"# {theme}, {date.today().isoformat()}\n\n"
        f"`python benchmarks/bench_{theme}.py` on {machine(*packages)}.\n\n{text.strip()}\n{plot}",
        encoding="utf-8",
    )
    return path


class Figure:
    """Some panels, two in a row."""

    def __init__(self, panels: int, *, width: float = 6.0, height: float = 4.2) -> None:
        style: dict[str, Any] = {
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "axes.grid": True,
            "grid.color": "#e6e8eb",
            "axes.axisbelow": True,
            "font.size": 9,
            "legend.frameon": False,
        }
        matplotlib.use("Agg")
        pyplot.rcParams.update(style)
        columns = min(panels, 2)
        rows = -(-panels // columns)
        self._figure, axes = pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False)
        self.panels: list[Axes] = list(axes.flat)[:panels]
        for unused in axes.flat[panels:]:
            unused.set_visible(False)

    def save(self, path: Path, theme: str) -> None:
        """The plot with a line on machine and date at its foot."""
        foot = f"{theme}, {date.today().isoformat()}, {machine()}"
        self._figure.tight_layout(rect=(0, 0.04, 1, 1))
        self._figure.text(0.01, 0.01, foot, fontsize=7, color=_NEUTRAL)
        self._figure.savefig(path, dpi=130)


def bars(
    axes: Axes, title: str, values: Mapping[str, float], *, unit: str, ours: str = "shardpipe", form: str = "{:,.0f}"
) -> None:
    """Horizontal bars, largest on top, each with its value; what begins with `ours` stands out."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    names = [name for name, _ in ordered]
    heights = [value for _, value in ordered]
    drawn = axes.barh(names, heights, color=[_OURS if name.startswith(ours) else _OTHERS for name in names])
    axes.bar_label(drawn, labels=[form.format(value) for value in heights], padding=3, fontsize=8)
    axes.set_xlim(0, max(heights, default=1) * 1.15)
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.grid(axis="y", visible=False)


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
