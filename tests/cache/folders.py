"""Shards to cache, and what lies in a cache's folder."""

from __future__ import annotations

import multiprocessing
import os
import time
import zlib
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from shardpipe.cache.lock import locked
from shardpipe.cache.shards import ShardCache
from shardpipe.dataset import ShardInfo

__all__ = [
    "MIB",
    "PIECE",
    "SHARD_SIZE",
    "SPAWN",
    "allocated",
    "content",
    "fetch",
    "file_of",
    "leases",
    "pieces",
    "shard_of",
    "shards_in",
    "used_at",
]

MIB = 1 << 20
SHARD_SIZE = 2 * MIB
PIECE = 100_000
SPAWN = multiprocessing.get_context("spawn")


def shard_of(number: int, size: int = SHARD_SIZE, md5: Any = None) -> ShardInfo:
    md5 = f"{number:032x}" if md5 is None else md5
    return ShardInfo(name=f"{number}.tar", samples=1, size=size, md5=md5, frames=1, seconds=1.0, checksum=f"c{number}")


@lru_cache
def content(number: int, size: int = SHARD_SIZE) -> bytes:
    """A shard's bytes; none of them 0, so that a hole is never right by chance."""
    return np.random.Generator(np.random.Philox(number)).integers(1, 256, size, dtype=np.uint8).tobytes()


def pieces(size: int = SHARD_SIZE) -> list[tuple[int, int]]:
    return [(offset, min(PIECE, size - offset)) for offset in range(0, size, PIECE)]


def fetch(cache: ShardCache, number: int, offset: int, length: int, data: bytes) -> tuple[bytes, bool]:
    """What the read side does: its bytes if the checksum is right, else the store's, kept; and whether it hit."""
    right = data[offset : offset + length]
    found = cache.read(shard_of(number), offset, length)
    if found is not None and zlib.crc32(found) == zlib.crc32(right):
        return found, True
    cache.write(shard_of(number), offset, right)
    return right, False


def allocated(folder: Path) -> int:
    """Bytes of disk that the folder's files take, while nobody can evict: it only grows as we add it up."""
    with locked(str(folder), wait=5.0):
        total = 0
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                total += entry.stat(follow_symlinks=False).st_blocks * 512
        return total


def leases(folder: Path) -> list[Path]:
    return list(folder.glob("*.lease"))


def shards_in(folder: Path) -> set[int]:
    return {int(path.name[:32], 16) for path in folder.glob("*.shard")}


def file_of(folder: Path, number: int) -> Path:
    return folder / f"{number:032x}-{SHARD_SIZE}.shard"


def used_at(path: Path, seconds_ago: float) -> None:
    os.utime(path, (time.time() - seconds_ago,) * 2)
