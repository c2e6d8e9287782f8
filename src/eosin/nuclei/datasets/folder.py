"""A user's own folder: images beside label maps of the same names, types and a split where there are some."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from eosin.core.config import Config
from eosin.core.errors import EosinError, nearest
from eosin.data.folder import IMAGE_SUFFIXES
from eosin.nuclei.datasets.reading import (
    LABEL_SUFFIXES,
    TypeRule,
    contents,
    image_shape,
    label_map,
    listed,
    picture,
    type_map,
    types_from_map,
)
from eosin.nuclei.datasets.registry import NUCLEI_SETS, About, Found, NucleiScheme, Share, assemble, folder_of
from eosin.nuclei.datasets.sample import SPLITS, NucleiSample, NucleiSet, Split, TypesOf, make_sample
from eosin.nuclei.labels import Labels

__all__ = ["FOLDER", "FolderOptions", "load_pair", "open_folder"]

FOLDER = About(
    name="folder",
    title="a folder",
    task="images with label maps",
    layout=("images/", "labels/ (PNG, TIFF, NPY, NPZ or MAT of the same names)"),
)

_SHARE = 0.2
Texts = tuple[str, ...]


def _names(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


class FolderOptions(Config):
    """What may follow the `?` of ``folder:DIR``."""

    name: str = ""
    """Name to show; the folder's by default."""
    mpp: Annotated[float, Field(ge=0.01, le=100.0)] | None = None
    """µm/px of all images."""
    classes: Annotated[Texts, BeforeValidator(_names)] = ()
    """Names of the types 1 to n, separated by commas; types are read only where they are named."""
    types: TypeRule = "checked"
    """majority takes the type of most typed pixels, however few."""
    split: str = ""
    """A CSV file below the folder with the columns file, split and perhaps group; split.csv by default, if there."""
    val: Share = _SHARE
    """Share of the training images for validation, where train and test are given."""


def open_folder(
    about: About, source: str, options: FolderOptions, spec: str, classes: Sequence[str] = (), name: str = ""
) -> NucleiSet:
    """Open ``images/`` and ``labels/``, or the same below ``train/``, ``val/`` and ``test/``.

    Args:
        about: What is known of the set.
        source: The folder.
        options: Of the spec.
        spec: The spec.
        classes: Names of the types, where the options have none.
        name: Shown in results, where the options have none.
    """
    root = folder_of(about, source, spec)
    classes = options.classes or tuple(classes)
    parts: list[tuple[str, Path]] = [(part, root / part) for part in SPLITS if (root / part / "images").is_dir()]
    parts = parts or [("", root)]
    found = [each for part, folder in parts for each in _pairs(folder, part, options, classes)]
    table = root / (options.split or "split.csv")
    made: dict[str, Any] = {}
    sides: dict[str, Split] = {side: side for side in SPLITS}
    if options.split or table.is_file():
        found, source_text = _by_table(table, found), f"given by {table.name}"
    elif parts[0][0]:
        source_text = "given by folders"
    else:
        sides, source_text = {"": "train"}, "made: train/val/test 60/20/20 %, by content of the images"
        made = {"test": _SHARE, "val": _SHARE / (1 - _SHARE)}
    given = {each.part for each in found}
    if not made and "test" not in given:
        raise EosinError(f"{spec}: no image is of the side 'test'; give one, or remove the split to have one made")
    if not made and "val" not in given:
        made, source_text = {"val": options.val}, f"{source_text}; {100 * options.val:g} % of train is val, by content"
    shown = options.name or name or root.resolve().name
    return assemble(about, spec, found, sides, options, classes=classes, split_source=source_text, name=shown, **made)


def _pairs(folder: Path, part: str, options: FolderOptions, classes: Sequence[str]) -> list[Found]:
    for name in ("images", "labels"):
        if not (folder / name).is_dir():
            raise EosinError(f"{folder / name}: no such folder; expected {' and '.join(FOLDER.layout)}")
    images, labels = listed(folder / "images", IMAGE_SUFFIXES), listed(folder / "labels", LABEL_SUFFIXES)
    if not images:
        raise EosinError(f"{folder / 'images'}: holds no images; put PNG, TIFF or JPEG files there")
    _refuse_unpaired(images, labels, folder / "labels", "label map")
    _refuse_unpaired(labels, images, folder / "images", "image")
    types = listed(folder / "types", LABEL_SUFFIXES) if classes and (folder / "types").is_dir() else {}
    if types:
        _refuse_unpaired(images, types, folder / "types", "type map")
    paths = [path for name in images for path in (images[name], labels[name], types.get(name, labels[name]))]
    digests = contents(paths)
    shapes = [image_shape(path) for path in images.values()]
    told = (tuple(classes), options.types)
    return [
        Found(
            f"{part}/{name}" if part else name,
            part,
            partial(load_pair, path, labels[name], types.get(name), *told),
            shapes[row],
            digests[3 * row],
            digests[3 * row + 1] + digests[3 * row + 2],
            mpp=options.mpp,
            labels=partial(_labels, labels[name], types.get(name), *told, shapes[row]),
        )
        for row, (name, path) in enumerate(images.items())
    ]


def _refuse_unpaired(some: dict[str, Path], others: dict[str, Path], folder: Path, what: str) -> None:
    lone = sorted(some.keys() - others.keys())
    if lone:
        more = f" ({len(lone) - 1} more like it)" if len(lone) > 1 else ""
        raise EosinError(f"{some[lone[0]]}{more}: has no {what} in {folder}; add '{lone[0]}.…' there or move it away")


def _by_table(table: Path, found: Sequence[Found]) -> list[Found]:
    """Put images on the sides, and into the groups, that a table names."""
    from dataclasses import replace

    by_name = {each.name: each for each in found} | {Path(each.name).name: each for each in found}
    placed: dict[str, Found] = {}
    sides: dict[str, str] = {}
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            for column in ("file", "split"):
                if column not in (lines.fieldnames or ()):
                    raise EosinError(
                        f"{table}: has no column '{column}'; the columns are file, split and perhaps group"
                    )
            for line in lines:
                name, side = Path((line["file"] or "").strip()).stem, (line["split"] or "").strip()
                group = (line.get("group") or "").strip()
                where = f"{table}: line {lines.line_num}"
                if name not in by_name:
                    raise EosinError(f"{where}: there is no image '{line['file']}'; correct the name")
                if side not in SPLITS:
                    raise EosinError(f"{where}: unknown split '{side}'; {nearest(side, SPLITS)}")
                if group and sides.setdefault(group, side) != side:
                    raise EosinError(
                        f"{where}: group '{group}' is in both {sides[group]} and {side}; put it on one side"
                    )
                if by_name[name].name in placed:
                    raise EosinError(f"{where}: a second row for '{line['file']}'; keep one")
                placed[by_name[name].name] = replace(by_name[name], part=side, group=group)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EosinError(f"{table}: cannot be read ({error}); give a CSV file") from None
    missing = [each.name for each in found if each.name not in placed]
    if missing:
        raise EosinError(f"{table}: has no line for '{missing[0]}' ({len(missing)} such); add it, or remove the image")
    return list(placed.values())


def load_pair(image: Path, label: Path, types: Path | None, classes: Texts, rule: TypeRule) -> NucleiSample:
    """Read an image, its label map and, where types have names, the types beside it or in the same file."""
    pixels = picture(image)
    return make_sample(pixels, *_labels(label, types, classes, rule, (pixels.shape[1], pixels.shape[2])))


def _labels(
    label: Path, types: Path | None, classes: Texts, rule: TypeRule, shape: tuple[int, int]
) -> tuple[Labels, TypesOf | None]:
    labels = label_map(label, shape)
    if not classes:
        return labels, None
    if types is None and label.suffix.lower() not in (".npz", ".mat"):
        raise EosinError(f"{label}: classes are named, but there are no types; put type maps into types/, or name none")
    where = label if types is None else types
    return labels, types_from_map(type_map(where), str(where), classes, rule)


def _open(source: str, options: FolderOptions, spec: str) -> NucleiSet:
    return open_folder(FOLDER, source, options, spec)


NUCLEI_SETS.register("folder")(NucleiScheme(FOLDER, FolderOptions, _open, {}))
