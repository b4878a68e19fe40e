"""JSON from outside, whoever wrote it: of the kind that is expected, or one ValueError that says what is not.

A kind is a type that msgspec knows, a `msgspec.Struct` above all. Nothing is converted: a number in quotes is none.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

__all__ = ["Count", "converted", "parsed"]

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
"""A whole number that others can be added to in 64 bits."""

_T = TypeVar("_T")


def parsed(data: bytes | str, kind: type[_T]) -> _T:
    """What a JSON document says. Raises ValueError: for what is not JSON, NaN and halves of surrogate pairs among it,
    for what is nested too deeply, and for what is not of its kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def converted(value: Any, kind: type[_T]) -> _T:
    """The same of what has been a JSON document before. Raises ValueError."""
    try:
        return msgspec.convert(value, kind)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
