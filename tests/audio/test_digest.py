"""Digests of what this machine decodes: of every codec, the same each time, and others for other samples."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from shardpipe.audio import detect, digests, probe
from shardpipe.audio import digest as module
from shardpipe.audio.codecs import CODECS
from shardpipe.errors import AudioError

CLIPS = {clip.name: clip.read_bytes() for clip in (files("shardpipe.audio") / "clips").iterdir()}


@pytest.fixture(autouse=True)
def _computed_anew() -> Iterator[None]:
    digests.cache_clear()
    yield
    digests.cache_clear()


def replace_decoder(monkeypatch: pytest.MonkeyPatch, codec: str, decode: Callable[[Any], Any]) -> None:
    monkeypatch.setitem(CODECS, codec, CODECS[codec]._replace(decode=decode))


def test_every_codec_and_resampling_have_one() -> None:
    found = digests()
    assert list(found) == [*CODECS, "resample"]
    assert all(len(digest) == 16 and int(digest, 16) for digest in found.values())
    assert len(set(found.values())) == len(found)
    assert digests() is found


def test_another_process_finds_the_same() -> None:
    code = "import json; from shardpipe.audio import digests; print(json.dumps(digests()))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(printed) == digests()


@pytest.mark.parametrize("codec", CODECS)
def test_the_last_bit_of_one_sample_shows(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, decoder = digests(), CODECS[codec].decode
    last = [data for name, data in sorted(CLIPS.items()) if name.endswith(f".{codec}")][-1]

    def changed(data: bytes) -> np.ndarray:
        samples = decoder(data).copy()
        if data == last:
            bits = samples.view(np.int32 if samples.dtype == np.float32 else np.int16)
            bits[-1, -1] ^= 1
        return samples

    replace_decoder(monkeypatch, codec, changed)
    digests.cache_clear()
    after = digests()
    # The clip that is resampled is a WAV.
    assert {name for name in before if before[name] != after[name]} == {codec, *(["resample"] * (codec == "wav"))}


@pytest.mark.parametrize("rates", module._RATES)
def test_what_one_pair_of_rates_gives_shows(rates: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    before, resample = digests(), module.resample

    def changed(samples: np.ndarray, *given: int) -> np.ndarray:
        out = resample(samples, *given)
        if given == rates:
            out.view(np.int32)[-1] ^= 1
        return out

    monkeypatch.setattr(module, "resample", changed)
    digests.cache_clear()
    after = digests()
    assert {name for name in before if before[name] != after[name]} == {"resample"}


@pytest.mark.parametrize(
    "error", [AudioError("no decoder", fix="Install it."), ImportError("no decoder"), OSError("no decoder")]
)
@pytest.mark.parametrize("codec", ["flac", "mp3", "ogg", "opus"])
def test_a_codec_that_cannot_be_decoded_is_left_out(
    codec: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(data: bytes) -> np.ndarray:
        raise error

    before = digests()
    replace_decoder(monkeypatch, codec, missing)
    digests.cache_clear()
    assert digests() == {name: digest for name, digest in before.items() if name != codec}


def test_the_clips_are_small_and_go_each_decoders_ways() -> None:
    assert sum(map(len, CLIPS.values())) < 60_000
    assert {detect(data) for data in CLIPS.values()} == set(CODECS)
    assert all(name.endswith(f".{detect(data)}") for name, data in CLIPS.items())
    for codec in set(CODECS) - {"wav"}:
        assert {probe(data).channels for data in CLIPS.values() if detect(data) == codec} == {1, 2}
