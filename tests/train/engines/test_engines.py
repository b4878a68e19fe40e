"""Every engine trains the same model; what saves memory changes no bit; scales and shares are kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shardpipe.train.cli import main
from tests.speech import pack_speech
from tests.training import FLAGS, events, finish, kill_at, markers, one_thread, outcome, start

SAMPLES = 60
STEPS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("engines"), SAMPLES, shard_samples=8, seconds=(0.3, 1.0))


@pytest.fixture(scope="module")
def flags(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    valid = pack_speech(tmp_path_factory.mktemp("valid"), 4, seed=1, seconds=(0.3, 0.6))
    return [
        *(*FLAGS, "--data", str(data), "--valid", str(valid), "--epochs", "2", "--schedule", "constant"),
        *("--batch-size", "2", "--batches-per-step", "6", "--save-every", "2steps", "--keep", "9"),
    ]


@pytest.fixture(scope="module")
def alone(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process, without more than it needs."""
    with one_thread():
        out = trained(tmp_path_factory.mktemp("alone") / "run", flags)
    assert len(losses(out)) == STEPS
    return out


def trained(out: Path, flags: list[str]) -> Path:
    """A run to its end, in this process."""
    assert main([*flags, "--out", str(out)]) == 0
    return out


def losses(out: Path, *kinds: str) -> list[float]:
    return [event["loss"] for event in events(out, *(kinds or ("step",)))]


def test_fsdp_of_two_trains_as_ddp_of_two(flags: list[str], alone: Path, tmp_path: Path) -> None:
    for engine in ("ddp", "fsdp"):
        finish(tmp_path / engine, [*flags, "--engine", engine], processes=2)
        assert losses(tmp_path / engine, "step", "valid") == pytest.approx(losses(alone, "step", "valid"), rel=1e-5)
    files = markers(tmp_path / "fsdp")[f"{2 * SAMPLES:012d}"]["files"]
    assert files.keys() == {"rank0-0.safetensors", "rank1-0.safetensors", "tensors.json"}


def test_a_run_changes_engine_and_world(flags: list[str], alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_at(out, 36, [*flags, "--engine", "fsdp"], processes=2, when=lambda: bool(markers(out)))
    trained(out, [*flags, "--engine", "ddp", "--epochs", "1"])
    finish(out, [*flags, "--engine", "fsdp"], processes=2)
    assert len(events(out, "resume")) == 2
    assert losses(out, "valid")[-1] == pytest.approx(losses(alone, "valid")[-1], rel=1e-4)
    assert losses(out)[-1] == pytest.approx(losses(alone)[-1], rel=1e-4)


@pytest.mark.parametrize("more", [["--engine", "fsdp"], []], ids=["fsdp", "ddp"])
def test_activation_checkpointing_and_fsdp_of_one_change_no_bit(
    flags: list[str], alone: Path, tmp_path: Path, more: list[str]
) -> None:
    out = trained(tmp_path / "run", [*flags, *more, "--activation-checkpointing"])
    assert outcome(out) == outcome(alone)


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_half_the_bits_learn_as_well_and_a_resume_keeps_the_scale(
    flags: list[str], alone: Path, tmp_path: Path, engine: str
) -> None:
    out = trained(tmp_path / "bf16", [*flags, "--engine", engine, "--precision", "bf16"])
    assert losses(out) == pytest.approx(losses(alone), rel=0.01)
    assert losses(out) != losses(alone)

    half = [*flags, "--engine", engine, "--precision", "fp16"]
    whole = trained(tmp_path / "fp16", half)
    (end,) = events(whole, "end")
    assert 0 < end["skipped_steps"] < STEPS
    assert markers(whole)[f"{2 * SAMPLES:012d}"]["scale"]["factor"] == 65536 / 2 ** end["skipped_steps"]
    assert losses(whole)[0] == pytest.approx(losses(alone)[0], rel=0.01)
    shutil.copytree(whole, tmp_path / "back")
    back = trained(tmp_path / "back", [*half, "--resume-samples", "48"])
    assert outcome(back) == outcome(whole)
    assert markers(back) == markers(whole)


def test_checkpoints_without_a_scale_say_nothing_of_one(alone: Path) -> None:
    assert all("scale" not in marker for marker in markers(alone).values())


PEAK = """
import resource, sys
import torch
from shardpipe import Batch
from shardpipe.train.config import TrainConfig
from shardpipe.train.engines import World
from shardpipe.train.task import CharTokenizer, Learner

device = torch.device(sys.argv[1])
config = TrainConfig(data="", out="/", model="small", activation_checkpointing=sys.argv[2] == "True")
world = World(rank=0, size=1, device=device)
learner = Learner(config, world, CharTokenizer.from_texts(["abc"]), 16000)
frames = 16000 * 12
memory = torch.cuda.max_memory_allocated if device.type == "cuda" else (lambda: resource.getrusage(0).ru_maxrss)
before = memory()
batch = Batch(audio=torch.zeros(4, frames, device=device), lengths=torch.full((4,), frames), weights=torch.ones(4),
              keys=list("abcd"), ordinals=[0] * 4, texts=["abc"] * 4,
              extras=[{}] * 4, sample_rate=16000, epoch=0, consumed_samples=4,
              state={}, ends_step=True, seed=1)
torch.manual_seed(0)
result = learner.forward(batch, train=True)
learner.engine.backward(result.loss)
print(memory() - before, repr(result.loss.item()))
"""


def peak(device: str, checkpointing: bool) -> tuple[int, str]:
    """The most memory that a step takes, beyond what there was before it, in any unit; and its loss."""
    command = [sys.executable, "-c", PEAK, device, str(checkpointing)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    bytes_, loss = done.stdout.split()
    return int(bytes_), loss


def assert_smaller(device: str) -> None:
    (kept, loss), (again, same) = peak(device, False), peak(device, True)
    assert loss == same
    assert again < 0.7 * kept


def test_activation_checkpointing_takes_less_memory() -> None:
    assert_smaller("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_activation_checkpointing_takes_less_memory_of_a_gpu() -> None:
    assert_smaller("cuda")


@pytest.mark.soak
def test_what_cannot_be_compiled_is_one_line(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    process = start(tmp_path / "run", [*flags, "--compile"])
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "shardpipe-train: the model cannot be compiled" in said
    assert "Train without --compile" in said
    assert "Traceback" not in said


@pytest.mark.soak
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_what_is_compiled_learns_as_well(flags: list[str], alone: Path, tmp_path: Path) -> None:
    for processes, engine in ((1, "ddp"), (2, "fsdp")):
        finish(tmp_path / engine, [*flags, "--compile", "--engine", engine], processes=processes)
        assert losses(tmp_path / engine) == pytest.approx(losses(alone), rel=0.1)
