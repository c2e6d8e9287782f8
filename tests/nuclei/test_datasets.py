"""Sets of nuclei: exact copies of the official layouts are read as they should be, and all else is refused by name."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon
from PIL import Image
from scipy.io import loadmat, savemat

from eosin.cli import main
from eosin.core.errors import EosinError
from eosin.nuclei.datasets import NUCLEI_SETS, NucleiImage, fraction, open_nuclei
from eosin.nuclei.datasets.checking import look_over
from eosin.nuclei.datasets.monuseg import fill_polygons
from eosin.nuclei.datasets.sample import SPLITS, hold_out

_SPEC = importlib.util.spec_from_file_location("nuclei_replicas", Path(__file__).with_name("replicas.py"))
replicas = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(replicas)

SETS = {
    "consep": "?classes=7",
    "monuseg": "",
    "pannuke": "?check=loose",
    "nucls": "?mpp=0.25",
    "lizard": "?check=loose",
    "folder": "",
}


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """One replica of each set; tests that change something copy it."""
    home = tmp_path_factory.mktemp("sets")
    return {name: getattr(replicas, name)(home / name) for name in SETS}


def opened(roots, name, options=None):
    return open_nuclei(f"{name}:{roots[name]}{SETS[name] if options is None else options}")


def counts(found):
    return tuple(len(found.of(side)) for side in SPLITS)


@pytest.mark.parametrize("name", NUCLEI_SETS)
def test_every_set_gives_what_a_set_must(name, roots):
    spec = "synthetic:?images=5&size=32" if name == "synthetic" else f"{name}:{roots[name]}{SETS[name]}"
    found = open_nuclei(spec)
    assert found.source == spec
    assert found.fingerprint == open_nuclei(spec).fingerprint
    assert all(counts(found))
    assert len({image.name for image in found.images}) == len(found.images)
    sides = {}
    for image in found.images:
        assert sides.setdefault(image.group, image.split) == image.split
        assert image.mpp == found.mpp
        sample = pickle.loads(pickle.dumps(image)).read()
        assert (sample.image.dtype, sample.image.shape) == (np.uint8, (3, *image.shape))
        assert sample.image.flags.c_contiguous
        assert (sample.instances.dtype, sample.instances.shape) == (np.int32, image.shape)
        assert np.unique(sample.instances).tolist() in (list(range(sample.count + 1)), list(range(1, sample.count + 1)))
        if found.classes:
            assert sample.types.dtype == np.int64
            assert len(sample.types) == sample.count + 1
            assert sample.types[0] == 0
            assert set(sample.types[1:].tolist()) <= set(range(1, len(found.classes) + 1))
        else:
            assert sample.types is None


def test_consep(roots):
    with pytest.raises(EosinError, match=r"\?classes=4 .*\?classes=7 .*\?classes=none"):
        opened(roots, "consep", "")
    seven, four, none = (opened(roots, "consep", f"?classes={kind}") for kind in ("7", "4", "none"))
    assert counts(seven) == counts(none) == (22, 5, 14)
    assert (len(seven.classes), len(four.classes), len(none.classes)) == (7, 4, 0)
    assert seven.fingerprint != four.fingerprint
    for image, merged, outline in zip(seven.images, four.images, none.images, strict=True):
        folder = "Test" if image.split == "test" else "Train"
        file = loadmat(roots["consep"] / folder / "Labels" / f"{image.name}.mat")
        sample = image.read()
        assert (sample.instances == file["inst_map"]).all()
        assert sample.types[1:].tolist() == file["inst_type"].ravel().tolist()
        assert (sample.types[sample.instances] == file["type_map"]).all()
        assert merged.read().types.tolist() == [(0, 1, 2, 3, 3, 4, 4, 4)[kind] for kind in sample.types]
        assert outline.read().types is None
        pixels = np.asarray(Image.open(roots["consep"] / folder / "Images" / f"{image.name}.png"))
        assert (sample.image == pixels.transpose(2, 0, 1)).all()


def test_val_goes_by_content_not_by_name(roots, tmp_path):
    before = opened(roots, "consep")
    root = tmp_path / "renamed"
    shutil.copytree(roots["consep"], root)
    new = {}
    for number, path in enumerate(sorted((root / "Train" / "Images").iterdir(), reverse=True)):
        new[path.stem] = f"train_{500 + number}"
        path.rename(path.with_stem(new[path.stem]))
        label = root / "Train" / "Labels" / f"{path.stem}.mat"
        label.rename(label.with_stem(new[path.stem]))
    after = open_nuclei(f"consep:{root}?classes=7")
    assert {new[image.name] for image in before.of("val")} == {image.name for image in after.of("val")}


def test_consep_that_disagrees_with_itself(roots, tmp_path):
    root = tmp_path / "consep"
    shutil.copytree(roots["consep"], root)
    path = root / "Train" / "Labels" / "train_3.mat"
    file = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}

    def read(options="?classes=7", **changed):
        savemat(path, file | changed)
        image = next(i for i in open_nuclei(f"consep:{root}{options}").images if i.name == "train_3")
        return image.read()

    said = file["inst_type"].copy()
    said[1] = said[1] % 7 + 1
    with pytest.raises(EosinError, match=r"train_3\.mat: nucleus 2 is of type . in inst_type and of . in type_map"):
        read(inst_type=said)
    assert read("?classes=7&types=majority", inst_type=said).types[1:].tolist() == file["inst_type"].ravel().tolist()
    with pytest.raises(EosinError, match="inst_type has 2 rows for"):
        read(inst_type=said[:2])
    for wrong, fault in (("a", "is text"), (4.7, "holds 4.7"), (np.nan, "holds nan"), (300, "holds 300")):
        with pytest.raises(
            EosinError, match=rf"train_3\.mat: 'inst_type' {fault}; types are whole numbers from 0 to 255"
        ):
            read(inst_type=np.full(len(said), wrong))
    with pytest.raises(EosinError, match="holds the type 9, which is none of the set's"):
        read(type_map=np.where(file["inst_map"] == 1, 9, file["type_map"]))
    with pytest.raises(EosinError, match=r"train_3\.mat: the label map is 32x31 px and its image 32x32"):
        read(inst_map=file["inst_map"][1:])
    savemat(path, {key: file[key] for key in ("inst_map", "inst_type")})
    with pytest.raises(EosinError, match=r"train_3\.mat: has no 'type_map' \(it holds inst_map, inst_type\)"):
        next(i for i in open_nuclei(f"consep:{root}?classes=7").images if i.name == "train_3").read()
    path.unlink()
    with pytest.raises(EosinError, match=r"train_3\.png: has no partner in Labels"):
        open_nuclei(f"consep:{root}?classes=7")
    (root / "Train" / "Images" / "train_3.png").unlink()
    with pytest.raises(EosinError, match="26 of 27 images of 'train'"):
        open_nuclei(f"consep:{root}?classes=7")
    loose = open_nuclei(f"consep:{root}?classes=7&check=loose")
    assert loose.name == "consep (subset)"
    assert "26 of 27" in loose.notes[0]


def test_monuseg(roots, tmp_path):
    found = opened(roots, "monuseg")
    assert counts(found) == (30, 7, 14)
    assert counts(opened(roots, "monuseg", "?train=30")) == (24, 6, 14)
    sample = found.images[0].read()
    expected = np.zeros((32, 32), int)
    expected[3:9, 2:7] = 1
    expected[5:15, 5:12] = 2
    assert (sample.instances == expected).all()
    assert {image.group for image in found.of("train")} >= {"TCGA-A7-A13E"} - {i.group for i in found.of("val")}
    assert {image.tissue for image in found.images} > {"breast", "colon"}
    nested = tmp_path / "nested"
    for part in ("MoNuSeg 2018 Training Data", "MoNuSegTestData"):
        shutil.copytree(roots["monuseg"] / part, nested / part / part)
    assert open_nuclei(f"monuseg:{nested}").fingerprint == found.fingerprint
    label = next((nested / "MoNuSegTestData").rglob("*.xml"))
    for text, message in (
        ("<Annotations><Region></Annotations>", "cannot be read"),
        ("<Annotations/>", "has no <Region>"),
        ('<A><Region><Vertex X="1" Y="b"/></Region></A>', "vertex"),
        ('<A><Region><Vertex X="1" Y="nan"/></Region></A>', "region 1 has a vertex that is no finite number"),
        ('<A><Region><Vertex X="inf" Y="2"/></Region></A>', "region 1 has a vertex that is no finite number"),
    ):
        label.write_text(text)
        image = next(i for i in open_nuclei(f"monuseg:{nested}").images if i.name == label.stem)
        with pytest.raises(EosinError, match=rf"{label.name}: .*{message}"):
            image.read()
    label.unlink()
    with pytest.raises(EosinError, match=r"\.tif: has no XML file of the same name"):
        open_nuclei(f"monuseg:{nested}")


@given(seed=st.integers(0, 10_000))
def test_polygons_hold_the_pixels_whose_centers_they_hold(seed):
    rng = np.random.default_rng(seed)
    # Halves and wholes: vertices and edges fall on centers of pixels.
    corners = rng.integers(-4, 24, (rng.integers(3, 8), 2)) / 2
    found = fill_polygons([corners], (10, 8)) > 0
    for row, column in np.ndindex(found.shape):
        inside = False
        for (x0, y0), (x1, y1) in zip(corners.tolist(), np.roll(corners, -1, axis=0).tolist(), strict=True):
            if (y0 <= row + 0.5) != (y1 <= row + 0.5):
                crossing = x0 + (row + 0.5 - y0) * (x1 - x0) / (y1 - y0)
                inside ^= column + 0.5 < crossing
        assert found[row, column] == inside


def test_polygons_that_share_an_edge_share_no_pixel():
    whole = [(1.0, 2.0), (11.0, 2.0), (11.0, 12.0), (1.0, 12.0)]
    halves = [whole[:3], [whole[0], *whole[2:]]]
    apart = [fill_polygons([np.array(half)], (16, 16)) for half in halves]
    assert (sum(apart) == fill_polygons([np.array(whole)], (16, 16))).all()
    assert sum(apart).sum() == 100


def test_a_round_polygon_has_its_area():
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    circle = np.stack([40.3 + 30 * np.cos(angle), 41.1 + 25 * np.sin(angle)], axis=1)
    found = fill_polygons([circle, np.zeros((2, 2)), np.full((3, 2), 200.0)], (80, 80))
    assert found.sum() == pytest.approx(np.pi * 30 * 25, rel=0.01)
    centers = np.argwhere(found)[:, ::-1] + 0.5
    assert Polygon(circle).contains_points(centers).all()


def test_pannuke(roots, tmp_path):
    found = opened(roots, "pannuke")
    assert [{image.name[:5] for image in found.of(side)} for side in SPLITS] == [{"fold1"}, {"fold2"}, {"fold3"}]
    third = opened(roots, "pannuke", "?check=loose&split=3")
    assert [{image.name[:5] for image in third.of(side)} for side in SPLITS] == [{"fold3"}, {"fold2"}, {"fold1"}]
    assert found.images[1].tissue == "Colon"
    sample = found.images[0].read()
    # One id in five channels is five nuclei; a sixth lies over a part of the first.
    assert sample.types.tolist() == [0, 1, 2, 2, 3, 4, 5]
    masks = np.load(roots["pannuke"] / "fold1" / "masks.npy")[0]
    first = sample.instances == 1
    assert (first == ((masks[..., 0] > 0) & (masks[..., 1] == 0))).all()
    assert (sample.instances > 0).sum() == (masks[..., 5] == 0).sum()
    with pytest.raises(EosinError, match="3 of 2,656 images of 'fold1'"):
        opened(roots, "pannuke", "")
    official = replicas.pannuke(tmp_path / "official", official=True)
    assert open_nuclei(f"pannuke:{official}?check=loose").fingerprint == found.fingerprint
    path = official / "Fold 2" / "masks" / "fold2" / "masks.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(EosinError, match=r"fold2/masks\.npy: cannot be read \(mmap length"):
        open_nuclei(f"pannuke:{official}?check=loose")
    np.save(path, np.load(roots["pannuke"] / "fold2" / "masks.npy")[:2])
    with pytest.raises(EosinError, match="must be of one fold"):
        open_nuclei(f"pannuke:{official}?check=loose")
    masks = np.load(roots["pannuke"] / "fold2" / "masks.npy")
    masks[1, 0, 2, 0] = 0.5
    np.save(path, masks)
    with pytest.raises(EosinError, match=r"image 1\), channel 0: holds ids that are no whole numbers"):
        open_nuclei(f"pannuke:{official}?check=loose").of("val")[1].read()
    images = path.parents[2] / "images" / "fold2" / "images.npy"
    pixels = np.load(images)
    np.save(images, pixels / 255.0)
    with pytest.raises(EosinError, match=r"images\.npy: image 0 has values that are no whole numbers"):
        open_nuclei(f"pannuke:{official}?check=loose").of("val")[0].read()
    path.unlink()
    with pytest.raises(EosinError, match=r"masks\.npy: no such file"):
        open_nuclei(f"pannuke:{official}?check=loose")


def test_lizard(roots, tmp_path):
    found = opened(roots, "lizard")
    assert counts(found) == (4, 4, 4)
    second = opened(roots, "lizard", "?check=loose&split=2")
    assert {i.name for i in second.of("test")} == {i.name for i in found.of("train")}
    for image in found.images:
        number = int(image.name.split("_")[1])
        sample = image.read()
        assert (sample.instances == replicas.labels(number)).all()
        assert sample.types[1:].tolist() == replicas.kinds(number, sample.count, 6).tolist()
    with pytest.raises(EosinError, match="12 of 238 images"):
        opened(roots, "lizard", "")
    root = tmp_path / "lizard"
    for name in ("Lizard_Images1", "Lizard_Images2", "Lizard_Labels"):
        shutil.copytree(roots["lizard"] / name, root / name.lower() / name)
    assert open_nuclei(f"lizard:{root}?check=loose").fingerprint == found.fingerprint
    path = root / "lizard_labels" / "Lizard_Labels" / "Labels" / "consep_0.mat"
    file = {key: value for key, value in loadmat(path).items() if not key.startswith("__")}
    savemat(path, file | {"id": file["id"] + 1})
    image = next(i for i in open_nuclei(f"lizard:{root}?check=loose").images if i.name == "consep_0")
    with pytest.raises(EosinError, match=r"consep_0\.mat: nucleus 3 has no class"):
        image.read()
    for changed, fault in (
        ({"class": np.full(file["class"].shape, 1.5)}, "'class' holds 1.5; types are whole numbers"),
        ({"id": np.full(file["id"].shape, np.nan)}, "'id' holds nan; ids are whole numbers"),
    ):
        savemat(path, file | changed)
        with pytest.raises(EosinError, match=rf"consep_0\.mat: {fault}"):
            image.read()
    table = root / "lizard_labels" / "Lizard_Labels" / "info.csv"
    table.write_text(table.read_text().replace(",1\n", ",7\n", 1).replace(",1\r\n", ",7\r\n", 1))
    with pytest.raises(EosinError, match="line 2: split '7' of 'consep_0'"):
        open_nuclei(f"lizard:{root}?check=loose")


def test_nucls(roots, real_data):
    assert counts(opened(roots, "nucls")) == (8, 2, 5)
    assert opened(roots, "nucls", "?labels=none").classes == ()
    real = open_nuclei(f"nucls:{real_data / 'nuclei' / 'nucls'}")
    samples = [image.read() for image in real.images]
    assert (len(samples), sum(sample.count for sample in samples)) == (15, 640)
    dsb = open_nuclei(f"folder:{real_data / 'nuclei' / 'dsb2018_he'}")
    assert counts(dsb) == (42, 14, 14)


def test_label_maps_of_any_kind_are_one(tmp_path):
    root = tmp_path / "mixed"
    found = replicas.labels(0)
    for name in ("a", "b", "c", "d", "e", "f"):
        replicas.picture(root / "images" / f"{name}.png", ord(name))
    where = root / "labels"
    where.mkdir()
    Image.fromarray(found.astype(np.uint8)).save(where / "a.png")
    tifffile.imwrite(where / "b.tif", found.astype(np.uint32))
    np.save(where / "c.npy", found.astype(">u2"))
    np.savez_compressed(where / "d.npz", anything=found)
    savemat(where / "e.mat", {"inst_map": found.astype(float)})
    Image.fromarray(np.where(found > 0, found + 1000, 0).astype(np.uint16)).save(where / "f.png")
    for image in open_nuclei(str(root)).images:
        assert (image.read().instances == found).all(), image.name


def test_a_folder_is_split_by_content(roots, tmp_path):
    found = opened(roots, "folder")
    assert counts(found) == (6, 2, 2)
    root = tmp_path / "copies"
    shutil.copytree(roots["folder"], root)
    # A second copy of a test image goes to the test too.
    name = found.of("test")[0].name
    for folder in ("images", "labels"):
        shutil.copy(root / folder / f"{name}.png", root / folder / "again.png")
    twice = open_nuclei(f"folder:{root}")
    sides = {image.name: image.split for image in twice.images}
    assert sides["again"] == sides[name]
    label = root / "labels" / "03.png"
    Image.fromarray(replicas.labels(99).astype(np.uint16)).save(label)
    assert open_nuclei(f"folder:{root}").fingerprint != twice.fingerprint


def test_a_folder_with_a_table_or_folders(roots, tmp_path):
    root = tmp_path / "table"
    shutil.copytree(roots["folder"], root)
    rows = [(f"{n:02d}.png", ("train", "train", "train", "val", "test")[n % 5], f"p{n % 5}") for n in range(10)]

    def write(rows):
        (root / "split.csv").write_text("file,split,group\n" + "\n".join(",".join(row) for row in rows) + "\n")

    write(rows)
    found = open_nuclei(f"folder:{root}?mpp=0.5")
    assert (counts(found), found.mpp, found.split_source) == ((6, 2, 2), 0.5, "given by split.csv")
    assert {image.group for image in found.of("test")} == {"p4"}
    for changed, message in (
        ([*rows[:4], ("04.png", "test", "p0"), *rows[5:]], "line 6: group 'p0' is in both train and test"),
        ([*rows[:4], ("04.png", "tset", ""), *rows[5:]], "unknown split 'tset'; did you mean 'test'"),
        ([*rows, ("77.png", "test", "")], "line 12: there is no image '77.png'"),
        ([*rows, ("04", "train", "p0")], "line 12: a second row for '04'; keep one"),
        (rows[:-1], "has no line for '09'"),
        ([(row[0], "train", "") for row in rows], "no image is of the side 'test'"),
    ):
        write(changed)
        with pytest.raises(EosinError, match=message):
            open_nuclei(f"folder:{root}")
    (root / "split.csv").write_text("image,side\n")
    with pytest.raises(EosinError, match="has no column 'file'"):
        open_nuclei(f"folder:{root}")
    for part, count in (("train", 5), ("test", 7)):
        replicas.folder(tmp_path / "sides" / part, count)
    with pytest.raises(EosinError, match=r"'train/00' \(train\) is a copy of 'test/00' \(test\); put both on one side"):
        open_nuclei(f"folder:{tmp_path / 'sides'}")
    for number in range(5):
        for copy in (tmp_path / "sides" / "test").glob(f"*/{number:02d}.*"):
            copy.unlink()
    assert counts(open_nuclei(f"folder:{tmp_path / 'sides'}")) == (4, 1, 2)


def write_png(array):
    return lambda path: Image.fromarray(array).save(path)


@pytest.mark.parametrize(
    ("suffix", "write", "message"),
    [
        (".png", write_png(np.zeros((32, 31), np.uint16)), "the label map is 31x32 px and its image 32x32 px"),
        (".npy", lambda path: np.save(path, np.full((32, 32), 1.5)), "ids are of type float64"),
        (".npy", lambda path: np.save(path, np.full((32, 32), -2)), "holds the id -2"),
        (".png", write_png(np.zeros((32, 32, 3), np.uint8)), "an RGB picture, not a label map"),
        (".png", write_png((np.arange(1024).reshape(32, 32) % 256).astype(np.uint8)), "ids of 8 bits overflowed"),
        (".png", write_png(np.eye(32, dtype=np.uint8) * 255), "a mask of 0 and 255"),
        (
            ".png",
            write_png(np.tile(np.arange(32) % 8 < 4, (32, 1)).astype(np.uint8)),
            r"a mask of 0 and 1 \(4 separate",
        ),
        (".png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n1234"), "cannot be read"),
        (".npz", lambda path: path.write_bytes(b"PK\x03\x04 no"), "cannot be read"),
        (".npy", lambda path: path.write_bytes(b""), "cannot be read"),
        (".npy", lambda path: np.save(path, np.array([{}], dtype=object)), "cannot be read"),
        (".mat", lambda path: path.write_bytes(b"MATLAB"), "cannot be read"),
        (".mat", lambda path: savemat(path, {"map": np.eye(3)}), r"has no 'inst_map' \(it holds map\)"),
        (".npz", lambda path: np.savez(path, a=np.eye(3), b=np.eye(3)), r"has no 'inst_map' \(it holds a, b\)"),
    ],
)
def test_label_maps_that_are_none(roots, tmp_path, suffix, write, message):
    root = tmp_path / "bad"
    shutil.copytree(roots["folder"], root)
    (root / "labels" / "04.png").unlink()
    write(root / "labels" / f"04{suffix}")
    image = next(image for image in open_nuclei(f"folder:{root}").images if image.name == "04")
    with pytest.raises(EosinError, match=rf"labels/04\{suffix}: .*{message}") as caught:
        image.read()
    assert "\n" not in str(caught.value)
    # On whatever side it is, it is found before a training.
    with pytest.raises(EosinError) as looked:
        look_over(open_nuclei(f"folder:{root}"))
    assert str(looked.value) == str(caught.value)


@pytest.mark.parametrize("name", [name for name in SETS if name != "pannuke"])
def test_labels_are_looked_at_without_the_pixels(roots, tmp_path, name):
    """The damaged file is the last of the test side: of a public set its labels, of which there is one file an image."""
    root = tmp_path / name
    shutil.copytree(roots[name], root)
    spec = f"{name}:{root}{SETS[name]}"
    look_over(open_nuclei(spec))
    image = open_nuclei(spec).of("test")[-1]
    label = next(
        path
        for path in root.rglob(f"{Path(image.name).name}.*")
        if path.parent.name not in ("images", "Images")
        and path.suffix in (".png", ".mat", ".npz", ".xml")
        and "Lizard_Images" not in path.parent.name
    )
    label.write_bytes(label.read_bytes()[: label.stat().st_size // 2])
    damaged = open_nuclei(spec)
    for each in damaged.images:
        assert not (each.split != "test" and each.look() is not True)
    with pytest.raises(EosinError, match=label.name):
        look_over(damaged)


def test_a_training_side_without_a_nucleus_is_refused(roots, tmp_path):
    root = tmp_path / "bare"
    shutil.copytree(roots["folder"], root)
    for image in opened(roots, "folder").of("train"):
        Image.fromarray(np.zeros((32, 32), np.uint16)).save(root / "labels" / f"{image.name}.png")
    with pytest.raises(EosinError, match="bare: none of its 6 training images has a nucleus"):
        look_over(open_nuclei(f"folder:{root}"))


def test_what_is_learned_from_is_told_apart_from_what_is_tested(roots, tmp_path):
    root = tmp_path / "mended"
    shutil.copytree(roots["folder"], root)
    before = open_nuclei(f"folder:{root}")
    for side, same in (("test", True), ("val", False), ("train", False)):
        label = root / "labels" / f"{before.of(side)[0].name}.png"
        kept = label.read_bytes()
        Image.fromarray(replicas.labels(99).astype(np.uint16)).save(label)
        after = open_nuclei(f"folder:{root}")
        assert after.fingerprint != before.fingerprint
        assert (after.learned_from == before.learned_from) == same
        label.write_bytes(kept)


def test_a_file_without_permission_is_told_so(roots, monkeypatch):
    image = opened(roots, "folder").images[0]

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(EosinError, match=r"cannot be read \(Permission denied\); change its permissions$"):
        image.read()


def test_files_cut_short(roots, tmp_path):
    root = tmp_path / "short"
    shutil.copytree(roots["folder"], root)
    np.save(root / "labels" / "05.npy", replicas.labels(5))
    (root / "labels" / "05.png").unlink()
    for path in (root / "images" / "03.png", root / "labels" / "04.png", root / "labels" / "05.npy"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    images = {image.name: image for image in open_nuclei(f"folder:{root}").images}
    for name, where in (("03", "images/03.png"), ("04", "labels/04.png"), ("05", "labels/05.npy")):
        with pytest.raises(EosinError, match=rf"{where}: cannot be read \(.*\); get the file again"):
            images[name].read()
    (root / "images" / "03.png").write_bytes(b"no picture")
    with pytest.raises(EosinError, match=r"images/03\.png: cannot be read \(not an image"):
        open_nuclei(f"folder:{root}")


def test_names_that_do_not_match(roots, tmp_path):
    root = tmp_path / "names"
    shutil.copytree(roots["folder"], root)
    (root / "labels" / "04.png").rename(root / "labels" / "4.png")
    with pytest.raises(EosinError, match=r"images/04\.png: has no label map in .*labels"):
        open_nuclei(f"folder:{root}")
    (root / "images" / "04.png").unlink()
    with pytest.raises(EosinError, match=r"labels/4\.png: has no image in .*images"):
        open_nuclei(f"folder:{root}")
    (root / "labels" / "4.png").unlink()
    np.save(root / "labels" / "05.npy", replicas.labels(5))
    with pytest.raises(EosinError, match=r"labels/05\.png: and 05\.npy have one name"):
        open_nuclei(f"folder:{root}")
    shutil.rmtree(root / "labels")
    with pytest.raises(EosinError, match="labels: no such folder; expected images/ and labels/"):
        open_nuclei(f"folder:{root}")


def test_types_beside_a_folder(roots, tmp_path):
    root = tmp_path / "types"
    shutil.copytree(roots["folder"], root)
    with pytest.raises(EosinError, match="classes are named, but there are no types"):
        open_nuclei(f"folder:{root}?classes=a,b").images[0].read()
    (root / "types").mkdir()
    for number in range(10):
        found = replicas.labels(number)
        types = np.concatenate([[0], replicas.kinds(number, found.max(), 2)])[found].astype(np.uint8)
        Image.fromarray(types).save(root / "types" / f"{number:02d}.png")
    typed = open_nuclei(f"folder:{root}?classes=a,b")
    assert typed.classes == ("a", "b")
    for image in typed.images:
        sample = image.read()
        assert sample.types[1:].tolist() == replicas.kinds(int(image.name), sample.count, 2).tolist()
    assert open_nuclei(f"folder:{root}").classes == ()

    found = replicas.labels(2)
    types = np.array(Image.open(root / "types" / "02.png"))

    def read(changed, options=""):
        Image.fromarray(changed.astype(np.uint8)).save(root / "types" / "02.png")
        images = open_nuclei(f"folder:{root}?classes=a,b{options}").images
        return next(image for image in images if image.name == "02").read()

    # A border of another type is taken for what it is, half a nucleus is not.
    row, column = np.argwhere(found == 1)[0]
    border = types.copy()
    border[row, column] = 3 - types[row, column]
    assert (read(border).types == np.concatenate([[0], replicas.kinds(2, found.max(), 2)])).all()
    inside = np.flatnonzero(found.ravel() == 1)
    half = types.copy()
    half.ravel()[inside[: len(inside) * 3 // 5]] = 0
    with pytest.raises(EosinError, match=r"types/02\.png: nucleus 1 has \d+ of its \d+ px of one type, not more than"):
        read(half)
    assert read(half, "&types=majority").types[1] == types.ravel()[inside[0]]
    with pytest.raises(EosinError, match="nucleus 1 has no pixel with a type"):
        read(np.where(found == 1, 0, types), "&types=majority")
    with pytest.raises(EosinError, match="px outside all nuclei have a type"):
        read(np.where(found == 0, 1, types))
    with pytest.raises(EosinError, match=r"holds the type 3, which is none of the set's \(1 a, 2 b\)"):
        read(np.where(found == 1, 3, types))


def test_an_image_without_nuclei(roots, tmp_path, capsys):
    root = tmp_path / "empty"
    shutil.copytree(roots["folder"], root)
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(root / "labels" / "06.png")
    sample = next(i for i in open_nuclei(f"folder:{root}").images if i.name == "06").read()
    assert (sample.count, sample.types) == (0, None)
    assert main(["data", "check", "folder", "--root", str(root)]) == 0
    assert "1 images without nuclei, first '06'" in capsys.readouterr().out.replace("\n", " ")


def test_specs(roots):
    for spec, message in (
        ("consap:x", "did you mean 'consep'"),
        ("consep:", "give the folder of the set, as consep:DIR"),
        ("consep:/nowhere?classes=7", "/nowhere: no such folder"),
        ("pannuke:x?splot=1", "unknown field 'splot'; did you mean 'split'"),
        ("synthetic:x", "has no path"),
        ("synthetic:?images=2", "images"),
        (f"nucls:{roots['folder']}", "has neither train/ nor test/"),
        (f"folder:{roots['folder']}?val=0", "val"),
    ):
        with pytest.raises(EosinError, match=message):
            open_nuclei(spec)


def test_synthetic():
    found = open_nuclei("synthetic:?images=5&size=32&seed=3")
    assert counts(found) == (3, 1, 1)
    assert "no real tissue" in found.notes[0]
    again = open_nuclei("synthetic:?images=5&size=32&seed=3")
    first, second = found.images[0].read(), again.images[0].read()
    assert (first.image == second.image).all()
    other = open_nuclei("synthetic:?images=5&size=32&seed=4")
    assert other.fingerprint != found.fingerprint
    assert (other.images[0].read().image != first.image).any()


def bare(name):
    return NucleiImage(name, "train", name, None, (8, 8), lambda: None)


@given(count=st.integers(1, 40), seed=st.integers(0, 5), shares=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)))
def test_fractions_lie_in_each_other(count, seed, shares):
    images = [bare(f"image {number}") for number in range(count)]
    small, large = ({image.name for image in fraction(images, share, seed)} for share in sorted(shares))
    assert small <= large
    assert len(small) == max(1, int(min(shares) * count + 0.5))
    assert {image.name for image in fraction(images[::-1], min(shares), seed)} == small
    assert fraction(images, 1.0, seed) == tuple(images)


def test_fractions_of_other_seeds_differ():
    images = [bare(str(number)) for number in range(30)]
    chosen = {frozenset(image.name for image in fraction(images, 0.2, seed)) for seed in range(8)}
    assert len(chosen) == 8
    for share in (0.0, 1.1, -1.0):
        with pytest.raises(EosinError, match="fraction"):
            fraction(images, share, 0)
    with pytest.raises(EosinError, match="no training images"):
        fraction([], 0.5, 0)


@given(sizes=st.lists(st.integers(1, 5), min_size=2, max_size=8), share=st.floats(0.05, 0.6))
def test_held_out_units_are_whole(sizes, share):
    units = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    contents = [bytes([row]) for row in range(len(units))]
    held = hold_out(units, contents, share, "val")
    sides = {unit: {bool(h) for u, h in zip(units, held, strict=True) if u == unit} for unit in units}
    assert all(len(side) == 1 for side in sides.values())
    assert 0 < held.sum() < len(units)
    order = np.random.default_rng(0).permutation(len(units))
    again = hold_out([units[row] for row in order], [contents[row] for row in order], share, "val")
    assert (again == held[order]).all()
    assert not hold_out(["a", "a"], [b"1", b"2"], share, "val").any()


def test_verbs(roots, capsys):
    assert main(["data", "list", "--nuclei"]) == 0
    listed = capsys.readouterr().out
    assert main(["data", "list", "--nuclei", "--format", "json"]) == 0
    known = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(known) == set(SETS) - {"folder"}
    assert all(name in listed for name in known)
    assert main(["data", "check", "consep", "--root", str(roots["consep"])]) == 2
    assert "32x32 px, not 1000x1000" in capsys.readouterr().out.replace("\n", " ")
    assert main(["data", "check", "consep", "--fast", "--root", str(roots["consep"])]) == 0
    assert main(["data", "check", "lizard", "--root", str(roots["lizard"])]) == 2
    assert main(["data", "check", "nuclz", "--root", "x"]) == 2
    assert "did you mean 'nucls'" in capsys.readouterr().err
