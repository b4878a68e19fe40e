"""What is named in a list and is no file keeps nobody waiting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardpipe.errors import StoreError
from shardpipe.store import LocalStore
from tests.speech import make_wav

PROGRAM = "from shardpipe.cli import main; main()"


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, str]]:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "linked.wav").symlink_to(tmp_path / "pipe.wav")
    (tmp_path / "folder.wav").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.wav"))
        yield {
            "a pipe": str(tmp_path / "pipe.wav"),
            "a link to a pipe": str(tmp_path / "linked.wav"),
            "a folder": str(tmp_path / "folder.wav"),
            "a socket": str(tmp_path / "socket.wav"),
            "a device without end": "/dev/zero",
            "a device that waits": "/dev/tty",
            "one of proc": "/proc/self/status",
            "one of proc that waits": "/proc/kmsg",
        }


@pytest.mark.parametrize("segments", [False, True])
def test_each_is_rejected_at_once(tmp_path: Path, places: dict[str, str], segments: bool) -> None:
    (tmp_path / "good.wav").write_bytes(make_wav(8000))
    span = {"start": 0.0, "end": 0.2} if segments else {}
    lines = [{"key": "good", "wav": "good.wav", "txt": "yes", **span}]
    lines += [{"key": key, "wav": place, "txt": "", **span} for key, place in places.items()]
    (tmp_path / "data.list").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [str(tmp_path / "data.list"), "-o", str(tmp_path / "out"), "--on-error", "skip", "--jobs", "2"]
    # Without an end in sight it would be waited for longer than anybody does.
    subprocess.run([sys.executable, "-c", PROGRAM, "pack", *arguments], check=True, capture_output=True, timeout=120)
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [line["key"] for line in rejected] == list(places)
    reasons = {line["key"]: line["reason"] for line in rejected}
    for key in ("a pipe", "a link to a pipe", "a socket", "a device without end"):
        assert "it is a pipe, a socket or a device, and no file" in reasons[key]
    assert "it is a folder" in reasons["a folder"]
    assert "the file is empty" in reasons["one of proc"]


def test_a_store_opens_none(places: dict[str, str]) -> None:
    store = LocalStore("/")
    for key in ("a pipe", "a link to a pipe", "a device without end", "a folder"):
        for attempt in (lambda: store.read(places[key]), lambda: store.read(places[key], 0, 10)):  # noqa: B023
            with pytest.raises(StoreError, match="and no file|it is a folder"):
                attempt()
