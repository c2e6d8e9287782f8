"""Tiles in the forms of other tools: the same bytes, all that is known, and nothing left after an error."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.data import StoreWriter, Tiles, open_tiles
from eosin.data.export import export_tiles
from eosin.data.safe_names import SafePaths, safe_part, suffix_of


@pytest.fixture
def labelled(tmp_path, encode) -> Tiles:
    """A store with everything known of some tiles, little of others."""
    with StoreWriter(tmp_path / "store") as writer:
        for number in range(9):
            kind = ("PNG", "JPEG", "TIFF")[number % 3]
            writer.add(
                encode(number, (24, 20), kind),
                name=f"sub/s{number // 3}/x{number}_y0",
                label=("tumor", "stroma, loose", None)[number // 3],
                patient=None if number == 4 else f"p{number // 3}",
                slide=f"sub/s{number // 3}",
                mpp=0.25 + number / 7,
                x=number * 1000,
                y=None if number == 5 else 7,
            )
    return open_tiles(tmp_path / "store")


def known(tiles: Tiles) -> list[tuple[object, ...]]:
    columns = [getattr(tiles, name) for name in ("label", "patient", "slide", "split", "mpp", "x", "y")]
    rows = [tuple(None if column is None else column[row] for column in columns) for row in range(len(tiles))]
    return [tuple(None if value != value else value for value in row) for row in rows]


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_folder_is_read_back_whole(tmp_path, labelled):
    summary = export_tiles(labelled, tmp_path / "out", "folder")
    assert (summary.tiles, summary.files, summary.classes) == (9, 9, ("stroma, loose", "tumor"))
    back = open_tiles(f"csv:{tmp_path / 'out' / 'index.csv'}")
    assert [back.read(row) for row in range(9)] == [labelled.read(row) for row in range(9)]
    assert known(back) == known(labelled)
    assert {Path(name).suffix for name in back.names} == {".png", ".jpg", ".tif"}
    assert back.names[0] == "tumor/sub__s0__x0_y0.png"
    assert back.names[8].startswith("_unlabelled/")


def test_class_folders_give_the_labels_to_whoever_reads_the_folder(tmp_path, labelled):
    export_tiles(labelled.select(range(6)), tmp_path / "out", "folder")
    back = open_tiles(f"folder:{tmp_path / 'out'}")
    assert sorted(back.label) == sorted(labelled.label[:6])


def test_splits_stand_above_the_classes(tmp_path, labelled):
    some = dataclasses.replace(
        labelled.select(range(6)), split=np.array(["train", "val", "test", "train", "val", "test"], dtype=object)
    )
    export_tiles(some, tmp_path / "out", "folder")
    back = open_tiles(f"folder:{tmp_path / 'out'}")
    assert sorted(zip(back.split, back.label, strict=True)) == sorted(zip(some.split, some.label, strict=True))


def test_without_labels_tiles_lie_in_folders_of_their_slides(tmp_path, labelled):
    export_tiles(dataclasses.replace(labelled, label=None), tmp_path / "out", "folder")
    assert (tmp_path / "out" / "sub" / "s1" / "x4_y0.jpg").is_file()


def test_names_that_lead_elsewhere_or_clash(tmp_path, encode):
    names = [
        "/etc/a.png",
        "../../b.png",
        "c/./d.png",
        "c//d.png",
        "C/D.png",
        ".hidden",
        "x.jpg",
        "x.jpg/0",
        "e\\f",
        "g" * 300,
    ]
    with StoreWriter(tmp_path / "store") as writer:
        for number, name in enumerate(names):
            writer.add(encode(number), name=name)
    tiles = open_tiles(tmp_path / "store")
    export_tiles(tiles, tmp_path / "deep" / "out", "folder")
    back = open_tiles(f"csv:{tmp_path / 'deep' / 'out' / 'index.csv'}")
    assert [back.read(row) for row in range(len(names))] == [tiles.read(row) for row in range(len(names))]
    assert len({name.casefold() for name in back.names}) == len(names)
    inside = {path for path in (tmp_path / "deep").rglob("*") if path.is_file()}
    assert len(inside) == len(names) + 1
    assert len(open_tiles(f"folder:{tmp_path / 'deep' / 'out'}")) == len(names), "none is hidden"


def test_safe_parts():
    assert safe_part("") == "_"
    assert safe_part(" a:b\n. ") == "a_b_"
    assert safe_part("__MACOSX") == "___MACOSX"
    assert safe_part("été/1") == "été_1"
    assert safe_part("a-b", words=True) == "a_b"
    long = [safe_part("é" * 200 + end) for end in "ab"]
    assert all(len(part.encode()) <= 200 for part in long)
    assert long[0] != long[1]
    paths = SafePaths()
    assert [paths.path(["S"], "a.png", ".png"), paths.path(["s"], "A.jpg", ".png")] == ["S/a.png", "s/A-2.png"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "JPEG2000"])
def test_the_suffix_follows_the_content(encode, kind):
    suffix = suffix_of(encode(0, (24, 20), kind), "wrong.gif")
    assert Image.registered_extensions()[suffix] == kind


def test_the_suffix_of_what_is_no_image():
    assert suffix_of(b"text", "a.PNG") == ".png"
    assert suffix_of(b"", "a") == ".bin"


def test_webdataset_reads_the_shards(tmp_path, labelled):
    webdataset = pytest.importorskip("webdataset")
    summary = export_tiles(labelled, tmp_path / "out", "webdataset", shard_tiles=4)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    assert shards == ["00000.tar", "00001.tar", "00002.tar"]
    assert summary.files == 3
    classes = (tmp_path / "out" / "classes.txt").read_text().splitlines()
    assert classes == ["stroma, loose", "tumor"]
    urls = [str(tmp_path / "out" / name) for name in shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert len(samples) == 9
    for row, sample in enumerate(samples):
        image = next(sample[kind] for kind in ("jpg", "png", "tif") if kind in sample)
        if isinstance(image, bytes):  # webdataset decodes no TIFF
            assert image == labelled.read(row)
        else:
            np.testing.assert_array_equal(np.asarray(image).transpose(2, 0, 1), labelled.image(row))
        assert sample["json"]["name"] == labelled.names[row]
        expected = dict(zip(("label", "patient", "slide", "split", "mpp", "x", "y"), known(labelled)[row], strict=True))
        assert {key: sample["json"].get(key) for key in expected} == expected
        label = classes[sample["cls"]] if "cls" in sample else None
        assert label == labelled.label[row]


def test_shards_end_by_size_too_and_carry_no_time(tmp_path, labelled):
    size = len(labelled.read(0)) + len(labelled.read(1))
    export_tiles(labelled, tmp_path / "out", "webdataset", shard_bytes=size)
    with tarfile.open(tmp_path / "out" / "00000.tar") as first:
        members = first.getmembers()
    assert [member.name for member in members][:3] == ["000000000.png", "000000000.json", "000000000.cls"]
    assert len([member for member in members if member.name.endswith(".json")]) == 2
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}


def test_hugging_face_parquet_holds_bytes_labels_and_features(tmp_path, labelled):
    summary = export_tiles(labelled, tmp_path / "out", "parquet", shard_tiles=5)
    paths = sorted((tmp_path / "out" / "data").iterdir())
    assert [path.name for path in paths] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert summary.files == 2
    table = pq.read_table(paths[0])
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["stroma, loose", "tumor"], "_type": "ClassLabel"}
    assert features["x"] == {"dtype": "int64", "_type": "Value"}
    assert list(features) == table.column_names
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    assert [row["image"]["bytes"] for row in rows] == [labelled.read(row) for row in range(9)]
    assert [row["label"] for row in rows] == [1, 1, 1, 0, 0, 0, None, None, None]
    assert [row["mpp"] for row in rows] == list(labelled.mpp)
    assert [row["y"] for row in rows] == [7, 7, 7, 7, 7, None, 7, 7, 7]
    assert "path: data/train-*" in (tmp_path / "out" / "README.md").read_text()


def test_splits_are_files_of_their_own(tmp_path, labelled):
    split = np.array(["train", "val"] * 4 + [None], dtype=object)
    export_tiles(dataclasses.replace(labelled, split=split), tmp_path / "out", "parquet")
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"{name}-00000-of-00001.parquet" for name in ("train", "unassigned", "val")]


@pytest.mark.parametrize("format", ["folder", "webdataset", "parquet"])
def test_the_same_tiles_give_the_same_files_whatever_the_workers(tmp_path, labelled, format):
    export_tiles(labelled, tmp_path / "a", format)
    export_tiles(labelled, tmp_path / "b", format, workers=2)
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize("format", ["folder", "webdataset", "parquet"])
def test_a_folder_without_labels_and_a_file_that_vanished(tmp_path, folder, format):
    tiles = open_tiles(folder(5))
    export_tiles(tiles, tmp_path / "fine", format)
    Path(tmp_path / "tiles" / "003.png").unlink()
    with pytest.raises(EosinError, match=r"003\.png: cannot be read"):
        export_tiles(tiles, tmp_path / "out", format)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fine", "tiles"]


def test_what_is_refused(tmp_path, folder):
    tiles = open_tiles(folder(2))
    with pytest.raises(EosinError, match="did you mean 'parquet'"):
        export_tiles(tiles, tmp_path / "out", "parket")
    with pytest.raises(EosinError, match="no tile"):
        export_tiles(tiles.select([]), tmp_path / "out", "folder")
    with pytest.raises(EosinError, match="exists already"):
        export_tiles(tiles, tmp_path / "tiles", "folder")
    with pytest.raises(EosinError, match="shard"):
        export_tiles(tiles, tmp_path / "out", "webdataset", shard_tiles=0)
    assert not (tmp_path / "out").exists()


def test_the_summary_is_one_line(tmp_path, folder):
    summary = export_tiles(open_tiles(folder(2)), tmp_path / "out", "webdataset")
    assert str(summary).startswith(f"{tmp_path / 'out'}: 2 tiles in 1 file, 0.0 MB")
    assert io.StringIO(str(summary)).readlines() == [str(summary)]
