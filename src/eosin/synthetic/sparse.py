"""Tissue that is mostly not cells: fat, mucus, empty glass."""

from __future__ import annotations

import numpy as np

from eosin.synthetic.fibers import Flow, red_cells
from eosin.synthetic.frame import Array, Frame, Points
from eosin.synthetic.layer import Layer
from eosin.synthetic.nuclei import lymphocytes, scatter, spindles
from eosin.synthetic.shapes import coverage, shapes
from eosin.synthetic.voronoi import Voronoi


def paint_adipose(frame: Frame) -> Layer:
    """Fat: empty polygons 50 to 80 µm across with thin membranes and nuclei pressed flat against them."""
    rng = frame.rng()
    pitch = float(rng.uniform(40, 62))
    warp_x, warp_y = frame.waves(45, "warp x", 3), frame.waves(45, "warp y", 3)
    bow = float(rng.uniform(1.5, 4.0))
    x, y = frame.x, frame.y
    adipocytes = Voronoi(frame, pitch, "adipocytes", 1, jitter=0.36)
    cells = adipocytes.at(x + bow * warp_x(x, y), y + bow * warp_y(x, y))
    frayed = frame.noise(9, "fray")
    thick = float(rng.uniform(0.25, 0.8)) * (1 + 0.8 * frayed) + np.float32(rng.uniform(0.4, 2.2)) * np.clip(
        frame.noise(48, "septa"), 0, 1
    )
    # Soft by a third of a µm, or by a pixel where those are larger.
    soft = max(0.45, 0.6 * frame.mpp)
    wall = np.clip((thick - cells.edge) / soft + 0.5, 0, 1)
    # A second, fainter membrane beside the first, and sheets of cytoplasm cut flat.
    ghost = np.clip(1 - np.abs(cells.edge - 3.2 - 2.6 * frame.noise(22, "ghost")) / 0.8, 0, 1)
    sheet = np.clip((frame.noise(26, "sheet") + 0.5 * frame.noise(11, "sheet fine") - 0.45) * 5, 0, 1)
    sheet *= np.float32(rng.uniform(0, 0.13)) * (1 + 0.7 * frame.noise(3.5, "sheet grain"))
    tone = 0.75 + 0.35 * frame.noise(4, "tone")
    haze = float(np.exp(rng.uniform(np.log(0.008), np.log(0.12))))
    eosin = haze + wall * tone * float(rng.uniform(0.5, 0.95)) + ghost * np.clip(0.7 * frayed, 0, 0.35) + sheet
    hematoxylin = 0.5 * haze + wall * (0.20 + 0.12 * frayed) + 0.25 * sheet
    places = scatter(frame, 13, "adipocyte nuclei", keep=0.22)
    near = adipocytes.at(places.x + bow * warp_x(places.x, places.y), places.y + bow * warp_y(places.x, places.y))
    outward = np.arctan2(near.gap_y, near.gap_x)
    close = near.edge < 3.5
    places = places.take(close)
    # Onto the membrane, with their length along it.
    moved = Points(
        places.x + near.edge[close] * np.cos(outward[close]),
        places.y + near.edge[close] * np.sin(outward[close]),
        places.traits,
    )
    bodies = [spindles(frame, moved, outward[close] + np.float32(np.pi / 2), 0.85)]
    return Layer(np.maximum(hematoxylin, 0.01), np.maximum(eosin, 0.01), bodies)


def paint_mucus(frame: Frame) -> Layer:
    """Mucus: a pale bluish pool with fine streaks in swirls, bubbles, a few floating cells."""
    rng = frame.rng()
    flow = Flow(
        rng.uniform(0, np.pi), frame.waves(rng.uniform(80, 150), "swirl"), rng.uniform(5, 14), rng.uniform(0, 1.5), 50.0
    )
    x, y = frame.x, frame.y
    u, v = flow.along(x, y), flow.across(x, y)
    u = u + 6 * frame.noise(40, "stretch")
    density = float(np.exp(rng.uniform(np.log(0.10), np.log(0.5))))
    broad = frame.streaks(u, v, 60, 9, "broad")
    # Ridges of noise: lines where it crosses zero; two sets that cross at a small angle tangle like threads.
    slant = v + np.float32(rng.uniform(0.15, 0.5)) * u
    thread = np.clip(1 - np.abs(frame.streaks(u, v, 34, 5.0, "threads")) * 3, 0, 1) ** 2
    hair = np.clip(1 - np.abs(frame.streaks(u, slant, 16, 2.6, "hairs")) * 3, 0, 1) ** 2
    hair *= np.clip(0.5 + frame.noise(9, "hair strength"), 0, 1)
    cord = np.clip(1 - np.abs(frame.streaks(u, v, 55, 8.0, "cords")) * 3.5, 0, 1) ** 2 * (
        0.6 + 0.5 * frame.noise(3, "cord grain")
    )
    cord *= np.clip(frame.noise(40, "cord strength") * 2, 0, 1) * float(rng.uniform(0, 0.8))
    gap = np.clip(frame.noise(34, "gaps") * 1.6 - float(rng.uniform(0.1, 1.0)), 0, 1)
    thread *= np.clip(0.6 + 1.2 * frame.noise(24, "thread strength"), 0, 1)
    body = 0.6 + 0.3 * broad + 0.3 * frame.noise(1.5, "grain") + 0.25 * frame.noise(5, "curds")
    hematoxylin = density * (body + 1.0 * thread + 1.0 * hair)
    eosin = density * 0.45 * (body + hair) + float(rng.uniform(0.05, 0.5)) * thread * density / 0.2 + cord
    hematoxylin *= 1 - 0.85 * gap
    eosin *= 1 - 0.85 * gap
    bubbles = scatter(frame, 17, "bubbles", keep=float(rng.uniform(0, 0.25)))
    hole = coverage(frame, shapes(bubbles, 2 + 3.5 * bubbles.traits[0], 2 + 3 * bubbles.traits[1], rough=0.05))
    hematoxylin *= 1 - 0.8 * hole
    eosin *= 1 - 0.8 * hole
    cells = scatter(frame, 19, "floaters", keep=float(rng.uniform(0.02, 0.3)))
    bodies = [lymphocytes(frame, cells, 0.95)]
    strand = scatter(frame, 24, "strand cells", keep=float(rng.uniform(0, 0.3)))
    bodies.append(spindles(frame, strand, flow.direction(strand), 0.8))
    return Layer(np.maximum(hematoxylin, 0.01), np.maximum(eosin, 0.01), bodies)


def _specks(frame: Frame, pitch: float, keep: float, low: float, high: float) -> Array:
    places = scatter(frame, pitch, f"specks {pitch}", keep=keep)
    size = low + (high - low) * places.traits[0] ** 3
    return coverage(
        frame, shapes(places, size, size * (0.35 + 0.6 * places.traits[1]), angle=6.3 * places.traits[2], rough=0.12)
    )


def paint_background(frame: Frame) -> Layer:
    """Empty glass: dust, smears of stain, now and then floating scraps of tissue."""
    rng = frame.rng()
    haze = float(np.exp(rng.uniform(np.log(0.008), np.log(0.16))))
    cloud = 1 + 0.8 * frame.noise(70, "cloud") + 0.3 * frame.noise(22, "cloud fine")
    dust = _specks(frame, 9, float(rng.uniform(0, 0.2)), 0.4, 1.8)
    flakes = _specks(frame, 26, float(rng.uniform(0, 0.35)), 1.0, 5.5)
    hematoxylin = haze * cloud + 0.5 * dust + 0.10 * flakes
    eosin = haze * float(rng.uniform(0.3, 1.2)) * cloud + 0.4 * dust + 0.22 * flakes
    if rng.random() < 0.35:
        # A scrap: torn pink protein with a ragged outline.
        outline = frame.noise(30, "scrap") + 0.5 * frame.noise(10, "scrap edge") + 0.25 * frame.noise(3, "scrap fray")
        scrap = np.clip((outline - float(rng.uniform(0.4, 0.8))) * 5, 0, 1)
        eosin = eosin + scrap * float(rng.uniform(0.1, 0.5)) * (1 + 0.4 * frame.noise(2.5, "scrap grain"))
        hematoxylin = hematoxylin + scrap * 0.08
    if rng.random() < 0.12:
        red = red_cells(frame, 16, 0.1)
        eosin = eosin + 0.9 * red
    return Layer(np.maximum(hematoxylin, 0.003), np.maximum(eosin, 0.003), [])
