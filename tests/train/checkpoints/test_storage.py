"""One suite for all places of checkpoints: complete or not to be seen."""

from __future__ import annotations

import os
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from shardpipe.errors import ConfigError, StoreError
from shardpipe.store import Uploads, is_url
from shardpipe.train.checkpoints import Checkpoints, Keep, Progress
from shardpipe.train.checkpoints import storage as storage_module
from shardpipe.train.checkpoints.storage import Storage, storage_at
from tests.places import use_bucket
from tests.train.checkpoints.saved import save

FIRST, SECOND = f"{4:012d}", f"{8:012d}"
MARKER = "checkpoint.json"
TENSORS, MORE = "rank0-0.safetensors", "tensors.json"


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "folder":
        yield str(tmp_path / "runs" / "one")
    elif request.param == "memory":
        yield f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").store.clear()
    else:
        yield f"{use_bucket(request.getfixturevalue('s3_endpoint'), monkeypatch)}/runs/one"


def write(storage: Storage, name: str, *, complete: bool = True, content: bytes = b"content") -> None:
    storage.begin(name, len(content))
    storage.write(name, TENSORS, lambda path: path.write_bytes(content))
    storage.write(name, MORE, lambda path: path.write_bytes(b""))
    if complete:
        storage.complete(name, b"marker of " + content)


def test_nothing_is_there_at_first(place: str) -> None:
    storage = storage_at(place)
    assert storage.url == place
    assert storage.names() == []
    with pytest.raises(StoreError, match="there is no such file"):
        storage.open(FIRST).read(MARKER)


def test_what_is_complete_is_there(place: str) -> None:
    storage = storage_at(place)
    write(storage, FIRST, complete=False)
    assert storage.names() == []
    storage.complete(FIRST, b"marker")
    assert storage.names() == [FIRST]
    found = storage.open(FIRST)
    assert (found.read(TENSORS), found.read(MORE), found.read(MARKER)) == (b"content", b"", b"marker")
    assert found.url == f"{place}/{FIRST}"
    storage.mark(FIRST, b"another")
    assert storage.open(FIRST).read(MARKER) == b"another"


def test_what_was_left_half_written_makes_way(place: str) -> None:
    storage = storage_at(place)
    write(storage, FIRST, complete=False)
    write(storage, SECOND)
    assert storage.names() == [SECOND]
    with pytest.raises(StoreError):
        storage.open(FIRST).read(TENSORS)
    write(storage, SECOND, complete=False, content=b"once more")
    storage.abandon(SECOND)
    write(storage, FIRST)
    assert FIRST in storage.names()


def test_one_of_the_same_name_is_replaced(place: str) -> None:
    storage = storage_at(place)
    write(storage, FIRST)
    storage.begin(FIRST, 5)
    storage.write(FIRST, TENSORS, lambda path: path.write_bytes(b"other"))
    storage.complete(FIRST, b"marker of other")
    assert storage.open(FIRST).read(TENSORS) == b"other"
    with pytest.raises(StoreError, match="there is no such file"):
        storage.open(FIRST).read(MORE)


def test_one_is_removed_or_set_aside(place: str) -> None:
    storage = storage_at(place)
    for name in (FIRST, SECOND):
        write(storage, name)
    storage.remove(FIRST)
    assert storage.names() == [SECOND]
    aside = storage.set_aside(SECOND)
    assert storage.names() == []
    assert storage_at(aside).names() == [SECOND]
    assert storage_at(aside).open(SECOND).read(TENSORS) == b"content"
    write(storage, SECOND, content=b"later")
    storage.set_aside(SECOND)
    assert storage_at(aside).open(SECOND).read(TENSORS) == b"later"


def test_what_is_being_removed_or_set_aside_is_no_checkpoint_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a URL files go one by one: the marker first, wherever that is cut short, and it is there last in `.aside`."""
    place = f"memory://{tmp_path.name}"
    storage = storage_at(place)
    real_remove, real_copy = Uploads.remove, Uploads.copy

    def remove(uploads: Uploads, name: str) -> None:
        real_remove(uploads, name)
        assert storage.names() == []

    def copy(uploads: Uploads, name: str, to: str) -> None:
        real_copy(uploads, name, to)
        assert storage.names() == [FIRST]
        assert storage_at(f"{place}/.aside").names() == ([FIRST] if name.endswith(MARKER) else [])

    monkeypatch.setattr(Uploads, "remove", remove)
    monkeypatch.setattr(Uploads, "copy", copy)
    write(storage, FIRST)
    storage.set_aside(FIRST)
    write(storage, FIRST)
    storage.remove(FIRST)
    fsspec.filesystem("memory").store.clear()


def test_checkpoints_are_saved_read_and_pruned_there(place: str) -> None:
    save(place, 4, 8, 12, keep=Keep(newest=2))
    checkpoints = Checkpoints(place, keep=Keep(newest=2))
    assert checkpoints.counts() == [8, 12]
    found = checkpoints.newest(pytest.fail)
    assert found is not None
    assert found.consumed_samples == 12
    checkpoints.mark_evaluated(12, Progress(), {"valid/loss": 0.5})
    assert checkpoints.read(12).valid == {"valid/loss": 0.5}
    assert checkpoints.set_aside([12])
    assert checkpoints.counts() == [8]


def test_what_others_have_put_there_is_left_alone(place: str) -> None:
    storage = storage_at(place)
    theirs = ["2023", "000000000016", "my-best", ".tmp-mine", "8"]
    for name in theirs:
        if is_url(place):
            fsspec.filesystem(place.partition(":")[0]).pipe(f"{place}/{name}/speech.tar", b"speech")
        else:
            (Path(place) / name).mkdir(parents=True)
            (Path(place) / name / "speech.tar").write_bytes(b"speech")
    save(place, 8, 12, keep=Keep(newest=1))
    assert Checkpoints(place, keep=Keep()).counts() == [12]
    for name in theirs if is_url(place) else theirs[2:]:
        assert storage.open(name).read("speech.tar") == b"speech"


def test_a_url_with_credentials_is_refused() -> None:
    with pytest.raises(ConfigError, match="user name"):
        storage_at("s3://key:secret@bucket/run")


def test_room_is_looked_for_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = storage_at(str(tmp_path))
    write(storage, FIRST)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(storage_module.shutil, "disk_usage", lambda path: usage(5 << 20))
    storage.begin(SECOND, 4 << 20)
    with pytest.raises(StoreError, match=r"takes 4.5 MiB, and the disk has 5.0 MiB left. Make room, keep fewer"):
        storage.begin(SECOND, (4 << 20) + (1 << 19))
    assert os.listdir(tmp_path) == [FIRST]  # noqa: PTH208
