"""Audio files and samples: probe, decode, encode, resample; channels and number formats.

Arrays are [frames, channels] (C order), float32 in [-1, 1] or int16. The decoder of each codec is the fastest that is
right, by measurement, and releases the GIL: see codecs.py for the table.
"""

from shardpipe.audio.codecs import decode, decode_into, detect, encode, probe
from shardpipe.audio.common import SAMPLE_RATE_MAX, AudioInfo
from shardpipe.audio.samples import resample, to_float32, to_int16, to_mono

__all__ = [
    "SAMPLE_RATE_MAX",
    "AudioInfo",
    "decode",
    "decode_into",
    "detect",
    "encode",
    "probe",
    "resample",
    "to_float32",
    "to_int16",
    "to_mono",
]
