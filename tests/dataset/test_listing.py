"""shards.list: what WeNet opens, from wherever it is started; and what verify says of one that has gone astray."""

from __future__ import annotations

import glob
import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from shardpipe.dataset import Index, verify, write_list
from shardpipe.dataset.listing import check_list
from shardpipe.errors import ConfigError
from shardpipe.pack import PackOptions, index_tars, pack
from tests.places import objects, put_folder
from tests.speech import make_wav
from tests.speech import write_list as write_speech


def packed(folder: Path, out: Path | str, **options: bool) -> None:
    pack(write_speech(folder, 9), out, options=PackOptions(shard_samples=4, **options))


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
    pack(write_speech(tmp_path, 9), url, options=PackOptions(shard_samples=4), staging=tmp_path / "staging")
    index_tars(f"{url}/*.tar", f"{url}/deeper/index", staging=tmp_path / "staging")
    expected = [f"{url}/shard-{number:06d}.tar" for number in range(3)]
    for place in (url, f"{url}/deeper/index"):
        assert objects(place)["shards.list"].decode().splitlines() == expected
        assert verify(place).ok


def test_links_to_the_folder_stay_and_any_of_them_leads_there(tmp_path: Path) -> None:
    (tmp_path / "disk/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/deep")
    packed(tmp_path, tmp_path / "link/out")
    assert lines_of(tmp_path / "disk/deep/out")[0] == f"{tmp_path}/link/out/shard-000000.tar"
    for place in ("link/out", "disk/deep/out", "link/../deep/out"):
        assert verify(tmp_path / place).ok
    # Upwards from a link is not where its name stands.
    packed(tmp_path, tmp_path / "link/../out")
    index_tars(f"{tmp_path}/link/out/*.tar", tmp_path / "link/index")
    for folder, tars in (("disk/out", "disk/out"), ("disk/deep/index", "disk/deep/out")):
        assert lines_of(tmp_path / folder)[0] == f"{tmp_path}/{tars}/shard-000000.tar"
        assert verify(tmp_path / folder).ok


def test_urls_are_taken_as_they_stand(tmp_path: Path) -> None:
    for place in ("s3://b/a//b", "s3://b/e/../f", "s3://b/./i"):
        assert write_list(tmp_path / "list", ["x.tar", "s3://c/y.tar"], place)
        assert (tmp_path / "list").read_text() == f"{place}/x.tar\ns3://c/y.tar\n"


def test_relative_ones_move_with_the_folder(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "set/out", relative=True)
    index_tars(f"{tmp_path}/set/out/*.tar", tmp_path / "set/index", relative=True)
    (tmp_path / "set").rename(tmp_path / "moved")
    assert lines_of(tmp_path / "moved/out") == [f"shard-{number:06d}.tar" for number in range(3)]
    assert lines_of(tmp_path / "moved/index") == [f"../out/shard-{number:06d}.tar" for number in range(3)]
    assert verify(tmp_path / "moved/out").ok
    assert verify(tmp_path / "moved/index").ok


def test_packing_again_sets_the_list_right(tmp_path: Path) -> None:
    """Where it was copied, and where its lines are wanted otherwise: the shards stay."""
    packed(tmp_path, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    before = (tmp_path / "copy/shard-000000.tar").stat()
    for options, first in (
        ({}, f"{tmp_path}/copy/shard-000000.tar"),
        ({"relative": True}, "shard-000000.tar"),
        ({}, f"{tmp_path}/copy/shard-000000.tar"),
    ):
        packed(tmp_path, tmp_path / "copy", **options)
        assert lines_of(tmp_path / "copy")[0] == first
        assert verify(tmp_path / "copy").ok
    assert (tmp_path / "copy/shard-000000.tar").stat() == before
    assert lines_of(tmp_path / "out")[0] == f"{tmp_path}/out/shard-000000.tar"
    put_lines(tmp_path / "copy", "one of theirs")
    packed(tmp_path, tmp_path / "copy")
    assert lines_of(tmp_path / "copy") == ["one of theirs"]


def test_an_unfinished_pack_may_be_finished_with_other_lines(tmp_path: Path) -> None:
    def stop(done: int, *_: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    data_list = write_speech(tmp_path, 9)
    with pytest.raises(KeyboardInterrupt):
        pack(data_list, tmp_path / "out", options=PackOptions(shard_samples=4), progress=stop)
    report = pack(data_list, tmp_path / "out", options=PackOptions(shard_samples=4, relative=True))
    assert report.shards_kept == 1
    assert lines_of(tmp_path / "out")[0] == "shard-000000.tar"


def test_the_list_of_a_copy_that_names_the_original(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    (told,) = problems(tmp_path / "copy")
    first = os.path.realpath(tmp_path / "out/shard-000000.tar")
    assert f"line 1 names {first!r}, which is no shard of the manifest's" in told
    assert f"{tmp_path}/copy/shards.list" in told
    put_folder(tmp_path / "out", url := f"memory://{tmp_path.name}/copy")
    (told,) = problems(url)
    assert f"line 1 names {first!r}" in told
    assert verify(tmp_path / "out").ok


def test_lines_that_are_missing_or_come_twice_or_name_others(tmp_path: Path) -> None:
    packed(tmp_path, out := tmp_path / "out")
    first, second, third = lines_of(out)
    put_lines(out, first, third)
    assert f"it does not name {second!r}" in problems(out)[0]
    put_lines(out, first, second, third, first)
    assert f"line 4 names {first!r} again" in problems(out)[0]
    put_lines(out, first, second, third, "/elsewhere/other.tar")
    assert "line 4 names '/elsewhere/other.tar', which is no shard" in problems(out)[0]
    (out / "shards.list").write_bytes(b"\xff\xfe\n" + f"{first}\n".encode())
    assert "line 1 names" in problems(out)[0]


def test_lists_that_say_the_same_in_another_way(tmp_path: Path) -> None:
    packed(tmp_path, out := tmp_path / "data/train/out")
    first, second, third = lines_of(out)
    put_lines(out, third, "", first, second)
    assert verify(out).ok, "in another order"
    put_lines(out, first, f"file://{second}", f"{third} ")
    assert verify(out).ok
    (tmp_path / "blob").write_bytes(Path(second).read_bytes())
    Path(second).unlink()
    Path(second).symlink_to(tmp_path / "blob")
    assert verify(out).ok, "a shard may be a link itself"
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


def test_index_renews_the_list_of_an_index_that_was_moved(tmp_path: Path) -> None:
    packed(tmp_path, tmp_path / "tars", relative=True)
    index_tars(f"{tmp_path}/tars/*.tar", tmp_path / "tars", overwrite=True)
    (tmp_path / "tars").rename(tmp_path / "moved")
    assert not verify(tmp_path / "moved").ok
    index_tars(f"{tmp_path}/moved/*.tar", tmp_path / "moved", overwrite=True)
    assert lines_of(tmp_path / "moved")[0] == f"{tmp_path}/moved/shard-000000.tar"
    assert verify(tmp_path / "moved").ok


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_places_that_no_line_can_hold(tmp_path: Path, end: str) -> None:
    strange = tmp_path / f"with{end}an end"
    for attempt in (packed, lambda _, out: index_tars(f"{tmp_path}/plain/*.tar", out)):
        if attempt is not packed:
            packed(tmp_path, tmp_path / "plain")
        with pytest.raises(ConfigError, match="the end of a line.*pass --relative"):
            attempt(tmp_path, strange / "out")
        assert not strange.exists()
    packed(tmp_path, strange / "out", relative=True)
    assert verify(strange / "out").ok
    # The index lies elsewhere, and its tars have such names: no list at all.
    index_tars(f"{glob.escape(str(strange))}/out/*.tar", tmp_path / "index")
    assert not (tmp_path / "index/shards.list").exists()
    assert verify(tmp_path / "index").ok


@pytest.mark.parametrize("mark", ["\v", "\f", "\x1c", "\x85", "\u2028", " ", "ü", "%2F"])
def test_places_with_marks_that_end_no_line(tmp_path: Path, mark: str) -> None:
    packed(tmp_path, out := tmp_path / f"with{mark}one" / "out")
    assert verify(out).ok
    with open(out / "shards.list", encoding="utf-8", newline="\n") as lines:
        assert sum(samples_in(line.rstrip("\n")) for line in lines) == 9


def test_places_that_are_not_utf8(tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"with\xff")
    packed(tmp_path, tmp_path / "plain")
    with pytest.raises(ConfigError, match="its path must be UTF-8"):
        packed(tmp_path, strange)
    strange.mkdir()
    (strange / "a.tar").write_bytes((tmp_path / "plain/shard-000000.tar").read_bytes())
    with pytest.raises(ConfigError, match="tars is .*UTF-8 alone"):
        index_tars(str(strange / "a.tar"), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_hostile_lines_are_told_in_short(tmp_path: Path) -> None:
    packed(tmp_path, out := tmp_path / "out")
    own = lines_of(out)
    link = out / "l0"
    for number in range(1500):
        (out / f"l{number}").symlink_to(out / f"l{number + 1}")
    for line in (
        "a\0b",
        "a/" * 100_000,
        f"{link}/shard-000000.tar",
        "s3://KEY:verysecret@bucket/shard-000000.tar",
        "\x1b[31m",
    ):
        put_lines(out, line, *own)
        (told,) = problems(out)
        assert "line 1 names" in told
        assert len(told) < 1000
        assert "verysecret" not in told
        assert told.isprintable()
    with open(out / "shards.list", "r+b") as file:
        file.truncate(1 << 40)  # takes no space, and is not read
    assert verify(out).ok


def test_folders_are_looked_at_and_not_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of one name in many folders, as some corpora have them."""
    for number in range(60):
        (folder := tmp_path / f"set/d{number:03}").mkdir(parents=True)
        with tarfile.open(folder / "a.tar", "w") as file:
            data = make_wav(100)
            member = tarfile.TarInfo(f"utt{number}.wav")
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    index_tars(f"{tmp_path}/set/*/a.tar", tmp_path / "set")
    looked: list[str] = []
    real = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path, **options: looked.append(str(path)) or real(path, **options))
    index = Index.load(str(tmp_path / "set"))
    assert check_list(index.store, [shard.name for shard in index.shards]) is None
    assert len(looked) < 60 + 5
