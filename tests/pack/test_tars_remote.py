"""Datasets at URLs: tars indexed where they lie, verifying, and what commands tell of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from shardpipe import ShardLoader
from shardpipe.audio import encode
from shardpipe.cli import app
from shardpipe.dataset import Index, verify
from shardpipe.errors import ConfigError, ShardError, StoreError
from shardpipe.pack import index_tars
from shardpipe.store import CountingStore, FsspecStore
from tests.places import objects, put_folder, run, speech_with_a_bad_line, use_bucket, write

SHARDS = 4


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}/{os.urandom(4).hex()}/set"
    return use_bucket(request.getfixturevalue("s3_endpoint"), monkeypatch)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_with_a_bad_line(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def local(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "set"
    run(speech, out)
    return out


@pytest.mark.parametrize(
    "pattern", ["shard-{000000..000003}.tar", "shard-*.tar", "shard-00000[0-3].tar", "*-00000?.tar"]
)
def test_tars_at_a_url_indexed_in_a_folder(tmp_path: Path, local: Path, url: str, pattern: str) -> None:
    put_folder(local, url)
    report = index_tars(f"{url}/{pattern}", tmp_path / "index")
    index = Index.load(str(tmp_path / "index"))
    assert report.fingerprint == index.fingerprint == Index.load(str(local)).fingerprint
    names = [f"{url}/shard-00000{n}.tar" for n in range(SHARDS)]
    assert [shard.name for shard in index.shards] == names
    assert (tmp_path / "index/shards.list").read_text().splitlines() == names
    assert index.store.parallel > 1
    assert verify(tmp_path / "index").ok
    assert epoch(tmp_path / "index") == epoch(local)


def epoch(data: Path | str) -> list[tuple[list[str], bytes]]:
    return [(list(batch.keys), batch.audio.numpy().tobytes()) for batch in ShardLoader(str(data), batch_size=4)]


def test_tars_at_a_url_indexed_beside_them(tmp_path: Path, local: Path, url: str) -> None:
    for name in (f"shard-00000{n}.tar" for n in range(SHARDS)):
        write(f"{url}/tars/{name}", (local / name).read_bytes())
    for out, names in (
        (url, [f"tars/shard-00000{n}.tar" for n in range(SHARDS)]),
        (f"{url}/tars", [f"shard-00000{n}.tar" for n in range(SHARDS)]),
        (f"{url}/index", [f"{url}/tars/shard-00000{n}.tar" for n in range(SHARDS)]),
    ):
        index_tars(f"{url}/tars/*.tar", out, staging=tmp_path)
        assert [shard.name for shard in Index.load(out).shards] == names
        assert objects(out)["shards.list"].decode().split() == [f"{url}/tars/shard-00000{n}.tar" for n in range(SHARDS)]
        assert verify(out).ok
        assert epoch(out) == epoch(local)
    with pytest.raises(StoreError, match="holds another dataset"):
        index_tars(f"{url}/tars/*0.tar", url, staging=tmp_path)
    assert index_tars(f"{url}/tars/*0.tar", url, staging=tmp_path, overwrite=True).shards == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoreError, match="no file matches"):
        index_tars(f"{url}/tars/*.zip", tmp_path / "index")
    with pytest.raises(StoreError, match=r"shard-000007.tar: there is no such file"):
        index_tars(f"{url}/tars/shard-000007.tar", tmp_path / "index")
    with pytest.raises(ConfigError, match="cannot name what lies on this machine"):
        index_tars(f"{local}/*.tar", f"{url}/other", staging=tmp_path)


# --- Verifying and telling -----------------------------------------------------------------------------------------


def test_verify_finds_a_flipped_byte(local: Path, url: str) -> None:
    put_folder(local, url)
    row = Index.load(url).rows(2).to_pylist()[1]
    data = bytearray(objects(url)["shard-000002.tar"])
    data[row["audio_offset"] + row["audio_size"] // 2] ^= 1
    write(f"{url}/shard-000002.tar", bytes(data))
    report = verify(url)
    assert report.samples == 19
    assert [type(problem) for problem in report.problems] == [ShardError, ShardError]
    assert row["key"] in str(report.problems[1])


def test_verify_reads_large_ranges_once(tmp_path: Path) -> None:
    frames = 3 << 20
    (tmp_path / "long.wav").write_bytes(encode(np.zeros((frames, 1), np.int16), 16000, "wav"))
    line = {"key": "a", "wav": "long.wav", "txt": ""}
    (tmp_path / "data.list").write_text("".join(json.dumps({**line, "key": key}) + "\n" for key in "abcdef"))
    url = f"memory://{tmp_path.name}/set"
    size = run(tmp_path / "data.list", url, tmp_path / "staging").size
    store = CountingStore(FsspecStore(url))
    assert verify(store).ok
    reads = [(offset, length) for name, offset, length in store.reads if name.endswith(".tar")]
    assert sum(length for _, length in reads) == size
    assert len(reads) <= -(-size // (16 << 20)) + 1


@pytest.mark.parametrize(
    "command",
    [["verify", "--jobs", "1"], ["info"], ["at", "--consumed", "7"], ["where", "utt00011"], ["plan"]],
    ids=lambda command: command[0],
)
def test_commands_take_a_url(local: Path, url: str, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    put_folder(local, url)
    flags = ["--batch-size", "4"] if command[0] in ("at", "where", "plan") else []
    said = []
    for data in (url, str(local)):
        app([command[0], data, *command[1:], *flags, "--json"], standalone_mode=False)
        said.append(json.loads(capsys.readouterr().out))
    assert said[0] == said[1]
