"""Scores of a set of images: a row for each, and values over all with intervals whose unit is the patient or slide.

Over the images of a set, by name:

| name | is |
|---|---|
| `dice`, `aji`, `aji_plus`, `dq`, `sq`, `pq` | mean over images (`metrics`); images without any nucleus left out |
| `bpq` | PanNuke's bPQ: mean of PQ over images with true nuclei; what is found where none are costs nothing |
| `pq_set` | PQ of the counts summed over all images: each nucleus weighs the same |
| `f_d` | detection by centers, counts summed (`types`) |
| `mpq_pannuke` | PanNuke's mPQ: PQ of each type with true nuclei in an image; mean over these, then over images |
| `mpq_image` | the same with every type that is true or predicted in an image: one found but not there gets 0 |
| `mpq_set` | CoNIC's mPQ+: counts of each type summed over all images, PQ of each type, mean over types |
| `type_accuracy` | share of pairs by centers whose types agree |
| `f:TYPE`, `pq:TYPE` | F_c and PQ of one type, counts summed |

PanNuke's two are means over tissues of means over a tissue's images, where tissues are given. PanNuke: Gamper et al.,
arXiv 2003.10778; CoNIC: Graham et al., arXiv 2111.14485.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.evaluate.statistics import Interval, bootstrap_statistic
from eosin.nuclei.labels import Labels, check_labels, instance_types
from eosin.nuclei.metrics import Panoptic, image_metrics, pq_curve, typed_panoptic
from eosin.nuclei.overlap import overlap
from eosin.nuclei.types import RADIUS, Detection, Pairing, TypeCounts, centers, detect

__all__ = ["THRESHOLDS", "ImageScore", "curve", "rows", "score_image", "set_scores", "statistics_of"]

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Of the curve over IoU: 0.5, 0.55, ... 0.95."""

Floats = npt.NDArray[np.float64]
Row = dict[str, str | int | float | None]
Statistic = Callable[[Floats], Floats]


@dataclass(frozen=True, eq=False)
class ImageScore:
    """What was counted in one image.

    Attributes:
        name: Of the image.
        group: Its patient or slide, the unit of the intervals; its name where none is known.
        tissue: Its tissue; empty where none is known.
        truth: Number of true nuclei.
        predicted: Number of predicted nuclei.
        metrics: See `metrics.image_metrics`.
        curve: Counts at each of `THRESHOLDS`; the first are those of PQ.
        detection: Pairs by centers.
        types: Counts of each type, in the order they were asked for; empty without types.
    """

    name: str
    group: str
    tissue: str
    truth: int
    predicted: int
    metrics: dict[str, float]
    curve: tuple[Panoptic, ...]
    detection: Detection
    types: tuple[Panoptic, ...]

    @property
    def panoptic(self) -> Panoptic:
        """Counts of PQ."""
        return self.curve[0]


def score_image(
    name: str,
    truth: npt.ArrayLike,
    predicted: npt.ArrayLike,
    truth_types: npt.ArrayLike | None = None,
    predicted_types: npt.ArrayLike | None = None,
    types: Sequence[int] = (),
    *,
    group: str | None = None,
    tissue: str = "",
    radius: float = RADIUS,
    pairing: Pairing = "official",
) -> ImageScore:
    """Score one image.

    Args:
        name: Of the image.
        truth: Label map, [H, W].
        predicted: Label map, [H, W].
        truth_types: The type of each true nucleus in the order of ids, [T], or of each pixel, [H, W].
        predicted_types: Likewise of the predicted ones.
        types: Which types to count, such as 1 to C.
        group: Patient or slide.
        tissue: For PanNuke's means.
        radius: Largest distance of centers, in pixels: 12 at 0.25 µm/px.
        pairing: See `eosin.nuclei.types`.

    Raises:
        EosinError: If an array is no label map, sizes differ, or types do not belong to the nuclei.
    """
    true = check_labels(truth, f"{name} (truth)")
    found = check_labels(predicted, f"{name} (prediction)", true.shape)
    pairs = overlap(true, found)
    typed: tuple[Panoptic, ...] = ()
    kinds = said = None
    if (truth_types is None) != (predicted_types is None):
        missing = "truth" if truth_types is None else "prediction"
        raise EosinError(f"{name}: the {missing} has no types and the other has; give both or neither")
    if truth_types is not None and predicted_types is not None:
        kinds = _types(true, truth_types, f"{name} (types of the truth)", len(pairs.truth_areas))
        said = _types(found, predicted_types, f"{name} (types of the prediction)", len(pairs.predicted_areas))
        typed = tuple(typed_panoptic(pairs, kinds, said, types))
    detection = detect(centers(true), centers(found), kinds, said, types, radius=radius, pairing=pairing)
    counted = len(pairs.truth_areas), len(pairs.predicted_areas)
    curve = tuple(pq_curve(pairs, THRESHOLDS))
    return ImageScore(name, group or name, tissue, *counted, image_metrics(pairs), curve, detection, typed)


def _types(labels: Labels, types: npt.ArrayLike, name: str, count: int) -> npt.NDArray[np.int64]:
    array = np.asarray(types)
    if array.ndim == 2:
        return instance_types(labels, array, name)
    if array.shape != (count,) or (count and array.dtype.kind not in "iu"):
        raise EosinError(f"{name}: {array.size} types of {array.dtype} for {count} nuclei; give each one whole number")
    return array.astype(np.int64)


def rows(scores: Sequence[ImageScore], types: Mapping[int, str] | None = None) -> list[Row]:
    """Return a row for each image: its name, counts and metrics, None where a metric is undefined.

    Args:
        scores: Of the images.
        types: Names of the types that were counted, in that order; see `set_scores`.
    """
    table: list[Row] = []
    for image in scores:
        counts = image.panoptic
        row: Row = {"image": image.name, "group": image.group, "tissue": image.tissue}
        row |= {"truth": image.truth, "predicted": image.predicted}
        row |= {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn, "iou_sum": counts.iou_sum}
        row |= {name: _defined(value) for name, value in image.metrics.items()}
        row |= {"pairs": image.detection.pairs}
        for name, own in zip((types or {}).values(), image.types, strict=True):
            row |= {f"tp:{name}": own.tp, f"fp:{name}": own.fp, f"fn:{name}": own.fn, f"pq:{name}": _defined(own.pq)}
        table.append(row)
    return table


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def curve(scores: Sequence[ImageScore]) -> list[dict[str, float | None]]:
    """Average PQ, DQ and SQ over images at each of `THRESHOLDS`: how exact outlines are, beyond being matched."""
    points: list[dict[str, float | None]] = []
    for place, threshold in enumerate(THRESHOLDS):
        point: dict[str, float | None] = {"threshold": threshold}
        for name in ("pq", "dq", "sq"):
            values = [getattr(image.curve[place], name) for image in scores]
            known = [value for value in values if not math.isnan(value)]
            point[name] = math.fsum(known) / len(known) if known else None
        points.append(point)
    return points


def set_scores(
    scores: Sequence[ImageScore], types: Mapping[int, str] | None = None, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Interval]:
    """Score a set, with 95 % intervals by resampling patients or slides with all their images.

    Args:
        scores: Of the images.
        types: Names of the types that were counted, in that order; None without types.
        seed: Of the resampling.
        resamples: Number of resamples.

    Returns:
        `{name: {"value", "low", "high"}}`, with "reason" beside a value or an interval that is None; names as in the
        module's table.

    Raises:
        EosinError: If there are no images, one occurs twice, or some were scored with other types.
    """
    if not scores:
        raise EosinError("there are no images to score")
    names = [image.name for image in scores]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise EosinError(f"{twice}: is there twice; give each image one prediction and one truth")
    wrong = [image.name for image in scores if len(image.types) != len(types or {})]
    if wrong:
        raise EosinError(f"{wrong[0]}: was not scored with the types {', '.join((types or {}).values()) or '(none)'}")
    groups = [image.group for image in scores]
    return {
        name: bootstrap_statistic([(groups, compute)], seed, resamples, undefined)
        for name, (compute, undefined) in statistics_of(scores, types or {}).items()
    }


def statistics_of(scores: Sequence[ImageScore], types: Mapping[int, str]) -> dict[str, tuple[Statistic, str]]:
    """Return everything that is measured, as functions of the weights of images, with why it can be undefined.

    Args:
        scores: Of n images.
        types: Names of the types that were counted, in that order.

    Returns:
        ``{name: (weights float64 [R, n] -> values float64 [R], reason)}``.
    """
    none = "no image has a nucleus"
    found: dict[str, tuple[Statistic, str]] = {}
    for name in scores[0].metrics:
        found[name] = (_mean(np.array([image.metrics[name] for image in scores])), none)
    tissues = [image.tissue for image in scores]
    found["bpq"] = (
        _mean(np.array([image.panoptic.pq if image.truth else math.nan for image in scores]), tissues),
        "no image has a true nucleus",
    )
    found["pq_set"] = (_pooled_pq([[image.panoptic] for image in scores]), none)
    detections = np.array([[d.detection.pairs, d.detection.fp, d.detection.fn] for d in scores], dtype=np.float64)
    found["f_d"] = (_ratio(2 * detections[:, 0], detections @ np.array([2.0, 1.0, 1.0])), none)
    if types:
        found |= _typed_statistics(scores, types, tissues)
    return found


def _typed_statistics(
    scores: Sequence[ImageScore], types: Mapping[int, str], tissues: Sequence[str]
) -> dict[str, tuple[Statistic, str]]:
    none = "no nucleus has a type"
    there = np.array([[own.tp + own.fn > 0 for own in image.types] for image in scores])
    values = np.array([[own.pq for own in image.types] for image in scores])
    found: dict[str, tuple[Statistic, str]] = {
        "mpq_pannuke": (_mean(_row_means(np.where(there, values, math.nan)), tissues), none),
        "mpq_image": (_mean(_row_means(values)), none),
        "mpq_set": (_pooled_pq([image.types for image in scores]), none),
    }
    same = np.array([image.detection.same or 0 for image in scores], dtype=np.float64)
    pairs = np.array([image.detection.pairs for image in scores], dtype=np.float64)
    found["type_accuracy"] = (_ratio(same, pairs), "no centers are paired")
    for place, name in enumerate(types.values()):
        missing = f"no nucleus is {name}"
        counts = [image.detection.types[place] for image in scores]
        hits = np.array([2.0 * own.tp for own in counts])
        found[f"f:{name}"] = (_ratio(hits, np.array([_whole(own) for own in counts])), missing)
        found[f"pq:{name}"] = (_pooled_pq([[image.types[place]] for image in scores]), missing)
    return found


def _whole(counts: TypeCounts) -> float:
    """The denominator of F_c; see `eosin.nuclei.types`."""
    return 2.0 * (counts.tp + counts.fp + counts.fn) + counts.fp_d + counts.fn_d


def _row_means(values: Floats) -> Floats:
    """Mean of what is defined in each row, NaN where nothing is."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0).sum(axis=1), known.sum(axis=1).astype(np.float64))


def _mean(values: Floats, strata: Sequence[str] | None = None) -> Statistic:
    """Weighted mean of what is defined, [n]; over strata first where there are several, each counting the same."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0)
    names = np.asarray(strata if strata is not None else [""] * len(values))
    members = [known & (names == name) for name in np.unique(names)]

    def compute(weights: Floats) -> Floats:
        means = [_divide(weights @ (filled * inside), weights @ inside.astype(np.float64)) for inside in members]
        return _row_means(np.stack(means, axis=1))

    return compute


def _ratio(part: Floats, whole: Floats) -> Statistic:
    """Ratio of weighted sums over images, [n] each."""
    return lambda weights: _divide(weights @ part, weights @ whole)


def _pooled_pq(counts: Sequence[Sequence[Panoptic]]) -> Statistic:
    """PQ of weighted sums over images of the counts of each type, averaged over the types that occur."""
    sums = np.array([[own.iou_sum for own in image] for image in counts])
    nuclei = np.array([[own.tp + (own.fp + own.fn) / 2 for own in image] for image in counts])
    return lambda weights: _row_means(_divide(weights @ sums, weights @ nuclei))


def _divide(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full(part.shape, math.nan), where=whole > 0)
