"""An epoch from S3 over a network that fails, and what is said when it keeps failing."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.asyn import AsyncFileSystem

from shardpipe import ShardLoader
from shardpipe.errors import StoreError
from shardpipe.store import FsspecStore, Retry, abandon_when
from shardpipe.store.remote.calling import call
from tests.faulty_proxy import KINDS, FaultyProxy, running_proxy
from tests.s3 import SECRETS, options, upload
from tests.speech import pack_speech

URL = "s3://speech/set"
SAMPLES = 240
QUICK = Retry(attempts=8, first_wait=0.01, longest_wait=0.1, attempt_seconds=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("speech"), SAMPLES, seconds=(0.05, 0.3), shard_samples=30)


@pytest.fixture(scope="module")
def endpoint(data: Path, s3_endpoint: str) -> str:
    upload(s3_endpoint, URL, data)
    return s3_endpoint


@pytest.fixture
def proxy(endpoint: str) -> Iterator[tuple[FaultyProxy, str]]:
    with running_proxy(endpoint) as proxy:
        yield proxy


def loader(data: Any, **options: Any) -> ShardLoader:
    return ShardLoader(data, batch_size=6, seed=3, window=60, lanes=1, threads=4, **options)


def test_an_epoch_over_a_failing_network_is_the_epoch_from_disk(
    data: Path, proxy: tuple[FaultyProxy, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    faulty, address = proxy
    faulty.share = 0.1
    remote = loader(FsspecStore(URL, retry=QUICK, **options(address)))
    keys = []
    for here, there in zip(loader(data), remote, strict=True):
        assert np.array_equal(here.audio, there.audio)
        assert (here.keys, here.texts, here.consumed_samples) == (there.keys, there.texts, there.consumed_samples)
        keys += there.keys
    assert len(keys) == len(set(keys)) == SAMPLES
    assert set(faulty.faults) == {"", *KINDS}, "not every kind of fault has come"
    assert faulty.faults.total() > 1.05 * faulty.faults[""]
    assert not remote.skipped
    everything = caplog.text + json.dumps(remote.state_dict()) + repr(remote)
    assert "attempt 1 of 8" in caplog.text
    assert not [secret for secret in SECRETS if secret in everything]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("503", "reduce your request rate"),
        ("reset", "closed|reset|disconnected"),
        ("truncated", "not completed|[Nn]ot enough data"),
        ("stall", "not complete within|[Tt]imeout"),
    ],
)
def test_when_all_fails_the_error_says_what_and_how_often(
    proxy: tuple[FaultyProxy, str], kind: str, cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    faulty, address = proxy
    seconds = 1.0 if kind == "stall" else 10.0
    retry = Retry(attempts=3, first_wait=0.01, longest_wait=0.02, attempt_seconds=seconds)
    remote = loader(FsspecStore(URL, retry=retry, **options(address)), on_error="skip")
    batches = iter(remote)
    next(batches)
    faulty.share, faulty.kinds = 1.0, (kind,)
    started = time.monotonic()
    with pytest.raises(StoreError) as raised:
        list(batches)
    # Not a measurement: an unbounded wait would be a minute, the bound is four seconds.
    assert time.monotonic() - started < 20
    assert raised.value.attempts == 3
    assert raised.value.url.startswith(f"{URL}/shard-0000")
    assert re.search(cause, str(raised.value))
    assert "after 3 attempts" in str(raised.value)
    assert not remote.skipped
    everything = caplog.text + "".join(traceback.format_exception(raised.value)) + json.dumps(remote.state_dict())
    assert not [secret for secret in SECRETS if secret in everything]


def test_a_stalled_request_holds_no_connection(proxy: tuple[FaultyProxy, str]) -> None:
    faulty, address = proxy
    retry = Retry(attempts=2, first_wait=0, attempt_seconds=0.2)
    store = FsspecStore(URL, retry=retry, **options(address), config_kwargs={"max_pool_connections": 1})
    assert store.stat("shardindex.json").size
    faulty.share, faulty.kinds = 1.0, ("stall",)
    for _ in range(2):
        with pytest.raises(StoreError):
            store.stat("shardindex.json")
    faulty.share = 0.0
    # The only connection there may be is free again.
    assert store.stat("shardindex.json").size


def test_as_many_reads_are_under_way_as_the_store_says(data: Path, proxy: tuple[FaultyProxy, str]) -> None:
    faulty, address = proxy
    store = FsspecStore(URL, **options(address))
    faulty.together = store.parallel
    content = (data / "shard-000000.tar").read_bytes()

    def right(place: int) -> bool:
        return store.read("shard-000000.tar", place, 50) == content[place : place + 50]

    with ThreadPoolExecutor(store.parallel) as pool:
        assert all(pool.map(right, range(2 * store.parallel)))
    assert faulty.most_at_once == store.parallel


def test_refusals_are_not_repeated(endpoint: str, proxy: tuple[FaultyProxy, str]) -> None:
    faulty, address = proxy
    store = FsspecStore("s3://nobucket/set", **options(address))
    for ask in (store.stat, store.read):
        before = faulty.faults.total()
        with pytest.raises(StoreError, match="no such file") as raised:
            ask("x.tar")
        assert raised.value.attempts == 1
        # fsspec asks for the file, and then whether it is a folder.
        assert faulty.faults.total() - before <= 2


def test_credentials_and_endpoint_may_come_from_the_environment(
    data: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, secret = SECRETS
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for here, there in zip(loader(data), loader(URL), strict=True):
        assert np.array_equal(here.audio, there.audio)


def test_missing_credentials_are_not_asked_for_again(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="credentials") as raised:
        FsspecStore(URL, endpoint_url=endpoint).stat("shardindex.json")
    assert raised.value.attempts == 1


def test_an_abandoned_read_ends_at_once(proxy: tuple[FaultyProxy, str]) -> None:
    faulty, address = proxy
    store = FsspecStore(URL, retry=Retry(attempt_seconds=60, longest_wait=60, first_wait=60), **options(address))
    store.stat("shardindex.json")
    for kind in ("stall", "503"):
        faulty.share, faulty.kinds = 1.0, (kind,)
        stopped = threading.Event()
        before = faulty.faults[kind]
        with ThreadPoolExecutor(4, initializer=abandon_when, initargs=(stopped,)) as pool:
            reads = [pool.submit(store.read, "shard-000000.tar", i, 10) for i in range(4)]
            while faulty.faults[kind] < before + 4:
                time.sleep(0.01)
            time.sleep(0.3)  # so that those that wait do wait
            requests, started = faulty.faults.total(), time.monotonic()
            stopped.set()
            assert all(isinstance(read.exception(), StoreError) for read in reads)
            assert faulty.faults.total() == requests
        # Not a measurement: it would be a minute.
        assert time.monotonic() - started < 20


HALF_WAY = """
import sys, threading
from shardpipe import ShardLoader
from shardpipe.store import FsspecStore, Retry

url, key, secret, address = sys.argv[1:]
retry = Retry(attempt_seconds=60, longest_wait=60, first_wait=60)
loader = ShardLoader(FsspecStore(url, retry=retry, key=key, secret=secret, endpoint_url=address), batch_size=4)
print("begin?", flush=True)
input()
threading.Thread(target=list, args=(loader,), daemon=True).start()
input()
"""


def test_a_script_that_ends_half_way_waits_for_no_reads(proxy: tuple[FaultyProxy, str]) -> None:
    faulty, address = proxy
    command = [sys.executable, "-c", HALF_WAY, URL, *SECRETS, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        assert script.stdout.readline() == "begin?\n"
        faulty.share, faulty.kinds = 1.0, ("stall",)
        script.stdin.write("\n")
        while not faulty.faults["stall"]:
            assert script.poll() is None
            time.sleep(0.01)
        script.stdin.write("\n")
        try:
            # Not a measurement: it would be many minutes.
            assert script.wait(30) == 0
        finally:
            script.kill()


class FailsLate(AsyncFileSystem):
    """A read ends, with an error, once it has been given up."""

    def __init__(self) -> None:
        super().__init__(skip_instance_cache=True)
        self.asked, self.given_up = threading.Event(), threading.Event()

    async def _cat_file(self, path: str, **_: Any) -> bytes:
        self.asked.set()
        self.given_up.wait(20)  # the loop does nothing else meanwhile: it learns of both at once
        raise OSError("connection closed")


def test_what_fails_as_it_is_given_up_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    fs = FailsLate()
    stopped = threading.Event()
    with ThreadPoolExecutor(1, initializer=abandon_when, initargs=(stopped,)) as pool:
        read = pool.submit(call, fs, "cat_file", 60, "x")
        assert fs.asked.wait(20)
        stopped.set()
        assert "given up" in str(read.exception())
    fs.given_up.set()
    for _ in range(9):  # rounds of the loop, in which the request ends
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), fs.loop).result()
    del read  # its error holds the request, and asyncio logs when that goes
    gc.collect()
    assert not caplog.text


def test_attempts_are_ours_alone(proxy: tuple[FaultyProxy, str]) -> None:
    faulty, address = proxy
    store = FsspecStore(URL, retry=Retry(attempts=3, first_wait=0), **options(address))
    store.stat("shardindex.json")
    # Of a reset no more than twice as many: aiohttp itself asks once more, at once, where a connection breaks.
    for kind in ("503", "truncated"):
        faulty.share, faulty.kinds = 1.0, (kind,)
        with pytest.raises(StoreError) as raised:
            store.read("shard-000000.tar", 0, 1000)
        # s3fs and botocore would each make several of one.
        assert (raised.value.attempts, faulty.faults[kind]) == (3, 3)
