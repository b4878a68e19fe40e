"""The report of the demo of resuming: its figures and words."""

from __future__ import annotations

from shardpipe.demo.chart import Chart, Line, Mark, Point, cell_grid, line_chart
from shardpipe.demo.compare import History
from shardpipe.demo.page import Commands, Figure, page
from shardpipe.demo.resumed import Resumed

__all__ = ["report"]

_LOSS = "CTC loss (nats per utterance)"
# Samples shown on either side of checkpoint and kill in the close-up.
_AROUND = 100


def report(comparison: Resumed, commands: Commands) -> str:
    """The HTML document, of the comparison and of the commands run."""
    return page(
        comparison,
        commands,
        headline="Killed, resumed, the same.",
        summary=_summary(comparison),
        figures=(_whole_course(comparison), _close_up(comparison), _epoch_by_sample(comparison)),
    )


def _summary(comparison: Resumed) -> str:
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
    return told + f"They should have come out the same, but did not in: {comparison.failed}."


def _marks(comparison: Resumed) -> tuple[Mark, Mark]:
    saved, killed = comparison.checkpoint, comparison.killed_at
    return (
        Mark(x=saved, label=f"checkpoint at {saved:,}", style="saved", left=True),
        Mark(x=killed, label=f"SIGKILL at {killed:,}", style="kill"),
    )


def _losses(history: History, after: int = 0) -> list[Point]:
    """(consumed samples, loss) of the steps beyond a count; a step without a finite loss is left out."""
    steps = ((step["consumed_samples"], step["loss"]) for step in history.steps)
    return [(count, loss) for count, loss in steps if count > after and loss is not None]


def _whole_course(comparison: Resumed) -> Figure:
    total = comparison.epochs * len(comparison.samples)
    lines = (
        Line(points=_losses(comparison.undisturbed), style="whole", label="uninterrupted", label_at=0.08),
        Line(points=_losses(comparison.killed), style="before", label="killed process", label_at=0.55),
        Line(
            points=_losses(comparison.disturbed, comparison.checkpoint),
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
    return Figure(
        heading="Training loss over consumed samples",
        svg=line_chart(chart),
        caption="The broad grey line is the uninterrupted run; the thin ones are the two processes of the other. "
        "Shaded: steps after the last checkpoint, lost with the killed process and done once more by the resumed one.",
    )


def _close_up(comparison: Resumed) -> Figure:
    low, high = comparison.checkpoint - _AROUND, comparison.killed_at + _AROUND

    def line(points: list[Point], style: str) -> Line:
        return Line(points=[point for point in points if low <= point[0] <= high], style=style, dots=True)

    chart = Chart(
        title="Training loss of every step around the kill",
        x_label="consumed samples",
        y_label=_LOSS,
        lines=(
            line(_losses(comparison.undisturbed), "whole"),
            line(_losses(comparison.killed), "before"),
            line(_losses(comparison.disturbed, comparison.checkpoint), "after"),
        ),
        marks=_marks(comparison),
        band=(comparison.checkpoint, comparison.killed_at),
        x_range=(low, high),
        height=280,
    )
    return Figure(
        heading="Around the kill, step by step",
        svg=line_chart(chart),
        caption="Within the band every step was computed three times, by three processes: equal losses coincide.",
        legend=(("ring whole", "uninterrupted"), ("ring before", "killed process"), ("dot after", "resumed process")),
    )


def _epoch_by_sample(comparison: Resumed) -> Figure:
    epoch, seen = comparison.killed_epoch, set[str]()
    before = comparison.checkpoint - epoch * len(comparison.samples)
    lost = comparison.killed_at - epoch * len(comparison.samples)
    cells = []
    for place, key in enumerate(comparison.disturbed.keys(epoch)):
        cells.append("twice" if key in seen else "before" if place < before else "again" if place < lost else "after")
        seen.add(key)
    cells += ["missing"] * len(comparison.samples.keys() - seen)
    return Figure(
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
