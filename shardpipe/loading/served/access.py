"""What a client shows servers, and what it wants of them: a token, a certificate that it trusts."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

from shardpipe.errors import ConfigError
from shardpipe.loading.served.addresses import Server
from shardpipe.store import only_local

__all__ = ["Access", "read_tokens"]

_TOKENS = 2
_SHORTEST = 16


def read_tokens(path: str | os.PathLike[str]) -> list[str]:
    """The one or two tokens of a file, a line each. Raises ConfigError, which quotes none of them."""
    place = only_local("token_file", path)
    try:
        tokens = [line.strip() for line in Path(place).read_text("ascii").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise ConfigError("token_file", place, f"it cannot be read ({what})") from None
    fix = "Make one: openssl rand -hex 32"
    if not 1 <= len(tokens) <= _TOKENS:
        rule = f"it must hold one token a line, two at most, and holds {len(tokens)}"
        raise ConfigError("token_file", place, rule, fix=fix)
    if any(len(token) < _SHORTEST or not token.isprintable() or " " in token for token in tokens):
        rule = f"a token must have {_SHORTEST} characters at least, and no spaces"
        raise ConfigError("token_file", place, rule, fix=fix)
    return tokens


class Access:
    """The first token of a file, read again when a server refuses it, so that tokens can be changed under a run; and
    the certificates that are trusted: the system's, or those of a file. Raises ConfigError.
    """

    def __init__(self, token_file: str | os.PathLike[str] | None, tls_ca: str | os.PathLike[str] | None) -> None:
        self._file = token_file
        self._token = "" if token_file is None else read_tokens(token_file)[0]
        self._ca = ca = None if tls_ca is None else only_local("tls_ca", tls_ca)
        try:
            self._tls = ssl.create_default_context(cafile=ca)
        except OSError as error:
            raise ConfigError("tls_ca", ca, f"it must be a file of certificates, in PEM ({error})") from error

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy reads the files itself: no token is written anywhere."""
        return Access, (self._file, self._ca)

    @property
    def header(self) -> bytes:
        """The line of a request's head that shows it."""
        return f"Authorization: Bearer {self._token}\r\n".encode() if self._token else b""

    def renewed(self, shown: bytes) -> bool:
        """Whether it is another one, by the file, than was `shown` as a header: to be tried before it is refused."""
        if self._file is None:
            return False
        try:
            self._token = read_tokens(self._file)[0]
        except ConfigError:  # it is being written
            return True
        return self.header != shown

    def tls_for(self, server: Server) -> ssl.SSLContext | None:
        """What secures a connection, if it is to be."""
        return self._tls if server.scheme == "https" else None
