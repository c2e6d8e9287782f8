"""Feature maps on disk: those of the encoder, mapped, in parts that go on where they were."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

import eosin.evaluate.embed_shards as embed_shards
from eosin.core.errors import EosinError
from eosin.data import Quarantine, load_square, open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate import embed_dense, open_dense

SPEC = "random:test_resnet?size=32"


@pytest.fixture
def tiles(tmp_path):
    """Twenty noise images in two classes, one of them unreadable."""
    rng = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "tiles" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(path)
    (tmp_path / "tiles" / "a" / "04.png").write_bytes(b"broken")
    return open_tiles(str(tmp_path / "tiles"))


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of eight tiles: three of them."""
    monkeypatch.setattr(embed_shards, "PART_TILES", 8)


def run(tiles, out, **options):
    return embed_dense(load_encoder(SPEC), tiles, out, quarantine=Quarantine(None, limit=0.1), **options)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 2e-3)])
def test_maps_are_the_encoders_own(tiles, tmp_path, dtype, tolerance):
    store = run(tiles, tmp_path / "maps", layers=(0, -1), dtype=dtype, batch_size=5)
    encoder = load_encoder(SPEC)
    rows = np.setdiff1d(np.arange(20), [2])
    assert store.rows.tolist() == rows.tolist()
    assert list(store.names) == [tiles.names[row] for row in rows]
    images = np.stack([load_square(tiles, row, 32) for row in rows])
    with torch.inference_mode():
        maps = encoder.spatial(encoder.normalize(torch.from_numpy(images)))
    last = f"layer{len(maps) - 1}"
    assert store.layers == {"layer0": tuple(maps[0].shape[1:]), last: tuple(maps[-1].shape[1:])}
    places = np.array([18, 0, 7, 8, 3])
    for layer, expected in (("layer0", maps[0]), (last, maps[-1])):
        got = store.maps(layer, places)
        assert got.dtype == dtype
        scale = expected.abs().max().item()
        np.testing.assert_allclose(got, expected[places].numpy(), atol=tolerance * scale)
    table = pq.read_table(tmp_path / "maps" / "index.parquet")
    assert [name[0] for name in table["name"].to_pylist()] == table["label"].to_pylist()
    file = load_file(tmp_path / "maps" / "00002-of-00003.safetensors")
    np.testing.assert_array_equal(file[last], store.maps(last, np.flatnonzero(store.part == 2)))


def test_jobs_of_an_array_and_a_second_call(tiles, tmp_path):
    whole = run(tiles, tmp_path / "whole")
    layer = next(iter(whole.layers))
    assert run(tiles, tmp_path / "maps", shard=(0, 2)) is None
    with pytest.raises(EosinError, match=r"dense.json is missing"):
        open_dense(tmp_path / "maps")
    shared = run(tiles, tmp_path / "maps", shard=(1, 2))
    np.testing.assert_array_equal(shared.maps(layer, range(19)), whole.maps(layer, range(19)))
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "maps").glob("*.safetensors"))]
    again = run(tiles, tmp_path / "maps")
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "maps").glob("*.safetensors"))] == before
    assert json.loads((tmp_path / "maps" / "dense.json").read_text()) == again.about
    with pytest.raises(EosinError, match="holds maps of another encoder, source or layer"):
        run(tiles, tmp_path / "maps", layers=(0,))


def test_what_is_wrong_is_told(tiles, tmp_path):
    with pytest.raises(EosinError, match="no layer 9 among its"):
        run(tiles, tmp_path / "maps", layers=(9,))
    with pytest.raises(EosinError, match="has no feature maps"):
        embed_dense(load_encoder("color:stats"), tiles, tmp_path / "color", quarantine=Quarantine(None, limit=0.1))
    store = run(tiles, tmp_path / "maps")
    with pytest.raises(EosinError, match="no layer 'x'; valid: layer"):
        store.maps("x", [0])
    path = tmp_path / "maps" / "00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(EosinError, match="missing or cut short"):
        open_dense(tmp_path / "maps")


@pytest.mark.parametrize("layers", [(-1,), (0, 1)])
def test_a_network_that_fails_is_one_line(tiles, tmp_path, layers):
    encoder = load_encoder("random:levit_128s?size=100")
    with pytest.raises(
        EosinError, match=r"levit_128s\?seed=0&size=100: the network fails on images of 100 px \("
    ) as caught:
        embed_dense(encoder, tiles, tmp_path / "maps", layers=layers, quarantine=Quarantine(None, limit=0.1))
    assert "\n" not in str(caught.value)


def test_values_too_large_for_float16_are_told(tiles, tmp_path):
    class Loud(torch.nn.Module):
        card = load_encoder(SPEC).card

        def fingerprint(self):
            return "loud"

        def normalize(self, images):
            return images.float()

        def spatial(self, images):
            return [images * 1000.0]

    options = {"quarantine": Quarantine(None, limit=0.1)}
    with pytest.raises(EosinError, match=r"map layer0 of tile 'a/00.png' are not finite.*keep float32"):
        embed_dense(Loud(), tiles, tmp_path / "maps", **options)
    assert embed_dense(Loud(), tiles, tmp_path / "maps", dtype="float32", **options).maps("layer0", [0]).max() > 65504
