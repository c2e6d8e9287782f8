"""A folder of predictions: how they are made, what lies there, and whether it still holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, read_json_lines
from eosin.nuclei.geojson import ObjectType
from eosin.nuclei.label_writers import LabelFormat
from eosin.nuclei.tables import TableFormat
from eosin.slides import FoundSlide, TissueConfig

__all__ = ["RECORDS", "SETTINGS", "PredictConfig", "agree", "is_current", "read_records", "records", "state_of"]

SETTINGS = "predict.json"
"""File of what a folder of predictions was made with."""
RECORDS = "pictures.jsonl"
"""File with a line for each picture."""

_VERSION = 1
# Settings that do not change what is found.
_FREE = {"block", "batch_size"}


class PredictConfig(Config):
    """How nuclei are predicted, and what is written."""

    mpp: float | None = Field(None, ge=0.05, le=20.0)
    """µm/px at which the network sees; that of its training images if not given."""
    whole: bool = False
    """Look at all of a slide, not at its tissue alone."""
    tissue: TissueConfig = TissueConfig()
    """How tissue is found."""
    objects: ObjectType = "detection"
    """What QuPath makes of nuclei."""
    table: TableFormat = "parquet"
    """Format of tables."""
    labels: LabelFormat | Literal["auto", "none"] = "auto"
    """Label maps: auto is PNG of images, and none of slides, whose label maps are TIFFs in tiles if asked for."""
    overlays: bool = True
    """Draw outlines over pictures."""
    block: int | None = Field(None, ge=64)
    """Side in px of the blocks in which large pictures are searched; about 1,024 if not given. It changes
    speed, memory and what a stop costs, not nuclei."""
    batch_size: int | None = Field(None, ge=1)
    """Windows a pass; 16 on a GPU and 4 elsewhere if not given."""


def agree(out: Path, model: Any, config: PredictConfig, mpp: float | None) -> None:
    """Make sure that what lies in the folder was made the same way, and write down how."""
    settings = {name: value for name, value in config.plain().items() if name not in _FREE}
    wanted: dict[str, Any] = {
        "version": _VERSION,
        "model": {"name": model.name, "fingerprint": model.fingerprint, "classes": list(model.classes)},
        "settings": {**settings, "mpp": mpp, "precision": model.precision},
    }
    path = out / SETTINGS
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name in wanted["settings"] if there["settings"].get(name) != wanted["settings"][name]]
            other = there["model"]["fingerprint"] != model.fingerprint or there["version"] != _VERSION
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise EosinError(f"{path}: damaged; remove {out}, or choose another --out") from None
        if other or differing:
            what = "another network" if other else f"other settings ({', '.join(differing)})"
            raise EosinError(f"{out}: holds predictions by {what}; choose another --out")
        return
    if any(out.glob("[!.]*")):
        raise EosinError(f"{out}: holds other files; choose another --out")
    with atomic_file(path, "w") as file:
        json.dump(wanted, file, indent=1, ensure_ascii=False)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last line of each picture; one whose last line is none that `predict` writes is not there."""
    return read_records(out)[0]


def read_records(out: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read the last line of each picture.

    Returns:
        The lines by name, and what is wrong with others: of a line that names its picture only if it is the last one.
    """
    found: dict[str, dict[str, Any]] = {}
    wrong: dict[object, str] = {}
    for number, record in enumerate(read_json_lines(out / RECORDS), start=1):
        name, fault = record.get("name"), _fault(record)
        key = name if isinstance(name, str) else number
        wrong.pop(key, None)
        if isinstance(name, str):
            found.pop(name, None)
        if fault:
            of = f" of '{name}'" if isinstance(name, str) else ""
            wrong[key] = f"line {number}{of} has no valid '{fault}'"
        elif isinstance(name, str):
            found[name] = record
    return found, list(wrong.values())


def _fault(record: dict[str, Any]) -> str:
    """Return the first field that is not as `predict` writes it."""
    texts = ["name", "path", "status"]
    done = record.get("status") == "done"
    for field in texts if done else [*texts, "reason"]:
        if not isinstance(record.get(field), str):
            return field
    if not done:
        return "" if record["status"] == "failed" else "status"
    outputs, sizes = record.get("outputs"), record.get("bytes", {})
    if not isinstance(outputs, dict) or not all(isinstance(name, str) for name in outputs.values()):
        return "outputs"
    if "table" not in outputs:
        return "outputs"
    # Records of before had no sizes.
    if not isinstance(sizes, dict) or not all(isinstance(size, int) for size in sizes.values()):
        return "bytes"
    if not isinstance(record.get("file"), dict):
        return "file"
    return "" if isinstance(record.get("nuclei"), int) else "nuclei"


def state_of(file: FoundSlide, given: float | None) -> dict[str, Any]:
    """What must not change for a prediction to stay."""
    stat = file.path.stat()
    return {"path": str(file.path), "bytes": stat.st_size, "modified": stat.st_mtime_ns, "given_mpp": given}


def is_current(out: Path, record: dict[str, Any] | None, file: FoundSlide, given: float | None) -> bool:
    """Tell whether a picture's line still holds: the same file, and all outputs there, as long as they were written."""
    if record is None or record["status"] != "done":
        return False
    try:
        state = state_of(file, given)
    except OSError:
        return False
    if not all(name in record["file"] and record["file"][name] == state[name] for name in state):
        return False
    sizes = record.get("bytes", {})
    return all(_is_whole(out / name, sizes.get(kind)) for kind, name in record["outputs"].items())


def _is_whole(path: Path, size: int | None) -> bool:
    return path.is_file() and size in (None, path.stat().st_size)
