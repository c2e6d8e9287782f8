"""File names from tiles' names, which may be anything: absolute, with `..`, too long, or alike but for their case."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from eosin.data.folder import IMAGE_SUFFIXES

__all__ = ["SafePaths", "safe_part", "suffix_of"]

# Letters that some file system, shell or archive does not bear in a name.
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/\ud800-\udfff]')
_NO_WORD = re.compile(r"\W")
# File systems allow 255 bytes; a suffix and a number still have to fit.
_LONGEST = 200

_MAGIC = (
    (b"\xff\xd8\xff", 0, ".jpg"),
    (b"\x89PNG\r\n\x1a\n", 0, ".png"),
    (b"II*\x00", 0, ".tif"),
    (b"MM\x00*", 0, ".tif"),
    (b"BM", 0, ".bmp"),
    (b"WEBP", 8, ".webp"),
    (b"\x00\x00\x00\x0cjP  ", 0, ".jp2"),
    (b"\xff\x4f\xff\x51", 0, ".jp2"),
)


def suffix_of(data: bytes, name: str) -> str:
    """Return the suffix that an image's content asks for; for content of no known kind the name's own, or ``.bin``."""
    for magic, place, suffix in _MAGIC:
        if data[place : place + len(magic)] == magic:
            return suffix
    return _image_suffix(name).lower() or ".bin"


def _image_suffix(name: str) -> str:
    point = name.rfind(".")
    return name[point:] if point > 0 and name[point:].lower() in IMAGE_SUFFIXES else ""


def safe_part(text: str, *, words: bool = False) -> str:
    """Return one part of a path: no separator, not hidden, at most 200 bytes of UTF-8, never empty.

    Args:
        text: Any text.
        words: Keep letters, digits and `_` alone.
    """
    part = _UNSAFE.sub("_", text).strip().rstrip(".")
    if words:
        part = _NO_WORD.sub("_", part)
    if not part or part.startswith((".", "__MACOSX")):
        part = f"_{part}"
    encoded = part.encode()
    if len(encoded) > _LONGEST:
        kept = encoded[: _LONGEST - 17].decode(errors="ignore")
        part = f"{kept}-{hashlib.sha256(encoded).hexdigest()[:16]}"
    return part


class SafePaths:
    """Relative paths that differ, on disks that tell small letters from capitals and on others."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def path(
        self, folders: Sequence[str], name: str, suffix: str, *, drop: Sequence[str] = (), flat: bool = False
    ) -> str:
        """Return a path below a root, divided by `/`, that was not returned before.

        Args:
            folders: Folders to begin with.
            name: A tile's name; its folders follow.
            suffix: To end with, in place of the name's own.
            drop: Leading folders of the name that are left out, in this order.
            flat: Join the folders of the name into the file's name, by `__`.
        """
        own = name[: len(name) - len(_image_suffix(name))]
        parts = [part for part in own.split("/") if part not in ("", ".", "..")] or ["_"]
        for folder in drop:
            if len(parts) > 1 and parts[0] == folder:
                del parts[0]
        if flat:
            parts = ["__".join(parts)]
        above = [_as_folder(safe_part(part)) for part in [*folders, *parts[:-1]]]
        stem = "/".join([*above, safe_part(parts[-1])])
        path, number = stem + suffix, 1
        while path.casefold() in self._taken:
            number += 1
            path = f"{stem}-{number}{suffix}"
        self._taken.add(path.casefold())
        return path


def _as_folder(part: str) -> str:
    """Keep a folder from ending like an image: a.jpg and the a.jpg of a.jpg/x0_y0 could not lie side by side."""
    return f"{part}_" if _image_suffix(part) or part.endswith(".bin") else part
