"""What is known of each public labelled set: classes, counts, scale, licence, files and flaws, in one frozen entry."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from eosin.core.config import Config
from eosin.core.registry import Registry

__all__ = ["DATA_SETS", "DataSet", "RemoteFile"]


class RemoteFile(Config):
    """A file as its authors publish it."""

    name: str
    """Name below the set's root."""
    url: str
    md5: str | None = None
    """MD5 of the file as published; None where no source gives one."""
    bytes: int | None = None
    """Size as published; None where no source gives it."""
    becomes: str | None = None
    """The folder (of an archive) or file (of a `.gz`) below the root that it is unpacked to; None if it stays."""
    becomes_md5: str | None = None
    """MD5 of that file."""
    becomes_bytes: int | None = None
    """Size of what is unpacked, about; the check of free space and the limit against archive bombs go by it."""
    members: str = ""
    """Of an archive, unpack only members whose path begins so."""


class DataSet(Config):
    """A public labelled set of tiles.

    Sizes, counts and checksums are those that the authors, or a public reader of the set, state.
    """

    name: str
    """The scheme: ``bach`` in ``bach:DIR``."""
    title: str
    task: str
    """What is to be told apart, in a few words."""
    version: int = 1
    """Raised when the same files would give other labels or another split."""
    classes: dict[str, str]
    """Class -> what it is; sorted by name, which is the order of the label indices."""
    counts: dict[str, dict[str, int]] = Field(default_factory=dict)
    """Official part -> class -> number of images. The parts are folders or files of the set, not yet the split."""
    totals: dict[str, int] = Field(default_factory=dict)
    """Official part -> number of images, of a set whose counts by class are not stated; `counts` is then empty."""
    splits: dict[str, tuple[int, int, int]]
    """Name of a published or pinned split -> images in train, val, test. The first one is the default."""
    pins: dict[str, str] = Field(default_factory=dict)
    """Name of a split -> its hash over the official names (`pinned_by`), where these are known beforehand."""
    pinned_by: Literal["image", "patient", "counts"] = "image"
    """What is pinned: the side of each image, of each patient, or only how many images of a class are where."""
    image_size: tuple[int, int]
    """Width and height in px of every image."""
    mpp: float
    """µm/px."""
    gigabytes: float
    """Size of the download."""
    licence: str
    licence_url: str
    use: str
    """Who may use it, and for what."""
    consent: bool = False
    """Whether the licence restricts use so that `eosin data get` asks for it to be accepted."""
    access: Literal["download", "form"] = "download"
    home: str
    """Where it is published."""
    how: str
    """How to get it."""
    layout: tuple[str, ...]
    """The tree below the root, a line each."""
    files: tuple[RemoteFile, ...] = ()
    reference: str
    flaws: tuple[str, ...]
    """What a reader of scores on it should know."""

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Official part -> number of images."""
        return self.totals or {part: sum(of_class.values()) for part, of_class in self.counts.items()}


DATA_SETS: Registry[DataSet] = Registry("data set")
"""Scheme -> what is known of the set."""
