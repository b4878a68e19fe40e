"""Errors of a batch, as a server tells them: the same ones that making it here would have raised."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from shardpipe.errors import AudioError, ConfigError, ShardError, ShardpipeError

__all__ = ["Refusal"]


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a server answers with where it has no batch."""

    kind: Literal["audio", "shard", "config", "value", "other", "request", "server"]
    """An error's class; "other" for what a function raised, "request" for a request that is none, "server" for what is
    the server's own fault."""
    what: str
    where: str = ""
    fix: str = ""
    key: str = ""
    codec: str = ""
    offset: int | None = None
    name: str = ""
    value: Any = None

    @classmethod
    def of(cls, error: Exception) -> Refusal | None:
        """That of an error which every server would have to raise; None for other errors."""
        if isinstance(error, AudioError):
            where = error.where.partition(", sample")[0]
            return cls(kind="audio", what=error.what, where=where, fix=error.fix, key=error.key, codec=error.codec)
        if isinstance(error, ShardError):
            return cls(
                kind="shard", what=error.what, where=error.shard, fix=error.fix, key=error.key, offset=error.offset
            )
        if isinstance(error, ConfigError):
            value = error.value if isinstance(error.value, str | int | float | None) else repr(error.value)
            return cls(kind="config", what=error.rule, fix=error.fix, name=error.name, value=value)
        return None

    def error(self) -> Exception:
        if self.kind == "audio":
            return AudioError(self.what, key=self.key, codec=self.codec, where=self.where, fix=self.fix)
        if self.kind == "shard":
            return ShardError(self.what, shard=self.where, key=self.key, offset=self.offset, fix=self.fix)
        if self.kind == "config":
            return ConfigError(self.name, self.value, self.what, fix=self.fix)
        if self.kind == "value":
            return ValueError(self.what)
        return ShardpipeError(self.what, where=self.where, fix=self.fix)
