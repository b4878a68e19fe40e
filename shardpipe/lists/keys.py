"""What a key may be, and a way to make any key such a one."""

from __future__ import annotations

import hashlib
import re

__all__ = ["MAX_KEY_BYTES", "check_key", "fix_key"]

MAX_KEY_BYTES = 240
"""Of a key in UTF-8: with its extension it must do as a file name, which most systems limit to 255 bytes."""

_FORBIDDEN = r"./\x00-\x1f\x7f-\x9f\ud800-\udfff"
_BAD_CHARACTER = re.compile(f"[{_FORBIDDEN}]")
_TO_ESCAPE = re.compile(f"[%{_FORBIDDEN}]+")


def check_key(key: str) -> str:
    """What keeps `key` from naming a sample in a tar, to follow "the key ..."; empty if nothing does.

    Readers split a member's name at a dot into key and extension, and at slashes into folders.
    """
    if not key:
        return "is empty"
    if bad := _BAD_CHARACTER.search(key):
        name = {".": "a dot", "/": "a slash"}.get(bad[0], f"the control character {bad[0]!r}")
        return f"holds {name}"
    if (size := len(key.encode())) > MAX_KEY_BYTES:
        return f"has {size} bytes, and {MAX_KEY_BYTES} is the most"
    return ""


def fix_key(key: str) -> str:
    """A key that passes `check_key`, the same for the same key on every machine; different keys stay different.

    What a key must not hold becomes %XX, byte by byte of its UTF-8, as in a URL; so does % itself, or "a%2E" and "a."
    would meet. The empty key becomes %; of one that is too long the beginning stays, with %~ and a hash of the whole.
    """
    escaped = _TO_ESCAPE.sub(lambda bad: "".join(f"%{b:02X}" for b in bad[0].encode("utf-8", "surrogatepass")), key)
    if len(escaped.encode()) > MAX_KEY_BYTES:
        mark = "%~" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        return escaped.encode()[: MAX_KEY_BYTES - len(mark)].decode(errors="ignore") + mark
    return escaped or "%"
