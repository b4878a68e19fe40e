"""Packing: the bytes, what others read of them, what is refused, and what is left out."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardpipe.audio import decode, encode, probe, resample
from shardpipe.dataset import MANIFEST, Index, verify
from shardpipe.errors import AudioError, ConfigError, ListError, ShardpipeError, StoreError
from shardpipe.lists import Utterance
from shardpipe.pack import PackOptions, index_tars, pack, packing
from shardpipe.pack.prepare import prepare
from shardpipe.store import LocalStore
from tests.places import pack_list, tree
from tests.readers import read_as_wenet, read_as_wids, read_with_webdataset, read_with_wids
from tests.speech import make_audio, make_bytes, make_wav, write_list


def rows_of(folder: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Every row of a dataset with the audio bytes that it points at."""
    index = Index.load(str(folder))
    for number, shard in enumerate(index.shards):
        data = (folder / shard.name).read_bytes()
        for row in index.rows(number).to_pylist():
            yield row, data[row["audio_offset"] : row["audio_offset"] + row["audio_size"]]


def entries(data_list: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data_list.read_text().splitlines()]


def write_entries(data_list: Path, fields: list[dict[str, Any]]) -> Path:
    data_list.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in fields))
    return data_list


@pytest.fixture(scope="module")
def speech_list(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_list(tmp_path_factory.mktemp("speech"), 40, codecs=("wav", "flac", "mp3", "ogg", "opus"))


@pytest.mark.parametrize(
    "options",
    [
        {"shard_size": 60_000},
        {"shard_samples": 7, "shuffle_seed": 3},
        {"format": "flac", "shard_size": 40_000},
        {"format": "opus", "shard_samples": 16},
        {"format": "wav", "sample_rate": 8000, "shard_size": 40_000},
    ],
)
def test_any_number_of_jobs_gives_the_same_bytes(tmp_path: Path, speech_list: Path, options: dict[str, Any]) -> None:
    reports = [pack_list(speech_list, tmp_path / str(jobs), jobs=jobs, **options) for jobs in (1, 3)]
    assert tree(tmp_path / "1") == tree(tmp_path / "3")
    assert reports[0].fingerprint == reports[1].fingerprint
    assert reports[0].shards > 1
    assert reports[0].samples == 40
    assert verify(tmp_path / "1").ok


def test_report_progress_and_layout(tmp_path: Path, speech_list: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    options = PackOptions(shard_samples=16)
    report = pack(speech_list, tmp_path / "out", options=options, progress=lambda *now: seen.append(now))
    assert sorted(tree(tmp_path / "out")) == [
        "index/job.json",
        "index/part-00000.parquet",
        *(f"shard-00000{n}.tar" for n in range(3)),
        MANIFEST,
        "shards.list",
    ]
    index = Index.load(str(tmp_path / "out"))
    assert (report.samples, report.shards, report.rejected, report.shards_kept) == (40, 3, 0, 0)
    assert (report.seconds, report.fingerprint) == (index.totals.seconds, index.fingerprint)
    assert report.size == sum((tmp_path / "out" / shard.name).stat().st_size for shard in index.shards)
    assert [(done, total) for done, total, _ in seen] == [(n, 40) for n in range(1, 41)]
    sizes = [size for _, _, size in seen]
    assert sizes == sorted(sizes)
    assert report.size - 1024 <= sizes[-1] <= report.size


def test_kept_bytes_are_the_files_bytes(tmp_path: Path, speech_list: Path) -> None:
    pack_list(speech_list, tmp_path / "out", shard_samples=16)
    fields = entries(speech_list)
    rows = list(rows_of(tmp_path / "out"))
    assert len(rows) == len(fields)
    for entry, (row, audio) in zip(fields, rows):
        assert audio == (speech_list.parent / entry["wav"]).read_bytes()
        assert (row["key"], row["text"]) == (entry["key"], entry["txt"])
        extras = {name: value for name, value in entry.items() if name not in ("key", "wav", "txt")}
        assert (json.loads(row["extras"]) if row["extras"] else {}) == extras
        info = probe(audio)
        assert (row["codec"], row["frames"], row["sample_rate"], row["channels"]) == (
            info.codec,
            info.frames,
            info.sample_rate,
            info.channels,
        )


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_readers_see_every_sample(tmp_path: Path, speech_list: Path) -> None:
    pack_list(speech_list, tmp_path / "out", shard_samples=16)
    ours = [(row["key"], row["text"], audio) for row, audio in rows_of(tmp_path / "out")]
    assert read_as_wenet(tmp_path / "out") == ours
    assert read_with_webdataset(tmp_path / "out") == ours
    assert read_as_wids(tmp_path / "out") == ours


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_wids_sees_every_sample(tmp_path: Path, speech_list: Path) -> None:
    pytest.importorskip("wids", reason="wids comes with webdataset before 1.0")
    pack_list(speech_list, tmp_path / "out", shard_samples=16)
    ours = [(row["key"], row["text"], audio) for row, audio in rows_of(tmp_path / "out")]
    assert read_with_wids(tmp_path / "out", tmp_path / "cache") == ours


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_readers_see_long_and_unicode_keys(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(make_wav(800))
    keys = ["語" * 30, "ключ", "a b%c", "k" * 96, "k" * 97, "é" * 120]
    fields = [{"key": key, "wav": "a.wav", "txt": f"text of {key}"} for key in keys]
    pack_list(write_entries(tmp_path / "data.list", fields), tmp_path / "out")
    ours = [(row["key"], row["text"], audio) for row, audio in rows_of(tmp_path / "out")]
    assert [key for key, _, _ in ours] == keys
    assert read_as_wenet(tmp_path / "out") == ours
    assert read_with_webdataset(tmp_path / "out") == ours


def test_an_index_made_from_the_shards_is_the_packs_own(tmp_path: Path, speech_list: Path) -> None:
    report = pack_list(speech_list, tmp_path / "out", shard_samples=16)
    again = index_tars(str(tmp_path / "out/*.tar"), tmp_path / "index")
    assert again.fingerprint == report.fingerprint


@settings(max_examples=10, deadline=None)
@given(limit=st.integers(1500, 40_000), samples=st.none() | st.integers(1, 9))
def test_shards_are_as_full_as_they_may_be(
    speech_list: Path, tmp_path_factory: pytest.TempPathFactory, limit: int, samples: int | None
) -> None:
    out = tmp_path_factory.mktemp("limits") / "out"
    pack_list(speech_list, out, **({"shard_size": limit} if samples is None else {"shard_samples": samples}))
    index = Index.load(str(out))
    assert index.num_samples == 40
    assert (index.counts > 0).all()
    if samples is not None:
        assert (index.counts[:-1] == samples).all()
        return
    for number, shard in enumerate(index.shards):
        assert shard.size <= limit or shard.samples == 1
        if number + 1 < len(index.shards):
            following = index.rows(number + 1)["size"][0].as_py()
            assert shard.size + following > limit, "the next sample would have fitted"


def test_shuffled_by_a_hash_that_never_changes(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(make_wav(400))
    fields = [{"key": f"utt{i}", "wav": "a.wav", "txt": ""} for i in range(10)]
    forward = write_entries(tmp_path / "forward.list", fields)
    backward = write_entries(tmp_path / "backward.list", fields[::-1])
    orders = {}
    for name, data_list, seed in (("a", forward, 1), ("b", backward, 1), ("c", forward, 2), ("d", forward, None)):
        pack_list(data_list, tmp_path / name, shuffle_seed=seed)
        orders[name] = [row["key"] for row, _ in rows_of(tmp_path / name)]
    # blake2b of "SEED KEY", 16 bytes, ascending: pinned, or a list packed again would become another dataset.
    assert orders["a"] == [f"utt{i}" for i in [6, 9, 1, 0, 5, 7, 3, 2, 8, 4]]
    assert orders["b"] == orders["a"]
    assert orders["c"] != orders["a"]
    assert sorted(orders["c"]) == sorted(orders["a"])
    assert orders["d"] == [f"utt{i}" for i in range(10)]


# --- Formats, segments and rates -----------------------------------------------------------------------------------


def packed(tmp_path: Path, fields: dict[str, Any], **options: Any) -> tuple[dict[str, Any], bytes]:
    data_list = write_entries(tmp_path / "data.list", [{"key": "utt", "txt": "hello", **fields}])
    pack_list(data_list, tmp_path / "out", overwrite=True, **options)
    ((row, audio),) = rows_of(tmp_path / "out")
    return row, audio


@pytest.mark.parametrize("codec", ["wav", "flac", "mp3", "ogg", "opus"])
@pytest.mark.parametrize("target", ["keep", "wav", "flac", "opus"])
def test_formats(tmp_path: Path, codec: str, target: str) -> None:
    data = make_bytes(codec, 4000)
    (tmp_path / "a.bin").write_bytes(data)
    row, audio = packed(tmp_path, {"wav": "a.bin"}, format=target)
    if target in ("keep", codec):
        assert audio == data
    else:
        assert row["codec"] == target
        assert audio == encode(decode(data, codec, "int16"), 16000, target)
    assert row["frames"] == len(decode(audio, row["codec"]))


@pytest.mark.parametrize(("codec", "kept"), [("wav", "wav"), ("flac", "flac"), ("mp3", "flac"), ("opus", "flac")])
def test_segments_and_rates_that_keep_has_to_write_anew(tmp_path: Path, codec: str, kept: str) -> None:
    data = make_bytes(codec, 16000, channels=2)
    (tmp_path / "a.bin").write_bytes(data)
    whole = decode(data, codec, "int16")
    row, audio = packed(tmp_path, {"wav": "a.bin", "start": 0.25, "end": 0.5})
    assert row["codec"] == kept
    assert np.array_equal(decode(audio, kept, "int16"), whole[4000:8000])
    row, audio = packed(tmp_path, {"wav": "a.bin"}, sample_rate=8000)
    assert (row["codec"], row["sample_rate"], row["frames"], row["channels"]) == (kept, 8000, len(whole) // 2, 2)
    assert audio == encode(resample(decode(data, codec), 16000, 8000), 8000, kept)
    row, audio = packed(tmp_path, {"wav": "a.bin"}, sample_rate=16000)
    assert audio == data, "it has that rate already"


@pytest.mark.parametrize(("codec", "kept"), [("wav", "wav"), ("flac", "flac"), ("opus", "flac")])
def test_a_channel_that_the_list_names_is_cut_out(tmp_path: Path, codec: str, kept: str) -> None:
    data = make_bytes(codec, 16000, channels=2)
    (tmp_path / "a.bin").write_bytes(data)
    whole = decode(data, codec, "int16")
    for channel in (0, 1):
        row, audio = packed(tmp_path, {"wav": "a.bin", "channel": channel})
        assert (row["codec"], row["channels"], row["frames"], row["extras"]) == (kept, 1, len(whole), None)
        assert np.array_equal(decode(audio, kept, "int16")[:, 0], whole[:, channel])
        row, audio = packed(tmp_path, {"wav": "a.bin", "channel": channel, "start": 0.25, "end": 0.5})
        assert np.array_equal(decode(audio, kept, "int16")[:, 0], whole[4000:8000, channel])
    row, audio = packed(tmp_path, {"wav": "a.bin"})
    assert (row["channels"], audio) == (2, data)
    (tmp_path / "a.bin").write_bytes(data := make_bytes(codec, 1600))
    row, audio = packed(tmp_path, {"wav": "a.bin", "channel": 0})
    assert (row["channels"], audio) == (1, data), "there is no other"
    with pytest.raises(AudioError, match="there is no channel 1, for the audio has 1"):
        packed(tmp_path, {"wav": "a.bin", "channel": 1})


@pytest.mark.parametrize(("rate", "raises"), [(None, False), (8000, True)])
def test_another_resampler_is_another_pack_where_it_resamples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int | None, raises: bool
) -> None:
    data_list, options = write_list(tmp_path, 3), PackOptions(sample_rate=rate)
    first = pack(data_list, tmp_path / "out", options=options)
    assert pack(data_list, tmp_path / "out", options=options).shards_kept == first.shards
    monkeypatch.setattr(packing, "RESAMPLER", "another one")
    with pytest.raises(StoreError, match="another dataset") if raises else nullcontext():
        pack(data_list, tmp_path / "out", options=options)


@pytest.mark.parametrize("line", [{}, {"start": 0.0, "end": 0.05}, {"channel": 0}])
@pytest.mark.parametrize("audio_format", ["keep", "flac", "wav"])
@pytest.mark.parametrize("rate", [None, 8000])
def test_another_flac_level_is_another_pack_where_flac_may_be_written(
    tmp_path: Path, line: dict[str, Any], audio_format: str, rate: int | None
) -> None:
    (tmp_path / "a.wav").write_bytes(make_bytes("wav", 1600))
    (tmp_path / "data.list").write_text(json.dumps({"key": "a", "wav": "a.wav", "txt": "", **line}))
    options = PackOptions(format=audio_format, sample_rate=rate)
    raises = audio_format == "flac" or (audio_format == "keep" and (bool(line) or rate is not None))
    first = pack(tmp_path / "data.list", tmp_path / "out", options=options)
    assert pack(tmp_path / "data.list", tmp_path / "out", options=options).shards_kept == first.shards
    with pytest.raises(StoreError, match="another dataset") if raises else nullcontext():
        pack(tmp_path / "data.list", tmp_path / "out", options=replace(options, flac_level=5))


def test_a_pack_to_flac_that_was_begun_before_levels_goes_on_at_level_5(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(make_bytes("wav", 1600))
    fields: Any = {"start": None, "end": None, "extras": {}, "where": "here"}
    utterance = Utterance(key="a", audio=str(tmp_path / "a.wav"), text="x", **fields)
    before = hashlib.sha256(json.dumps([1, None, None, "flac", None, None]).encode())
    before.update(json.dumps(["a", utterance.audio, "x", None, None, {}], sort_keys=True).encode())
    pack([utterance], tmp_path / "out", options=PackOptions(format="flac", flac_level=5))
    job = json.loads((tmp_path / "out/index/job.json").read_text())
    assert job["digest"] == before.hexdigest()


@pytest.mark.parametrize("level", [-1, 9, 2.5, 2.0, "2", True])
def test_flac_levels_that_are_none(level: Any) -> None:
    with pytest.raises(ConfigError, match="flac_level is .*, but it must be (at least 0|8 or less|a whole number)"):
        PackOptions(flac_level=level)


def test_another_channel_is_another_pack(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(make_bytes("wav", 1600, channels=2))
    for channel, raises in ((0, False), (0, False), (1, True)):
        line = {"key": "a", "wav": "a.wav", "txt": "", "channel": channel}
        (tmp_path / "data.list").write_text(json.dumps(line))
        with pytest.raises(StoreError, match="another dataset") if raises else nullcontext():
            pack(tmp_path / "data.list", tmp_path / "out")


@pytest.mark.parametrize("codec", ["wav", "flac", "mp3"])
@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [(0, 0.1, 0, 1600), (0.9, None, 14400, 16000), (None, 0.5, 0, 8000), (0.5, 1.009, 8000, 16000)],
)
def test_segment_ends(tmp_path: Path, codec: str, start: Any, end: Any, first: int, last: int) -> None:
    data = make_bytes(codec, 16000)
    (tmp_path / "a.bin").write_bytes(data)
    row, audio = packed(tmp_path, {"wav": "a.bin", "start": start, "end": end})
    wanted = decode(data, codec, "int16")[first:last]
    assert np.array_equal(decode(audio, row["codec"], "int16"), wanted)


def test_segments_of_wide_samples_are_rounded_as_whole_files_are(tmp_path: Path) -> None:
    data = make_bytes("wav", 8000, subtype="PCM_24")
    (tmp_path / "a.wav").write_bytes(data)
    _, audio = packed(tmp_path, {"wav": "a.wav", "start": 0.1, "end": 0.2})
    assert np.array_equal(decode(audio, "wav", "int16"), decode(data, "wav", "int16")[1600:3200])


def test_many_segments_of_one_recording_in_any_order(tmp_path: Path) -> None:
    for codec in ("flac", "opus"):
        (tmp_path / f"{codec}.bin").write_bytes(make_bytes(codec, 48000))
    fields = [
        {"key": f"{codec}{i}", "wav": f"{codec}.bin", "txt": "t", "start": i / 10, "end": i / 10 + 0.3}
        for i in range(20)
        for codec in ("flac", "opus")
    ]
    pack_list(write_entries(tmp_path / "data.list", fields), tmp_path / "one")
    pack_list(write_entries(tmp_path / "data.list", fields), tmp_path / "many", jobs=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "many")
    found = {row["key"]: audio for row, audio in rows_of(tmp_path / "one")}
    whole = decode((tmp_path / "opus.bin").read_bytes(), "opus", "int16")
    assert np.array_equal(decode(found["opus7"], "flac", "int16"), whole[11200:16000])


# --- Bad input -----------------------------------------------------------------------------------------------------


def bad_corpus(folder: Path) -> Path:
    """Six good utterances with bad ones between them."""
    data_list = write_list(folder, 6, codecs=("wav", "flac"))
    good = entries(data_list)
    torn = make_bytes("flac", 16000)
    files = {"empty": b"", "noise": b"no audio at all" * 40, "torn.flac": torn[: len(torn) // 2]}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "folder").mkdir()
    bad = [{"key": f"bad{i}", "wav": name, "txt": "x"} for i, name in enumerate([*files, "missing.wav", "folder"])]
    bad.append({"key": "outside", "wav": good[0]["wav"], "txt": "x", "start": 5.0, "end": 6.0})
    return write_entries(data_list, [entry for pair in zip(bad, good) for entry in pair])


def test_skip_lists_what_it_leaves_out(tmp_path: Path) -> None:
    data_list = bad_corpus(tmp_path)
    reports = [
        pack_list(data_list, tmp_path / str(jobs), on_error="skip", shard_samples=2, jobs=jobs) for jobs in (1, 2)
    ]
    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    assert (reports[0].samples, reports[0].rejected) == (6, 6)
    listed = [json.loads(line) for line in (tmp_path / "1/rejected.jsonl").read_text().splitlines()]
    assert [entry["key"] for entry in listed] == ["bad0", "bad1", "bad2", "bad3", "bad4", "outside"]
    assert [entry["where"] for entry in listed] == [f"{data_list}:{line}" for line in (1, 3, 5, 7, 9, 11)]
    for entry, reason in zip(
        listed, ["is empty", "no WAV", "can be decoded", "no such file", "cannot be read", "not in the recording"]
    ):
        assert reason in entry["reason"], entry
    assert Index.load(str(tmp_path / "1")).totals.rejected == 6


@pytest.mark.parametrize("bad", range(6))
@pytest.mark.parametrize("jobs", [1, 2])
def test_fail_names_the_first_and_leaves_nothing(tmp_path: Path, bad: int, jobs: int) -> None:
    data_list = bad_corpus(tmp_path)
    fields = entries(data_list)
    write_entries(data_list, [*fields[1::2][:3], fields[2 * bad], *fields[7::2]])
    with pytest.raises(AudioError) as caught:
        pack_list(data_list, tmp_path / "out", jobs=jobs)
    assert caught.value.key == fields[2 * bad]["key"]
    assert f"{data_list}:4" in str(caught.value)
    assert fields[2 * bad]["wav"] in str(caught.value)
    assert caught.value.fix
    assert not (tmp_path / "out").exists()


def test_bad_lines_are_left_out_and_listed_too(tmp_path: Path) -> None:
    data_list = write_list(tmp_path, 4)
    lines = data_list.read_text().splitlines()
    data_list.write_text("\n".join([lines[0], "{", *lines[1:], lines[0]]))
    report = pack_list(data_list, tmp_path / "out", on_error="skip")
    assert (report.samples, report.rejected) == (4, 2)
    listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert [entry["where"] for entry in listed] == [f"{data_list}:2", f"{data_list}:6"]
    with pytest.raises(ListError, match="JSON"):
        pack_list(data_list, tmp_path / "other")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ('{"key": "k", "txt": ""}', "k"),
        ('{"key": "k", "wav": 3, "txt": ""}', "k"),
        ('{"key": "k", "wav": "x.wav"}', "k"),
        ('{"key": "k", "wav": "x.wav", "txt": "", "start": 2, "end": 1}', "k"),
        ('{"key": "a.b/c", "wav": "x.wav", "txt": ""}', "a.b/c"),
        ('{"key": "utt00001", "wav": "x.wav", "txt": ""}', "utt00001"),
        ('{"key": "k", "wav": "missing.wav", "txt": ""}', "k"),
        ('{"key": 3, "wav": "x.wav", "txt": ""}', ""),
        ('{"wav": "x.wav", "txt": ""}', ""),
        ('{"key": "k", ', ""),
        ("[]", ""),
    ],
)
def test_what_is_rejected_keeps_its_key(tmp_path: Path, line: str, key: str) -> None:
    data_list = write_list(tmp_path, 2)
    data_list.write_text(f"{data_list.read_text()}{line}\n")
    assert pack_list(data_list, tmp_path / "out", on_error="skip").rejected == 1
    (listed,) = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert listed["key"] == key


def test_what_is_rejected_of_a_kaldi_directory_keeps_its_key(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(make_wav(8000))
    (tmp_path / "wav.scp").write_text(f"rec1 {tmp_path}/a.wav\nrec2 cat x.wav |\n")
    (tmp_path / "text").write_text("u1 yes\nu2 no\nu3 up\nu5 down\nu5 down\n")
    (tmp_path / "segments").write_text("u1 rec1 0 0.3\nu2 rec2 0 1\nu3 rec9 0 1\nu4 rec1 0 0.2\n")
    assert pack_list(tmp_path, tmp_path / "out", on_error="skip").samples == 1
    listed = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in listed) == ["u2", "u3", "u4", "u5", "u5"]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    data_list = write_entries(tmp_path / "data.list", [{"key": f"k{i}", "wav": "no.wav", "txt": ""} for i in range(3)])
    with pytest.raises(ListError, match="all 3 utterances were rejected, the first because .*no such file"):
        pack_list(data_list, tmp_path / "out", on_error="skip")
    assert not (tmp_path / "out").exists()


def utterance(key: str, **fields: Any) -> Utterance:
    values = {"text": "", "start": None, "end": None, "extras": {}, "audio": "/nowhere.wav", "where": f"list:{key}"}
    return Utterance(key=key, **{**values, **fields})


def test_utterances_without_a_list_are_checked_as_well(tmp_path: Path) -> None:
    with pytest.raises(ListError, match="'a' is already that of list:a"):
        pack([utterance("a"), utterance("b"), utterance("a")], tmp_path / "out")
    with pytest.raises(ListError, match="holds a dot"):
        pack([utterance("a.b")], tmp_path / "out")
    with pytest.raises(ListError, match="empty"):
        pack([], tmp_path / "out")
    (tmp_path / "a.wav").write_bytes(make_wav(800))
    with pytest.raises(ListError, match="UTF-8"):
        pack([utterance("a", audio=str(tmp_path / "a.wav"), text="\ud800")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = pack([utterance("a", audio=str(tmp_path / "a.wav"), text=" hello\n")], tmp_path / "out")
    assert report.samples == 1
    assert next(rows_of(tmp_path / "out"))[0]["text"] == "hello"


@pytest.mark.parametrize(
    "options",
    [
        {"format": "mp3"},
        {"on_error": "ignore"},
        {"shard_size": 1, "shard_samples": 1},
        {"shard_size": 0},
        {"shard_samples": 0},
        {"jobs": 0},
        {"sample_rate": -1},
        {"sample_rate": 10**7},
    ],
)
def test_options_outside_their_rules(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PackOptions(**options)


def test_a_worker_hands_over_large_samples_a_few_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(np.zeros((5_000_000, 1), np.int16), 16000, "wav"))
    utterances = [utterance(f"u{i}", audio=str(tmp_path / "a.wav")) for i in range(5)]
    assert len(prepare(utterances, target="keep", sample_rate=None, flac_level=2)) == 2, "16 MiB are enough"
    assert len(prepare(utterances[:1], target="keep", sample_rate=None, flac_level=2)) == 1


def test_opus_cannot_hold_every_rate(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(make_audio(4410, rate=44100), 44100, "wav"))
    with pytest.raises(AudioError, match="44100 Hz"):
        packed(tmp_path, {"wav": "a.wav"}, format="opus")
    row, _ = packed(tmp_path, {"wav": "a.wav"}, format="opus", sample_rate=16000)
    assert (row["codec"], row["sample_rate"]) == ("opus", 16000)


# --- What lies in the folder already -------------------------------------------------------------------------------


def test_packing_again_changes_nothing(tmp_path: Path, speech_list: Path) -> None:
    pack_list(speech_list, tmp_path / "out", shard_samples=16)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    report = pack_list(speech_list, tmp_path / "out", shard_samples=16, jobs=2)
    assert report.shards_kept == report.shards == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_the_same_job_is_known_by_what_decides_the_bytes(tmp_path: Path) -> None:
    data_list = write_list(tmp_path, 4)
    pack_list(data_list, tmp_path / "out")
    fields = entries(data_list)
    for same in ({"jobs": 2}, {"on_error": "skip"}):
        assert pack_list(data_list, tmp_path / "out", **same).shards_kept == 1
    write_entries(data_list, [dict(reversed(entry.items())) for entry in fields])
    assert pack_list(data_list, tmp_path / "out").shards_kept == 1
    for other in (
        {"shard_size": 1 << 20},
        {"shard_samples": 100},
        {"format": "wav"},
        {"sample_rate": 8000},
        {"shuffle_seed": 0},
    ):
        with pytest.raises(StoreError, match="another dataset"):
            pack_list(data_list, tmp_path / "out", **other)
    for change in (
        {"key": "other"},
        {"txt": "other"},
        {"end": 0.05},
        {"start": 0.05},
        {"more": 1},
        {"wav": "other.wav"},
    ):
        write_entries(data_list, [{**fields[0], **change}, *fields[1:]])
        with pytest.raises(StoreError, match="another dataset"):
            pack_list(data_list, tmp_path / "out")


def test_another_dataset_is_refused_or_replaced(tmp_path: Path, speech_list: Path) -> None:
    out = tmp_path / "out"
    pack_list(speech_list, out, shard_samples=5)
    (out / "notes.txt").write_text("mine")
    before = tree(out)
    with pytest.raises(StoreError, match="holds another dataset.*--overwrite"):
        pack_list(speech_list, out, shard_samples=16)
    assert tree(out) == before
    pack_list(speech_list, out, shard_samples=16, overwrite=True)
    pack_list(speech_list, tmp_path / "fresh", shard_samples=16)
    assert tree(out) == {**tree(tmp_path / "fresh"), "notes.txt": b"mine"}, (
        "no stale shard, and what is the user's stays"
    )


def test_a_damaged_dataset_can_be_packed_over(tmp_path: Path, speech_list: Path) -> None:
    out = tmp_path / "out"
    pack_list(speech_list, out, shard_samples=16)
    whole = tree(out)
    (out / "shard-000001.tar").write_bytes(b"damaged")
    (out / MANIFEST).write_bytes(b"{")
    with pytest.raises(ShardpipeError):
        pack_list(speech_list, out, shard_samples=16)
    pack_list(speech_list, out, shard_samples=16, overwrite=True)
    assert tree(out) == whole


@pytest.mark.parametrize("name", ["shard-000000.tar", "shards.list", "index/part-00000.parquet", "rejected.jsonl"])
def test_files_of_others_are_never_touched(tmp_path: Path, speech_list: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"theirs")
    for overwrite in (False, True):
        with pytest.raises(StoreError, match="did not write"):
            pack_list(speech_list, tmp_path / "out", overwrite=overwrite)
    assert tree(tmp_path / "out") == {name: b"theirs"}


def test_tars_that_were_only_indexed_are_never_touched(tmp_path: Path, speech_list: Path) -> None:
    out = tmp_path / "out"
    pack_list(speech_list, tmp_path / "packed", shard_samples=16)
    out.mkdir()
    (tmp_path / "packed/shard-000000.tar").rename(out / "shard-000000.tar")
    index_tars(str(out / "*.tar"), out)
    before = tree(out)
    with pytest.raises(StoreError, match="did not write"):
        pack_list(speech_list, out, overwrite=True)
    assert tree(out) == before


def test_two_at_once(tmp_path: Path, speech_list: Path) -> None:
    lock = tmp_path / "out/.packing/lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process"):
            pack_list(speech_list, tmp_path / "out")
    assert pack_list(speech_list, tmp_path / "out").samples == 40
    assert not lock.parent.exists()


def test_a_folder_that_cannot_be_made(tmp_path: Path, speech_list: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        pack_list(speech_list, tmp_path / "file" / "out")


def test_nothing_of_the_machine_goes_into_the_dataset(tmp_path: Path) -> None:
    for folder in ("a", "b/c"):
        pack_list(write_list(tmp_path / folder, 8), tmp_path / folder / "out", shard_samples=3)
    here, there = tree(tmp_path / "a/out"), tree(tmp_path / "b/c/out")
    del here["index/job.json"], there["index/job.json"]  # a digest of the list with its paths
    assert here == there
    assert not any(str(tmp_path).encode() in data for data in here.values())


def test_shards_are_read_through_any_store(tmp_path: Path, speech_list: Path) -> None:
    pack_list(speech_list, tmp_path / "out", shard_samples=16)
    assert verify(LocalStore(tmp_path / "out")).ok
