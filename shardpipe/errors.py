"""One tree of errors. Each says what is wrong, where, what was found and what to do next.

Every class takes the finding first and keeps its facts as attributes, so that a program can act on them; `str()` is
the one line that a person reads. They survive pickling, since worker processes raise them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

__all__ = [
    "AudioError",
    "ConfigError",
    "CorruptIndex",
    "ListError",
    "ResumeMismatch",
    "ShardError",
    "ShardpipeError",
    "StoreError",
]


_LONGEST = 1000


class ShardpipeError(Exception):
    """Base of every error that shardpipe raises on purpose; `fix` is what to do next."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        line = f"{self.where}: {self.what}" if self.where else self.what
        return f"{line.rstrip('.')}. {self.fix}" if self.fix else line

    def __reduce__(self) -> tuple[Any, ...]:
        # Subclasses have keyword-only parameters, which the default reduction would lose.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[ShardpipeError], args: tuple[Any, ...], state: dict[str, Any]) -> ShardpipeError:
    error = cls.__new__(cls, *args)
    error.__dict__.update(state)
    return error


def _shown(value: object) -> str:
    """A value as it is written in Python, but for one that is too long or nested too deeply to be read."""
    try:
        text = repr(value)
    except RecursionError:
        text = reprlib.repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class ListError(ShardpipeError):
    """A list that cannot be read or is not a list; `line` counts from 1, None for the file as a whole; `key` is that of
    the line, if it has any.
    """

    def __init__(self, what: str, *, file: str, line: int | None = None, key: str = "", fix: str) -> None:
        super().__init__(what, where=file if line is None else f"{file}:{line}", fix=fix)
        self.file = file
        self.line = line
        self.key = key


class AudioError(ShardpipeError):
    """Audio that cannot be probed, decoded or encoded."""

    def __init__(self, what: str, *, key: str = "", codec: str = "", where: str = "", fix: str) -> None:
        parts = [where, f"sample {key!r}" if key else "", codec]
        super().__init__(what, where=", ".join(p for p in parts if p), fix=fix)
        self.key = key
        self.codec = codec


class ShardError(ShardpipeError):
    """A shard whose bytes are not what they should be; `offset` counts bytes from the start of the tar."""

    def __init__(self, what: str, *, shard: str, key: str = "", offset: int | None = None, fix: str) -> None:
        parts = [shard, f"sample {key!r}" if key else "", "" if offset is None else f"byte {offset}"]
        super().__init__(what, where=", ".join(p for p in parts if p), fix=fix)
        self.shard = shard
        self.key = key
        self.offset = offset


class CorruptIndex(ShardpipeError):
    """A manifest or index part that is missing, malformed or at odds with itself; `file` names it."""

    def __init__(self, what: str, *, file: str, fix: str) -> None:
        super().__init__(what, where=file, fix=fix)
        self.file = file


class StoreError(ShardpipeError):
    """Bytes that could not be read or written; `attempts` were made at `url`; one more may succeed if `transient`."""

    def __init__(self, what: str, *, url: str, attempts: int = 1, fix: str, transient: bool = False) -> None:
        super().__init__(what, where=url, fix=fix)
        self.url = url
        self.attempts = attempts
        self.transient = transient


class ResumeMismatch(ShardpipeError):
    """A saved state that does not belong to this run: `field` was `saved` then and is `current` now."""

    def __init__(self, field: str, saved: object, current: object, *, where: str = "", fix: str) -> None:
        super().__init__(f"{field} was {_shown(saved)} when saved and is {_shown(current)} now", where=where, fix=fix)
        self.field = field
        self.saved = saved
        self.current = current

    @classmethod
    def of_all(cls, found: Sequence[ResumeMismatch]) -> ResumeMismatch:
        """One error that says all of what was found; its facts are the first one's."""
        first = found[0]
        error = cls(first.field, first.saved, first.current, where=first.where, fix=first.fix)
        error.what = "; ".join(each.what for each in found)
        error.fix = " ".join(dict.fromkeys(each.fix for each in found))
        return error


class ConfigError(ShardpipeError):
    """A setting outside its rule: `name` had `value`."""

    def __init__(self, name: str, value: object, rule: str, *, fix: str = "") -> None:
        super().__init__(f"{name} is {_shown(value)}, but {rule}", fix=fix)
        self.name = name
        self.value = value
        self.rule = rule
