"""A description as a page: one HTML file that opens from disk, offline, in the look of the report."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

import eosin
from eosin.augment.stain_statistics import load_statistics
from eosin.core.files import atomic_file
from eosin.data import Tiles
from eosin.describe.color import Stain, rgb_of
from eosin.describe.facts import sections
from eosin.describe.findings import findings
from eosin.describe.pictures import galleries
from eosin.describe.plots import Ellipse, histogram, scatter
from eosin.describe.run import BLANK, Description
from eosin.describe.sharpness import BLURRED
from eosin.describe.words import decimal, number, percent, share, significant, tiles_of

__all__ = ["write_page"]

_POINTS = 1500
_SWATCHES = 120
_FARTHEST = 10


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        title: Above it.
        note: Below its title.
        drawing: SVG.
    """

    title: str
    note: str
    drawing: Markup


def write_page(description: Description, tiles: Tiles, out: Path) -> None:
    """Write the page, whole or not at all.

    Args:
        description: Of the tiles.
        tiles: The source, to read the tiles that are shown.
        out: The HTML file.

    Raises:
        EosinError: If the file cannot be written.
    """
    # The report's style sheet is found behind this room's own templates.
    loaders = [PackageLoader("eosin.describe"), PackageLoader("eosin.report")]
    templates = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"prose": _prose, "breakable": _breakable}
    page = templates.get_template("tiles.html.j2").render(**_view(description, tiles), version=eosin.__version__)
    with atomic_file(out, "w") as file:
        file.write(page)


def _view(description: Description, tiles: Tiles) -> dict[str, Any]:
    stain = description.stain
    return {
        "title": "/".join(Path(description.spec.partition(":")[2].partition("?")[0]).parts[-2:]).lstrip("/")
        or description.spec,
        "spec": description.spec,
        "facts": _facts(description),
        "findings": findings(description),
        "sections": {section.name: section for section in sections(description)},
        "cards": _cards(description),
        "figures": _quality_figures(description),
        "stain_figures": [] if stain is None else _stain_figures(stain),
        "shipped": [] if stain is None else [entry.name for entry in stain.compared],
        "swatches": [] if stain is None else _swatches(stain),
        "farthest": [] if stain is None else _farthest(stain),
        "origin": "" if stain is None else stain.origin,
        "galleries": galleries(description, tiles),
        "asked": number(description.asked),
        "seed": description.seed,
    }


def _prose(text: str) -> Markup:
    """Set what is between backticks as code."""
    parts = [escape(part) for part in text.split("`")]
    # Every second part was between them; all are escaped.
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if odd % 2 else part for odd, part in enumerate(parts)
    )


def _breakable(name: str) -> Markup:
    """Let a long name break after its separators rather than anywhere."""
    return Markup("").join(escape(part) + Markup("<wbr>") for part in re.split(r"(?<=[/_-])", name))


def _facts(description: Description) -> list[str]:
    columns = description.columns
    found = [tiles_of(description.total)]
    for name, column in (("label", columns.label), ("slide", columns.slide), ("patient", columns.patient)):
        if column is not None:
            found.append(f"{number(len(column.names))} {name}{'' if len(column.names) == 1 else 's'}")
    return found


def _cards(description: Description) -> list[tuple[str, str, str]]:
    """Return the numbers to see first: what, how much, of what."""
    measured, copies = description.measured, description.copies
    count, judged = len(measured), int(description.judged.sum())
    blank, blurred = int(description.blank.sum()), int(description.blurred.sum())
    unreadable = measured.unreadable.count
    surplus = (copies.surplus if copies else 0) + description.lookalikes.surplus
    return [
        ("unreadable", share(unreadable, description.asked), f"{number(unreadable)} of {number(description.asked)}"),
        ("blank", share(blank, count), f"{number(blank)} of {number(count)}"),
        ("blurred", share(blurred, judged), f"{number(blurred)} of {number(judged)}"),
        ("copies", number(surplus), f"tile{'' if surplus == 1 else 's'} too many"),
    ]


def _quality_figures(description: Description) -> list[Figure]:
    found = []
    if len(description.measured):
        drawing = histogram(
            description.measured.column("tissue"),
            0.0,
            1.0,
            mark=BLANK,
            title="share of stained tissue",
            form=percent,
            logarithmic=False,
        )
        found.append(Figure("Tissue", f"Below {percent(BLANK)} a tile is blank.", drawing))
    if description.judged.any():
        drawing = histogram(
            description.measured.column("sharpness")[description.judged],
            0.05,
            4.0,
            mark=BLURRED,
            title="sharpness",
            form=significant,
            logarithmic=True,
        )
        found.append(Figure("Sharpness", f"Below {BLURRED:g} a tile is blurred.", drawing))
    return found


def _stain_figures(stain: Stain) -> list[Figure]:
    """Draw the averages of the tiles, in their own colors, with the shipped distributions."""
    shown = np.unique(np.linspace(0, len(stain) - 1, min(_POINTS, len(stain))).round().astype(np.int64))
    averages = stain.values[shown, :3]
    colors = rgb_of(averages)
    distributions = [load_statistics(entry.name).independent for entry in stain.compared]
    found = []
    for title, across, up in (("Hue", 1, 2), ("Lightness", 1, 0)):
        ellipses = [
            Ellipse(entry.mean[across], entry.mean[up], entry.std[across], entry.std[up], color)
            for color, entry in enumerate(distributions)
        ]
        names = ("L", "A, green to magenta", "B, blue to yellow")
        drawing = scatter(averages[:, across], averages[:, up], colors, ellipses, names[across], names[up])
        found.append(Figure(title, "Each point a tile, in its average color.", drawing))
    return found


def _swatches(stain: Stain) -> list[tuple[str, str]]:
    """Return the color and name of each slide, from the lightest to the darkest; of many, evenly chosen."""
    groups = sorted(stain.groups, key=lambda group: -float(group.mean[0]))
    if len(groups) > _SWATCHES:
        groups = [groups[place] for place in np.linspace(0, len(groups) - 1, _SWATCHES).round().astype(int).tolist()]
    if not groups:
        return []
    colors = rgb_of(np.stack([group.mean for group in groups]))
    return [
        (color, f"{group.name}: {tiles_of(group.tiles)} looked at") for color, group in zip(colors, groups, strict=True)
    ]


def _farthest(stain: Stain) -> list[tuple[str, str, str, str, str]]:
    """Return the slides farthest from the others: color, name, tiles, L A B, distance."""
    groups = stain.groups[:_FARTHEST]
    if len(stain.groups) < 2:
        return []
    colors = rgb_of(np.stack([group.mean for group in groups]))
    return [
        (
            color,
            group.name,
            number(group.tiles),
            ", ".join(decimal(value, 0) for value in group.mean.tolist()),
            decimal(group.away),
        )
        for color, group in zip(colors, groups, strict=True)
    ]
