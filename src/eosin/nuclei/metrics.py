"""How well nuclei are found and outlined in one image: Dice, AJI, AJI+, and panoptic quality.

Every function takes an `overlap.Overlap`. With I and U for intersection and union of a true and a predicted nucleus:

* **Dice**: 2 |T and P| / (|T| + |P|) of the pixels of all nuclei, whoever they belong to.
* **AJI** (Kumar et al., IEEE TMI 2017): each true nucleus takes the predicted one of highest IoU, even one that another
  has taken; sum of I over sum of U, where nuclei that took none or were not taken add their area to U.
* **AJI+** (Graham et al., HoVer-Net, Medical Image Analysis 2019): the same with pairs in which each nucleus occurs
  once, chosen for the highest sum of IoU.
* **PQ** (Kirillov et al., CVPR 2019): pairs with IoU above 1/2, of which each nucleus can have but one, are matches;
  DQ = TP / (TP + FP/2 + FN/2), SQ = sum of their IoU / TP, PQ = DQ * SQ.

Where HoVer-Net's code stops with an error or adds a small number to a quotient, this is the rule: with nuclei in one
map only, all are 0; with no nuclei in either map there is nothing to measure, and all are NaN (means leave such images
out); without a match SQ is 0. Nothing is added to a quotient: HoVer-Net's SQ = sum / (TP + 1e-6) is lower, by 1e-6 of
itself where a single pair matches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.nuclei.labels import Labels
from eosin.nuclei.overlap import Overlap, overlap

__all__ = [
    "Panoptic",
    "aji",
    "aji_plus",
    "dice",
    "image_metrics",
    "matches",
    "panoptic",
    "pq",
    "pq_curve",
    "typed_panoptic",
]

Ints = npt.NDArray[np.int64]

_TIE = 1e-9
"""How little of an IoU decides between AJI+'s pairings; see `aji_plus`."""


@dataclass(frozen=True)
class Panoptic:
    """Counts of panoptic quality.

    Attributes:
        tp: Pairs that match.
        fp: Predicted nuclei without a match.
        fn: True nuclei without one.
        iou_sum: Sum of the matches' IoU.
    """

    tp: int
    fp: int
    fn: int
    iou_sum: float

    @property
    def dq(self) -> float:
        """Detection quality, the F1 score of matches; NaN without any nucleus."""
        nuclei = self.tp + (self.fp + self.fn) / 2
        return self.tp / nuclei if nuclei else math.nan

    @property
    def sq(self) -> float:
        """Segmentation quality, the mean IoU of matches; 0 without a match, NaN without any nucleus."""
        if self.tp:
            return self.iou_sum / self.tp
        return 0.0 if self.fp or self.fn else math.nan

    @property
    def pq(self) -> float:
        """Panoptic quality, DQ * SQ; NaN without any nucleus."""
        nuclei = self.tp + (self.fp + self.fn) / 2
        return self.iou_sum / nuclei if nuclei else math.nan


def dice(pairs: Overlap) -> float:
    """Compute the Dice coefficient of all nuclei's pixels, 0 to 1; NaN without any nucleus."""
    pixels = int(pairs.truth_areas.sum() + pairs.predicted_areas.sum())
    return 2 * int(pairs.shared.sum()) / pixels if pixels else math.nan


def aji(pairs: Overlap) -> float:
    """Compute the aggregated Jaccard index, 0 to 1; NaN without any nucleus.

    Of predicted nuclei with the same IoU, the one of lowest id is taken. HoVer-Net's code adds 1e-6 to its unions, and
    so takes the one of largest union there.
    """
    if pairs.empty:
        return math.nan
    # Sorted by true nucleus, then best first; equal ones keep their order, which is by predicted id.
    order = np.lexsort((-pairs.iou, pairs.first))
    first = pairs.first[order]
    best = order[np.flatnonzero(np.diff(first, prepend=-1))]
    union = pairs.unions[best].sum()
    union += pairs.truth_areas.sum() - pairs.truth_areas[pairs.first[best]].sum()
    untaken = np.ones(len(pairs.predicted_areas), dtype=bool)
    untaken[pairs.second[best]] = False
    union += pairs.predicted_areas[untaken].sum()
    return float(pairs.shared[best].sum() / union)


def aji_plus(pairs: Overlap) -> float:
    """Compute AJI with each nucleus in one pair at most, 0 to 1; NaN without any nucleus.

    The pairing of highest total IoU need not be the only one, and which one a solver returns is chance. Here totals
    that agree to 1e-9 count as equal, and the one that shares the most pixels is taken, so that the value is defined.
    """
    if pairs.empty:
        return math.nan
    shared = int(pairs.shared[_assign(pairs)].sum())
    # Each nucleus is counted once, so the unions add up to all areas without what is shared.
    return shared / int(pairs.truth_areas.sum() + pairs.predicted_areas.sum() - shared)


def _assign(pairs: Overlap) -> Ints:
    """Choose pairs, each nucleus once, of the highest total IoU: int64, places in 0..K-1."""
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

    if not len(pairs.shared):
        return np.empty(0, dtype=np.int64)
    rows, columns = len(pairs.truth_areas), len(pairs.predicted_areas)
    # A pair whose nuclei touch no other is in every best pairing: most are. What is left is few and small knots.
    alone = np.bincount(pairs.first, minlength=rows)[pairs.first] == 1
    alone &= np.bincount(pairs.second, minlength=columns)[pairs.second] == 1
    knots = np.flatnonzero(~alone)
    if not len(knots):
        return np.flatnonzero(alone)
    row = np.unique(pairs.first[knots], return_inverse=True)[1]
    column = np.unique(pairs.second[knots], return_inverse=True)[1]
    height, width = int(row.max()) + 1, int(column.max()) + 1
    # Ties are settled within each knot, so that pixels far away do not weaken what one pixel says.
    graph = coo_array((np.ones(len(knots)), (row, column + height)), shape=(height + width, height + width))
    knot = connected_components(graph, directed=False)[1][row]
    shared = pairs.shared[knots]
    weight = pairs.iou[knots] + _TIE * shared / np.bincount(knot, weights=shared)[knot]
    # The solver wants every row paired: one that stays alone takes a column of its own, which is worth nothing. A
    # weight of 0 would be no edge, so all are raised by 1; that favors none, since every row gets exactly one.
    weights = np.concatenate([weight + 1, np.ones(height)])
    places = (np.concatenate([row, np.arange(height)]), np.concatenate([column, width + np.arange(height)]))
    chosen_row, chosen = min_weight_full_bipartite_matching(
        csr_array(coo_array((weights, places), shape=(height, width + height))), maximize=True
    )
    real = chosen < width
    key = row * width + column  # increasing, as pairs are sorted
    taken = knots[np.searchsorted(key, chosen_row[real].astype(np.int64) * width + chosen[real])]
    return np.concatenate([np.flatnonzero(alone), taken])


def matches(pairs: Overlap, threshold: float = 0.5) -> Ints:
    """Find the pairs with IoU above a threshold: int64, places in 0..K-1.

    Args:
        pairs: Of two label maps.
        threshold: 0.5 or more: below, a nucleus could match twice.

    Raises:
        EosinError: If the threshold is not in 0.5 to 1.
    """
    if not 0.5 <= threshold < 1:
        raise EosinError(f"threshold {threshold}: matches are pairs with an IoU above 0.5 or a value up to 1")
    return np.flatnonzero(pairs.iou > threshold)


def panoptic(pairs: Overlap, threshold: float = 0.5) -> Panoptic:
    """Count matches and what found none; see `matches`."""
    found = matches(pairs, threshold)
    tp = len(found)
    # Not numpy's pairwise sum, whose rounding depends on the number of pairs: an image's value must not.
    iou_sum = math.fsum(pairs.iou[found])
    return Panoptic(tp, len(pairs.predicted_areas) - tp, len(pairs.truth_areas) - tp, iou_sum)


def typed_panoptic(
    pairs: Overlap, truth_types: Ints, predicted_types: Ints, types: Sequence[int], threshold: float = 0.5
) -> list[Panoptic]:
    """Count for each type as if its nuclei were the only ones, in both maps.

    A nucleus that is outlined well and given the wrong type misses in both: FN of one, FP of the other.

    Args:
        pairs: Of two label maps.
        truth_types: int [T], of the true nuclei in the order of their ids.
        predicted_types: int [P].
        types: Which types to count.
        threshold: See `matches`.

    Raises:
        EosinError: If there are not as many types as nuclei.
    """
    for what, given, areas in (
        ("true", truth_types, pairs.truth_areas),
        ("predicted", predicted_types, pairs.predicted_areas),
    ):
        if np.shape(given) != areas.shape:
            raise EosinError(f"{np.size(given)} types for {len(areas)} {what} nuclei; give each nucleus one type")
    found = matches(pairs, threshold)
    kinds, said = truth_types[pairs.first[found]], predicted_types[pairs.second[found]]
    counts = []
    for kind in types:
        hits = found[(kinds == kind) & (said == kind)]
        predicted, true = int((predicted_types == kind).sum()), int((truth_types == kind).sum())
        counts.append(Panoptic(len(hits), predicted - len(hits), true - len(hits), math.fsum(pairs.iou[hits])))
    return counts


def pq(truth: Labels, predicted: Labels, threshold: float = 0.5) -> Panoptic:
    """Compute panoptic quality of two label maps, integer [H, W]; see `panoptic`."""
    return panoptic(overlap(truth, predicted), threshold)


def pq_curve(pairs: Overlap, thresholds: Sequence[float]) -> list[Panoptic]:
    """Count at several thresholds of IoU: how exact outlines are, beyond being good enough to match."""
    return [panoptic(pairs, threshold) for threshold in thresholds]


def image_metrics(pairs: Overlap) -> dict[str, float]:
    """Compute `dice`, `aji`, `aji_plus`, `dq`, `sq` and `pq` of an image, all 0 to 1 or all NaN."""
    counts = panoptic(pairs)
    return {
        "dice": dice(pairs),
        "aji": aji(pairs),
        "aji_plus": aji_plus(pairs),
        "dq": counts.dq,
        "sq": counts.sq,
        "pq": counts.pq,
    }
