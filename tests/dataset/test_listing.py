"""shards.list: what WeNet opens, from wherever it is started; and what verify says of one that has gone astray."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from shardpipe.dataset import Index, verify
from shardpipe.pack import PackOptions, index_tars, pack
from tests.places import objects, put_folder
from tests.speech import write_list


def packed(folder: Path, out: Path | str, **options: bool) -> None:
    pack(write_list(folder, 9), out, options=PackOptions(shard_samples=4, **options))


def lines_of(folder: Path) -> list[str]:
    return (folder / "shards.list").read_text().splitlines()


def put_lines(folder: Path, *lines: str) -> None:
    (folder / "shards.list").write_text("".join(f"{line}\n" for line in lines))


def samples_in(tar: str) -> int:
    with tarfile.open(tar) as opened:
        return sum(name.endswith(".txt") for name in opened.getnames())


def problems(folder: Path | str) -> list[str]:
    return [str(problem) for problem in verify(folder).problems]


@pytest.mark.parametrize("above", ["", "./", "../"])
def test_its_lines_open_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: str) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    packed(Path("speech"), f"{above}out")
    index_tars(f"{above}out/*.tar", f"{above}of-tars")
    (tmp_path / "far").mkdir()
    lists = [(tmp_path / "here" / above / name).resolve() for name in ("out", "of-tars")]
    monkeypatch.chdir(tmp_path / "far")
    for folder in lists:
        assert sum(map(samples_in, lines_of(folder))) == 9
        assert verify(folder).ok


def test_at_a_url_they_are_urls(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/set"
    pack(write_list(tmp_path, 9), url, options=PackOptions(shard_samples=4), staging=tmp_path / "staging")
    index_tars(f"{url}/*.tar", f"{url}/deeper/index", staging=tmp_path / "staging")
    expected = [f"{url}/shard-{number:06d}.tar" for number in range(3)]
    for place in (url, f"{url}/deeper/index"):
        assert objects(place)["shards.list"].decode().splitlines() == expected
        assert verify(place).ok


def test_through_a_link_they_name_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    packed(tmp_path, tmp_path / "link/out")
    assert lines_of(tmp_path / "disk/out")[0] == os.path.realpath(tmp_path / "disk/out/shard-000000.tar")
    assert verify(tmp_path / "link/out").ok
    assert verify(tmp_path / "disk/out").ok


def test_relative_ones_move_with_the_folder(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "set/out", relative=True)
    index_tars(f"{tmp_path}/set/out/*.tar", tmp_path / "set/index", relative=True)
    (tmp_path / "set").rename(tmp_path / "moved")
    assert lines_of(tmp_path / "moved/out") == [f"shard-{number:06d}.tar" for number in range(3)]
    assert lines_of(tmp_path / "moved/index") == [f"../out/shard-{number:06d}.tar" for number in range(3)]
    assert verify(tmp_path / "moved/out").ok
    assert verify(tmp_path / "moved/index").ok


def test_whether_they_are_relative_is_part_of_the_job(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "out")
    before = lines_of(tmp_path / "out")
    with pytest.raises(Exception, match="another dataset"):
        packed(tmp_path, tmp_path / "out", relative=True)
    assert lines_of(tmp_path / "out") == before
    packed(tmp_path, tmp_path / "out", relative=True, overwrite=True)
    assert lines_of(tmp_path / "out") == [f"shard-{number:06d}.tar" for number in range(3)]


def test_the_list_of_a_copy_that_names_the_original(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    (told,) = problems(tmp_path / "copy")
    first = os.path.realpath(tmp_path / "out/shard-000000.tar")
    assert f"line 1 names {first}, which is no shard of the manifest's" in told
    assert f"{tmp_path}/copy/shards.list" in told
    put_folder(tmp_path / "out", url := f"memory://{tmp_path.name}/copy")
    (told,) = problems(url)
    assert f"line 1 names {first}" in told
    assert verify(tmp_path / "out").ok


def test_lines_that_are_missing_or_come_twice_or_name_others(tmp_path: Path) -> None:
    packed(tmp_path, out := tmp_path / "out")
    first, second, third = lines_of(out)
    put_lines(out, first, third)
    assert f"it does not name {second}" in problems(out)[0]
    put_lines(out, first, second, third, first)
    assert f"line 4 names {first} again" in problems(out)[0]
    put_lines(out, first, second, third, "/elsewhere/other.tar")
    assert "line 4 names /elsewhere/other.tar, which is no shard" in problems(out)[0]
    (out / "shards.list").write_bytes(b"\xff\xfe\n" + f"{first}\n".encode())
    assert "line 1 names" in problems(out)[0]


def test_lists_that_say_the_same_in_another_way(tmp_path: Path) -> None:
    packed(tmp_path, out := tmp_path / "data/train/out")
    first, second, third = lines_of(out)
    put_lines(out, third, "", first, second)
    assert verify(out).ok, "in another order"
    put_lines(out, *(f"train/out/shard-{number:06d}.tar" for number in range(3)))
    assert verify(out).ok, "from a folder in which somebody works"
    (out / "shards.list").unlink()
    assert verify(out).ok, "it may be missing"


def test_a_list_of_other_things_is_somebody_elses(tmp_path: Path) -> None:
    packed(tmp_path, out := tmp_path / "out")
    for lines in (["a list for somebody else"], [], ["/corpus/a.tar", "/corpus/b.tar"]):
        put_lines(out, *lines)
        assert verify(out).ok


def test_index_writes_its_own_list_anew_and_keeps_another(tmp_path: Path) -> None:
    packed(tmp_path, out := tmp_path / "out")
    (tars := tmp_path / "tars").mkdir()
    for tar in sorted(out.glob("*.tar"))[:2]:
        shutil.copy(tar, tars)
    index_tars(f"{tars}/shard-000000.tar", tars)
    assert len(lines_of(tars)) == 1
    index_tars(f"{tars}/*.tar", tars, overwrite=True)
    assert len(lines_of(tars)) == len(Index.load(str(tars)).shards) == 2
    put_lines(tars, "one of theirs")
    index_tars(f"{tars}/*.tar", tars, overwrite=True)
    assert lines_of(tars) == ["one of theirs"]
