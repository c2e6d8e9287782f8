"""The stain of a collection of tiles: its distribution, fitted to a file, and what training makes of it, drawn."""

from __future__ import annotations

from eosin.stain.fit import fit, parse_components
from eosin.stain.preview import preview, stain_of, with_statistics
from eosin.stain.shipped import fit_synthetic
from eosin.stain.table import tables

__all__ = ["fit", "fit_synthetic", "parse_components", "preview", "stain_of", "tables", "with_statistics"]
