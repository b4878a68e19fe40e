"""Checkpoints are written beside the training, of what it was, by all processes together."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shardpipe.errors import StoreError
from shardpipe.train.checkpoints import Checkpoints, Keep, Progress, Saver, read_checkpoint, read_weights
from shardpipe.train.checkpoints.marker import Sum
from shardpipe.train.checkpoints.saving import _share
from shardpipe.train.engines import World
from tests.train.checkpoints.saved import ALONE, facts, model_and_optimizer
from tests.train.checkpoints.under_world import ENGINES, SIZES, number

ROOT = Path(__file__).parents[3]


class Gate:
    """Stands before a storage: writes wait until it opens, or fail."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.opens, self.reached = threading.Event(), threading.Event()
        self.fault: Exception | None = None
        inner = checkpoints.storage.write

        def write(name: str, file: str, fill: Callable[[Path], object]) -> Sum:
            self.reached.set()
            assert self.opens.wait(30)
            if self.fault is not None:
                raise self.fault
            return inner(name, file, fill)

        checkpoints.storage.write = write  # type: ignore[method-assign]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(str(tmp_path), keep=Keep(newest=9))


def test_training_goes_on_and_changes_nothing_of_what_is_written(checkpoints: Checkpoints, tmp_path: Path) -> None:
    gate = Gate(checkpoints)
    saver = Saver(checkpoints, ALONE, pytest.fail)
    model, optimizer = model_and_optimizer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    saver.save(model, optimizer, facts(4))
    assert gate.reached.wait(30)
    assert not saver.has_failed
    for parameter in model.parameters():
        parameter.data.zero_()
    assert checkpoints.counts() == []
    assert saver.written() == []
    gate.opens.set()
    saver.save(model, optimizer, facts(8))
    assert checkpoints.counts() == [4], "one is written at a time"
    saver.wait()
    assert [written.consumed_samples for written in saver.written()] == [4, 8]
    assert saver.written() == []
    saver.close()
    found = read_weights(read_checkpoint(f"{tmp_path}/{4:012d}"))
    assert all(torch.equal(found[name], before[name]) for name in before)
    assert not any(tensor.any() for tensor in read_weights(read_checkpoint(f"{tmp_path}/{8:012d}")).values())


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (StoreError("is away", url="s3://x", fix="Wait.", transient=True), "s3://x: is away. Wait."),
        (RuntimeError("odd\nand long"), "cannot be written (odd). Check the place of the checkpoints"),
    ],
)
def test_one_that_cannot_be_written_is_said_once(
    checkpoints: Checkpoints, tmp_path: Path, fault: Exception, said: str
) -> None:
    saver = Saver(checkpoints, ALONE, pytest.fail)
    learner = model_and_optimizer()
    saver.save(*learner, facts(4))
    saver.wait()
    gate = Gate(checkpoints)
    gate.fault = fault
    gate.opens.set()
    saver.save(*learner, facts(8))
    saver.mark_evaluated(8, Progress(), {"valid/loss": 1.0})  # what is not there, of which nothing more is to be said
    with pytest.raises(StoreError) as caught:
        saver.wait()
    assert said in str(caught.value)
    assert caught.value.transient == getattr(fault, "transient", False)
    assert not saver.has_failed
    assert [path.name for path in tmp_path.iterdir()] == [f"{4:012d}"], "nothing half written stays"
    gate.fault = None
    saver.save(*learner, facts(12))
    saver.wait()
    assert checkpoints.counts() == [4, 12]
    saver.close()


def test_an_evaluation_is_noted_when_its_checkpoint_is_complete(tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(tmp_path), keep=Keep(newest=1, best=1))
    gate = Gate(checkpoints)
    said: list[str] = []
    saver = Saver(checkpoints, ALONE, said.append)
    learner = model_and_optimizer()
    for count, loss in ((4, 1.0), (8, 2.0), (12, 0.5)):
        gate.opens.clear()
        saver.save(*learner, facts(count))
        saver.mark_evaluated(count, Progress(), {"valid/loss": loss})
        gate.opens.set()
        saver.wait()
    saver.mark_evaluated(16, Progress(), {"valid/loss": 0.1})
    saver.close()
    assert checkpoints.counts() == [12], "4 was the best until 12 was evaluated"
    assert checkpoints.peek(12).valid == {"valid/loss": 0.5}
    assert "not noted in the checkpoint at sample 16" in said[0]


def test_processes_share_out_what_all_of_them_have() -> None:
    tensors = {f"t{i}": torch.zeros(10 * i + 1) for i in range(40)}
    worlds = [World(rank=rank, size=3, device=torch.device("cpu")) for rank in range(3)]
    shares = [_share(tensors, world) for world in worlds]
    assert sorted(name for share in shares for name in share) == sorted(tensors)
    sizes = [sum(tensor.nbytes for tensor in share.values()) for share in shares]
    assert max(sizes) - min(sizes) <= max(tensor.nbytes for tensor in tensors.values())


def test_what_one_world_saves_any_other_loads(tmp_path: Path) -> None:
    """On 1, 2 and 3 processes, by either engine, from each to each."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.train.checkpoints.under_world", str(rank), str(size), str(tmp_path)],
            cwd=ROOT,
            env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for size in SIZES
        for rank in range(size)
    ]
    said = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(ranks), "\n".join(said)
    for engine in ENGINES:
        for size in SIZES:
            folder = tmp_path / f"{engine}-{size}" / f"{number(size, engine):012d}"
            assert len(list(folder.glob("rank*.safetensors"))) == size
