"""How the content of a tile is identified."""

from __future__ import annotations

import hashlib

__all__ = ["DIGEST_BYTES", "digest"]

DIGEST_BYTES = 16


def digest(data: bytes) -> bytes:
    """Return the first 16 bytes of the SHA-256 of an image's encoded bytes."""
    return hashlib.sha256(data).digest()[:DIGEST_BYTES]
