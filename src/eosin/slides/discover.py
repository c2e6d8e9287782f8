"""Which slides lie in a folder: every file that is one, each once, under a name of its own."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eosin.core.console import warn
from eosin.core.errors import EosinError

__all__ = ["PLAIN_SUFFIXES", "SLIDE_SUFFIXES", "FoundSlide", "find_slides"]

SLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".tif", ".tiff", ".btf", ".svslide", ".dcm"}
)
"""Suffixes, in small letters, by which a file in a folder is taken for a slide; `.ome.tif` is one of `.tif`."""

PLAIN_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jp2", ".bmp"})
"""Images without levels: slides only where they are asked for, for they are as often previews, labels and tiles."""

# StudyInstanceUID (0020,000D) and, right behind it, SeriesInstanceUID (0020,000E), little-endian, with or without the
# value representation. A series that is only referred to has no StudyInstanceUID in front. DICOM PS3.5, chapter 7.
_SERIES = re.compile(
    rb"\x20\x00\x0d\x00(?:UI..|..\x00\x00)[0-9.\x00 ]{0,64}\x20\x00\x0e\x00(?:UI..|..\x00\x00)([0-9.]{1,64})", re.DOTALL
)
_DICOM_HEADER = 1 << 16

# Unicode's categories of control characters, line and paragraph separators.
_UNPRINTED = ("Cc", "Zl", "Zp")


@dataclass(frozen=True)
class FoundSlide:
    """A slide's file and its name."""

    path: Path
    """As OpenSlide wants it: the `.mrxs` file, the `.vms` file, one file of a DICOM series."""
    name: str
    """Unique among the slides found together; parts are divided by `/`, and none is `..`."""


@dataclass
class _Entry:
    """A file that may be a slide: `root / relative`."""

    root: Path
    relative: str
    link: bool
    stem: str = field(init=False)

    def __post_init__(self) -> None:
        stem = self.relative[: -len(_suffix(self.relative))] if _suffix(self.relative) else self.relative
        self.stem = stem[:-4] if stem.lower().endswith(".ome") and len(Path(stem).name) > 4 else stem

    @property
    def path(self) -> Path:
        return self.root / self.relative


def find_slides(
    sources: Sequence[Path], *, plain: bool = False, remark: Callable[[str], None] = warn
) -> list[FoundSlide]:
    """Find the slides in folders, at any depth, and among files.

    Hidden files and folders (`.x`, `._x.svs`, `__MACOSX`) are left out. Links are followed, but each real folder and
    file is taken once, so loops end. The data of an MRXS slide, the images of a VMS slide, and all but one file of a
    DICOM series in a folder are no slides of their own.

    A slide's name is its path below the source without the suffix. Where two of one source would share a name (`a.svs`
    and `a.tiff`) they keep the suffix; where those of several sources would, the source folder's name goes in front,
    and as many of the folders above it as tell them apart.

    Args:
        sources: Folders and files. A file given by name is taken for a slide whatever its suffix.
        plain: Take images without levels (`.png .jpg .jpeg .jp2 .bmp`) in folders too.
        remark: Told, in one line each, of what could not be read.

    Returns:
        The slides, in the order of their names.

    Raises:
        EosinError: If no source is given, or one is absent or a folder without slides.
    """
    if not sources:
        raise EosinError("no slides given; name slides or folders of slides")
    suffixes = SLIDE_SUFFIXES | PLAIN_SUFFIXES if plain else SLIDE_SUFFIXES
    entries = []
    for source in map(Path, sources):
        if source.is_dir():
            walk = _Walk(source, suffixes, remark)
            inside = walk.entries()
            if not inside:
                seen = f"none of its {walk.seen:,} files is one" if walk.seen else "it is empty"
                raise EosinError(f"{source}: no slides; {seen} (looked for {' '.join(sorted(suffixes))}, at any depth)")
            entries += inside
        elif source.is_file():
            entries.append(_Entry(source.parent, source.name, source.is_symlink()))
        elif source.exists():
            raise EosinError(f"{source}: neither a file nor a folder; give slides or folders of slides")
        else:
            raise EosinError(f"{source}: no such file or folder")
    named = _named([entry for entry in _each_once(entries) if _has_text_name(entry, remark)])
    if not named:
        raise EosinError(f"{sources[0]}: no slide left; see the remarks above")
    return sorted((FoundSlide(entry.path, name) for entry, name in named), key=lambda slide: slide.name)


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1]  # noqa: PTH122 (tens of thousands of files)


class _Walk:
    """The files below a folder that may be slides."""

    def __init__(self, root: Path, suffixes: frozenset[str], remark: Callable[[str], None]) -> None:
        self.root = root
        self.suffixes = suffixes
        self.remark = remark
        self.seen = 0
        self._visited: set[tuple[int, int]] = set()

    def entries(self) -> list[_Entry]:
        """Return them in the order of their paths, folders reached by links last."""
        found: list[_Entry] = []
        folders, links = [""], list[str]()
        while folders or links:
            # Links come last, so that a folder reached both ways is named by its own path.
            if not folders:
                links.sort(reverse=True)
            relative = folders.pop() if folders else links.pop()
            try:
                found += self._folder(relative, folders, links)
            except OSError as error:
                self.remark(f"{self.root / relative}: cannot be read ({error.strerror}); change its permissions")
        return found

    def _folder(self, relative: str, folders: list[str], links: list[str]) -> list[_Entry]:
        """Return a folder's own slides and put its sub-folders on the lists of what is still to be read."""
        path = self.root / relative
        status = path.stat()
        if (status.st_dev, status.st_ino) in self._visited:
            return []
        self._visited.add((status.st_dev, status.st_ino))
        with os.scandir(path) as listing:
            items = sorted(listing, key=lambda item: item.name)
        if any(item.name.lower() == "slidedat.ini" for item in items):
            # The data folder of an MRXS slide, whose .mrxs file lies beside it.
            return []
        found, below = list[_Entry](), list[str]()
        for item in items:
            if item.name.startswith(".") or item.name == "__MACOSX":
                continue
            name = f"{relative}/{item.name}" if relative else item.name
            if self._is_folder(item):
                (links if item.is_symlink() else below).append(name)
                continue
            self.seen += 1
            if _suffix(item.name).lower() not in self.suffixes:
                continue
            if self._is_file(item):
                found.append(_Entry(self.root, name, item.is_symlink()))
            elif item.is_symlink():
                self.remark(f"{self.root / name}: a link to nothing; left out")
            else:
                self.remark(f"{self.root / name}: a pipe, socket or device; left out")
        folders += reversed(below)
        return _without_parts(found)

    @staticmethod
    def _is_folder(item: os.DirEntry[str]) -> bool:
        try:
            return item.is_dir()
        except OSError:  # a link to itself
            return False

    @staticmethod
    def _is_file(item: os.DirEntry[str]) -> bool:
        try:
            return item.is_file()
        except OSError:
            return False


def _without_parts(entries: Iterable[_Entry]) -> list[_Entry]:
    """Leave out, among the files of one folder, those that belong to a slide which another file stands for."""
    kept: list[_Entry] = []
    series: set[bytes] = set()
    parts: set[str] = set()
    for entry in entries:
        suffix = _suffix(entry.relative).lower()
        if suffix == ".dcm":
            identity = _series(entry.path)
            if identity in series:
                continue
            if identity is not None:
                series.add(identity)
        elif suffix in (".vms", ".vmu"):
            parts |= _files_of_index(entry.path)
        kept.append(entry)
    return [entry for entry in kept if Path(entry.relative).name not in parts]


def _series(path: Path) -> bytes | None:
    """Return the SeriesInstanceUID of a DICOM file; None where it is not found near the beginning."""
    try:
        with open(path, "rb") as file:
            header = file.read(_DICOM_HEADER)
    except OSError:
        return None
    match = _SERIES.search(header) if header[128:132] == b"DICM" else None
    return match.group(1) if match else None


def _files_of_index(path: Path) -> set[str]:
    """Return the names after ``ImageFile(2,3)=``, ``MacroImage=`` and the like in a Hamamatsu slide's index."""
    try:
        text = path.read_bytes()[:_DICOM_HEADER].decode("utf-8", "replace")
    except OSError:
        return set()
    pairs = (line.partition("=") for line in text.splitlines())
    return {value.strip() for key, _, value in pairs if "File" in key or "Image" in key}


def _each_once(entries: Iterable[_Entry]) -> Iterator[_Entry]:
    """Yield each real file once, by its own path rather than by a link's."""
    known: set[str] = set()
    for entry in sorted(entries, key=lambda entry: entry.link):
        real = os.path.realpath(entry.path)
        if real not in known:
            known.add(real)
            yield entry


def _has_text_name(entry: _Entry, remark: Callable[[str], None]) -> bool:
    try:
        str(entry.path.resolve()).encode()
    except UnicodeEncodeError:
        remark(f"{str(entry.path)!r}: the file name is not UTF-8; left out; rename the file")
        return False
    if any(unicodedata.category(letter) in _UNPRINTED for letter in entry.relative):
        # It would break tables, messages and the captions of pictures, and may command the terminal.
        remark(f"{str(entry.path)!r}: a control character, such as a line break, is in the name; left out; rename it")
        return False
    return True


def _named(entries: Sequence[_Entry]) -> list[tuple[_Entry, str]]:
    """Give each its name."""
    sources: dict[Path, list[_Entry]] = defaultdict(list)
    for entry in entries:
        sources[entry.root].append(entry)
    pairs = [pair for group in sources.values() for pair in _in_one_source(group)]
    parents = {root: root.resolve().parts[1:] for root in sources}
    depth = [0] * len(pairs)
    while True:
        names = [_below(parents[entry.root], entry, own, k) for (entry, own), k in zip(pairs, depth, strict=True)]
        counts = Counter(names)
        if len(counts) == len(names):
            return [(entry, name) for (entry, _), name in zip(pairs, names, strict=True)]
        depth = [k + (counts[name] > 1) for k, name in zip(depth, names, strict=True)]


def _below(parents: tuple[str, ...], entry: _Entry, own: str, depth: int) -> str:
    """Return a slide's name with the last `depth` folders of its source in front; at last, its whole path."""
    if depth > len(parents):
        return "/".join([*parents, entry.relative])
    return "/".join([*parents[len(parents) - depth :], own])


def _in_one_source(entries: Sequence[_Entry]) -> Iterator[tuple[_Entry, str]]:
    names = [entry.stem for entry in entries]
    while True:
        counts = Counter(names)
        twice = [place for place, name in enumerate(names) if counts[name] > 1]
        if not twice:
            break
        # A name with its suffix may be another's without: that one is then made longer in the next round.
        for place in twice:
            names[place] = entries[place].relative
    yield from zip(entries, names, strict=True)
