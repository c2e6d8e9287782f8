"""Figures that others published, to stand beside ours and never to be ranked with them."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import yaml

from eosin.core.config import Config

__all__ = ["Published", "Source", "published_for", "read_published"]


class Source(Config):
    """A publication with figures on official data sets."""

    source: str
    """What was published, and by whom."""
    url: str
    """Where."""
    date: str
    """When, as year and month; "undated" where the source does not say."""
    protocol: str
    """Protocol of its figures; that of ours has the same name only where it is the same."""
    metric: str
    """Metric of its figures, named as in our records."""
    note: str
    """What a reader must know to compare."""
    figures: dict[str, dict[str, float | None]]
    """Encoder, as the source names it, to value by task; None where the source's value is not public."""


class Published(Config):
    """A figure of a source."""

    encoder: str
    """As the source names it."""
    value: float | None
    """The figure; None where it is not available."""
    source: Source
    """Where it comes from."""


@lru_cache(maxsize=1)
def read_published() -> tuple[Source, ...]:
    """Read the sources that come with the package."""
    text = (files("eosin.report") / "published.yaml").read_text(encoding="utf-8")
    return tuple(Source.parse(entry, "published.yaml") for entry in yaml.safe_load(text))


def published_for(task: str) -> list[Published]:
    """Return the published figures of a task, in the order of their sources.

    Args:
        task: Name of a task; only tasks of official data sets have any.
    """
    return [
        Published(encoder=encoder, value=values[task], source=source)
        for source in read_published()
        for encoder, values in source.figures.items()
        if task in values
    ]
