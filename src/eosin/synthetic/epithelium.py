"""Cellular tissue: normal glands, tumor nests, lymphoid infiltrate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eosin.synthetic.fibers import collagen
from eosin.synthetic.frame import Array, Frame, Points
from eosin.synthetic.layer import Layer
from eosin.synthetic.nuclei import columnar, lymphocytes, scatter, spindles, tumor_nuclei
from eosin.synthetic.shapes import Shapes, coverage, join, shapes
from eosin.synthetic.voronoi import Voronoi

_GLAND_JITTER = 0.18


def paint_lymphocytes(frame: Frame) -> Layer:
    """Lymphoid infiltrate: crowded round dark nuclei with hardly any cytoplasm."""
    rng = frame.rng()
    pitch = float(rng.uniform(6.5, 9.0))
    size = float(rng.uniform(0.92, 1.08))
    pack = frame.waves(60, "packing")
    places = scatter(frame, pitch, "lymphocytes", jitter=0.3, keep=float(rng.uniform(0.82, 1.0)))
    loose = pack(places.x, places.y) > rng.uniform(0.9, 2.5)
    places = places.take(~loose | (places.traits[3] > 0.6))
    round_ = lymphocytes(frame, places, size)
    pale = scatter(frame, 26, "blasts", keep=float(rng.uniform(0.05, 0.6)), count=6)
    blasts = tumor_nuclei(frame, pale, 6.3 * pale.traits[2], 0.86, 0.95, 0.1)
    blasts = Shapes(**{**vars(blasts), "kind": np.full(len(blasts), round_.kind[0] if len(round_) else 3, np.uint8)})
    threads = scatter(frame, 24, "reticulum", keep=0.3)
    fibres = spindles(frame, threads, 6.3 * threads.traits[0], 0.8)
    # Cytoplasm: a rim around each nucleus, clear cracks between.
    rim = coverage(
        frame, shapes(places, 4.1 * size * frame.lod, 4.0 * size * frame.lod, angle=6.3 * places.traits[2], rough=0.09)
    )
    tone = float(rng.uniform(0.12, 0.42))
    net = 1 + 0.6 * frame.noise(5, "net") + 0.3 * frame.noise(1.7, "net fine")
    crack = np.clip(frame.noise(8, "cracks") * 2.5 - float(rng.uniform(0.2, 1.6)), 0, 1)
    eosin = (0.25 * tone + tone * rim) * net * (1 - 0.85 * crack)
    hematoxylin = (0.05 + 0.17 * rim) * net * (1 - 0.85 * crack)
    return Layer(np.maximum(hematoxylin, 0.01), np.maximum(eosin, 0.01), [fibres, blasts, round_])


def _radius(dx: Array, dy: Array, traits: Array, pitch: float) -> tuple[Array, Array]:
    """Radius of a gland in the direction of (dx, dy), and the distance from its center, µm."""
    reach = np.sqrt(dx * dx + dy * dy) + np.float32(1e-3)
    c, s = dx / reach, dy / reach
    turn = 2 * np.pi * traits[1]
    cos2, sin2 = c * c - s * s, 2 * c * s
    lobes = 0.10 * (cos2 * np.cos(turn) + sin2 * np.sin(turn))
    lobes += 0.05 * (c * (4 * c * c - 3) * np.cos(3 * turn) + s * (3 - 4 * s * s) * np.sin(3 * turn))
    return pitch * (0.40 + 0.10 * traits[0]) * (1 + lobes), reach


def _around(
    frame: Frame, glands: Points, pitch: float, spacing: float, depth: tuple[float, float], name: str
) -> tuple[Points, Array, NDArray[np.int64]]:
    """Places on rings inside the glands' outlines: the places, the direction outwards, and the gland of each."""
    count = max(3, int(2 * np.pi * 0.45 * pitch / (spacing * frame.lod)))
    own = frame.child(name).rng().random((6, 4096)).astype(np.float32)
    index = np.arange(count)[None, :]
    which = (np.floor(glands.traits[2] * 4093).astype(np.int64)[:, None] + 37 * index) % 4096
    traits = own[:, which].reshape(6, -1)
    turn = ((index + 0.7 * traits[4].reshape(which.shape)) * (2 * np.pi / count)).astype(np.float32).ravel()
    gland = np.repeat(np.arange(len(glands.x), dtype=np.int64), count)
    c, s = np.cos(turn), np.sin(turn)
    outline, _ = _radius(c, s, glands.traits[:, gland], pitch)
    ring = outline - (depth[0] + (depth[1] - depth[0]) * traits[5])
    places = Points(glands.x[gland] + ring * c, glands.y[gland] + ring * s, traits)
    inside = np.maximum(np.abs(places.x), np.abs(places.y)) < frame.half + 12
    return places.take(inside), turn[inside], gland[inside]


def paint_glands(frame: Frame) -> Layer:
    """Normal glands: a lumen, tall cells with basal nuclei and goblets, loose lamina propria between."""
    rng = frame.rng()
    pitch = float(rng.uniform(60, 82))
    height = float(rng.uniform(0.24, 0.33)) * pitch
    crypts = Voronoi(frame, pitch, "glands", 5, jitter=_GLAND_JITTER, corner=0.0)
    at = crypts.at(frame.x, frame.y)
    outline, reach = _radius(at.dx, at.dy, at.traits, pitch)
    ragged = frame.noise(7, "ragged")
    # Depth below the basement membrane; neighbours that would touch are pressed flat.
    depth = np.minimum(outline - reach, at.edge - 2.2) + 0.5 * ragged
    soft = np.float32(1 / max(0.5, frame.mpp))
    inside = np.clip(depth * soft + 0.5, 0, 1)
    lumen = np.clip((depth - height - 2 * ragged) * soft + 0.5, 0, 1)
    around = collagen(frame.child("propria"), loose=float(rng.uniform(0.55, 1.0)), cells=1.3)
    streak = 1 + 0.28 * frame.noise(1.8, "cytoplasm") + 0.2 * frame.noise(6, "cells")
    turn = np.arctan2(at.dy, at.dx)
    streak += 0.10 * np.cos(turn * np.round(0.9 * pitch / 2) + 3 * ragged)
    apical = np.exp(-np.square((depth - height + 1.5) / 1.6))
    tone_e, tone_h = rng.uniform((0.38, 0.1), (0.68, 0.28))
    cell_e, cell_h = float(tone_e) * streak + 0.22 * apical, float(tone_h) * streak
    near = np.maximum(np.abs(crypts.seeds.x), np.abs(crypts.seeds.y)) < frame.half + pitch
    glands = crypts.seeds.take(near)
    mucin, rim = _goblets(frame, glands, pitch, height, float(rng.uniform(0.15, 1.1)))
    cell_e += mucin * (0.10 + 0.1 * ragged - cell_e) + 0.25 * rim
    cell_h += mucin * (float(rng.uniform(0.03, 0.22)) - cell_h) + 0.1 * rim
    filling = float(rng.uniform(0, 0.35))
    eosin = around.eosin + inside * (cell_e - around.eosin)
    hematoxylin = around.hematoxylin + inside * (cell_h - around.hematoxylin)
    eosin += lumen * (0.03 + 0.25 * filling * (1 + ragged) - eosin)
    hematoxylin += lumen * (0.02 + 0.2 * filling - hematoxylin)
    # The basement membrane.
    eosin += 0.25 * np.exp(-np.square(depth / 0.8))
    basal, outward, _ = _around(frame, glands, pitch, float(rng.uniform(5.2, 6.4)), (4.4, 6.6), "basal")
    bodies = [columnar(frame, basal, outward, float(rng.uniform(0.85, 1.1)))]
    crowd = scatter(frame, 8.6, "propria cells", keep=float(rng.uniform(0.25, 0.75)))
    bodies = [
        group.take(_outside(crypts, group, pitch)) for group in (*around.bodies, lymphocytes(frame, crowd))
    ] + bodies
    return Layer(np.maximum(hematoxylin, 0.01), np.maximum(eosin, 0.01), bodies)


def _outside(crypts: Voronoi, group: Shapes, pitch: float) -> NDArray[np.bool_]:
    at = crypts.at(group.x, group.y)
    outline, reach = _radius(at.dx, at.dy, at.traits, pitch)
    clear: NDArray[np.bool_] = np.minimum(outline - reach, at.edge - 2.2) < -np.minimum(group.a, 3.0)
    return clear


def _goblets(frame: Frame, glands: Points, pitch: float, height: float, share: float) -> tuple[Array, Array]:
    """Coverage by goblets of mucin, and by the thin cytoplasm pressed around them."""
    places, outward, gland = _around(frame, glands, pitch, 8.6, (0.55 * height, 0.78 * height), "goblets")
    some = places.traits[0] < share * (0.4 + 0.6 * glands.traits[4][gland])
    places, outward = places.take(some), outward[some]
    a, b = 0.22 * height + 2.0 * places.traits[1], 3.3 + 1.3 * places.traits[2]
    inner = coverage(frame, shapes(places, a, b, angle=outward, rough=0.06))
    outer = coverage(frame, shapes(places, a + 0.9, b + 0.9, angle=outward, rough=0.06))
    return inner, outer - inner


def paint_tumor(frame: Frame) -> Layer:
    """Tumor: nests of large uneven vesicular nuclei, solid or cribriform, in a cellular stroma."""
    rng = frame.rng()
    grade = float(rng.random())
    size = float(rng.uniform(0.95, 1.25))
    nest = frame.waves(float(rng.uniform(60, 100)), "nests")
    fill = float(rng.uniform(0.5, 1.8))
    slope = 70 / (2 * np.pi)
    holes = float(rng.choice([0.0, 0.35, 0.8], p=[0.35, 0.35, 0.3]))
    lumina = Voronoi(frame, float(rng.uniform(30, 44)), "lumina", 4, jitter=0.32)

    def inside(x: Array, y: Array) -> tuple[Array, Array]:
        """Depth in µm below the border of the nest, and depth into a lumen."""
        at = lumina.at(x, y)
        radius = np.where(at.traits[0] < holes, 3.5 + 7.0 * at.traits[1], -5.0)
        turn = np.arctan2(at.dy, at.dx)
        lobed = radius * (
            1 + 0.25 * np.sin(2 * turn + 6.3 * at.traits[2]) + 0.12 * np.sin(3 * turn + 6.3 * at.traits[3])
        )
        return (nest(x, y) + np.float32(fill)) * np.float32(slope), lobed - np.hypot(at.dx, at.dy)

    ragged = frame.noise(5, "ragged")
    depth, lumen_depth = inside(frame.x, frame.y)
    soft = np.float32(1 / max(0.5, frame.mpp))
    within = np.clip((depth + ragged) * soft + 0.5, 0, 1)
    lumen = np.clip((lumen_depth + 0.8 * ragged) * soft + 0.5, 0, 1) * within
    around = collagen(frame.child("desmoplasia"), loose=float(rng.uniform(0.1, 0.8)), cells=1.8)
    grain = 1 + 0.34 * frame.noise(1.9, "cytoplasm") + 0.25 * frame.noise(7, "cells")
    tone = float(rng.uniform(0.35, 0.6))
    eosin = around.eosin + within * (tone * grain - around.eosin)
    hematoxylin = around.hematoxylin + within * (float(rng.uniform(0.14, 0.36)) * grain - around.hematoxylin)
    debris = np.clip(frame.noise(4, "debris") * 2 - 0.5, 0, 1) * float(rng.uniform(0, 0.7))
    eosin += lumen * (0.03 + 0.6 * debris - eosin)
    hematoxylin += lumen * (0.02 + 0.25 * debris - hematoxylin)
    places = scatter(frame, float(rng.uniform(7.6, 9.0)) * size, "nuclei", jitter=0.33, count=6)
    at_depth, at_lumen = inside(places.x, places.y)
    keep = (at_depth > 3.5) & (at_lumen < -3.5)
    places = places.take(keep)
    # Cells stand on end around a lumen and along the border of the nest.
    step = np.float32(1.0)
    on_end = float(rng.random()) < 0.5
    if on_end:
        high = [inside(places.x + dx * step, places.y + dy * step) for dx, dy in ((1, 0), (0, 1))]
        by_lumen = at_lumen[keep] > -12
        gx, gy = (np.where(by_lumen, h[1] - at_lumen[keep], h[0] - at_depth[keep]) for h in high)
        angle = np.arctan2(gy, gx)
    else:
        angle = (6.3 * places.traits[2]).astype(np.float32)
    bodies = [tumor_nuclei(frame, places, angle, size, float(rng.uniform(0.5, 0.75)) if on_end else 0.95, grade)]
    strays = join(around.bodies)
    outside, _ = inside(strays.x, strays.y)
    return Layer(np.maximum(hematoxylin, 0.01), np.maximum(eosin, 0.01), [strays.take(outside < -2), *bodies])
