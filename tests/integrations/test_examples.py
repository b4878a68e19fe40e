"""The examples, started as a user does, killed, and started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.speech import pack_speech

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Training data of about 60 batches an epoch, and validation data."""
    train, valid = tmp_path_factory.mktemp("train"), tmp_path_factory.mktemp("valid")
    seconds = (2.0, 3.0)
    return pack_speech(train, 240, shard_samples=30, seconds=seconds), pack_speech(valid, 20, seconds=seconds, seed=1)


def torch_file(name: str) -> Callable[[Path], dict[str, Any]]:
    return lambda out: torch.load(out / name, weights_only=True)


def safetensors(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(out / "model.safetensors")


CASES: dict[str, tuple[str, Callable[[Path], dict[str, Any]], str]] = {
    "custom_loop.py": ("last.pt", lambda out: torch_file("last.pt")(out)["model"], "torchrun"),
    "lightning_ctc.py": ("last.ckpt", lambda out: torch_file("final.ckpt")(out)["state_dict"], "devices"),
    "transformers_ctc.py": ("checkpoint-5/trainer_state.json", safetensors, "torchrun"),
    "accelerate_ctc.py": ("step-5", safetensors, "torchrun"),
}


def start(script: str, folders: tuple[Path, Path], out: Path, processes: int) -> subprocess.Popen[str]:
    launcher, devices = [sys.executable, "-W", "ignore"], []
    if processes > 1 and CASES[script][2] == "torchrun":
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    elif CASES[script][2] == "devices":
        devices = [str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent), "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(EXAMPLES / script), *map(str, folders), str(out), *devices]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said[-6000:]
    return said


@pytest.mark.parametrize(
    "script", [pytest.param(name, marks=pytest.mark.soak) if name == "transformers_ctc.py" else name for name in CASES]
)
def test_killed_and_started_again(script: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    first_saved, weights, _ = CASES[script]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(script, folders, whole, 1))
    process = start(script, folders, killed, 1)
    while not (killed / first_saved).exists() and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was to be killed in the middle"
    finish(start(script, folders, killed, 1))
    wanted, found = weights(whole), weights(killed)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.soak
@pytest.mark.parametrize("script", sorted(CASES.keys() - {"custom_loop.py"}))
def test_on_two_processes(script: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    finish(start(script, folders, tmp_path / "out", 2))
    assert CASES[script][1](tmp_path / "out")


def test_a_loop_of_ones_own_is_short_and_the_same_on_any_world(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert len((EXAMPLES / "custom_loop.py").read_text().splitlines()) < 80
    alone, together = (
        finish(start("custom_loop.py", folders, tmp_path / str(processes), processes)) for processes in (1, 2)
    )
    losses = [[float(loss) for loss in re.findall(r"validation loss ([0-9.]+)", said)] for said in (alone, together)]
    assert len(losses[0]) == 2
    # Each of the two processes says it, and rounds sums in its own way.
    assert losses[1] == pytest.approx(sorted(losses[0] * 2, reverse=True), rel=0.01)
