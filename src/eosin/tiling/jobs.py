"""From what the user names to one job a slide: its µm/px, patient, mask, regions and coordinates."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eosin.core.errors import EosinError
from eosin.core.files import file_sha256
from eosin.slides import FoundSlide, SlideNames, given_mpp, slide_table
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
    fallback_mpp, mpp_of = given_mpp(found, extras.source_mpp, "--source-mpp", remarks)
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


def _patients(found: Sequence[FoundSlide], given: str | None, remarks: list[str]) -> Callable[[FoundSlide], str | None]:
    if given is None:
        return lambda slide: None
    if given.lower().endswith(".csv"):
        table = slide_table(Path(given), "patient", found, remarks)
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
    names, chosen, unknown = SlideNames(found), dict[str, Path](), list[str]()
    for path in sorted(given.rglob("*")):
        relative = path.relative_to(given).as_posix()
        fitting = [relative[: -len(suffix)] for suffix in suffixes if relative.lower().endswith(suffix)]
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
