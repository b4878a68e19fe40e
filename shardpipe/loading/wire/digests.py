"""Hashes by which a request is known, and a file of an index is checked."""

from __future__ import annotations

import base64
import hashlib

__all__ = ["content_digest", "digest_of"]


def digest_of(body: bytes) -> str:
    """32 hex digits that tell a request from all others."""
    return hashlib.sha256(body).hexdigest()[:32]


def content_digest(data: bytes | bytearray) -> str:
    """What a body's Content-Digest must say (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
