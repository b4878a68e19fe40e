"""Model and optimizer by the names that checkpoints have for their tensors: put in place, or read by themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import StorageReader
from torch.optim import Optimizer

from shardpipe.errors import ResumeMismatch
from shardpipe.train.checkpoints.faults import line_of, telling
from shardpipe.train.checkpoints.marker import Checkpoint, damaged
from shardpipe.train.checkpoints.pickled import PickledReader, read_pickled_index
from shardpipe.train.checkpoints.pieces import PiecesReader, read_index
from shardpipe.train.compat import maybe_alone
from shardpipe.train.engines import World

__all__ = ["read_weights", "restore", "tensors_of"]

_MODEL = "model."
_STATE = "optimizer.state."
_SHOWN = 5
_DIMENSIONS = 64
_FIX = "The checkpoint is of another model or optimizer: go on with the settings, and the version of shardpipe, that "
_FIX += "wrote it, or give a new --out."


def tensors_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All tensors that go on in a checkpoint, by name; they are those in use, and no copies."""
    return _named(*get_state_dict(model, optimizer))


def _named(model_state: Mapping[str, Any], optimizer_state: Mapping[str, Any]) -> dict[str, Tensor]:
    tensors = {_MODEL + name: tensor for name, tensor in model_state.items()}
    for owner, state in optimizer_state["state"].items():
        tensors |= {f"{_STATE}{owner}.{name}": value for name, value in state.items()}
    strange = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    assert not strange, strange
    return tensors


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, world: World) -> None:
    """Puts the checkpoint's model and optimizer in place; the optimizer's settings (rate, decay) stay as they are.

    Whoever made the checkpoint, nothing in it is run. Raises ResumeMismatch, which names the tensors, if it is of
    another model, StoreError if it cannot be loaded.
    """
    metadata = world.from_main(lambda: _read_metadata(checkpoint))
    model_state, optimizer_state = get_state_dict(model, optimizer)
    tensors = _named(model_state, optimizer_state)
    _check_fits(checkpoint, metadata, tensors)
    _load(checkpoint, metadata, tensors, alone=world.size == 1)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)


def read_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The model's tensors by their names in it, in the processor's memory, in this process alone. Raises StoreError."""
    metadata = _read_metadata(checkpoint)
    tensors = {
        name: torch.empty(found.size, dtype=found.properties.dtype)
        for name, found in _tensors_in(metadata).items()
        if name.startswith(_MODEL)
    }
    if not tensors:
        raise damaged(checkpoint.where, "there is no tensor of a model in it")
    _load(checkpoint, metadata, tensors, alone=True)
    return {name.removeprefix(_MODEL): tensor for name, tensor in tensors.items()}


def _read_metadata(checkpoint: Checkpoint) -> Metadata:
    metadata = read_index(checkpoint) if checkpoint.format > 1 else read_pickled_index(checkpoint)
    try:
        size = sum(_bytes_of(name, tensor) for name, tensor in _tensors_in(metadata).items())
    except Exception as error:  # format 1's may hold anything
        raise damaged(checkpoint.where, f"what it says of its tensors cannot be ({line_of(error)})") from error
    if size > checkpoint.size:
        raise damaged(checkpoint.where, f"tensors of {size} bytes are said to be in files of {checkpoint.size}")
    return metadata


def _bytes_of(name: str, tensor: TensorStorageMetadata) -> int:
    """Bytes of a tensor. Raises ValueError unless its pieces lie within it, beside one another, and fill it: what is
    loaded is then all from there.
    """
    shape = list(tensor.size)
    if len(shape) > _DIMENSIONS or not all(0 <= n < 2**63 for n in shape):
        raise ValueError(f"{name[:100]!r} has no shape that can be")
    boxes = sorted((list(chunk.offsets), list(chunk.sizes)) for chunk in tensor.chunks if all(chunk.sizes))
    good = all(len(at) == len(sizes) == len(shape) for at, sizes in boxes)
    good = good and all(
        a >= 0 and n > 0 and a + n <= most for at, sizes in boxes for a, n, most in zip(at, sizes, shape)
    )
    if not good or _overlap(boxes) or sum(math.prod(sizes) for _, sizes in boxes) != math.prod(shape):
        raise ValueError(f"pieces of {name[:100]!r} do not make it up")
    return math.prod(shape) * tensor.properties.dtype.itemsize


def _overlap(boxes: Sequence[tuple[list[int], list[int]]]) -> bool:
    """Whether two of these boxes, sorted by where they begin, have something in common."""
    for i, (at, sizes) in enumerate(boxes):
        for other, others_sizes in boxes[i + 1 :]:
            if not at or other[0] >= at[0] + sizes[0]:
                break
            if all(a < b + m and b < a + n for a, n, b, m in zip(at, sizes, other, others_sizes)):
                return True
    return False


def _load(checkpoint: Checkpoint, metadata: Metadata, tensors: dict[str, Tensor], *, alone: bool) -> None:
    reader: StorageReader = (PiecesReader if checkpoint.format > 1 else PickledReader)(checkpoint, metadata)
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    into: dict[str, Any] = dict(tensors)
    with telling(lambda line: damaged(checkpoint.where, f"its tensors cannot be loaded ({line})")):
        load(into, storage_reader=reader, planner=planner, **maybe_alone(load, alone))


def _check_fits(checkpoint: Checkpoint, metadata: Metadata, tensors: Mapping[str, Tensor]) -> None:
    saved: dict[str, Any] = {name: list(found.size) for name, found in _tensors_in(metadata).items()}
    current: dict[str, Any] = {name: list(tensor.shape) for name, tensor in tensors.items()}
    for name, found in _tensors_in(metadata).items():
        if name in tensors and found.properties.dtype != (dtype := tensors[name].dtype):
            saved[name], current[name] = str(found.properties.dtype), str(dtype)
    differ = [
        ResumeMismatch(name, saved.get(name), current.get(name), where=checkpoint.where, fix=_FIX)
        for name in [*current, *(saved.keys() - current.keys())]
        if saved.get(name) != current.get(name)
    ]
    if differ:
        error = ResumeMismatch.of_all(differ[:_SHOWN])
        if (more := len(differ) - _SHOWN) > 0:
            error.what += f"; and so on, {more} more"
        raise error


def _tensors_in(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    found = metadata.state_dict_metadata.items()
    return {name: tensor for name, tensor in found if isinstance(tensor, TensorStorageMetadata)}
