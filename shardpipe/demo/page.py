"""A demo's report: one HTML page that opens without a network, legible in light and in dark."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from importlib.resources import files
from string import Template

from shardpipe.demo.compare import Check, Comparison

__all__ = ["Commands", "Figure", "page"]

Commands = Sequence[tuple[str, float | None]]
"""Commands that were run, with the seconds of those that came to an end by themselves."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A picture with its words; `legend` is (style, meaning) of each colour that the picture itself does not name."""

    heading: str
    svg: str
    caption: str
    legend: Sequence[tuple[str, str]] = ()


def page(comparison: Comparison, commands: Commands, *, headline: str, summary: str, figures: Sequence[Figure]) -> str:
    """The HTML document; its headline is another one if the runs differ."""
    template = Template((files("shardpipe.demo") / "report.html").read_text(encoding="utf-8"))
    facts = {
        "shardpipe": version("shardpipe"),
        "PyTorch": version("torch"),
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU used",
    }
    return template.substitute(
        verdict="passed" if comparison.passed else "failed",
        headline=headline if comparison.passed else "The two runs differ.",
        summary=escape(summary),
        figures="\n".join(map(_figure, figures)),
        headings="".join(f"<th>{escape(heading)}</th>" for heading in comparison.headings),
        checks="\n".join(map(_row, comparison.checks)),
        commands="\n".join(_command(*command) for command in commands),
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()),
    )


def _figure(figure: Figure) -> str:
    items = "".join(f'<li><i class="{style}"></i>{escape(meaning)}</li>' for style, meaning in figure.legend)
    legend = f'<ul class="legend">{items}</ul>' if items else ""
    heading, caption = escape(figure.heading), escape(figure.caption)
    picture = f'{legend}<div class="scroll">{figure.svg}</div>'
    return f"<figure><h2>{heading}</h2>{picture}<figcaption>{caption}</figcaption></figure>"


def _row(check: Check) -> str:
    verdict, word = {True: ("yes", "✓ same"), False: ("no", "✗ differs"), None: ("note", "")}[check.passed]
    cells = f"<td>{escape(check.undisturbed)}</td><td>{escape(check.disturbed)}</td>"
    return f'<tr><th scope="row">{escape(check.name)}</th>{cells}<td class="{verdict}">{word}</td></tr>'


def _command(command: str, seconds: float | None) -> str:
    took = "" if seconds is None else f" <span>{seconds:.0f} s</span>"
    return f"<li><code>{escape(command)}</code>{took}</li>"
