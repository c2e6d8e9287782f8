"""Embedding maps and galleries for the page's script, each tile's name, facts and picture stored once per task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eosin.report.board import rounded
from eosin.report.load import EmbeddingMap, Gallery
from eosin.report.sprites import Sprite

__all__ = ["pictures"]

_SPRITE_BUDGET = 5_000_000
_FEWEST_BYTES = 700
_POINTS = 60_000
_MANY_GALLERIES = ((10, 24, 12), (40, 12, 8), (10**9, 6, 6))
"""Up to so many galleries, so many errors and queries of each are shown."""


class _Tiles:
    """The tiles of a task that maps and galleries show, numbered in the order in which they come."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sprite = Sprite(budget // _FEWEST_BYTES)
        self.names: dict[str, int] = {}
        self.words: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, label: str, thumbnail: bytes | None, **facts: Any) -> int:
        """Return a tile's number; what an earlier mention did not know of it is added."""
        if name not in self.names:
            self.names[name] = len(self.rows)
            self.rows.append({"name": name, "label": self.word(label), "thumbnail": -1})
        row = self.rows[self.names[name]]
        if row["thumbnail"] < 0:
            row["thumbnail"] = self.sprite.add(thumbnail)
        for fact, value in facts.items():
            if row.get(fact) is None:
                row[fact] = value
        return self.names[name]

    def word(self, text: str | None) -> int | None:
        """Return the number of a class or patient; None for none."""
        return None if text is None else self.words.setdefault(str(text), len(self.words))

    def encode(self) -> dict[str, Any]:
        """Return the tiles column by column, the words they use and their sprite."""
        columns = ("name", "label", "group", "density", "red_share", "thumbnail")
        return {
            "words": list(self.words),
            **{name: [row.get(name) for row in self.rows] for name in columns},
            "sprite": self.sprite.encode(self.budget),
        }


def pictures(maps: Sequence[EmbeddingMap], galleries: Sequence[Gallery]) -> dict[str, Any]:
    """Return maps, neighbors and errors, whose tiles are numbers in the tables of `tiles`.

    Many maps are thinned, the same tiles in each, and many galleries shortened, so that the page stays small.
    """
    tasks = list(dict.fromkeys([entry.task for entry in maps] + [gallery.task for gallery in galleries]))
    tiles = {task: _Tiles(_SPRITE_BUDGET // max(len(tasks), 1)) for task in tasks}
    points = sum(len(entry.points["name"]) for entry in maps)
    stride = max(1, -(-points // _POINTS))
    errors, queries = next(limits for most, *limits in _MANY_GALLERIES if len(galleries) <= most)
    return {
        "maps": [_map(entry, tiles[entry.task], stride) for entry in maps],
        **_galleries(galleries, tiles, errors, queries),
        "tiles": {task: entry.encode() for task, entry in tiles.items()},
    }


def _map(entry: EmbeddingMap, tiles: _Tiles, stride: int) -> dict[str, Any]:
    points = {name: values[::stride] for name, values in entry.points.items()}
    facts = [name for name in ("density", "red_share") if name in points]
    numbers = []
    for row, name in enumerate(points["name"]):
        known: dict[str, Any] = {fact: rounded(points[fact][row], 4) for fact in facts}
        if "group" in points:
            known["group"] = tiles.word(points["group"][row])
        numbers.append(tiles.add(str(name), str(points["label"][row]), points["thumbnail"][row], **known))
    places = [name for name in ("x", "y", "pca_x", "pca_y", "umap_x", "umap_y") if name in points]
    kept = ("method", "seed", "predicted_by", "grouping", "of")
    return {
        "encoder": entry.encoder,
        "task": entry.task,
        **{key: entry.details.get(key) for key in kept},
        "tile": numbers,
        "predicted": [tiles.word(value) for value in points["predicted"]],
        **{name: [rounded(value, 4) for value in points[name]] for name in places},
    }


def _galleries(galleries: Sequence[Gallery], tiles: dict[str, _Tiles], errors: int, queries: int) -> dict[str, Any]:
    """Split galleries into neighbors, the same under every protocol, and errors of each protocol."""
    near: dict[tuple[str, str], dict[str, Any]] = {}
    wrong = []
    for gallery in galleries:
        who = {"encoder": gallery.encoder, "task": gallery.task}
        table = tiles[gallery.task]
        if (gallery.encoder, gallery.task) not in near:
            asked = [row for row in gallery.rows if row["kind"] in ("query", "neighbor") and row["query"] < queries]
            if asked:
                shown = [[_number(row, table), row["query"], row["rank"], rounded(row["cosine"], 4)] for row in asked]
                near[gallery.encoder, gallery.task] = who | {"train": gallery.details.get("train"), "rows": shown}
        kept = {key: gallery.details.get(key) for key in ("predicted_by", "test", "wrong")}
        worst = [row for row in gallery.rows if row["kind"] == "error" and row["rank"] <= errors]
        wrong.append(who | kept | {"rows": [_error(row, table) for row in worst]})
    return {"neighbors": list(near.values()), "errors": wrong}


def _error(row: dict[str, Any], tiles: _Tiles) -> list[Any]:
    chances = [rounded(row["probability"], 4), rounded(row["truth_probability"], 4)]
    return [_number(row, tiles), tiles.word(row["predicted"]), *chances]


def _number(row: dict[str, Any], tiles: _Tiles) -> int:
    return tiles.add(str(row["name"]), str(row["label"]), row["thumbnail"])
