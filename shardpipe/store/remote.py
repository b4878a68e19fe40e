"""Any place that fsspec can open."""

from __future__ import annotations

from typing import Any

import fsspec

from shardpipe.store.base import Stat, as_store_error, whole

__all__ = ["FsspecStore"]


class FsspecStore:
    """Any URL that fsspec can open: `s3://bucket/set`, `memory://set` and so on."""

    parallel = 32

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url.rstrip("/")
        self._options = options
        with as_store_error(self._url):
            # Without the cache of listings: what was listed before is not what lies there now.
            self._fs, self._root = fsspec.core.url_to_fs(self._url, **{"use_listings_cache": False, **options})

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_fsspec, (self._url, self._options)

    @property
    def url(self) -> str:
        return self._url

    def stat(self, name: str) -> Stat:
        with as_store_error(self._shown(name)):
            found = self._fs.info(self._path(name))
            version = next((found[field] for field in ("ETag", "etag", "md5Hash", "mtime") if field in found), "")
            return Stat(int(found["size"]), str(version))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length is None:
            length = max(0, self.stat(name).size - offset)
        if not length:
            return b""
        with as_store_error(self._shown(name)):
            data: bytes = self._fs.cat_file(self._path(name), start=offset, end=offset + length)
        return whole(data, self._shown(name), offset, length)

    def _path(self, name: str) -> str:
        return str(self._fs._strip_protocol(self._shown(name)))

    def _shown(self, name: str) -> str:
        return name if "://" in name else f"{self._url}/{name}"


def _open_fsspec(url: str, options: dict[str, Any]) -> FsspecStore:
    return FsspecStore(url, **options)
