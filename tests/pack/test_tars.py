"""Indexing tars of others where they lie: which samples they hold, and what is said of the rest."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from shardpipe import ShardLoader
from shardpipe.dataset import MANIFEST, Index, Scan, ShardInfo, ShardReader, inspect, rows_batch, stage_index, verify
from shardpipe.errors import ConfigError, ShardError, StoreError
from shardpipe.pack import PackOptions, index_tars, pack
from shardpipe.store import LocalStore
from tests.speech import make_flac, make_wav, write_list

WAV, FLAC = make_wav(800), make_flac(1600, seed=1)


def write_tar(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mtime, info.uid = len(member[1]), 1_700_000_000, 1000
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "a.wav"
    return info


def rows_of(folder: Path) -> list[dict[str, Any]]:
    index = Index.load(str(folder))
    return [row for number in range(len(index.shards)) for row in index.rows(number).to_pylist()]


def keys_of(folder: Path) -> list[str]:
    return [row["key"] for row in rows_of(folder)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_as_wenet_writes_it(tmp_path: Path, form: int) -> None:
    write_tar(
        tmp_path / "shards_000000000.tar",
        ("utt1.txt", "你好\n".encode()),
        ("utt1.wav", WAV),
        ("utt2.txt", b" hello  world "),
        ("utt2.flac", FLAC),
        format=form,
    )
    report = index_tars(str(tmp_path / "*.tar"), tmp_path)
    assert (report.samples, report.shards, report.ignored, report.rejected, report.without_text) == (2, 1, 0, 0, 0)
    first, second = rows_of(tmp_path)
    assert (first["key"], first["text"], first["codec"], first["frames"]) == ("utt1", "你好", "wav", 800)
    assert (second["key"], second["text"], second["codec"], second["frames"]) == ("utt2", "hello  world", "flac", 1600)
    data = (tmp_path / "shards_000000000.tar").read_bytes()
    assert data[second["audio_offset"] :][: second["audio_size"]] == FLAC
    assert first["offset"] + first["size"] == second["offset"]
    assert Index.load(str(tmp_path)).shards[0].name == "shards_000000000.tar"
    assert verify(tmp_path).ok


def test_a_webdataset_tar_with_all_sorts_of_members(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        special(".", tarfile.DIRTYPE),
        ("README", b"no dot"),
        ("._utt1.wav", b"AppleDouble"),
        ("train/utt1.FLAC", FLAC),
        special("train/between", tarfile.DIRTYPE),
        ("train/utt1.json", b'{"b": 1, "a": "\\u00e9"}'),
        ("train/utt1.speaker.txt", b"not the text"),
        ("train/utt1.cls", b"3"),
        special("train/link.wav", tarfile.SYMTYPE),
        ("train.v2/utt2.wav", WAV),
        ("train.v2/utt2.txt", b"two"),
    )
    report = index_tars(str(tmp_path / "a.tar"), tmp_path / "index")
    # ".", README, ._utt1.wav, the directory between, speaker.txt, cls and the link
    assert (report.samples, report.ignored, report.without_text) == (2, 7, 1)
    first, second = rows_of(tmp_path / "index")
    assert (first["key"], first["text"], first["extras"]) == ("train/utt1", "", '{"a":"é","b":1}')
    assert (second["key"], second["text"], second["extras"]) == ("train.v2/utt2", "two", None)
    assert Index.load(str(tmp_path / "index")).shards[0].name == "../a.tar"
    assert verify(tmp_path / "index").ok


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["a.1.txt", "a.1.wav", "a.2.txt", "a.2.wav"], ["a.1", "a.2"]),
        (["a.txt", "a.wav", "a.b.txt", "a.b.wav"], ["a", "a.b"]),
        (["a.wav", "a.speaker.txt", "a.seg.json"], ["a"]),
        (["a.speaker.txt", "a.wav", "b.wav"], ["a", "b"]),
        (["x.y/a.wav", "x.y/a.txt"], ["x.y/a"]),
        (["v1.0001.wav", "v1.0002.wav", "v1.0003.wav"], ["v1.0001", "v1.0002", "v1.0003"]),
    ],
)
def test_where_a_name_is_cut(tmp_path: Path, names: list[str], keys: list[str]) -> None:
    payloads = {"wav": WAV, "txt": b"text", "json": b"{}"}
    write_tar(tmp_path / "a.tar", *((name, payloads[name.rpartition(".")[2]]) for name in names))
    index_tars(str(tmp_path / "a.tar"), tmp_path)
    assert keys_of(tmp_path) == keys
    assert verify(tmp_path).ok


BAD_SAMPLES = {
    "no audio members": [("bad.txt", b"x"), ("bad.json", b"{}")],
    "2 audio members": [("bad.wav", WAV), ("bad.flac", FLAC)],
    "two members of one name": [("bad.wav", WAV), ("bad.txt", b"x"), ("bad.txt", b"y")],
    "not UTF-8": [("bad.wav", WAV), ("bad.txt", b"\xff\xfe")],
    "not a JSON object .Expected `object`, got `array`": [("bad.wav", WAV), ("bad.json", b"[1]")],
    "not a JSON object .Input data was truncated": [("bad.wav", WAV), ("bad.json", b"{")],
    "not a JSON object .JSON is malformed": [("bad.wav", WAV), ("bad.json", b'{"a": NaN}')],
    "nested too deeply": [("bad.wav", WAV), ("bad.json", b'{"a": ' + 99 * b"[" + 99 * b"]" + b"}")],
    "halves of surrogate pairs": [("bad.wav", WAV), ("bad.json", b'{"a": "\\ud800"}')],
    "empty": [("bad.wav", b"")],
    "can be decoded": [("bad.flac", FLAC[: len(FLAC) // 2])],
    "no WAV": [("bad.m4a", b"\0\0\0\x18ftypM4A " + bytes(100))],
    "do not all lie next to each other": [("bad.wav", WAV), ("other.wav", WAV), ("bad.wav", WAV)],
}


@pytest.mark.parametrize("what", BAD_SAMPLES)
def test_a_sample_that_cannot_be_used(tmp_path: Path, what: str) -> None:
    members = BAD_SAMPLES[what]
    write_tar(tmp_path / "a.tar", ("good.wav", WAV), ("good.txt", b"good"), *members)
    with pytest.raises(ShardError, match=what) as caught:
        index_tars(str(tmp_path / "a.tar"), tmp_path)
    assert (caught.value.shard, caught.value.key) == (str(tmp_path / "a.tar"), "bad")
    assert caught.value.offset is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar"], "nothing is left behind"
    report = index_tars(str(tmp_path / "a.tar"), tmp_path, on_error="skip")
    good = [key for key in ("good", "bad", "other") if key in keys_of(tmp_path)]
    assert report.samples == len(good) >= 1
    assert report.rejected == Index.load(str(tmp_path)).totals.rejected == 1
    (entry,) = map(json.loads, (tmp_path / "rejected.jsonl").read_text().splitlines())
    assert entry["key"] == "bad"
    assert entry["where"].startswith(f"{tmp_path / 'a.tar'}:")
    assert verify(tmp_path).ok


# --- Which member is what --------------------------------------------------------------------------------------------

OPEN = [("k.wav", WAV), ("k.clean.flac", FLAC), ("k.txt", b"said")]


def test_audio_of_two_kinds_and_one_text_is_left_open(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", *OPEN, ("m.wav", WAV), ("m.txt", b"more"))
    with pytest.raises(ShardError, match=r"left open which.*k.wav, k.clean.flac, k.txt.*`--audio EXT`") as caught:
        index_tars(str(tmp_path / "a.tar"), tmp_path)
    assert caught.value.key == "k"
    assert index_tars(str(tmp_path / "a.tar"), tmp_path / "skip", on_error="skip").rejected == 1
    assert keys_of(tmp_path / "skip") == ["m"]
    assert verify(tmp_path / "skip").ok


@pytest.mark.parametrize(
    ("members", "audio", "found"),
    [
        (OPEN, "wav", [("k", "wav", "said")]),
        (OPEN, ".WAV", [("k", "wav", "said")]),
        (OPEN, "clean.flac", [("k", "flac", "said")]),
        ([("k.wav", WAV), ("k.clean.wav", FLAC), ("k.txt", b"said")], "wav", [("k", "wav", "said")]),
        ([("k.wav", WAV), ("k.flac", FLAC), ("k.txt", b"said")], "flac", [("k", "flac", "said")]),
        ([("k.audio", WAV), ("k.txt", b"said")], "audio", [("k", "wav", "said")]),
        # Dotted keys, of which one has no text.
        (
            [("a.1.wav", WAV), ("a.1.txt", b"one"), ("a.2.wav", FLAC)],
            "wav",
            [("a.1", "wav", "one"), ("a.2", "flac", "")],
        ),
        ([("a.1.wav", WAV), ("a.1.txt", b"one"), ("a.2.wav", FLAC), ("a.2.txt", b"two")], "wav", None),
    ],
)
def test_the_audio_is_said(
    tmp_path: Path, members: list[Any], audio: str, found: list[tuple[str, str, str]] | None
) -> None:
    write_tar(tmp_path / "a.tar", *members)
    if found is None:
        found = [("a.1", "wav", "one"), ("a.2", "flac", "two")]
        index_tars(str(tmp_path / "a.tar"), tmp_path / "by-itself")
        assert keys_of(tmp_path / "by-itself") == [key for key, *_ in found]
    else:
        with pytest.raises(ShardError):
            index_tars(str(tmp_path / "a.tar"), tmp_path)
    report = index_tars(str(tmp_path / "a.tar"), tmp_path, audio=audio)
    assert [(row["key"], row["codec"], row["text"]) for row in rows_of(tmp_path)] == found
    assert report.ignored == len(members) - sum(1 + bool(text) for _, _, text in found)
    assert verify(tmp_path).ok, "the choice is in the manifest"
    assert [batch.texts for batch in ShardLoader(tmp_path, batch_size=9, shuffle=False)] == [
        [text for *_, text in found]
    ]


def test_the_text_is_a_field(tmp_path: Path) -> None:
    said = b'{"sentence": " hello ", "speaker": "s"}'
    first = [("k.wav", WAV), ("k.json", said), ("k.txt", b"not this")]
    write_tar(tmp_path / "a.tar", *first, ("m.wav", WAV), ("m.json", said))
    index_tars(str(tmp_path / "a.tar"), tmp_path, text="sentence")
    assert [(row["text"], row["extras"]) for row in rows_of(tmp_path)] == [
        ("hello", '{"sentence":" hello ","speaker":"s"}')
    ] * 2
    assert verify(tmp_path).ok
    for field, what in (("words", "it has none of that name"), ("n", "found int")):
        write_tar(tmp_path / "b.tar", ("k.wav", WAV), ("k.json", b'{"n": 3}'))
        with pytest.raises(ShardError, match=f"has no text in its field '{field}' .{what}"):
            index_tars(str(tmp_path / "b.tar"), tmp_path / "b", text=field)
    write_tar(tmp_path / "c.tar", ("k.wav", WAV), ("k.txt", b"said"))
    with pytest.raises(ShardError, match="it has no .json for its text"):
        index_tars(str(tmp_path / "c.tar"), tmp_path / "c", text="sentence")


def test_what_has_no_audio_is_left_out_if_wanted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("a.txt", b"a"), ("b.wav", WAV), ("b.txt", b"b"), ("c.json", b"{}"))
    with pytest.raises(ShardError, match="no audio members"):
        index_tars(str(tmp_path / "a.tar"), tmp_path)
    report = index_tars(str(tmp_path / "a.tar"), tmp_path, skip_incomplete=True)
    assert (report.samples, report.rejected) == (1, 2)
    lines = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["a", "c"]
    assert verify(tmp_path).ok
    write_tar(tmp_path / "b.tar", ("a.txt", b"a"), ("b.wav", b"no audio"))
    with pytest.raises(ShardError, match="these are no WAV"):
        index_tars(str(tmp_path / "b.tar"), tmp_path / "b", skip_incomplete=True)


def test_audio_that_comes_later_is_not_called_missing(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("a.txt", b"a"), ("b.wav", WAV), ("a.wav", WAV))
    for options in ({}, {"skip_incomplete": True}):
        with pytest.raises(ShardError, match="'a'.*do not all lie next to each other") as caught:
            index_tars(str(tmp_path / "a.tar"), tmp_path, **options)
        assert "no audio" not in str(caught.value)


def test_neither_rule_loses_what_is_not_next_to_its_like(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("a.wav", WAV), ("a.b.wav", WAV), ("a.txt", b"a"), ("a.b.txt", b"b"))
    with pytest.raises(ShardError, match="'a'.*do not all lie next to each other"):
        index_tars(str(tmp_path / "a.tar"), tmp_path)


def test_what_version_0_1_indexed_is_still_verified(tmp_path: Path) -> None:
    """Two samples, one without a text, of what is left open now."""
    write_tar(tmp_path / "a.tar", OPEN[0], OPEN[2], OPEN[1])
    with pytest.raises(ShardError, match="left open"):
        index_tars(str(tmp_path / "a.tar"), tmp_path)
    reader = ShardReader(LocalStore(tmp_path), "a.tar")
    found = list(Scan(reader, 0, inspect, lenient=True))
    rows = rows_batch([one.row for one in found if not isinstance(one, ShardError)])
    assert rows.column("key").to_pylist() == ["k", "k.clean"]
    stage_index(tmp_path, [(ShardInfo.of(rows, name="a.tar", size=reader.size, md5=reader.md5), rows)])
    assert verify(tmp_path).ok


def test_a_damaged_tar_is_never_skipped(tmp_path: Path) -> None:
    data = write_tar(tmp_path / "a.tar", ("a.wav", WAV), ("b.wav", WAV)).read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:3000])
    for on_error in ("fail", "skip"):
        with pytest.raises(ShardError, match="cut short"):
            index_tars(str(tmp_path / "a.tar"), tmp_path, on_error=on_error)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_one_key_in_two_tars(tmp_path: Path) -> None:
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", (f"{name}.wav", WAV), ("same.wav", WAV))
    with pytest.raises(ShardError, match=r"b\.tar.*'same'.*also in .*a\.tar"):
        index_tars(str(tmp_path / "*.tar"), tmp_path, on_error="skip")


def test_patterns_and_their_order(tmp_path: Path) -> None:
    for name in ("a/0", "a/1", "b/0", "c/x"):
        write_tar(tmp_path / f"{name}.tar", (f"{name.replace('/', '-')}.wav", WAV))
    out = tmp_path / "index"

    def names(*patterns: str) -> list[str]:
        index_tars([f"{tmp_path}/{pattern}" for pattern in patterns], out, overwrite=True, jobs=2)
        return [shard.name for shard in Index.load(str(out)).shards]

    assert names("*/*.tar") == ["../a/0.tar", "../a/1.tar", "../b/0.tar", "../c/x.tar"]
    assert names("{b,a}/0.tar") == ["../b/0.tar", "../a/0.tar"]
    assert names("c/x.tar", "*/0.tar", "a/*.tar") == ["../c/x.tar", "../a/0.tar", "../b/0.tar", "../a/1.tar"]
    assert names("**/1.tar") == ["../a/1.tar"]
    with pytest.raises(StoreError, match="no file matches"):
        names("d/*.tar")
    with pytest.raises(StoreError, match="no such file"):
        names("d/0.tar")
    assert verify(out).ok, "what was there stays"


def test_tars_and_index_can_be_moved_together(tmp_path: Path) -> None:
    write_tar(tmp_path / "set/tars/a.tar", ("a.wav", WAV))
    index_tars(f"{tmp_path}/set/tars/*.tar", tmp_path / "set" / "index", relative=True)
    (tmp_path / "set").rename(tmp_path / "elsewhere")
    assert verify(tmp_path / "elsewhere/index").ok


def test_through_a_link_to_the_folder(tmp_path: Path) -> None:
    write_tar(tmp_path / "deep/er/a.tar", ("a.wav", WAV))
    (tmp_path / "link").symlink_to(tmp_path / "deep/er")
    index_tars(f"{tmp_path}/link/*.tar", tmp_path / "link")
    assert Index.load(str(tmp_path / "link")).shards[0].name == "a.tar"
    assert verify(tmp_path / "link").ok


def test_any_number_of_jobs_gives_the_same_index(tmp_path: Path) -> None:
    pack(write_list(tmp_path, 20), tmp_path / "out", options=PackOptions(shard_samples=3))
    for jobs in (1, 3):
        index_tars(str(tmp_path / "out/*.tar"), tmp_path / str(jobs), jobs=jobs)
    for name in (MANIFEST, "index/part-00000.parquet", "shards.list"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_what_lies_in_the_folder_already(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("a.wav", WAV))
    (tmp_path / "shards.list").write_text("a list for WeNet\n")
    index_tars(f"{tmp_path}/a.tar", tmp_path)
    assert (tmp_path / "shards.list").read_text() == "a list for WeNet\n"
    before = (tmp_path / MANIFEST).read_bytes()
    write_tar(tmp_path / "b.tar", ("b.wav", WAV))
    with pytest.raises(StoreError, match="holds another dataset.*--overwrite"):
        index_tars(f"{tmp_path}/*.tar", tmp_path)
    assert (tmp_path / MANIFEST).read_bytes() == before
    assert index_tars(f"{tmp_path}/*.tar", tmp_path, overwrite=True).shards == 2
    other = tmp_path / "other"
    (other / "index").mkdir(parents=True)
    (other / "index/part-00000.parquet").write_text("theirs")
    with pytest.raises(StoreError, match="did not write"):
        index_tars(f"{tmp_path}/*.tar", other, overwrite=True)
    (tmp_path / "unfinished/.packing").mkdir(parents=True)
    (tmp_path / "unfinished/.packing/job.json").write_text('{"digest": "x"}')
    for left in ("shard-000000.tar", "shard-000000.parquet"):
        (tmp_path / "unfinished/.packing" / left).write_text("finished")
    with pytest.raises(StoreError, match="unfinished pack"):
        index_tars(f"{tmp_path}/*.tar", tmp_path / "unfinished", overwrite=True)
    assert (tmp_path / "unfinished/.packing/shard-000000.tar").exists()


def test_a_packed_dataset_that_is_indexed_again_is_packed_no_more(tmp_path: Path) -> None:
    """Its tars may have been changed since: a pack must not take them for what its list says."""
    data_list = write_list(tmp_path, 6)
    report = pack(data_list, tmp_path / "out")
    assert index_tars(f"{tmp_path}/out/*.tar", tmp_path / "out", overwrite=True).fingerprint == report.fingerprint
    with pytest.raises(StoreError, match="another dataset"):
        pack(data_list, tmp_path / "out")


def test_no_sample_at_all(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", ("README", b"nothing"))
    with pytest.raises(ShardError, match="no sample in any of the tars"):
        index_tars(f"{tmp_path}/a.tar", tmp_path)
    write_tar(tmp_path / "b.tar", ("b.wav", WAV))
    assert index_tars(f"{tmp_path}/?.tar", tmp_path).samples == 1
    assert Index.load(str(tmp_path)).counts.tolist() == [0, 1]
    with pytest.raises(ConfigError):
        index_tars(f"{tmp_path}/a.tar", tmp_path, on_error="ignore")
