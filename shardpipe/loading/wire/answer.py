"""A batch as it travels: one safetensors body, its tensors and, in the metadata, keys, texts and a checksum of it all.

The format is safetensors' (huggingface.co/docs/safetensors); docs/service.md specifies what the metadata hold. Nothing
in it is code. The audio comes last, so that whoever reads it can have it written where it is to lie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32

from shardpipe.loading.making import Empty, Padded, Skipped, memory_for
from shardpipe.loading.wire.trees import flattened, rebuilt
from shardpipe.loading.wire.unpadded import joined, spread
from shardpipe.store import parsed

__all__ = ["ANSWER_FORMAT", "Source", "packed", "unpacked"]

ANSWER_FORMAT = "1"

_START = b'{"__metadata__":{"checksum":"'
_NO_CHECKSUM = b"00000000"
_HEADER_MAX = 1 << 28
_SMALL = 1 << 16

_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "int16",
    "F32": "float32",
    "F64": "float64",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items() if name != "BF16"}


class Source(Protocol):
    """Where an answer's bytes come from."""

    def fill(self, view: memoryview) -> None:
        """Puts the next bytes there, as many as it has room for, or raises."""


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


class _Metadata(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    checksum: str
    format: str
    request: str
    skipped: str
    batch: str | None = None
    collated: str | None = None


class _Batch(msgspec.Struct, kw_only=True):
    keys: list[Any]
    texts: list[Any]
    extras: list[Any]
    sample_rate: int
    channels: int | None
    """Of audio [B, C, T]; None for [B, T]."""


class _Array(NamedTuple):
    array: npt.NDArray[Any]
    halves: bool
    """Whether these are the bits of bfloat16, of which numpy knows nothing."""


def packed(made: Any, skipped: Sequence[Skipped], request: str) -> list[bytes | memoryview]:
    """The body that answers a request, of this digest, in pieces. Raises ValueError for what cannot travel."""
    tensors: dict[str, _Array] = {}

    def put(array: npt.NDArray[Any], halves: bool) -> str:
        name = f"tensor-{len(tensors)}"
        tensors[name] = _Array(np.ascontiguousarray(array).reshape(array.shape), halves)
        return name

    metadata = {
        "checksum": _NO_CHECKSUM.decode(),
        "format": ANSWER_FORMAT,
        "request": request,
        "skipped": msgspec.json.encode(list(skipped)).decode(),
    }
    if isinstance(made, Padded):
        assert isinstance(made.audio, np.ndarray)
        said = {
            "keys": flattened(made.keys, put),
            "texts": flattened(made.texts, put),
            "extras": flattened(made.extras, put),
            "sample_rate": made.sample_rate,
            "channels": made.audio.shape[1] if made.audio.ndim == 3 else made.channels,
        }
        metadata["batch"] = _json(said)
        tensors["lengths"] = _Array(np.array(made.lengths, np.int64), False)
        tensors["weights"] = _Array(np.array(made.weights, np.float32), False)
        tensors["audio"] = _Array(made.audio if made.audio.ndim == 1 else joined(made.audio, made.lengths), False)
    else:
        metadata["collated"] = _json(flattened(made, put))
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, (array, halves) in tensors.items():
        if array.dtype.name not in _NAMES or array.dtype.byteorder == ">":
            raise ValueError(f"it has an array of {array.dtype} in it")
        dtype = "BF16" if halves else _NAMES[array.dtype.name]
        header[name] = _Tensor(dtype, list(array.shape), (offset, offset + array.nbytes))
        offset += array.nbytes
    text = msgspec.json.encode(header)
    head = bytearray(len(text).to_bytes(8, "little") + text)
    pieces = [_bytes(array) for array, _ in tensors.values() if array.nbytes]
    checksum = 0
    for piece in (head, *pieces):
        checksum = crc32(piece, checksum)
    start = 8 + len(_START)
    head[start : start + 8] = b"%08x" % checksum
    return _gathered([head, *pieces])


def _gathered(pieces: Sequence[bytes | bytearray | memoryview]) -> list[bytes | memoryview]:
    """Small pieces put together: each one that is sent costs a call."""
    found: list[bytes | memoryview] = []
    small: list[bytes | bytearray | memoryview] = []
    for piece in pieces:
        if len(piece) < _SMALL:
            small.append(piece)
            continue
        found += [b"".join(small), memoryview(piece)]
        small = []
    return [piece for piece in (*found, b"".join(small)) if piece]


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def _json(value: Any) -> str:
    try:
        return msgspec.json.encode(value).decode()
    except (UnicodeEncodeError, TypeError, msgspec.EncodeError) as error:
        raise ValueError(f"its texts cannot be written down ({error})") from error


def unpacked(source: Source, size: int, *, request: str, dtype: str, empty: Empty) -> tuple[Any, list[Skipped]]:
    """The batch that a body of `size` bytes holds, Padded or as it was collated, and what of it was skipped.

    Its audio comes as `dtype`, in memory from `empty`. Raises ValueError if anything in it is not as it was sent, or
    answers another request; and what `source` raises.
    """
    start = _filled(source, 8)
    length = int.from_bytes(start, "little")
    if not len(_START) + 8 <= length <= min(size - 8, _HEADER_MAX):
        raise ValueError("it does not begin as an answer does")
    header = _filled(source, length)
    at = len(_START)
    told = bytes(header[at : at + 8])
    if header[:at] != _START:
        raise ValueError("it does not begin as an answer does")
    header[at : at + 8] = _NO_CHECKSUM
    checksum = crc32(header, crc32(start))
    fields = parsed(bytes(header), dict[str, msgspec.Raw])
    metadata = parsed(bytes(fields.pop("__metadata__")), _Metadata)
    if metadata.format != ANSWER_FORMAT:
        raise ValueError(f"it is of format {metadata.format!r}, and {ANSWER_FORMAT} was expected")
    batch = None if metadata.batch is None else parsed(metadata.batch, _Batch)
    tensors: dict[str, _Array] = {}
    end = 0
    for name, raw in fields.items():
        tensor = parsed(bytes(raw), _Tensor)
        _check_place(tensor, end, size - 8 - length)
        end = tensor.data_offsets[1]
        if batch is not None and name == "audio":
            array, came = _room_for_audio(tensor, batch, tensors, dtype, empty)
        else:
            array = came = np.empty(tensor.shape, _DTYPES[tensor.dtype])
        view = _bytes(came)
        source.fill(view)
        checksum = crc32(view, checksum)
        if array is not came:
            spread(array, came, tensors["lengths"].array.tolist())
        tensors[name] = _Array(array, tensor.dtype == "BF16")
    if end != size - 8 - length or told != b"%08x" % checksum:
        raise ValueError("its checksum is not that of its bytes")
    if metadata.request != request:
        raise ValueError("it answers another request")
    try:
        return _made(metadata, batch, tensors), parsed(metadata.skipped, list[Skipped])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it is no batch ({error!r})") from error


def _made(metadata: _Metadata, batch: _Batch | None, tensors: dict[str, _Array]) -> Any:
    if batch is None:
        return rebuilt(parsed(metadata.collated or "", Any), tensors.__getitem__)
    keys, texts, extras = (rebuilt(tree, tensors.__getitem__) for tree in (batch.keys, batch.texts, batch.extras))
    return Padded(
        audio=tensors["audio"].array,
        lengths=tensors["lengths"].array.tolist(),
        weights=tensors["weights"].array.tolist(),
        keys=keys,
        texts=texts,
        extras=extras,
        sample_rate=batch.sample_rate,
    )


def _filled(source: Source, size: int) -> bytearray:
    data = bytearray(size)
    source.fill(memoryview(data))
    return data


def _check_place(tensor: _Tensor, end: int, limit: int) -> None:
    """Raises ValueError unless it begins where the one before it has ended, and is as large as it says."""
    begins, ends = tensor.data_offsets
    fits = tensor.dtype in _DTYPES and begins == end and ends <= limit and min(tensor.shape, default=0) >= 0
    if not fits or math.prod(tensor.shape) * np.dtype(_DTYPES[tensor.dtype]).itemsize != ends - begins:
        raise ValueError("its tensors do not lie as they should")


def _room_for_audio(
    tensor: _Tensor, batch: _Batch, tensors: dict[str, _Array], dtype: str, empty: Empty
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """The padded batch, and the end of its memory, where the samples arrive. Raises ValueError if they do not fit the
    lengths: of what has been damaged on its way, no memory is taken.
    """
    lengths = tensors["lengths"].array if "lengths" in tensors else np.zeros(0, np.int64)
    channels = 1 if batch.channels is None else batch.channels
    exact = tensor.dtype == "I16" if dtype == "int16" else tensor.dtype in ("I16", "F32")
    least = lengths.min(initial=1) > 0 and len(lengths) > 0 and channels > 0
    if not exact or not least or tensor.shape != [channels * sum(lengths.tolist())]:
        raise ValueError("its audio is not as long as it should be")
    shape = (len(lengths), *([] if batch.channels is None else [channels]), int(lengths.max()))
    array: npt.NDArray[Any] = memory_for(empty, shape, dtype)
    size = tensor.data_offsets[1] - tensor.data_offsets[0]
    return array, array.reshape(-1).view(np.uint8)[array.nbytes - size :].view(_DTYPES[tensor.dtype])
