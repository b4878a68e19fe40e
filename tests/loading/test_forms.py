"""Channels and rates: whatever samples have in their files, a batch has them in one form, as long as the plan said."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from shardpipe import Sample, ShardLoader
from shardpipe.audio import decode, resampled_frames
from shardpipe.dataset import MANIFEST, Index, verify
from shardpipe.errors import AudioError, ConfigError, CorruptIndex
from shardpipe.pack import PackOptions, pack
from tests.speech import make_audio

RATES = (8000, 16000, 22050, 44100, 48000)
OPTIONS: dict[str, Any] = {"batch_size": 3, "shuffle": False, "window": 8}


def write(folder: Path, name: str, audio: np.ndarray[Any, Any], rate: int) -> dict[str, str]:
    """A line for a list, and its file."""
    folder.mkdir(parents=True, exist_ok=True)
    subtype = "PCM_16"
    soundfile.write(folder / f"{name}.flac", audio, rate, format="FLAC", subtype=subtype)
    return {"key": name, "wav": f"{name}.flac", "txt": "a text"}


def packed(folder: Path, lines: list[dict[str, Any]], **options: Any) -> Path:
    (folder / "data.list").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = folder / f"packed{len(list(folder.glob('packed*')))}"
    pack(folder / "data.list", out, options=PackOptions(shard_samples=4, **options))
    return out


@pytest.fixture(scope="module")
def stereo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two channels of opposite phase, and others of different content."""
    folder = tmp_path_factory.mktemp("stereo")
    one = make_audio(1600, seed=1)
    opposite = np.concatenate([one, -one], axis=1)
    different = make_audio(2400, channels=2, seed=2)
    return packed(folder, [write(folder, "opposite", opposite, 16000), write(folder, "different", different, 16000)])


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a list of every rate, mono and stereo."""
    folder = tmp_path_factory.mktemp("rates")
    lines = [
        write(folder, f"utt{rate}-{channels}", make_audio(rate // 3 + channels, rate=rate, channels=channels), rate)
        for rate in RATES
        for channels in (1, 2)
    ]
    return packed(folder, lines)


def payloads(data: Path) -> dict[str, np.ndarray[Any, Any]]:
    """[frames, channels] of every sample."""
    index = Index.load(str(data))
    found = {}
    for shard in range(len(index.shards)):
        for row in index.rows(shard).to_pylist():
            payload = index.store.read(index.shards[shard].name, row["audio_offset"], row["audio_size"])
            found[row["key"]] = decode(payload, row["codec"])
    return found


def as_before(data: Path, folder: Path) -> Path:
    """The dataset as version 0.1 wrote it: its manifest says nothing of channels."""
    shutil.copytree(data, folder)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest["shardpipe"]["channels"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"collate": len}], ids=["straight", "workers", "collate"])
def test_several_channels_are_refused_with_the_choice(stereo: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="2 of its samples have 2 channels") as at_once:
        ShardLoader(stereo, **OPTIONS, **options)
    loader = ShardLoader(as_before(stereo, tmp_path / "before"), **OPTIONS, **options)
    with pytest.raises(ConfigError, match="the sample 'opposite' has 2 channels") as on_the_way:
        list(loader)
    for caught in (at_once, on_the_way):
        for choice in ("by its number", 'channels="mix" for the mean of all, as it was up to', 'channels="keep"'):
            assert choice in str(caught.value)


def test_skipping_errors_skips_no_channels(stereo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the sample 'opposite' has 2 channels"):
        list(ShardLoader(as_before(stereo, tmp_path / "before"), on_error="skip", **OPTIONS))


@pytest.mark.parametrize(
    ("through", "dtype"),
    [
        ("straight", "float32"),
        ("straight", "int16"),
        ("transform", "float32"),
        ("transform", "int16"),
        ("workers", "int16"),
    ],
)
def test_one_channel_the_mean_or_all(stereo: Path, dtype: Any, through: str) -> None:
    how: dict[str, Any] = {"straight": {}, "transform": {"transform": same}, "workers": {"workers": 1}}[through]
    scale = 1 if dtype == "float32" else 32768
    whole = {key: audio * scale for key, audio in payloads(stereo).items()}
    for channels, expected in (
        (0, lambda audio: audio[:, 0]),
        (1, lambda audio: audio[:, 1]),
        ("mix", lambda audio: audio.mean(axis=1)),
        ("keep", lambda audio: audio.T),
    ):
        (batch,) = ShardLoader(stereo, channels=channels, dtype=dtype, **OPTIONS, **how)
        assert batch.audio.shape == ((2, 2, 2400) if channels == "keep" else (2, 2400))
        for i, key in enumerate(batch.keys):
            length = int(batch.lengths[i])
            wanted = expected(whole[key])
            assert np.abs(batch.audio[i, ..., :length].numpy() - wanted).max() <= (1e-7 if dtype == "float32" else 0.5)
            assert not batch.audio[i, ..., length:].any()
    (mixed,) = ShardLoader(stereo, channels="mix", **OPTIONS)
    assert not mixed.audio[mixed.keys.index("opposite")].any(), "which is why nobody is given it unasked"


def same(sample: Sample, rng: np.random.Generator) -> Sample:
    assert sample.audio.ndim in (1, 2)
    return sample


def test_a_channel_that_is_not_there(stereo: Path, rates: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="channels is 2, but 2 of its samples have 2 channels"):
        ShardLoader(stereo, channels=2, **OPTIONS)
    with pytest.raises(ConfigError, match="channels is 1, but 5 of its samples have 1 channel"):
        ShardLoader(rates, channels=1, sample_rate=8000, **OPTIONS)
    before = as_before(rates, tmp_path / "before")
    with pytest.raises(ConfigError, match="channels is 1, but the sample 'utt8000-1' has 1 channel"):
        list(ShardLoader(before, channels=1, sample_rate=8000, **OPTIONS))
    for data in (rates, before):
        assert sum(len(batch.keys) for batch in ShardLoader(data, channels=0, sample_rate=8000, **OPTIONS)) == 10


def test_all_channels_of_samples_that_have_other_numbers_of_them(rates: Path) -> None:
    with pytest.raises(ConfigError, match=r"'utt8000-2' has 2 channels, and 'utt8000-1' has 1"):
        list(ShardLoader(rates, channels="keep", sample_rate=8000, **OPTIONS))
    one_by_one = ShardLoader(rates, batch_size=1, shuffle=False, channels="keep", sample_rate=8000)
    assert [batch.audio.shape[:2] for batch in one_by_one] == [(1, 1), (1, 2)] * 5


@pytest.mark.parametrize(
    ("rate", "options"),
    [(8000, {}), (16000, {}), (44100, {}), (16000, {"workers": 1}), (16000, {"transform": same})],
    ids=["8000", "16000", "44100", "workers", "transform"],
)
def test_mixed_rates_come_as_from_a_corpus_packed_at_that_rate(
    rates: Path, tmp_path: Path, rate: int, options: dict[str, Any]
) -> None:
    list_of = rates.parent / "data.list"
    pack(list_of, tmp_path / "at", options=PackOptions(shard_samples=4, sample_rate=rate, format="wav"))
    rows = {row["key"]: row for shard in range(3) for row in Index.load(str(rates)).rows(shard).to_pylist()}
    pairs = zip(
        ShardLoader(rates, channels="mix", sample_rate=rate, **OPTIONS, **options),
        ShardLoader(tmp_path / "at", channels="mix", **OPTIONS),
        strict=True,
    )
    for batch, packed_there in pairs:
        assert batch.keys == packed_there.keys
        assert batch.sample_rate == packed_there.sample_rate == rate
        assert batch.lengths.tolist() == packed_there.lengths.tolist()
        for key, length in zip(batch.keys, batch.lengths.tolist()):
            assert length == resampled_frames(rows[key]["frames"], rows[key]["sample_rate"], rate)
        assert (batch.audio - packed_there.audio).abs().max() < 1e-4
        assert batch.audio.abs().max() <= 1
    for batch, packed_there in zip(
        ShardLoader(rates, channels=0, sample_rate=rate, dtype="int16", **OPTIONS, **options),
        ShardLoader(tmp_path / "at", channels=0, dtype="int16", **OPTIONS),
    ):
        assert (batch.audio.int() - packed_there.audio.int()).abs().max() <= 1


def test_batches_by_seconds_keep_their_budget_at_any_rate(rates: Path) -> None:
    for batch in ShardLoader(rates, batch_seconds=0.8, channels="mix", sample_rate=16000, window=8):
        assert batch.audio.shape[0] * batch.audio.shape[1] / 16000 <= 0.8 + len(batch.keys) / 16000


def test_the_manifest_counts_channels(rates: Path, tmp_path: Path) -> None:
    assert Index.load(str(rates)).totals.channels == {1: 5, 2: 5}
    before = as_before(rates, tmp_path / "before")
    assert Index.load(str(before)).totals.channels == {}
    assert Index.load(str(before)).fingerprint == Index.load(str(rates)).fingerprint
    (before / "shards.list").unlink()
    assert verify(before).ok
    manifest = json.loads((rates / MANIFEST).read_bytes())
    for wrong in ({"1": 5}, {"0": 10}, {"1025": 10}, {"two": 10}, {"1": -1, "2": 11}, []):
        manifest["shardpipe"]["channels"] = wrong
        (before / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(CorruptIndex):
            Index.load(str(before))


def test_several_rates_are_refused_at_once_unless_somebody_sees_to_them(rates: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[8000, 16000, 22050, 44100, 48000\].*sample_rate=16000"):
        ShardLoader(rates, channels="mix", **OPTIONS)
    with pytest.raises(ConfigError, match=r"a batch must have one: give it, or transform to one"):
        list(ShardLoader(rates, channels="mix", transform=same, **OPTIONS))
    lengths = ShardLoader(rates, channels="mix", collate=lambda samples: [s.sample_rate for s in samples], **OPTIONS)
    assert [rate for batch in lengths for rate in batch] == [rate for rate in RATES for _ in range(2)]
    loader = ShardLoader(rates, channels="mix", sample_rate=12000, **OPTIONS)
    assert loader.sample_rate == 12000


def test_settings_may_be_numbers_of_numpy(rates: Path) -> None:
    expected = [batch.audio for batch in ShardLoader(rates, channels=0, sample_rate=16000, **OPTIONS)]
    for kind in (np.int16, np.int32, np.int64):
        loader = ShardLoader(rates, channels=kind(0), sample_rate=kind(16000), **OPTIONS)
        for batch, audio in zip(loader, expected, strict=True):
            assert batch.audio.equal(audio)
            assert type(batch.sample_rate) is int
    for wrong in ({"sample_rate": True}, {"channels": np.array([0, 1])}, {"channels": True}):
        with pytest.raises(ConfigError, match="must be a whole number"):
            ShardLoader(rates, **wrong, **OPTIONS)


def test_lengths_that_end_in_a_half(tmp_path: Path) -> None:
    data = packed(tmp_path, [write(tmp_path, f"utt{n}", make_audio(n * 80, rate=24000), 24000) for n in range(1, 20)])
    for batch in ShardLoader(data, sample_rate=22050, **OPTIONS):
        for key, length in zip(batch.keys, batch.lengths.tolist()):
            assert length == (int(key[3:]) * 80 * 22050 * 2 + 24000) // 48000
    pack(tmp_path / "data.list", tmp_path / "at", options=PackOptions(sample_rate=22050))
    assert Index.load(str(tmp_path / "at")).num_samples == 19


def test_what_is_too_short_for_a_rate(tmp_path: Path) -> None:
    lines = [write(tmp_path, name, make_audio(frames), 48000) for name, frames in (("short", 1), ("long", 99))]
    data = packed(tmp_path, lines)
    with pytest.raises(AudioError, match="'short'.*1 frames at 48000 Hz are none at 16000 Hz"):
        list(ShardLoader(data, sample_rate=16000, **OPTIONS))
    loader = ShardLoader(data, sample_rate=16000, on_error="skip", **OPTIONS)
    (batch,) = loader
    assert dict(zip(batch.keys, batch.weights.tolist())) == {"short": 0.0, "long": 1.0}
    assert [skipped.key for skipped in loader.skipped] == ["short"]


def test_a_file_in_memory_is_no_other(stereo: Path) -> None:
    """The decoders agree with soundfile on which channel is which."""
    audio = payloads(stereo)["different"]
    file = io.BytesIO((stereo.parent / "different.flac").read_bytes())
    assert np.array_equal(audio, soundfile.read(file, dtype="float32")[0])
