"""Places as users name them: paths of this machine, and URLs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from shardpipe.errors import ConfigError
from shardpipe.settings import check
from shardpipe.store.redact import shown_url, split_url

__all__ = ["CREDENTIALS_FIX", "checked_url", "is_url", "is_utf8", "local_path", "named", "only_local"]

CREDENTIALS_FIX = "Keep credentials where the client library looks for them: its environment variables or files."


def named(setting: str, place: Any) -> str:
    """The place that a str or a Path names. Raises ConfigError for everything else."""
    if isinstance(place, str | os.PathLike) and isinstance(text := os.fspath(place), str):
        return text
    # Its type alone, for it may hold credentials.
    raise ConfigError(setting, type(place), "it must be a path or a URL, as a str or a Path")


def is_url(place: str) -> bool:
    """Whether a place is named by a URL, not by a path of this machine."""
    return "://" in place and not place.startswith("file://")


def checked_url(setting: str, url: str, *, wildcards: bool = False) -> str:
    """The URL, which may go into manifests, lists and messages. Raises ConfigError if it may hold credentials.

    With `wildcards`, a question mark begins a query string only where a NAME=VALUE follows.
    """
    shown, (place, query) = shown_url(url), split_url(url)
    if shown != place:
        raise ConfigError(setting, shown, "it came with a user name, which would be written down", fix=CREDENTIALS_FIX)
    if "=" in query if wildcards else "?" in url:
        rule = "it came with a query string, which would be written down"
        raise ConfigError(setting, shown, rule, fix=CREDENTIALS_FIX)
    return url


def is_utf8(text: str) -> bool:
    """Whether a text can be written down; Python has paths and arguments that are no UTF-8 as texts that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def local_path(place: str) -> str:
    """The path of a place of this machine, written as such, as ~/path or as file:///path.

    Raises ConfigError for file://host, and where nothing is named.
    """
    check("path", place, place != "", "it must name a file or a folder")
    path = re.sub(r"^file://(localhost(?=/))?", "", place)
    whole = path == place or path.startswith("/")
    check("URL", _shown(place), whole, "it must be an absolute path, as in file:///folder")
    expanded = os.path.expanduser(path)  # noqa: PTH111 (Path would take ./~ for a home)
    homeless = path == expanded and path.split("/")[0] == "~"
    check("path", path, not homeless, "it must be the whole path, for this user has no home folder")
    # A name that begins so would be a home again to those who get it without the ./ before it.
    return str(Path.cwd() / expanded) if os.path.normpath(expanded).startswith("~") else expanded


def only_local(setting: str, place: str | os.PathLike[str]) -> str:
    """The path of what a setting says must lie on this machine. Raises ConfigError for what names no such path."""
    text = named(setting, place)
    check(setting, _shown(text), text != "" and not is_url(text), "it must be a path of this machine, and no URL")
    return local_path(text)


def _shown(place: str) -> str:
    """A path as it is; of a URL the scheme alone, for the rest may hold credentials."""
    scheme, mark, _ = place.partition("://")
    return f"{scheme.rpartition('@')[2]}://..." if mark else place
