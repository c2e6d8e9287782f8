"""What an encoder loses, and how far its embeddings move, when the test images change and their tissue does not.

Logistic regression is fitted and chosen on training and validation images as they are; then the same test images come
as another laboratory would have stained them, sharpened, out of focus, compressed, turned. Beside the metrics of the
changed images stand what they lost against the unchanged ones, and the embeddings' mean cosine distance.

Re-staining follows Tellez et al. (Medical Image Analysis 2019); focus, compression and
orientation are among the changes of Schömig-Markiefka et al. (Modern Pathology 2021) and Zhang et al. (MICCAI 2022,
common corruptions in digital pathology). The sizes of the changes, and the measures, are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError, StorageError
from eosin.core.files import short_hash
from eosin.evaluate.embed import PixelChange, embed
from eosin.evaluate.logistic import Logistic
from eosin.evaluate.movement import cosine_distances
from eosin.evaluate.pixel_changes import PIXEL_CHANGES
from eosin.evaluate.pixels import pixels_of
from eosin.evaluate.protocol import PROTOCOLS, Answer, FeatureProtocol, Fit, Material, Prediction, Protocol, Rows
from eosin.evaluate.stain_shift import DEFAULT_SHIFTS, NONE, Restaining, open_shift

__all__ = ["RESTAININGS", "ShiftProtocol", "predict_versions"]

Floats = npt.NDArray[np.float64]

RESTAININGS = {name.replace(":", "-"): name for name in DEFAULT_SHIFTS}
"""Variant to the stain shift it is."""


def predict_versions(
    protocol: FeatureProtocol,
    features: npt.NDArray[np.float32],
    classes: Sequence[str],
    fit: Fit,
    tests: Sequence[npt.NDArray[np.float32]],
    groups: npt.NDArray[Any] | None = None,
) -> tuple[list[Floats], dict[str, Any]]:
    """Fit once and predict several versions of the test images.

    The protocol sees no label of a test image, unless the split validates on it, and no changed image among those it
    fits or chooses on.

    Args:
        protocol: What to fit.
        features: float32 [N, D], unchanged.
        classes: C class names.
        fit: The split and its labels; those of its test images are not looked at.
        tests: Versions of the test images' features, float32 [n_test, D] each.
        groups: [N], patient or slide of each row.

    Returns:
        float64 [n_test, C] of each version, and what was chosen.
    """
    count, start = len(fit.test), len(features)
    everything = np.concatenate([features, *tests])
    labels = np.concatenate([fit.labels, np.full(count * len(tests), -1)])
    # Where a split validates on the test images (eva's two-way ones), their labels are what settings are chosen on.
    labels[np.setdiff1d(fit.test, np.concatenate([fit.train, fit.val]))] = -1
    rows = np.arange(start, start + count * len(tests))
    if groups is not None:
        groups = np.concatenate([groups, *[groups[fit.test]] * len(tests)])
    prediction = protocol.run(everything, labels, classes, fit.train, fit.val, rows, groups, fit.seed)
    return np.split(prediction.probabilities, len(tests)), prediction.chosen


@dataclass(frozen=True)
class ShiftProtocol(Protocol):
    """Logistic regression on unchanged images, asked about changed ones; `none` is the images as they are.

    The draws of a re-staining are a function of the fit's seed and the image's row.
    """

    name: ClassVar[str] = "shift"
    version: ClassVar[int] = 2
    reference: ClassVar[str] = (
        "re-staining as Tellez et al., Medical Image Analysis 2019; focus, compression and turns as"
        " Schömig-Markiefka et al., Modern Pathology 2021; measures of our own"
    )
    changes: ClassVar[dict[int, str]] = {1: "first version", 2: "the logistic regression is fitted by Newton steps"}
    variants: ClassVar[tuple[str, ...]] = (NONE, *RESTAININGS, *PIXEL_CHANGES)
    fractions: ClassVar[bool] = False
    pixels: ClassVar[bool] = True

    def depends(self, variant: str) -> str:
        """See `Protocol.depends`: the change, with its version and the statistics it draws from, and the head."""
        named = variant in PIXEL_CHANGES
        key = PIXEL_CHANGES[variant].key if named else open_shift(RESTAININGS.get(variant, variant)).key
        return short_hash(key, Logistic.version)

    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """See `Protocol.answers`."""
        wanted = list(self.variants if variants is None else variants)
        look = _look(material)
        for place, fit in enumerate(fits):
            # Images that cannot be read again fail their variant alone; a fit that cannot be made fails them all.
            before = material.features[fit.test]
            after: dict[str, npt.NDArray[np.float32]] = {}
            about: dict[str, str] = {}
            for variant in wanted:
                try:
                    change, about[variant] = _change(variant, fit)
                    after[variant] = before if change is None else look(fit.test, change)
                except StorageError:
                    raise
                except EosinError as error:
                    yield Answer(place, variant, error)
            try:
                tests = [before, *after.values()]
                versions, chosen = predict_versions(
                    Logistic(), material.features, material.classes, fit, tests, material.groups
                )
            except StorageError:
                raise
            except EosinError as error:
                yield from (Answer(place, variant, error) for variant in after)
                continue
            for (variant, features), probabilities in zip(after.items(), versions[1:], strict=True):
                moved = cosine_distances(before, features)
                told = {**chosen, "change": about[variant]}
                yield Answer(place, variant, Prediction(probabilities, told, unchanged=versions[0], moved=moved))


def _look(material: Material) -> Callable[[Rows, PixelChange], npt.NDArray[np.float32]]:
    """Return what embeds changed images: the material's own way, which keeps them, or a plain pass."""
    if material.embed_changed is not None:
        return material.embed_changed
    pixels = pixels_of(material, "shift")

    def look(rows: Rows, change: PixelChange) -> npt.NDArray[np.float32]:
        tiles = pixels.tiles.select(rows)
        precision: Any = material.precision
        found = embed(pixels.encoder, tiles, workers=material.workers, precision=precision, change=change)
        if len(found.rows) != len(rows):
            raise EosinError("shift: images became unreadable meanwhile; run the same command again")
        return found.features

    return look


def _change(variant: str, fit: Fit) -> tuple[PixelChange | None, str]:
    if variant in PIXEL_CHANGES:
        return PIXEL_CHANGES[variant], PIXEL_CHANGES[variant].about
    shift = open_shift(RESTAININGS.get(variant, variant))
    return (None if shift.operation is None else Restaining(shift, fit.seed, fit.test)), shift.about


PROTOCOLS.register("shift")(ShiftProtocol())
