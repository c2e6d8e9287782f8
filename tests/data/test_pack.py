from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.data import decode_image, open_tiles, pack

Folder = Callable[..., Path]
Encode = Callable[..., bytes]


def test_without_cutting_bytes_are_kept(folder: Folder, tmp_path: Path) -> None:
    root = folder(["tumor/a.png", "normal/b.jpg"])
    summary = pack([str(root)], tmp_path / "store", cut=None)
    assert (summary.images, summary.tiles, summary.cut, summary.unreadable) == (2, 2, 0, ())
    tiles = open_tiles(tmp_path / "store")
    assert list(tiles.names) == ["normal/b.jpg", "tumor/a.png"]
    assert [tiles.read(row) for row in range(2)] == [(root / name).read_bytes() for name in tiles.names]
    assert list(tiles.label) == ["normal", "tumor"]
    assert tiles.slide is None
    assert tiles.x is None
    assert str(summary) == f"{tmp_path / 'store'}: 2 tiles from 2 images; no unreadable images"


def test_png_is_cut_without_loss(tmp_path: Path, encode: Encode) -> None:
    root = tmp_path / "regions"
    root.mkdir()
    (root / "region.png").write_bytes(encode(1, (70, 45)))
    summary = pack([str(root)], tmp_path / "store", cut=20)
    tiles = open_tiles(tmp_path / "store")
    whole = decode_image((root / "region.png").read_bytes())
    corners = [(x, y) for y in (0, 20) for x in (0, 20, 40)]
    assert list(zip(tiles.x, tiles.y, strict=True)) == corners
    for row, (x, y) in enumerate(corners):
        np.testing.assert_array_equal(tiles.image(row), whole[:, y : y + 20, x : x + 20])
    assert list(tiles.names[:2]) == ["region.png/x0_y0", "region.png/x20_y0"]
    assert set(tiles.slide) == {"region"}
    assert (summary.images, summary.tiles, summary.cut) == (1, 6, 1)
    assert summary.margin == pytest.approx(1 - 6 * 400 / (70 * 45))
    assert "1 images cut, 23.8% of their area in margins left out" in str(summary)


@pytest.mark.parametrize(("size", "count"), [((20, 20), 0), ((19, 90), 0), ((21, 20), 1), ((40, 20), 2)])
def test_which_images_are_cut(tmp_path: Path, encode: Encode, size: tuple[int, int], count: int) -> None:
    root = tmp_path / "images"
    root.mkdir()
    (root / "image.png").write_bytes(encode(1, size))
    summary = pack([str(root)], tmp_path / "store", cut=20)
    tiles = open_tiles(tmp_path / "store")
    assert summary.cut == (count > 0)
    assert len(tiles) == max(1, count)
    if not count:
        assert list(tiles.names) == ["image.png"]
        assert tiles.read(0) == (root / "image.png").read_bytes()
        assert tiles.slide is None


def test_what_a_manifest_says_travels_along(folder: Folder, tmp_path: Path) -> None:
    root = folder(3, size=(40, 20))
    (root / "index.csv").write_text(
        "file,grade,patient,slide,split,mpp\n000.png,hi,P1,S1,train,0.5\n001.png,lo,P2,,train,\n002.png,,,,test,\n"
    )
    pack([f"csv:{root}/index.csv"], tmp_path / "store", cut=20, label_column="grade", splits=["train"])
    tiles = open_tiles(tmp_path / "store")
    assert list(tiles.label) == ["hi", "hi", "lo", "lo"]
    assert list(tiles.patient) == ["P1", "P1", "P2", "P2"]
    assert list(tiles.slide) == ["S1", "S1", "001", "001"]
    assert list(tiles.split) == ["train"] * 4
    np.testing.assert_array_equal(tiles.mpp, [0.5, 0.5, np.nan, np.nan])


def test_several_sources(folder: Folder, tmp_path: Path) -> None:
    one, two = folder(2, "one/tiles"), folder(2, "two/tiles")
    three = folder(1, "three")
    pack([str(one), str(three)], tmp_path / "store")
    assert list(open_tiles(tmp_path / "store").names) == ["tiles/000.png", "tiles/001.png", "three/000.png"]
    pack([str(one), str(two)], tmp_path / "again")
    names = list(open_tiles(tmp_path / "again").names)
    assert names == ["tiles-1/000.png", "tiles-1/001.png", "tiles-2/000.png", "tiles-2/001.png"]


def test_unreadable_images_are_listed_in_the_store(folder: Folder, tmp_path: Path) -> None:
    root = folder(10)
    (root / "004.png").write_text("text")
    summary = pack([str(root)], tmp_path / "store", quarantine_limit=0.1)
    assert summary.tiles == 9
    assert summary.unreadable == (("004.png", "not an image of a known format"),)
    assert "1 unreadable, listed in" in str(summary)
    assert read_json_lines(tmp_path / "store/quarantine.jsonl") == [
        {"name": "004.png", "reason": "not an image of a known format"}
    ]
    assert "004.png" not in list(open_tiles(tmp_path / "store").names)


def test_too_many_unreadable_images_leave_nothing_behind(folder: Folder, tmp_path: Path) -> None:
    root = folder(10)
    (root / "004.png").write_text("text")
    with pytest.raises(EosinError, match=r"1 of 10 tiles are unreadable.*first '004\.png'"):
        pack([str(root)], tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["tiles"]


def test_refusals(folder: Folder, tmp_path: Path) -> None:
    root = folder(2)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").write_text("x")
    with pytest.raises(EosinError, match="exists already"):
        pack([str(root)], tmp_path / "taken")
    with pytest.raises(EosinError, match="cut 4: tiles must be at least 8 px"):
        pack([str(root)], tmp_path / "store", cut=4)
    with pytest.raises(EosinError, match="no source given"):
        pack([], tmp_path / "store")


def test_real_images_cut_into_tiles(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "osteosarcoma"
    summary = pack([str(source)], tmp_path / "store", cut=256, workers=2)
    assert (summary.images, summary.tiles, summary.cut, summary.margin) == (24, 384, 24, 0)
    tiles = open_tiles(tmp_path / "store")
    assert len(set(tiles.slide)) == 24
    images = open_tiles(source)
    for row in (0, 133, 383):
        image = images.image(row // 16)
        x, y = int(tiles.x[row]), int(tiles.y[row])
        assert tiles.slide[row] == images.names[row // 16].removesuffix(".jpg")
        assert tiles.label[row] == images.label[row // 16]
        data = tiles.read(row)
        assert Image.open(io.BytesIO(data)).format == "JPEG"
        loss = np.abs(decode_image(data).astype(int) - image[:, y : y + 256, x : x + 256])
        assert loss.mean() < 2
    pack([str(source)], tmp_path / "again", cut=256)
    assert open_tiles(tmp_path / "again").content_hash() == tiles.content_hash()
