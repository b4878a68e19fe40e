"""What users set: numbers and sizes, or one ConfigError that says what they must be; and sizes as they read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from operator import index
from typing import Any, TypeVar

from shardpipe.errors import ConfigError

__all__ = ["byte_size", "check", "integer", "number", "optional", "size_text"]

_INTEGER_MAX = 2**63
_Value = TypeVar("_Value")

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def check(name: str, value: object, holds: bool, rule: str) -> None:
    """Raises ConfigError for a setting unless its rule holds."""
    if not holds:
        raise ConfigError(name, value, rule)


def integer(name: str, value: Any, *, least: int | None = None) -> int:
    """The int that a setting is, numpy's among them, which JSON would not take. Raises ConfigError for 2.5 and "2",
    and for more than 64 bits hold, which what counts by it would refuse in its own words.
    """
    try:
        found = index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise ConfigError(name, value, "it must be a whole number")
    check(name, value, least is None or found >= least, f"it must be at least {least}")
    check(name, value, found < _INTEGER_MAX, "it must be below 2**63")
    return found


def number(name: str, value: Any) -> float:
    """The float that a setting is. Raises ConfigError for what is no number, as "2.5" is none."""
    try:
        if not isinstance(value, str | bytes | bytearray):
            return float(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(name, value, "it must be a number")


def optional(kind: Callable[..., _Value], name: str, value: Any, **rules: Any) -> _Value | None:
    """A setting as `integer` or `number` has it, or None where it was not given."""
    return None if value is None else kind(name, value, **rules)


def byte_size(name: str, text: str) -> int:
    """Bytes of a setting like `512MiB`, `1.5GB` or `4096`. Raises ConfigError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text.strip())
    size = int(Fraction(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    check(name, text, size >= 1, "it must be a number of bytes with an optional unit, such as 512MiB or 2GB")
    return size


def size_text(size: float) -> str:
    """`1.5 GiB` for 1610612736."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
