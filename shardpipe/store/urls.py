"""URLs as users write them: what kind they are of, and which files a pattern means."""

from __future__ import annotations

import re

import fsspec

from shardpipe.errors import ConfigError, StoreError
from shardpipe.settings import check
from shardpipe.store.base import Store, as_store_error
from shardpipe.store.places import CREDENTIALS_FIX, checked_url
from shardpipe.store.redact import shown_url

__all__ = ["check_place", "find_urls", "is_s3", "scheme_of", "shown_in"]

_HOSTED = ("s3", "s3a", "gs", "gcs", "http", "https")


def shown_in(store: Store, name: str) -> str:
    """Where a file of a store lies, for messages."""
    return shown_url(name) if "://" in name else f"{store.url}/{name}"


def scheme_of(place: str) -> str:
    """What stands before the "://" of a URL, which says how to get there; empty for a path."""
    return place.partition("://")[0] if "://" in place else ""


def is_s3(url: str) -> bool:
    """Whether s3fs serves a URL."""
    return scheme_of(url) in ("s3", "s3a")


def check_place(url: str) -> None:
    """Raises ConfigError for a URL, its query cut off, without its bucket or host, or with a user where none can be."""
    scheme, shown = scheme_of(url), shown_url(url)
    what = "host" if scheme.startswith("http") else "bucket"
    named = scheme not in _HOSTED or shown.partition("://")[2].partition("/")[0]
    check("URL", shown, bool(named), f"it must name a {what}, as in {scheme}://{what}/folder")
    if is_s3(url) and shown != url:
        raise ConfigError("URL", shown, "it came with a user name, which S3 takes from elsewhere", fix=CREDENTIALS_FIX)


def find_urls(pattern: str) -> list[str]:
    """The URLs of the files that match a pattern with wildcards, sorted; the URL itself if it has none.

    Raises StoreError where nothing matches, ConfigError for a URL with credentials.
    """
    checked_url("tars", pattern, wildcards=True)
    if not _has_magic(pattern):
        return [pattern]
    folder = re.split(r"[*?[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    if not folder.partition("://")[2]:
        raise ConfigError("tars", pattern, "the bucket or host must be named, without wildcards")
    with as_store_error(pattern):
        fs, path = fsspec.core.url_to_fs(pattern)
        fs.invalidate_cache()  # of listings: files may have come since one was made
        root = fs._strip_protocol(folder)
        matches = sorted(folder + match.removeprefix(root) for match in fs.glob(path))
    if not matches:
        raise StoreError("no file matches", url=pattern, fix="Check the pattern, and quote it for the shell.")
    return matches


def _has_magic(url: str) -> bool:
    return re.search(r"[*?[]", url) is not None
