"""The report of the demo of the data service: its figure and words."""

from __future__ import annotations

from shardpipe.demo.chart import Chart, Line, Mark, Row, line_chart, span_chart
from shardpipe.demo.page import Commands, Figure, page
from shardpipe.demo.served import FROZEN, GOES_ON, KILLED, LISTENS, Served

__all__ = ["service_report"]


def service_report(comparison: Served, commands: Commands) -> str:
    """The HTML document, of the comparison and of the commands run."""
    return page(
        comparison,
        commands,
        headline="Killed, frozen, started anew: the same.",
        summary=_summary(comparison),
        figures=[_timeline(comparison)],
    )


def _summary(comparison: Served) -> str:
    frozen, listens = comparison.done(FROZEN), comparison.done(LISTENS)
    told = (
        f"A tiny speech recogniser was trained twice on {len(comparison.samples)} spoken commands: once making its "
        "batches by itself, and once by two replicas of a data service. Replica A was killed in the middle of the run. "
        "Later replica B was frozen, and A started anew only then: for "
        f"{listens.seconds - frozen.seconds:.1f} seconds there was none. Then A served alone, until B was let go on. "
        "The training itself was never touched. "
    )
    if comparison.passed:
        return told + (
            "It took each batch from whoever was there, and waited when nobody was. Every sample came exactly once in "
            "every epoch; every loss, and in the end every bit of the model, is that of the run without a service."
        )
    return told + f"It should have come out as without a service, but did not in: {comparison.failed}."


def _timeline(comparison: Served) -> Figure:
    killed, frozen, listens, goes_on = (comparison.done(name).seconds for name in (KILLED, FROZEN, LISTENS, GOES_ON))
    alone, served = comparison.alone.points, comparison.served.points
    extent = (0.0, max(alone[-1][0], served[-1][0]))
    chart = Chart(
        title="Samples trained on over time, by itself and by the service",
        x_label="seconds",
        y_label="consumed samples",
        lines=(
            Line(points=alone, style="whole"),
            Line(points=served, style="after"),
        ),
        marks=(
            Mark(x=killed, label="A killed", style="kill", left=True),
            Mark(x=frozen, label="B frozen", style="kill", left=True),
            Mark(x=listens, label="A is back", style="saved"),
            Mark(x=goes_on, label="B goes on", style="saved"),
        ),
        band=(frozen, listens),
        x_range=extent,
    )
    end = served[-1][0]
    rows = (
        Row(label="replica A", spans=((0, killed, "up"), (listens, end, "up"))),
        Row(label="replica B", spans=((0, frozen, "up"), (frozen, goes_on, "frozen"), (goes_on, end, "up"))),
    )
    return Figure(
        heading="Samples over time, and which replicas were there",
        svg=line_chart(chart) + span_chart(rows, title="When each replica was there", x_range=extent),
        caption="Shaded: no replica could be asked. A replica that is frozen keeps its connections open and says "
        "nothing. At the end of every epoch the curves are level, while the model is evaluated. All processes share "
        "the machine's cores, so neither run's speed says anything of the service's.",
        legend=(
            ("line whole", "batches made by itself"),
            ("line after", "batches of the service"),
            ("cell up", "replica serves"),
            ("cell frozen", "replica is frozen"),
        ),
    )
