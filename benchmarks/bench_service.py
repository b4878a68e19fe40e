"""What the data service costs, and what it brings: trainers whose batches replicas make, beside trainers that make them
themselves, on the loopback of one machine.

At equal cores a trainer's own threads stand against a replica and its client on the same cores, in alternating rounds;
processor time is user and system time of all processes, from /proc. Waiting is of a trainer whose GPU is a sleep and
whose transform sleeps too, so that a thread stands for a core that this machine may not have. Latencies are of one
question after another. Two jobs are two trainers in step; "apart" are two served with different seeds, which share
nothing, and that is what the target divides by. The first batch of 10^8 rows is of processes started anew, their shards
one real shard by many names. How many cores replicas need is a simulation, of what was measured here. Exits with 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from corpus import add_corpus_arguments, built, corpus_of, packed
from processes import use_cores
from replicas import MIB, Secured
from reporting import Checks, Figure, bars, table, write_results
from service_fleet import CORES, TRAINERS, Costs, cores_of_gpu, simulated
from service_index import SHARD_SAMPLES, make_dataset
from service_loopback import (
    APART,
    BATCH,
    LAGS,
    LOCAL,
    RATE,
    SECURED,
    SERVED,
    SIZES,
    Equal,
    Firsts,
    Jobs,
    Latencies,
    Waiting,
    loaded,
)

FORMATS = ("flac", "wav", "opus")
LEAST_RATE, MOST_PROCESSOR = 0.80, 1.25
MOST_SHARED = 0.60
MOST_FIRST = 1.5
JOB_STEPS = 3.0
"""Steps of two jobs, in processor time of a batch: so long that this machine's cores keep both in step."""
CONSUMED = (500, 1000, 2000, 4000)
"""Seconds of audio that a GPU trains on a second."""
MEMORY, KEEP = 256, 128
"""MiB of the replica whose memory is looked at."""

REPORT = """\
{about}. On {cores} cores; batches of 16, or of 300 padded seconds of like lengths; medians
of {rounds} rounds of {seconds:.0f} s.

## At equal cores

{equal}

Processor time is of all processes, that of the trainer's own beside it.

## Waiting

A transform of {making:.0f} ms a batch and thread; trainer and replicas have a thread each. Share of time that the
trainer waits, and what it must wait at least:

{waiting}

## Latency

Milliseconds from a question to its batch, FLAC, one after another; "kept" is asked for the second time:

{latency}

## Two jobs

FLAC, {step:.0f} ms a step, an epoch a round. Milliseconds of processor time a batch, of all processes:

{jobs}

## 10^8 rows

{rows:,} rows in {shards:,} shards; a new process, a replica that is up. Seconds to the first batch:

{firsts}

## Memory of a replica

{memory}

## How many cores: a simulation

No such machines were measured. {trainers} trainers, replicas of one core each; a batch takes what FLAC took above,
log-normal, without network, storage or faults. Each GPU trains on {simulated:,} seconds of audio a second:

{fleet}

Cores for one GPU by what it trains on in a second: those of replicas + those of the trainer's side, of this machine's
processor and with every core busy all the time.

{gpus}

## Checks

{checks}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_corpus_arguments(parser, utterances=4000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="of every measurement (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=20_000, help=f"of {SHARD_SAMPLES} rows (default: %(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--cores", type=int, default=2, help="0: all (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="little of all, and no results file: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.utterances, options.rounds, options.seconds, options.shards = 400, 1, 2.0, 40
        options.formats = FORMATS[:2]  # Opus takes long to make
    corpora = {audio_format: corpus_of(options, audio_format) for audio_format in options.formats}
    data = {audio_format: packed(corpus) for audio_format, corpus in corpora.items()}
    many = built(options.work / f"rows-{options.shards}", partial(make_dataset, shards=options.shards))
    cores = use_cores(options.cores)
    main_data, rounds, seconds = data[options.formats[0]], options.rounds, options.seconds
    settle = seconds / 4
    with tempfile.TemporaryDirectory() as folder:
        secured = Secured.made(Path(folder))
        batchings: dict[str, tuple[Path, dict[str, float]]] = {
            name: (where, {"batch_size": BATCH}) for name, where in data.items()
        }
        batchings[f"{options.formats[0]}, 300 s"] = main_data, {"batch_seconds": 300.0}
        equal = {
            name: Equal(where, batching, secured, rounds, settle=settle, seconds=seconds)
            for name, (where, batching) in batchings.items()
        }
        waiting = Waiting(main_data, Path(folder), rounds, settle=settle, seconds=seconds)
    first = equal[options.formats[0]]
    step = JOB_STEPS * first.figure(SERVED, "processor") / cores
    latency = Latencies(main_data, rounds, count=8 if options.quick else 40)
    jobs = Jobs(main_data, rounds, step=step, batches=-(-options.utterances // BATCH))
    firsts = Firsts(many, rounds)
    memory = loaded(main_data, memory=MEMORY, keep=KEEP, trainers=4, seconds=2 * seconds)
    costs = {name: costs_of(one) for name, one in equal.items()}
    checks = Checks()
    check(checks, first, jobs, firsts, memory)
    text = REPORT.format(
        about="; ".join(corpus.describe() for corpus in corpora.values()),
        cores=cores,
        rounds=rounds,
        seconds=seconds,
        equal=equal_table(equal),
        making=1000 * waiting.making,
        waiting=waiting_table(waiting),
        latency=latency_table(latency),
        step=1000 * step,
        jobs=jobs_table(jobs),
        rows=options.shards * SHARD_SAMPLES,
        shards=options.shards,
        firsts=firsts_table(firsts),
        memory=memory_table(memory),
        trainers=TRAINERS,
        simulated=CONSUMED[1],
        fleet=fleet_table(costs[options.formats[0]]),
        gpus=gpus_table(costs),
        checks=checks,
    )
    print(text)
    if not options.quick:
        packages = ("shardpipe", "numpy", "torch", "aiohttp")
        print(write_results("service", text, packages=packages, figure=draw(equal, jobs)).name)
    return 0 if checks.good else 1


def check(checks: Checks, equal: Equal, jobs: Jobs, firsts: Firsts, memory: tuple[int, int, int]) -> None:
    rate, processor = equal.times(SERVED, LOCAL, "rate"), equal.times(SERVED, LOCAL, "processor")
    checks.add(rate >= LEAST_RATE, f"FLAC, served: {rate:.2f}x the local rate at equal cores (at least {LEAST_RATE}x)")
    text = f"FLAC, served: {processor:.2f}x the local processor time a batch (under {MOST_PROCESSOR}x)"
    checks.add(processor < MOST_PROCESSOR, text)
    for lag in LAGS:
        times = jobs.times(jobs.name(lag), APART, "processor")
        text = f"two jobs on one run, {lag} batches behind: {times:.2f}x the processor time a batch of two apart"
        checks.add(times <= MOST_SHARED, f"{text} (at most {MOST_SHARED}x)")
    later = firsts.times(SERVED, LOCAL, "first")
    checks.add(later <= MOST_FIRST, f"many rows: the first batch takes {later:.2f}x as long (at most {MOST_FIRST}x)")
    base, most, _ = memory
    bound = base + (MEMORY + KEEP) * MIB
    text = f"a replica under load takes {most / MIB:.0f} MiB (at most {bound / MIB:.0f}: --memory, --keep and its base)"
    checks.add(most <= bound, text)


def costs_of(equal: Equal) -> Costs:
    own, all_of_it = equal.figure(SERVED, "own"), equal.figure(SERVED, "processor")
    return Costs(replica=all_of_it - own, trainer=own, audio=equal.figure(SERVED, "frames") / RATE)


def equal_table(equal: dict[str, Equal]) -> str:
    rows = []
    for name, one in equal.items():
        for way in (LOCAL, SERVED, SECURED):
            times = [f"{one.times(way, LOCAL, figure):.2f}" for figure in ("rate", "processor")]
            taken = [f"{1000 * one.figure(way, figure):.1f}" for figure in ("processor", "own")]
            rate, spread = one.figure(way, "rate"), one.told[way]["rate"]
            row = [f"{name.upper()}, {way}", f"{rate:,.1f}", f"{min(spread):,.1f} .. {max(spread):,.1f}", times[0]]
            rows.append([*row, *taken, times[1]])
    header = ["", "batches/s", "all rounds", "x local", "processor ms a batch", "trainer's own", "x local"]
    return table(header, rows)


def waiting_table(waiting: Waiting) -> str:
    rows = []
    for number in waiting.REPLICAS:
        row = [f"{number} replicas"]
        for step in waiting.steps:
            waited = waiting.figure(waiting.name(number, step), "waited")
            row += [f"{100 * waited:.1f} %", f"{100 * waiting.least(number, step):.0f} %"]
        rows.append(row)
    header = [part for step in waiting.steps for part in (f"{1000 * step:.0f} ms a step", "least")]
    return table(["beside local making", *header], rows)


def latency_table(latency: Latencies) -> str:
    rows = []
    for size in SIZES:
        told = latency.told[size]
        row = [f"{size} MB", f"{sum(told['bytes']) / len(told['bytes']) / 1e6:.1f}"]
        for kind in ("made", "kept"):
            row += [f"{1000 * one:,.0f}" for one in latency.percentiles(size, kind)]
        rows.append(row)
    header = ["float32", "MB on average", *(f"{kind} p{part}" for kind in ("made", "kept") for part in (50, 95, 99))]
    return table(header, rows)


def jobs_table(jobs: Jobs) -> str:
    rows = []
    for name in jobs.told:
        processor = 1000 * jobs.figure(name, "processor")
        times = jobs.times(name, APART, "processor")
        rows.append([name, f"{processor:.1f}", f"{times:.2f}", f"{100 * jobs.figure(name, 'waited'):.0f} %"])
    return table(["", "processor ms a batch", "x apart", "waiting"], rows)


def firsts_table(firsts: Firsts) -> str:
    rows = [
        [
            name,
            f"{firsts.figure(name, 'first'):.2f}",
            f"{firsts.figure(name, 'own'):.2f}",
            f"{firsts.times(name, LOCAL, 'first'):.2f}",
        ]
        for name in firsts.told
    ]
    return table(["", "from the process's start", "from its imports", "x local"], rows)


def memory_table(memory: tuple[int, int, int]) -> str:
    base, most, given = memory
    row = [f"{base / MIB:.0f}", f"{MEMORY}", f"{KEEP}", f"{most / MIB:.0f}", f"{given:,}"]
    return table(["MiB as it comes up", "--memory", "--keep", "most under load", "batches given meanwhile"], [row])


def fleet_table(costs: Costs) -> str:
    step = costs.audio / CONSUMED[1]
    rows = []
    for cores in CORES:
        rate, waited = simulated(costs, cores, step)
        most = min(cores / costs.replica, TRAINERS / step)
        rows.append([cores, f"{rate:,.0f}", f"{100 * rate / most:.0f} %", f"{100 * waited:.0f} %"])
    return table(["cores of replicas", "batches/s", "of what they could", "trainers wait"], rows)


def gpus_table(costs: dict[str, Costs]) -> str:
    rows = []
    for name, one in costs.items():
        needs = [cores_of_gpu(one, consumed) for consumed in CONSUMED]
        made = f"{one.audio / one.replica:,.0f}"
        rows.append([name.upper(), made, *(f"{there:.1f} + {here:.1f}" for there, here in needs)])
    return table(["", "seconds of audio a core of replicas", *(f"{consumed:,}" for consumed in CONSUMED)], rows)


def draw(equal: dict[str, Equal], jobs: Jobs) -> Figure:
    figure = Figure(2)
    left, right = figure.panels
    rates = {
        f"{way}, {name.upper()}": one.times(way, LOCAL, "rate")
        for name, one in equal.items()
        for way in (SERVED, SECURED)
    }
    bars(left, "Rate at equal cores", rates, unit="times local", ours=f"{SERVED}, FLAC", form="{:.2f}")
    shares = {name: 1000 * jobs.figure(name, "processor") for name in jobs.told}
    bars(right, "Processor time of two jobs, FLAC", shares, unit="ms a batch", ours="served, one", form="{:.1f}")
    return figure


if __name__ == "__main__":
    sys.exit(main())
