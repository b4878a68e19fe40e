"""The first process to end says why, and the others end with its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpipe.errors import ConfigError, ShardpipeError, StoreError
from shardpipe.train.ending import AGAIN, BAD_SETTINGS, FAILED, ExitFile, exit_code_of
from shardpipe.train.ending.exits import LostProcess

CLOSED = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [::1]:1: Connection reset by peer. A"


def test_the_first_one_has_the_word(tmp_path: Path) -> None:
    mine, others = ExitFile(tmp_path, 0, "one"), ExitFile(tmp_path, 1, "one")
    assert others.read() is None
    with pytest.raises(ConfigError), others.telling():
        raise ConfigError("keep", 0, "it must be at least 1")
    with pytest.raises(LostProcess, match="process 1 of the run has ended it: keep is 0") as caught, mine.telling():
        raise RuntimeError(CLOSED)
    assert exit_code_of(caught.value) == BAD_SETTINGS
    said = mine.read()
    assert said is not None
    assert (said.outcome, said.code, said.rank) == ("failed", BAD_SETTINGS, 1)
    mine.clear()
    mine.clear()
    assert mine.read() is None


def test_where_none_could_say_why_it_is_to_be_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardpipe.train.ending.exits._SEEN_WITHIN", 0.0)
    said = ExitFile(tmp_path, 2, "one")
    with pytest.raises(LostProcess) as caught, said.telling():
        raise StoreError("cannot be written", url="x", fix="") from RuntimeError(CLOSED)
    assert exit_code_of(caught.value) == AGAIN
    assert "(Read error [::1]:1: Connection reset by peer)" in str(caught.value)
    found = said.read()
    assert found is not None
    assert (found.outcome, found.code) == ("lost", AGAIN)


OTHERS = [
    StoreError("Connection reset by peer", url="s3://x", fix=""),
    ValueError("gloo/transport"),
    ShardpipeError("no"),
]


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: type(error).__name__)
def test_other_errors_are_themselves(tmp_path: Path, error: Exception) -> None:
    said = ExitFile(tmp_path, 0, "one")
    with pytest.raises(type(error)) as caught, said.telling():
        raise error
    assert caught.value is error
    assert exit_code_of(error) == FAILED
    found = said.read()
    assert found is not None
    assert (found.outcome, found.code) == ("failed", FAILED)


def test_a_file_that_is_damaged_or_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text('{"outcome": "sur')
    assert ExitFile(tmp_path, 0, "one").read() is None
    gone = ExitFile(tmp_path / "nowhere", 0, "one")
    gone.clear()
    gone.write("done", 0, "")
    assert gone.read() is None


def test_what_a_start_says_is_nothing_to_another(tmp_path: Path) -> None:
    old, new = ExitFile(tmp_path, 2, "old"), ExitFile(tmp_path, 0, "new")
    old.write("lost", AGAIN, "it was frozen for a while")
    assert new.read() is None
    new.write("done", 0, "all is done")
    said = new.read()
    assert said is not None
    assert said.outcome == "done"
    assert [path.name for path in tmp_path.iterdir()] == ["exit.json"]
