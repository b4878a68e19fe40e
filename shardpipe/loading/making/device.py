"""Batches on a CUDA device: copied from page-locked memory, on a stream of their own, by the thread that made them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy.typing as npt
import torch

from shardpipe.errors import ConfigError
from shardpipe.loading.making.batch import Batch
from shardpipe.settings import check

__all__ = ["CudaCopier", "cuda_device", "pinned"]


def cuda_device(device: str | torch.device | None) -> torch.device | None:
    """The CUDA device to copy batches to; None where they are to stay in the processor's memory. Raises ConfigError."""
    rule = "it must be cpu or cuda"
    try:
        wanted = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError("device", device, rule) from error
    check("device", device, wanted.type in ("cpu", "cuda"), rule)
    if wanted.type == "cpu":
        return None
    there = torch.cuda.is_available() and (wanted.index or 0) < torch.cuda.device_count()
    check("device", device, there, "this machine has no such CUDA device")
    return torch.device("cuda", torch.cuda.current_device() if wanted.index is None else wanted.index)


def pinned(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Page-locked memory, which a device reads by itself; PyTorch gives what has been freed to the next batch."""
    array: npt.NDArray[Any] = torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=True).numpy()
    return array


class CudaCopier:
    """Takes batches to a device beside the training loop's own stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, batch: Batch) -> Batch:
        """The batch, its audio on the device and there; the thread waits without the GIL and without the processor."""
        with torch.cuda.stream(self._stream):
            audio = batch.audio if batch.audio.is_pinned() else batch.audio.pin_memory()
            moved = audio.to(self._device, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record(self._stream)
        done.synchronize()
        return replace(batch, audio=moved)

    def receive(self, batch: Batch) -> Batch:
        """Called in the loop's thread: tells the allocator that its stream now uses memory of the other one."""
        batch.audio.record_stream(torch.cuda.current_stream(self._device))
        return batch
