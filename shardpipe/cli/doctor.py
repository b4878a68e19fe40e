"""The command that looks at the machine: doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardpipe.cli.console import print_json, print_table, time_text
from shardpipe.cli.options import Json, Schemes
from shardpipe.settings import check, size_text
from shardpipe.store import shown_url

if TYPE_CHECKING:
    from shardpipe.cli.examining import Findings, Machine, Measured, Rate
    from shardpipe.dataset import Index

__all__ = ["doctor"]

_SECONDS_MAX = 600


def doctor(
    data: Annotated[
        str | None, typer.Argument(metavar="DIR", help="A dataset's folder or URL, to be measured as well.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long each measurement takes, at most.")] = 3.0,
    scheme: Schemes = None,
    as_json: Json = False,
) -> None:
    """What this machine has, how fast it reads, decodes and feeds, and what to change."""
    from shardpipe.audio import decoders
    from shardpipe.cli.examining import (
        BUILT_IN,
        BUILT_IN_SECONDS,
        Findings,
        Measured,
        advice,
        look_at,
        measure_codecs,
        measure_dataset,
    )
    from shardpipe.dataset import Index

    check("seconds", seconds, 0 < seconds <= _SECONDS_MAX, f"it must be above 0, and at most {_SECONDS_MAX}")
    index = None if data is None else Index.load(data, schemes=scheme or ())

    def show(title: str, rows: dict[str, str]) -> None:
        if not as_json:
            print_table(title, rows)

    # What takes no time comes at once.
    machine, found_decoders, measured = look_at(), decoders(), Measured()
    show("This machine", _machine_rows(machine))
    show("\nWhat decodes", found_decoders)
    if index is None or data is None:
        measured = measure_codecs(seconds)
        show(
            f"\nHow fast one core decodes {BUILT_IN}", _codec_rows(measured, f"utterances ({BUILT_IN_SECONDS} s each)")
        )
    else:
        show(f"\n{index.store.url}", _dataset_rows(index))
        if index.num_samples:
            measured = measure_dataset(index, data, seconds=seconds, schemes=scheme or ())
        show("\nHow fast it is read, decoded and fed", _rate_rows(measured, machine))
    findings = Findings(
        machine=machine,
        decoders=found_decoders,
        measured=measured,
        totals=None if index is None else index.totals,
        place="" if data is None else shown_url(data),
    )
    lines = advice(findings)
    if as_json:
        print_json(_document(findings, index, lines))
    show("\nWhat to change", {f"{n}": line for n, line in enumerate(lines, 1)} or {"-": "Nothing to change."})


def _machine_rows(machine: Machine) -> dict[str, str]:
    """Packages by what they are for, so that they take few lines."""
    from shardpipe.cli.examining import PACKAGES

    def versions(*names: str) -> str:
        return ", ".join(f"{name} {machine.packages[name]}" for name in names if machine.packages[name])

    missing = [f"{name} ({PACKAGES[name]})" for name in PACKAGES if machine.packages[name] is None]
    allowed = f"; its control group lets it use {machine.core_limit:g}" if machine.core_limit else ""
    devices = ", ".join(machine.torch.devices) or "no CUDA device"
    rows = {
        "Python": f"{machine.python} on {machine.platform}",
        "cores": f"{machine.cores} that this process may run on{allowed}",
        "load": f"{machine.load:.1f} in the last minute",
        "memory": size_text(machine.memory),
        "shardpipe": machine.packages["shardpipe"] or "",
        "torch": f"{machine.packages['torch']}, {devices}" + (f" ({machine.torch.note})" if machine.torch.note else ""),
        "audio": versions("soundfile", "miniaudio", "soxr", "av"),
        "data": versions("numpy", "pyarrow", "fsspec", "s3fs", "isal"),
        "training": versions("torchaudio", "tensorboard"),
        "missing": ", ".join(missing),
    }
    if machine.torch.fault:
        rows["torch"] = f"cannot be imported ({machine.torch.fault})"
    return {name: row for name, row in rows.items() if row}


def _dataset_rows(index: Index) -> dict[str, str]:
    totals = index.totals
    return {
        "samples": f"{totals.samples:,} in {len(index.shards):,} shards, {time_text(totals.seconds)} of audio",
        "codecs": ", ".join(f"{codec} {n:,}" for codec, n in totals.codecs.items()),
        "sample rates": ", ".join(f"{rate} Hz {n:,}" for rate, n in totals.sample_rates.items()),
        "channels": ", ".join(f"{number}: {n:,}" for number, n in totals.channels.items()) or "not said",
    }


def _codec_rows(measured: Measured, what: str) -> dict[str, str]:
    return {codec: _rate_text(rate, what) for codec, rate in measured.decoding.items()}


def _rate_rows(measured: Measured, machine: Machine) -> dict[str, str]:
    rows = {}
    if reading := measured.reading:
        rows["reading"] = (
            f"{reading.samples_per_second:,.0f} utterances a second, {size_text(reading.bytes_per_second)}/s, "
            + (f"up to {measured.at_once} at once" if measured.remote else "one by one, maybe from the page cache")
        )
    rows |= {f"{codec}, one core": row for codec, row in _codec_rows(measured, "utterances").items()}
    decoding, cores = measured.decoding_all, machine.cores_at_once
    if decoding:
        text = _rate_text(decoding, "utterances", cores)
        rows["decoding alone"] = f"at most {text}: {cores:g} cores, each at the rate of one"
    if feed := measured.feed:
        if feed.rate:
            share = decoding and feed.rate.times_real_time / decoding.times_real_time / cores
            rows["ShardLoader"] = (
                _rate_text(feed.rate, "utterances")
                + (f", {share:.0%} of that" if share else "")
                + f"; {size_text(feed.rate.bytes_per_second)}/s of padded float32, in batches of {feed.batch_size}"
            )
        if feed.fault:
            rows["ended by" if feed.rate else "ShardLoader"] = feed.fault
    if measured.bad:
        rows["bad"] = f"{len(measured.bad):,} of {measured.looked_at:,} utterances, the first: {measured.bad[0]}"
    return rows or {"-": "There is nothing to measure."}


def _rate_text(rate: Rate, what: str, times: float = 1) -> str:
    return (
        f"{times * rate.samples_per_second:,.0f} {what} a second, "
        f"{times * rate.times_real_time:,.0f} hours of audio an hour"
    )


def _document(findings: Findings, index: Index | None, lines: list[str]) -> dict[str, Any]:
    """What --json prints; without a dataset, null where there would be something about it."""
    measured, feed = findings.measured, findings.measured.feed
    dataset = index and {
        "url": index.store.url,
        "shards": len(index.shards),
        **asdict(index.totals),
        "fingerprint": index.fingerprint,
    }
    first = {"key": getattr(measured.bad[0], "key", ""), "error": str(measured.bad[0])} if measured.bad else None
    return {
        "machine": asdict(findings.machine),
        "decoders": findings.decoders,
        "dataset": dataset,
        "reading": measured.reading and {"at_once": measured.at_once, **_rate_fields(measured.reading)},
        "decoding": {codec: _rate_fields(rate) for codec, rate in measured.decoding.items()},
        "feed": feed and {**asdict(feed), "rate": feed.rate and _rate_fields(feed.rate)},
        "bad": index and {"samples": len(measured.bad), "of": measured.looked_at, "first": first},
        "advice": lines,
    }


def _rate_fields(rate: Rate) -> dict[str, float]:
    return {
        **asdict(rate),
        "samples_per_second": rate.samples_per_second,
        "bytes_per_second": rate.bytes_per_second,
        "times_real_time": rate.times_real_time,
    }
