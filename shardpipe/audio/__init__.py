"""Audio files and samples: probe, decode, encode, resample; channels and number formats.

In: the bytes of a file, or samples. Out: what the file holds, its samples, samples in another form, the bytes of a new
file; AudioError for whatever is damaged or cut. Arrays are [frames, channels] (C order), float32 in [-1, 1] or int16.
The decoder of each codec is the fastest that is right, by measurement, and releases the GIL: the table is in `codecs`.
"""

from shardpipe.audio.codecs import FLAC_LEVEL, decode, decode_into, decoders, detect, encode, fits_int16, probe
from shardpipe.audio.common import CHANNELS_MAX, FRAMES_PER_BYTE_MAX, SAMPLE_RATE_MAX, AudioInfo
from shardpipe.audio.digest import digests
from shardpipe.audio.samples import RESAMPLER, resample, resampled_frames, to_float32, to_int16, to_mono
from shardpipe.audio.segment import read_segment, span

__all__ = [
    "CHANNELS_MAX",
    "FLAC_LEVEL",
    "FRAMES_PER_BYTE_MAX",
    "RESAMPLER",
    "SAMPLE_RATE_MAX",
    "AudioInfo",
    "decode",
    "decode_into",
    "decoders",
    "detect",
    "digests",
    "encode",
    "fits_int16",
    "probe",
    "read_segment",
    "resample",
    "resampled_frames",
    "span",
    "to_float32",
    "to_int16",
    "to_mono",
]
