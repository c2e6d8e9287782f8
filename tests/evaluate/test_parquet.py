"""Embeddings as a table: the rows belong together, and unreadable tiles are left out."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eosin.cli import main
from eosin.core.errors import EosinError
from eosin.core.files import directory_held
from eosin.data import open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate import DenseMaps, embed, embed_to_parquet, open_dense
from forked import Forked


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


def test_the_closing_line_tells_of_this_source_only(tmp_path):
    """The list beside the output may hold tiles of another source, or repaired since."""
    for number in range(2):
        for source in ("one", "other"):
            path = tmp_path / source / f"{source}{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (16, 16), (number, 9, 90)).save(path)
    (tmp_path / "one" / "broken.png").write_bytes(b"broken")
    out = tmp_path / "out.parquet"
    with pytest.raises(EosinError, match="1 of 3 tiles are unreadable"):
        embed_to_parquet("color:stats?size=16", str(tmp_path / "one"), out, workers=0)
    summary = embed_to_parquet("color:stats?size=16", str(tmp_path / "other"), out, workers=0)
    assert summary.endswith("no unreadable tiles")


def test_fewer_than_no_workers_are_refused(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(EosinError, match="workers -2: must be at least 0"):
        embed_to_parquet("color:stats?size=16", str(tmp_path), tmp_path / "out.parquet", workers=-2)


def test_a_folder_as_output_is_refused(tmp_path):
    with pytest.raises(EosinError, match="is a directory"):
        embed_to_parquet("color:stats", str(tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["tiles.csv", "weights.safetensors", "tiles.parquet"])
def test_a_file_of_another_kind_is_not_replaced(tmp_path, name):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    out = tmp_path / name
    if name == "tiles.parquet":
        pq.write_table(pa.table({"file": ["a.png"]}), out)
    else:
        out.write_text("file\na.png\n")
    before = out.read_bytes()
    source = str(tmp_path / "a.png") if name == "weights.safetensors" else f"csv:{out}"
    with pytest.raises(EosinError, match=r"ends in \.parquet|is no file of embeddings, and would be replaced"):
        embed_to_parquet("color:stats?size=16", source, out, workers=0)
    assert out.read_bytes() == before


def test_embeddings_do_not_come_to_stand_beside_maps_of_another_encoder(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    out = tmp_path / "f.parquet"
    for _ in range(2):
        embed_to_parquet("random:test_resnet?size=32", str(tmp_path), out, workers=0, dense=DenseMaps((-1,)))
    before = out.read_bytes()
    with pytest.raises(EosinError, match=r"f\.dense: holds maps of another encoder \(random:test_resnet"):
        embed_to_parquet("color:stats?size=16", str(tmp_path), out, workers=0)
    assert out.read_bytes() == before


WORDS = ["embed", "--encoder", "color:stats?size=16", "--data", "many.csv", "--out", "out.parquet", "--workers", "0"]


def test_a_command_that_was_killed_goes_on(tmp_path, monkeypatch, capsys):
    """kill -9, once some parts are there: the same command computes what lacks and cleans up."""
    rng = np.random.default_rng(0)
    for number in range(64):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(tmp_path / f"{number}.png")
    for number in range(64, 3000):
        os.link(tmp_path / f"{number % 64}.png", tmp_path / f"{number}.png")
    (tmp_path / "many.csv").write_text("file\n" + "".join(f"{number}.png\n" for number in range(3000)))
    monkeypatch.chdir(tmp_path)
    process = Forked("-m", "eosin.cli", *WORDS)
    while not (found := list(tmp_path.glob("out.parquet.parts/*/*-of-00003.safetensors"))):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert not (tmp_path / "out.parquet").exists(), "it was over before it was killed; give it more tiles"
    before = {path: path.stat().st_mtime_ns for path in found}
    whole = embed(load_encoder("color:stats?size=16"), open_tiles("many.csv"))
    with directory_held(found[0].parent):
        assert main(WORDS) == 2
        assert f"{found[0].parent.name}: in use by process {os.getpid()}" in " ".join(capsys.readouterr().err.split())
    assert main([*WORDS, "--shard", "1/2"]) == 0
    assert {path: path.stat().st_mtime_ns for path in found} == before
    assert "are left to other jobs; the same command without --shard writes out.parquet" in capsys.readouterr().out
    assert main(WORDS) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    features = table["feature"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    np.testing.assert_array_equal(features, whole.features)
    assert not (tmp_path / "out.parquet.parts").exists()


def test_a_layer_that_is_not_there_is_told_before_the_pass(tmp_path, capsys, monkeypatch):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    monkeypatch.setattr("eosin.evaluate.parquet.embed", None)
    words = ["embed", "--encoder", "random:test_resnet?size=32", "--data", str(tmp_path), "--workers", "0"]
    assert main([*words, "--out", str(tmp_path / "out.parquet"), "--dense", "--layers", "9"]) == 2
    assert "error: random:test_resnet?seed=0&size=32: no layer 9 among its" in " ".join(capsys.readouterr().err.split())
    assert {path.name for path in tmp_path.iterdir()} == {"a.png"}


def test_maps_beside_the_features(tmp_path, capsys):
    (tmp_path / "tiles").mkdir()
    for number in range(4):
        Image.new("RGB", (32, 32), (number, 2, 90)).save(tmp_path / "tiles" / f"{number}.png")
    words = ["embed", "--encoder", "random:test_resnet?size=32", "--data", str(tmp_path / "tiles"), "--workers", "0"]
    words += ["--out", str(tmp_path / "out.parquet"), "--dense"]
    assert main([*words, "--layers", "-1", "--precision", "bf16"]) == 0
    store = open_dense(tmp_path / "out.dense")
    assert len(store) == pq.read_table(tmp_path / "out.parquet").num_rows == 4
    (layer,) = store.layers
    assert store.maps(layer, [3]).dtype == np.float16
    assert f"maps {layer} " in capsys.readouterr().out
    assert main([*words, "--layers", "last"]) == 2
    assert "--layers 'last': give whole numbers" in capsys.readouterr().err
    assert main([*words, "--shard", "2/2"]) == 2
    assert main([*words, "--devices", "cpu", "--ray", "local"]) == 2
    assert "give one of them" in capsys.readouterr().err
