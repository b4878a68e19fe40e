"""What a tar says: its samples, from the names and payloads of its members. Serves indexing and verifying.

Members of one sample lie next to each other and share the name up to a dot: the first dot of the file name
(WebDataset), or the last (WeNet) where only that gives every sample one audio member. Where that leaves it open which
member is the audio, somebody has to say it: `Members`. docs/format.md has the rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import msgspec
from isal.isal_zlib import crc32

from shardpipe.audio import AudioInfo, decode, probe
from shardpipe.dataset.parts import Row
from shardpipe.dataset.shard import Member, ShardReader
from shardpipe.errors import AudioError, ShardError
from shardpipe.store import json_object

__all__ = ["AUDIO_EXTENSIONS", "TORN", "Found", "Members", "Scan", "extras_json", "inspect"]

AUDIO_EXTENSIONS = frozenset({"flac", "m4a", "mp3", "ogg", "opus", "wav", "wma"})
"""Those that WeNet takes for audio; what the bytes are is found by the decoder."""

TORN = "its members do not all lie next to each other"
_CHOICE = "Say which extension the audio has: `--audio EXT`."
_SAMPLE_FIX = "Mend the sample where it came from, or leave such samples out and have them listed: `--on-error skip`."


def extras_json(extras: dict[str, object]) -> str | None:
    """A sample's extra fields as KEY.json and the index hold them: compact, keys sorted; None without any."""
    return json.dumps(extras, ensure_ascii=False, sort_keys=True, separators=(",", ":")) if extras else None


def inspect(data: bytes) -> AudioInfo:
    """What an audio file holds, once all of it has been decoded. Raises AudioError."""
    info = probe(data)
    decode(data, info.codec, "int16")
    return info


class Members(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which members of a sample are what, where names alone do not say it."""

    audio: str | None = None
    """Extension of the audio, such as wav or clean.flac: others of a sample are ignored. None: there is one of
    AUDIO_EXTENSIONS.
    """
    text: str | None = None
    """Field of KEY.json that holds the text. None: it is in KEY.txt."""

    def is_audio(self, extension: str) -> bool:
        """Whether what follows a dot in a member's name, in lower case, tells audio."""
        if self.audio is not None:
            return extension == self.audio or extension.endswith(f".{self.audio}")
        return extension.rpartition(".")[2] in AUDIO_EXTENSIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class _Content:
    """A member that belongs to a sample: what was learnt from its payload, which is not kept."""

    stem: str
    """The name up to its first dot, folders included."""
    extension: str
    """What follows that dot, in lower case."""
    member: Member
    crc32: int = 0
    audio: AudioInfo | None = None
    text: str | None = None
    """Of a .txt, or of the field of a .json that holds it."""
    extras: str | None = None
    fault: str = ""


class Found(NamedTuple):
    """A sample: its row, and how many members of the tar speak in it."""

    row: Row
    members: int


class Scan:
    """One walk through a tar. Iterating gives its samples in order, a ShardError for one that cannot be used.

    Raises ShardError where the tar itself is damaged. `inspect` says what an audio payload is, or raises AudioError.
    `members` says which member is what. A `lenient` walk leaves nothing open, and cuts names as version 0.1 did.
    """

    def __init__(
        self,
        reader: ShardReader,
        shard: int,
        inspect: Callable[[bytes], AudioInfo],
        members: Members | None = None,
        *,
        lenient: bool = False,
    ) -> None:
        self.members = 0
        """Seen so far, whatever they are."""
        self.torn: set[str] = set()
        """Keys whose members do not all lie next to each other."""
        self.incomplete: set[str] = set()
        """Keys of which there is no audio."""
        self._seen: set[str] = set()
        self._reader = reader
        self._shard = shard
        self._inspect = inspect
        self._rule = members or Members()
        self._lenient = lenient

    def __iter__(self) -> Iterator[Found | ShardError]:
        for _, run in groupby(self._contents(), key=lambda content: content.stem):
            for key, contents, fault in self._split(list(run)):
                yield self._sample(key, contents, fault)

    def _split(self, run: list[_Content]) -> list[tuple[str, list[_Content], str]]:
        """The samples of neighbours whose names agree up to the first dot: (key, members, what is wrong with these)."""
        whole = [(run[0].stem, run, "")]
        pieces = [(key, list(contents)) for key, contents in groupby(run, key=_last_dot_key)]
        if not any("." in content.extension for content in run):
            return whole
        if self._lenient and self._rule.audio is None:
            return [(*piece, "") for piece in pieces] if self._have_one_audio(pieces) else whole
        gathered: dict[str, list[_Content]] = {}
        for content in run:
            gathered.setdefault(_last_dot_key(content), []).append(content)
        groups = list(gathered.items())
        if not self._have_one_audio(groups):
            return whole
        alike = len({self._tells_text(contents) for _, contents in groups}) == 1
        if not alike and sum(content.extension == self._rule.audio for content in run) == 1:
            return whole
        if not alike and self._rule.audio is None:
            return [(run[0].stem, run, "it is left open which is its audio, for some have a text and some have none")]
        return [(*group, TORN if len(pieces) > len(groups) else "") for group in groups]

    def _have_one_audio(self, groups: list[tuple[str, list[_Content]]]) -> bool:
        """Each of them."""
        return all(sum(map(self._is_audio, contents)) == 1 for _, contents in groups)

    def _is_audio(self, content: _Content) -> bool:
        return self._rule.is_audio(content.extension)

    def _tells_text(self, contents: list[_Content]) -> bool:
        kind = "txt" if self._rule.text is None else "json"
        return any(content.extension.rpartition(".")[2] == kind for content in contents)

    def _contents(self) -> Iterator[_Content]:
        for member in self._reader:
            self.members += 1
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            if member.regular and stem and extension:
                yield self._content(member, f"{folder}{slash}{stem}", extension.lower())

    def _content(self, member: Member, stem: str, extension: str) -> _Content:
        kind = extension.rpartition(".")[2]
        if self._rule.is_audio(extension):
            payload = self._reader.read(member)
            try:
                audio, fault = self._inspect(payload), ""
            except AudioError as error:
                audio, fault = None, str(error)
            crc = crc32(payload)
            return _Content(stem=stem, extension=extension, member=member, crc32=crc, audio=audio, fault=fault)
        text, extras, fault = None, None, ""
        if kind in ("txt", "json"):
            try:
                text = self._reader.read(member).decode().strip()
                if kind == "json":
                    fields = json_object(text)
                    extras, text = extras_json(fields), None
                    if self._rule.text is not None:
                        text = _text_in(fields, self._rule.text)
            except UnicodeError as error:
                fault = f"{member.name!r} is not UTF-8 ({error})"
            except ValueError as error:
                fault = f"{member.name!r} is not a JSON object ({error})"
            except LookupError as error:
                fault = f"{member.name!r} has no text in its field {self._rule.text!r} ({error})"
        return _Content(stem=stem, extension=extension, member=member, text=text, extras=extras, fault=fault)

    def _sample(self, key: str, contents: list[_Content], fault: str) -> Found | ShardError:
        by_extension = {content.member.name[len(key) + 1 :].lower(): content for content in contents}
        known = AUDIO_EXTENSIONS if self._rule.audio is None else {self._rule.audio}
        audios = [content for extension, content in by_extension.items() if extension in known]
        text, extras = by_extension.get("txt"), by_extension.get("json")
        if self._rule.text is not None:
            text = extras
        used = [content for content in dict.fromkeys((*audios, text, extras)) if content is not None]
        start, end = contents[0].member.offset, contents[-1].member.end
        names = ", ".join(content.member.name for content in contents)
        faults = [content.fault for content in used if content.fault]
        if len(by_extension) < len(contents):
            faults.append(f"two members of one name ({names})")
        if self._rule.text is not None and text is None:
            faults.append(f"it has no .json for its text ({names})")
        if key in self._seen:
            faults.append(f"{TORN} (again: {names})")
            self.torn.add(key)
            self.incomplete.discard(key)
        elif fault:
            faults.append(f"{fault} ({names})")
        elif len(audios) != 1:
            faults.append(f"{len(audios) or 'no'} audio members next to each other in {names}, but a sample has one")
            if not audios:
                self.incomplete.add(key)
        self._seen.add(key)
        if faults:
            fix = f"{_CHOICE} {_SAMPLE_FIX}" if len(audios) > 1 or fault not in ("", TORN) else _SAMPLE_FIX
            return ShardError(faults[0], shard=self._reader.name, key=key, offset=start, fix=fix)
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
            extras=extras.extras if extras else None,
        )
        return Found(row, len(used))


def _text_in(fields: dict[str, object], name: str) -> str:
    """Raises LookupError."""
    if not isinstance(text := fields.get(name), str):
        raise LookupError("it has none of that name" if name not in fields else f"found {type(text).__name__}")
    return text.strip()


def _last_dot_key(content: _Content) -> str:
    return content.member.name.rpartition(".")[0]
