"""shards.list: the shards of a dataset, for readers that know no manifest, WeNet's above all."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from shardpipe.errors import CorruptIndex, ShardpipeError, StoreError
from shardpipe.store import Store, is_url

__all__ = ["SHARD_LIST", "check_list", "is_list_of", "shard_lines"]

SHARD_LIST = "shards.list"


def shard_lines(names: Sequence[str], place: str | None) -> list[str]:
    """A line for each shard: where it lies, given the path or URL of the dataset, so that the list can be read from any
    folder; its name in the manifest, if that is None.
    """
    return list(names) if place is None else [_lies_at(place, name) for name in names]


def is_list_of(store: Store, names: Sequence[str]) -> bool:
    """Whether the list is what has been written with a dataset whose manifest names these shards. Raises StoreError."""
    lines = store.read(SHARD_LIST).decode(errors="replace").splitlines()
    return lines in (list(names), shard_lines(names, store.url))


def check_list(store: Store, names: Sequence[str]) -> ShardpipeError | None:
    """What is wrong with the list of a dataset whose manifest names these shards: that of a copy may still name those
    of the dataset that it was copied from. None if each shard is in it once, in any order; if there is no list; or if
    it is of other shards altogether, which somebody keeps here.
    """
    file = f"{store.url}/{SHARD_LIST}"
    try:
        store.stat(SHARD_LIST)
    except StoreError as error:
        return error if error.transient else None
    try:
        lines = [line for line in store.read(SHARD_LIST).decode(errors="replace").splitlines() if line.strip()]
    except StoreError as error:
        return error
    found = _difference(lines, shard_lines(names, store.url), store.url)
    fix = "What reads the list, such as WeNet, would take other shards: put it right, or remove it."
    return CorruptIndex(found, file=file, fix=fix) if found else None


def _difference(lines: list[str], places: list[str], folder: str) -> str | None:
    """Where the lines do not name each of the places once. Relative ones may begin at the folder, or at one above it,
    from which somebody works.
    """
    called = defaultdict[str, list[str]](list)
    for place in places:
        called[_last(place)].append(place)
    if called.keys().isdisjoint(map(_last, lines)):
        return None
    listed = set[str]()
    for number, line in enumerate(lines, 1):
        lies_at, ending = _lies_at(folder, line), f"/{line}"
        meant = next((place for place in called[_last(line)] if place == lies_at or place.endswith(ending)), None)
        if meant is None:
            return f"line {number} names {line}, which is no shard of the manifest's"
        if meant in listed:
            return f"line {number} names {line} again"
        listed.add(meant)
    return next((f"it does not name {place}" for place in places if place not in listed), None)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _lies_at(folder: str, name: str) -> str:
    """The path, with links followed, or the URL of what is named so in a folder or at a URL."""
    if is_url(name):
        return name
    if is_url(folder):
        scheme, _, path = folder.partition("://")
        return f"{scheme}://{posixpath.normpath(f'{path}/{name}')}"
    return os.path.realpath(Path(folder) / name)
