"""Places to write to, and what lies there; small datasets to put there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shardpipe.pack import PackOptions, PackReport, pack
from tests.s3 import SECRETS
from tests.speech import write_list

__all__ = [
    "objects",
    "pack_list",
    "put_folder",
    "run",
    "small_disk",
    "speech_with_a_bad_line",
    "tree",
    "uploaded",
    "use_bucket",
    "write",
]


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    """A disk of that size, such as 600k; the test is skipped where none may be mounted."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk to fill: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def use_bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL in a new bucket, with what it takes to get there in the environment."""
    key, secret = SECRETS
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{os.urandom(4).hex()}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}/some/set"


def objects(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {name.removeprefix(f"{root}/"): fs.cat_file(name) for name in fs.find(root)}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, and of those in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(url: str, data: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)


def put_folder(folder: Path, url: str) -> None:
    """Copies the files of a folder to a URL."""
    for path in folder.rglob("*"):
        if path.is_file():
            write(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def speech_with_a_bad_line(folder: Path) -> Path:
    """A list of 20 utterances and one without audio."""
    data_list = write_list(folder, 20)
    data_list.write_text(data_list.read_text() + '{"key": "bad", "wav": "missing.wav", "txt": ""}\n')
    return data_list


def pack_list(data_list: Path, out: Path, **options: Any) -> PackReport:
    """Packs so that the same list gives the same bytes in any folder."""
    return pack(data_list, out, options=PackOptions(**{"relative": True, **options}))


def run(data_list: Path, out: Path | str, staging: Path | None = None, **options: Any) -> PackReport:
    """Packs four shards of such a list, so that they are the same bytes at any place."""
    given = {"shard_samples": 6, "on_error": "skip", "relative": True, **options}
    return pack(data_list, out, options=PackOptions(**given), staging=staging)


def uploaded(staging: Path) -> set[str]:
    """Names of the shards that a further run must not upload again."""
    return {path.with_suffix(".tar").name for path in staging.glob("*/shard-*.parquet")}
