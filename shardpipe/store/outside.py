"""JSON from outside, whoever wrote it: of the kind that is expected, or one ValueError that says what is not.

A kind is a type that msgspec knows, a `msgspec.Struct` above all. Nothing is converted: a number in quotes is none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

__all__ = ["Count", "converted", "json_object", "parsed", "shallow"]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""A whole number that others can be added to in 64 bits."""

_DEEPEST = 64
"""Levels. Whoever writes what he has read needs some stack for each, and may have less left than who read it."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_T = TypeVar("_T")


def parsed(data: bytes | str, kind: type[_T]) -> _T:
    """What a JSON document says. Raises ValueError: for what is not JSON, NaN and halves of surrogate pairs among it,
    for what is nested too deeply, and for what is not of its kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except msgspec.DecodeError as error:
        text = data if isinstance(data, str) else data.decode("latin-1")
        if isinstance(error, msgspec.ValidationError) or not _SURROGATE.search(text):
            raise
        raise ValueError(f"{error}; halves of surrogate pairs, as \\ud800, are no characters") from error


def json_object(data: bytes | str) -> dict[str, Any]:
    """A JSON object of any fields. Raises ValueError."""
    return shallow(parsed(data, dict[str, Any]))


def shallow(value: _T) -> _T:
    """The value. Raises ValueError if lists and dicts in it are nested more than 64 deep."""
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [inner for one in level for inner in _within(one)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _within(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def converted(value: Any, kind: type[_T]) -> _T:
    """The same of what has been a JSON document before. Raises ValueError."""
    try:
        return msgspec.convert(value, kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
