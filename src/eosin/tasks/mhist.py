"""MHIST: colorectal polyps, hyperplastic or sessile serrated, by the vote of seven pathologists (Wei et al., 2021)."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from eosin.core.errors import EosinError
from eosin.tasks.data_sets import DataSet, RemoteFile
from eosin.tasks.public import (
    Assigned,
    Found,
    PublicOptions,
    count_problems,
    file_tiles,
    hold_out,
    image_names,
    register,
)

__all__ = ["MHIST", "MhistOptions"]

_HEADER = ("Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)", "Partition")
_TABLE = "annotations.csv"
_MAJORITY = 4
_VOTERS = 7
_SHARE = 0.2

MHIST = DataSet(
    name="mhist",
    title="MHIST",
    task="colorectal polyps: hyperplastic or sessile serrated",
    classes={"HP": "hyperplastic polyp", "SSA": "sessile serrated adenoma"},
    counts={"train": {"HP": 1545, "SSA": 630}, "test": {"HP": 617, "SSA": 360}},
    splits={"three-way": (1740, 435, 977)},
    pinned_by="counts",
    image_size=(224, 224),
    mpp=2.0,
    gigabytes=0.35,
    licence="MHIST Dataset Research Use Agreement",
    licence_url="https://bmirds.github.io/MHIST/",
    use="research, by those who signed the agreement; it may not be passed on",
    consent=True,
    access="form",
    home="https://bmirds.github.io/MHIST/",
    how="fill in the form at https://bmirds.github.io/MHIST/#accessing-dataset; put annotations.csv and images.zip, "
    "which come by mail, into DIR; then eosin data get mhist --root DIR --accept-licence",
    layout=("annotations.csv", "images/MHIST_aaa.png … (3,152 images)"),
    files=(RemoteFile(name="images.zip", url="", becomes="images", becomes_bytes=400_000_000),),
    reference="Wei et al., A Petri Dish for Histopathology Image Analysis, AIME 2021",
    flaws=(
        "in one image of six the vote is 4 to 3",
        "patients are not published: val is cut from train by image",
        "in eva an ImageNet ViT-S (0.82) is ahead of Lunit's (0.75 to 0.78)",
    ),
)


class MhistOptions(PublicOptions):
    """Options of ``mhist:DIR``."""

    val: float = _SHARE
    """Share of the official train held out by image to choose settings on."""


def _read(about: DataSet, root: Path, options: MhistOptions) -> Found:
    table = root / _TABLE
    rows, problems = _rows(table)
    folder = root / "images"
    if not folder.is_dir():
        raise EosinError(f"{folder}: missing folder; unpack images.zip there")
    there = set(image_names(folder))
    kept: dict[str, tuple[str, str]] = {}
    missing = [name for name in rows if name not in there]
    if missing:
        problems.append(
            f"{folder / missing[0]}: in {_TABLE} but not there; unpack images.zip again ({len(missing):,} such)"
        )
    extra = sorted(there - rows.keys())
    if extra:
        problems.append(f"{folder / extra[0]}: not in {_TABLE}; move it away ({len(extra):,} such)")
    kept = {name: rows[name] for name in sorted(rows) if name in there}
    for part, counts in about.counts.items():
        got = Counter(label for label, of in kept.values() if of == part)
        where = dict.fromkeys(counts, Path(f"{table} ({part})"))
        problems += count_problems(where, counts, got, "get the file again")
    tiles = file_tiles(about, folder, list(kept), [label for label, _ in kept.values()])
    parts = np.array([*(part for _, part in kept.values()), None], dtype=object)[:-1]
    return Found(tiles, parts, tuple(problems), ("patients are not published: intervals are by image",))


def _rows(table: Path) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Read the annotations.

    Returns:
        Image -> (label, part), and what is wrong with the rows that were left out.

    Raises:
        EosinError: If the table cannot be read or has another header.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise EosinError(f"{table}: cannot be read ({reason}); put the file that came with MHIST there") from None
    header = tuple(lines[0]) if lines else ()
    if header != _HEADER:
        raise EosinError(f"{table}: the first line must be '{','.join(_HEADER)}', found '{','.join(header)}'")
    rows: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        wrong = _wrong(line, rows)
        if wrong:
            problems.append(f"{table}: line {number}: {wrong}")
        else:
            rows[line[0]] = line[1], line[3]
    return rows, problems


def _wrong(line: list[str], rows: dict[str, tuple[str, str]]) -> str:
    """Say what is wrong with a row, or return nothing."""
    if len(line) != len(_HEADER):
        return f"{len(line)} values, not {len(_HEADER)}; get the file again"
    name, label, votes, part = line
    if name in rows:
        return f"a second row for '{name}'; keep one"
    if "/" in name or not name:
        return f"'{name}' is no name of an image; get the file again"
    if label not in MHIST.classes:
        return f"label '{label}' is not in the class list ({', '.join(MHIST.classes)}); correct it"
    if part not in MHIST.counts:
        return f"partition '{part}' is neither train nor test; correct it"
    if votes not in map(str, range(_VOTERS + 1)):
        return f"'{votes}' is no number of votes from 0 to {_VOTERS}; correct it"
    if (int(votes) >= _MAJORITY) != (label == "SSA"):
        return f"{votes} of {_VOTERS} votes for SSA do not make the label {label}; correct one of them"
    return ""


def _assign(about: DataSet, found: Found, options: MhistOptions) -> Assigned:
    split = np.array(found.part, dtype=object)
    train = np.flatnonzero(split == "train")
    if len(train):
        names = np.asarray(found.tiles.names)[train]
        labels = np.asarray(found.tiles.label)[train]
        split[train[hold_out(labels, names, options.val, found.tiles.spec)]] = "val"
    source = f"published train and test; {100 * options.val:g} % of train is val by image, stratified"
    return Assigned(split, "three-way" if options.val == _SHARE else None, source)


register(MHIST, MhistOptions, _read, _assign)
