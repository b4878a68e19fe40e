"""A dataset of as many rows as wanted, of one shard that is real: all others are further names of its file.

Every row says the truth, so that batches are made as from any dataset; keys and texts alone come again in every shard.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shardpipe.audio import encode
from shardpipe.dataset import MANIFEST, SCHEMA, Index, ShardInfo, Totals
from shardpipe.dataset.manifest import PART_SHARDS, format_manifest
from shardpipe.dataset.parts import write_part
from shardpipe.pack import PackOptions, pack

__all__ = ["SHARD_SAMPLES", "make_dataset"]

SHARD_SAMPLES = 5000
RATE = 16000


def make_dataset(folder: Path, shards: int) -> None:
    """So many shards of SHARD_SAMPLES utterances of FLAC, of 0.2 to 0.6 s."""
    print(f"making a dataset of {shards * SHARD_SAMPLES:,} samples", flush=True)
    rows = _real_shard(folder)
    (folder / "index").mkdir()
    for number in range(shards):
        os.link(folder / "real.tar", folder / _shard(number))
    parts = range(-(-shards // PART_SHARDS))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        write = partial(_write_part, folder, rows, shards)
        infos = [info for some in processes.map(write, parts) for info in some]
    seconds = sum(info.seconds for info in infos)
    samples = shards * SHARD_SAMPLES
    totals = Totals(
        samples=samples,
        size=sum(info.size for info in infos),
        frames=sum(info.frames for info in infos),
        seconds=round(seconds, 6),
        codecs={"flac": samples},
        sample_rates={RATE: samples},
        rejected=0,
    )
    (folder / MANIFEST).write_bytes(format_manifest(infos, totals, [_part(part) for part in parts]))


def _shard(number: int) -> str:
    return f"shard-{number:06d}.tar"


def _part(number: int) -> str:
    return f"index/part-{number:05d}.parquet"


def _real_shard(folder: Path) -> pa.RecordBatch:
    """Packs it as real.tar; its rows."""
    rng = np.random.default_rng(0)
    loose = folder / "loose"
    loose.mkdir()
    lines = []
    for number in range(SHARD_SAMPLES):
        audio = rng.normal(0, 0.01, int(rng.uniform(0.2, 0.6) * RATE)).astype(np.float32)
        name = f"{number:04d}.flac"
        (loose / name).write_bytes(encode(audio, RATE, "flac"))
        lines.append(json.dumps({"key": f"utt{number:06d}", "wav": str(loose / name), "txt": "one two three"}) + "\n")
    (folder / "data.list").write_text("".join(lines), encoding="utf-8")
    pack(folder / "data.list", folder / "real", options=PackOptions(shard_samples=SHARD_SAMPLES, relative=True))
    index = Index.load(str(folder / "real"))
    (folder / "real" / index.shards[0].name).rename(folder / "real.tar")
    return index.rows(0)


def _write_part(folder: Path, rows: pa.RecordBatch, shards: int, part: int) -> list[ShardInfo]:
    """One part of the index, and the descriptions of its shards."""
    size = (folder / "real.tar").stat().st_size
    infos: list[ShardInfo] = []

    def batches() -> Any:
        for shard in range(part * PART_SHARDS, min((part + 1) * PART_SHARDS, shards)):
            columns = {name: rows.column(name) for name in SCHEMA.names}
            columns["shard"] = pa.array(np.full(SHARD_SAMPLES, shard, np.int32))
            mine = pa.RecordBatch.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)
            infos.append(ShardInfo.of(mine, name=_shard(shard), size=size, md5=f"{shard:032x}"))
            yield mine

    write_part(folder / _part(part), batches())
    return infos
