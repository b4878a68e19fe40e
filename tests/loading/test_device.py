"""Batches on a device: the same batches. What needs CUDA is skipped without it, for all to see."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shardpipe import Batch, Sample, ShardLoader
from shardpipe.errors import ConfigError
from tests.speech import pack_speech

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
PLAN: dict[str, Any] = {"batch_size": 4, "seed": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("device"), 40, shard_samples=9, seconds=(0.05, 0.3))


def quieter(sample: Sample, rng: np.random.Generator) -> Sample:
    sample.audio = sample.audio * np.float32(0.5)
    return sample


def check_equal(one: Batch, other: Batch) -> None:
    assert one.keys == other.keys
    for name in ("audio", "lengths", "weights"):
        assert torch.equal(getattr(one, name).cpu(), getattr(other, name).cpu()), name


def test_the_processor_is_a_device(data: Path) -> None:
    for one, other in zip(ShardLoader(data, **PLAN), ShardLoader(data, **PLAN, device="cpu"), strict=True):
        check_equal(one, other)
        assert other.audio.device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "rule"),
    [("mps", "must be cpu or cuda"), ("gpu!", "must be cpu or cuda"), ("cuda:99", "no such CUDA device")],
)
def test_a_device_that_will_not_do(data: Path, device: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"device is '{device}', but .*{rule}"):
        ShardLoader(data, **PLAN, device=device)


def test_a_collate_keeps_its_own_tensors(data: Path) -> None:
    with pytest.raises(ConfigError, match="device is 'cpu', but it moves a Batch"):
        ShardLoader(data, **PLAN, device="cpu", collate=lambda samples: samples)


@needs_cuda
@pytest.mark.parametrize(
    "options", [{}, {"dtype": "int16"}, {"transform": quieter}, {"transform": quieter, "workers": 2}, {"prefetch": 1}]
)
def test_the_same_batches_on_a_gpu(data: Path, options: dict[str, Any]) -> None:
    on_host = list(ShardLoader(data, **PLAN, **options))
    loader = ShardLoader(data, **PLAN, **options, device="cuda")
    for one, other in zip(on_host, loader, strict=True):
        assert other.audio.is_cuda
        assert not other.lengths.is_cuda
        assert not other.weights.is_cuda
        check_equal(one, other)


@needs_cuda
def test_memory_is_not_given_away_while_the_loop_computes_with_it(data: Path) -> None:
    """The loop's kernels run long after Python has let a batch go."""
    expected = [batch.audio.double().sum() for _ in range(5) for batch in ShardLoader(data, **PLAN, shuffle=False)]
    sums = []
    for _ in range(5):
        for batch in ShardLoader(data, **PLAN, shuffle=False, device="cuda"):
            torch.cuda._sleep(20_000_000)
            sums.append(batch.audio.double().sum())
    assert torch.allclose(torch.stack(sums).cpu(), torch.stack(expected), rtol=1e-12)


@needs_cuda
def test_device_memory_is_given_back(data: Path) -> None:
    for _ in ShardLoader(data, **PLAN, device="cuda"):
        pass
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        for _ in ShardLoader(data, **PLAN, device="cuda"):
            pass
    gc.collect()
    assert torch.cuda.memory_allocated() == before
