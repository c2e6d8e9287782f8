"""Embeddings as a table: the rows belong together, and unreadable tiles are left out."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.data import open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate import embed, embed_to_parquet


def test_table_holds_the_features_of_the_readable_tiles(tmp_path):
    for number in range(120):
        path = tmp_path / "tiles" / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 2 * number, 90)).save(path)
    broken = tmp_path / "tiles" / "a" / "000.png"
    broken.write_bytes(b"broken")
    summary = embed_to_parquet("color:stats?size=16", str(tmp_path / "tiles"), tmp_path / "out.parquet", workers=0)
    assert "119 tiles x 6 features" in summary
    assert "1 unreadable tile" in summary
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["name", "label", "feature"]
    names = table["name"].to_pylist()
    assert "a/000.png" not in names
    assert [name[0] for name in names] == table["label"].to_pylist()
    features = table["feature"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    numbers = np.array([int(name[2:5]) for name in names])
    np.testing.assert_allclose(features[:, :3] * 255, np.stack([numbers, 2 * numbers, 0 * numbers + 90], 1), atol=1e-3)
    encoder = load_encoder("color:stats?size=16")
    assert table.schema.metadata[b"fingerprint"].decode() == encoder.fingerprint()
    broken.unlink()
    np.testing.assert_array_equal(embed(encoder, open_tiles(str(tmp_path / "tiles"))).features, features)


def test_a_folder_as_output_is_refused(tmp_path):
    with pytest.raises(EosinError, match="is a directory"):
        embed_to_parquet("color:stats", str(tmp_path), tmp_path)
