"""Fibrous tissue: stroma (wavy collagen) and smooth muscle (straight parallel bands)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eosin.synthetic.frame import Array, Frame, Points, Waves
from eosin.synthetic.layer import Layer
from eosin.synthetic.nuclei import cigars, lymphocytes, scatter, spindles
from eosin.synthetic.shapes import coverage, shapes


@dataclass(frozen=True)
class Flow:
    """The course of fibres over the plane: v(x, y) is constant along a fibre.

    Attributes:
        angle: Mean direction in radians.
        sway: Field that bends the course, and how far, in µm.
        reach: Amplitude of `sway` in µm.
        crimp: Amplitude in µm of the regular waviness along a fibre.
        period: Its wavelength in µm.
    """

    angle: float
    sway: Waves
    reach: float
    crimp: float
    period: float

    def along(self, x: Array, y: Array) -> Array:
        """Coordinate along the mean direction, µm."""
        return x * np.float32(np.cos(self.angle)) + y * np.float32(np.sin(self.angle))

    def across(self, x: Array, y: Array) -> Array:
        """Coordinate across the fibres, µm."""
        bent = self.sway(x, y)
        straight = y * np.float32(np.cos(self.angle)) - x * np.float32(np.sin(self.angle))
        waves = np.sin(self.along(x, y) * np.float32(2 * np.pi / self.period) + np.float32(1.3) * bent)
        return straight + np.float32(self.reach) * bent + np.float32(self.crimp) * waves

    def direction(self, places: Points) -> Array:
        """Angle of the fibre through each place, radians, float32 [n]."""
        x, y, step = places.x, places.y, np.float32(0.5)
        slope_x = self.across(x + step, y) - self.across(x - step, y)
        slope_y = self.across(x, y + step) - self.across(x, y - step)
        return np.arctan2(-slope_x, slope_y)


def red_cells(frame: Frame, pitch: float, keep: float) -> Array:
    """Coverage by erythrocytes: 6 to 7 µm discs without a nucleus, float32 [size, size]."""
    places = scatter(frame, pitch, "red cells", keep=keep)
    return coverage(frame, shapes(places, 3.0 + 0.5 * places.traits[0], 2.5 + 0.7 * places.traits[1], rough=0.04))


def collagen(frame: Frame, *, loose: float, cells: float = 1.0) -> Layer:
    """Wavy collagen bundles with clefts between them and spindle nuclei along them.

    Args:
        frame: The window.
        loose: 0 dense and glassy, 1 open and watery.
        cells: How many spindle nuclei, 1 is typical.
    """
    rng = frame.rng()
    crimp = rng.uniform(1.0, 3.2)
    flow = Flow(
        rng.uniform(0, np.pi), frame.waves(rng.uniform(55, 95), "sway"), rng.uniform(6, 12), crimp, rng.uniform(22, 42)
    )
    width = rng.uniform(3.0, 6.0)
    u, v = flow.along(frame.x, frame.y), flow.across(frame.x, frame.y)
    bundle = frame.streaks(u, v, 30, width, "bundles")
    strand = frame.streaks(u, v, 22, 2.2, "strands")
    fibril = frame.streaks(u, v, 12, 1.0, "fibrils")
    cleft = 0.6 * frame.streaks(u, v, 30, 0.8 * width, "clefts") + 0.45 * frame.noise(13, "cleft patches")
    cleft += 0.35 * strand + 0.22 * frame.noise(2.8, "frayed")
    open_ = np.clip((cleft + np.float32(1.0 * loose - 0.6)) * np.float32(3.2), 0, 1)
    eosin = float(rng.uniform(0.46, 0.72)) + 0.15 * bundle + 0.17 * strand + 0.24 * fibril
    eosin *= 1 - (0.72 + 0.22 * loose) * open_
    hematoxylin = float(rng.uniform(0.06, 0.2)) + 0.07 * bundle + 0.05 * frame.noise(3.0, "ground")
    hematoxylin *= 1 - 0.6 * open_
    places = scatter(frame, 18 / np.sqrt(cells), "fibroblasts", keep=0.8)
    angle = flow.direction(places) + 0.5 * (places.traits[2] - 0.5)
    bodies = [spindles(frame, places, angle)]
    stray = scatter(frame, 22, "strays", keep=float(rng.uniform(0.0, 0.45)))
    bodies.append(lymphocytes(frame, stray, 0.92))
    return Layer(np.maximum(hematoxylin, 0.01), np.maximum(eosin, 0.015), bodies)


def paint_stroma(frame: Frame) -> Layer:
    """Stroma: collagen anywhere between dense and loose, here and there a few red cells."""
    rng = frame.child("kind").rng()
    layer = collagen(frame, loose=float(rng.beta(1.3, 1.5)), cells=float(rng.uniform(0.6, 1.8)))
    if rng.random() < 0.25:
        red = red_cells(frame, 9, 0.12)
        layer.eosin[:] += red * (1.05 - layer.eosin)
        layer.hematoxylin[:] *= 1 - red
    return layer


def paint_muscle(frame: Frame) -> Layer:
    """Smooth muscle: parallel eosinophilic bands, hardly wavy, with cigar nuclei in line."""
    rng = frame.rng()
    flow = Flow(
        rng.uniform(0, np.pi),
        frame.waves(rng.uniform(110, 170), "sway"),
        rng.uniform(2.5, 7),
        rng.uniform(0, 0.5),
        60.0,
    )
    width = float(rng.uniform(4.5, 8.0))
    u, v = flow.along(frame.x, frame.y), flow.across(frame.x, frame.y)
    shift = frame.streaks(u, v, 120, 3.2 * width, "shift")
    phase = v / np.float32(width) + np.float32(0.9) * shift
    inside = np.abs(phase - np.floor(phase) - np.float32(0.5)) * np.float32(2 * width / 2)
    # `inside` is the distance in µm from the middle of a band to here; the gap lies at width / 2.
    gap = np.clip((inside - np.float32(width / 2 - 0.55)) * np.float32(2.4), 0, 1)
    gap *= np.clip(0.35 + 0.9 * frame.streaks(u, v, 45, 2 * width, "gap strength"), 0, 1)
    band = frame.streaks(u, v, 150, width, "band tone")
    fine = frame.streaks(u, v, 45, 1.2, "filaments")
    split = np.clip(frame.streaks(u, v, 60, 1.4 * width, "splits") * 3 - float(rng.uniform(1.3, 2.6)), 0, 1)
    eosin = float(rng.uniform(0.55, 0.85)) + 0.09 * band + 0.17 * fine + 0.12 * frame.noise(1.3, "grain")
    eosin *= (1 - 0.55 * gap) * (1 - 0.8 * split)
    hematoxylin = (float(rng.uniform(0.08, 0.28)) + 0.05 * band + 0.04 * fine) * (1 - 0.5 * gap) * (1 - 0.7 * split)
    places = scatter(frame, float(rng.uniform(11.5, 16)), "myocytes", keep=0.85)
    bodies = [cigars(frame, places, flow.direction(places) + 0.16 * (places.traits[2] - 0.5))]
    return Layer(np.maximum(hematoxylin, 0.01), np.maximum(eosin, 0.02), bodies)
