"""Decoding alone: encoded audio in memory to float32, on all cores, with nothing around it. Started by bench_loader.py.

It is what a loader cannot beat. Nothing is read, padded, checked or kept: a thread decodes into the same memory again
and again. Processes decode what they inherited when they were forked, and hand back only how much it was.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from time import monotonic
from typing import Any

import miniaudio
import numpy as np
import soundfile
from peers.common import decode
from processes import answer_lines

from shardpipe import audio

__all__ = ["DECODERS"]

Decode = Callable[[bytes, np.ndarray], int]
"""(file, room for its samples as float32) -> frames."""

_ffi: Any = miniaudio.ffi
_lib: Any = miniaudio.lib


def by_shardpipe(data: bytes, _: np.ndarray) -> int:
    return len(audio.decode(data, audio.detect(data)))


def by_soundfile(data: bytes, _: np.ndarray) -> int:
    return len(decode(data, "", "soundfile"))


def by_dr_flac(data: bytes, out: np.ndarray) -> int:
    """dr_flac to int16, as fast as it goes, and numpy to float32."""
    flac = _lib.ma_dr_flac_open_memory(_ffi.from_buffer(data), len(data), _ffi.NULL)
    raw = np.empty(flac.totalPCMFrameCount, np.int16)
    frames = int(_lib.ma_dr_flac_read_pcm_frames_s16(flac, len(raw), _ffi.from_buffer("short[]", raw)))
    _lib.ma_dr_flac_close(flac)
    np.multiply(raw, np.float32(1 / 32768), out=out[:frames])
    return frames


def by_dr_flac_float(data: bytes, out: np.ndarray) -> int:
    """dr_flac to float32 itself."""
    flac = _lib.ma_dr_flac_open_memory(_ffi.from_buffer(data), len(data), _ffi.NULL)
    frames = _lib.ma_dr_flac_read_pcm_frames_f32(flac, len(out), _ffi.from_buffer("float[]", out))
    _lib.ma_dr_flac_close(flac)
    return int(frames)


def by_numpy(data: bytes, out: np.ndarray) -> int:
    """16-bit PCM behind the usual header of 44 bytes."""
    raw = np.frombuffer(data, "<i2", offset=44)
    np.multiply(raw, np.float32(1 / 32768), out=out[: len(raw)])
    return len(raw)


_EVERY: dict[str, Decode] = {"shardpipe.audio": by_shardpipe, "soundfile": by_soundfile}
DECODERS: dict[str, dict[str, Decode]] = {
    "flac": {"dr_flac": by_dr_flac, "dr_flac to float": by_dr_flac_float, **_EVERY},
    "wav": {"numpy": by_numpy, **_EVERY},
    "opus": _EVERY,
    "mp3": _EVERY,
}


def _share(files: Sequence[bytes], numbers: Iterator[int], call: Decode) -> int:
    """Frames of the files whose numbers this thread gets hold of."""
    out = np.empty(30 * 48000, np.float32)
    frames = 0
    for number in numbers:
        if number >= len(files):
            return frames
        frames += call(files[number], out)
    return frames


def in_threads(files: Sequence[bytes], call: Decode, count: int) -> int:
    numbers = itertools.count()  # its next() is one step, so threads share it
    with ThreadPoolExecutor(count) as threads:
        return sum(threads.map(lambda _: _share(files, numbers, call), range(count)))


_inherited: list[tuple[Sequence[bytes], Decode]] = []


def _slice(part: tuple[int, int]) -> int:
    files, call = _inherited[-1]
    return _share(files[part[0] :: part[1]], itertools.count(), call)


def in_processes(files: Sequence[bytes], call: Decode, count: int) -> tuple[int, float]:
    """Frames, and seconds without the processes' start."""
    _inherited.append((files, call))
    with get_context("fork").Pool(count) as pool:
        pool.map(abs, range(count))
        begun = monotonic()
        # Finer shares than one a process, so that none waits long for the last.
        frames = sum(pool.imap_unordered(_slice, [(i, 8 * count) for i in range(8 * count)]))
        return frames, monotonic() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", type=Path, required=True)
    parser.add_argument("--format", choices=tuple(DECODERS), required=True)
    options = parser.parse_args()
    lines = options.list.read_text(encoding="utf-8").splitlines()
    files = [(options.list.parent / json.loads(line)["wav"]).read_bytes() for line in lines]
    soundfile.read  # noqa: B018 (loaded before anything is timed)
    cores = len(os.sched_getaffinity(0))
    for question, answer in answer_lines():
        call = DECODERS[options.format][question["decoder"]]
        some = files[: question["files"] or None]
        if question["processes"]:
            frames, seconds = in_processes(some, call, cores)
        else:
            begun = monotonic()
            frames = in_threads(some, call, cores)
            seconds = monotonic() - begun
        answer({"rate": len(some) / seconds, "frames": frames})


if __name__ == "__main__":
    main()
