"""What a server is started with, checked before anything is opened."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import yaml

from shardpipe.errors import ConfigError
from shardpipe.loading import NAME, is_loopback
from shardpipe.settings import check
from shardpipe.store import is_url, only_local

__all__ = ["DatasetConfig", "ServeConfig", "datasets_of", "function_at"]

_BIND = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")


class DatasetConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A dataset of serve.yaml; functions by the names that clients use, each as pkg.module:function."""

    data: str
    transforms: dict[str, str] = {}
    collates: dict[str, str] = {}
    schemes: list[str] = []


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    datasets: dict[str, DatasetConfig]


def datasets_of(file: str) -> dict[str, DatasetConfig]:
    """The datasets that a serve.yaml names; relative paths are from its folder. Raises ConfigError."""
    place = Path(only_local("config", file))
    try:
        found = msgspec.convert(yaml.safe_load(place.read_text("utf-8")), _File)
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise ConfigError("config", str(place), f"it cannot be read ({what})") from error
    check("config", str(place), bool(found.datasets), "it must name a dataset, and names none")
    return {name: _placed(dataset, place.parent) for name, dataset in found.datasets.items()}


def _placed(dataset: DatasetConfig, folder: Path) -> DatasetConfig:
    if is_url(dataset.data) or dataset.data.startswith(("file://", "~")):
        return dataset
    return msgspec.structs.replace(dataset, data=str(folder / dataset.data))


def function_at(setting: str, reference: str) -> Callable[..., Any]:
    """The function that pkg.module:name names. Raises ConfigError."""
    module, mark, name = reference.partition(":")
    check(setting, reference, bool(mark and module and name), "it must be like pkg.module:function")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = inspect.getattr_static(found, part) if inspect.isclass(found) else getattr(found, part)
    except Exception as error:
        rule = f"it cannot be imported ({type(error).__name__}: {error})"
        raise ConfigError(setting, reference, rule, fix="Is its folder in PYTHONPATH?") from error
    check(setting, reference, callable(found), "it must be a function")
    function: Callable[..., Any] = found
    return function


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Settings of a server. Beyond this machine it wants TLS and a token.

    bind: host:port, or [v6]:port; port 0 takes one that is free.
    threads: that make batches.
    memory_bytes: of batches that are being made or on their way; beyond it requests are refused for a while.
    keep_bytes: of batches that were made, for others that want the same.
    connections: at once.
    drain_seconds: for what is under way to end, once the server is asked to.
    """

    datasets: dict[str, DatasetConfig]
    bind: str = "127.0.0.1:7070"
    threads: int
    memory_bytes: int = 1 << 30
    keep_bytes: int = 1 << 29
    connections: int = 1000
    drain_seconds: float = 30.0
    tls_cert: str | None = None
    tls_key: str | None = None
    token_file: str | None = None
    cache_dir: str | None = None
    cache_bytes: int | None = None
    host: str = field(init=False)
    port: int = field(init=False)

    def __post_init__(self) -> None:
        for name in self.datasets:
            check("name", name, re.fullmatch(NAME, name) is not None, "it must be letters, digits, '.', '_' and '-'")
        match = _BIND.fullmatch(self.bind)
        if match is None or int(match["port"]) > 65535:
            raise ConfigError("bind", self.bind, "it must be like 127.0.0.1:7070")
        object.__setattr__(self, "host", match["v6"] or match["host"])
        object.__setattr__(self, "port", int(match["port"]))
        for setting in ("threads", "memory_bytes", "keep_bytes", "connections"):
            check(
                setting, getattr(self, setting), getattr(self, setting) >= (setting != "keep_bytes"), "it is too small"
            )
        check("tls_key", self.tls_key, (self.tls_cert is None) == (self.tls_key is None), "tls_cert and it go together")
        check(
            "cache_bytes",
            self.cache_bytes,
            self.cache_bytes is None or self.cache_dir is not None,
            "it needs a cache_dir",
        )
        for setting in ("tls_cert", "tls_key", "token_file"):
            if (place := getattr(self, setting)) is not None:
                object.__setattr__(self, setting, only_local(setting, place))
        if not is_loopback(self.host) and (self.tls_cert is None or self.token_file is None):
            rule = "beyond this machine a server must have TLS and a token"
            fix = "Give --tls-cert, --tls-key and --token-file, or bind 127.0.0.1 and have a proxy before it."
            raise ConfigError("bind", self.bind, rule, fix=fix)
