"""What was fitted, as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eosin.augment.spaces import CHANNELS
from eosin.augment.stain_statistics import StainStatistics

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["tables"]


def tables(statistics: StainStatistics) -> list[Table]:
    """Return the six numbers, and the BIC of every number of components where several were tried."""
    from rich.table import Table

    numbers = Table(title=f"Stain in {statistics.space.upper()}", title_justify="left")
    numbers.add_column("channel")
    for heading in ("average", "standard deviation"):
        numbers.add_column(f"{heading}, over tiles", justify="right")
    independent = statistics.independent
    described = [
        f"{mean:.4g} ± {scale:.3g} {kind}"
        for mean, scale, kind in zip(independent.mean, independent.std, independent.distribution, strict=True)
    ]
    for place, channel in enumerate(CHANNELS[statistics.space]):
        numbers.add_row(channel, described[place], described[place + 3])
    mixture = statistics.mixture
    if mixture is None or len(mixture.bic) < 2:
        return [numbers]
    tried = Table(title="Mixture", title_justify="left")
    tried.add_column("components", justify="right")
    tried.add_column("BIC (least is best)", justify="right")
    for components, bic in mixture.bic.items():
        mark = " ←" if int(components) == len(mixture.weights) else ""
        tried.add_row(components, f"{bic:,.1f}{mark}")
    return [numbers, tried]
