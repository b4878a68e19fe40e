"""Reading a list: its format is chosen, its keys are checked, its bad lines are reported."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from shardpipe.errors import ListError
from shardpipe.lists.kaldi import kaldi_directory
from shardpipe.lists.keys import check_key, fix_key
from shardpipe.lists.line import Entry, Utterance
from shardpipe.lists.wenet import data_list
from shardpipe.store import only_local

__all__ = ["read_list"]


def read_list(
    path: str | os.PathLike[str],
    *,
    fix_keys: bool = False,
    on_reject: Callable[[ListError], None] | None = None,
) -> Iterator[Utterance]:
    """The utterances of a data.list file or a Kaldi directory, in the list's order.

    data.list: one JSON object a line with `key`, `wav`, `txt`, perhaps `start` and `end` in seconds, `channel`; what it
    holds else is kept in `extras`. Kaldi: wav.scp and text, and, if there, segments and utt2spk (extras["speaker"]).
    Relative audio paths resolve against the list's folder, then the working directory.

    A bad line raises ListError, or goes to `on_reject` and is left out; of two lines with one key the second is bad. A
    list that is missing, unreadable or empty always raises. `fix_keys` maps keys by `fix_key`.
    """
    seen: dict[str, str] = {}
    empty = True
    for entry in _entries(Path(only_local("list", path))):
        empty = False
        checked = entry if isinstance(entry, ListError) else _checked(entry, seen, fix_keys)
        if isinstance(checked, Utterance):
            yield checked
        elif on_reject is None:
            raise checked
        else:
            on_reject(checked)
    if empty:
        raise ListError("the list is empty", file=str(path), fix="Give a list with at least one utterance.")


def _entries(path: Path) -> Iterator[Entry]:
    """The one place that chooses a format. A format gives an Utterance or a ListError for each line that matters."""
    return kaldi_directory(path) if path.is_dir() else data_list(path)


def _checked(utterance: Utterance, seen: dict[str, str], fix_keys: bool) -> Entry:
    """The utterance under its final key, or what is wrong with that; `seen` says where each key was."""
    key = fix_key(utterance.key) if fix_keys else utterance.key
    file, _, line = utterance.where.rpartition(":")
    if fault := check_key(key):
        fix = "Rename it, or pass --fix-keys to have such characters mapped."
        return ListError(f"the key {key!r} {fault}", file=file, line=int(line), key=key, fix=fix)
    if (earlier := seen.setdefault(key, utterance.where)) != utterance.where:
        fix = "Keys must differ: rename one of them, or remove it."
        return ListError(f"the key {key!r} is already that of {earlier}", file=file, line=int(line), key=key, fix=fix)
    return utterance if key == utterance.key else replace(utterance, key=key)
