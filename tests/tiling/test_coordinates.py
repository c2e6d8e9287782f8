"""Positions of tiles in the files of CLAM and TRIDENT, laid out here as those tools lay them out."""

from __future__ import annotations

import builtins
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.data import StoreWriter, open_tiles
from eosin.tiling.coordinates import Coordinates, export_coordinates, read_coordinates, write_coordinates

h5py = pytest.importorskip("h5py")

CORNERS = np.array([[0, 0], [512, 0], [512, 1024]])
CLAM = {
    "patch_size": 256,
    "patch_level": 1,
    "downsample": (4.0001, 4.0003),
    "downsampled_level_dim": (25000, 20000),
    "level_dim": (25000, 20000),
    "name": "slide-1",
    "save_path": "/results/patches",
}
TRIDENT = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 0,
    "name": "slide-1",
    "savetodir": "/results/20x_256px_0px_overlap",
    "level0_width": 100000,
    "level0_height": 80000,
}


def h5(path: Path, attributes: dict[str, object], corners: object = CORNERS, name: str = "coords") -> Path:
    with h5py.File(path, "w") as file:
        data = file.create_dataset(name, data=corners)
        for key, value in attributes.items():
            data.attrs[key] = value
    return path


def attributes_of(path: Path) -> dict[str, object]:
    with h5py.File(path) as file:
        return dict(file["coords"].attrs) | {"coords": file["coords"][()]}


def test_clam(tmp_path):
    found = read_coordinates(h5(tmp_path / "a.h5", CLAM))
    np.testing.assert_array_equal(np.stack([found.x, found.y], 1), CORNERS)
    assert (found.x.dtype, found.y.dtype, len(found)) == (np.int64, np.int64, 3)
    assert (found.level0_width, found.level0_height) == (256 * 4.0001, 256 * 4.0003)
    assert (found.size, found.kind, found.name, found.slide_size) == (256, "clam", "slide-1", None)


def test_clam_at_level_0(tmp_path):
    bare = {"patch_size": 224, "patch_level": 0}
    found = read_coordinates(h5(tmp_path / "a.h5", bare, CORNERS.astype(np.float64)))
    assert (found.level0_width, found.size, found.name, found.slide_size) == (224.0, 224, None, None)
    full = CLAM | {"patch_level": 0, "downsample": 1, "level_dim": (100, 90)}
    assert read_coordinates(h5(tmp_path / "b.h5", full)).slide_size == (100, 90)


def test_trident(tmp_path):
    found = read_coordinates(h5(tmp_path / "a.h5", TRIDENT))
    assert (found.level0_width, found.level0_height, found.size) == (512.0, 512.0, 256)
    assert (found.kind, found.name, found.slide_size) == ("trident", "slide-1", (100000, 80000))


def test_trident_without_its_extent_at_level_0(tmp_path):
    some = {key: value for key, value in TRIDENT.items() if key != "patch_size_level0"} | {"target_magnification": 15}
    assert read_coordinates(h5(tmp_path / "a.h5", some)).level0_width == 683, "256 × 40 / 15 to whole px"
    floored = TRIDENT | {"target_magnification": 15, "patch_size_level0": 682, "level0_width": "None"}
    found = read_coordinates(h5(tmp_path / "b.h5", floored))
    assert (found.level0_width, found.slide_size) == (682, None)


def test_no_tile_is_no_error(tmp_path):
    assert len(read_coordinates(h5(tmp_path / "a.h5", TRIDENT, np.zeros((0, 2), np.int64)))) == 0


@pytest.mark.parametrize(
    ("attributes", "corners", "words"),
    [
        (CLAM | {"patch_size": -1}, CORNERS, "patch_size is"),
        (CLAM | {"patch_size": 25.5}, CORNERS, "whole px"),
        (CLAM | {"patch_size": "big"}, CORNERS, "patch_size is"),
        (CLAM | {"downsample": (1.0, 2.0, 3.0)}, CORNERS, "downsample is"),
        (CLAM | {"downsample": np.nan}, CORNERS, "downsample is"),
        (CLAM | {"patch_level": -1}, CORNERS, "patch_level is"),
        (CLAM | {"custom_downsample": 2}, CORNERS, "custom_downsample"),
        ({"patch_size": 256, "patch_level": 1}, CORNERS, "no attribute downsample"),
        ({"patch_level": 0}, CORNERS, "no attribute patch_size"),
        ({"name": "x"}, CORNERS, "not the features"),
        (TRIDENT | {"patch_size_level0": 1024}, CORNERS, "make 512"),
        (CLAM, np.zeros(4), "N×2"),
        (CLAM, np.zeros((3, 3)), "3×3"),
        (CLAM, np.full((3, 2), 0.5), "whole numbers"),
        (CLAM, np.full((3, 2), np.nan), "whole numbers"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, attributes, corners, words):
    path = h5(tmp_path / "bad.h5", attributes, corners)
    with pytest.raises(EosinError, match=words) as error:
        read_coordinates(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_coordinates(tmp_path):
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "empty.h5").touch()
    whole = h5(tmp_path / "whole.h5", CLAM, np.zeros((50000, 2), np.int64)).read_bytes()
    (tmp_path / "cut.h5").write_bytes(whole[: len(whole) // 2])
    h5(tmp_path / "other.h5", {}, name="features")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("coords")
    for name, words in (
        ("text.h5", "not a readable H5"),
        ("empty.h5", "not a readable H5"),
        ("cut.h5", "not a readable H5"),
        ("other.h5", "holds features"),
        ("group.h5", "no data set"),
        ("none.h5", "no such file"),
    ):
        with pytest.raises(EosinError, match=words) as error:
            read_coordinates(tmp_path / name)
        assert "\n" not in str(error.value)


def laid(step: int = 513, extent: float = 513.03) -> Coordinates:
    x, y = np.meshgrid(np.arange(4) * step, np.arange(3) * step)
    return Coordinates(x.ravel(), y.ravel(), extent, extent, 256, "clam", slide_size=(4000, 3000))


def test_what_is_written_for_clam_is_read_as_clam_reads_it(tmp_path):
    write_coordinates(tmp_path / "s.h5", laid(), kind="clam", name="s")
    says = attributes_of(tmp_path / "s.h5")
    # CLAM reads `patch_size` px of level `patch_level` at each corner.
    assert (says["patch_size"], says["patch_level"], says["name"]) == (513, 0, "s")
    assert tuple(says["level_dim"]) == tuple(says["downsampled_level_dim"]) == (4000, 3000)
    assert says["coords"].dtype == np.int64
    found = read_coordinates(tmp_path / "s.h5")
    np.testing.assert_array_equal(found.x, laid().x)
    np.testing.assert_array_equal(found.y, laid().y)
    assert (found.level0_width, found.slide_size) == (513, (4000, 3000))


@pytest.mark.parametrize("mpp", [0.5, 0.499, 0.25, 1.0, 0.6])
def test_what_is_written_for_trident_is_read_as_trident_reads_it(tmp_path, mpp):
    write_coordinates(tmp_path / "s_patches.h5", laid(), kind="trident", name="s", mpp=mpp, slide_size=(4001, 3001))
    says = attributes_of(tmp_path / "s_patches.h5")
    # TRIDENT reads round(patch_size × ratio of the magnifications) level-0 px and shrinks them to patch_size.
    downsample = (10 / says["target_magnification"]) / (10 / says["level0_magnification"])
    assert round(says["patch_size"] * downsample) == 513
    assert says["patch_size_level0"] == 513
    assert says["overlap"] == 0
    assert 10 / says["target_magnification"] == pytest.approx(mpp)
    assert np.asarray(says["target_magnification"]).dtype.kind == ("i" if mpp in (0.5, 0.25, 1.0) else "f")
    found = read_coordinates(tmp_path / "s_patches.h5")
    assert (found.level0_width, found.size, found.slide_size) == (513, 256, (4001, 3001))


def test_trident_is_told_the_overlap(tmp_path):
    write_coordinates(tmp_path / "s.h5", laid(384, 512.0), kind="trident", name="s", mpp=0.5)
    assert attributes_of(tmp_path / "s.h5")["overlap"] == 64


def test_the_same_coordinates_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_coordinates(tmp_path / name / "s.h5", laid(), kind="trident", name="s", mpp=1.0)
    first, second = (attributes_of(tmp_path / name / "s.h5") for name in ("a", "b"))
    assert first.pop("savetodir") != second.pop("savetodir")
    assert str(first) == str(second)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(EosinError, match="did you mean 'clam'"):
        write_coordinates(tmp_path / "s.h5", laid(), kind="klam", name="s")
    with pytest.raises(EosinError, match="µm/px"):
        write_coordinates(tmp_path / "s.h5", laid(), kind="trident", name="s")
    flat = dataclasses.replace(laid(), level0_height=600.0)
    with pytest.raises(EosinError, match="not square"):
        write_coordinates(tmp_path / "s.h5", flat, kind="clam", name="s")
    assert list(tmp_path.iterdir()) == []


def encode(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def store(path: Path, slides=("a", "b/c"), mpps=(0.5,), **extra) -> Path:
    with StoreWriter(path) as writer:
        for slide in slides:
            for mpp in mpps:
                for number in range(3):
                    extent = 24 * mpp / 0.25
                    values = {
                        "x": int(number * extent),
                        "y": 7,
                        "slide": slide,
                        "mpp": mpp,
                        "level0_width": extent,
                        "level0_height": extent,
                    }
                    writer.add(encode(number), name=f"{slide}/{mpp}/{number}", **(values | extra))
    return path


@pytest.mark.parametrize("kind", ["clam", "trident"])
def test_a_store_gives_a_file_a_slide(tmp_path, kind):
    source = store(tmp_path / "store")
    (source / "slides.csv").write_text("slide,width,height\na,640,480\nb/c,,\n")
    summary = export_coordinates(open_tiles(source), tmp_path / "out", kind)
    assert str(summary) == f"{tmp_path / 'out'}: coordinates of 6 tiles in 2 files for {kind}"
    paths = summary.files
    ending = ".h5" if kind == "clam" else "_patches.h5"
    assert [str(path.relative_to(tmp_path / "out")) for path in paths] == [f"patches/a{ending}", f"patches/c{ending}"]
    found = read_coordinates(paths[0])
    assert (list(found.x), list(found.y), found.level0_width) == ([0, 48, 96], [7, 7, 7], 48)
    assert (found.name, found.slide_size) == ("a", (640, 480))
    assert found.size == (48 if kind == "clam" else 24)
    assert read_coordinates(paths[1]).slide_size is None


def test_slides_of_one_name_and_fields_of_view_are_kept_apart(tmp_path):
    source = store(tmp_path / "store", slides=("a", "b/a", "b/c"), mpps=(0.5, 1.0))
    paths = export_coordinates(open_tiles(source), tmp_path / "out", "trident").files
    names = {str(path.relative_to(tmp_path / "out")) for path in paths}
    leaves = ("a_patches.h5", "b__a_patches.h5", "c_patches.h5")
    assert names == {f"mpp-{mpp}/patches/{leaf}" for mpp in ("0.5", "1") for leaf in leaves}
    assert read_coordinates(tmp_path / "out/mpp-1/patches/a_patches.h5").level0_width == 96


@pytest.mark.parametrize("extra", [{"x": None}, {"level0_width": None}, {"slide": None}, {"mpp": None}])
def test_tiles_without_a_position_are_refused(tmp_path, extra):
    source = store(tmp_path / "store", **extra)
    with pytest.raises(EosinError, match="/0.5/0.* has no"):
        export_coordinates(open_tiles(source), tmp_path / "out", "clam")
    assert not (tmp_path / "out").exists()


def test_some_tiles_of_a_store(tmp_path):
    tiles = open_tiles(store(tmp_path / "store")).select([4, 0])
    paths = export_coordinates(tiles, tmp_path / "out", "clam").files
    assert [list(read_coordinates(path).x) for path in paths] == [[0], [48]]


def test_only_a_store_has_coordinates(tmp_path):
    (tmp_path / "tiles").mkdir()
    (tmp_path / "tiles" / "a.png").write_bytes(encode(0))
    tiles = open_tiles(tmp_path / "tiles")
    with pytest.raises(EosinError, match="only a store"):
        export_coordinates(tiles, tmp_path / "out", "clam")
    with pytest.raises(EosinError, match="no tile"):
        export_coordinates(open_tiles(store(tmp_path / "store")).select([]), tmp_path / "out", "clam")


def test_h5py_is_asked_for_in_one_line(tmp_path, monkeypatch):
    found = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "h5py":
            raise ImportError(name)
        return found(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for call in (
        lambda: read_coordinates(tmp_path / "a.h5"),
        lambda: write_coordinates(tmp_path / "a.h5", laid(), kind="clam", name="a"),
        lambda: export_coordinates(None, tmp_path / "out", "clam"),
    ):
        with pytest.raises(EosinError, match=r"pip install 'eosin\[h5\]'"):
            call()
    assert list(tmp_path.iterdir()) == []
