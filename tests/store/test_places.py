"""Places as users name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpipe.errors import ConfigError
from shardpipe.lists import read_list
from shardpipe.pack import pack
from shardpipe.store import open_store
from shardpipe.store.places import local_path, only_local


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert local_path("~/sets/x") == str(tmp_path / "home/sets/x")
    assert only_local("out", "~") == str(tmp_path / "home")


@pytest.mark.parametrize("name", ["./~/x", ".//~", "./~nobody/x"])
def test_a_folder_named_like_a_home_is_one_of_the_working_directory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert local_path(name) == str(tmp_path / name)


def test_a_user_without_a_home_must_name_the_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)
    for place in ("~", "~/x"):
        with pytest.raises(ConfigError, match=f"path is '{place}', but it must be the whole path"):
            local_path(place)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "out is '', but it must be a path of this machine, and no URL"),
        ("s3://user:hidden@bucket/run?token=hidden", "out is 's3://...', but it must be a path of this machine"),
        ("memory://run", "out is 'memory://...', but it must be a path of this machine"),
        ("file://user:hidden@host/run", r"URL is 'file://\.\.\.', but it must be an absolute path"),
        ("user:hidden@s3://bucket", r"out is 's3://\.\.\.', but it must be a path of this machine"),
    ],
)
def test_what_is_no_place_on_this_machine(place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        only_local("out", place)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("place", [None, 5, b"/hidden", []])
def test_what_is_neither_str_nor_path(place: object) -> None:
    for setting, call in (
        ("data", lambda: open_store(place)),  # type: ignore[arg-type]
        ("list", lambda: list(read_list(place))),  # type: ignore[arg-type]
        ("out", lambda: only_local("out", place)),  # type: ignore[arg-type]
    ):
        with pytest.raises(ConfigError, match=f"{setting} is <class .*>, but it must be a path or a URL") as caught:
            call()
        assert "hidden" not in str(caught.value)


def test_a_list_lies_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"list is 's3://\.\.\.', but it must be a path"):
        pack("s3://bucket/data.list", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_no_place_at_all() -> None:
    with pytest.raises(ConfigError, match="path is '', but it must name a file or a folder"):
        open_store("")
