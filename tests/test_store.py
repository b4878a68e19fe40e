"""One suite for every store, and what is particular to each."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from shardpipe.errors import StoreError
from shardpipe.store import CountingStore, FsspecStore, LocalStore, Store, open_store

CONTENT = bytes(range(256)) * 8


@pytest.fixture(params=["local", "memory", "counting"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.pipe("/set/a/b.tar", CONTENT)
        memory.pipe("/set/empty", b"")
        yield FsspecStore("memory://set")
        memory.rm("/set", recursive=True)
        return
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.tar").write_bytes(CONTENT)
    (tmp_path / "empty").write_bytes(b"")
    local = LocalStore(tmp_path)
    yield CountingStore(local) if request.param == "counting" else local


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


def test_many_threads_read_at_once(store: Store) -> None:
    wrong: list[int] = []

    def read(start: int) -> None:
        for i in range(start, start + 50):
            if store.read("a/b.tar", i, 100) != CONTENT[i : i + 100]:
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(i * 50,)) for i in range(8)]
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
    with pytest.raises(StoreError, match="nosuch"):
        open_store("nosuch://place")


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


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
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
    class Locked(fsspec.implementations.memory.MemoryFileSystem):
        protocol = "locked"

        def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: object) -> bytes:
            raise RuntimeError("no credentials")

    fsspec.register_implementation("locked", Locked)
    with pytest.raises(StoreError, match=r"locked://set/a\.tar: cannot be read \(no credentials\)"):
        open_store("locked://set").read("a.tar", 0, 4)
