"""Packing and indexing to URLs: the bytes of a local pack, nothing half there, and on after whatever stopped it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from shardpipe.dataset import MANIFEST, Index, verify
from shardpipe.errors import AudioError, ConfigError, StoreError
from shardpipe.pack import PackOptions, index_tars, pack
from shardpipe.store import Retry, Uploads
from tests.faulty_proxy import FaultyProxy, running_proxy
from tests.places import objects, put_folder, run, speech_with_a_bad_line, tree, uploaded, use_bucket, write
from tests.s3 import SECRETS
from tests.speech import write_list

SHARDS = 4

# --- Places to write to ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}/{os.urandom(4).hex()}/set"
    return use_bucket(request.getfixturevalue("s3_endpoint"), monkeypatch)


class FlakyFileSystem(MemoryFileSystem):
    """Memory whose uploads go wrong: `fault` is called with the path, and says what is left of the file and raised."""

    protocol = "flaky"
    fault: Callable[[str], tuple[float, Exception | None] | None] = staticmethod(lambda path: None)
    attempts = 0

    def put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        type(self).attempts += 1
        if found := self.fault(rpath):
            share, error = found
            data = Path(lpath).read_bytes()
            if share:
                self.pipe_file(rpath, data[: int(len(data) * share)])
            if error:
                raise error
        else:
            super().put_file(lpath, rpath, *args, **options)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[FlakyFileSystem]:
    monkeypatch.setattr("shardpipe.store.remote.writing._RETRY", Retry(attempts=6, first_wait=0))
    monkeypatch.setattr(FlakyFileSystem, "attempts", 0)
    monkeypatch.setattr(FlakyFileSystem, "fault", staticmethod(lambda path: None))
    return FlakyFileSystem


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_with_a_bad_line(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def local(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "set"
    run(speech, out)
    return out


# --- The bytes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_bytes_of_a_local_pack(tmp_path: Path, speech: Path, local: Path, url: str, jobs: int) -> None:
    report = run(speech, url, tmp_path, jobs=jobs)
    assert objects(url) == tree(local)
    assert (report.out, report.samples, report.shards, report.rejected, report.shards_kept) == (url, 20, SHARDS, 1, 0)
    assert report.fingerprint == Index.load(str(local)).fingerprint
    assert not list(tmp_path.iterdir()), "nothing stays in the staging folder"
    assert verify(url).ok
    assert run(speech, f"{url}/", tmp_path).shards_kept == SHARDS, "there is nothing left to do"


def test_the_disk_holds_a_shard_or_two(tmp_path: Path, speech: Path, local: Path, url: str) -> None:
    most = 0

    def look(*_: int) -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.glob("*/*.tar*"))))

    pack(speech, url, options=PackOptions(shard_samples=6, on_error="skip"), staging=tmp_path, progress=look)
    assert 1 <= most <= 2


def test_a_large_shard_goes_up_in_parts(tmp_path: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uploads = Uploads(use_bucket(s3_endpoint, monkeypatch))
    for size, parts in ((20 << 20, 1), (50 << 20, 4)):
        data = random.Random(size).randbytes(size)
        (tmp_path / "large.tar").write_bytes(data)
        found = uploads.put(tmp_path / "large.tar", "large.tar")
        assert found.size == size
        assert int(found.version.strip('"').partition("-")[2] or 1) == parts
        assert objects(uploads.url)["large.tar"] == data


# --- Uploads that go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        (0.0, ConnectionResetError("connection reset")),
        (0.5, TimeoutError("no answer")),
        (0.5, None),
        (1.0, ConnectionError("late")),
    ],
    ids=["refused", "torn", "silently-torn", "after-all-of-it"],
)
def test_uploads_that_fail_a_few_times(
    tmp_path: Path, speech: Path, local: Path, flaky: type[FlakyFileSystem], fault: tuple[float, Exception | None]
) -> None:
    tried: dict[str, int] = {}

    def fails_thrice(path: str) -> tuple[float, Exception | None] | None:
        tried[path] = tried.get(path, 0) + 1
        return fault if tried[path] <= 3 else None

    flaky.fault = staticmethod(fails_thrice)
    url = f"flaky://{tmp_path.name}/{os.urandom(4).hex()}"
    run(speech, url, tmp_path)
    assert objects(url) == tree(local)
    names = [name.rpartition("/")[2] for name in tree(local)]
    assert {path.rpartition("/")[2]: n for path, n in tried.items()} == dict.fromkeys(names, 4) | {"job.json": 5}


@pytest.mark.parametrize("name", ["index/job.json", "shard-000002.tar", "shards.list", MANIFEST])
def test_uploads_that_always_fail(
    tmp_path: Path, speech: Path, local: Path, flaky: type[FlakyFileSystem], name: str
) -> None:
    url = f"flaky://{tmp_path.name}/{os.urandom(4).hex()}"
    error = ConnectionError("the gateway is away")
    flaky.fault = staticmethod(lambda path: (0.0, error) if path.endswith(name) else None)
    with pytest.raises(StoreError, match=r"away.*[Rr]un the same command again") as caught:
        run(speech, url, tmp_path)
    assert caught.value.url == f"{url}/{name}"
    assert caught.value.attempts > 1
    assert caught.value.__cause__ is error
    assert MANIFEST not in objects(url), "no manifest unless all else is there"
    kept = uploaded(tmp_path)
    assert len(kept) == {"index/job.json": 0, "shard-000002.tar": 2}.get(name, SHARDS)
    flaky.fault = staticmethod(lambda path: None)
    flaky.attempts = 0
    assert run(speech, url, tmp_path).shards_kept >= len(kept)
    assert objects(url) == tree(local)
    assert flaky.attempts <= SHARDS - len(kept) + 6


@pytest.fixture
def proxy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyProxy, str]]:
    """What stands between us and the S3 server, and a URL behind it."""
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()  # they hold the endpoint of their first use
    with running_proxy(s3_endpoint, kinds=("503",)) as (proxy, endpoint):
        yield proxy, use_bucket(endpoint, monkeypatch)
    s3.clear_instance_cache()


def test_a_server_that_is_busy(tmp_path: Path, speech: Path, local: Path, proxy: tuple[FaultyProxy, str]) -> None:
    faults, url = proxy
    faults.share = 0.25
    run(speech, url, tmp_path)
    assert verify(url).ok
    assert faults.faults["503"] > 3
    faults.share = 0.0
    assert objects(url) == tree(local)


def test_ctrl_c_does_not_wait_for_a_server_that_hangs(
    tmp_path: Path, speech: Path, local: Path, proxy: tuple[FaultyProxy, str]
) -> None:
    faults, url = proxy

    def interrupt(done: int, *_: int) -> None:
        if done == 6:
            faults.share, faults.kinds = 1.0, ("stall",)
        elif done == 8:
            while not faults.faults["stall"]:
                time.sleep(0.01)
            raise KeyboardInterrupt

    options = PackOptions(shard_samples=6, on_error="skip", relative=True)
    with pytest.raises(KeyboardInterrupt):
        pack(speech, url, options=options, staging=tmp_path, progress=interrupt)
    assert faults.faults["stall"] == 1, "no further attempt"
    assert not list(tmp_path.glob("*/*.tar*"))
    faults.share = 0.0
    assert run(speech, url, tmp_path).shards == SHARDS
    assert objects(url) == tree(local)


def test_the_command_says_it_in_one_line(
    tmp_path: Path, speech: Path, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_bucket(s3_endpoint, monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    program = "import sys; from shardpipe.cli import main; sys.argv[0] = 'shardpipe'; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "pack",
        str(speech),
        "-o",
        "s3://no-such-bucket/set",
        "--on-error",
        "skip",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "shardpipe: s3://no-such-bucket/set/index/job.json: cannot be written (The specified bucket does not exist). "
        "Run the same command again once the place can be written to: what is uploaded is kept."
    )
    assert "Traceback" not in done.stderr
    assert not any(secret in done.stderr for secret in SECRETS)
    assert [path.name for path in tmp_path.iterdir()] == [".cache"], "the place that --help names"


def test_what_is_lost_at_the_url_is_made_again(tmp_path: Path, speech: Path, local: Path, url: str) -> None:
    broken = speech.parent / json.loads(speech.read_text().splitlines()[15])["wav"]
    data = broken.read_bytes()
    broken.write_bytes(b"")
    try:
        with pytest.raises(AudioError, match="is empty"):
            run(speech, url, tmp_path, on_error="fail")
    finally:
        broken.write_bytes(data)
    assert sorted(objects(url)) == ["index/job.json", "shard-000000.tar", "shard-000001.tar"]
    changed = objects(url)["shard-000001.tar"]
    write(f"{url}/shard-000001.tar", changed[:-1])
    assert run(speech, url, tmp_path).shards_kept == 1
    assert objects(url) == tree(local)


def test_a_disk_smaller_than_the_dataset(tmp_path: Path, small_disk: Path, url: str) -> None:
    data_list = write_list(tmp_path / "speech", 60, codecs=("wav",), seconds=(0.4, 0.6))
    report = run(data_list, url, small_disk, shard_samples=8)
    assert report.size > 900_000 > 600 << 10
    with pytest.raises(StoreError, match="the disk is full") as caught:
        run(data_list, f"{url}-other", small_disk, shard_samples=60)
    assert str(small_disk) in caught.value.url


# --- What lies there already -----------------------------------------------------------------------------------------


def test_another_dataset_is_refused_or_replaced(tmp_path: Path, speech: Path, local: Path, url: str) -> None:
    run(speech, url, tmp_path, shard_samples=2)
    write(f"{url}/notes.txt", b"mine")
    before = objects(url)
    with pytest.raises(StoreError, match="holds another dataset.*--overwrite"):
        run(speech, url, tmp_path)
    assert objects(url) == before
    run(speech, url, tmp_path, overwrite=True)
    assert objects(url) == {**tree(local), "notes.txt": b"mine"}, "no stale shard, and what is the user's stays"


@pytest.mark.parametrize("name", ["shard-000000.tar", "shards.list", "index/part-00000.parquet", "rejected.jsonl"])
def test_files_of_others_are_never_touched(tmp_path: Path, speech: Path, url: str, name: str) -> None:
    write(f"{url}/{name}", b"theirs")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="did not write"):
            run(speech, url, tmp_path, overwrite=overwrite)
    assert objects(url) == {name: b"theirs"}


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "of-another-machine"])
def test_an_unfinished_pack_of_another_list(
    tmp_path: Path, speech: Path, local: Path, flaky: type[FlakyFileSystem], elsewhere: bool
) -> None:
    url = f"flaky://{tmp_path.name}/{os.urandom(4).hex()}"
    flaky.fault = staticmethod(lambda path: (0.0, OSError("away")) if "000007" in path else None)
    with pytest.raises(StoreError, match="away"):
        run(speech, url, tmp_path / "a", shard_samples=1)
    staging = tmp_path / ("b" if elsewhere else "a")
    before = objects(url)
    assert len(before) == 8
    with pytest.raises(StoreError, match="unfinished pack of another list.*--overwrite"):
        run(speech, url, staging)
    with pytest.raises(StoreError, match="unfinished pack"):
        index_tars(f"{url}/*.tar", url, staging=staging, overwrite=True)
    assert objects(url) == before
    assert run(speech, url, staging, overwrite=True).shards == SHARDS
    assert objects(url) == tree(local)


def test_two_at_once(tmp_path: Path, speech: Path, url: str) -> None:
    refused: list[str] = []

    def try_too(done: int, *_: int) -> None:
        if done == 1:
            with pytest.raises(StoreError, match="another process is writing there") as caught:
                run(speech, url, tmp_path)
            refused.append(caught.value.url)

    pack(speech, url, options=PackOptions(shard_samples=6, on_error="skip"), staging=tmp_path, progress=try_too)
    assert refused == [url]
    assert verify(url).ok


@pytest.mark.parametrize(
    "out", ["s3://user:word@bucket/set", "https://host/set?sig=word", "s3://bucket/set?versionId=word"]
)
def test_credentials_are_not_taken_from_a_url(tmp_path: Path, speech: Path, out: str) -> None:
    for write_there in (
        lambda: run(speech, out, tmp_path),
        lambda: index_tars(f"{tmp_path}/*.tar", out),
        lambda: index_tars(out, tmp_path / "index"),
    ):
        with pytest.raises(ConfigError, match="which would be written down") as caught:
            write_there()
        assert "word" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_needs_no_staging(tmp_path: Path, speech: Path) -> None:
    with pytest.raises(ConfigError, match="staging is .*a folder of this machine"):
        run(speech, str(tmp_path / "out"), tmp_path)
    assert pack(speech, f"file://{tmp_path}/out", options=PackOptions(on_error="skip")).out == str(tmp_path / "out")


# --- Audio that lies at a URL ----------------------------------------------------------------------------------------


def test_audio_at_a_url(tmp_path: Path, speech: Path, local: Path, url: str) -> None:
    put_folder(speech.parent / "audio", f"{url}/audio")
    fields = [json.loads(line) for line in speech.read_text().splitlines()]
    lines = [json.dumps({**entry, "wav": f"{url}/audio/{Path(entry['wav']).name}"}) for entry in fields]
    (tmp_path / "data.list").write_text("\n".join(lines))
    run(tmp_path / "data.list", f"{url}/packed", tmp_path / "staging")
    packed = objects(f"{url}/packed")
    for name in ("shard-000000.tar", "shard-000003.tar", "index/part-00000.parquet"):
        assert packed[name] == tree(local)[name]
    assert "no such file" in json.loads(packed["rejected.jsonl"])["reason"]
