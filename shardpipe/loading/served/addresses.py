"""Where servers are: addresses as users write them, and the replicas behind each."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from braceexpand import braceexpand

from shardpipe.errors import ConfigError
from shardpipe.loading.wire import NAME
from shardpipe.settings import check
from shardpipe.store import checked_url

__all__ = ["PREFIX", "Address", "Server", "hosts_of", "is_loopback", "is_served", "servers_of"]

PREFIX = "shardpipe+"
_FORM = "it must be like https://host:7070/NAME, NAME being that of a dataset there"
_BETWEEN = re.compile(r"\s*,\s*(?![^{}]*\})")
"""A comma that is not within braces."""
_PORTS = {"http": 80, "https": 443}


def is_served(data: Any) -> bool:
    """Whether a dataset's place is a service, and no folder or store."""
    return isinstance(data, str) and data.startswith((f"{PREFIX}http://", f"{PREFIX}https://"))


@dataclass(frozen=True)
class Address:
    """One replica, as a socket finds it."""

    family: int
    socket: tuple[Any, ...]

    def __str__(self) -> str:
        host, port = self.socket[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, kw_only=True)
class Server:
    """What one URL names: a host, which may be several replicas, and a dataset there."""

    scheme: str
    host: str
    port: int
    path: str
    """What stands before the dataset's name, as a proxy may want it: "" or "/somewhere"."""
    name: str

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}/{self.name}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def addresses(self) -> list[Address]:
        """Those of its host, by DNS. Raises OSError, which says that it cannot be found."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            why = error.strerror or error if isinstance(error, OSError) else f"it is no name of a host: {error}"
            raise OSError(f"{self.host} cannot be found ({why})") from error
        places = dict.fromkeys(Address(family, place) for family, _, _, _, place in found)
        # A host of both kinds of addresses is not to count twice.
        return [place for place in places if place.family == socket.AF_INET] or list(places)


def servers_of(places: str | Iterable[str]) -> tuple[Server, ...]:
    """The servers that URLs name, in a list or with commas between, braces expanded: https://{a,b}:7070/speech. Raises
    ConfigError.
    """
    servers = tuple(dict.fromkeys(_server(url) for url in _urls(places)))
    names = sorted({server.name for server in servers})
    check("servers", names, len(names) == 1, "all must have one dataset, by one name")
    return servers


def hosts_of(places: str | Iterable[str]) -> tuple[Server, ...]:
    """The same for who asks for no dataset: each host once, whatever names the URLs have. Raises ConfigError."""
    return tuple(dict.fromkeys(replace(_server(url, named=False), name="") for url in _urls(places)))


def _urls(places: Any) -> list[str]:
    if not isinstance(places, str) and not isinstance(places, Iterable):
        raise ConfigError("servers", places, "it must be a list of URLs")
    given = _BETWEEN.split(places) if isinstance(places, str) else list(places)
    check("servers", given, bool(given), "it must name one at least")
    return [url for place in given for url in _expanded(place)]


def _expanded(place: Any) -> list[str]:
    check("servers", place, isinstance(place, str), _FORM)
    try:
        return list(braceexpand(place))
    except ValueError as error:
        raise ConfigError("servers", place, "its braces must be balanced") from error


def _server(url: str, *, named: bool = True) -> Server:
    url = checked_url("servers", url.removeprefix(PREFIX))
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError("servers", url, _FORM) from error
    path, _, name = parts.path.rstrip("/").rpartition("/")
    goes = re.fullmatch(NAME, name) if name or named else True
    fits = parts.scheme in _PORTS and host and goes and not parts.fragment
    check("servers", url, bool(fits), _FORM)
    plain = parts.scheme == "https" or is_loopback(host)
    check("servers", url, plain, "plain http is for servers on this machine alone: others are reached by https")
    port = port or _PORTS[parts.scheme]
    return Server(scheme=parts.scheme, host=host, port=port, path=path.rstrip("/"), name=name)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, to itself alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
