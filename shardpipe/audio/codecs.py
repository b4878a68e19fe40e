"""The table of codecs, and files as a whole: what one is, its samples, and one made of samples."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib.metadata import version
from typing import Final, NamedTuple

import numpy as np
import soundfile

from shardpipe.audio.common import CONVERT, TORN, AudioInfo, Bytes, Samples
from shardpipe.audio.drlibs import decode_flac, decode_flac_into, decode_mp3, fits_int16_flac, probe_flac, probe_mp3
from shardpipe.audio.libopus import libopus
from shardpipe.audio.ogg import seal_ogg
from shardpipe.audio.opus import decode_opus, probe_opus
from shardpipe.audio.samples import resample, to_float32, to_int16, to_mono
from shardpipe.audio.sndfile import encode_sndfile
from shardpipe.audio.vorbis import decode_vorbis, probe_vorbis
from shardpipe.audio.wav import decode_wav, decode_wav_into, encode_wav, fits_int16_wav, probe_wav
from shardpipe.errors import AudioError

__all__ = ["CODECS", "FLAC_LEVEL", "decode", "decode_into", "decoders", "detect", "encode", "fits_int16", "probe"]


class _Codec(NamedTuple):
    probe: Callable[[Bytes], AudioInfo]
    decode: Callable[[Bytes], Samples]
    """int16 for up to 16 bits, float32 in [-1, 1] for more."""
    encode: Callable[[Samples, int, int], bytes] | None = None
    """Of samples, sample rate and FLAC's level."""
    decode_into: Callable[[Bytes, Samples], bool] | None = None
    """A mono file's samples straight into an array, without one between; False for what it leaves to `decode`."""
    fits_int16: Callable[[Bytes], bool] | None = None
    """Whether int16 loses nothing of what `decode` gives, by the header; None where it always does."""


FLAC_LEVEL: Final = 2
"""The strongest of those that decode fastest (benchmarks/bench_flac.py): speech comes 15 to 18 % faster than at 5,
the usual one, and takes 1 to 8 % more room, depending on how it was recorded.
"""


def _encode_wav(audio: Samples, sample_rate: int, _: int) -> bytes:
    return encode_wav(audio, sample_rate)


def _encode_flac(audio: Samples, sample_rate: int, level: int) -> bytes:
    return encode_sndfile(audio, sample_rate, "flac", "FLAC", "PCM_16", compression=level / 8)


def _encode_opus(audio: Samples, sample_rate: int, _: int) -> bytes:
    return seal_ogg(encode_sndfile(audio, sample_rate, "opus", "OGG", "OPUS"), serial=zlib.crc32(audio.data))


CODECS: Final[dict[str, _Codec]] = {
    "wav": _Codec(probe_wav, decode_wav, _encode_wav, decode_wav_into, fits_int16_wav),
    "flac": _Codec(probe_flac, decode_flac, _encode_flac, decode_flac_into, fits_int16_flac),
    "mp3": _Codec(probe_mp3, decode_mp3, fits_int16=lambda _: True),  # dr_mp3 rounds to 16 bits itself
    "ogg": _Codec(probe_vorbis, decode_vorbis),
    "opus": _Codec(probe_opus, decode_opus, _encode_opus),
}


def decoders() -> dict[str, str]:
    """What decodes each codec on this machine, with its version, for people."""
    drlibs = f"by miniaudio {version('miniaudio')}"
    sndfile = f"libsndfile {soundfile.__libsndfile_version__}"
    library = libopus()
    return {
        "wav": f"numpy {np.__version__}; {sndfile} for what is no PCM",
        "flac": f"dr_flac, {drlibs}",
        "mp3": f"dr_mp3, {drlibs}",
        "ogg": f"stb_vorbis, {drlibs}",
        "opus": sndfile if library is None else f"libopus {library.version}, {library.origin}",
    }


def detect(data: Bytes) -> str:
    """The codec by the file's first bytes, one of CODECS: a file's name may lie."""
    head = bytes(data[:64])
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"fLaC":
        return "flac"
    if head[:4] == b"OggS" and head[28:36] == b"OpusHead":
        return "opus"
    if head[:4] == b"OggS" and head[28:35] == b"\x01vorbis":
        return "ogg"
    if head[:3] == b"ID3" and len(head) >= 10:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        return "flac" if data[10 + size : 14 + size] == b"fLaC" else "mp3"
    if len(head) > 3 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2 and head[2] >> 4 not in (0, 15):
        return "mp3"
    if not head:
        raise AudioError("the file is empty", fix=TORN)
    raise AudioError(
        f"these are no WAV, FLAC, MP3, Ogg Vorbis or Opus bytes (they begin {head[:12]!r})",
        fix=CONVERT,
    )


def probe(data: Bytes) -> AudioInfo:
    """What a file holds: `frames` is exactly what `decode` delivers. Raises AudioError.

    Reads headers only, but for MP3, which is decoded, and FLAC of unknown length, which is counted; so a file may be
    probed and still be damaged further on.
    """
    return CODECS[detect(data)].probe(data)


def fits_int16(data: Bytes, codec: str) -> bool:
    """Whether the float32 samples that `decode` gives are its int16 samples divided by 32768, exactly.

    Told by the header alone: a file for which this is True may still be damaged further on. False where the header is
    damaged, or not of `codec`; never raises. It says nothing of the mean of several channels, which int16 rounds.
    """
    try:
        fits = _of(data, codec).fits_int16
        return fits is not None and fits(data)
    except AudioError:
        return False


def decode(data: Bytes, codec: str, dtype: str = "float32") -> Samples:
    """The samples of a file: a new array [frames, channels], float32 in [-1, 1] or int16.

    What a codec's floating point output has outside [-1, 1] is clipped. int16 is `to_int16` of the float32 samples.
    Releases the GIL for most of its time. Raises AudioError if the data is not `codec`, cut, damaged or empty.
    """
    if dtype not in ("float32", "int16"):
        raise ValueError(f"dtype is {dtype!r}, but must be float32 or int16")
    samples = _of(data, codec).decode(data)
    if dtype == "float32":
        return to_float32(samples)
    samples = to_int16(samples)
    # What numpy reads straight from the file's bytes cannot be written to.
    return samples if samples.flags.writeable else samples.copy()


def decode_into(
    data: Bytes, codec: str, out: Samples, *, channel: int | None = None, rates: tuple[int, int] = (1, 1)
) -> None:
    """Puts the samples of a file into `out`, float32 or int16, contiguous: [channels, frames]; or [frames] of one
    `channel`, counted from 0, the mean of all if that is None. `rates` are the file's and that of `out`.

    Raises AudioError as `decode`, `to_mono` and `resample` do, and if there are more or fewer than `out` holds.
    """
    entry = _of(data, codec)
    resampled, mono = rates[0] != rates[1], out.ndim == 1
    if mono and not channel and not resampled and entry.decode_into and entry.decode_into(data, out):
        return
    samples = decode(data, codec, "float32" if resampled else out.dtype.name)
    if mono:
        samples = to_mono(samples, channel)
    if resampled:
        samples = np.clip(resample(samples, *rates), -1, 1)
        samples = samples if out.dtype == np.float32 else to_int16(samples)
    if samples.T.shape != out.shape:
        found, wanted = ("x".join(map(str, shape)) for shape in (samples.T.shape, out.shape))
        raise AudioError(
            f"{found} frames decoded, {wanted} expected",
            codec=codec,
            fix="The decoder of this machine disagrees with the one that packed: pack again here, or align versions.",
        )
    out[...] = samples.T


def _of(data: Bytes, codec: str) -> _Codec:
    if (found := detect(data)) != codec:
        raise AudioError(f"the bytes are {found}, not {codec}", codec=codec, fix="Index the dataset again.")
    return CODECS[codec]


def encode(audio: Samples, sample_rate: int, codec: str, *, flac_level: int = FLAC_LEVEL) -> bytes:
    """[frames] or [frames, channels], float in [-1, 1] or int16, as a WAV or FLAC (both 16 bits) or Opus file.

    `flac_level` goes from 0 to 8. Equal input gives equal bytes. Raises AudioError if it is empty or the codec cannot
    hold it: Opus takes 8, 12, 16, 24 and 48 kHz only, FLAC above 65535 Hz only multiples of 10.
    """
    write = CODECS[codec].encode
    if write is None:
        raise ValueError(f"{codec} is for reading only")
    if not len(audio):
        raise AudioError("there are no samples to write", codec=codec, fix="Leave it out of the list.")
    if codec == "opus" and sample_rate not in (8000, 12000, 16000, 24000, 48000):
        raise AudioError(
            f"Opus cannot hold audio at {sample_rate} Hz",
            codec=codec,
            fix="Resample it to 16000 or 48000 Hz (`--sample-rate 16000`), or choose FLAC.",
        )
    return write(np.ascontiguousarray(to_int16(audio.reshape(len(audio), -1))), sample_rate, flac_level)
