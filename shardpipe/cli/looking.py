"""Commands that look at a dataset: verify, info."""

from __future__ import annotations

import sys
from dataclasses import asdict

import typer

from shardpipe.cli.console import print_json, print_table, progress, time_text
from shardpipe.cli.options import Data, Jobs, Json, Schemes
from shardpipe.runtime import cores
from shardpipe.settings import size_text
from shardpipe.store import shown_url

__all__ = ["info", "verify"]


def verify(data: Data, jobs: Jobs = None, scheme: Schemes = None, as_json: Json = False) -> None:
    """Read everything again and check sizes, checksums, and the index against the tars."""
    from shardpipe.dataset import verify

    with progress("verifying") as report:
        found = verify(data, jobs=jobs or cores(), schemes=scheme or (), progress=report)
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


def info(data: Data, scheme: Schemes = None, as_json: Json = False) -> None:
    """What a dataset holds, from its manifest alone."""
    from shardpipe.dataset import Index

    found = Index.load(data, schemes=scheme or ())
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
        "channels": ", ".join(f"{number}: {n:,}" for number, n in totals.channels.items()) or "not said",
        "rejected": f"{totals.rejected:,}" + (", listed in rejected.jsonl" if totals.rejected else ""),
        "fingerprint": found.fingerprint,
    }
    print_table(found.store.url, rows)
