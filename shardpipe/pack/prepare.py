"""One utterance becomes one sample's bytes: audio read, cut, resampled and encoded where asked for. Runs in workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy.typing as npt
from isal.isal_zlib import crc32

from shardpipe.audio import AudioInfo, decode, encode, probe, read_segment, resample, span, to_mono
from shardpipe.dataset import Row, extras_json, sample_bytes
from shardpipe.errors import AudioError, ListError, ShardpipeError, StoreError
from shardpipe.lists import Utterance
from shardpipe.store import Store, open_store, shown_url, split_url

__all__ = ["FORMATS", "Prepared", "prepare"]

FORMATS: Final = ("keep", "flac", "wav", "opus")

_ENOUGH_BYTES = 16 << 20


class Prepared(NamedTuple):
    """A sample ready to be appended to a shard: offsets in `row` count from the start of `data`."""

    row: Row
    data: bytes


def prepare(
    utterances: Sequence[Utterance], *, target: str, sample_rate: int | None, flac_level: int
) -> list[Prepared | ShardpipeError]:
    """The samples of the first few utterances, all of them unless they are large; an error stands for a bad one.

    `target` is one of FORMATS, `sample_rate` in Hz or None for each utterance's own, `flac_level` that of `encode`.
    """
    results: list[Prepared | ShardpipeError] = []
    size = 0
    for utterance in utterances:
        try:
            result = _prepare(utterance, target, sample_rate, flac_level)
        except ShardpipeError as error:
            results.append(_located(error, utterance))
            continue
        results.append(result)
        size += len(result.data)
        if size >= _ENOUGH_BYTES:
            break
    return results


def _prepare(utterance: Utterance, target: str, sample_rate: int | None, flac_level: int) -> Prepared:
    payload, info = _audio(utterance, target, sample_rate, flac_level)
    extras = extras_json(utterance.extras)
    text = utterance.text.strip()
    try:
        members = [("txt", text.encode()), *([("json", extras.encode())] if extras else []), (info.codec, payload)]
        data, offsets = sample_bytes(utterance.key, members)
    except UnicodeEncodeError as error:
        raise ListError(
            f"text that is not UTF-8 ({error.reason})", file=utterance.where, fix="Correct the list."
        ) from error
    row = Row(
        key=utterance.key,
        shard=0,
        offset=0,
        size=len(data),
        audio_offset=offsets[-1],
        audio_size=len(payload),
        crc32=crc32(payload),
        codec=info.codec,
        frames=info.frames,
        sample_rate=info.sample_rate,
        channels=info.channels,
        text=text,
        extras=extras,
    )
    return Prepared(row, data)


def _audio(utterance: Utterance, target: str, sample_rate: int | None, flac_level: int) -> tuple[bytes, AudioInfo]:
    """The audio member and what it holds. Bytes that already are what is asked for stay as they are.

    Where "keep" has to cut, to take a channel or to resample, WAV stays WAV and all else becomes FLAC, of 16 bits both.
    """
    channel = utterance.channel
    if utterance.start is not None or utterance.end is not None:
        audio, rate, codec = _segment(utterance.audio, utterance.start or 0.0, utterance.end)
    else:
        payload = _read(utterance.audio)
        info = probe(payload)
        codec, rate = info.codec, info.sample_rate
        audio = decode(payload, codec, "int16" if sample_rate in (None, rate) else "float32")
        is_that_channel = channel is None or (channel == 0 and info.channels == 1)
        if target in ("keep", codec) and sample_rate in (None, rate) and is_that_channel:
            return payload, info
    if channel is not None:
        audio = to_mono(audio, channel)
    if sample_rate not in (None, rate):
        assert sample_rate is not None
        audio, rate = resample(audio, rate, sample_rate), sample_rate
    if target == "keep":
        target = "wav" if codec == "wav" else "flac"
    payload = encode(audio, rate, target, flac_level=flac_level)
    return payload, probe(payload)


def _segment(path: str, start: float, end: float | None) -> tuple[npt.NDArray[Any], int, str]:
    """Samples, their rate and the codec they came from."""
    store, name = _store_of(path)
    if not (size := store.stat(name).size):
        # Or it is one of /proc, some of which let their reader wait for ever.
        raise AudioError("the file is empty", fix="Leave it out of the list.")
    if "://" not in path:
        try:
            if found := read_segment(path, start, end):
                return found
        except OSError as error:
            raise AudioError(f"cannot be read ({error.strerror})", fix="Check the path and the permissions.") from error
    audio, rate, codec = _recording(path, size)
    first, last = span(start, end, rate, len(audio))
    return audio[first:last], rate, codec


@lru_cache(maxsize=1)
def _recording(path: str, _size: int) -> tuple[npt.NDArray[Any], int, str]:
    """A whole recording, kept for its next segment: the lists of such corpora name them one after another."""
    data = _read(path)
    info = probe(data)
    return decode(data, info.codec, "int16"), info.sample_rate, info.codec


def _read(path: str) -> bytes:
    store, name = _store_of(path)
    return store.read(name)


def _store_of(path: str) -> tuple[Store, str]:
    place, query = split_url(path)
    folder, name = os.path.split(place)
    return open_store((folder or ".") + query), name


def _located(error: ShardpipeError, utterance: Utterance) -> ShardpipeError:
    """The error of a file as that of an utterance."""
    if isinstance(error, ListError):
        return error
    where = utterance.where if isinstance(error, StoreError) else f"{utterance.where}, {shown_url(utterance.audio)}"
    what = f"{error.where}: {error.what}" if isinstance(error, StoreError) else error.what
    codec = error.codec if isinstance(error, AudioError) else ""
    return AudioError(what, key=utterance.key, codec=codec, where=where, fix=error.fix)
