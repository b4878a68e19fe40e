"""Model and optimizer of a checkpoint, as torch.distributed.checkpoint writes them, by all processes together."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from shardpipe.errors import StoreError
from shardpipe.train.checkpoints.marker import Checkpoint
from shardpipe.train.compat import maybe_alone
from shardpipe.train.engines import World

__all__ = ["restore", "save_tensors"]


_METADATA = ".metadata"
_OF_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES = {
    **dict.fromkeys(
        (
            *("BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta"),
            *("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING"),
        ),
        _OF_METADATA,
    ),
    "_StorageInfo": "torch.distributed.checkpoint.filesystem",
    "Size": "torch",
    "_get_layout": "torch.serialization",
}
"""What DCP's metadata are made of, besides dtypes: the names that its pickle may import, and from where."""


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, world: World) -> None:
    """Puts the checkpoint's model and optimizer in place; the optimizer's settings (rate, decay) stay as they are.

    Whoever made the checkpoint, nothing in it is run. Raises StoreError if it cannot be loaded.
    """
    metadata = world.from_main(lambda: _read_metadata(checkpoint))
    model_state, optimizer_state = get_state_dict(model, optimizer)
    # Settings are not even read: torch gives its optimizers new ones, which older checkpoints lack.
    groups: Any = optimizer_state["param_groups"]
    settings = [{name: group.pop(name) for name in list(group) if name != "params"} for group in groups]
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    try:
        with maybe_alone(load, world.size == 1) as how:
            load(state, storage_reader=_Reader(checkpoint.path, metadata), planner=_Planner(), **how)
        for group, setting in zip(state["optimizer"]["param_groups"], settings):
            group.update(setting)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    except (CheckpointException, Exception) as error:  # the first is none of the second
        raise _damaged(checkpoint, f"its tensors cannot be loaded ({_cause_of(error)})") from error


class _Reader(FileSystemReader):
    """Reads what metadata, read before and checked, say of a checkpoint."""

    def __init__(self, path: Path, metadata: Metadata) -> None:
        super().__init__(path)
        self._read = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return replace(self._read, storage_meta=StorageMeta(load_id=self.load_id))


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Values that are no tensors. torch's own way runs what is pickled in them, so it gets what we have pickled."""
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def _read_metadata(checkpoint: Checkpoint) -> Metadata:
    """Where which tensor lies. torch's own way is `pickle.load`, which would run what a stranger has pickled."""
    try:
        metadata = _Unpickler(io.BytesIO((checkpoint.path / _METADATA).read_bytes())).load()
        names = {info.relative_path for info in metadata.storage_data.values()}
    except Exception as error:  # there is nothing that damaged or planted bytes may not raise
        raise _damaged(checkpoint, f"{_METADATA} cannot be read ({_cause_of(error)})") from error
    if strange := names - checkpoint.files:
        raise _damaged(checkpoint, f"{_METADATA} names {strange.pop()!r}, which is no file of it")
    assert isinstance(metadata, Metadata)
    return metadata


_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):  # type: ignore[misc]
    """Admits DCP's own classes and dtypes alone, and changes none of these, as pickle lets itself be told to."""

    dispatch: ClassVar = {**_InPython.dispatch}

    def find_class(self, module: str, name: str) -> Any:
        if _CLASSES.get(name) == module or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def load_build(self) -> None:
        owner = type(self.stack[-2])
        if _CLASSES.get(owner.__name__) != owner.__module__:
            raise pickle.UnpicklingError(f"it changes {self.stack[-2]!r}")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build


def _damaged(checkpoint: Checkpoint, what: str) -> StoreError:
    fix = "Choose another checkpoint, or let --resume auto choose."
    return StoreError(f"is damaged: {what}", url=str(checkpoint.path), fix=fix)


def save_tensors(folder: Path, model: nn.Module, optimizer: Optimizer, world: World) -> None:
    """Writes model and optimizer into a folder that is there. Raises StoreError."""
    model_state, optimizer_state = get_state_dict(model, optimizer)
    try:
        state = {"model": model_state, "optimizer": optimizer_state}
        with maybe_alone(save, world.size == 1) as how:
            save(state, storage_writer=_Writer(folder, overwrite=False), **how)
    except CheckpointException as error:
        fix = "Check the disk, then run the same command again: it goes on from the last checkpoint."
        raise StoreError(f"cannot be written ({_cause_of(error)})", url=str(folder), fix=fix) from error


class _Writer(FileSystemWriter):
    """Writes no path and no random name into the checkpoint."""

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta()


def _cause_of(error: BaseException) -> str:
    """What went wrong in the processes, in one line."""
    failures = (
        [failure[0] for failure in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    )
    return "; ".join(dict.fromkeys(map(_root_of, failures)))


def _root_of(error: BaseException) -> str:
    """What the system said, where torch's own error hides that."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OSError):
        inner = inner.__cause__ or inner.__context__
    return (str(inner or error).splitlines() or [type(error).__name__])[0]
