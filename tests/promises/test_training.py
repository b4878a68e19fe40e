"""A run that is killed and goes on is, bit for bit, the run that nothing stopped; every sample comes exactly once."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shardpipe import Batch
from shardpipe.train.config import TrainConfig
from shardpipe.train.ending import AGAIN, Stop
from shardpipe.train.engines import World
from shardpipe.train.logs.display import Display
from shardpipe.train.loop import train
from shardpipe.train.run.evaluating import Evaluation
from tests.speech import pack_speech
from tests.training import FLAGS, delivered, events, finish, kill_at, markers, one_thread, outcome

SAMPLES = 60


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("train"), SAMPLES, shard_samples=8, seconds=(0.3, 1.0))


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("valid"), 7, seed=1, seconds=(0.3, 1.0))


def assert_same(out: Path, reference: Path) -> None:
    assert outcome(out) == outcome(reference)
    ours, theirs = markers(out), markers(reference)
    assert max(ours) == max(theirs)
    # A run that was asked to stop has a checkpoint of that moment, too.
    for name in ours.keys() & theirs.keys():
        assert ours[name] == theirs[name]
    for file in reference.glob("keys-rank*.jsonl"):
        assert (out / file.name).read_bytes() == file.read_bytes()


def assert_exactly_once(out: Path, epochs: int) -> None:
    once = Counter(f"utt{i:05d}" for i in range(SAMPLES))
    assert delivered(out) == dict.fromkeys(range(epochs), once)


def test_killed_three_times_then_asked_to_stop_it_ends_in_the_same_bits(
    data: Path, valid: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--data", str(data), "--valid", str(valid), "--epochs", "2", "--sub-epochs", "3"]
    flags += ["--save-every", "3steps", "--keep", "4"]
    finish(tmp_path / "whole", flags)
    out = tmp_path / "stopped"
    seed = random.randrange(10**6)
    print("the moments are drawn from", seed)
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(4, 2 * SAMPLES - 40), 3))
    for moment in moments:
        code, said = kill_at(out, moment, flags, delay=draw.uniform(0, 0.2))
        assert code == -signal.SIGKILL, said
    code, said = kill_at(out, 2 * SAMPLES - 24, flags, number=signal.SIGTERM)
    assert code == AGAIN, said
    assert "SIGTERM: stopping after this step" in said
    assert "the same command goes on from there" in said
    said = finish(out, flags)
    assert "going on at sample" in said
    assert_same(out, tmp_path / "whole")
    assert_exactly_once(out, 2)


def killed_together(
    data: Path,
    valid: Path,
    folder: Path,
    moments: list[int],
    *,
    engine: str,
    epochs: int = 1,
    delay: float = 0.0,
    save_every: str = "2steps",
    **how: Any,
) -> None:
    flags = [*FLAGS, "--data", str(data), "--valid", str(valid), "--epochs", str(epochs), "--sub-epochs", "2"]
    flags += ["--save-every", save_every, "--accumulate", "2", "--batch-size", "2", "--engine", engine]
    finish(folder / "whole", flags, **how)
    out = folder / "killed"
    for moment in moments:
        code, said = kill_at(out, moment, flags, delay=delay, when=lambda: bool(markers(out)), **how)
        assert code == -signal.SIGKILL, said
    finish(out, flags, **how)
    assert len(events(out, "resume")) >= 1
    assert_same(out, folder / "whole")
    assert_exactly_once(out, epochs)


@pytest.mark.parametrize(
    ("engine", "how", "moments"),
    [
        pytest.param("fsdp", {"processes": 2}, [24], id="fsdp of 2"),
        # Of three the order of a sum counts: DistributedDataParallel must be past its first layout.
        pytest.param("ddp", {"processes": 3, "torchrun": True}, [36], id="ddp of 3", marks=pytest.mark.soak),
    ],
)
def test_processes_of_one_run_killed_together_end_in_the_same_bits(
    data: Path, valid: Path, tmp_path: Path, engine: str, how: dict[str, Any], moments: list[int]
) -> None:
    killed_together(data, valid, tmp_path, moments, engine=engine, **how)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_killed_together_five_times_they_end_in_the_same_bits(
    data: Path, valid: Path, tmp_path: Path, engine: str
) -> None:
    seed = random.randrange(10**6)
    print("the moments are drawn from", seed)
    draw = random.Random(seed)
    moments = sorted(draw.sample(range(8, 2 * SAMPLES - 24), 5))
    # After every step, so that as a rule one is being written.
    often = {"epochs": 2, "delay": draw.uniform(0, 0.2), "save_every": "1steps"}
    killed_together(data, valid, tmp_path, moments, engine=engine, processes=2, **often)


class StopAfter(Stop):
    """Asked to stop in that step."""

    def __init__(self, steps: int | None) -> None:
        super().__init__(print, None)
        self.steps = steps

    def __call__(self) -> bool:
        if self.steps is not None:
            self.steps -= 1
            self._asked = self.steps <= 0
        return self._asked


def stopped_after(steps: int | None, config: TrainConfig, device: str) -> int:
    """Trains in this process until that many steps are taken; the exit code."""
    world = World(rank=0, size=1, device=torch.device(device))
    with Display(quiet=True) as display:
        return train(config, world, display, stop=StopAfter(steps), began=time.monotonic())


def stop_at_every_step(data: Path, valid: Path, folder: Path, device: str) -> None:
    def config(name: str) -> TrainConfig:
        return TrainConfig(
            data=str(data),
            valid=str(valid),
            out=str(folder / name),
            model="tiny",
            batch_seconds=2.5,
            accumulate=2,
            epochs=1,
            sub_epochs=2,
            window=8,
            lanes=2,
            warmup="3steps",
            save_every="4steps",
        )

    assert stopped_after(None, config("whole"), device) == 0
    whole = outcome(folder / "whole")
    steps = sum(event["event"] == "step" for event in whole)
    assert steps > 6
    assert sum(event["event"] == "valid" for event in whole) == 2
    for step in range(1, steps + 1):
        out = folder / str(step)
        assert stopped_after(step, config(out.name), device) == AGAIN
        assert stopped_after(None, config(out.name), device) == 0
        assert outcome(out) == whole
        last = f"{SAMPLES:012d}"
        assert markers(out)[last] == markers(folder / "whole")[last]


def test_asked_while_it_evaluates_it_ends_at_once_and_evaluates_again(
    data: Path, valid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {"first": str(valid), "second": str(valid)}
    options: dict[str, Any] = {"data": str(data), "valid": sets, "model": "tiny", "epochs": 1, "sub_epochs": 2}
    configs = [TrainConfig(**options, out=str(tmp_path / name)) for name in ("whole", "run")]
    assert stopped_after(None, configs[0], "cpu") == 0
    stop, world = StopAfter(None), World(rank=0, size=1, device=torch.device("cpu"))
    taken = iter(range(10**6))

    def take(self: Evaluation, batch: Batch) -> None:
        if next(taken) == 1:  # the first set has been gone through
            stop.receive(signal.SIGTERM)

    with monkeypatch.context() as patch, Display(quiet=True) as display:
        patch.setattr(Evaluation, "_taken", take)
        assert train(configs[1], world, display, stop=stop, began=time.monotonic()) == AGAIN
    assert [event["set"] for event in events(tmp_path / "run", "valid")] == ["first"]
    (marker,) = markers(tmp_path / "run").values()
    assert not marker["progress"]["evaluated"]
    assert stopped_after(None, configs[1], "cpu") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert markers(tmp_path / "run") == markers(tmp_path / "whole")


def test_stopped_after_any_step_it_goes_on_as_if_it_had_not(data: Path, valid: Path, tmp_path: Path) -> None:
    stop_at_every_step(data, valid, tmp_path, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_too(data: Path, valid: Path, tmp_path: Path) -> None:
    stop_at_every_step(data, valid, tmp_path, "cuda")
