"""From what the user names to one job a slide: its µm/px, patient, mask, regions and coordinates."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eosin.core.errors import EosinError
from eosin.core.files import file_sha256
from eosin.slides import FoundSlide
from eosin.tiling.config import TilingConfig

__all__ = ["Extras", "SlideJob", "make_jobs", "renamed", "slide_key"]

_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg")


@dataclass(frozen=True)
class Extras:
    """What is said of slides besides the slides themselves."""

    source_mpp: str | None = None
    """µm/px of level 0: a number for the slides whose file does not say it, or a CSV with the columns slide and mpp,
    which goes before what a file says."""
    patient: str | None = None
    """A regular expression, searched in the slide's name, whose first group is the patient; or a CSV with the columns
    slide and patient."""
    masks: Path | None = None
    """Folder of tissue masks: NAME.png, any size with the slide's proportions, tissue where it is not 0."""
    regions: Path | None = None
    """Folder of regions: NAME.geojson as QuPath writes it, in level-0 px; or one such file, if there is one slide."""
    coordinates: Path | None = None
    """Folder of CLAM's or TRIDENT's coordinates: NAME.h5 or NAME_patches.h5."""


@dataclass(frozen=True)
class SlideJob:
    """All that a process needs to cut one slide."""

    path: Path
    name: str
    key: str
    config: TilingConfig
    source_mpp: float | None = None
    """µm/px of level 0, whatever the file says."""
    fallback_mpp: float | None = None
    """µm/px of level 0, where the file does not say it."""
    patient: str | None = None
    mask: Path | None = None
    regions: Path | None = None
    coordinates: Path | None = None

    def given(self) -> dict[str, Any]:
        """Return what the user gave for this slide, with the content of its files, to see when it changes."""
        files = {"mask": self.mask, "regions": self.regions, "coordinates": self.coordinates}
        return {
            "source_mpp": self.source_mpp,
            "patient": self.patient,
            **{name: None if path is None else file_sha256(path) for name, path in files.items()},
        }


def slide_key(name: str) -> str:
    """Return a file name, without suffix, for a slide's name: readable, and unique by its last 8 digits."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-80:].lstrip("._-")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def make_jobs(found: Sequence[FoundSlide], config: TilingConfig, extras: Extras) -> tuple[list[SlideJob], list[str]]:
    """Make the jobs.

    Args:
        found: The slides.
        config: How they are cut.
        extras: What else is said of them.

    Returns:
        One job a slide, in the order given, and remarks on tables' rows and files that fit no slide.

    Raises:
        EosinError: If a table, a folder or the regular expression is faulty.
    """
    remarks: list[str] = []
    fallback_mpp, mpp_of = _mpp(found, extras.source_mpp, remarks)
    patient_of = _patients(found, extras.patient, remarks)
    files: dict[str, dict[str, Path]] = {
        "mask": _files(found, extras.masks, "masks", _MASK_SUFFIXES, remarks),
        "regions": _files(found, extras.regions, "regions", (".geojson", ".json"), remarks),
        "coordinates": _files(found, extras.coordinates, "coordinates", (".h5", "_patches.h5", ".hdf5"), remarks),
    }
    jobs = [
        SlideJob(
            path=slide.path.absolute(),
            name=slide.name,
            key=slide_key(slide.name),
            config=config,
            source_mpp=mpp_of.get(slide.name),
            fallback_mpp=fallback_mpp,
            patient=patient_of(slide),
            **{kind: path and path.absolute() for kind, chosen in files.items() for path in [chosen.get(slide.name)]},
        )
        for slide in found
    ]
    keys = dict[str, str]()
    for job in jobs:
        other = keys.setdefault(job.key, job.name)
        if other != job.name:
            raise EosinError(f"{job.path}: its name and that of '{other}' give the same file names; rename one")
    remarks += _without(found, files["mask"], extras.masks, "masks")
    remarks += _without(found, files["regions"], extras.regions, "regions")
    remarks += _without(found, files["coordinates"], extras.coordinates, "coordinates")
    if extras.coordinates is not None:
        jobs = [job for job in jobs if job.coordinates is not None]
    return jobs, remarks


def renamed(job: SlideJob, name: str) -> SlideJob:
    """Return a job under the name that its slide had before."""
    return dataclasses.replace(job, name=name, key=slide_key(name))


def _called(slide: FoundSlide) -> list[str]:
    """Return what a table or a file may call a slide, the most exact first."""
    name = PurePosixPath(slide.name)
    paths = [str(slide.path), os.path.abspath(slide.path)]  # noqa: PTH100 (links stay as they are)
    return list(dict.fromkeys([slide.name, str(name.with_name(slide.path.name)), slide.path.name, name.name, *paths]))


class _Names:
    """Finds the slide that a name in a table or folder means."""

    def __init__(self, found: Sequence[FoundSlide]) -> None:
        self._slides: dict[str, list[str]] = {}
        for slide in found:
            for name in _called(slide):
                self._slides.setdefault(name, []).append(slide.name)

    def find(self, name: str, where: str) -> str | None:
        """Return the slide's name, or None where none is called so.

        Raises:
            EosinError: If several slides are.
        """
        slides = list(dict.fromkeys(self._slides.get(name, [])))
        if name in slides:
            return name
        if len(slides) > 1:
            raise EosinError(f"{where}: '{name}' is the name of {len(slides)} slides; write {' or '.join(slides[:3])}")
        return slides[0] if slides else None


def _table(path: Path, column: str, found: Sequence[FoundSlide], remarks: list[str]) -> dict[str, str]:
    """Read a CSV of slide and one more column; empty cells are left out."""
    rows = _rows(path, column)
    names, values, unknown = _Names(found), dict[str, str](), list[str]()
    for number, (called, value) in enumerate(rows, start=1):
        if not called or not value:
            continue
        slide = names.find(called, f"{path}: row {number}")
        if slide is None:
            unknown.append(called)
        elif values.setdefault(slide, value) != value:
            raise EosinError(f"{path}: row {number} gives '{called}' a second {column}; keep one")
    if not values and not unknown:
        raise EosinError(f"{path}: no row has both a slide and its {column}; fill in the table")
    if unknown:
        remarks.append(
            f"{path}: {len(unknown):,} rows name no slide given (first '{unknown[0]}'; write '{found[0].name}')"
        )
    return values


def _rows(path: Path, column: str) -> list[tuple[str, str]]:
    """Return the cells of the columns slide and `column`; capitals and spaces around names do not matter.

    Raises:
        EosinError: If the file cannot be read, or lacks one of them.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file, strict=True))
    except UnicodeDecodeError:
        raise EosinError(f"{path}: not a readable CSV (its text is not UTF-8); save it as CSV UTF-8") from None
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise EosinError(f"{path}: not a readable CSV ({reason})") from None
    present = [name.strip() for name in rows[0]] if rows else []
    places = []
    for wanted in ("slide", column):
        fitting = [place for place, name in enumerate(present) if name.lower() == wanted]
        if not fitting:
            parted = len(present) == 1 and re.search(r"[;\t|]", present[0])
            fix = "; part them by commas, and write numbers with a point" if parted else ""
            columns = ", ".join(map(repr, present)) or "none"
            raise EosinError(f"{path}: no column '{wanted}'; its columns: {columns}{fix}")
        places.append(fitting[0])
    # A row may be shorter than the header.
    return [
        (cells[places[0]].strip(), cells[places[1]].strip())
        for cells in ([*row, *[""] * len(present)] for row in rows[1:])
    ]


def _mpp(found: Sequence[FoundSlide], given: str | None, remarks: list[str]) -> tuple[float | None, dict[str, float]]:
    """Return the µm/px of slides that have none, and the µm/px of slides by name."""
    if given is None:
        return None, {}
    if not given.lower().endswith(".csv"):
        return _number(given, "--source-mpp"), {}
    table = _table(Path(given), "mpp", found, remarks)
    return None, {name: _number(value, f"{given}: mpp of '{name}'", "") for name, value in table.items()}


def _number(text: str, where: str, else_a: str = " nor a .csv of slide,mpp") -> float:
    try:
        value = float(text)
    except ValueError:
        raise EosinError(f"{where}: '{text}' is {'neither' if else_a else 'not'} a number{else_a}") from None
    if not (math.isfinite(value) and 0.05 <= value <= 20):
        raise EosinError(f"{where}: {text} µm/px is not between 0.05 and 20")
    return value


def _patients(found: Sequence[FoundSlide], given: str | None, remarks: list[str]) -> Callable[[FoundSlide], str | None]:
    if given is None:
        return lambda slide: None
    if given.lower().endswith(".csv"):
        table = _table(Path(given), "patient", found, remarks)
        return lambda slide: table.get(slide.name)
    try:
        pattern = re.compile(given)
    except re.error as error:
        raise EosinError(f"--patient: '{given}' is no regular expression ({error})") from None
    if pattern.groups == 0:
        raise EosinError(
            rf"--patient: '{given}' has no group; put the patient in brackets, such as '^(TCGA-\w\w-\w{{4}})'"
        )
    patients = {}
    for slide in found:
        match = pattern.search(slide.name)
        patients[slide.name] = match and next((part for part in match.groups() if part), None)
    without = [name for name, patient in patients.items() if not patient]
    if without:
        remarks.append(f"--patient: {len(without):,} slides do not match and have no patient (first '{without[0]}')")
    return lambda slide: patients[slide.name]


def _files(
    found: Sequence[FoundSlide], given: Path | None, what: str, suffixes: Sequence[str], remarks: list[str]
) -> dict[str, Path]:
    """Return the file of each slide that has one in a folder laid out like the slides."""
    if given is None:
        return {}
    if given.is_file() and len(found) == 1:
        return {found[0].name: given}
    if not given.is_dir():
        raise EosinError(f"{given}: no folder of {what}; give one that holds NAME{suffixes[0]} for each slide")
    names, chosen, unknown = _Names(found), dict[str, Path](), list[str]()
    for path in sorted(given.rglob("*")):
        relative = path.relative_to(given).as_posix()
        fitting = [relative.removesuffix(suffix) for suffix in suffixes if relative.lower().endswith(suffix)]
        if not fitting or not path.is_file() or path.name.startswith("."):
            continue
        slides = [slide for name in fitting if (slide := names.find(name, str(path)))]
        if not slides:
            unknown.append(relative)
        elif slides[0] in chosen:
            raise EosinError(
                f"{path}: a second file of {what} for '{slides[0]}', besides {chosen[slides[0]]}; keep one"
            )
        else:
            chosen[slides[0]] = path
    if unknown:
        remarks.append(
            f"{given}: {len(unknown):,} files fit no slide given (first '{unknown[0]}'; "
            f"call it '{found[0].name}{suffixes[0]}')"
        )
    return chosen


# What becomes of a slide without a file of its own.
_WITHOUT = {
    "masks": "whose tissue is sought as without --masks",
    "regions": "which are cut wherever they have tissue",
    "coordinates": "which are left out",
}


def _without(found: Sequence[FoundSlide], chosen: Mapping[str, Path], given: Path | None, what: str) -> list[str]:
    """Say that slides have no file in a folder given, and what follows from it."""
    without = [slide.name for slide in found if slide.name not in chosen]
    if given is None or not without:
        return []
    return [f"{given}: no {what} for {len(without):,} slides, {_WITHOUT[what]} (first '{without[0]}')"]
