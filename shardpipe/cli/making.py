"""Commands that make a dataset: pack, index."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shardpipe.cli.console import print_json, print_table, progress, time_text
from shardpipe.cli.options import Jobs, Json, OnError, Out, Overwrite, Relative, Staging
from shardpipe.runtime import cores
from shardpipe.settings import byte_size, size_text

if TYPE_CHECKING:
    from shardpipe.pack import IndexReport, PackReport

__all__ = ["index", "pack"]


def pack(
    source: Annotated[str, typer.Argument(metavar="LIST", help="A WeNet data.list, or a Kaldi data directory.")],
    out: Out,
    shard_size: Annotated[str | None, typer.Option(help="Bytes of a shard, such as 512MiB (the default).")] = None,
    shard_samples: Annotated[int | None, typer.Option(help="Samples of a shard, instead of its size.")] = None,
    target: Annotated[
        Literal["keep", "flac", "wav", "opus"], typer.Option("--format", help="Keep the bytes, or encode.")
    ] = "keep",
    sample_rate: Annotated[int | None, typer.Option(metavar="HZ", help="Resample to this rate.")] = None,
    flac_level: Annotated[
        int | None, typer.Option(metavar="0-8", help="Of FLAC that is written: higher is smaller, and slower to read.")
    ] = None,
    jobs: Jobs = None,
    shuffle_seed: Annotated[int | None, typer.Option(help="Shuffle the list with this seed first.")] = None,
    on_error: OnError = "fail",
    fix_keys: Annotated[bool, typer.Option("--fix-keys", help="Map characters that keys must not hold.")] = False,
    overwrite: Overwrite = False,
    relative: Relative = False,
    staging: Staging = None,
    as_json: Json = False,
) -> None:
    """Pack a list of audio and text into tar shards with an index. Killed and run again, it goes on."""
    from shardpipe.audio import FLAC_LEVEL
    from shardpipe.pack import PackOptions, pack

    options = PackOptions(
        shard_size=None if shard_size is None else byte_size("shard_size", shard_size),
        shard_samples=shard_samples,
        format=target,
        sample_rate=sample_rate,
        flac_level=FLAC_LEVEL if flac_level is None else flac_level,
        jobs=jobs or cores(),
        shuffle_seed=shuffle_seed,
        on_error=on_error,
        overwrite=overwrite,
        relative=relative,
        fix_keys=fix_keys,
    )
    with progress("packing") as report:
        packed = pack(source, out, options=options, staging=staging, progress=report)
    kept = f", {packed.shards_kept:,} of them from an earlier run" if packed.shards_kept else ""
    _print_made(packed, as_json, shards=kept)


def index(
    tars: Annotated[list[str], typer.Argument(metavar="TARS...", help="Paths or URLs, or quoted patterns of them.")],
    out: Out,
    jobs: Jobs = None,
    audio: Annotated[
        str | None,
        typer.Option(metavar="EXT", help="Which audio, where samples have several: clean.flac, say."),
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="FIELD", help="Field of KEY.json that holds the text.")] = None,
    skip_incomplete: Annotated[
        bool, typer.Option("--skip-incomplete", help="Leave out samples without audio, and list them.")
    ] = False,
    on_error: OnError = "fail",
    overwrite: Overwrite = False,
    relative: Relative = False,
    staging: Staging = None,
    as_json: Json = False,
) -> None:
    """Index tars that are there already, where they lie and as they are."""
    from shardpipe.pack import index_tars

    with progress("indexing") as report:
        made = index_tars(
            tars,
            out,
            jobs=jobs or cores(),
            audio=audio,
            text=text,
            skip_incomplete=skip_incomplete,
            relative=relative,
            on_error=on_error,
            overwrite=overwrite,
            staging=staging,
            progress=report,
        )
    _print_made(made, as_json, text=f"{made.without_text:,} samples without", ignored=f"{made.ignored:,} members")


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
