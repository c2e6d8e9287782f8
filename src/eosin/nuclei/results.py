"""What is written of a picture: GeoJSON for QuPath, a table, a label map, its outlines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.files import storage_errors, writable_directory
from eosin.nuclei.found import Nuclei, loaded
from eosin.nuclei.geojson import Processes, write_geojson
from eosin.nuclei.label_writers import LabelFormat, write_labels, write_tiled_labels
from eosin.nuclei.outputs import Outputs
from eosin.nuclei.overlay import write_overlay
from eosin.nuclei.predictions import PredictConfig
from eosin.nuclei.tables import write_table

if TYPE_CHECKING:
    from eosin.nuclei.pictures import Picture

__all__ = ["Results", "remove_unfinished"]

# Longest side of an overlay in px.
_LONGEST = 4096
_FOLDERS = ("geojson", "tables", "labels", "overlays")

_Shown = tuple[npt.NDArray[np.uint8], float]
_Writer = Callable[[Iterator[Nuclei]], object]


def remove_unfinished(out: Path) -> None:
    """Remove what a run that was killed had not finished writing."""
    for folder in _FOLDERS:
        for left in (out / folder).rglob(".*.part"):
            if left.is_file():
                with storage_errors(left):
                    left.unlink(missing_ok=True)


@dataclass(frozen=True)
class Results:
    """The files of one picture; it can go to another process.

    Attributes:
        out: The folder of predictions.
        name: Of the picture.
        source: The network and the picture, of which ids are made.
        kind: "slide" or "image".
        size: Width and height in px as the network sees it.
        step: px of the file (level 0) per px as the network sees it, along x and y.
        mpp: µm/px as the network sees it; None where unknown.
        classes: Types 1 to n by name.
        config: What to write.
    """

    out: Path
    name: str
    source: str
    kind: Literal["slide", "image"]
    size: tuple[int, int]
    step: tuple[float, float]
    mpp: float | None
    classes: tuple[str, ...]
    config: PredictConfig

    @staticmethod
    def of(picture: Picture, model: Any, config: PredictConfig, out: Path) -> Results:
        """Take over what is known of a picture and the network."""
        return Results(
            out,
            picture.name,
            f"{model.fingerprint}/{picture.name}",
            "slide" if picture.kind == "slide" else "image",
            (picture.width, picture.height),
            picture.step,
            picture.mpp,
            tuple(model.classes),
            config,
        )

    def begin(self, picture: Picture, pool: Processes | None) -> Outputs:
        """Begin the files that are written while the blocks come.

        Args:
            picture: Which.
            pool: Processes that put nuclei into words.
        """
        writers = self._writers(pool)
        if self.config.overlays:
            path = self._folder("overlays", ".png")
            writers.append(partial(self._draw_when_asked, picture, path))
        return Outputs(writers)

    def write(self, parts: Sequence[Nuclei], shown: _Shown | None) -> dict[str, Path]:
        """Write all files of a picture of few blocks.

        Args:
            parts: Nuclei of its blocks.
            shown: What the method `shown` returned.

        Returns:
            The files by kind.

        Raises:
            EosinError: If one cannot be written.
        """
        for writer in self._writers(None):
            writer(iter(parts))
        labels = self.write_labels(parts)
        if shown is not None:
            self._draw(shown, parts, self._folder("overlays", ".png"))
        return self.files(labels)

    def shown(self, picture: Picture) -> _Shown | None:
        """Read what outlines are drawn over: its pixels, and px of the nuclei per px of it; None without an overlay.

        Raises:
            UnusableSlide: If the picture is damaged.
        """
        return _shown(picture) if self.config.overlays else None

    def write_labels(self, parts: Sequence[Nuclei | Path], go_on: Callable[[], object] = lambda: None) -> Path | None:
        """Write the label map, if it is asked for.

        Args:
            parts: Nuclei of the blocks, or the files that hold them.
            go_on: Called now and then; what it raises ends the work, and no file is left.
        """
        asked = self.config.labels
        form: LabelFormat | Literal["none"] = asked if asked != "auto" else "png" if self.kind == "image" else "none"
        if form == "none":
            return None
        path, (width, height) = self._folder("labels", ""), self.size
        if self.kind == "slide":
            return write_tiled_labels(parts, width, height, path, self.mpp, go_on)
        canvas = np.zeros((height, width), dtype=np.uint32)
        first = 1
        for part in map(loaded, parts):
            go_on()
            part.paint(canvas, (0, 0), first)
            first += len(part)
        return write_labels(canvas, path, form)

    def files(self, labels: Path | None) -> dict[str, Path]:
        """Return the files by kind, `labels` as `write_labels` returned it."""
        files = {"geojson": self._folder("geojson", ".geojson"), "table": self._table()}
        if labels is not None:
            files["labels"] = labels
        if self.config.overlays:
            files["overlay"] = self._folder("overlays", ".png")
        return files

    def _writers(self, pool: Processes | None) -> list[_Writer]:
        place: dict[str, Any] = {"step": self.step, "mpp": self.mpp, "classes": self.classes}
        path, objects = self._folder("geojson", ".geojson"), self.config.objects
        return [
            partial(write_geojson, path=path, objects=objects, name=self.source, pool=pool, **place),
            partial(write_table, path=self._table(), form=self.config.table, **place),
        ]

    def _draw_when_asked(self, picture: Picture, path: Path, parts: Iterator[Nuclei]) -> None:
        """Read the picture when there is something to draw, or all is known: of those that wait none is in memory."""
        first = list(islice(parts, 1))
        self._draw(_shown(picture), chain(first, parts), path)

    def _draw(self, shown: _Shown, parts: Iterable[Nuclei], path: Path) -> None:
        pixels, factor = shown
        write_overlay(pixels, parts, path, factor, self.classes)

    def _table(self) -> Path:
        return self._folder("tables", f".{self.config.table}")

    def _folder(self, kind: str, suffix: str) -> Path:
        """Return where a file goes, and make its folder; names may hold folders."""
        path = self.out / kind / f"{self.name}{suffix}"
        if not path.parent.is_dir():
            writable_directory(path.parent)
        return path


def _shown(picture: Picture) -> _Shown:
    return picture.thumbnail(_LONGEST)
