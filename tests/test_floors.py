"""The house: a room imports only from rooms below its own floor."""

from __future__ import annotations

import ast
from pathlib import Path

import eosin

SOURCE = Path(eosin.__file__).parent

FLOORS = {
    "core": -1,
    "synthetic": 0,
    "slides": 1,
    "augment": 1,
    "encoders": 1,
    "data": 2,
    "methods": 3,
    "training": 3,
    "tasks": 3,
    "stain": 3,
    "tiling": 3,
    "evaluate": 4,
    "nuclei": 5,
    "pretrain": 5,
    "benchmark": 6,
    "report": 7,
    "describe": 8,
    "demo": 8,
    "doctor": 8,
    "arguments": 8,
    "benchmark_verbs": 9,
    "data_verbs": 9,
    "encoder_verbs": 9,
    "nuclei_verbs": 9,
    "stain_verbs": 9,
    "tile_verbs": 9,
    "cli": 10,
}
PACKAGE = {"__init__", "__main__"}  # the package's own face: re-exports lazily, imports from anywhere


def imported_rooms(path: Path) -> set[str]:
    """Rooms of eosin that a file imports, at its top or inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            if node.module == "eosin":
                names = [f"eosin.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("eosin.")}
    return rooms - {"__version__"}


def room_of(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def test_no_import_goes_up():
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        room = room_of(path)
        if room in PACKAGE:
            continue
        for other in imported_rooms(path) - {room}:
            if FLOORS[other] >= FLOORS[room]:
                wrong.append(f"{path.relative_to(SOURCE)} (floor {FLOORS[room]}) imports {other} ({FLOORS[other]})")
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")} - PACKAGE
    assert rooms <= FLOORS.keys()


def test_the_walk_sees_an_upward_import(tmp_path):
    file = tmp_path / "a.py"
    file.write_text(
        "def f():\n    from eosin.cli import main\n    import eosin.report.page\n    from eosin import data\n"
    )
    assert imported_rooms(file) == {"cli", "report", "data"}
