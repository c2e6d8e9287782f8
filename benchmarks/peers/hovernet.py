"""HoVer-Net's laws around the network, written plainly: one mask of the whole image for each nucleus.

For `nuclei.py`, which compares eosin with it. Metrics, targets and post-processing are stated step by step as the
authors publish them, with NumPy, SciPy, OpenCV and scikit-image; masks and intersections are computed once and shared
by all metrics, to the plain way's advantage.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from skimage.morphology import remove_small_objects
from skimage.segmentation import watershed

Labels = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


def overlaps(truth: Labels, predicted: Labels) -> tuple[list, list, Floats, Floats]:
    """Masks, and intersections and unions [T, P], of nuclei that meet."""
    true = [truth == number for number in np.unique(truth) if number]
    found = {number: predicted == number for number in np.unique(predicted) if number}
    places = {number: place for place, number in enumerate(found)}
    both = np.zeros((len(true), len(found)))
    either = np.ones((len(true), len(found)))
    for row, mask in enumerate(true):
        for number in np.unique(predicted[mask]):
            if number:
                other = found[number]
                shared = (mask & other).sum()
                both[row, places[number]] = shared
                either[row, places[number]] = mask.sum() + other.sum() - shared
    return true, list(found.values()), both, either


def metrics(truth: Labels, predicted: Labels) -> dict[str, float]:
    true, found, both, either = overlaps(truth, predicted)
    iou = both / either
    a, b = truth > 0, predicted > 0
    hits = iou[iou > 0.5]
    best = iou.argmax(axis=1)
    paired = [(i, j) for i, j in enumerate(best) if iou[i, j] > 0]
    unique = [(i, j) for i, j in zip(*linear_sum_assignment(-iou), strict=True) if iou[i, j] > 0]

    def jaccard(pairs: list[tuple[int, int]]) -> float:
        taken_true, taken_found = {i for i, _ in pairs}, {j for _, j in pairs}
        whole = sum(either[i, j] for i, j in pairs)
        whole += sum(mask.sum() for i, mask in enumerate(true) if i not in taken_true)
        whole += sum(mask.sum() for j, mask in enumerate(found) if j not in taken_found)
        return sum(both[i, j] for i, j in pairs) / whole

    return {
        "dice": 2 * (a & b).sum() / (a.sum() + b.sum()),
        "aji": jaccard(paired),
        "aji_plus": jaccard(unique),
        "pq": hits.sum() / (len(hits) + (len(true) - len(hits)) / 2 + (len(found) - len(hits)) / 2),
    }


def split_parts(canvas: Labels) -> Labels:
    """Mirrored borders repeat nuclei: parts that lie apart become nuclei of their own."""
    split = canvas.copy()
    last = int(canvas.max())
    for number in np.unique(canvas):
        if number:
            parts, count = ndimage.label(canvas == number)
            for part in range(2, count + 1):
                last += 1
                split[parts == part] = last
    return split


def hv_maps(canvas: Labels, crop: int, small: int = 30) -> npt.NDArray[np.float32]:
    side = canvas.shape[0]
    window = slice((side - crop) // 2, (side - crop) // 2 + crop)
    middle = remove_small_objects(canvas[window, window], max_size=small - 1)
    hv = np.zeros((2, side, side), dtype=np.float32)
    for number in np.unique(middle):
        if number == 0:
            continue
        mask = canvas == number
        y, x = (int(value + 0.5) - 1 for value in ndimage.center_of_mass(mask))
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        inside = mask[box]
        across, down = np.meshgrid(np.arange(columns[0], columns[-1] + 1) - x, np.arange(rows[0], rows[-1] + 1) - y)
        for channel, places in ((0, across), (1, down)):
            own = np.where(inside, places, 0).astype(np.float32)
            if own.min() < 0:
                own[own < 0] /= -own.min()
            if own.max() > 0:
                own[own > 0] /= own.max()
            hv[channel][box][inside] = own[inside]
    return hv[:, window, window]


def _stretch(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    return cv2.normalize(values, None, 0, 1, cv2.NORM_MINMAX, cv2.CV_32F)


def segment(np_prob: npt.NDArray[np.float32], hv: npt.NDArray[np.float32]) -> Labels:
    blobs = remove_small_objects(ndimage.label(np_prob >= 0.5)[0], max_size=9) > 0
    slopes = [
        1 - _stretch(cv2.Sobel(_stretch(hv[channel]), cv2.CV_64F, 1 - channel, channel, ksize=21)) for channel in (0, 1)
    ]
    overall = np.maximum(np.maximum(*slopes) - (1.0 - blobs), 0)
    height = -cv2.GaussianBlur((1.0 - overall) * blobs, (3, 3), 0)
    marks = np.maximum(blobs.astype(np.int32) - (overall >= 0.4), 0)
    marks = ndimage.binary_fill_holes(marks).astype(np.uint8)
    marks = cv2.morphologyEx(marks, cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    marks = remove_small_objects(ndimage.label(marks)[0], max_size=9)
    return watershed(height, marks, mask=blobs)


def describe(instances: Labels, kinds: npt.NDArray[np.int64]) -> dict[int, dict[str, object]]:
    """Box, center, outline and type of each nucleus."""
    table: dict[int, dict[str, object]] = {}
    for number in np.unique(instances)[1:]:
        mask = instances == number
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, left = rows[0], columns[0]
        box = (slice(top, rows[-1] + 1), slice(left, columns[-1] + 1))
        inside = mask[box].astype(np.uint8)
        moments = cv2.moments(inside)
        outline = cv2.findContours(inside, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0][0][:, 0] + (left, top)
        types, counts = np.unique(kinds[box][mask[box]], return_counts=True)
        ranked = types[np.argsort(-counts, kind="stable")]
        kind = ranked[1] if ranked[0] == 0 and len(ranked) > 1 else ranked[0]
        center = (moments["m10"] / moments["m00"] + left, moments["m01"] / moments["m00"] + top)
        table[int(number)] = {"box": box, "centroid": center, "contour": outline, "type": int(kind)}
    return table
