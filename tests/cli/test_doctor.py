"""`shardpipe doctor`: what it finds of this machine and of a dataset, whole or not, and what it advises."""

from __future__ import annotations

import json
import re
import sys
import tomllib
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from shardpipe import audio
from shardpipe.audio import codecs
from shardpipe.cli import app
from shardpipe.cli.examining import Feed, Findings, Machine, Measured, Rate, advice, feeding, look_at, machine
from shardpipe.cli.examining.advising import TORCH_TESTED
from shardpipe.cli.examining.decoding import Clip, decode_clips
from shardpipe.cli.examining.machine import Torch
from shardpipe.cli.examining.rates import each_within
from shardpipe.dataset import Index, Totals, stage_index
from shardpipe.errors import ShardError
from shardpipe.loading import Form, SampleRow
from shardpipe.pack import PackOptions, pack
from shardpipe.store import LocalStore, SlowStore
from tests.speech import make_bytes, make_flac, pack_speech

SAMPLES = 20
SECONDS = 0.05


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_speech(tmp_path_factory.mktemp("doctor"), SAMPLES, shard_samples=6)


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """One that a test may damage."""
    return pack_speech(tmp_path, SAMPLES, shard_samples=6)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut short, however busy the machine is."""

    def each_patiently(*arguments: Any, **options: Any) -> Any:
        return each_within(*arguments, **options | {"seconds": 600})

    monkeypatch.setattr(feeding, "each_within", each_patiently)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, patient: None) -> Any:
    """The text of the command, as if on a line without end."""
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*arguments: object) -> str:
        app(["doctor", *map(str, arguments), "--seconds", str(SECONDS)], standalone_mode=False)
        return capsys.readouterr().out

    return run


@pytest.fixture
def found(told: Any) -> Any:
    return lambda *arguments: json.loads(told(*arguments, "--json"))


def check_rate(rate: dict[str, float], least_seconds: float) -> None:
    assert rate["elapsed"] >= least_seconds
    assert rate["samples_per_second"] == rate["samples"] / rate["elapsed"] > 0
    assert rate["bytes_per_second"] == rate["size"] / rate["elapsed"] > 0
    assert rate["times_real_time"] == rate["audio_seconds"] / rate["elapsed"] > 0


def test_without_a_dataset_built_in_audio_is_decoded(told: Any, found: Any) -> None:
    all_of_it = found()
    assert set(all_of_it["decoding"]) == {"wav", "flac", "opus"}
    for rate in all_of_it["decoding"].values():
        check_rate(rate, SECONDS / 3)
        assert rate["audio_seconds"] == 7 * rate["samples"]
    assert [all_of_it[name] for name in ("dataset", "reading", "feed", "bad")] == [None] * 4
    text = told()
    for words in (
        f"Python     {sys.version.split()[0]}",
        "libsndfile",
        "How fast one core decodes speech-like audio, 16 kHz mono",
        "utterances (7 s each) a second",
        "hours of audio an hour",
        "What to change",
    ):
        assert words in text


def test_a_dataset_is_read_decoded_and_fed(data: Path, told: Any, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_LEAST", 1.0)
    all_of_it = found(data)
    dataset = all_of_it["dataset"]
    assert (dataset["url"], dataset["samples"], dataset["shards"]) == (str(data), SAMPLES, 4)
    assert all_of_it["bad"] == {"samples": 0, "of": SAMPLES, "first": None}
    assert set(all_of_it["decoding"]) == {"wav", "flac"}
    for rate in all_of_it["decoding"].values():
        check_rate(rate, SECONDS / 2)
    check_rate(all_of_it["reading"], SECONDS)
    assert all_of_it["reading"]["at_once"] == 1
    feed = all_of_it["feed"]
    check_rate(feed["rate"], SECONDS)
    assert (feed["batch_size"], feed["sample_rate"], feed["fault"]) == (16, None, "")
    assert feed["rate"]["size"] > 4 * 16000 * feed["rate"]["audio_seconds"], "padding is fed as well"
    text = told(data)
    for words in (
        f"samples       {SAMPLES} in 4 shards",
        "codecs        flac 10, wav 10",
        "sample rates  16000 Hz 20",
        "one by one, maybe from the page cache",
        "flac, one core  ",
        "decoding alone  at most",
        "of padded float32, in batches of 16",
    ):
        assert words in text
    assert "bad" not in text


def test_nothing_to_change(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_core_limit", lambda: None)
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(machine, "_version", {"torch": "2.10.0", "torchaudio": "2.10.0"}.get)
    monkeypatch.setattr(audio, "decoders", lambda: {"opus": "libopus 1.5"})
    assert told().endswith("-  Nothing to change.\n")


def test_it_fits_a_narrow_terminal(data: Path, monkeypatch: pytest.MonkeyPatch, told: Any) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, told(data).splitlines())) <= 60


def test_a_url_is_read_many_at_a_time(data: Path, found: Any) -> None:
    url = "memory://doctor-url"
    fsspec.filesystem("memory").put(f"{data}/", "/doctor-url/", recursive=True)
    all_of_it = found(url)
    assert all_of_it["dataset"]["url"] == url
    assert all_of_it["reading"]["at_once"] > 1
    check_rate(all_of_it["feed"]["rate"], SECONDS)
    assert all_of_it["bad"]["samples"] == 0


def test_damaged_bytes_are_named(own_data: Path, told: Any, found: Any) -> None:
    row = Index.load(str(own_data)).rows(1).slice(2, 1).to_pylist()[0]
    with (own_data / "shard-000001.tar").open("r+b") as shard:
        shard.seek(row["audio_offset"] + row["audio_size"] // 2)
        (byte,) = shard.read(1)
        shard.seek(-1, 1)
        shard.write(bytes([byte ^ 1]))
    all_of_it = found(own_data)
    bad = all_of_it["bad"]
    assert (bad["samples"], bad["of"], bad["first"]["key"]) == (1, SAMPLES, row["key"])
    assert "CRC-32" in bad["first"]["error"]
    assert all_of_it["feed"]["rate"], "the loader skips it"
    text = told(own_data)
    assert f"1 of {SAMPLES} utterances, the first: shard-000001.tar, sample '{row['key']}'" in text
    assert f"1 of {SAMPLES} samples cannot be had: `shardpipe verify {own_data}`" in text


def test_audio_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    whole = make_flac(8000)
    measured = Measured()
    facts: Any = {"shard": 0, "place": 0, "audio_offset": 0, "audio_size": 0, "crc32": 0, "text": "", "extras": None}
    row = SampleRow(key="utt1", shard_name="a.tar", codec="flac", frames=8000, sample_rate=16000, channels=1, **facts)
    clips = [Clip(row._replace(key=f"utt{n}"), whole[: len(whole) // n]) for n in (2, 1)]
    decode_clips(measured, clips, SECONDS, Form())
    assert measured.decoding["flac"].samples
    (error,) = measured.bad
    assert str(error).startswith("a.tar, sample 'utt2', flac: ")
    endless = Measured()
    decode_clips(endless, [Clip(row._replace(frames=1 << 60), whole)], SECONDS, Form())
    assert not endless.decoding
    assert "no memory" in str(endless.bad[0])


def test_a_lost_shard_ends_the_feed_and_not_the_command(own_data: Path, told: Any, found: Any) -> None:
    (own_data / "shard-000002.tar").unlink()
    all_of_it = found(own_data)
    assert all_of_it["bad"]["samples"] == 6
    assert all_of_it["decoding"]
    assert "shard-000002.tar: there is no such file" in all_of_it["feed"]["fault"]
    assert "shard-000002.tar: there is no such file" in told(own_data)


def test_a_lost_part_leaves_nothing_to_measure(own_data: Path, told: Any, found: Any) -> None:
    for part in (own_data / "index").iterdir():
        part.unlink()
    all_of_it = found(own_data)
    assert (all_of_it["reading"], all_of_it["decoding"], all_of_it["feed"]["rate"]) == (None, {}, None)
    assert "part-00000.parquet" in all_of_it["bad"]["first"]["error"]
    assert "part-00000.parquet" in told(own_data)


def test_several_rates_and_channels_are_measured_all_the_same(tmp_path: Path, told: Any, found: Any) -> None:
    lines = []
    for n, (rate, channels) in enumerate([(8000, 1), (16000, 1), (16000, 2), (22050, 2)]):
        (tmp_path / f"{n}.flac").write_bytes(make_bytes("flac", rate // 4, rate=rate, channels=channels, seed=n))
        lines.append(json.dumps({"key": f"utt{n}", "wav": f"{n}.flac", "txt": "a text"}) + "\n")
    (tmp_path / "data.list").write_text("".join(lines))
    pack(tmp_path / "data.list", tmp_path / "packed", options=PackOptions())
    all_of_it = found(tmp_path / "packed")
    assert all_of_it["feed"]["rate"]
    assert all_of_it["feed"]["sample_rate"] == 16000
    assert all_of_it["bad"]["samples"] == 0
    text = told(tmp_path / "packed")
    assert 'here it had channels="mix"' in text
    assert "here it had sample_rate=16000" in text


def test_a_dataset_without_samples(tmp_path: Path, told: Any, found: Any) -> None:
    stage_index(tmp_path, [])
    all_of_it = found(tmp_path)
    assert (all_of_it["dataset"]["samples"], all_of_it["feed"], all_of_it["decoding"]) == (0, None, {})
    assert "There is nothing to measure." in told(tmp_path)


def test_a_store_that_does_not_answer_is_given_up(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "_PATIENCE", 0.3)
    store = LocalStore(data)
    index = Index.load(store)
    index.rows(0)
    index.store = SlowStore(store, 3600)
    measured = feeding.measure_dataset(index, index.store, seconds=SECONDS)
    assert (measured.reading, measured.decoding) == (None, {})
    assert measured.feed is not None
    assert "no second batch came within" in measured.feed.fault


def test_long_recordings_make_small_batches(data: Path, monkeypatch: pytest.MonkeyPatch, patient: None) -> None:
    monkeypatch.setattr(feeding, "_BATCH_BYTES", 3 * 4 * 9600)
    measured = feeding.measure_dataset(Index.load(str(data)), str(data), seconds=SECONDS)
    assert measured.feed is not None
    assert 3 <= measured.feed.batch_size < 16


def test_opus_without_libopus(told: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Path) -> None:
    line = "Opus would be decoded twice as fast by libopus: pip install 'shardpipe[opus]', or the system's package lib"
    opus = pack_speech(tmp_path, 3, codecs=("opus",))
    monkeypatch.setattr(codecs, "libopus", lambda: None)
    assert line in told()
    assert line in told(opus)
    assert line not in told(data), "which has no Opus"


# What is advised of what was found, without measuring.

QUIET = Machine(
    python="3.11.7",
    platform="Linux",
    cores=4,
    core_limit=None,
    load=0.0,
    busy=False,
    memory=1 << 33,
    packages={"shardpipe": "0.1.0", "torch": "2.10.0+cu130", "torchaudio": "2.10.0"},
    torch=Torch(),
)
TOTALS = Totals(
    samples=1024,
    size=229_376_000,
    frames=114_688_000,
    seconds=7168.0,
    codecs={"wav": 1024},
    sample_rates={16000: 1024},
    channels={1: 1024},
    rejected=0,
)


def rate_of(times_real_time: float) -> Rate:
    return Rate(samples=10, audio_seconds=70.0, size=2_240_000, elapsed=70.0 / times_real_time)


def measured_of(reading: float, decoding: float, fed: float, *, codec: str = "wav", at_once: int = 1) -> Measured:
    return Measured(
        decoding={codec: rate_of(decoding)},
        read=Counter({codec: 10}),
        channels=Counter({1: 10}),
        reading=rate_of(reading),
        at_once=at_once,
        feed=Feed(batch_size=16, sample_rate=None, rate=rate_of(fed), fault=""),
    )


def advised(measured: Measured, *, on: Machine = QUIET, opus: str = "libopus 1.5", **totals: Any) -> list[str]:
    decoders = {"opus": opus}
    return advice(
        Findings(machine=on, decoders=decoders, measured=measured, totals=replace(TOTALS, **totals), place="packed")
    )


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (measured_of(100_000, 100_000, 190_000), []),
        (measured_of(100_000, 100_000, 50_000), ["workers=4"]),
        (measured_of(100_000, 2_000, 7_000, codec="flac"), []),
        (measured_of(100_000, 2_000, 3_000, codec="flac"), []),
        (measured_of(1_500, 2_000, 3_000, codec="flac"), ["a local or faster disk"]),
        (measured_of(7_000, 2_000, 6_000, codec="flac", at_once=64), ["cache_dir=, a folder on a local disk"]),
        (measured_of(9_000, 2_000, 7_000, codec="flac", at_once=64), []),
        (Measured(), []),
        (Measured(bad=[ShardError("gone", shard="a.tar", fix="Mend it.")]), ["1 of 1 samples cannot be had"]),
        (
            Measured(feed=Feed(batch_size=16, sample_rate=None, rate=None, fault="Too slow.")),
            ["ended early: Too slow."],
        ),
    ],
    ids=["pcm", "slow pcm", "flac", "few cores", "slow disk", "slow url", "fast url", "nothing", "bad", "no feed"],
)
def test_advice_follows_from_rates(measured: Measured, words: list[str]) -> None:
    lines = advised(measured)
    assert len(lines) == len(words)
    for line, word in zip(lines, words):
        assert word in line
        assert "\n" not in line


def test_advice_says_so_where_threads_are_too_few() -> None:
    (line,) = advised(measured_of(100_000, 2_000, 15_000, codec="flac"), on=replace(QUIET, cores=32))
    assert "threads=32" in line


def test_short_epochs_say_nothing_about_threads() -> None:
    assert not advised(measured_of(100_000, 100_000, 50_000), samples=1023)


def test_channels_that_a_manifest_does_not_count_are_those_of_the_samples() -> None:
    (line,) = advised(Measured(channels=Counter({1: 3, 2: 1})), channels={})
    assert "several channels" in line


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"busy": True, "load": 7.04}, "load average 7.0"),
        ({"core_limit": 1.5}, "lets it use 1.5: give ShardLoader threads=1"),
        ({"packages": {**QUIET.packages, "torchaudio": None}}, "pip install 'shardpipe[train]'"),
        ({"packages": {**QUIET.packages, "torch": "2.5.1"}}, "tested with torch 2.6 to 2.14, and this is 2.5.1"),
        ({"packages": {**QUIET.packages, "torch": "3.0.0"}}, "and this is 3.0.0"),
        ({"torch": Torch(fault="libcudart.so.13: cannot open shared object file")}, "libcudart.so.13"),
    ],
)
def test_advice_about_the_machine(changed: dict[str, Any], words: str) -> None:
    (line,) = advised(measured_of(100_000, 100_000, 190_000), on=replace(QUIET, **changed))
    assert words in line


def test_the_versions_of_torch_are_those_of_the_tests() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (oldest,) = (re.findall(r"^torch>=(\d+)\.(\d+)$", line) for line in project["dependencies"] if "torch" in line)
    beyond = [re.findall(r"^torch<(\d+)\.(\d+)$", line) for line in project["optional-dependencies"]["train"]]
    (major, minor) = next(found[0] for found in beyond if found)
    assert (tuple(map(int, oldest[0])), (int(major), int(minor) - 1)) == TORCH_TESTED


def test_what_is_missing_is_said(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(machine.PACKAGES, "no-such-package", "nobody")
    found = look_at()
    assert found.torch.fault
    assert found.packages["no-such-package"] is None
    text = told()
    assert "no-such-package (nobody)" in text
    assert "torch cannot be imported (" in text


def test_what_torch_says_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
    assert look_at().torch == Torch(devices=("GPU 0", "GPU 1"))

    def busy(number: int) -> str:
        raise RuntimeError("CUDA error: all devices are busy\nand much more")

    monkeypatch.setattr(torch.cuda, "get_device_name", busy)
    assert look_at().torch == Torch(note="CUDA error: all devices are busy")

    def too_old() -> bool:
        warnings.warn("CUDA initialization: the driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    assert look_at().torch == Torch(note="CUDA initialization: the driver is too old")


def test_limits_of_control_groups_are_found(tmp_path: Path) -> None:
    inner = tmp_path / "fs" / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "own").write_text("1:name=systemd:/x\n0::/outer/inner\n")
    where = {"root": tmp_path / "fs", "mine": tmp_path / "own"}
    assert list(machine._limits("cpu.max", **where)) == [["150000", "100000"]]
    assert list(machine._limits("memory.max", **where)) == []
    assert list(machine._limits("cpu.max", root=tmp_path, mine=tmp_path / "none")) == []
