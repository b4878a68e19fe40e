"""What to change, as far as it follows from what was found. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from shardpipe.cli.examining.machine import Machine
from shardpipe.cli.examining.rates import Measured, Rate
from shardpipe.dataset import Totals

__all__ = ["TORCH_TESTED", "Findings", "advice"]

TORCH_TESTED = ((2, 6), (2, 14))
"""The oldest and the newest version that the tests run with, as pyproject.toml has them."""

_THREADS_MAX = 8
"""More are not begun by a loader that is not told how many."""
_WELL_BELOW = 0.6
_BATCHES_LEAST = 64
"""Of an epoch: with fewer, it is the beginning of the next one that takes the time."""
_FROM_MEMORY = 1 << 30
"""Bytes a second that a folder gives from the page cache, or as good as that: another disk would not help."""
_PCM = "wav"


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that there is to judge by."""

    machine: Machine
    decoders: dict[str, str]
    measured: Measured
    totals: Totals | None = None
    """Of the dataset, if there is one; `place` is where it lies, as it may be shown."""
    place: str = ""


def advice(findings: Findings) -> list[str]:
    """One line for each thing to change."""
    lines = [*_of_machine(findings)]
    if findings.totals is not None:
        lines += [*_of_samples(findings, findings.totals), *_of_rates(findings, findings.totals)]
    return lines


def _of_machine(findings: Findings) -> Iterator[str]:
    machine, totals = findings.machine, findings.totals
    if machine.busy:
        yield (
            f"This machine has been busy in the last minute (load average {machine.load:.1f}): what was measured may "
            "be far too low. Run this again when it is idle."
        )
    if machine.cores_at_once < machine.cores:
        number = max(1, int(machine.cores_at_once))
        yield (
            f"This process sees {machine.cores} cores, but its control group lets it use {machine.cores_at_once:g}: "
            f"give ShardLoader threads={number}, and pack --jobs {number}."
        )
    if machine.torch.fault:
        yield f"torch cannot be imported ({machine.torch.fault}), and the loader needs it: install it again."
    version = machine.packages["torch"] or ""
    if (numbers := re.match(r"(\d+)\.(\d+)", version)) and not machine.torch.fault:
        oldest, newest = TORCH_TESTED
        if not oldest <= (int(numbers[1]), int(numbers[2])) <= newest:
            yield (
                f"shardpipe is tested with torch {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}, and this is "
                f"{version}: if something fails, try one of these."
            )
    if machine.packages["torchaudio"] is None:
        yield "shardpipe-train and the demo need torchaudio: pip install 'shardpipe[train]'. Nothing else does."
    if (totals is None or "opus" in totals.codecs) and "libopus" not in findings.decoders["opus"]:
        yield (
            "Opus would be decoded twice as fast by libopus: pip install 'shardpipe[opus]', or the system's package "
            "libopus0."
        )


def _of_samples(findings: Findings, totals: Totals) -> Iterator[str]:
    measured = findings.measured
    if measured.bad:
        yield (
            f"{len(measured.bad):,} of {measured.looked_at:,} samples cannot be had: `shardpipe verify "
            f'{findings.place}` names what is damaged, and on_error="skip" trains without it.'
        )
    if measured.feed and measured.feed.fault and not measured.bad and not findings.machine.torch.fault:
        yield f"ShardLoader ended early: {measured.feed.fault}"
    if any(number > 1 for number in totals.channels or measured.channels):
        yield (
            'Some samples have several channels, about which ShardLoader asks: here it had channels="mix", the mean of '
            "all; channels=0 takes the first."
        )
    if len(totals.sample_rates) > 1:
        rate = measured.feed and measured.feed.sample_rate
        yield (
            f"Samples have {len(totals.sample_rates)} sample rates, about which ShardLoader asks: here it had "
            f"sample_rate={rate}, as most have. `shardpipe pack --sample-rate {rate}` resamples them once and for all."
        )


def _of_rates(findings: Findings, totals: Totals) -> Iterator[str]:
    measured, cores = findings.measured, findings.machine.cores_at_once
    reading, decoding = measured.reading, measured.decoding_all
    if reading is None or decoding is None:
        return
    if measured.remote:
        if reading.times_real_time < cores * decoding.times_real_time:
            yield (
                f"Reads bring {_utterances(reading)}, and this machine could decode {_utterances(decoding, cores)}: "
                "give ShardLoader cache_dir=, a folder on a local disk, which is read ahead into and kept."
            )
        return
    if reading.times_real_time < decoding.times_real_time and reading.bytes_per_second < _FROM_MEMORY:
        yield (
            f"One by one, {_utterances(reading)} are read, and a core decodes {_utterances(decoding)}: move the "
            "dataset to a local or faster disk, or have ShardLoader(cache_dir=...) keep it on one."
        )
        return
    if measured.feed is None or measured.feed.rate is None or findings.machine.busy:
        return
    if totals.samples < _BATCHES_LEAST * measured.feed.batch_size:
        return
    # Threads take turns at reading and decoding, so neither can be had at its full rate.
    possible = cores / (1 / reading.times_real_time + 1 / decoding.times_real_time)
    if measured.feed.rate.times_real_time >= _WELL_BELOW * possible:
        return
    if measured.read[_PCM] > measured.read.total() / 2:
        yield (
            "PCM audio is decoded so fast that threads wait for one another: try ShardLoader(workers="
            f"{max(1, int(cores))}), processes instead."
        )
    elif cores > _THREADS_MAX:
        yield f"The loader used {_THREADS_MAX} threads on {cores:g} cores: try ShardLoader(threads={int(cores)})."


def _utterances(rate: Rate, times: float = 1) -> str:
    return f"{times * rate.samples_per_second:,.0f} utterances a second"
