"""libopus by ctypes: where it is found, and the functions of it that decode. RFC 6716; opus_multistream.h.

A wheel in this Python's environment comes before the system's, for it is the same on every machine of a run: PyAV's,
which is kept up to date and fastest by measurement, then that of opuslib-next-bundled.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from ctypes import c_char_p, c_float, c_int, c_int32, c_void_p
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["SET_GAIN", "LibOpus", "libopus"]

SET_GAIN = 4034
"""OPUS_SET_GAIN, of opus_defines.h."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LibOpus:
    """The library's own functions, less the prefix that they share; `decode_float` lets go of the GIL."""

    version: str
    origin: str
    """Whose it is, for people."""
    create: Callable[[int, int, int, int, bytes, None], int | None]
    """(rate, channels, streams, coupled streams, mapping, None) -> decoder, None if that cannot be."""
    control: Callable[..., int]
    """(decoder, request, value) -> 0, or an error below it."""
    decode_float: Callable[[int, bytes, int, int, int, int], int]
    """(decoder, packet, its size, address of the samples, frames that fit there, 0) -> frames, or an error below 0."""
    destroy: Callable[[int], None]
    soft_clip: Callable[[int, int, int, Any], None]
    """(address of the samples, frames, channels, one float a channel to go on with) makes them fit [-1, 1]."""


@cache
def libopus() -> LibOpus | None:
    """The library, if there is any that can be loaded."""
    for origin, path in _places():
        try:
            return _loaded(origin, path)
        except (OSError, AttributeError):  # of another machine's kind, or not what its name says
            continue
    return None


def _places() -> Iterator[tuple[str, str]]:
    for package, folder, pattern in (
        ("av", "../av.libs", "libopus*"),
        ("av", ".dylibs", "libopus*"),
        ("opuslib_next", "_native", "libopus.*"),
    ):
        try:
            spec = find_spec(package)
        except ValueError:  # something stands in for it, and has none
            continue
        if spec is not None and spec.origin is not None:
            for path in sorted((Path(spec.origin).parent / folder).glob(pattern)):
                yield "PyAV's" if package == "av" else "opuslib-next-bundled's", str(path)
    # On Linux `find_library` would ask a compiler.
    if name := "libopus.so.0" if sys.platform == "linux" else find_library("opus"):
        yield "the system's", name


def _loaded(origin: str, path: str) -> LibOpus:
    # Those of PyDLL keep the GIL: to get it back may take longer than they do.
    free, kept = ctypes.CDLL(path), ctypes.PyDLL(path)

    def function(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
        found = library[name]  # each time a new one, so that nobody else's types are changed
        found.restype, found.argtypes = result, arguments
        return found

    version = function(kept, "opus_get_version_string", c_char_p)()
    return LibOpus(
        version=version.decode(errors="replace").removeprefix("libopus "),
        origin=origin,
        create=function(
            kept, "opus_multistream_decoder_create", c_void_p, c_int32, c_int, c_int, c_int, c_char_p, c_void_p
        ),
        # Variadic: ctypes passes on what comes after the arguments named here, as the platform has it.
        control=function(kept, "opus_multistream_decoder_ctl", c_int, c_void_p, c_int),
        decode_float=function(
            free, "opus_multistream_decode_float", c_int, c_void_p, c_char_p, c_int32, c_void_p, c_int, c_int
        ),
        destroy=function(kept, "opus_multistream_decoder_destroy", None, c_void_p),
        soft_clip=function(kept, "opus_pcm_soft_clip", None, c_void_p, c_int, c_int, ctypes.POINTER(c_float)),
    )
