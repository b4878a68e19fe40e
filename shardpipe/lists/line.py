"""What every list format shares: the lines of a file, what one line says, and where its audio lies."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from shardpipe.errors import ListError

__all__ = ["Entry", "Line", "Utterance", "checked_span", "lines", "resolved"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Utterance:
    """One line of a list."""

    key: str
    audio: str
    """Path of the audio file, absolute, or a URL. Whether it can be read is found when it is."""
    text: str
    start: float | None
    """Seconds into the file where the utterance begins; None for the file's beginning."""
    end: float | None
    """Seconds into the file where it ends; None for the file's end."""
    extras: dict[str, Any]
    """Further fields of the list, JSON values by name."""
    where: str
    """`file:line`, for messages."""
    channel: int | None = None
    """The one that is meant of several, from 0 on; None leaves them as they are."""


Entry: TypeAlias = Utterance | ListError
"""What a format gives for each line that matters."""


class Line(NamedTuple):
    """A line of a list's file; `number` counts from 1, `key` is that of its utterance once it is known."""

    file: Path
    number: int
    content: bytes
    key: str = ""

    def text(self) -> str:
        """Raises ListError."""
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            found = f"byte {error.start + 1} of the line is 0x{self.content[error.start]:02x}"
            raise self.error(
                f"this is not UTF-8 ({found})", "Convert the list to UTF-8, with iconv for instance."
            ) from None

    def error(self, what: str, fix: str) -> ListError:
        return ListError(what, file=str(self.file), line=self.number, key=self.key, fix=fix)

    @property
    def where(self) -> str:
        return f"{self.file}:{self.number}"


def lines(path: Path) -> Iterator[Line]:
    """The lines that hold anything, without their ends and without a byte order mark. Raises ListError."""
    try:
        with open(path, "rb") as file:
            for number, content in enumerate(file, 1):
                content = content.removeprefix(b"\xef\xbb\xbf") if number == 1 else content
                if content := content.strip():
                    yield Line(path, number, content)
    except FileNotFoundError:
        raise ListError("there is no such file", file=str(path), fix="Check the path of the list.") from None
    except OSError as error:
        raise ListError(f"the list cannot be read ({error.strerror})", file=str(path), fix="Check it.") from error


def resolved(folder: Path, path: str) -> str:
    """The absolute path that a list in `folder` means: beside the list, else, if there is such a file, from here."""
    if path.startswith("/") or "://" in path:
        return path
    beside, here = folder / path, Path(path).absolute()
    # Found out file by file, for one list may name files of both kinds; reading the file will cost far more.
    # Path.exists would raise for a path that is no path (too long, say); the reader of the file reports such.
    return str(here if not os.path.exists(beside) and os.path.exists(here) else beside)  # noqa: PTH110


def checked_span(line: Line, start: object, end: object) -> tuple[float | None, float | None]:
    """Start and end in seconds, as a list gives them; either may be None. Raises ListError."""
    begins, ends = _seconds(line, "start", start), _seconds(line, "end", end)
    if ends is not None and not (begins or 0) < ends:
        raise line.error(f"it ends at {ends:g} s and starts at {begins or 0:g} s", "The end must come after the start.")
    return begins, ends


def _seconds(line: Line, name: str, value: object) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds >= 0):
        raise line.error(f"the {name} is {json.dumps(value)[:40]}", "It must be a number of seconds, 0 or more.")
    return seconds
