"""WeNet's data.list: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from shardpipe.errors import ListError
from shardpipe.lists.line import Entry, Line, Utterance, checked_span, lines, resolved
from shardpipe.store import shallow

__all__ = ["data_list"]

_EXAMPLE = 'Give one JSON object a line, such as {"key": "utt1", "wav": "utt1.flac", "txt": "hello"}.'


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant[:40]} is no JSON number")


def _finite(number: str) -> float:
    if not math.isfinite(value := float(number)):
        _refuse(number)
    return value


# What is kept in `extras` is written again: a number beyond a float's range would become Infinity, which is not JSON.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite)


def data_list(path: Path) -> Iterator[Entry]:
    """key, wav, txt, and start and end where they are segments, as WeNet's tools/make_raw_list.py writes them; channel
    where it is one of several.
    """
    folder = path.parent.absolute()
    for line in lines(path):
        try:
            yield _utterance(line, folder)
        except ListError as error:
            yield error


def _utterance(line: Line, folder: Path) -> Utterance:
    """Raises ListError."""
    text = line.text()
    try:
        fields = shallow(_DECODER.decode(text))
        # A half of a surrogate pair, written as an escape, is valid JSON and no text.
        if "\\ud" in text.lower():
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise line.error("an escape in it (\\ud800 to \\udfff) stands for no character", "Correct the text.") from None
    except (ValueError, RecursionError) as error:
        raise line.error(f"this is not JSON ({error})", _EXAMPLE) from None
    if not isinstance(fields, dict):
        raise line.error(f"this is JSON, but no object: {text[:40]!r}", _EXAMPLE)
    if isinstance(fields.get("key"), str):
        line = line._replace(key=fields["key"])
    key, wav, txt = (_string(line, fields, name) for name in ("key", "wav", "txt"))
    start, end = checked_span(line, fields.pop("start", None), fields.pop("end", None))
    channel = fields.pop("channel", None)
    if channel is not None and (not isinstance(channel, int) or isinstance(channel, bool) or channel < 0):
        fix = "It must be a number, 0 for the first; give a field of another meaning another name."
        raise line.error(f'the field "channel" is {json.dumps(channel)[:40]}', fix)
    if not wav or "\0" in wav:
        raise line.error(f'the field "wav" is {json.dumps(wav)[:40]}', "Name the audio file.")
    return Utterance(
        key=key,
        audio=resolved(folder, wav),
        text=txt,
        start=start,
        end=end,
        channel=channel,
        extras=fields,
        where=line.where,
    )


def _string(line: Line, fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        raise line.error(f'the field "{name}" is missing', "Each line needs key, wav and txt.")
    value = fields.pop(name)
    if not isinstance(value, str):
        raise line.error(f'the field "{name}" is {json.dumps(value)[:40]}', "It must be a string, in quotes.")
    return value
