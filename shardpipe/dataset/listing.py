"""shards.list: the shards of a dataset, for readers that know no manifest, WeNet's above all."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath

from shardpipe.errors import ConfigError, CorruptIndex, ShardpipeError, StoreError
from shardpipe.store import Store, is_url, shown_url, write_file

__all__ = ["SHARD_LIST", "check_list", "is_list_of", "list_place", "write_list"]

SHARD_LIST = "shards.list"

# Beyond, it is no list of these shards: a path has 4096 bytes at most, and some lines may be of others.
_LINE_BYTES = 4096
_OTHER_LINES = 1024


def list_place(out: str, *, relative: bool) -> str | None:
    """By which place the list is to name the shards of a dataset at a path or URL; None if it is to name them
    relative to that. Raises ConfigError for a place that no line can hold.
    """
    if relative:
        return None
    if not _fits_a_line(out):
        rule = "its path holds the end of a line, and shards.list is to name the shards by it"
        raise ConfigError("out", out, rule, fix="Choose another place, or pass --relative.")
    return out


def write_list(path: Path, names: Sequence[str], place: str | None) -> bool:
    """Writes a line for each shard: where it lies, given the path or URL of the dataset, so that the list can be read
    from any folder; its name in the manifest, if that is None.

    Writes nothing, and returns False, for shards of existing tars whose names no line can hold. Raises StoreError.
    """
    lines = _lines_for(names, place)
    if not all(map(_fits_a_line, lines)):
        return False
    write_file(path, "".join(f"{line}\n" for line in lines).encode())
    return True


def is_list_of(store: Store, names: Sequence[str]) -> bool:
    """Whether the list that lies there was written with a dataset of these shards, be it here or where it was copied
    from. Raises StoreError.
    """
    return [_last(line) for line in _read_lines(store, names)] == [_last(name) for name in names]


def check_list(store: Store, names: Sequence[str]) -> ShardpipeError | None:
    """What is wrong with the list of a dataset whose manifest names these shards: that of a copy may still name those
    of the dataset that it was copied from. None if each shard is in it once, in any order; if there is no list; or if
    it is of other shards altogether, which somebody keeps here.
    """
    try:
        found = _difference(_read_lines(store, names), names, store.url)
    except StoreError as error:
        return error
    fix = (
        "What reads the list, such as WeNet, would take other shards: put it right (the same `shardpipe pack` again "
        "does, or `shardpipe index --overwrite`), or remove it."
    )
    return CorruptIndex(found, file=f"{store.url}/{SHARD_LIST}", fix=fix) if found else None


def _read_lines(store: Store, names: Sequence[str]) -> list[str]:
    """The list's lines, as WeNet reads them; none if there is no list, or what lies there cannot be that of these."""
    try:
        size = store.stat(SHARD_LIST).size
    except StoreError as error:
        if error.transient:
            raise
        return []
    if size > _LINE_BYTES * (len(names) + _OTHER_LINES):
        return []
    lines = store.read(SHARD_LIST).decode(errors="surrogateescape").split("\n")
    return [stripped for line in lines if (stripped := line.strip())]


def _difference(lines: list[str], names: Sequence[str], folder: str) -> str | None:
    """Where the lines do not name each shard once."""
    # Relative lines begin at the folder, or at one above it, from which somebody works.
    above = [] if is_url(folder) else [str(parent) for parent in Path(os.path.realpath(folder)).parents]
    real = cache(_real)  # asked for once a folder, and not once a shard

    def canonical(place: str) -> str:
        """One name for all paths that lead to a file by different links to its folder."""
        place = place.removeprefix("file://")
        head, _, name = place.rpartition("/")
        return place if is_url(place) else f"{real(head)}/{name}"

    places = {canonical(place): place for place in _lines_for(names, folder)}

    def place_of(line: str) -> str | None:
        starts_anew = is_url(line) or line.startswith(("/", "file://"))
        ways = [line] if starts_anew else [f"{base}/{line}" for base in (folder, *above)]
        return next((place for place in map(canonical, ways) if place in places), None)

    meant = [place_of(line) for line in lines]
    if not any(meant) and {_last(line) for line in lines}.isdisjoint(map(_last, names)):
        return None
    listed = set[str]()
    for number, (line, place) in enumerate(zip(lines, meant), 1):
        if place is None:
            return f"line {number} names {_shown(line)}, which is no shard of the manifest's"
        if place in listed:
            return f"line {number} names {_shown(line)} again"
        listed.add(place)
    return next((f"it does not name {_shown(places[place])}" for place in places if place not in listed), None)


def _lines_for(names: Sequence[str], place: str | None) -> list[str]:
    if place is None:
        return list(names)
    if is_url(place):
        return [name if is_url(name) else f"{place}/{name}" for name in names]
    # The way that the user has named, for its links may be what other machines share; but not up from a link.
    real = os.path.realpath(place)
    folder = real if ".." in PurePath(place).parts else os.path.abspath(place)  # noqa: PTH100 (links stay)
    return [_joined(real if name.startswith("../") else folder, name) for name in names]


def _joined(folder: str, name: str) -> str:
    if is_url(name):
        return name
    while name.startswith("../"):
        folder, name = posixpath.dirname(folder), name[len("../") :]
    return posixpath.join(folder, name)


def _real(folder: str) -> str:
    try:
        return os.path.realpath(folder) if len(folder) <= _LINE_BYTES else folder
    except (OSError, ValueError, RecursionError):  # no path at all, or links without end
        return folder


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _fits_a_line(name: str) -> bool:
    return name == name.strip() and not {"\n", "\r"} & set(name)


def _shown(line: str) -> str:
    return f"{shown_url(line) if is_url(line) else line!r:.200}"
