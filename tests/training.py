"""Small training runs for tests: started, killed, compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

__all__ = [
    "FLAGS",
    "count",
    "delivered",
    "events",
    "finish",
    "given",
    "kill_at",
    "markers",
    "one_thread",
    "outcome",
    "start",
    "steps",
]

FLAGS = [
    *("--model", "tiny", "--device", "cpu", "--threads", "1", "--seed", "3", "--batch-size", "4"),
    *("--window", "8", "--lanes", "2", "--warmup", "10steps", "--log-keys"),
]
"""Of all runs here: two lanes of small windows, so that resumes fall into windows and lanes of every age."""

_NOT_COMPUTED = ("start", "resume", "changed", "checkpoint", "stop", "end")
_TIMES = {"utt_per_s", "audio_s_per_s", "data_wait", "eta", "seconds", "goodput"}


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs in this process on one thread, so that they are quick beside others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(
    out: Path,
    flags: list[str],
    *,
    processes: int = 1,
    torchrun: bool = False,
    restarts: int = 0,
    hang: str | None = None,
) -> subprocess.Popen[str]:
    """A run in processes of its own, one thread each, so that the same work is the same bits.

    restarts: how often torchrun starts the processes again when one has ended. hang: what tests/hanging.py takes.
    """
    program = ["-m", "shardpipe.train"] if hang is None else [str(Path(__file__).with_name("hanging.py"))]
    command = [sys.executable, *program]
    if torchrun:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--log-dir", f"{out}-torchrun"]
        command = [*launcher, "--nproc-per-node", str(processes), "--max-restarts", str(restarts), *program]
    elif processes > 1:
        command = [sys.executable, str(Path(__file__).with_name("launch.py")), str(processes), *program]
    environment = {
        **os.environ,
        "HANG": hang or "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.Popen([*command, *flags, "--out", str(out)], env=environment, stderr=subprocess.PIPE, text=True)


def finish(out: Path, flags: list[str], **how: Any) -> str:
    """A run to its end; what it said."""
    process = start(out, flags, **how)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def kill_at(
    out: Path,
    consumed_samples: int,
    flags: list[str],
    *,
    delay: float = 0.0,
    number: int = signal.SIGKILL,
    when: Callable[[], bool] = lambda: True,
    **how: Any,
) -> tuple[int, str]:
    """A run until its metrics reach a count and `when` is true, `delay` seconds beyond, and no further; its exit code
    and what it said.
    """
    process = start(out, flags, **how)
    while not (count(out) >= consumed_samples and when()) and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    if number == signal.SIGKILL:
        # A launcher's processes are no longer its own when it is gone.
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    return process.returncode, said


def count(out: Path) -> int:
    """Samples consumed by the run so far, as its metrics say."""
    return max((event["consumed_samples"] for event in events(out)), default=0)


def events(out: Path, *kinds: str) -> list[dict[str, Any]]:
    """Whole lines of metrics.jsonl."""
    try:
        lines = (out / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    read = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [event for event in read if not kinds or event["event"] in kinds]


def outcome(out: Path) -> list[dict[str, Any]]:
    """What a run computed, line by line: all but its starts and stops and how long things took."""
    kept = [event for event in events(out) if event["event"] not in _NOT_COMPUTED]
    return [{k: v for k, v in event.items() if k not in _TIMES} for event in kept]


def markers(out: Path) -> dict[str, Any]:
    """checkpoint.json of each checkpoint by name; it has the checksums of the model and the optimizer."""
    return {file.parent.name: json.loads(file.read_bytes()) for file in out.glob("checkpoints/0*/checkpoint.json")}


def given(out: Path) -> list[dict[str, Any]]:
    """The keys that every process was given, batch by batch."""
    files = sorted(out.glob("keys-rank*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [{name: line[name] for name in ("consumed_samples", "epoch", "keys")} for line in lines if "keys" in line]


def delivered(out: Path) -> dict[int, Counter[str]]:
    """How often each key was given to any process, by epoch."""
    keys: dict[int, Counter[str]] = {}
    for record in given(out):
        keys.setdefault(record["epoch"], Counter()).update(record["keys"])
    return keys


def steps(out: Path) -> dict[int, list[list[str]]]:
    """The batches of every step, sorted, by the count after it; repeats apart."""
    found: dict[int, list[list[str]]] = {}
    for record in given(out):
        found.setdefault(record["consumed_samples"], []).extend([record["keys"]] if record["keys"] else [])
    return {at: sorted(found[at]) for at in sorted(found)}
