"""What a tar says: its samples, from the names and payloads of its members. Serves indexing and verifying.

Members of one sample lie next to each other and share the name up to a dot: the first dot of the file name
(WebDataset), or the last (WeNet) where only that gives every sample one audio member. docs/format.md has the rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from isal.isal_zlib import crc32

from shardpipe.audio import AudioInfo, decode, probe
from shardpipe.dataset.parts import Row
from shardpipe.dataset.shard import Member, ShardReader
from shardpipe.errors import AudioError, ShardError
from shardpipe.store import json_object

__all__ = ["AUDIO_EXTENSIONS", "Found", "Scan", "extras_json", "inspect"]

AUDIO_EXTENSIONS = frozenset({"flac", "m4a", "mp3", "ogg", "opus", "wav", "wma"})
"""Those that WeNet takes for audio; what the bytes are is found by the decoder."""

_SAMPLE_FIX = "Mend the sample where it came from, or leave such samples out and have them listed: `--on-error skip`."


def extras_json(extras: dict[str, object]) -> str | None:
    """A sample's extra fields as KEY.json and the index hold them: compact, keys sorted; None without any."""
    return json.dumps(extras, ensure_ascii=False, sort_keys=True, separators=(",", ":")) if extras else None


def inspect(data: bytes) -> AudioInfo:
    """What an audio file holds, once all of it has been decoded. Raises AudioError."""
    info = probe(data)
    decode(data, info.codec, "int16")
    return info


@dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    """A member that belongs to a sample: what was learnt from its payload, which is not kept."""

    stem: str
    """The name up to its first dot, folders included."""
    extension: str
    member: Member
    crc32: int = 0
    audio: AudioInfo | None = None
    text: str | None = None
    fault: str = ""


class Found(NamedTuple):
    """A sample: its row, and how many members of the tar speak in it."""

    row: Row
    members: int


class Scan:
    """One walk through a tar. Iterating gives its samples in order, a ShardError for one that cannot be used.

    Raises ShardError where the tar itself is damaged. `inspect` says what an audio payload is, or raises AudioError.
    """

    def __init__(self, reader: ShardReader, shard: int, inspect: Callable[[bytes], AudioInfo]) -> None:
        self.members = 0
        """Seen so far, whatever they are."""
        self._seen: set[str] = set()
        self._reader = reader
        self._shard = shard
        self._inspect = inspect

    def __iter__(self) -> Iterator[Found | ShardError]:
        for _, run in groupby(self._contents(), key=lambda content: content.stem):
            for key, contents in _split(list(run)):
                yield self._sample(key, contents)

    def _contents(self) -> Iterator[_Content]:
        for member in self._reader:
            self.members += 1
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if member.regular and stem and extension:
                yield self._content(member, f"{folder}{slash}{stem}", extension.lower())

    def _content(self, member: Member, stem: str, extension: str) -> _Content:
        kind = extension.rpartition(".")[2]
        if kind in AUDIO_EXTENSIONS:
            payload = self._reader.read(member)
            try:
                audio, fault = self._inspect(payload), ""
            except AudioError as error:
                audio, fault = None, str(error)
            crc = crc32(payload)
            return _Content(stem=stem, extension=extension, member=member, crc32=crc, audio=audio, fault=fault)
        text, fault = None, ""
        if kind in ("txt", "json"):
            try:
                text = self._reader.read(member).decode().strip()
                if kind == "json":
                    text = extras_json(json_object(text))
            except UnicodeError as error:
                fault = f"{member.name!r} is not UTF-8 ({error})"
            except ValueError as error:
                fault = f"{member.name!r} is not a JSON object ({error})"
        return _Content(stem=stem, extension=extension, member=member, text=text, fault=fault)

    def _sample(self, key: str, contents: list[_Content]) -> Found | ShardError:
        by_extension = {content.member.name[len(key) + 1 :].lower(): content for content in contents}
        audios = [content for extension, content in by_extension.items() if extension in AUDIO_EXTENSIONS]
        text, extras = by_extension.get("txt"), by_extension.get("json")
        used = [content for content in (*audios, text, extras) if content is not None]
        start, end = contents[0].member.offset, contents[-1].member.end
        names = ", ".join(content.member.name for content in contents)
        faults = [content.fault for content in used if content.fault]
        if len(by_extension) < len(contents):
            faults.append(f"two members of one name ({names})")
        if len(audios) != 1:
            faults.append(f"{len(audios) or 'no'} audio members next to each other in {names}, but a sample has one")
        if key in self._seen:
            faults.append(f"its members do not all lie next to each other (again: {names})")
        self._seen.add(key)
        if faults:
            return ShardError(faults[0], shard=self._reader.name, key=key, offset=start, fix=_SAMPLE_FIX)
        (audio,) = audios
        assert audio.audio is not None
        row = Row(
            key=key,
            shard=self._shard,
            offset=start,
            size=end - start,
            audio_offset=audio.member.data_offset,
            audio_size=audio.member.size,
            crc32=audio.crc32,
            codec=audio.audio.codec,
            frames=audio.audio.frames,
            sample_rate=audio.audio.sample_rate,
            channels=audio.audio.channels,
            text=(text.text if text else "") or "",
            extras=extras.text if extras else None,
        )
        return Found(row, len(used))


def _split(run: list[_Content]) -> list[tuple[str, list[_Content]]]:
    """The samples of neighbours whose names agree up to the first dot: (key, members)."""
    if any("." in content.extension for content in run):
        by_last = [(key, list(contents)) for key, contents in groupby(run, key=_last_dot_key)]
        if all(sum(_is_audio(content) for content in contents) == 1 for _, contents in by_last):
            return by_last
    return [(run[0].stem, run)]


def _last_dot_key(content: _Content) -> str:
    return content.member.name.rpartition(".")[0]


def _is_audio(content: _Content) -> bool:
    return content.extension.rpartition(".")[2] in AUDIO_EXTENSIONS
