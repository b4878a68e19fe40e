"""The demo's report: one HTML page that opens without a network, legible in light and in dark."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import files
from string import Template

from shardpipe.demo.chart import Chart, Line, Mark, Point, cell_grid, line_chart
from shardpipe.demo.compare import Check, Comparison, History

__all__ = ["report"]

_LOSS = "CTC loss (nats per utterance)"
# Samples shown on either side of checkpoint and kill in the close-up.
_AROUND = 100


@dataclass(frozen=True, kw_only=True)
class _Figure:
    """A picture with its words; `legend` is (style, meaning) of each colour that the picture itself does not name."""

    heading: str
    svg: str
    caption: str
    legend: Sequence[tuple[str, str]] = ()


def report(comparison: Comparison, commands: Sequence[tuple[str, float]]) -> str:
    """The HTML document, of the comparison and of the commands run, each with its seconds."""
    template = Template((files("shardpipe.demo") / "report.html").read_text(encoding="utf-8"))
    figures = (_whole_course(comparison), _close_up(comparison), _epoch_by_sample(comparison))
    facts = {
        "shardpipe": version("shardpipe"),
        "PyTorch": version("torch"),
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU used",
    }
    return template.substitute(
        verdict="passed" if comparison.passed else "failed",
        headline="Killed, resumed, the same." if comparison.passed else "The two runs differ.",
        summary=escape(_summary(comparison)),
        figures="\n".join(map(_figure, figures)),
        checks="\n".join(map(_row, comparison.checks)),
        commands="\n".join(
            f"<li><code>{escape(command)}</code> <span>{seconds:.0f} s</span></li>" for command, seconds in commands
        ),
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()),
    )


def _summary(comparison: Comparison) -> str:
    told = (
        f"A tiny speech recogniser was trained twice on {len(comparison.samples)} spoken commands: once undisturbed, "
        f"and once killed with SIGKILL in epoch {comparison.killed_epoch + 1} of {comparison.epochs} and started again "
        "with the same command. "
    )
    if comparison.passed:
        return told + (
            "It went on from its last checkpoint, whose sample count is all that finding the place takes. Every sample "
            "came exactly once in every epoch; every loss, and in the end every bit of the model, is that of the "
            "undisturbed run."
        )
    failed = "; ".join(check.name for check in comparison.checks if check.passed is False)
    return told + f"They should have come out the same, but did not in: {failed}."


def _marks(comparison: Comparison) -> tuple[Mark, Mark]:
    saved, killed = comparison.checkpoint, comparison.killed_at
    return (
        Mark(x=saved, label=f"checkpoint at {saved:,}", style="saved", left=True),
        Mark(x=killed, label=f"SIGKILL at {killed:,}", style="kill"),
    )


def _losses(history: History, after: int = 0) -> list[Point]:
    """(consumed samples, loss) of the steps beyond a count; a step without a finite loss is left out."""
    steps = ((step["consumed_samples"], step["loss"]) for step in history.steps)
    return [(count, loss) for count, loss in steps if count > after and loss is not None]


def _whole_course(comparison: Comparison) -> _Figure:
    total = comparison.epochs * len(comparison.samples)
    lines = (
        Line(points=_losses(comparison.uninterrupted), style="whole", label="uninterrupted", label_at=0.08),
        Line(points=_losses(comparison.killed), style="before", label="killed process", label_at=0.55),
        Line(
            points=_losses(comparison.resumed, comparison.checkpoint),
            style="after",
            label="resumed process",
            label_at=0.6,
        ),
    )
    chart = Chart(
        title="Training loss of both runs over consumed samples",
        x_label="consumed samples",
        y_label=_LOSS,
        lines=lines,
        marks=_marks(comparison),
        band=(comparison.checkpoint, comparison.killed_at),
        x_range=(0, total),
    )
    return _Figure(
        heading="Training loss over consumed samples",
        svg=line_chart(chart),
        caption="The broad grey line is the uninterrupted run; the thin ones are the two processes of the other. "
        "Shaded: steps after the last checkpoint, lost with the killed process and done once more by the resumed one.",
    )


def _close_up(comparison: Comparison) -> _Figure:
    low, high = comparison.checkpoint - _AROUND, comparison.killed_at + _AROUND

    def line(points: list[Point], style: str) -> Line:
        return Line(points=[point for point in points if low <= point[0] <= high], style=style, dots=True)

    chart = Chart(
        title="Training loss of every step around the kill",
        x_label="consumed samples",
        y_label=_LOSS,
        lines=(
            line(_losses(comparison.uninterrupted), "whole"),
            line(_losses(comparison.killed), "before"),
            line(_losses(comparison.resumed, comparison.checkpoint), "after"),
        ),
        marks=_marks(comparison),
        band=(comparison.checkpoint, comparison.killed_at),
        x_range=(low, high),
        height=280,
    )
    return _Figure(
        heading="Around the kill, step by step",
        svg=line_chart(chart),
        caption="Within the band every step was computed three times, by three processes: equal losses coincide.",
        legend=(("ring whole", "uninterrupted"), ("ring before", "killed process"), ("dot after", "resumed process")),
    )


def _epoch_by_sample(comparison: Comparison) -> _Figure:
    epoch, seen = comparison.killed_epoch, set[str]()
    before = comparison.checkpoint - epoch * len(comparison.samples)
    lost = comparison.killed_at - epoch * len(comparison.samples)
    cells = []
    for place, key in enumerate(comparison.resumed.keys(epoch)):
        cells.append("twice" if key in seen else "before" if place < before else "again" if place < lost else "after")
        seen.add(key)
    cells += ["missing"] * len(comparison.samples.keys() - seen)
    return _Figure(
        heading=f"Epoch {epoch + 1}, sample by sample",
        svg=cell_grid(cells, title=f"The samples of epoch {epoch + 1} in the order of delivery"),
        caption="A cell is one of the epoch's samples, in the order of delivery, row by row. The "
        "resumed process was given none of those that are plain blue.",
        legend=(
            ("cell before", "in the checkpoint"),
            ("cell again", "lost with the killed process, delivered again"),
            ("cell after", "delivered by the resumed process"),
        ),
    )


def _figure(figure: _Figure) -> str:
    items = "".join(f'<li><i class="{style}"></i>{escape(meaning)}</li>' for style, meaning in figure.legend)
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    heading, caption = escape(figure.heading), escape(figure.caption)
    picture = f'{legend}<div class="scroll">{figure.svg}</div>'
    return f"<figure><h2>{heading}</h2>{picture}<figcaption>{caption}</figcaption></figure>"


def _row(check: Check) -> str:
    verdict, word = {True: ("yes", "✓ same"), False: ("no", "✗ differs"), None: ("note", "")}[check.passed]
    cells = f"<td>{escape(check.uninterrupted)}</td><td>{escape(check.resumed)}</td>"
    return f'<tr><th scope="row">{escape(check.name)}</th>{cells}<td class="{verdict}">{word}</td></tr>'
