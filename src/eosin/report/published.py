"""Figures that others published, to stand beside ours and never to be ranked with them."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import yaml

from eosin.core.config import Config

__all__ = ["Published", "Source", "official_set", "published_for", "read_published"]


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
    """Encoder, as the source names it, to value by public set; None where the source's value is not public."""


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


def official_set(task_spec: str) -> str:
    """Return the public set that a task is, whole and in its official layout; "" of any other task.

    A folder that has the name of a public set is not that set.

    Args:
        task_spec: The specification the task was opened from, such as "crc:DIR" or "nuclei:consep:DIR?classes=4".
    """
    scheme, separator, rest = task_spec.removeprefix("nuclei:").partition(":")
    partial = "check=loose" in rest.rpartition("?")[2].split("&")
    return scheme if separator and not partial else ""


def published_for(name: str) -> list[Published]:
    """Return the published figures of a public set, in the order of their sources.

    Args:
        name: Of the set, as `eosin data list` has it.
    """
    return [
        Published(encoder=encoder, value=values[name], source=source)
        for source in read_published()
        for encoder, values in source.figures.items()
        if name in values
    ]
