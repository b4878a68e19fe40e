"""The key log is one chain, whatever cut it back and however often it was opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardpipe.train.logs import KeyLog, chain_of, cut_back_keys, follows, key_logs, last_basis, last_count

COUNTS = st.lists(st.integers(0, 60), min_size=1, max_size=40).map(sorted)


def written(folder: Path, counts: list[int]) -> Path:
    log = KeyLog(folder, 0)
    for count in counts:
        log.write(count, {"epoch": 0, "samples": [count] * (count % 7), "keys": ["é" * (count % 5)]})
    log.close()
    return folder / "keys-rank0.jsonl"


def is_chain(path: Path) -> bool:
    chain = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not follows(line, chain):
            return False
        chain = chain_of(line) or 0
    return True


@given(counts=COUNTS, at=st.integers(0, 70), torn=st.binary(max_size=9))
def test_cut_back_and_continued_it_is_as_if_nothing_had_been(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], at: int, torn: bytes
) -> None:
    folder, other = tmp_path_factory.mktemp("log"), tmp_path_factory.mktemp("other")
    path = written(folder, counts)
    with path.open("ab") as file:
        file.write(torn.replace(b"\n", b""))
    kept = [count for count in counts if count <= at]
    cut_back_keys(path, at)
    assert [json.loads(line)["consumed_samples"] for line in path.read_bytes().splitlines()] == kept
    assert last_count(path) == (kept[-1] if kept else None)
    written(folder, [at, at + 3])
    assert is_chain(path)
    assert path.read_bytes() == written(other, [*kept, at, at + 3]).read_bytes()


def test_lines_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    log = KeyLog(tmp_path, 0)
    log.write(1, {"basis": {"dataset": "one", "num_samples": 7}})
    for count in (2, 3):
        log.write(count, {"samples": list(range(100_000))})
    log.close()
    path = tmp_path / "keys-rank0.jsonl"
    assert is_chain(path)
    assert last_count(path) == 3
    basis = last_basis(path)
    assert basis is not None
    assert (basis.dataset, basis.num_samples) == ("one", 7)
    assert cut_back_keys(path, 2) == 1
    assert last_count(path) == 2
    assert cut_back_keys(path, 0) == 2
    assert path.read_bytes() == b""
    assert last_basis(path) is None


def test_what_an_older_version_wrote_begins_no_chain(tmp_path: Path) -> None:
    path = tmp_path / "keys-rank0.jsonl"
    path.write_text('{"consumed_samples": 4, "epoch": 0, "keys": ["a"]}\n')
    assert last_count(path) is None
    written(tmp_path, [8])
    assert follows(path.read_bytes().splitlines()[-1], 0)
    assert cut_back_keys(path, 4) == 1


def test_only_logs_of_processes_are_taken(tmp_path: Path) -> None:
    for name in ("keys-rank0.jsonl", "keys-rank10.jsonl", "keys-rank2.jsonl", "keys-rankx.jsonl", "keys-rank-1.jsonl"):
        (tmp_path / name).touch()
    assert list(key_logs(tmp_path)) == [0, 2, 10]
    assert last_count(tmp_path / "none") is None
    assert cut_back_keys(tmp_path / "none", 0) == 0
