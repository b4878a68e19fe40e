"""Packing and indexing to URLs: the bytes of a local pack, nothing half there, and on after whatever stopped it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import DomainDispatcherApplication, create_backend_app
from test_pack import tree
from test_pack_crash import STEPS
from werkzeug.serving import make_server

from shardpipe import ShardLoader
from shardpipe.errors import AudioError, ConfigError, ShardError, StoreError
from shardpipe.index import MANIFEST, Index
from shardpipe.pack import PackOptions, PackReport, index_tars, pack
from shardpipe.store import CountingStore, FsspecStore
from shardpipe.store.upload import Uploads
from shardpipe.verify import verify
from tests.speech import write_list

# --- Places to write to ----------------------------------------------------------------------------------------------


class Server:
    """moto's S3 in threads of this process, with a bucket, and what it was asked for."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def _answer(self, environ: dict[str, Any], start: Any) -> Any:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        return self._app(environ, start)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        yield server
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{tmp_path.name}/{os.urandom(4).hex()}/set"
    request.getfixturevalue("server")
    return f"s3://bucket/{os.urandom(4).hex()}/set"


def objects(url: str) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return {name.removeprefix(f"{root}/"): fs.cat_file(name) for name in fs.find(root)}


def write(url: str, data: bytes) -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, data)


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
            self.pipe_file(rpath, data[: int(len(data) * share)])
            if error:
                raise error
        else:
            super().put_file(lpath, rpath, *args, **options)


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[FlakyFileSystem]:
    monkeypatch.setattr("shardpipe.store.upload._FIRST_WAIT", 0.0)
    monkeypatch.setattr(FlakyFileSystem, "attempts", 0)
    monkeypatch.setattr(FlakyFileSystem, "fault", staticmethod(lambda path: None))
    return FlakyFileSystem


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data_list = write_list(tmp_path_factory.mktemp("speech"), 20)
    data_list.write_text(data_list.read_text() + '{"key": "bad", "wav": "missing.wav", "txt": ""}\n')
    return data_list


@pytest.fixture(scope="module")
def local(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "set"
    pack(speech, out, options=OPTIONS)
    return out


OPTIONS = PackOptions(shard_samples=6, on_error="skip")
SHARDS = 4


def run(data_list: Path, url: str, staging: Path, **options: Any) -> PackReport:
    return pack(
        data_list, url, options=PackOptions(**{"shard_samples": 6, "on_error": "skip", **options}), staging=staging
    )


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

    pack(speech, url, options=OPTIONS, staging=tmp_path, progress=look)
    assert 1 <= most <= 2


def test_a_large_shard_goes_up_in_parts(tmp_path: Path, server: Server) -> None:
    data = random.Random(0).randbytes(100 << 20)
    (tmp_path / "large.tar").write_bytes(data)
    uploads = Uploads("s3://bucket/large")
    server.requests.clear()
    assert uploads.put(tmp_path / "large.tar", "large.tar").size == len(data)
    methods = [method for method, path in server.requests if path.endswith("large.tar")]
    assert methods.count("PUT") == 7
    assert methods.count("POST") == 2
    assert uploads.store.read("large.tar", 50 << 20, 100) == data[50 << 20 :][:100]


# --- Killed ----------------------------------------------------------------------------------------------------------


def dies_before(step: int, action: Callable[[], object]) -> bool:
    """Whether the action, in a process of its own, is cut short as by SIGKILL before the `step`-th change on a disk."""
    left = step

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return real(*args, **keywords)

        return call

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: of forking beside threads
        child = os.fork()
    if not child:
        status = 1
        try:
            for name in STEPS:
                setattr(os, name, dying(getattr(os, name)))
            shutil.copyfile = dying(shutil.copyfile)
            action()
            status = 0
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def uploaded(staging: Path) -> set[str]:
    """Names of the shards that a further run must not upload again."""
    return {path.with_suffix(".tar").name for path in staging.glob("*/shard-*.parquet")}


@pytest.mark.parametrize("lost", [False, True], ids=["staging-kept", "staging-lost"])
def test_killed_at_every_step(tmp_path: Path, speech: Path, local: Path, lost: bool) -> None:
    whole = tree(local)
    steps, cut = 0, True
    while cut:
        # fsspec's own file system of this machine: a URL like any other, and forked processes share what lies there.
        url, staging = f"local://{tmp_path}/{steps}/set", tmp_path / f"{steps}/staging"
        cut = dies_before(steps, lambda: run(speech, url, staging))
        assert cut or objects(url) == whole
        if MANIFEST in objects(url):
            assert verify(url).ok, "the manifest is the commit marker"
        kept = uploaded(staging)
        if lost and staging.exists():
            shutil.rmtree(staging)
        report = run(speech, url, staging)
        assert report.shards_kept >= (0 if lost else len(kept))
        assert objects(url) == whole, f"killed before step {steps}"
        assert not staging.exists() or not list(staging.iterdir())
        steps += 1 + steps // 16
    assert steps > 30


def test_killed_at_every_step_while_replacing_a_dataset(tmp_path: Path, speech: Path, local: Path) -> None:
    old_list = write_list(tmp_path / "old", 9)
    old = run(old_list, tmp_path / "pristine", None, shard_samples=1).fingerprint
    new = Index.load(str(local)).fingerprint
    whole = tree(local)
    seen: set[str] = set()
    steps, cut = 0, True
    while cut:
        url, staging = f"local://{tmp_path}/{steps}/set", tmp_path / f"{steps}/staging"
        shutil.copytree(tmp_path / "pristine", tmp_path / f"{steps}/set")
        cut = dies_before(steps, lambda: run(speech, url, staging, overwrite=True))
        if MANIFEST in objects(url):
            assert verify(url).ok, "a manifest always tells the truth, be it the old one or the new one"
            seen.add(Index.load(url).fingerprint)
        run(speech, url, staging, overwrite=True)
        assert objects(url) == whole, f"killed before step {steps}"
        steps += 1 + steps // 16
    assert seen == {old, new}


PROGRAM = """
import sys
from shardpipe.pack import PackOptions, pack

if __name__ == "__main__":
    pack(
        *sys.argv[1:3],
        options=PackOptions(shard_samples=2, format="flac"),
        staging=sys.argv[3],
        progress=lambda done, *rest: print(done, flush=True),
    )
"""


def test_killed_at_random_moments(tmp_path: Path, server: Server) -> None:
    data_list = write_list(tmp_path / "speech", 40, seconds=(1, 2))
    pack(data_list, tmp_path / "whole", options=PackOptions(shard_samples=2, format="flac"))
    (tmp_path / "program.py").write_text(PROGRAM)
    url, staging = "s3://bucket/killed/set", tmp_path / "staging"
    command = [sys.executable, str(tmp_path / "program.py"), str(data_list), url, str(staging)]
    chance = random.Random(0)
    kills = 0
    while MANIFEST not in objects(url):
        kept = uploaded(staging)
        server.requests.clear()
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for _ in range(chance.randrange(2, 14)):
                process.stdout.readline()
            time.sleep(chance.random() * 0.02)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        again = {path.rpartition("/")[2] for method, path in server.requests if method in ("PUT", "POST")}
        assert not again & kept, "what is uploaded is not uploaded again"
    server.requests.clear()
    pack(data_list, url, options=PackOptions(shard_samples=2, format="flac"), staging=staging)
    assert objects(url) == tree(tmp_path / "whole")
    assert kills >= 3
