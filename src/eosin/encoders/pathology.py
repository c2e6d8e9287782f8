"""`pathology:NAME` and `lunit:NAME`: public encoders of pathology, each known by an entry of a few lines.

The entries stand in `pathology.yaml`. An encoder whose network timm builds needs nothing but an entry.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from eosin.core.config import Config
from eosin.core.console import note
from eosin.core.errors import EosinError, nearest
from eosin.encoders.backbone import TimmEncoder, embedding_width
from eosin.encoders.base import Card, Channels, Encoder, Feature
from eosin.encoders.hub import address_file, encoders_home, hub_file, hub_folder
from eosin.encoders.loading import load_backbone
from eosin.encoders.registry import ENCODERS, Options, Scheme, feature_of, spec_of, whole_number
from eosin.encoders.state import read_tensors

__all__ = [
    "Entry",
    "entry_for_repository",
    "load_lunit",
    "load_pathology",
    "pathology_entries",
    "say_licence",
]

LUNIT = "lunit-"
_HUB = "hf-hub:"


class Entry(Config):
    """What must be known of a public encoder to build, load and feed it."""

    architecture: str
    """timm's name of the network."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of timm.create_model in which it differs, see `layers.real_arguments`."""
    source: str
    """``hf-hub:OWNER/NAME`` or the address of the file."""
    file: str
    """The file in the repository; for an address, its path below ``$EOSIN_HOME/encoders``."""
    size: Annotated[int, Field(ge=1)] = 224
    """Side of the input in pixels."""
    mean: Channels
    """Mean of R, G, B in 0..1."""
    std: Channels
    """Standard deviation of R, G, B in 0..1."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Filter with which the authors bring tiles to `size`."""
    feature: Feature
    """What its authors take as the embedding."""
    width: Annotated[int, Field(ge=1)]
    """Length of that embedding."""
    parameters: Annotated[float, Field(gt=0)]
    """Parameters in millions, as published."""
    mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of the training tiles; None where there were several or it is not published."""
    licence: str
    """Licence of the weights."""
    non_commercial: bool = False
    """Whether it forbids commercial use."""
    gated: bool = False
    """Whether the source asks for an account and for the licence to be accepted."""
    reference: str
    """Paper or page."""
    unverified: str = ""
    """What could not be checked against the authors' own text or files."""

    @property
    def repository(self) -> str | None:
        """Owner and name at the Hugging Face Hub, if it is there."""
        return self.source.removeprefix(_HUB) if self.source.startswith(_HUB) else None


@cache
def pathology_entries() -> dict[str, Entry]:
    """Read the entries, by name."""
    text = resources.files("eosin.encoders").joinpath("pathology.yaml").read_text(encoding="utf-8")
    table = yaml.safe_load(text)
    entries = {}
    for name, values in table["encoders"].items():
        statistics = table["statistics"][values["statistics"]]
        own = {key: value for key, value in values.items() if key != "statistics"}
        entries[name] = Entry.parse(own | statistics, f"pathology.yaml ({name})")
    return entries


def entry_for_repository(repository: str) -> str | None:
    """Name the entry whose weights a repository of the Hugging Face Hub holds."""
    for name, entry in pathology_entries().items():
        if entry.repository is not None and entry.repository.lower() == repository.lower():
            return name
    return None


def _path(entry: Entry, spec: str) -> Path:
    """Find or download the file of an entry.

    Raises:
        EosinError: If it is not on this machine and not to be had; the message says what to do.
    """
    repository = entry.repository
    if repository is None:
        return address_file(spec, entry.source, encoders_home() / entry.file)
    names = list(dict.fromkeys([entry.file, "model.safetensors", "pytorch_model.bin"]))
    path = hub_file(spec, repository, names, hub_folder(repository) / entry.file)
    assert path is not None
    return path


def load_pathology(name: str, options: Options) -> Encoder:
    """Load a public pathology encoder with the pixels and the feature that its authors use.

    Args:
        name: Of the entry.
        options: `size` of the input; `feature` (cls, cls+mean_patch) in place of the authors'.

    Raises:
        EosinError: If there is no such entry, or its weights are not to be had, damaged, or not its network's.
    """
    entries = pathology_entries()
    key = name.lower()
    if key not in entries:
        raise EosinError(f"pathology:{name}: no such encoder; {nearest(key, entries)}")
    return _load(entries[key], f"pathology:{key}", options)


def load_lunit(name: str, options: Options) -> Encoder:
    """Load weights released with Kang et al., CVPR 2023, by their short name or the name of their file.

    Raises:
        EosinError: As `load_pathology`.
    """
    entries = {key.removeprefix(LUNIT): entry for key, entry in pathology_entries().items() if key.startswith(LUNIT)}
    stems = {Path(entry.file).stem: key for key, entry in entries.items()}
    key = stems.get(name.removesuffix(".torch"), name)
    if key not in entries:
        raise EosinError(f"lunit:{name}: no such weights; {nearest(name, entries)}")
    return _load(entries[key], f"lunit:{key}", options)


def _load(entry: Entry, spec: str, options: Options) -> Encoder:
    size = whole_number(options, "size", entry.size, 1)
    feature = feature_of(options, entry.feature)
    path = _path(entry, spec)
    backbone, _ = load_backbone(entry.architecture, size, read_tensors(path), str(path), options=entry.options)
    card = Card(
        spec=spec_of(spec, options),
        architecture=entry.architecture,
        size=size,
        mean=entry.mean,
        std=entry.std,
        interpolation=entry.interpolation,
        mpp=entry.mpp,
        licence=entry.licence,
        width=embedding_width(backbone, feature),
        options=entry.options,
        feature=feature,
        gated=entry.gated,
        reference=entry.reference,
    )
    encoder = TimmEncoder(card, backbone)
    if entry.non_commercial:
        say_licence(spec, entry.licence)
    return encoder


@cache
def say_licence(spec: str, licence: str) -> None:
    """Print under which licence weights are used, once a process."""
    note(f"{spec}: licence of the weights: {licence}; no commercial use")


ENCODERS.register("pathology")(
    Scheme(
        load=load_pathology,
        options=("size", "feature"),
        examples=(),
        summary="a public pathology encoder, see `eosin encoders`",
    )
)
ENCODERS.register("lunit")(
    Scheme(
        load=load_lunit,
        options=("size", "feature"),
        examples=(),
        summary="weights released with Kang et al., CVPR 2023",
    )
)
