"""The command top: what servers of batches do, as each of them tells."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shardpipe.cli.console import print_drawn, print_json
from shardpipe.cli.options import Json
from shardpipe.settings import size_text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from shardpipe.loading import Seen

__all__ = ["top"]

_METRICS, _READY = "/metrics", "/readyz"
_COLUMNS = ["state", "datasets", "batches/s", "sent/s", "making", "refused", "queue", "memory", "kept", "hits", "conns"]
_SPLIT = _COLUMNS.index("queue")
_COLOURS = {"up": "green", "draining": "yellow", "refused": "red", "down": "red"}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """One look at a replica; numbers are since it was started."""

    server: str
    state: Literal["up", "draining", "refused", "down"]
    why: str = ""
    at: float = field(default_factory=time.monotonic)
    sums: Mapping[str, float] = field(default_factory=dict)
    """Of its metrics, over datasets."""
    datasets: tuple[str, ...] = ()
    refusals: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What is shown of a replica; None is not known. Rates, means and shares are those since the look before, means and
    shares those since its start where nothing was made in between.
    """

    server: str
    state: str
    why: str
    datasets: tuple[str, ...]
    batches_per_s: float | None
    bytes_per_s: float | None
    making_seconds: float | None
    queue: int | None
    memory_bytes: int | None
    kept_bytes: int | None
    hits_share: float | None
    connections: int | None
    refusals: Mapping[str, int]
    batches: int | None
    samples: int | None


def top(
    urls: Annotated[
        list[str], typer.Argument(metavar="URL...", help="Servers, like https://{a,b}:7070, a dataset's name or not.")
    ],
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="The token that the servers want, in its first line.")
    ] = None,
    tls_ca: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Certificates that servers are trusted by; by default the system's."),
    ] = None,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time between looks.", min=0.05, max=3600, show_default=True)
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one table, and end.")] = False,
    as_json: Json = False,
) -> None:
    """Show what servers of batches do, until Ctrl-C; one table off a terminal. Exit code 1 if one of them is not up."""
    from shardpipe.loading import Onlooker

    onlooker = Onlooker(urls, token_file=token_file, tls_ca=tls_ca)

    def look() -> list[_Look]:
        return [_understood(seen) for seen in onlooker.look(_METRICS, _READY)]

    if not (once or as_json) and sys.stdout.isatty():
        with suppress(KeyboardInterrupt):
            _live(look, every)
        return
    before = look()
    time.sleep(every)
    rows = _rows(look(), before)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        print_drawn(partial(_drawn, rows))
    if any(row.state != "up" for row in rows):
        raise typer.Exit(1)


def _live(look: Callable[[], list[_Look]], every: float) -> None:
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        before: list[_Look] = []
        while True:
            now = look()
            live.update(_drawn(_rows(now, before), live.console.width), refresh=True)
            before = now
            time.sleep(every)


def _understood(seen: Seen) -> _Look:
    def out(state: Literal["refused", "down"], why: str) -> _Look:
        return _Look(server=seen.name, state=state, why=why)

    if seen.fault:
        return out("down", seen.fault)
    (status, body), (ready, _) = seen.answers[_METRICS], seen.answers[_READY]
    if status in (401, 403):
        return out("refused", "it refuses the token: give its own by --token-file")
    try:
        sums, datasets, refusals = _metrics(body.decode())
    except ValueError:
        sums = {}
    if status != 200 or "shardpipe_queue" not in sums:
        return out("down", f"it answers HTTP {status}, as no server of ours")
    state: Literal["up", "draining"] = "up" if ready == 200 else "draining"
    why = "" if state == "up" else "it is about to end"
    return _Look(server=seen.name, state=state, why=why, sums=sums, datasets=datasets, refusals=refusals)


def _metrics(text: str) -> tuple[Mapping[str, float], tuple[str, ...], Mapping[str, int]]:
    """Sums over datasets, their names, and refusals by status. Raises ValueError for what are no metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    sums: Counter[str] = Counter()
    datasets, refusals = set(), {}
    for sample in (sample for family in text_string_to_metric_families(text) for sample in family.samples):
        sums[sample.name] += sample.value  # type: ignore[assignment]
        datasets |= {name for label, name in sample.labels.items() if label == "dataset"}
        if sample.name == "shardpipe_refusals_total":
            refusals[sample.labels["status"]] = int(sample.value)
    return sums, tuple(sorted(datasets)), refusals


def _rows(looks: Iterable[_Look], before: Iterable[_Look]) -> list[_Row]:
    earlier = {look.server: look for look in before if look.sums}
    return [_row(look, earlier.get(look.server)) for look in looks]


def _row(look: _Look, before: _Look | None) -> _Row:
    def since(name: str) -> float:
        """What has come since the look before; all there is of one that was started again in between."""
        now, then = look.sums.get(name, 0.0), before.sums.get(name, 0.0) if before else 0.0
        return now - then if now >= then else now

    def rate(name: str) -> float | None:
        return since(name) / (look.at - before.at) if before and look.sums else None

    def number(name: str) -> int | None:
        return int(look.sums[name]) if name in look.sums else None

    made, seconds, hits = (
        f"shardpipe_{name}" for name in ("making_seconds_count", "making_seconds_sum", "cache_hits_total")
    )
    lately = since if since(made) + since(hits) else lambda name: look.sums.get(name, 0.0)
    wanted = lately(made) + lately(hits)
    return _Row(
        server=look.server,
        state=look.state,
        why=look.why,
        datasets=look.datasets,
        batches_per_s=rate("shardpipe_batches_total"),
        bytes_per_s=rate("shardpipe_bytes_total"),
        making_seconds=lately(seconds) / lately(made) if lately(made) else None,
        queue=number("shardpipe_queue"),
        memory_bytes=number("shardpipe_memory_bytes"),
        kept_bytes=number("shardpipe_kept_bytes"),
        hits_share=lately(hits) / wanted if wanted else None,
        connections=number("shardpipe_connections"),
        refusals=look.refusals,
        batches=number("shardpipe_batches_total"),
        samples=number("shardpipe_samples_total"),
    )


def _drawn(rows: list[_Row], width: int) -> RenderableType:
    """One table, or two where it would be too wide, and why servers are not up."""
    from rich.console import Console, Group
    from rich.text import Text

    whys = [Text(f"{row.server}: {row.why}", style="yellow") for row in rows if row.why]
    whole = _table(rows, _COLUMNS)
    if whole.__rich_measure__(console := Console(width=10_000), console.options).maximum <= width:
        return Group(whole, *whys)
    return Group(_table(rows, _COLUMNS[:_SPLIT]), "", _table(rows, _COLUMNS[_SPLIT:]), *whys)


def _table(rows: list[_Row], columns: Sequence[str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("server", overflow="fold")
    for name in columns:
        is_text = name in ("state", "datasets", "refused")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        cells = _cells(row)
        table.add_row(Text(row.server), *(Text(cells[name], _COLOURS.get(cells[name], "")) for name in columns))
    return table


def _cells(row: _Row) -> dict[str, str]:
    def told(value: float | None, shown: Callable[[float], str]) -> str:
        return "-" if value is None else shown(value)

    return {
        "state": row.state,
        "datasets": ", ".join(row.datasets),
        "batches/s": told(row.batches_per_s, "{:,.1f}".format),
        "sent/s": told(row.bytes_per_s, size_text),
        "making": told(row.making_seconds, "{:.3f} s".format),
        "refused": ", ".join(f"{status}: {number:,}" for status, number in sorted(row.refusals.items())),
        "queue": told(row.queue, "{:,}".format),
        "memory": told(row.memory_bytes, size_text),
        "kept": told(row.kept_bytes, size_text),
        "hits": told(row.hits_share, "{:.0%}".format),
        "conns": told(row.connections, "{:,}".format),
    }
