"""Finished cells: read again whole, computed again where damaged, and nothing half written beside them."""

from __future__ import annotations

from eosin.core.files import atomic_file
from eosin.evaluate.cells import load_cells, save_cell


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    for name in ("cells", "predictions", "embeddings"):
        (tmp_path / name).mkdir()
    record = {"key": "k", "predictions": "predictions/k.parquet", "created": "now"}
    save_cell(tmp_path, "cells", record)
    (tmp_path / "predictions" / "k.parquet").write_bytes(b"")
    lost = [tmp_path / "results.jsonl", tmp_path / "predictions" / "l.parquet", tmp_path / "cells" / "l.json"]
    writing = [atomic_file(path) for path in [*lost, tmp_path / "embeddings" / "e.safetensors"]]
    for file in writing:
        file.__enter__().write(b"a part")
    other = tmp_path / ".stain.json.0000.part"  # of a command that does not hold the directory
    other.write_text("")
    assert len(list(tmp_path.rglob("*.part"))) == 5
    assert load_cells(tmp_path, "cells", lambda found: found["key"]) == {"k": record}
    assert list(tmp_path.rglob("*.part")) == [other]
