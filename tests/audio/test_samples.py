"""Number formats, channels and rates."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from shardpipe.audio import (
    resample,
    resampled_frames,
    to_float32,
    to_int16,
    to_mono,
)
from shardpipe.errors import AudioError
from tests.speech import make_audio


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_to_int16_clips(dtype: type[np.floating]) -> None:
    audio = np.array([1, -1, 1.5, -1.5, 0, 0.5, -0.5], dtype)
    assert to_int16(audio).tolist() == [32767, -32768, 32767, -32768, 0, 16384, -16384]


def test_float_to_int16_rounds_half_to_even() -> None:
    assert to_int16(np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2.49]) / 32768).tolist() == [0, 2, 2, 0, -2, -2, 2]


def test_every_int16_survives_float32() -> None:
    every = np.arange(-32768, 32768).astype(np.int16)
    assert np.array_equal(to_int16(to_float32(every)), every)


def test_to_int16_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(AudioError, match="NaN"):
        to_int16(np.array([0, np.nan], np.float32))
    with pytest.raises(ValueError, match="int32"):
        to_int16(np.zeros(3, np.int32))


def test_mono_mixes_or_picks() -> None:
    floats = np.array([[0.5, -0.25], [1, 0.5]], np.float32)
    assert to_mono(floats).tolist() == [0.125, 0.75]
    integers = np.array([[1, 2], [32767, 32767], [-3, -4]], np.int16)
    assert to_mono(integers).tolist() == [2, 32767, -4]
    assert to_mono(integers).dtype == np.int16
    assert to_mono(integers, channel=1).tolist() == [2, 32767, -4]
    assert to_mono(integers, channel=0).tolist() == [1, 32767, -3]
    with pytest.raises(AudioError, match="no channel 2"):
        to_mono(integers, channel=2)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rates", [(8000, 16000), (16000, 8000), (44100, 16000), (48000, 16000), (16000, 15999)])
def test_resampling_keeps_length_and_sound(rates: tuple[int, int], channels: int) -> None:
    before, after = rates
    for frames in (2, 7, 100, before - 1, before, before + 1):
        audio = make_audio(frames, rate=before, channels=channels)
        out = resample(audio, before, after)
        assert out.shape == (resampled_frames(frames, before, after), channels)
        assert len(out) == math.floor(Fraction(frames * after, before) + Fraction(1, 2)), "rounded half up"
        assert out.dtype == np.float32
        assert out.flags.c_contiguous
        for channel in range(channels):
            assert np.array_equal(out[:, channel], resample(audio[:, channel], before, after))
    tone = np.sin(2 * np.pi * 440 * np.arange(before) / before)
    wanted = np.sin(2 * np.pi * 440 * np.arange(after) / after)
    assert np.abs(resample(tone, before, after) - wanted)[100:-100].max() < 0.001


@pytest.mark.parametrize(
    ("rates", "frames"),
    [((24000, 44100), 4120), ((96000, 44100), 22880), ((24000, 22050), 80), ((48000, 44100), 80), ((12000, 11025), 40)],
)
def test_lengths_that_end_in_a_half_are_rounded_up(rates: tuple[int, int], frames: int) -> None:
    """libsoxr counts in floating point, and gives one less for many of them."""
    before, after = rates
    for odd in range(1, 20, 2):
        audio = make_audio(odd * frames, rate=before)
        out = resample(audio, before, after)
        assert len(out) == math.floor(Fraction(len(audio) * after, before) + Fraction(1, 2))
        # What is added at the end changes nothing before.
        shorter = resample(audio[:-1], before, after)
        assert np.abs(out[: len(shorter) // 2] - shorter[: len(shorter) // 2]).max() < 1e-5 or odd == 1


def test_resampling_is_repeatable() -> None:
    audio = to_int16(make_audio(30000, rate=44100))
    assert np.array_equal(resample(audio, 44100, 16000), resample(audio, 44100, 16000))
    assert np.array_equal(resample(audio, 16000, 16000), to_float32(audio))
    assert np.array_equal(resample(audio, 44100, 16000), resample(to_float32(audio), 44100, 16000))


def test_what_cannot_be_resampled() -> None:
    with pytest.raises(AudioError, match="its 1 frames at 48000 Hz are none at 16000 Hz"):
        resample(make_audio(1), 48000, 16000)
    for before, after in ((1, 1_000_000), (1, 513)):
        with pytest.raises(AudioError, match="more than 512 times the other"):
            resample(make_audio(1000), before, after)
    for before, after in ((1, 512), (16000, 96001), (999_983, 999_979), (44100, 16001), (512, 1)):
        assert len(resample(make_audio(1000), before, after)) == resampled_frames(1000, before, after)
