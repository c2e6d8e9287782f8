"""Drawn tissue with drawn nuclei: for trying things out where no labelled set is at hand. It is not real tissue."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Annotated

from pydantic import Field

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.nuclei.datasets.registry import NUCLEI_SETS, About, Found, NucleiScheme, assemble
from eosin.nuclei.datasets.sample import NucleiSample, NucleiSet, Split, make_sample
from eosin.nuclei.labels import instance_types
from eosin.synthetic import NUCLEUS_TYPES, render_tile

__all__ = ["SYNTHETIC", "SyntheticNucleiOptions"]

SYNTHETIC = About(
    name="synthetic",
    title="synthetic tissue",
    task="drawn nuclei of five types",
    classes=tuple(NUCLEUS_TYPES[kind] for kind in sorted(NUCLEUS_TYPES)),
    licence="Apache-2.0",
    use="anyone",
    layout=("synthetic:?images=16&size=128&seed=0",),
    reference="rendered by eosin.synthetic; no real tissue",
    flaws=("no real tissue: scores on it say nothing about pathology",),
)

_TISSUES = ("tumor", "glands", "lymphocytes", "stroma", "muscle")
"""Those with many nuclei."""


class SyntheticNucleiOptions(Config):
    """What may follow the `?` of ``synthetic:``."""

    images: Annotated[int, Field(ge=3, le=100_000)] = 16
    """Number of images."""
    size: Annotated[int, Field(ge=16, le=4096)] = 128
    """Side in px."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the drawing."""
    mpp: Annotated[float, Field(ge=0.1, le=4.0)] = 0.25
    """µm/px."""


def _open(source: str, options: SyntheticNucleiOptions, spec: str) -> NucleiSet:
    if source:
        raise EosinError(f"{spec}: synthetic tissue has no path; set options as {SYNTHETIC.layout[0]}")
    slides = min(options.images, max(5, options.images // 4))
    tested = max(1, slides // 5)
    counts: dict[Split, int] = {"train": slides - 2 * tested, "val": tested, "test": tested}
    sides = [side for side, count in counts.items() for _ in range(count)]
    # What the renderer draws now is part of the fingerprint.
    drawn = hashlib.sha256(b"".join(render_tile(tissue, size=32, mpp=0.25).image.tobytes() for tissue in _TISSUES))
    found = [
        Found(
            f"s{number % slides:03d}_{number:05d}",
            sides[number % slides],
            partial(_load, number, slides, options.size, options.mpp, options.seed),
            (options.size, options.size),
            hashlib.blake2b(drawn.digest() + number.to_bytes(8, "big"), digest_size=16).digest(),
            b"",
            group=f"slide{number % slides:03d}",
            mpp=options.mpp,
            tissue=_TISSUES[number % len(_TISSUES)],
        )
        for number in range(options.images)
    ]
    named: dict[str, Split] = {side: side for side in sides}
    return assemble(
        SYNTHETIC,
        spec,
        found,
        named,
        options,
        classes=SYNTHETIC.classes,
        split_source="made: train/val/test about 60/20/20 % by slide",
        notes=SYNTHETIC.flaws,
    )


def _load(number: int, slides: int, size: int, mpp: float, seed: int) -> NucleiSample:
    tissue = _TISSUES[number % len(_TISSUES)]
    tile = render_tile(tissue, size=size, mpp=mpp, seed=seed, slide=number % slides, index=number)
    return make_sample(
        tile.image, tile.instances, lambda instances, ids: instance_types(instances, tile.types, "synthetic")
    )


NUCLEI_SETS.register("synthetic")(NucleiScheme(SYNTHETIC, SyntheticNucleiOptions, _open, {}))
