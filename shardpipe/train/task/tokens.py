"""Characters as CTC units, built from the data's texts or read from WeNet's units.txt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from shardpipe.errors import ConfigError, StoreError
from shardpipe.store import write_file

__all__ = ["BLANK", "SPACE", "UNKNOWN", "CharTokenizer"]

BLANK, UNKNOWN, SPACE = "<blank>", "<unk>", "\u2581"
_SHOWN_UNKNOWN = "\ufffd"


class CharTokenizer:
    """Unit i is `units[i]`: the blank first, `<unk>` for characters it does not have, `\u2581` for a space.

    Runs of white space count as one space, and those at the ends of a text as none. Nothing else is changed: case and
    Unicode form are those of the data.
    """

    def __init__(self, units: Sequence[str]) -> None:
        self.units = tuple(units)
        self._ids = {unit: i for i, unit in enumerate(self.units)}
        if len(self._ids) < len(self.units) or self.units[:1] != (BLANK,) or UNKNOWN not in self._ids:
            raise ValueError(f"units must be distinct, begin with {BLANK} and hold {UNKNOWN}")

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> CharTokenizer:
        """Every character of the texts, by code point: the same texts in any order give the same units."""
        seen: set[str] = set()
        for text in texts:
            seen.update(_normal(text))
        return cls([BLANK, UNKNOWN, *sorted(seen)])

    @classmethod
    def saved(cls, units: Sequence[str], where: str) -> CharTokenizer:
        """Those that a checkpoint holds. Raises StoreError, about the checkpoint, where they are none."""
        try:
            return cls(units)
        except ValueError as error:
            raise StoreError(f"is damaged: {error}", url=where, fix="Choose another checkpoint.") from error

    @classmethod
    def from_file(cls, path: str | Path) -> CharTokenizer:
        """Reads `units.txt` as WeNet writes it: a unit and its id on each line, ids 0, 1, 2, ... Raises ConfigError."""
        fix = "It must hold lines of a character and its id, from `<blank> 0` and `<unk> 1` on."
        try:
            lines = Path(path).read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("units", str(path), f"it cannot be read ({error})", fix=fix) from error
        units: list[str] = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            fields = line.split()
            if len(fields) != 2 or fields[1] != str(len(units)):
                rule = f"line {number} is {line!r}, not a unit and {len(units)}"
                raise ConfigError("units", str(path), rule, fix=fix)
            if len(fields[0]) != 1 and not (fields[0].startswith("<") and fields[0].endswith(">")):
                raise ConfigError("units", str(path), f"line {number} holds {fields[0]!r}, not one character", fix=fix)
            units.append(fields[0])
        try:
            return cls(units)
        except ValueError as error:
            raise ConfigError("units", str(path), str(error), fix=fix) from None

    def save(self, path: Path) -> None:
        """Writes `units.txt` in one step."""
        write_file(path, "".join(f"{unit} {i}\n" for i, unit in enumerate(self.units)).encode())

    def encode(self, text: str) -> list[int]:
        """Ids of the text's characters; those it does not have become `unknown`."""
        unknown = self.unknown
        return [self._ids.get(char, unknown) for char in _normal(text)]

    def missing(self, text: str) -> list[str]:
        """The text's characters that it does not have."""
        return [char for char in _normal(text) if char not in self._ids]

    @property
    def unknown(self) -> int:
        """The id of `<unk>`."""
        return self._ids[UNKNOWN]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of unit ids: an unknown one shows as U+FFFD, the blank and other `<...>` units not at all."""
        chars = []
        for unit in (self.units[i] for i in ids):
            if unit == UNKNOWN:
                chars.append(_SHOWN_UNKNOWN)
            elif len(unit) == 1:
                chars.append(" " if unit == SPACE else unit)
        return "".join(chars)

    def collapse(self, path: Sequence[int]) -> str:
        """The text of a CTC path of one unit a frame: repeats merged, then blanks dropped."""
        return self.decode(unit for i, unit in enumerate(path) if i == 0 or unit != path[i - 1])


def _normal(text: str) -> str:
    return SPACE.join(text.split())
