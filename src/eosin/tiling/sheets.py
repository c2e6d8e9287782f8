"""All slides of a store on a few pages, to look at at once."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from eosin.core.files import atomic_file, writable_directory
from eosin.tiling.preview import SLIDES_PER_SHEET, contact_sheet

__all__ = ["write_sheets"]


def write_sheets(out: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write OUT/sheets/NNN.png, pages of slides in the order of their names; pages whose slides stayed are left.

    To be called by one process at a time.

    Args:
        out: The store's directory.
        records: Records of its slides, by name.

    Raises:
        EosinError: If the disk is full or not writable.
    """
    shown = [record for record in records if record.get("preview") and (out / record["preview"]).is_file()]
    pages = [shown[start : start + SLIDES_PER_SHEET] for start in range(0, len(shown), SLIDES_PER_SHEET)]
    folder = writable_directory(out / "sheets")
    before = _known(folder / "pages.json")
    after = {}
    for number, page in enumerate(pages):
        name = f"{number:03d}.png"
        after[name] = _hash([[record["slide"], record["sample_sha256"], record["tiles"]] for record in page])
        if before.get(name) != after[name] or not (folder / name).exists():
            first = number * SLIDES_PER_SHEET + 1
            _write(folder / name, out, page, f"Slides {first:,} to {first + len(page) - 1:,}")
    for stale in set(before) - set(after):
        (folder / stale).unlink(missing_ok=True)
    with atomic_file(folder / "pages.json", "w") as file:
        file.write(json.dumps(after, indent=1) + "\n")


def _write(path: Path, out: Path, page: Sequence[dict[str, Any]], title: str) -> None:
    def previews() -> Iterator[tuple[str, Image.Image]]:
        for record in page:
            with Image.open(out / record["preview"]) as picture:
                yield f"{record['slide']}: {record['tiles']:,}", picture.convert("RGB")

    encoded = io.BytesIO()
    contact_sheet(previews(), title).save(encoded, "PNG", optimize=True)
    with atomic_file(path) as file:
        file.write(encoded.getvalue())


def _known(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
