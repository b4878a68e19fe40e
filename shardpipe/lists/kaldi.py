"""Kaldi's data directory: wav.scp and text, and, if there, segments and utt2spk."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from shardpipe.errors import ListError
from shardpipe.lists.line import Entry, Line, Utterance, checked_span, lines, resolved

__all__ = ["kaldi_directory"]

_Table: TypeAlias = dict[str, tuple[Line, str]]
_MEND = "Complete the directory, or leave such utterances out: Kaldi's utils/fix_data_dir.sh does that."


def kaldi_directory(folder: Path) -> Iterator[Entry]:
    """https://kaldi-asr.org/doc/data_prep.html; the order is that of segments, of wav.scp where there are none."""
    for name in ("wav.scp", "text"):
        if not (folder / name).exists():
            fix = "A Kaldi directory needs wav.scp and text; of another list, name the file itself."
            raise ListError(f"this directory has no {name}", file=str(folder), fix=fix)
    faults: list[ListError] = []
    recordings, texts = (_table(folder / name, faults) for name in ("wav.scp", "text"))
    segments, speakers = (
        _table(folder / name, faults) if (folder / name).exists() else None for name in ("segments", "utt2spk")
    )
    yield from faults
    utterances = recordings if segments is None else segments
    base = folder.absolute()
    for key, (line, value) in utterances.items():
        try:
            recording, start, end = (key, None, None) if segments is None else _segment(line, value)
            if recording not in recordings:
                raise line.error(f"there is no recording {recording!r} in wav.scp", _MEND)
            audio = resolved(base, _audio_path(*recordings[recording]))
            extras = {} if speakers is None else {"speaker": _value(line, key, speakers, "utt2spk")}
            text = _value(line, key, texts, "text")
            yield Utterance(key=key, audio=audio, text=text, start=start, end=end, extras=extras, where=line.where)
        except ListError as error:
            error.key = key  # whichever file's line is at fault
            yield error
    for key, (line, _) in texts.items():
        if key not in utterances:
            yield line.error(f"{key!r} has a text and no audio", _MEND)


def _table(path: Path, faults: list[ListError]) -> _Table:
    """What stands behind the first word of each line, with the line; lines at fault are noted instead."""
    table: _Table = {}
    for line in lines(path):
        try:
            text = line.text()
            # Only ASCII spaces part the fields: those of other scripts belong to the text.
            key = line.content.split(None, 1)[0].decode()
            line = line._replace(key=key)
            if key in table:
                raise line.error(f"{key!r} is already on line {table[key][0].number}", "Rename or remove one of them.")
            table[key] = (line, text[len(key) :].lstrip(" \t\v\f"))
        except ListError as error:
            faults.append(error)
    return table


def _value(line: Line, key: str, table: _Table, name: str) -> str:
    if key not in table:
        raise line.error(f"{key!r} is not in {name}", _MEND)
    return table[key][1]


def _segment(line: Line, value: str) -> tuple[str, float | None, float | None]:
    """Recording, start and end; Kaldi writes an end of -1 for the recording's end."""
    fields = value.split()
    if len(fields) != 3:
        raise line.error(
            f"a segment has {len(fields) + 1} fields", "Give four: utterance, recording, start and end in seconds."
        )
    end = _number(fields[2])
    return (fields[0], *checked_span(line, _number(fields[1]), None if end == -1 else end))


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _audio_path(line: Line, value: str) -> str:
    if value.endswith("|"):
        raise line.error(
            f"the audio is the output of a command: {value[:60]!r}",
            "Commands of a list are never run: write the output to a file (`COMMAND > x.wav`), and name that here.",
        )
    if not value or "\0" in value or re.search(r"\.ark:\d+$", value):
        raise line.error(f"the audio is {value!r}", "Name an audio file: Kaldi's archives are not read.")
    return value
