"""Tensors as files of a checkpoint, format 1: as torch.distributed.checkpoint's own writer has pickled them.

Nothing that is pickled is run.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from shardpipe.errors import StoreError
from shardpipe.store import is_url
from shardpipe.train.checkpoints.faults import line_of
from shardpipe.train.checkpoints.marker import Checkpoint, damaged
from shardpipe.train.checkpoints.reading import read_file

__all__ = ["PickledReader", "read_pickled_index"]

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


def read_pickled_index(checkpoint: Checkpoint) -> Metadata:
    """Where which tensor lies. torch's own way is `pickle.load`, which would run what a stranger has pickled.

    Raises StoreError.
    """
    if is_url(checkpoint.where):
        fix = "Copy it to a folder, and name that."
        raise StoreError("is of format 1, which is read from a folder alone", url=checkpoint.where, fix=fix)
    if _METADATA not in checkpoint.files:
        raise damaged(checkpoint.where, f"it names no {_METADATA} among its files")
    data = read_file(checkpoint, _METADATA)
    try:
        metadata = _Unpickler(io.BytesIO(data)).load()
        names = {info.relative_path for info in metadata.storage_data.values()}
    except Exception as error:  # there is nothing that planted bytes may not raise
        raise damaged(checkpoint.where, f"{_METADATA} cannot be read ({line_of(error)})") from error
    if strange := names - checkpoint.files.keys():
        raise damaged(checkpoint.where, f"{_METADATA} names {strange.pop()!r}, which is no file of it")
    assert isinstance(metadata, Metadata)
    return metadata


class PickledReader(FileSystemReader):
    """Reads what `read_pickled_index` has found. It is asked for tensors alone, which torch reads without running."""

    def __init__(self, checkpoint: Checkpoint, metadata: Metadata) -> None:
        super().__init__(Path(checkpoint.where))
        self._read = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return replace(self._read, storage_meta=StorageMeta(load_id=self.load_id))


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
