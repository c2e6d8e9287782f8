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
from eosin.nuclei.label_files import LabelFormat
from eosin.nuclei.tables import TableFormat
from eosin.slides import FoundSlide, TissueConfig

__all__ = ["RECORDS", "SETTINGS", "PredictConfig", "agree", "is_current", "records", "state_of"]

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
    """Side in px of the blocks in which large pictures are searched: 2,048 on a GPU, 1,024 elsewhere, if not given. It
    changes speed, memory and what a stop costs, not nuclei."""
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
    """Return the last line of each picture."""
    return {record["name"]: record for record in read_json_lines(out / RECORDS)}


def state_of(file: FoundSlide, given: float | None) -> dict[str, Any]:
    """What must not change for a prediction to stay."""
    stat = file.path.stat()
    return {"path": str(file.path), "bytes": stat.st_size, "modified": stat.st_mtime_ns, "given_mpp": given}


def is_current(out: Path, record: dict[str, Any] | None, file: FoundSlide, given: float | None) -> bool:
    """Tell whether a picture's line still holds: the same file, and all outputs there."""
    if record is None or record["status"] != "done":
        return False
    try:
        state = state_of(file, given)
    except OSError:
        return False
    return all(record["file"][name] == state[name] for name in state) and all(
        (out / name).is_file() for name in record["outputs"].values()
    )
