"""One suite for every store, and what is particular to each."""

from __future__ import annotations

import os
import pickle
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from shardpipe.errors import ConfigError, StoreError
from shardpipe.store import (
    CountingStore,
    FailingStore,
    Fault,
    FsspecStore,
    LocalStore,
    Retry,
    RetryingStore,
    SlowStore,
    Store,
    open_store,
    resolving,
)
from tests.forking import ended, forked, needs_fork
from tests.s3 import options, upload

CONTENT = bytes(range(256)) * 8


FILES = {"a/b.tar": CONTENT, "empty": b""}
STORES = ["local", "memory", "counting", "slow", "failing", "retrying", "resolving", "s3"]


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """FILES in a store of every kind, and a file `aside` beside its root."""
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        for name, content in FILES.items():
            memory.pipe(f"/there/set/{name}", content)
        memory.pipe("/there/aside", b"beside")
        yield FsspecStore("memory://there/set")
        memory.rm("/there", recursive=True)
        return
    if request.param == "s3":
        endpoint = request.getfixturevalue("s3_endpoint")
        upload(endpoint, "s3://conformance", {"aside": b"beside"})
        upload(endpoint, "s3://conformance/set", FILES)
        yield FsspecStore("s3://conformance/set", **options(endpoint))
        return
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "aside").write_bytes(b"beside")
    for name, content in FILES.items():
        (tmp_path / "set" / name).write_bytes(content)
    yield around(request.param, LocalStore(tmp_path / "set"))


def around(kind: str, local: LocalStore) -> Store:
    match kind:
        case "local":
            return local
        case "counting":
            return CountingStore(local)
        case "slow":
            return SlowStore(local, 0.0001, 1e9)
        case "failing":
            return FailingStore(local, [])
        case "resolving":
            return resolving(local, ["memory://elsewhere/x.tar"])
        case "retrying":
            faults: list[Fault] = [None, ConnectionResetError(104, "reset"), lambda data: data[:-1], TimeoutError()]
            return RetryingStore(FailingStore(local, lambda n: faults[n % 4]), Retry(first_wait=0, attempts=60))
    raise AssertionError(kind)


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, 0), (0, 10), (5, 10), (2000, 48), (7, None), (2048, 0)])
def test_reads_a_range(store: Store, offset: int, length: int | None) -> None:
    end = None if length is None else offset + length
    assert store.read("a/b.tar", offset, length) == CONTENT[offset:end]


def test_knows_sizes(store: Store) -> None:
    assert store.stat("a/b.tar").size == len(CONTENT)
    assert store.stat("empty").size == 0
    assert store.read("empty") == b""


@pytest.mark.parametrize(("offset", "length"), [(2040, 9), (2048, 1), (5000, 1)])
def test_a_short_read_is_an_error(store: Store, offset: int, length: int) -> None:
    with pytest.raises(StoreError, match="b.tar.*bytes") as error:
        store.read("a/b.tar", offset, length)
    assert error.value.url.endswith("a/b.tar")


def test_a_missing_file_is_an_error(store: Store) -> None:
    for access in (store.read, store.stat):
        with pytest.raises(StoreError, match=r"nothing.tar: there is no such file"):
            access("nothing.tar")


def test_a_folder_is_no_file(store: Store) -> None:
    for access in (store.read, store.stat):
        with pytest.raises(StoreError, match=r"/a: cannot be read"):
            access("a")


def test_names_may_lead_out_of_the_root(store: Store) -> None:
    assert store.read("../aside") == b"beside"
    assert store.stat("a/../../aside").size == 6


def test_says_where_it_is_and_how_many_reads_are_worth_it(store: Store) -> None:
    assert isinstance(store, Store)
    assert store.url.endswith("/set")
    assert store.parallel >= 1


def test_many_threads_read_at_once(store: Store) -> None:
    wrong: list[int] = []

    def read(start: int) -> None:
        for i in range(start, start + 20):
            if store.read("a/b.tar", i, 100) != CONTENT[i : i + 100]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i * 20,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_opens_what_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    for data in (str(tmp_path), tmp_path, f"file://{tmp_path}", LocalStore(tmp_path)):
        assert open_store(data).read("x") == b"1"
    assert isinstance(open_store("memory://somewhere"), FsspecStore)
    assert open_store(f"file://localhost{tmp_path}").read("x") == b"1"
    with pytest.raises(StoreError, match="nosuch"):
        open_store("nosuch://place")


def test_a_file_system_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(known_implementations, "far", {"class": "far_away.FarFileSystem", "err": "Install far_away"})
    with pytest.raises(StoreError, match=r"far://set: .*Install far_away.* comes with a package of its own"):
        open_store("far://set")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://", "must name a bucket, as in s3://bucket/folder"),
        ("s3:///set", "must name a bucket"),
        ("file://host/set", r"URL is 'file://\.\.\.', but it must be an absolute path, as in file:///folder"),
        ("https://", "must name a host, as in https://host/folder"),
        ("s3://user[@bucket/set", "URL is 's3://bucket/set', but it came with a user name"),
        ("s3://AKIAUSER:hidden@bucket/set", "URL is 's3://bucket/set', but it came with a user name"),
        ("s3://AKIAUSER:hid/hidden@bucket/set", "URL is 's3://bucket/set', but it came with a user name"),
    ],
)
def test_a_url_that_leads_nowhere_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_store(url)
    assert "hidden" not in str(caught.value)


def test_a_file_system_may_be_a_dataset_as_a_whole(memory: MemoryFileSystem) -> None:
    memory.pipe("/x", CONTENT)
    assert FsspecStore("memory://").read("x") == CONTENT


@needs_fork
def test_a_forked_process_reads_what_its_parent_has_read(s3_endpoint: str) -> None:
    upload(s3_endpoint, "s3://forked/set", {"x": CONTENT})
    store = FsspecStore("s3://forked/set", **options(s3_endpoint))
    assert store.read("x") == CONTENT

    def reads() -> None:
        assert store.read("x", 10, 100) == CONTENT[10:110]

    assert ended(forked(reads)) == 0
    assert store.read("x") == CONTENT


def test_absolute_names_lie_outside_the_root(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "x.tar").write_bytes(b"far")
    assert LocalStore(tmp_path / "set").read(str(tmp_path / "x.tar")) == b"far"
    assert LocalStore(tmp_path / "set").read("../x.tar") == b"far"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    (tmp_path / "x").chmod(0)
    with pytest.raises(StoreError, match="cannot be read"):
        LocalStore(tmp_path).read("x")


def test_stores_travel_to_worker_processes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    assert pickle.loads(pickle.dumps(LocalStore(tmp_path))).read("x") == b"1"
    assert pickle.loads(pickle.dumps(FsspecStore(f"local://{tmp_path}"))).read("x") == b"1"


def test_counts_reads(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    store = CountingStore(LocalStore(tmp_path))
    store.read("x", 3, 4)
    store.read("x")
    assert store.reads == [("x", 3, 4), ("x", 0, len(CONTENT))]


def test_what_a_file_system_raises_is_an_error() -> None:
    class Locked(MemoryFileSystem):
        protocol = "locked"

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
            raise RuntimeError("no credentials")

    fsspec.register_implementation("locked", Locked)
    with pytest.raises(StoreError, match=r"locked://set/a\.tar: cannot be read \(no credentials\)"):
        open_store("locked://set").read("a.tar", 0, 4)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/", recursive=True)


def test_another_content_is_another_version(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, s3_endpoint: str
) -> None:
    def write(content: bytes) -> None:
        (tmp_path / "x").write_bytes(content)
        memory.pipe("/versions/x", content)
        upload(s3_endpoint, "s3://versions/set", {"x": content})

    stores = [
        LocalStore(tmp_path),
        FsspecStore("memory://versions"),
        FsspecStore("s3://versions/set", **options(s3_endpoint)),
    ]
    write(b"one")
    before = [store.stat("x") for store in stores]
    assert [store.stat("x") for store in stores] == before
    write(b"two")
    after = [store.stat("x") for store in stores]
    assert [stat.size for stat in after] == [3, 3, 3]
    assert not [one for one, other in zip(before, after) if one.version == other.version]


@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_short_read_says_that_the_file_has_changed(
    kind: str, memory: fsspec.AbstractFileSystem, s3_endpoint: str
) -> None:
    def write(content: bytes) -> None:
        if kind == "memory":
            memory.pipe("/changing/set/x", content)
        else:
            upload(s3_endpoint, "s3://changing/set", {"x": content})

    store = FsspecStore(f"{kind}://changing/set", **(options(s3_endpoint) if kind == "s3" else {}))
    write(CONTENT)
    store.stat("x")
    write(CONTENT[:1000])
    for offset in (900, 1500):
        with pytest.raises(StoreError, match=r"it had 2048 bytes \(version .+\), it has 1000 bytes \(ver") as raised:
            store.read("x", offset, 200)
        assert raised.value.attempts == 1


@pytest.mark.parametrize("offset", [2040, 4000])
@pytest.mark.parametrize("kind", ["memory", "s3"])
def test_a_short_read_says_that_the_index_is_wrong(
    kind: str, offset: int, memory: fsspec.AbstractFileSystem, s3_endpoint: str
) -> None:
    memory.pipe("/short/set/x", CONTENT)
    upload(s3_endpoint, "s3://short/set", {"x": CONTENT})
    store = FsspecStore(f"{kind}://short/set", **(options(s3_endpoint) if kind == "s3" else {}))
    with pytest.raises(StoreError, match=f"asked for 9 bytes at {offset}, it has only 2048") as raised:
        store.read("x", offset, 9)
    assert raised.value.attempts == 1
    assert "verify" in str(raised.value)


def test_a_short_read_of_a_file_that_is_whole_is_repeated(
    memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/set/x", CONTENT)
    cat_file = MemoryFileSystem.cat_file
    short = iter([True, True, False, True, True, True])

    def half(fs: MemoryFileSystem, path: str, start: int, end: int) -> bytes:
        data: bytes = cat_file(fs, path, start, end)
        return data[: len(data) // 2] if next(short) else data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", half)
    store = FsspecStore("memory://set", retry=Retry(attempts=3, first_wait=0))
    assert store.read("x", 10, 100) == CONTENT[10:110]
    with pytest.raises(StoreError, match="asked for 100 bytes at 10, got 50, after 3 attempts"):
        store.read("x", 10, 100)


def test_what_was_listed_before_is_not_what_lies_there(s3_endpoint: str) -> None:
    upload(s3_endpoint, "s3://listed/set", {"x": b"one"})
    config = {"retries": {}, "connect_timeout": 5, "read_timeout": 5, "max_pool_connections": 4}
    given = {**options(s3_endpoint), "config_kwargs": config}
    store = FsspecStore("s3://listed/set", **given)
    # The same file system, since fsspec keeps them by their options.
    others = fsspec.filesystem("s3", **given)
    assert others.ls("listed/set", detail=True)[0]["size"] == 3
    upload(s3_endpoint, "s3://listed/set", {"x": b"three"})
    assert others.info("listed/set/x")["size"] == 3, "nothing was remembered, so this tests nothing"
    assert store.stat("x").size == 5


def test_a_folder_keeps_few_files_open_and_reads_them_from_many_threads(tmp_path: Path) -> None:
    names = [f"{i}.tar" for i in range(150)]
    for i, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([i]) * 100)
    store = LocalStore(tmp_path)

    def wrong(seed: int) -> int:
        order = random.Random(seed).choices(range(150), k=600)
        return sum(store.read(names[i], 10, 5) != bytes([i]) * 5 for i in order)

    def open_files() -> int:
        links = list(Path("/proc/self/fd").iterdir())
        return sum(str(tmp_path) in str(link.readlink()) for link in links if link.is_symlink())

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(wrong, range(6))) == 0
    if Path("/proc/self/fd").exists():
        assert 0 < open_files() <= 70
        store.close()
        assert open_files() == 0
    assert store.read("7.tar", 0, 1) == b"\7", "it opens again what it has closed"


def test_a_whole_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "manifest").write_bytes(b"old")
    assert (store.read("manifest", 0, 3), store.read("manifest")) == (b"old", b"old")
    (tmp_path / "new").write_bytes(b"newer")
    (tmp_path / "new").replace(tmp_path / "manifest")
    assert store.read("manifest") == b"newer"
