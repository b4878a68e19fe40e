"""Starting on an index of 10^8 samples: how long it takes, what memory it needs, and what planning then costs.

The index is made for this: 20,000 shards of 5,000 samples, with offsets, sizes, lengths and keys of their own (only the
texts are the same in every shard). All that its checks look at is true, but there are no tars. Every figure is of a
process started anew, in alternating rounds: one with ShardLoader, and one with index and plan alone, which needs no
torch. Start-up is from the end of the imports until the manifest is read and checked and the order stands. Walking goes
on through the epoch, takes every sample's row of the index as the loader does, and notes the resident memory. What
`shardpipe at` does is held against the planning of one super-window in the same process, and what `where` does once it
has found the key; the key that is looked up is the last of all. Exits with 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from corpus import built
from processes import Child, alternate, ratio, use_cores
from reporting import Checks, Figure, table, write_results

from shardpipe.dataset import MANIFEST, SCHEMA, ShardInfo, Totals
from shardpipe.dataset.manifest import PART_SHARDS, format_manifest
from shardpipe.dataset.parts import write_part

RATE = 16000
SHARD_SAMPLES = 5000
BATCHINGS: dict[str, dict[str, float]] = {
    "batches of 16": {"batch_size": 16},
    "batches of 300 s": {"batch_seconds": 300.0},
}
START_SECONDS = 2.0
MEMORY_BYTES = 500e6
ANSWER_WINDOWS = 2.0
"""What an answer about a run may take, in plans of a super-window: it may touch the one beside it, and reads keys."""
WALK_SAMPLES = 2_000_000
"""Of the walk through the epoch: several super-windows of 64 lanes of 8192."""
NOTED_EVERY = 50_000


def shard_rows(shard: int, texts: pa.Array[Any]) -> pa.RecordBatch:
    """Rows of one shard, as if its tar held SHARD_SAMPLES utterances of FLAC."""
    rng = np.random.default_rng(shard)
    n = len(texts)
    frames = np.rint(np.clip(rng.lognormal(np.log(6), 0.6, n), 1, 30) * RATE).astype(np.int64)
    audio = np.rint(frames * rng.uniform(1.0, 1.3, n)).astype(np.int64)
    # A text member of two blocks, a header, the audio and its padding.
    sizes = 1024 + 512 + (audio + 511) // 512 * 512
    offsets = np.cumsum(sizes) - sizes
    columns = {
        "key": _keys(shard, n),
        "shard": np.full(n, shard, np.int32),
        "offset": offsets,
        "size": sizes,
        "audio_offset": offsets + 1536,
        "audio_size": audio,
        "crc32": rng.integers(0, 1 << 32, n, np.uint32),
        "codec": pa.array(["flac"] * n),
        "frames": frames,
        "sample_rate": np.full(n, RATE, np.int32),
        "channels": np.ones(n, np.int16),
        "text": texts,
        "extras": pa.nulls(n, pa.string()),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _keys(shard: int, n: int) -> pa.Array[Any]:
    return pa.array([f"spk{shard:05d}-utt{i:06d}" for i in range(n)])


def _texts() -> pa.Array[Any]:
    rng = np.random.default_rng(0)
    words = np.array(
        ["one", "two", "three", "four", "five", "six", "seven", "yes", "no", "left", "right", "up", "down"]
    )
    return pa.array([" ".join(rng.choice(words, rng.integers(5, 25))) for _ in range(SHARD_SAMPLES)])


def write_some(folder: Path, part: int, shards: range) -> list[ShardInfo]:
    """One part of the index, and the descriptions of its shards."""
    texts = _texts()
    infos: list[ShardInfo] = []

    def batches() -> Any:
        for shard in shards:
            rows = shard_rows(shard, texts)
            end = int(rows.column("offset")[-1].as_py() + rows.column("size")[-1].as_py()) + 1024
            infos.append(ShardInfo.of(rows, name=f"shard-{shard:06d}.tar", size=end, md5=f"{shard:032x}"))
            yield rows

    write_part(folder / _part(part), batches())
    return infos


def _part(number: int) -> str:
    return f"index/part-{number:05d}.parquet"


def make_index(folder: Path, shards: int) -> None:
    print(f"making an index of {shards * SHARD_SAMPLES:,} samples", flush=True)
    (folder / "index").mkdir()
    parts = range(-(-shards // PART_SHARDS))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        tasks = [
            processes.submit(write_some, folder, part, range(part * PART_SHARDS, min((part + 1) * PART_SHARDS, shards)))
            for part in parts
        ]
        infos = [info for task in tasks for info in task.result()]
    samples = sum(info.samples for info in infos)
    totals = Totals(
        samples=samples,
        size=sum(info.size for info in infos),
        frames=sum(info.frames for info in infos),
        seconds=round(sum(info.seconds for info in infos), 6),
        codecs={"flac": samples},
        sample_rates={RATE: samples},
        rejected=0,
    )
    (folder / MANIFEST).write_bytes(format_manifest(infos, totals, [_part(part) for part in parts]))


class Start:
    """Fresh processes on one batching, and what each round gave."""

    def __init__(self, folder: Path, how: str, batching: str) -> None:
        self._arguments = (folder, how, json.dumps(BATCHINGS[batching]))
        self.rounds: list[dict[str, float]] = []

    def measure(self) -> float:
        with self._child() as one:
            figures = one.ask()
        figures["imports"] = figures.pop("imported") - one.started
        self.rounds.append(figures)
        return float(figures["start"])

    def explain(self, key: str) -> dict[str, float]:
        with self._child() as one:
            return one.ask(find=key)

    def figure(self, name: str) -> float:
        return median(figures[name] for figures in self.rounds)

    def walk(self) -> list[tuple[int, float, int]]:
        with self._child() as one:
            noted: list[tuple[int, float, int]] = one.ask(walk=WALK_SAMPLES, every=NOTED_EVERY)["walk"]
        return noted

    def _child(self) -> Child:
        return Child(Path(__file__).with_name("scale_child.py"), *self._arguments)


REPORT = """\
{samples:,} samples in {shards:,} shards; manifest {manifest:.1f} MB, parts {parts:.2f} GB. Medians of {rounds} rounds.

Seconds from the start of the process, and from there on; MB resident after each:

{table}

Walking through the first {walked:,} samples of the epoch, with the rows of all of them:

{walks}

What comes at a count (`at`), and when a sample comes once its key is found (`where`), in seconds:

{answers}

## Checks

{checks}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(tempfile.gettempdir()) / "shardpipe-benchmarks"
    parser.add_argument("--work", type=Path, default=default, help="where the index is kept (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=20_000, help=f"of {SHARD_SAMPLES} samples (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=2, help="0: all (default: %(default)s)")
    options = parser.parse_args()
    folder = built(options.work / f"index-{options.shards}", partial(make_index, shards=options.shards))
    use_cores(options.cores)
    starts = {
        f"{'ShardLoader' if how == 'loader' else 'index and plan'}, {batching}": Start(folder, how, batching)
        for how in ("loader", "index")
        for batching in BATCHINGS
    }
    alternate(options.rounds, {name: start.measure for name, start in starts.items()})
    walks = {name: start.walk() for name, start in starts.items() if name.startswith("index")}
    last_key = f"{_keys(options.shards - 1, SHARD_SAMPLES)[-1]}"
    answers: dict[str, list[dict[str, float]]] = {name: [] for name in walks}
    explain = {name: partial(_explain, starts[name], last_key, answers[name]) for name in walks}
    alternate(options.rounds, explain)
    checks = Checks()
    for name, rounds in answers.items():
        for command in ("at", "where"):
            times = ratio([one[command] for one in rounds], [one["super-window"] for one in rounds])
            checks.add(
                times < ANSWER_WINDOWS,
                f"{name}: `{command}` takes {times:.2f} plans of a super-window (under {ANSWER_WINDOWS:.0f})",
            )
    for name, start in starts.items():
        seconds = start.figure("start")
        checks.add(seconds < START_SECONDS, f"{name}: start-up {seconds:.2f} s (under {START_SECONDS:.0f} s)")
        planned = start.figure("plan bytes")
        if name in walks:
            text = f"{name}: {planned / 1e6:.0f} MB resident with the first batch planned, imports included"
        else:
            planned -= start.figure("imports bytes")
            text = f"{name}: {planned / 1e6:.0f} MB beyond the imports with the first batch planned"
        checks.add(planned < MEMORY_BYTES, f"{text} (under 500 MB)")
    text = REPORT.format(
        samples=options.shards * SHARD_SAMPLES,
        shards=options.shards,
        manifest=(folder / MANIFEST).stat().st_size / 1e6,
        parts=sum(path.stat().st_size for path in (folder / "index").iterdir()) / 1e9,
        rounds=options.rounds,
        table=start_table(starts),
        walked=WALK_SAMPLES,
        walks=walk_table(walks),
        answers=answer_table(answers, options.shards * SHARD_SAMPLES),
        checks=checks,
    )
    print(text)
    figure = draw(starts, walks)
    print(write_results("scale", text, packages=("shardpipe", "numpy", "pyarrow", "torch"), figure=figure).name)
    return 0 if checks.good else 1


def start_table(starts: dict[str, Start]) -> str:
    header = ["", "imports", "start-up", "first batch planned", "at 99 %", "MB imports", "MB start-up", "MB planned"]
    rows = []
    for batching, start in starts.items():
        seconds = [f"{start.figure(name):.2f}" for name in ("imports", "start", "plan", "plan at 99 %")]
        memory = [f"{start.figure(name) / 1e6:.0f}" for name in ("imports bytes", "start bytes", "plan bytes")]
        rows.append([batching, *seconds, *memory])
    return table(header, rows)


def walk_table(walks: dict[str, list[tuple[int, float, int]]]) -> str:
    rows = []
    for batching, noted in walks.items():
        half = [memory for count, _, memory in noted if count >= WALK_SAMPLES // 2]
        first = next(memory for count, _, memory in noted if count >= WALK_SAMPLES // 2)
        rate = noted[-1][0] / noted[-1][1]
        growth = 100 * (half[-1] / first - 1)
        rows.append([batching, f"{rate:,.0f}", f"{max(m for _, _, m in noted) / 1e6:.0f}", f"{growth:+.1f} %"])
    return table(["", "samples/s", "most MB", "growth over the second half"], rows)


def _explain(start: Start, key: str, answers: list[dict[str, float]]) -> float:
    answers.append(start.explain(key))
    return answers[-1]["at"]


def answer_table(answers: dict[str, list[dict[str, float]]], samples: int) -> str:
    rows = []
    for of, rounds in answers.items():
        *seconds, find = (median(one[name] for one in rounds) for name in ("super-window", "at", "where", "find"))
        rows.append([of, *(f"{value:.3f}" for value in seconds), f"{find:.1f}", f"{samples / find / 1e6:.1f} M"])
    return table(["", "plan of a super-window", "at", "where", "looking up the key", "keys/s"], rows)


def draw(starts: dict[str, Start], walks: dict[str, list[tuple[int, float, int]]]) -> Figure:
    figure = Figure(2)
    left, right = figure.panels
    base = np.zeros(len(starts))
    for part, label, colour in (
        ("imports", "imports", "#d5d9dd"),
        ("start", "start-up", "#1f6fb4"),
        ("plan", "first batch planned", "#e39b3b"),
    ):
        heights = np.array([start.figure(part) for start in starts.values()])
        left.barh(list(starts), heights, left=base, label=label, color=colour)
        base += heights
    left.set_title("From process start to the first batch planned")
    left.set_xlabel("seconds")
    left.legend(loc="upper right")
    left.grid(axis="y", visible=False)
    for batching, noted in walks.items():
        right.plot([count / 1e6 for count, _, _ in noted], [memory / 1e6 for _, _, memory in noted], label=batching)
    right.set_title("Resident memory while walking through the epoch")
    right.set_xlabel("million samples")
    right.set_ylabel("MB")
    right.set_ylim(0)
    right.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    sys.exit(main())
