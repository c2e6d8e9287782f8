"""A folder of images as a source: any depth, class folders or none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from eosin.core.errors import EosinError
from eosin.data.tiles import FileBytes, Names, TextColumn, Tiles
from eosin.slides import SLIDE_SUFFIXES

__all__ = ["IMAGE_SUFFIXES", "open_folder"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".jp2"})

_SLIDES = "whole-slide image(s), tiles of which `slides:` reads"

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def open_folder(root: Path) -> Tiles:
    """Open a folder of images.

    Hidden files and folders (`.x`, `._x.jpg`, `__MACOSX`) and files that are no images are left out and counted. Links
    to folders are followed, each folder being read once, so loops end.

    When the folders at the top are all named after splits (train, val, test) they give the split. When every image
    sits in a sub-folder, the name of its folder is the label.

    Raises:
        EosinError: If the folder is absent, unreadable or without images.
    """
    if not root.is_dir():
        raise EosinError(f"{root}: no such folder")
    found, ignored = _walk(root)
    if not found:
        slides = ignored[_SLIDES]
        if slides:
            raise EosinError(
                f"{root}: no images, but {slides:,} whole-slide image(s); write slides:{root}?mpp=0.5&size=256, or cut "
                "them with `eosin tile`"
            )
        seen = sum(ignored.values())
        content = f"none of its {seen:,} entries is one" if seen else "it is empty"
        raise EosinError(f"{root}: no images; {content} (looked for {' '.join(sorted(IMAGE_SUFFIXES))}, at any depth)")
    found.sort()
    try:
        names = Names(pa.array(found, pa.large_string()))
    except UnicodeEncodeError:
        bad = next(name for name in found if not name.isprintable() and _undecodable(name))
        raise EosinError(f"{root}: the file name {bad!r} is not UTF-8; rename the file") from None
    label, split = _from_folders(found)
    remarks = tuple(f"ignored {count:,} {what}" for what, count in sorted(ignored.items()))
    return Tiles(
        spec=f"folder:{root}",
        names=names,
        source=FileBytes(root, names),
        label=label,
        split=split,
        remarks=remarks,
    )


def _undecodable(name: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def _walk(root: Path) -> tuple[list[str], Counter[str]]:
    """Return the images' paths under `root` and the counts of what was ignored."""
    found: list[str] = []
    ignored: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    folders, links = [""], list[str]()
    while folders or links:
        # Links come last and in order, so that a folder reached both ways is named by its own path.
        if not folders:
            links.sort(reverse=True)
        relative = folders.pop() if folders else links.pop()
        path = root / relative
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in visited:
                ignored["link(s) to a folder read already"] += 1
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name, reverse=True):
                    name = f"{relative}/{entry.name}" if relative else entry.name
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        ignored["hidden file(s) or folder(s)"] += 1
                    elif _is(entry, os.DirEntry.is_dir):
                        (links if entry.is_symlink() else folders).append(name)
                    elif not (_is(entry, os.DirEntry.is_file) or entry.is_symlink()):
                        # A pipe named x.png would be waited for without end.
                        ignored["pipe(s), socket(s) or device(s)"] += 1
                    elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122 (millions of files)
                        found.append(name)
                    elif os.path.splitext(entry.name)[1].lower() in SLIDE_SUFFIXES:  # noqa: PTH122
                        ignored[_SLIDES] += 1
                    else:
                        ignored["file(s) that are no images"] += 1
        except OSError as error:
            raise EosinError(f"{path}: cannot be read ({error.strerror}); change its permissions") from None
    return found, ignored


def _is(entry: os.DirEntry[str], kind: Callable[[os.DirEntry[str]], bool]) -> bool:
    """Ask for the kind of an entry; a link that leads nowhere, or to itself, is of none."""
    try:
        return kind(entry)
    except OSError:
        return False


def _from_folders(names: list[str]) -> tuple[TextColumn | None, TextColumn | None]:
    """Return (label, split) as far as the folders tell."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    split = None
    if all(parts and parts[0].lower() in SPLIT_FOLDERS for parts in folders):
        split = np.array([SPLIT_FOLDERS[parts[0].lower()] for parts in folders], dtype=object)
        folders = [parts[1:] for parts in folders]
    if not all(folders):
        return None, split
    return np.array([parts[-1] for parts in folders], dtype=object), split
