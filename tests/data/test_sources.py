from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.errors import EosinError
from eosin.data import Names, UnreadableImage, decode_image, open_tiles, pack

Folder = Callable[..., Path]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flat_folder(folder: Folder) -> None:
    root = folder(3)
    tiles = open_tiles(root)
    assert list(tiles.names) == ["000.png", "001.png", "002.png"]
    assert len(tiles) == 3
    assert tiles.label is None
    assert tiles.split is None
    assert tiles.mpp is None
    assert tiles.read(1) == (root / "001.png").read_bytes()
    np.testing.assert_array_equal(tiles.image(1), decode_image((root / "001.png").read_bytes()))
    assert open_tiles(f"folder:{root}").content_hash() == tiles.content_hash()
    assert tiles.describe() == f"3 tiles from folder:{root}"


def test_class_folders_at_any_depth(folder: Folder) -> None:
    tiles = open_tiles(folder(["site/tumor/b.jpg", "site/tumor/a.JPG", "normal/c.tif", "x/y/z/stroma/d.jpeg"]))
    assert list(tiles.names) == ["normal/c.tif", "site/tumor/a.JPG", "site/tumor/b.jpg", "x/y/z/stroma/d.jpeg"]
    assert list(tiles.label) == ["normal", "tumor", "tumor", "stroma"]


def test_one_image_outside_means_no_class_folders(folder: Folder) -> None:
    assert open_tiles(folder(["tumor/a.png", "normal/b.png", "c.png"])).label is None


def test_split_folders(folder: Folder) -> None:
    tiles = open_tiles(folder(["train/tumor/a.png", "valid/normal/b.png", "test/tumor/c.png"]))
    assert list(tiles.split) == ["test", "train", "val"]
    assert list(tiles.label) == ["tumor", "tumor", "normal"]
    assert open_tiles(folder(["train/a.png", "test/b.png"], "unlabelled")).label is None
    assert list(open_tiles(tiles.spec, splits=("test", "val")).names) == ["test/tumor/c.png", "valid/normal/b.png"]
    assert "1 outside test and val" in open_tiles(tiles.spec, splits=("test", "val")).describe()
    with pytest.raises(EosinError, match="no split 'dev'; it has test, train, val"):
        open_tiles(tiles.spec, splits=["dev"])
    with pytest.raises(EosinError, match="no tile has a split"):
        open_tiles(folder(2), splits=["train"])


def test_hidden_and_other_files_are_ignored_and_counted(folder: Folder) -> None:
    root = folder(["a.png", "._a.png", ".hidden/b.png", "__MACOSX/a.png", ".DS_Store.png"])
    for other in ("notes.txt", "Thumbs.db", "labels.csv"):
        write(root / other, "x")
    tiles = open_tiles(root)
    assert list(tiles.names) == ["a.png"]
    assert tiles.remarks == ("ignored 3 file(s) that are no images", "ignored 4 hidden file(s) or folder(s)")


def test_links_are_followed_and_loops_end(folder: Folder) -> None:
    root = folder(["real/a.png", "other/b.png"])
    elsewhere = folder(["c.png"], "elsewhere")
    (root / "real/loop").symlink_to(root)
    (root / "real/self").symlink_to(root / "real")
    (root / "again").symlink_to(root / "other")
    (root / "linked").symlink_to(elsewhere)
    (root / "linked.png").symlink_to(elsewhere / "c.png")
    (root / "broken.png").symlink_to(root / "nowhere.png")
    (root / "broken").symlink_to(root / "nowhere")
    (root / "circle.png").symlink_to(root / "circle.png")
    tiles = open_tiles(root)
    assert list(tiles.names) == ["broken.png", "circle.png", "linked.png", "linked/c.png", "other/b.png", "real/a.png"]
    assert "ignored 3 link(s) to a folder read already" in tiles.remarks
    with pytest.raises(UnreadableImage, match="No such file"):
        tiles.read(0)


def test_pipes_are_left_out(folder: Folder) -> None:
    root = folder(["a.png"])
    os.mkfifo(root / "b.png")
    tiles = open_tiles(root)
    assert list(tiles.names) == ["a.png"]
    assert tiles.remarks == ("ignored 1 pipe(s), socket(s) or device(s)",)


def test_faulty_folders(tmp_path: Path) -> None:
    with pytest.raises(EosinError, match=r"empty: no images; it is empty \(looked for .*\.jpg"):
        (tmp_path / "empty").mkdir()
        open_tiles(tmp_path / "empty")
    (tmp_path / "texts/deep").mkdir(parents=True)
    write(tmp_path / "texts/deep/a.txt", "x")
    write(tmp_path / "texts/.b.png", "x")
    with pytest.raises(EosinError, match="texts: no images; none of its 2 entries is one"):
        open_tiles(tmp_path / "texts")
    with pytest.raises(EosinError, match="absent: no such file or folder"):
        open_tiles(tmp_path / "absent")
    with pytest.raises(EosinError, match="absent: no such folder"):
        open_tiles(f"folder:{tmp_path}/absent")
    with pytest.raises(EosinError, match=r"a\.txt: neither a folder nor"):
        open_tiles(tmp_path / "texts/deep/a.txt")
    with pytest.raises(EosinError, match="a single image; give the folder"):
        open_tiles(tmp_path / "texts/.b.png")
    with pytest.raises(EosinError, match="unknown kind of source 'foldr'; did you mean 'folder'"):
        open_tiles("foldr:x")
    with pytest.raises(EosinError, match="give a path after the colon"):
        open_tiles("store:")
    with pytest.raises(EosinError, match="a folder has no column 'grade'"):
        open_tiles(tmp_path / "texts", label_column="grade")


def test_slides_in_a_folder_are_no_tiles_and_told(folder: Folder) -> None:
    root = folder(["a.png"])
    for name in ("deep/b.svs", "c.NDPI"):
        (root / name).parent.mkdir(exist_ok=True)
        write(root / name, "x")
    assert open_tiles(root).remarks == ("ignored 2 whole-slide image(s), tiles of which `slides:` reads",)
    (root / "a.png").unlink()
    with pytest.raises(EosinError, match=r"no images, but 2 whole-slide image\(s\); write slides:.*/tiles\?mpp="):
        open_tiles(root)


def test_the_previews_of_a_stopped_tiling_are_no_tiles(folder: Folder) -> None:
    root = folder(["previews/a.png", "sheets/000.png"])
    write(root / "tiling.json", "{}")
    with pytest.raises(
        EosinError, match="no tile was cut yet, or the run was stopped; run the same `eosin tile` again"
    ):
        open_tiles(root)


def test_a_folder_without_permission_is_named(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(["a.png", "closed/b.png"])
    scan = os.scandir

    def closed(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(EosinError, match="closed: cannot be read"):
        open_tiles(root)


def test_a_file_name_that_is_no_text(folder: Folder) -> None:
    root = folder(1)
    shutil.copy(root / "000.png", os.fsdecode(bytes(root) + b"/\xff.png"))
    with pytest.raises(EosinError, match="not UTF-8; rename"):
        open_tiles(root)


MANIFEST = """file,label,patient,slide,split,mpp,grade
000.png,tumor,P1,S1,train,0.5,2
./001.png,normal,P1,,train,0.25,
002.png,,P2,S2,test,,1
"""


@pytest.mark.parametrize("kind", ["csv", "bom", "parquet"])
def test_manifest(folder: Folder, kind: str) -> None:
    root = folder(3)
    path = write(root / "index.csv", ("\ufeff" if kind == "bom" else "") + MANIFEST)
    if kind == "parquet":
        table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(strings_can_be_null=True))
        path = path.with_suffix(".parquet")
        pa.parquet.write_table(table, path)
    tiles = open_tiles(path)
    assert list(tiles.names) == ["000.png", "001.png", "002.png"]
    assert list(tiles.label) == ["tumor", "normal", None]
    assert list(tiles.patient) == ["P1", "P1", "P2"]
    assert list(tiles.slide) == ["S1", None, "S2"]
    assert list(tiles.split) == ["train", "train", "test"]
    np.testing.assert_array_equal(tiles.mpp, [0.5, 0.25, np.nan])
    assert tiles.x is None
    assert list(open_tiles(f"csv:{path}", label_column="grade").label) == ["2", None, "1"]
    assert tiles.image(2).shape == (3, 20, 24)
    with pytest.raises(EosinError, match=r"1 of 3 tiles have an empty label, first '002\.png' \(row 3\)"):
        tiles.require_labels()
    assert list(tiles.select([1, 0]).require_labels()) == ["normal", "tumor"]
    with pytest.raises(EosinError, match="no labels; give class folders"):
        open_tiles(root).require_labels()


def test_whole_numbers_that_became_floats_stay_whole(folder: Folder) -> None:
    root = folder(3)
    table = pa.table(
        {"file": ["000.png", "001.png", "002.png"], "label": pa.array([1.0, float("nan"), 0.0]), "patient": [7, 8, 9]}
    )
    pa.parquet.write_table(table, root / "index.parquet")
    tiles = open_tiles(root / "index.parquet")
    assert list(tiles.label) == ["1", None, "0"]
    assert list(tiles.patient) == ["7", "8", "9"]


@pytest.mark.parametrize("empty", ["", "nan", "NaN", "NA", "N/A", "null", "   "])
def test_unknown_cells(folder: Folder, empty: str) -> None:
    root = folder(2)
    path = write(root / "index.csv", f"file,label\n000.png, tumor \n001.png,{empty}\n")
    assert list(open_tiles(path).label) == ["tumor", None]


def test_absolute_paths_and_other_folders(folder: Folder, tmp_path: Path) -> None:
    root = folder(["a/x.png", "b/x.png"])
    (tmp_path / "lists").mkdir()
    path = write(tmp_path / "lists/index.csv", f"file\n{root}/a/x.png\n../tiles/b/x.png\n")
    tiles = open_tiles(path)
    assert tiles.read(0) == (root / "a/x.png").read_bytes()
    assert tiles.read(1) == (root / "b/x.png").read_bytes()
    assert tiles.label is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n000.png,a\n", "no column 'file'; its columns: path, label"),
        ("", "not a readable manifest .*; write a header with the column 'file'"),
        ("file,label\n", "no rows below the header"),
        ("file,label\n000.png,a,extra\n", "not a readable manifest .*; correct that line"),
        ("file,label,label\n000.png,a,b\n", "column 'label' appears twice"),
        ("file,label\n000.png,a\n,b\n", "row 2 has no `file`"),
        ("file,mpp\n000.png,0.5\n001.png,fine\n", "row 2: mpp 'fine' is not a number"),
        ("file\n000.png\nno/1.png\n001.png\nno2.png\n", r"2 of 4 listed files do not exist, first 'no/1.png' \(row 2"),
        ("file,label\n000.png,a\n001.png,a\n./000.png,b\n", "rows 1 and 3 both list '000.png' but differ in 'label'"),
        ("file,mpp\n000.png,0.5\n000.png,\n", "rows 1 and 2 both list '000.png' but differ in 'mpp'"),
    ],
)
def test_faulty_manifests(folder: Folder, text: str, message: str) -> None:
    path = write(folder(2) / "index.csv", text)
    with pytest.raises(EosinError, match=message) as caught:
        open_tiles(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_in_another_encoding(folder: Folder) -> None:
    path = folder(2) / "index.csv"
    path.write_bytes("file,label\n000.png,caf\xe9\n".encode("latin-1"))
    with pytest.raises(EosinError, match="save it as UTF-8"):
        open_tiles(path)


def test_a_label_column_that_is_not_there(folder: Folder) -> None:
    path = write(folder(1) / "index.csv", "file,label4\n000.png,x\n")
    assert open_tiles(path).label is None
    with pytest.raises(EosinError, match=r"no column 'lable4'; did you mean 'label4'\? \(columns: file, label4\)"):
        open_tiles(path, label_column="lable4")


def test_rows_repeated_in_full_are_merged_and_counted(folder: Folder) -> None:
    root = folder(2)
    tiles = open_tiles(write(root / "index.csv", "file,label,mpp\n001.png,b,\n000.png,a,1\n001.png,b,\n001.png,b,\n"))
    assert list(tiles.names) == ["001.png", "000.png"]
    assert list(tiles.label) == ["b", "a"]
    assert tiles.remarks == ("2 row(s) that repeat an earlier row in full were merged",)


def test_one_file_under_two_spellings_is_one(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(["000.png", "a/001.png"])
    (tmp_path / "link").symlink_to(root)
    for other in ("../tiles/000.png", f"{root}/000.png", f"{root}/a/../000.png", "../link/000.png"):
        path = write(root / "index.csv", f"file,split\n000.png,train\n{other},test\n")
        with pytest.raises(
            EosinError, match=r"rows 1 and 2 both list '000.png' \(as '.*000.png'\) but differ in 'split'"
        ):
            open_tiles(path)
    path = write(root / "index.csv", f"file,split\n{root}/a/001.png,train\n000.png,val\na/001.png,train\n")
    tiles = open_tiles(path)
    # Named as it is written first: the hash of a manifest that lists nothing twice stays what it was.
    assert list(tiles.names) == [f"{root}/a/001.png", "000.png"]
    assert tiles.remarks == ("1 row(s) that repeat an earlier row in full were merged",)
    monkeypatch.chdir(root)
    assert list(open_tiles("csv:index.csv").names) == list(tiles.names)


def test_damaged_parquet(tmp_path: Path) -> None:
    with pytest.raises(EosinError, match="not a readable manifest"):
        open_tiles(write(tmp_path / "index.parquet", "no parquet"))


def test_real_manifest(real_data: Path) -> None:
    tiles = open_tiles(real_data / "oral" / "index.csv", label_column="label4", splits=("train", "val"))
    assert len(tiles) == 955
    assert set(tiles.label) == {"normal-100x", "normal-400x", "oscc-100x", "oscc-400x"}
    assert tiles.image(0).shape == (3, 224, 224)


def test_content_hash_follows_names_and_bytes(folder: Folder, encode: Callable[..., bytes]) -> None:
    root = folder(3)
    before = open_tiles(root).content_hash()
    assert open_tiles(folder(3, "copy")).content_hash() == before
    tiles = open_tiles(root)
    assert tiles.select([0, 1]).content_hash() != before
    assert tiles.select([1, 0, 2]).content_hash() != before
    (root / "001.png").write_bytes(encode(99))
    changed = open_tiles(root).content_hash()
    assert changed != before
    (root / "001.png").rename(root / "0011.png")
    assert open_tiles(root).content_hash() not in (before, changed)


def test_select_keeps_columns_aligned(folder: Folder) -> None:
    root = folder(3)
    tiles = open_tiles(write(root / "index.csv", MANIFEST))
    for rows in ([2, 0], np.array([True, False, True]), np.array([2], np.int32)):
        chosen = tiles.select(rows)
        where = np.arange(3)[rows]
        assert list(chosen.names) == [tiles.names[i] for i in where]
        assert list(chosen.patient) == [tiles.patient[i] for i in where]
        assert [chosen.read(i) for i in range(len(chosen))] == [tiles.read(i) for i in where]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=20), st.data())
def test_names_read_like_a_list(values: list[str], data: st.DataObject) -> None:
    names = Names(values)
    assert list(names) == values
    assert len(names) == len(values)
    assert list(np.asarray(names)) == values
    assert list(names[1:4]) == values[1:4]
    assert list(pickle.loads(pickle.dumps(names))) == values
    rows = data.draw(st.lists(st.integers(-len(values), len(values) - 1), max_size=5)) if values else []
    assert [names[i] for i in rows] == [values[i] for i in rows]
    assert list(names[np.array(rows, dtype=np.int64)]) == [values[i] for i in rows]
    with pytest.raises(IndexError):
        names[len(values)]


def test_a_selection_travels_small(folder: Folder, tmp_path: Path) -> None:
    root = folder(200)
    pack([str(root)], tmp_path / "store")
    for spec in (root, tmp_path / "store"):
        tiles = open_tiles(spec)
        assert len(pickle.dumps(tiles.select([5]))) < 3000
        assert pickle.loads(pickle.dumps(tiles)).read(7) == tiles.read(7)
