"""Credentials stay out of what people read: URLs as they are shown, and the texts of errors that are quoted."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

__all__ = ["safe_cause", "scrub", "secrets_in", "shown_url", "split_url"]

# The secret key of a bucket's user may hold slashes, and its name no colon.
_BUCKETS = r"(?:s3a?|gc?s)://"
_BUCKET = re.compile(
    rf"(?P<scheme>(?:[^/]*::)?{_BUCKETS})(?P<user>[^/?:]*:[^?]*)@(?P<place>[^?]*)(?P<query>\?.*)?", re.DOTALL
)
_URL = re.compile(r"(?P<scheme>[^/]+://)(?:(?P<user>[^/?]*)@)?(?P<place>[^?]*)(?P<query>\?.*)?", re.DOTALL)
_SECRET_OPTION = re.compile(r"key|secret|token|pass|pwd|cred|auth|sas|sign|connection_string", re.IGNORECASE)
_HIDDEN = "***"

# What gives itself away in a text whose origin is unknown. Such a text may be of any length, so nothing here looks more
# than a few times at the same place: what follows a beginning is taken whole, and looked at by a function.
_BUCKET_USER = re.compile(rf"({_BUCKETS})([^/\s'\"?:]*+)(:[^\s'\"?]*+)?")
_HOST = re.compile(r"(?<=://)[^/\s'\"]++")
_QUERY = re.compile(r"(://[^\s?'\"]*+)(?:\?[^\s'\")]*+)?")
_WORD = re.compile(r"[\w-]++")
_SECRET_NAME = re.compile(r"secret|token|passw|signature|credential|authorization|access_?key", re.IGNORECASE)
_VALUE = re.compile(
    r"(['\"]?\s*+[:=]\s*+(?:b(?=['\"]))?['\"]?)(?:(?:Bearer|Basic|AWS4-HMAC-SHA256)\s+)?[^\s'\",;&)]++",
    re.IGNORECASE,
)
_ACCESS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b")


def _parsed(url: str) -> re.Match[str] | None:
    return _BUCKET.fullmatch(url) or _URL.fullmatch(url)


def split_url(url: str) -> tuple[str, str]:
    """A URL without its query string, and that with its question mark ("" if there is none)."""
    match = _parsed(url)
    query = (match["query"] or "") if match else ""
    return url.removesuffix(query), query


def shown_url(url: str) -> str:
    """A URL without user, password and query string: what may be printed and written down."""
    match = _parsed(url)
    return match["scheme"] + match["place"] if match else url


def secrets_in(url: str, options: Mapping[str, Any]) -> frozenset[str]:
    """The texts in a URL and in the options of its file system that must not be shown, plain and percent-encoded."""
    match = _parsed(url)
    found = set(_option_values(options))
    if match:
        found |= set((match["user"] or "").split(":", 1))
        found |= {pair.partition("=")[2] for pair in (match["query"] or "").lstrip("?").split("&")}
    plain = {secret for given in found for secret in (given, unquote(given))}
    return frozenset(form for secret in plain if secret for form in (secret, quote(secret, safe="")))


def _option_values(options: Mapping[str, Any], secret: bool = False) -> Iterator[str]:
    for name, value in options.items():
        hidden = secret or bool(_SECRET_OPTION.search(str(name)))
        if isinstance(value, Mapping):
            yield from _option_values(value, hidden)
        elif hidden and isinstance(value, str | bytes):
            yield value if isinstance(value, str) else value.decode("latin-1")


def scrub(text: str, secrets: Iterable[str] = ()) -> str:
    """`text` without the given secrets, and without what looks like one in any URL or assignment within it."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    text = _BUCKET_USER.sub(lambda found: found[1] + _behind_user(found[2], found[3] or ""), text)
    text = _HOST.sub(lambda found: found[0].rpartition("@")[2], text)
    text = _QUERY.sub(r"\1", text)
    return _ACCESS_KEY.sub(_HIDDEN, _without_assigned(text))


def _behind_user(user: str, rest: str) -> str:
    """What follows user and password, which may hold slashes; all if there are none."""
    return rest.rpartition("@")[2] if "@" in rest else user + rest


def _without_assigned(text: str) -> str:
    """`text` without the values of what is called a secret."""
    parts, at = [], 0
    for name in _WORD.finditer(text):
        if name.start() >= at and _SECRET_NAME.search(name[0]) and (value := _VALUE.match(text, name.end())):
            parts += [text[at : value.end(1)], _HIDDEN]
            at = value.end()
    return "".join([*parts, text[at:]])


def safe_cause(error: BaseException, secrets: Iterable[str]) -> BaseException | None:
    """`error`, to be the cause of another one, or None if a traceback would print a secret of it or of its causes."""
    printed = "".join(_texts(error))
    return error if scrub(printed, secrets) == printed else None


def _texts(error: BaseException) -> Iterator[str]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield from traceback.format_exception_only(one)
            waiting += [one.__cause__, one.__context__]
