"""Around the network of HoVer-Net on one CPU thread: eosin against the published laws, one mask per nucleus.

One JSON line a claim; medians of interleaved turns over the same maps, in CPU time of the process. That the results are
equal is checked before anything is timed: metrics to 1e-12, targets and instances to the bit.

* Metrics of one image of 1000 x 1000 px with about 500 nuclei: Dice, AJI, AJI+ and PQ together.
* Post-processing of such an image: instances, then boxes, centers, outlines and types of all nuclei.
* HV maps of a training tile: canvas of 540 px with mirrored sides, nuclei told apart, cut of 80 and 164 px.

* PQ that each way to scale slopes gets from ideal maps: not a time.

The nuclei are synthetic tumor tissue's; predictions are their own targets, blurred, with smooth noise.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from timing import interleaved, report

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import hovernet

from eosin.nuclei.labels import relabel, split_parts
from eosin.nuclei.metrics import image_metrics, pq
from eosin.nuclei.overlap import overlap
from eosin.nuclei.postprocess import postprocess, segment
from eosin.nuclei.targets import targets
from eosin.synthetic import render_tile

CPU = torch.device("cpu")
PEER = "the published law, NumPy, SciPy, OpenCV and scikit-image"
Maps = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]


def predicted(side: int) -> Maps:
    """Label map, and what a network could say of it: nucleus map, HV maps, scores of 5 types."""
    labels = render_tile("tumor", size=side, mpp=0.285, slide=0, index=0).instances
    wanted = targets(labels, center="exact")
    generator = np.random.default_rng(0)

    def rough() -> npt.NDArray[np.float64]:
        return 0.75 * ndimage.gaussian_filter(generator.normal(size=labels.shape), 1.5)

    np_prob = np.clip(ndimage.gaussian_filter(wanted.np.astype(float), 0.7) + rough(), 0, 1)
    hv = np.stack([ndimage.gaussian_filter(channel, 0.8) + rough() for channel in wanted.hv])
    scores = generator.random((5, *labels.shape), dtype=np.float32)
    return labels, np_prob.astype(np.float32), hv.astype(np.float32), scores


def measure(labels: npt.NDArray[np.int32], found: npt.NDArray[np.int32], repeats: int) -> None:
    def ours() -> dict[str, float]:
        return image_metrics(overlap(labels, found))

    def peer() -> dict[str, float]:
        return hovernet.metrics(labels, found)

    values = ours()
    for name, value in peer().items():
        if not abs(values[name] - value) < 1e-12:
            raise SystemExit(f"{name}: {values[name]} and {value} differ")
    seconds, plain = interleaved(ours, peer, repeats, CPU)
    n = f"{repeats} repeats, {labels.max()} true and {found.max()} predicted nuclei, {labels.shape[0]} px"
    report("Dice, AJI, AJI+ and PQ of an image", seconds * 1e3, plain * 1e3, PEER, "ms of CPU time", plain / seconds, n)


def find(maps: Maps, repeats: int) -> npt.NDArray[np.int32]:
    _, np_prob, hv, scores = maps

    def ours() -> object:
        return postprocess(np_prob, hv, scores)

    def peer() -> object:
        instances = hovernet.segment(np_prob, hv)
        return instances, hovernet.describe(instances, scores.argmax(axis=0))

    found = postprocess(np_prob, hv, scores)
    instances, table = peer()  # type: ignore[misc]
    if not np.array_equal(relabel(instances), found.instances):
        raise SystemExit("the instances of the two differ")
    for nucleus, other in zip(found.table, table.values(), strict=True):
        if nucleus.type != other["type"] or not np.allclose(nucleus.centroid, other["centroid"]):
            raise SystemExit(f"nucleus {nucleus.id} is described differently")
    seconds, plain = interleaved(ours, peer, repeats, CPU)
    n = f"{repeats} repeats, {len(table)} nuclei, {np_prob.shape[0]} px"
    report(
        "post-processing with types and outlines",
        seconds * 1e3,
        plain * 1e3,
        PEER,
        "ms of CPU time",
        plain / seconds,
        n,
    )
    return found.instances


def learn(repeats: int) -> None:
    tissue = render_tile("tumor", size=440, mpp=0.24, slide=0, index=0).instances
    canvas = np.pad(tissue, 50, mode="reflect")  # as at the side of an image: nuclei repeat
    for crop in (80, 164):

        def ours(crop: int = crop) -> npt.NDArray[np.float32]:
            return targets(split_parts(canvas), crop=(crop, crop)).hv

        def peer(crop: int = crop) -> npt.NDArray[np.float32]:
            return hovernet.hv_maps(hovernet.split_parts(canvas), crop)

        if not np.array_equal(ours(), peer()):
            raise SystemExit("the HV maps of the two differ")
        seconds, plain = interleaved(ours, peer, repeats, CPU)
        n = f"{repeats} repeats, {canvas.max()} nuclei on the canvas"
        report(f"HV maps, 540 to {crop} px", seconds * 1e3, plain * 1e3, PEER, "ms of CPU time", plain / seconds, n)


def scale_of_slopes() -> None:
    """What is left of ideal maps when slopes are scaled by the whole tile, and on a fixed scale: PQ, no time."""
    for mpp in (0.25, 0.5):
        values: dict[str, list[float]] = {"fixed": [], "official": []}
        for kind in ("tumor", "stroma", "lymphocytes", "glands"):
            labels = render_tile(kind, size=500, mpp=mpp, slide=0, index=0).instances
            wanted = targets(labels)
            for normalise, found in values.items():
                instances = segment(wanted.np.astype(np.float32), wanted.hv, normalise=normalise)  # type: ignore[arg-type]
                found.append(pq(labels, instances).pq)
        ours, peer = (float(np.mean(found)) for found in values.values())
        n = f"4 tissues of 500 px at {mpp} µm/px, their own targets as maps; no scale given"
        report(
            "slopes on a fixed scale", ours, peer, "slopes scaled by the tile, as published", "mean PQ", ours / peer, n
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--side", type=int, default=1000, help="of the image, in pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    maps = predicted(arguments.side)
    found = find(maps, arguments.repeats)
    measure(maps[0], found, arguments.repeats)
    learn(arguments.repeats)
    scale_of_slopes()


if __name__ == "__main__":
    main()
