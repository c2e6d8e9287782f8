"""Predictions in files against a truth in files, or of a set: matched by name, and scored."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.console import note
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, output_file
from eosin.nuclei.datasets import NUCLEI_SETS, open_nuclei
from eosin.nuclei.datasets.reading import LABEL_SUFFIXES, listed, whole_types
from eosin.nuclei.label_files import LabelFile, read_label_file
from eosin.nuclei.predictions import RECORDS, SETTINGS, read_records
from eosin.nuclei.score import ImageScore, curve, rows, score_image, set_scores
from eosin.nuclei.types import RADIUS, Pairing

__all__ = ["Scored", "Side", "score_files", "scores_file", "write_scores"]

Side = Literal["train", "val", "test", "all"]

_PREDICT = "`eosin nuclei predict`"

# Largest distance of centers that are a pair: 12 px at 0.25 µm/px.
_RADIUS_UM = 3.0


@dataclass(frozen=True)
class _Labels:
    """Label maps by name.

    Attributes:
        where: What to name in an error.
        files: Read one each.
        classes: Types 1 to n by name; None where they have no names.
        groups: Patients or slides by name.
        tissues: By name.
        mpp: By name.
    """

    where: str
    files: Mapping[str, Callable[[], LabelFile]]
    classes: tuple[str, ...] | None
    groups: Mapping[str, str]
    tissues: Mapping[str, str]
    mpp: Mapping[str, float | None]


@dataclass(frozen=True)
class Scored:
    """Scores of a set of predictions.

    Attributes:
        metrics: By name; see `score.set_scores`.
        images: A row for each; see `score.rows`.
        curve: See `score.curve`.
        types: Names of the types that were scored, by number; empty without types.
        groups: Patients or slides, the unit of the intervals.
        centers: How centers were paired: `pairing`, and `radius_px`, None where it followed from the µm/px.
    """

    metrics: dict[str, Any]
    images: list[dict[str, Any]]
    curve: list[dict[str, float | None]]
    types: dict[int, str]
    groups: int
    centers: dict[str, Any]


def score_files(
    predicted: Path,
    truth: str,
    *,
    side: Side = "test",
    radius: float | None = None,
    seed: int = 0,
    pairing: Pairing = "official",
) -> Scored:
    """Score predictions.

    Args:
        predicted: A folder that `predict` wrote, or one of label maps, or with such in `labels/`.
        truth: A set such as `consep:ROOT?classes=4`, or a folder of label maps of the same names.
        side: Which images of a set.
        radius: Largest distance of centers that are a pair, in px; if not given, 3 µm, or 12 px where the µm/px are not
            known.
        seed: Of the intervals.
        pairing: See `eosin.nuclei.types`.

    Raises:
        EosinError: If names do not match, a file is no label map, sizes differ, or the two have other types.
    """
    found = _predictions(Path(predicted))
    wanted = _set(truth, side) if truth.partition(":")[0] in NUCLEI_SETS else _folder(Path(truth), truth=True)
    pairs = _paired(found, wanted, strict=truth.partition(":")[0] not in NUCLEI_SETS)
    typed = _typed(found, wanted)
    loaded = [(name, wanted.files[name](), found.files[own]()) for name, own in pairs.items()]
    if typed:
        has = [
            _has_types(wanted.where, [(name, true) for name, true, _ in loaded]),
            _has_types(found.where, [(name, guess) for name, _, guess in loaded]),
        ]
        typed = all(has)
        if any(has) and not typed:
            note(f"types are not scored: {wanted.where if has[1] else found.where} has none")
    kinds = _names(found, wanted, loaded) if typed else {}
    scores = [_one(wanted, kinds, radius, pairing, *item) for item in loaded]
    return Scored(
        set_scores(scores, kinds or None, seed=seed),
        rows(scores, kinds or None),
        curve(scores),
        kinds,
        len({score.group for score in scores}),
        {"pairing": pairing, "radius_px": radius},
    )


def _one(
    wanted: _Labels,
    kinds: dict[int, str],
    radius: float | None,
    pairing: Pairing,
    name: str,
    true: LabelFile,
    guess: LabelFile,
) -> ImageScore:
    mpp = wanted.mpp.get(name)
    reach = radius if radius is not None else RADIUS if mpp is None else _RADIUS_UM / mpp
    return score_image(
        name,
        true.labels,
        guess.labels,
        true.types if kinds else None,
        guess.types if kinds else None,
        tuple(kinds),
        group=wanted.groups.get(name),
        tissue=wanted.tissues.get(name, ""),
        radius=reach,
        pairing=pairing,
    )


def _typed(found: _Labels, wanted: _Labels) -> bool:
    if found.classes == () or wanted.classes == ():
        return False
    if found.classes is not None and wanted.classes is not None and found.classes != wanted.classes:
        raise EosinError(
            f"{found.where}: its types are {', '.join(found.classes)}; those of {wanted.where} are "
            f"{', '.join(wanted.classes)}; predict with a network that was trained on them"
        )
    return True


def _names(found: _Labels, wanted: _Labels, loaded: list[tuple[str, LabelFile, LabelFile]]) -> dict[int, str]:
    classes = wanted.classes or found.classes
    if classes is None:
        kinds = [file.types for _, *files in loaded for file in files if file.types is not None]
        top = max((int(own.max()) for own in kinds if len(own)), default=0)
        classes = tuple(f"type {number}" for number in range(1, top + 1))
    for name, *files in loaded:
        for file, where in zip(files, (wanted.where, found.where), strict=True):
            top = int(file.types.max()) if file.types is not None and len(file.types) else 0
            if top > len(classes):
                raise EosinError(
                    f"{where}: '{name}' holds the type {top}, but there are {len(classes)} ({', '.join(classes)}); "
                    "name the truth as the set that it is, such as consep:ROOT?classes=4, which joins types"
                )
    return dict(enumerate(classes, start=1))


def _has_types(where: str, files: list[tuple[str, LabelFile]]) -> bool:
    """Tell whether the files have types; of some only they are refused: a score would be one of few images."""
    typed = [name for name, file in files if file.types is not None]
    without = [name for name, file in files if file.types is None]
    if typed and without:
        raise EosinError(
            f"{where}: '{without[0]}' has no types (and {len(without) - 1} more), '{typed[0]}' has; add them, or leave "
            "them out of all files"
        )
    return bool(typed)


def _paired(found: _Labels, wanted: _Labels, *, strict: bool) -> dict[str, str]:
    """Find the prediction of each image: of its whole name, or else of its last part, where no other has it.

    Raises:
        EosinError: If one has none, or, with `strict`, a prediction is of no image.
    """
    if not wanted.files:
        raise EosinError(f"{wanted.where}: holds no label maps ({' '.join(sorted(LABEL_SUFFIXES))})")
    last: dict[str, list[str]] = {}
    for name in found.files:
        last.setdefault(Path(name).name, []).append(name)
    pairs, missing = dict[str, str](), list[str]()
    for name in wanted.files:
        near = last.get(Path(name).name, [])
        if name in found.files:
            pairs[name] = name
        elif len(near) == 1:
            pairs[name] = near[0]
        else:
            missing.append(name)
    taken = set(pairs.values())
    extra = [name for name in found.files if name not in taken]
    if missing:
        raise EosinError(
            f"{found.where}: no prediction of {_some(missing)} of {wanted.where}"
            f"{f'; it has {_some(extra)}, of no image there' if extra else ''}; give both the same names"
        )
    if len(taken) < len(pairs):
        twice = next(name for name in taken if list(pairs.values()).count(name) > 1)
        raise EosinError(f"{found.where}: '{twice}' would be the prediction of two images; give them other names")
    if extra and strict:
        raise EosinError(f"{wanted.where}: no label map of {_some(extra)} of {found.where}; give both the same names")
    if extra:
        note(f"{found.where}: {_some(extra)} are not scored: {wanted.where} has no such image there")
    return pairs


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1:,} more" if len(names) > 1 else "")


def _set(spec: str, side: Side) -> _Labels:
    opened = open_nuclei(spec)
    images = [image for image in opened.images if side in ("all", image.split)]
    if not images:
        raise EosinError(f"{spec}: has no images on the side '{side}'; choose another --side")

    def reader(place: int) -> Callable[[], LabelFile]:
        def read() -> LabelFile:
            sample = images[place].read()
            return LabelFile(sample.instances, None if sample.types is None else sample.types[1:])

        return read

    return _Labels(
        spec,
        {image.name: reader(place) for place, image in enumerate(images)},
        opened.classes,
        {image.name: image.group for image in images},
        {image.name: image.tissue for image in images},
        {image.name: image.mpp for image in images},
    )


def _folder(folder: Path, *, truth: bool = False) -> _Labels:
    if not folder.is_dir():
        known = ", ".join(f"{scheme}:" for scheme in NUCLEI_SETS)
        raise EosinError(f"{folder}: no such folder; give a folder of label maps, or a set ({known})")
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    files = listed(labels, LABEL_SUFFIXES)
    return _Labels(
        str(folder),
        {name: partial(read_label_file, path, truth=truth) for name, path in files.items()},
        None,
        {},
        {},
        {},
    )


def _predictions(folder: Path) -> _Labels:
    if not (folder / SETTINGS).is_file():
        return _folder(folder)
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        classes = tuple(settings["model"]["classes"])
        if not all(isinstance(name, str) for name in classes):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError):
        raise EosinError(f"{folder / SETTINGS}: damaged; predict again into another --out") from None
    records, wrong = read_records(folder)
    if wrong:
        raise EosinError(f"{folder / RECORDS}: {wrong[0]}; remove that line and run the same {_PREDICT}")
    files = {}
    for name, record in records.items():
        if record["status"] != "done":
            continue
        if "labels" not in record["outputs"]:
            raise EosinError(f"{folder}: '{name}' has no label map; predict it with --labels tiff into another --out")
        files[name] = _predicted(folder, record["outputs"], bool(classes))
    return _Labels(str(folder), files, classes, {}, {}, {})


def _predicted(folder: Path, outputs: dict[str, str], typed: bool) -> Callable[[], LabelFile]:
    def read() -> LabelFile:
        try:
            labels = read_label_file(folder / outputs["labels"]).labels
            return LabelFile(labels, _table_types(folder / outputs["table"]) if typed else None)
        except EosinError as error:
            # What to do about a file of one's own is not what to do about one that a command wrote.
            fault = str(error).rpartition("; ")[0] or str(error)
            raise EosinError(f"{fault}; remove it and run the same {_PREDICT}") from None

    return read


def _table_types(path: Path) -> npt.NDArray[np.int64]:
    import pyarrow.csv
    import pyarrow.parquet

    try:
        table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else pyarrow.parquet.read_table(path)
        column = table["type"]
    except (OSError, ValueError, KeyError):
        raise EosinError(f"{path}: cannot be read; get the file again") from None
    if column.null_count:
        row = column.is_null().to_pylist().index(True) + 1
        raise EosinError(f"{path}: row {row} has no 'type' ({column.null_count - 1} more such); every nucleus has one")
    return whole_types(column.to_numpy(), "type", path)


def scores_file(path: Path) -> Path:
    """Make sure that scores can be written to a file: of JSON, or of CSV, by its name.

    Raises:
        EosinError: If the name ends otherwise, is a directory's, or its folder cannot be written.
    """
    csv_wanted = path.suffix == ".csv"
    return output_file(path, ".csv" if csv_wanted else ".json", "scores.csv" if csv_wanted else "scores.json")


def write_scores(scored: Scored, path: Path) -> Path:
    """Write scores: JSON of all there is, or CSV of a row for each image.

    Raises:
        EosinError: If the name ends otherwise, or the file cannot be written.
    """
    scores_file(path)
    if path.suffix == ".csv":
        with atomic_file(path, "w") as file:
            writer = csv.DictWriter(file, list(scored.images[0]))
            writer.writeheader()
            writer.writerows(scored.images)
        return path
    with atomic_file(path, "w") as file:
        json.dump(
            {
                "metrics": scored.metrics,
                "types": list(scored.types.values()),
                "groups": scored.groups,
                "centers": scored.centers,
                "curve": scored.curve,
                "images": scored.images,
            },
            file,
            indent=1,
            ensure_ascii=False,
        )
    return path
