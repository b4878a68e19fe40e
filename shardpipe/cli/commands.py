"""The `shardpipe` command: every command calls one function and prints what it returns."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shardpipe import __version__
from shardpipe.cli.console import print_json, print_table, progress, size_text, time_text
from shardpipe.dataset.index import Index
from shardpipe.dataset.verifying import verify
from shardpipe.errors import ConfigError, ShardpipeError
from shardpipe.loading.explain import given_at, plan_cost, visits
from shardpipe.loading.sequence import COUNT_MAX, WINDOW, BatchSequence
from shardpipe.order.plan import Batching
from shardpipe.pack import IndexReport, PackOptions, PackReport, index_tars, pack
from shardpipe.settings import byte_size
from shardpipe.store.places import only_local
from shardpipe.store.redact import shown_url

__all__ = ["app", "main"]

app = typer.Typer(
    help="Tar shards for speech training that stops anywhere and goes on as if it had never stopped.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[str, typer.Argument(metavar="DIR", help="A dataset's folder or URL.")]
Out = Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="Folder or URL of the new dataset or index.")]
Staging = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Where a dataset for a URL grows, in a folder named by the URL, with room for two shards. A run that was "
        "cut short goes on from there. By default ~/.cache/shardpipe/packing.",
        show_default=False,
    ),
]
Jobs = Annotated[int, typer.Option(help="Processes that read and decode.", min=1, max=1024)]
OnError = Annotated[
    Literal["fail", "skip"], typer.Option(help="What a bad sample does: end it, or be left out and listed.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the dataset that DIR holds.")]
Json = Annotated[bool, typer.Option("--json", help="Print what a program would read.")]
WorldSize = Annotated[int, typer.Option(help="Ranks of the run.", min=1, max=1 << 16)]


def _planned(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the dataset and the flags of a run's plan; it is called with the `sequence` that they name."""
    flags = inspect.signature(_sequence, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        sequence = _sequence(**{name: given.pop(name) for name in flags})
        command(sequence=sequence, **given)

    # The dataset comes first, then the command's own parameters, then the flags that all share.
    data, *shared = flags.values()
    parameters = [data, *(p for p in own if p.name != "sequence"), *shared]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__signature__ = inspect.Signature([p.replace(kind=p.KEYWORD_ONLY) for p in parameters])  # type: ignore[attr-defined]
    return run


def _sequence(
    data: Data,
    batch_size: Annotated[int | None, typer.Option(help="Samples of a batch.")] = None,
    batch_seconds: Annotated[float | None, typer.Option(help="Most padded seconds of a batch.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Leave out shorter samples.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Leave out longer samples.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Whether the order is shuffled.")] = True,
    window: Annotated[int, typer.Option(help="Samples of a lane that are shuffled together.")] = WINDOW,
    lanes: Annotated[int | None, typer.Option(help="Interleaved streams of the order; default by the data.")] = None,
) -> BatchSequence:
    batching = Batching(
        batch_size=batch_size, batch_seconds=batch_seconds, min_seconds=min_seconds, max_seconds=max_seconds
    )
    return BatchSequence(Index.load(data), batching, seed=seed, shuffle=shuffle, window=window, lanes=lanes)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        print(__version__)
        raise typer.Exit


@app.command("pack")
def pack_command(
    source: Annotated[str, typer.Argument(metavar="LIST", help="A WeNet data.list, or a Kaldi data directory.")],
    out: Out,
    shard_size: Annotated[str | None, typer.Option(help="Bytes of a shard, such as 512MiB (the default).")] = None,
    shard_samples: Annotated[int | None, typer.Option(help="Samples of a shard, instead of its size.")] = None,
    target: Annotated[
        Literal["keep", "flac", "wav", "opus"], typer.Option("--format", help="Keep the bytes, or encode.")
    ] = "keep",
    sample_rate: Annotated[int | None, typer.Option(metavar="HZ", help="Resample to this rate.")] = None,
    jobs: Jobs = 1,
    shuffle_seed: Annotated[int | None, typer.Option(help="Shuffle the list with this seed first.")] = None,
    on_error: OnError = "fail",
    fix_keys: Annotated[bool, typer.Option("--fix-keys", help="Map characters that keys must not hold.")] = False,
    overwrite: Overwrite = False,
    staging: Staging = None,
    as_json: Json = False,
) -> None:
    """Pack a list of audio and text into tar shards with an index. Killed and run again, it goes on."""
    options = PackOptions(
        shard_size=None if shard_size is None else byte_size("shard_size", shard_size),
        shard_samples=shard_samples,
        format=target,
        sample_rate=sample_rate,
        jobs=jobs,
        shuffle_seed=shuffle_seed,
        on_error=on_error,
        overwrite=overwrite,
        fix_keys=fix_keys,
    )
    with progress("packing") as report:
        packed = pack(source, out, options=options, staging=staging, progress=report)
    kept = f", {packed.shards_kept:,} of them from an earlier run" if packed.shards_kept else ""
    _print_made(packed, as_json, shards=kept)


@app.command()
def index(
    tars: Annotated[list[str], typer.Argument(metavar="TARS...", help="Paths or URLs, or quoted patterns of them.")],
    out: Out,
    jobs: Jobs = 1,
    on_error: OnError = "fail",
    overwrite: Overwrite = False,
    staging: Staging = None,
    as_json: Json = False,
) -> None:
    """Index tars that are there already, where they lie and as they are."""
    with progress("indexing") as report:
        made = index_tars(
            tars, out, jobs=jobs, on_error=on_error, overwrite=overwrite, staging=staging, progress=report
        )
    _print_made(made, as_json, text=f"{made.without_text:,} samples without", ignored=f"{made.ignored:,} members")


@app.command("verify")
def verify_command(data: Data, jobs: Jobs = 1, as_json: Json = False) -> None:
    """Read everything again and check sizes, checksums, and the index against the tars."""
    with progress("verifying") as report:
        found = verify(data, jobs=jobs, progress=report)
    place = shown_url(data)
    if as_json:
        problems = [str(problem) for problem in found.problems]
        print_json({"ok": found.ok, "samples": found.samples, "shards": found.shards, "problems": problems})
    elif found.ok:
        print(f"{place} is whole: {found.samples:,} samples in {found.shards:,} shards, {size_text(found.size)}")
    else:
        for problem in found.problems:
            print(problem, file=sys.stderr)
        print(f"{place}: {len(found.problems):,} problems, {found.samples:,} samples are good", file=sys.stderr)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def info(data: Data, as_json: Json = False) -> None:
    """What a dataset holds, from its manifest alone."""
    found = Index.load(data)
    totals = found.totals
    if as_json:
        print_json({"shards": len(found.shards), **asdict(totals), "fingerprint": found.fingerprint})
        return
    rows = {
        "samples": f"{totals.samples:,} in {len(found.shards):,} shards",
        "audio": f"{time_text(totals.seconds)}, {totals.seconds / max(1, totals.samples):.2f} s a sample",
        "size": size_text(totals.size),
        "codecs": ", ".join(f"{codec} {n:,}" for codec, n in totals.codecs.items()),
        "sample rates": ", ".join(f"{rate} Hz {n:,}" for rate, n in totals.sample_rates.items()),
        "rejected": f"{totals.rejected:,}" + (", listed in rejected.jsonl" if totals.rejected else ""),
        "fingerprint": found.fingerprint,
    }
    print_table(found.store.url, rows)


@app.command()
@_planned
def at(
    sequence: BatchSequence,
    consumed: Annotated[int, typer.Option(metavar="N", help="Samples consumed so far.", min=0, max=COUNT_MAX - 1)],
    world_size: WorldSize = 1,
    as_json: Json = False,
) -> None:
    """What a run was given at a count of consumed samples: epoch, step and keys."""
    given = given_at(sequence, consumed, world_size=world_size)
    if as_json:
        print_json(asdict(given))
        return
    rows = {
        "epoch": f"{given.epoch}",
        "step": f"{given.step}, which took the count from {given.consumed_before:,} to {given.consumed_after:,}",
    }
    print_table(
        sequence.index.store.url, rows | {f"rank {rank}": " ".join(keys) for rank, keys in enumerate(given.keys)}
    )


@app.command()
@_planned
def where(
    sequence: BatchSequence,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A sample's key.")],
    epochs: Annotated[int, typer.Option(help="How many epochs to look at.", min=1)] = 3,
    world_size: WorldSize = 1,
    as_json: Json = False,
) -> None:
    """At which epoch, position, count and step a sample comes."""
    found = visits(sequence, key, epochs=epochs, world_size=world_size)
    if as_json:
        print_json([asdict(visit) for visit in found])
        return
    rows = {}
    for visit in found:
        comes = f"step {visit.step}, rank {visit.rank}, counts {visit.consumed_before} to {visit.consumed_after}"
        comes = "left out for its length" if visit.step is None else comes
        rows[f"epoch {visit.epoch}"] = f"position {visit.position}, {comes}"
    print_table(key, rows)


@app.command()
@_planned
def plan(
    sequence: BatchSequence,
    world_size: WorldSize = 1,
    as_json: Json = False,
) -> None:
    """What an epoch costs: steps, padding, stragglers, shards a rank reads from."""
    cost = plan_cost(sequence, world_size=world_size)
    if as_json:
        print_json(asdict(cost))
        return
    rows = {
        "steps": f"{cost.steps:,} of {world_size} ranks, {cost.batches:,} batches",
        "samples": f"{cost.samples:,}, {cost.excluded:,} left out for their length",
        "audio": time_text(cost.seconds),
        "padding": f"{cost.padding_percent:.2f} % of what is computed",
        "stragglers": f"{cost.straggler_percent:.2f} % of step time is waiting for the longest batch",
        "shards": f"{cost.shards_a_rank:.1f} a rank, of {cost.shards:,}; {cost.shards / world_size:.1f} were ideal",
        "order": f"window {sequence.order.window:,}, lanes {sequence.order.lanes}",
    }
    print_table(sequence.index.store.url, rows)


@app.command()
def demo(
    out: Annotated[str, typer.Option("-o", "--out", metavar="DIR", help="Folder for what it makes.")] = "runs/demo",
) -> None:
    """Pack, train, kill -9 in mid-epoch, resume, and compare with an unbroken run."""
    # Its subprocesses import torch; the other commands start without it.
    from shardpipe.demo import run_demo

    if not run_demo(Path(only_local("out", out))).passed:
        raise typer.Exit(1)


def _print_made(made: PackReport | IndexReport, as_json: bool, **notes: str) -> None:
    if as_json:
        print_json(asdict(made))
        return
    rows = {
        "samples": f"{made.samples:,}",
        "shards": f"{made.shards:,}{notes.pop('shards', '')}",
        "audio": time_text(made.seconds),
        "size": size_text(made.size),
        **notes,
        "fingerprint": made.fingerprint,
    }
    if made.rejected:
        rows["rejected"] = f"{made.rejected:,}, listed in {made.out}/rejected.jsonl"
    print_table(made.out, rows)


def main() -> None:
    """Entry point: exit code 0 done, 1 the data is at fault, 2 the command line is."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # keys are of any script, and a terminal's locale may not be
    try:
        app()
    except ConfigError as error:
        print(f"shardpipe: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except ShardpipeError as error:
        print(f"shardpipe: {error}", file=sys.stderr)
        raise SystemExit(1) from None
