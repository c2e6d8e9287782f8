"""A set of labelled nuclei as a task of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eosin.core.errors import EosinError
from eosin.core.files import short_hash
from eosin.nuclei.datasets import NUCLEI_SETS, NucleiSet, open_nuclei
from eosin.nuclei.datasets.checking import look_over
from eosin.tasks.spec import split_spec

__all__ = ["OpenNuclei", "is_nuclei_spec", "open_nuclei_task"]

_SCHEME = "nuclei:"


@dataclass(frozen=True)
class OpenNuclei:
    """A set ready to be scored on.

    Attributes:
        spec: As the user wrote it.
        source: What `open_nuclei` opens.
        set: Its images, labels and split.
        name: Shown in results.
        version: Of the set's definition.
        synthetic: Whether its images are procedural.
    """

    spec: str
    source: str
    set: NucleiSet
    name: str
    version: int
    synthetic: bool

    @property
    def content(self) -> str:
        """Hash of everything in it that a result depends on."""
        return self.set.fingerprint

    @property
    def split_hash(self) -> str:
        """Hash of which image is on which side, and of whom it is."""
        return short_hash(*[(image.name, image.split, image.group) for image in self.set.images])

    @property
    def grouping(self) -> str:
        """What resampling draws: "image", or "group" where patients or slides are known."""
        return "image" if all(image.group == image.name for image in self.set.of("test")) else "group"

    @property
    def groups(self) -> int:
        """Number of patients, slides or images on the test side."""
        return len(np.unique([image.group for image in self.set.of("test")]))


def is_nuclei_spec(spec: str) -> bool:
    """Tell whether a task's spec names labelled nuclei."""
    return spec.startswith(_SCHEME)


def open_nuclei_task(spec: str) -> OpenNuclei:
    """Open ``nuclei:SPEC``; among the options of SPEC, `name` is the name to show.

    A command line parts tasks at commas, so the names of types in `classes` may be joined by `+` too.

    Raises:
        EosinError: As `open_nuclei`; if no image is on the test side, or labels are at fault.
    """
    rest = spec.removeprefix(_SCHEME)
    if not rest:
        raise EosinError(f"{spec}: give a set of nuclei, such as {_SCHEME}folder:DIR; see `eosin data list --nuclei`")
    source, options = split_spec(rest)
    name = options.pop("name", "")
    if "classes" in options:
        options["classes"] = options["classes"].replace("+", ",")
    if options:
        source += "?" + "&".join(f"{key}={value}" for key, value in options.items())
    found = open_nuclei(source)
    if not found.of("test"):
        raise EosinError(f"{spec}: no image is on the side 'test'; there is nothing to score on")
    look_over(found)
    scheme = source.partition(":")[0].partition("?")[0]
    about = NUCLEI_SETS[scheme if scheme in NUCLEI_SETS else "folder"].about
    return OpenNuclei(spec, source, found, name or found.name, about.version, scheme == "synthetic")
