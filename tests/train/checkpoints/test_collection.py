"""Which checkpoints of a run are kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from shardpipe.errors import StoreError
from shardpipe.store import LocalStore, Stat
from shardpipe.train.amount import Amount
from shardpipe.train.checkpoints import Checkpoints, Keep, read_checkpoint
from tests.train.checkpoints import saved


def save(folder: Path, *counts: int, keep: int = 9, checkpoints: Checkpoints | None = None) -> None:
    saved.save(str(folder), *counts, keep=Keep(newest=keep), checkpoints=checkpoints)


def counts(folder: Path) -> list[int]:
    return Checkpoints(str(folder), keep=Keep()).counts()


def tear(folder: Path, count: int, how: str) -> None:
    path = folder / f"{count:012d}"
    tensors, marker = path / "rank0-0.safetensors", path / "checkpoint.json"
    if how == "cut":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif how == "missing":
        tensors.unlink()
    elif how == "marker":
        marker.write_text(marker.read_text()[:-9])
    else:
        content = bytearray(tensors.read_bytes())
        content[-30] ^= 1
        tensors.write_bytes(content)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 4, 8, 12, 16, keep=2)
    assert counts(tmp_path) == [12, 16]
    save(tmp_path, 20, keep=1)
    assert counts(tmp_path) == [20]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{20:012d}"]


@pytest.mark.parametrize("how", ["cut", "missing", "marker"])
def test_a_damaged_later_one_costs_no_whole_one(tmp_path: Path, how: str) -> None:
    save(tmp_path, 4, 8, 12, 16)
    tear(tmp_path, 16, how)
    save(tmp_path, 14, keep=1)
    assert counts(tmp_path) == [14, 16]
    assert read_checkpoint(f"{tmp_path}/{14:012d}").consumed_samples == 14
    save(tmp_path, 16, 20, keep=1)
    assert counts(tmp_path) == [20]


def test_one_that_was_passed_over_does_not_count(tmp_path: Path) -> None:
    """Of its size, and yet not as it was written: that is seen as it is read, and remembered."""
    save(tmp_path, 4, 8, 12, 16)
    tear(tmp_path, 16, "flipped")
    tear(tmp_path, 12, "flipped")
    checkpoints = Checkpoints(str(tmp_path), keep=Keep(newest=2))
    said: list[Any] = []
    newest = checkpoints.newest(said.append)
    assert newest is not None
    assert newest.consumed_samples == 8
    assert len(said) == 2
    save(tmp_path, 10, checkpoints=checkpoints)
    assert counts(tmp_path) == [8, 10, 12, 16]
    save(tmp_path, 12, checkpoints=checkpoints)
    assert counts(tmp_path) == [10, 12, 16]
    save(tmp_path, 16, 20, checkpoints=checkpoints)
    assert counts(tmp_path) == [16, 20]


def test_damaged_earlier_ones_do_not_count(tmp_path: Path) -> None:
    save(tmp_path, 4, 8, 12)
    tear(tmp_path, 12, "cut")
    save(tmp_path, 16, keep=2)
    assert counts(tmp_path) == [8, 12, 16]
    save(tmp_path, 20, keep=2)
    assert counts(tmp_path) == [16, 20]


def test_one_that_was_just_saved_is_kept_whatever_comes_later(tmp_path: Path) -> None:
    save(tmp_path, 4, 8, 12)
    save(tmp_path, 6, keep=1)
    assert counts(tmp_path) == [6, 8, 12]


def test_names_that_are_no_counts_are_no_checkpoints(tmp_path: Path) -> None:
    save(tmp_path, 4)
    for name in ("8", "0000000000008", "best", "\u0661" * 12, ".tmp-000000000008"):
        shutil.copytree(tmp_path / f"{4:012d}", tmp_path / name)
    assert counts(tmp_path) == [4]


def test_a_fault_that_may_pass_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 4, 8)
    checkpoints = Checkpoints(str(tmp_path), keep=Keep(newest=1, every=Amount(count=4, unit="samples")))
    real = LocalStore.stat

    def stat(store: LocalStore, name: str) -> Stat:
        if "000000000004" in store.url and name == "tensors.json":
            raise StoreError("is away", url=store.url, fix="", transient=True)
        return real(store, name)

    monkeypatch.setattr(LocalStore, "stat", stat)
    with pytest.raises(StoreError, match="is away"):
        checkpoints.prune(8)
    with pytest.raises(StoreError, match="is away"):
        checkpoints.whole()
    monkeypatch.undo()
    checkpoints.prune(8)
    assert counts(tmp_path) == [4, 8]


def test_where_none_is_whole_nothing_is_deleted(tmp_path: Path) -> None:
    save(tmp_path, 4, 8)
    for count in (4, 8):
        tear(tmp_path, count, "cut")
    Checkpoints(str(tmp_path), keep=Keep(newest=1)).prune(4)
    assert counts(tmp_path) == [4, 8]
