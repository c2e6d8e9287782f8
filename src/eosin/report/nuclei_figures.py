"""Nuclei for the page's script: PQ of each image, PQ over IoU, and galleries within a budget of bytes."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eosin.nuclei.score import THRESHOLDS
from eosin.report.board import rounded
from eosin.report.nuclei import Nuclei, NucleiGallery

__all__ = ["nuclei_figures"]

Condition = Callable[[str, float], str]

_BUDGET = 5_000_000
"""Bytes of pictures and outlines on the page."""
_VALUES = 400
"""Images of a cell that are drawn one by one; of more, so many quantiles."""
_EACH = (3, 2, 1)
"""Best and worst images of a gallery that are shown, as the budget allows."""


def nuclei_figures(nuclei: Nuclei, condition: Condition) -> dict[str, Any]:
    """Return what the page's script draws, with at most some 5 MB of pictures.

    Args:
        nuclei: Of a benchmark.
        condition: Names a protocol at a fraction.
    """
    return {
        "thresholds": list(THRESHOLDS),
        "cells": [
            {
                "encoder": cell.encoder,
                "task": cell.task,
                "condition": condition(cell.protocol, cell.fraction),
                "seeds": cell.seeds,
                "images": len(cell.values),
                "values": [rounded(value, 4) for value in _thinned(cell.values)],
                "curve": [None if value is None else rounded(value, 4) for value in cell.curve],
            }
            for cell in nuclei.cells
        ],
        **_pictures(nuclei.galleries, condition),
    }


def _thinned(values: Sequence[float]) -> list[float]:
    if len(values) <= _VALUES:
        return list(values)
    return np.quantile(values, np.linspace(0, 1, _VALUES)).tolist()


def _pictures(galleries: Sequence[NucleiGallery], condition: Condition) -> dict[str, Any]:
    """Show as many images of each gallery as the budget allows; then as many galleries."""
    for each in _EACH:
        shown = _Shown(each, condition, math.inf)
        for gallery in galleries:
            shown.add(gallery)
        if shown.bytes <= _BUDGET:
            return shown.encode()
    shown = _Shown(_EACH[-1], condition, _BUDGET)
    for gallery in galleries:
        shown.add(gallery)
    return shown.encode()


class _Shown:
    """Galleries with each distinct picture once.

    Args:
        each: Best and worst images of a gallery.
        condition: Names a protocol at a fraction.
        budget: Bytes; galleries that would exceed them are left out.
    """

    def __init__(self, each: int, condition: Condition, budget: float) -> None:
        self.each = each
        self.condition = condition
        self.budget = budget
        self.bytes = 0
        self.left_out = 0
        self.numbers: dict[bytes, int] = {}
        self.galleries: list[dict[str, Any]] = []

    def add(self, gallery: NucleiGallery) -> None:
        """Add a gallery, unless it does not fit."""
        rows = [row for row in gallery.rows if row["rank"] <= self.each]
        new = {row["picture"] for row in rows} - self.numbers.keys()
        size = sum(4 * len(picture) // 3 for picture in new)
        size += sum(len(row[name] or "") for row in rows for name in ("truth", "missed", "found", "false"))
        if self.bytes + size > self.budget:
            self.left_out += 1
            return
        self.bytes += size
        self.galleries.append(
            {
                "encoder": gallery.encoder,
                "task": gallery.task,
                "condition": self.condition(gallery.protocol, gallery.fraction),
                "seed": gallery.seed,
                "images": [self._image(row) for row in rows],
            }
        )

    def _image(self, row: dict[str, Any]) -> dict[str, Any]:
        kept = ("kind", "rank", "name", "tp", "fp", "fn", "width", "height", "truth", "missed", "found", "false")
        return {
            **{name: row[name] for name in kept},
            **{name: rounded(row[name], 4) for name in ("pq", "aji", "dice")},
            "part": (row["width"], row["height"]) != (row["image_width"], row["image_height"]),
            "picture": self.numbers.setdefault(row["picture"], len(self.numbers)),
        }

    def encode(self) -> dict[str, Any]:
        """Return galleries, and pictures as data URIs."""
        sources = [f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" for picture in self.numbers]
        return {"galleries": self.galleries, "pictures": sources, "left_out": self.left_out}
