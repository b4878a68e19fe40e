"""Tensors as files of a checkpoint, format 2: safetensors of each process, and tensors.json, which says where they are.

torch.distributed.checkpoint plans who writes and reads what; here are the writer and the reader that it does so by. A
tensor is one piece, or as many as processes hold a share of it, each under the tensor's name in a file of its process.
So a reader on any number of processes finds what it needs. Nothing in such files is code.
(safetensors' format: huggingface.co/docs/safetensors.)
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from shardpipe.store import Count, parsed
from shardpipe.train.checkpoints.marker import Checkpoint, Sum, damaged
from shardpipe.train.checkpoints.reading import read_file
from shardpipe.train.checkpoints.storage import Storage

__all__ = ["PiecesReader", "PiecesWriter", "read_index"]

_INDEX = "tensors.json"
_FILE_BYTES = 128 << 20
"""A file holds more only where one tensor does: it is read as a whole, and sent to a URL from a temporary file."""
_Dtype: TypeAlias = Literal[
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"
]


class _Piece(msgspec.Struct, forbid_unknown_fields=True):
    """A box of a tensor, from place `at` on, and the file in which it lies under the tensor's name."""

    file: str
    at: list[Count]
    shape: list[Count]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: _Dtype
    shape: list[Count]
    pieces: list[_Piece]


class PiecesWriter(StorageWriter):
    """Writes this process's pieces; the first one's also begins the checkpoint, and completes it when all are there.

    `marker` makes checkpoint.json of all other files.
    """

    def __init__(self, storage: Storage, name: str, rank: int, marker: Callable[[dict[str, Sum]], bytes]) -> None:
        self._storage = storage
        self._name = name
        self._rank = rank
        self._marker = marker

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        return False  # a place is not all that it takes

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        size = 0
        for data in (item.tensor_data for plan in plans for item in plan.items):
            assert data is not None
            size += math.prod(data.chunk.sizes) * data.properties.dtype.itemsize
        self._storage.begin(self._name, size)
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        tensors: list[Any] = [planner.resolve_data(item) for item in plan.items]
        for number, items in enumerate(_in_files(zip(plan.items, tensors))):
            file = f"rank{self._rank}-{number}.safetensors"
            held = {item.index.fqn: tensor for item, tensor in items}
            written = self._storage.write(self._name, file, partial(_save, held))
            for item, tensor in items:
                at = [] if item.tensor_data is None else list(item.tensor_data.chunk.offsets)
                piece = _Piece(file=file, at=at, shape=list(tensor.shape))
                results.append(WriteResult(item.index, tensor.nbytes, (piece, written)))
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        entries: dict[str, _Entry] = {}
        for name, tensor in sorted(metadata.state_dict_metadata.items()):
            assert isinstance(tensor, TensorStorageMetadata)
            dtype: Any = str(tensor.properties.dtype).removeprefix("torch.")
            entries[name] = _Entry(dtype=dtype, shape=list(tensor.size), pieces=[])
        files = {}
        for result in (result for by_rank in results for result in by_rank):
            piece, written = result.storage_data
            entries[result.index.fqn].pieces.append(piece)
            files[piece.file] = written
        index = json.dumps(msgspec.to_builtins(entries)).encode()
        files[_INDEX] = self._storage.write(self._name, _INDEX, lambda path: path.write_bytes(index))
        self._storage.complete(self._name, self._marker(dict(sorted(files.items()))))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Lets the training go on meanwhile, which making the bytes of a file first would not. Raises OSError."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error ([0-9]+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _in_files(written: Iterable[tuple[Any, Tensor]]) -> Iterable[list[tuple[Any, Tensor]]]:
    """What goes into one file each. An empty piece needs none."""
    held: list[tuple[Any, Tensor]] = []
    size = 0
    for item, tensor in written:
        if held and size + tensor.nbytes > _FILE_BYTES:
            yield held
            held, size = [], 0
        if tensor.numel():
            held.append((item, tensor))
            size += tensor.nbytes
    if held:
        yield held


def read_index(checkpoint: Checkpoint) -> Metadata:
    """What tensors.json says, as torch.distributed.checkpoint wants it. Raises StoreError.

    A tensor's pieces are in the checkpoint's files, one in each.
    """
    if _INDEX not in checkpoint.files:
        raise damaged(checkpoint.where, f"it names no {_INDEX} among its files")
    data = read_file(checkpoint, _INDEX)
    try:
        entries = parsed(data, dict[str, _Entry])
    except ValueError as error:
        raise damaged(checkpoint.where, f"{_INDEX} cannot be read ({error})") from error
    found = Metadata(state_dict_metadata={}, storage_data={})
    for name, entry in entries.items():
        if strange := {piece.file for piece in entry.pieces} - checkpoint.files.keys():
            raise damaged(checkpoint.where, f"{_INDEX} names {strange.pop()!r}, which is no file of it")
        if len({piece.file for piece in entry.pieces}) < len(entry.pieces):
            raise damaged(checkpoint.where, f"{_INDEX} names two pieces of {name!r} in one file")
        chunks = [ChunkStorageMetadata(torch.Size(piece.at), torch.Size(piece.shape)) for piece in entry.pieces]
        properties = TensorProperties(dtype=getattr(torch, entry.dtype))
        found.state_dict_metadata[name] = TensorStorageMetadata(properties, torch.Size(entry.shape), chunks)
        for piece, chunk in zip(entry.pieces, chunks):
            found.storage_data[MetadataIndex(name, chunk.offsets)] = piece
    return found


class PiecesReader(StorageReader):
    """Reads what `read_index` has found, each file once, as a whole, and checked."""

    def __init__(self, checkpoint: Checkpoint, metadata: Metadata) -> None:
        self._checkpoint = checkpoint
        self._metadata = metadata

    def reset(self, checkpoint_id: Any = None) -> None:
        pass

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003
        return False

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        return self._metadata

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *_: Any, **__: Any) -> None:
        pass

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        wanted: dict[str, list[tuple[Any, _Piece]]] = {}
        for item in plan.items:
            piece = self._metadata.storage_data[item.storage_index]
            wanted.setdefault(piece.file, []).append((item, piece))
        for file, items in wanted.items():
            tensors = self._load(file)
            for item, piece in items:
                tensor = self._piece(tensors, item.storage_index.fqn, piece)
                target = planner.resolve_tensor(item).detach()
                target.copy_(_box(tensor, item.storage_offsets, item.lengths))
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _load(self, file: str) -> dict[str, Tensor]:
        data = read_file(self._checkpoint, file)
        try:
            return from_safetensors(data)
        except Exception as error:  # whatever its parser makes of what was planted
            raise damaged(self._checkpoint.where, f"{file} is no safetensors file ({error})") from error

    def _piece(self, tensors: dict[str, Tensor], name: str, piece: _Piece) -> Tensor:
        tensor, whole = tensors.get(name), self._metadata.state_dict_metadata[name]
        assert isinstance(whole, TensorStorageMetadata)
        if tensor is None or list(tensor.shape) != piece.shape or tensor.dtype != whole.properties.dtype:
            found = "is not" if tensor is None else f"is {tensor.dtype} {list(tensor.shape)}"
            what = f"{name!r} {found} in {piece.file}, where {_INDEX} has {whole.properties.dtype} {piece.shape}"
            raise damaged(self._checkpoint.where, what)
        return tensor


def _box(tensor: Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
    return tensor[tuple(slice(at, at + length) for at, length in zip(offsets, lengths))]
