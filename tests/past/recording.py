"""What a version of shardpipe wrote and what it made of that, kept so that later versions can be held to it.

    python -m tests.past.recording tests/past/VERSION

makes a folder with the shardpipe that is installed: data/, a packed dataset; checkpoint/, of a run in mid-epoch;
and expected.json: states in mid-run with a hash of every batch that followed, a hash of every tensor of the checkpoint
as torch reads it, and the keys that the run took after it. It uses public names alone, but for `_SMALLER`, for it has
to run with any version. What is there is never made again: tests/promises/test_past.py says what must come of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from shardpipe import Batch, Sample, ShardLoader

__all__ = ["FLAGS", "batches_after", "hashes_of", "read_checkpoint_tensors"]

_WORLD_SIZE = 2
_BATCHES = 12
"""A rank is followed so far, across the end of an epoch."""
_BASE = {"window": 8, "lanes": 2, "seed": 7, "sub_epochs": 2}
_STATIC = {**_BASE, "batch_size": 3}
_BY_SECONDS = {**_BASE, "batch_seconds": 1.4}
_RUNS: dict[str, dict[str, Any]] = {
    "static": {"options": _STATIC, "consumed": 13},
    "by seconds": {"options": _BY_SECONDS, "consumed": 29},
    "with limits": {"options": {**_BY_SECONDS, "min_seconds": 0.2, "max_seconds": 0.45}, "consumed": 0},
    "as packed": {"options": {"batch_size": 4, "shuffle": False, "dtype": "int16"}, "consumed": 70},
    "defaults": {"options": {"batch_size": 5, "seed": 3}, "consumed": 2 * 30 + 4},
    # Saved under one batching and loaded under another, which takes over at the end of the rung; and saved again then.
    "batching changes": {"options": _BY_SECONDS, "consumed": 5, "before": _STATIC},
    "batching has changed": {"options": _BY_SECONDS, "consumed": 5, "before": _STATIC, "batches_before": 1},
    "transformed": {"options": _STATIC, "consumed": 35, "transform": True},
}
FLAGS = [
    *("--model", "tiny", "--device", "cpu", "--threads", "1", "--seed", "3", "--batch-size", "4", "--epochs", "1"),
    *("--window", "8", "--lanes", "2", "--warmup", "10steps", "--save-every", "12samples", "--log-keys"),
]
"""Of the training run."""
_SMALLER = """
import sys
from shardpipe.train import cli
from shardpipe.train.task import model
model.SIZES["tiny"] = model.Size(width=8, layers=1, heads=2, hidden=8, kernel=3)
sys.exit(cli.main())
"""
"""A few thousand weights instead of half a million: the one thing here that is no public name."""
_WORDS = ("a", "no", "up")


def batches_after(data: Path, run: Mapping[str, Any]) -> list[list[str]]:
    """A hash of each of the batches that follow a run's state, rank by rank."""
    found = []
    for rank in range(_WORLD_SIZE):
        loader = _loader(data, run["options"], run, rank)
        loader.load_state_dict(run["state"])
        batches = _without_end(loader)
        found.append([_hash_of(next(batches)) for _ in range(_BATCHES)])
    return found


def hashes_of(state: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """A hash of every tensor in nested dicts and lists, by its path; other values as they are written."""
    found = {}
    for key, value in state.items():
        path = f"{name}.{key}".lstrip(".")
        if isinstance(value, Mapping):
            found |= hashes_of(value, path)
        elif isinstance(value, list):
            found |= hashes_of(dict(enumerate(value)), path)
        elif isinstance(value, torch.Tensor):
            content = f"{value.dtype} {list(value.shape)} ".encode() + value.contiguous().numpy().tobytes()
            found[path] = hashlib.sha256(content).hexdigest()
        else:
            found[path] = repr(value)
    return found


def read_checkpoint_tensors(checkpoint: Path) -> dict[str, Any]:
    """What torch finds in a checkpoint, without a word of ours."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tensors.pt"
        dcp_to_torch_save(checkpoint, file)
        state: dict[str, Any] = torch.load(file, weights_only=True)
        return state


def _loader(data: Path, options: Mapping[str, Any], run: Mapping[str, Any], rank: int) -> ShardLoader:
    transform = _rolled if run.get("transform") else None
    return ShardLoader(data, rank=rank, world_size=_WORLD_SIZE, transform=transform, threads=1, **options)


def _rolled(sample: Sample, rng: np.random.Generator) -> Sample:
    """Integers alone are drawn, and no arithmetic is done, so that every machine has the same bits."""
    sample.audio = np.roll(sample.audio, int(rng.integers(1000)))
    return sample


def _without_end(loader: ShardLoader) -> Iterator[Batch]:
    while True:
        yield from loader


def _hash_of(batch: Batch) -> str:
    facts = [batch.keys, batch.texts, batch.extras, batch.sample_rate, batch.epoch, batch.consumed_samples]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for tensor in (batch.audio, batch.lengths, batch.weights):
        digest.update(f"{tensor.dtype} {list(tensor.shape)} ".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _record(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        data_list = _write_list(Path(place), 30)
        packing = ["-o", str(folder / "data"), "--shard-samples", "7"]
        _run("from shardpipe.cli import main; main()", "pack", str(data_list), *packing)
        out = Path(place) / "run"
        _run(_SMALLER, "--data", str(folder / "data"), "--out", str(out), *FLAGS)
        first = min((out / "checkpoints").iterdir())
        shutil.copytree(first, folder / "checkpoint")
        log = [json.loads(line) for line in (out / "keys-rank0.jsonl").read_text().splitlines()]
    data = folder / "data"
    runs = {}
    for name, run in _RUNS.items():
        loader = ShardLoader(data, resume_samples=run["consumed"], **run.get("before", run["options"]))
        if batches := run.get("batches_before"):
            state, loader = loader.state_dict(), ShardLoader(data, **run["options"])
            loader.load_state_dict(state)
            for _ in zip(range(batches), loader):
                pass
        state = loader.state_dict()
        made = {**run, "state": json.loads(json.dumps(state))}
        runs[name] = {**made, "batches": batches_after(data, made)}
    expected = {
        "fingerprint": runs["static"]["state"]["fingerprint"],
        "runs": runs,
        "tensors": hashes_of(read_checkpoint_tensors(folder / "checkpoint")),
        "keys": [line for line in log if line["consumed_samples"] > int(first.name)],
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _run(code: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)


def _write_list(folder: Path, samples: int) -> Path:
    """Buzzes of 150 to 500 ms at 8 kHz, WAV and FLAC in turn, both of which decode to the same bits everywhere."""
    rng = np.random.default_rng(11)
    lines = []
    for i in range(samples):
        seconds = np.arange(rng.integers(1200, 4000)) / 8000
        audio = 0.3 * np.sin(2 * np.pi * rng.integers(100, 900) * seconds) + rng.normal(0, 0.01, len(seconds))
        name = f"utt{i:02d}.{'wav' if i % 2 else 'flac'}"
        soundfile.write(folder / name, audio, 8000, subtype="PCM_16")
        words = " ".join(rng.choice(_WORDS, size=1 + i % 2))
        line = {"key": f"utt{i:02d}", "wav": name, "txt": words, **({"speaker": f"s{i % 4}"} if i % 3 else {})}
        lines.append(json.dumps(line) + "\n")
    path = folder / "data.list"
    path.write_text("".join(lines))
    return path


if __name__ == "__main__":
    _record(Path(sys.argv[1]))
