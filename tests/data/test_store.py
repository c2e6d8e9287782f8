from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.core.errors import EosinError
from eosin.data import StoreWriter, UnreadableImage, open_tiles, pack

Folder = Callable[..., Path]
Encode = Callable[..., bytes]


@pytest.fixture
def store(tmp_path: Path, encode: Encode) -> Path:
    out = tmp_path / "store"
    with StoreWriter(out, shard_tiles=4) as writer:
        for number in range(10):
            writer.add(
                encode(number),
                name=f"t{number}",
                label="ab"[number % 2] if number != 3 else None,
                slide=f"S{number // 5}",
                mpp=0.5 if number else None,
                x=number * 256,
                y=0,
                tissue=0.75,
            )
    return out


def test_round_trip(store: Path, encode: Encode) -> None:
    tiles = open_tiles(store)
    assert tiles.spec == f"store:{store}"
    assert list(tiles.names) == [f"t{number}" for number in range(10)]
    assert list(tiles.label) == ["a", "b", "a", None, "a", "b", "a", "b", "a", "b"]
    assert list(tiles.slide) == ["S0"] * 5 + ["S1"] * 5
    assert tiles.patient is None
    np.testing.assert_array_equal(tiles.mpp, [np.nan] + [0.5] * 9)
    np.testing.assert_array_equal(tiles.x, np.arange(10) * 256)
    for number in (9, 0, 4, 3, 8):
        assert tiles.read(number) == encode(number)
    chosen = tiles.select([7, 2])
    assert chosen.read(0) == encode(7)
    assert chosen.image(1).shape == (3, 20, 24)


def test_other_programs_read_it(store: Path, encode: Encode) -> None:
    shards = sorted((store / "shards").iterdir())
    assert [path.name for path in shards] == ["00000.arrow", "00001.arrow", "00002.arrow"]
    table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in shards])
    assert table["image"].to_pylist() == [encode(number) for number in range(10)]
    manifest = pa.parquet.read_table(store / "manifest.parquet")
    for column in ("name", "label", "patient", "slide", "split", "mpp", "x", "y", "tissue"):
        assert manifest[column].to_pylist() == table[column].to_pylist()
    assert manifest["shard"].to_pylist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert manifest["row"].to_pylist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert json.loads((store / "store.json").read_text())["tiles"] == 10


@settings(max_examples=15, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 90))
def test_any_bytes_in_any_shards(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], shard_tiles: int, batch_bytes: int
) -> None:
    out = tmp_path_factory.mktemp("any") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eosin.data.shards._BATCH_BYTES", batch_bytes)
        patch.setattr("eosin.data.store._OPEN_SHARDS", 2)
        with StoreWriter(out, shard_tiles=shard_tiles) as writer:
            for number, image in enumerate(images):
                writer.add(image, name=str(number))
        tiles = open_tiles(out)
        order = np.random.default_rng(0).permutation(len(images))
        assert [tiles.read(number) for number in order] == [images[number] for number in order]


def test_a_store_of_a_folder_has_its_content_hash(folder: Folder, tmp_path: Path) -> None:
    root = folder(["a/x.png", "b/y.jpg", "b/z.png"])
    pack([str(root)], tmp_path / "store")
    tiles, packed = open_tiles(root), open_tiles(tmp_path / "store")
    assert packed.content_hash() == tiles.content_hash()
    assert packed.select([2, 0]).content_hash() == tiles.select([2, 0]).content_hash()
    assert list(packed.label) == list(tiles.label)


def test_nothing_is_left_of_a_store_that_failed(tmp_path: Path, encode: Encode) -> None:
    def failing() -> None:
        with StoreWriter(tmp_path / "store", shard_tiles=1) as writer:
            writer.add(encode(0), name="a")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert list(tmp_path.iterdir()) == []


def test_refusals_of_the_writer(tmp_path: Path, store: Path, encode: Encode) -> None:
    before = sorted(store.rglob("*"))
    with pytest.raises(EosinError, match="exists already"), StoreWriter(store):
        pass
    assert sorted(store.rglob("*")) == before
    with pytest.raises(EosinError, match="no tile to write"), StoreWriter(tmp_path / "none"):
        pass
    with pytest.raises(EosinError, match="two tiles are named 'a'"), StoreWriter(tmp_path / "twice") as writer:
        for _ in range(2):
            writer.add(encode(0), name="a")
    assert not (tmp_path / "none").exists()
    assert not (tmp_path / "twice").exists()


def test_damaged_stores(store: Path) -> None:
    shard = store / "shards/00001.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(EosinError, match=r"00001\.arrow: [\d,]+ bytes instead of [\d,]+; copy or pack the store again"):
        open_tiles(store)
    shard.write_bytes(bytes(len(whole)))
    with pytest.raises(UnreadableImage):
        open_tiles(store).image(5)
    assert open_tiles(store).image(0).shape == (3, 20, 24)
    tiles = open_tiles(store)
    shard.write_bytes(whole[:10])
    with pytest.raises(EosinError, match=r"00001\.arrow: damaged"):
        tiles.read(5)
    shard.unlink()
    with pytest.raises(EosinError, match=r"00001\.arrow: missing"):
        open_tiles(store)
    about = store / "store.json"
    text = about.read_text()
    about.write_text(text.replace('"version": 2', '"version": 3'))
    with pytest.raises(EosinError, match="update eosin"):
        open_tiles(store)
    about.write_text(text[:20])
    with pytest.raises(EosinError, match=r"store\.json: damaged"):
        open_tiles(store)
    about.unlink()
    with pytest.raises(EosinError, match="no tile store"):
        open_tiles(store)


def test_damaged_manifest_and_missing_column(store: Path) -> None:
    with pytest.raises(EosinError, match="no column 'grade'; valid: "):
        open_tiles(store, label_column="grade")
    assert list(open_tiles(store, label_column="slide").label) == ["S0"] * 5 + ["S1"] * 5
    (store / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(EosinError, match=r"manifest\.parquet: damaged"):
        open_tiles(store)
