"""A dataset that somebody else has made opens nothing but files of its own kind, and of plain ones."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from shardpipe import ShardLoader
from shardpipe.cli import app
from shardpipe.dataset import Index, verify
from shardpipe.errors import ConfigError, StoreError
from shardpipe.train.cli import main
from tests.places import put_folder
from tests.speech import pack_speech

ELSEWHERE = [
    "reference::memory://elsewhere/x.json",
    "simplecache::s3://bucket/shard.tar",
    "filecache::http://host/shard.tar",
    "file:///etc/hostname",
    "local:///etc/hostname",
    "zip://shard.tar::file:///tmp/x.zip",
    "tar://shard.tar::/tmp/x.tar",
    "dir::file:///etc/hostname",
    "ssh://host/shard.tar",
    "github://owner:name@main/shard.tar",
    # Chains again, whatever they begin with.
    "s3://bucket/a::file:///etc/hostname",
    "memory://a::file:///etc/hostname/shard.tar",
]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("planted"), 20, shard_samples=8)


def naming(packed: Path, folder: Path, name: str) -> Path:
    """The dataset with another name for its second shard."""
    shutil.copytree(packed, folder)
    (folder / "shards.list").unlink()
    manifest = json.loads((folder / "shardindex.json").read_bytes())
    manifest["shardlist"][1]["url"] = name
    (folder / "shardindex.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_nothing_else_is_opened(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remote: bool
) -> None:
    data = str(naming(packed, tmp_path / "set", name))
    if remote:
        put_folder(tmp_path / "set", data := f"memory://{tmp_path.name}/{os.urandom(4).hex()}")
    if remote and name.startswith("memory://"):
        return  # of the dataset's own kind: not opened anew, and a name like any other
    opened: list[Any] = []
    real = fsspec.core.url_to_fs
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: opened.append(url) or real(url, **options))
    scheme = name.partition("://")[0]
    for attempt in (lambda: ShardLoader(data, batch_size=4), lambda: verify(data), lambda: Index.load(data)):
        with pytest.raises(StoreError, match="may lead anywhere") as caught:
            attempt()
        assert f"named by {scheme}://" in str(caught.value)
        assert f"allow {scheme!r}" in str(caught.value)
    assert set(opened) <= {data}


@pytest.mark.parametrize("name", [name for name in ELSEWHERE if name.startswith(("file", "zip"))])
def test_commands_say_so_in_one_line(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    data = str(naming(packed, tmp_path / "set", name))
    for arguments in (["verify"], ["info"], ["plan", "--batch-size", "4"]):
        with pytest.raises(StoreError, match="may lead anywhere"):
            app([arguments[0], data, *arguments[1:]], standalone_mode=False)
    assert main(["--data", data, "--out", str(tmp_path / "run"), "--model", "tiny", "--device", "cpu"]) == 1
    assert "may lead anywhere" in capsys.readouterr().err


def test_what_the_user_names_is_opened(packed: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    put_folder(packed, url)
    data = naming(packed, tmp_path / "set", f"filecache::{url}/shard-000001.tar")
    with pytest.raises(StoreError, match="may lead anywhere"):
        verify(data)
    with pytest.raises(ConfigError, match="schemes is 'filecache::memory', but it must be a list"):
        ShardLoader(data, batch_size=4, schemes="filecache::memory")
    expected = [batch.keys for batch in ShardLoader(packed, batch_size=4)]
    assert [batch.keys for batch in ShardLoader(data, batch_size=4, schemes=["filecache::memory"])] == expected
    assert verify(data, schemes=["filecache::memory"]).ok
    app(["verify", str(data), "--jobs", "1", "--scheme", "filecache::memory"], standalone_mode=False)
    app(
        ["at", str(data), "--consumed", "3", "--batch-size", "4", "--scheme", "filecache::memory"],
        standalone_mode=False,
    )


def test_plain_names_need_no_permission(packed: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    put_folder(packed, url)
    data = naming(packed, tmp_path / "set", f"{url}/shard-000001.tar")
    assert verify(data).ok
