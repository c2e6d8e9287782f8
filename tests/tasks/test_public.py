"""Public sets: official layouts, published splits, and every fault of a copy with the line it gets."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.tasks import DATA_SETS, TASKS, bach, breakhis, open_task, split_hash
from eosin.tasks.checking import check_data_set
from eosin.tasks.public import READERS

SETS = list(DATA_SETS)
LOOSE = {"crc": "?check=loose", "pcam": "?check=loose"}


def sizes(task):
    return len(task.train), len(task.val), len(task.test)


@pytest.mark.parametrize("name", SETS)
def test_an_entry_says_all_that_a_user_must_know(name):
    about = DATA_SETS[name]
    assert name in TASKS
    assert name in READERS
    assert about.name == name
    assert list(about.classes) == sorted(about.classes)
    assert all(list(of) == list(about.classes) for of in about.counts.values())
    assert about.flaws
    assert about.layout
    assert about.licence_url.startswith("https://")
    for split, parts in about.splits.items():
        # train and test are all images; val is another part of them, or the test itself.
        assert sum(parts) == about.images or (parts[1] == parts[2] and parts[0] + parts[2] == about.images)
        assert about.pinned_by == "counts" or re.fullmatch("[0-9a-f]{16}", about.pins[split])
    for file in about.files:
        assert file.md5 is None or re.fullmatch("[0-9a-f]{32}", file.md5)
        assert file.url or about.access == "form"


@pytest.mark.parametrize(("name", "split"), [(name, split) for name in SETS for split in DATA_SETS[name].splits])
def test_the_published_split_comes_out(public_sets, name, split):
    if name in LOOSE:
        pytest.skip("not whole here; the test of all its names is another")
    option = f"?split={split}" if len(DATA_SETS[name].splits) > 1 else ""
    task = open_task(f"{name}:{public_sets[name]}{option}", seed=7)
    about = DATA_SETS[name]
    assert sizes(task) == about.splits[split]
    assert task.name == name
    assert task.classes == tuple(about.classes)
    assert (task.data_set, task.licence, task.version) == (name, about.licence, about.version)
    assert not [note for note in task.notes if "pinned" in note or "subset" in note]
    assert np.array_equal(task.val, task.test) == (split == "eva")
    assert any("optimistic" in note for note in task.notes) == (split == "eva")
    assert set(task.tiles.mpp.tolist()) == {about.mpp}
    assert open_task(f"{name}:{public_sets[name]}{option}", seed=0).split_hash == task.split_hash
    if task.groups is not None and split != "eva":
        train, val, test = (set(task.groups[rows].tolist()) for rows in (task.train, task.val, task.test))
        assert len(train | val | test) == len(train) + len(val) + len(test)


def test_bach_is_split_as_published():
    # Classes of each part, as eva's ranges give them.
    names = bach.bach_names()
    assert (names[0], names[100], names[200], names[399]) == ("Benign/b001.tif", "InSitu/is001.tif", "Invasive/iv001.tif", "Normal/n100.tif")  # fmt: skip
    for split, wanted in {
        "eva": {"train": (52, 70, 69, 77), "test": (48, 30, 31, 23)},
        "three-way": {"train": (42, 60, 59, 57), "val": (10, 10, 10, 20), "test": (48, 30, 31, 23)},
    }.items():
        sides = np.array([bach._side(row, split) for row in range(400)])
        for side, counts in wanted.items():
            assert [int((sides[100 * k : 100 * k + 100] == side).sum()) for k in range(4)] == list(counts)
        assert split_hash(names, sides.tolist()) == DATA_SETS["bach"].pins[split]


def test_bach_patients():
    known = bach.known_patients()
    assert (sum(known.values()), len(known), known["14"]) == (145, 29, 36)
    assert bach.bach_patient("Benign/b032.tif") == "11"
    assert bach.bach_patient("Normal/n068.tif") == "21"
    assert bach.bach_patient("Normal/n069.tif") is None
    assert bach.bach_patient("InSitu/is053.tif") == "23"


def test_bach_groups_say_where_patients_are_known(public_sets):
    task = open_task(f"bach:{public_sets['bach']}")
    assert task.grouping == "patient"
    assert "patient where known (145 of 400 images)" in task.notes[0]
    own = [group for group in task.groups if group.startswith("image ")]
    assert len(own) == len(set(own)) == 255


@pytest.mark.parametrize("inner", ["", "ICIAR2018_BACH_Challenge", "ICIAR2018_BACH_Challenge/Photos"])
def test_names_do_not_depend_on_where_the_folder_is(public_sets, inner):
    whole = open_task(f"bach:{public_sets['bach']}")
    task = open_task(f"bach:{public_sets['bach'] / inner}")
    assert task.split_hash == whole.split_hash == DATA_SETS["bach"].pins["three-way"]
    assert task.tiles.content_hash() == whole.tiles.content_hash()


def test_breakhis_patients_and_counts():
    sides = {
        patient: breakhis._side(patient, "three-way") for of in breakhis.BREAKHIS_PATIENTS.values() for patient in of
    }
    assert len(sides) == 64
    assert split_hash(list(sides), list(sides.values())) == DATA_SETS["breakhis"].pins["three-way"]
    assert DATA_SETS["breakhis"].counts["40X"] == {"ductal_carcinoma": 864, "fibroadenoma": 253, "mucinous_carcinoma": 205, "tubular_adenoma": 149}  # fmt: skip


def test_case_numbers_on_two_sides_are_the_ones_that_the_notes_name(public_sets):
    task = open_task(f"breakhis:{public_sets['breakhis']}")
    sides = {}
    for side, rows in (("train", task.train), ("val", task.val), ("test", task.test)):
        for patient in task.groups[rows]:
            sides.setdefault(re.match(r"\d+", patient)[0], set()).add(side)
    crossing = sorted(case for case, of in sides.items() if len(of) > 1)
    assert f"case numbers {', '.join(crossing[:-1])} and {crossing[-1]} are on two sides" in task.notes[0]


def test_a_patient_inside_another_patients_folder_is_found(copy):
    root = copy("breakhis")
    base = root / "BreaKHis_v1/histology_slides/breast/benign/SOB/tubular_adenoma"
    shutil.move(base / "SOB_B_TA_14-3411F", base / "SOB_B_TA_14-21978AB" / "SOB_B_TA_14-3411F")
    assert sizes(open_task(f"breakhis:{root}")) == (936, 196, 339)


def test_mhist_validates_on_a_fifth_of_each_class_of_train(public_sets):
    task = open_task(f"mhist:{public_sets['mhist']}")
    assert task.classes == ("HP", "SSA")
    assert np.bincount(task.labels[task.val]).tolist() == [309, 126]
    assert np.bincount(task.labels[task.test]).tolist() == [617, 360]
    other = open_task(f"mhist:{public_sets['mhist']}?val=0.1&name=polyps")
    assert (len(other.val), other.name, other.test.tolist()) == (218, "polyps", task.test.tolist())
    assert any("not a pinned one" in note for note in other.notes)


def test_crc_trains_on_the_100k_and_tests_on_the_7k(public_sets, tmp_path):
    task = open_task(f"crc:{public_sets['crc']}?check=loose")
    assert sizes(task) == (72, 18, 27)
    assert {task.tiles.names[int(row)].split("/")[0] for row in task.test} == {"CRC-VAL-HE-7K"}
    assert {task.tiles.names[int(row)].split("/")[0] for row in task.val} == {"NCT-CRC-HE-100K"}
    assert np.bincount(task.labels[task.val]).tolist() == [2] * 9
    assert task.name == "crc (subset: 117 of 107,180)"
    with pytest.raises(EosinError, match="NCT-CRC-HE-100K-NONORM: missing folder"):
        open_task(f"crc:{public_sets['crc']}?train=unnormalised")
    import replicas

    root = replicas.crc(tmp_path / "raw", each={"NCT-CRC-HE-100K": 5, "CRC-VAL-HE-7K": 2}, nonorm=True)
    raw = open_task(f"crc:{root}?train=unnormalised&check=loose")
    assert sizes(raw) == (36, 9, 18)
    assert any("not a pinned one" in note for note in raw.notes)


def test_the_whole_crc_by_counts_alone():
    about = DATA_SETS["crc"]
    assert about.parts == {"NCT-CRC-HE-100K": 100_000, "CRC-VAL-HE-7K": 7_180}
    held = sum(int(np.floor(0.2 * n + 0.5)) for n in about.counts["NCT-CRC-HE-100K"].values())
    assert about.splits["three-way"] == (100_000 - held, held, 7_180)


def test_the_whole_pcam_by_names(tmp_path):
    import replicas

    task = open_task(f"pcam:{replicas.pcam(tmp_path, whole=True, meta=False)}")
    assert sizes(task) == (262_144, 32_768, 32_768)
    assert task.split_hash == DATA_SETS["pcam"].pins["official"]
    assert (task.name, task.grouping) == ("pcam", "image")
    assert task.notes == ("no meta.csv of every part: slides are unknown, and intervals are by image",)


def test_pcam_from_hdf5(public_sets):
    import replicas

    task = open_task(f"pcam:{public_sets['pcam']}?check=loose")
    assert sizes(task) == (48, 16, 24)
    assert task.classes == ("normal", "tumor")
    assert task.grouping == "slide"
    assert task.groups[0] == "camelyon16_train_000"
    row = int(task.test[5])
    assert task.tiles.names[row] == "test/000005"
    assert np.array_equal(task.tiles.image(row).transpose(1, 2, 0), replicas.pixels(13, 48 + 16 + 5, (96, 96)))
    assert open_task(f"pcam:{public_sets['pcam']}?check=loose&group=none").groups is None


@pytest.fixture
def scaled(monkeypatch):
    """The entries of crc and pcam with the counts of the copies: what a whole set is to them."""
    crc, pcam = DATA_SETS["crc"], DATA_SETS["pcam"]
    counts = {"NCT-CRC-HE-100K": dict.fromkeys(crc.classes, 10), "CRC-VAL-HE-7K": dict.fromkeys(crc.classes, 3)}
    crc = crc.model_copy(update={"counts": counts, "splits": {"three-way": (72, 18, 27)}})
    monkeypatch.setitem(DATA_SETS._entries, "crc", crc)
    pcam = pcam.model_copy(
        update={"totals": {"train": 48, "valid": 16, "test": 24}, "splits": {"official": (48, 16, 24)}}
    )
    monkeypatch.setitem(DATA_SETS._entries, "pcam", pcam)


def test_scaled_copies_are_whole_by_scaled_entries(public_sets, scaled):
    task = open_task(f"crc:{public_sets['crc']}")
    assert (task.name, len(task.notes)) == ("crc", 1)
    notes = open_task(f"pcam:{public_sets['pcam']}").notes
    assert [re.sub("hash [0-9a-f]{16}", "", note) for note in notes] == [
        "the split is not the pinned 'official' one: , not 0bf7b736f538d914"
    ]


def first_image(root, pattern):
    return sorted(root.rglob(pattern))[0]


def rewrite(path, old, new, count=1):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, count))


def h5(path, change):
    import h5py

    with h5py.File(path, "r+") as file:
        change(file)


def replace_data(path, key, values):
    def change(file):
        del file[key]
        file[key] = values

    h5(path, change)


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])


P = "camelyonpatch_level_2_split_"
FAULTS = {
    "missing class": ("bach", lambda r: shutil.rmtree(first_image(r, "InSitu")), r"Photos/InSitu: missing class folder; unpack"),
    "missing image": ("bach", lambda r: first_image(r, "b017.tif").unlink(), r"Photos/Benign: 1 of 100 images are missing, first b017.tif"),
    "extra image": ("bach", lambda r: shutil.copy(first_image(r, "b017.tif"), first_image(r, "Normal") / "b017.tif"), r"Normal/b017.tif: not an image of the set; move it away \(1 such\)"),
    "extra by number": ("bach", lambda r: shutil.copy(first_image(r, "b017.tif"), first_image(r, "Benign") / "b101.tif"), r"Benign/b101.tif: not an image of the set"),
    "nothing there": ("bach", lambda r: shutil.rmtree(r / "ICIAR2018_BACH_Challenge"), r"no images of BACH; expected ICIAR2018"),
    "crc class": ("crc", lambda r: shutil.rmtree(r / "CRC-VAL-HE-7K" / "MUC"), r"CRC-VAL-HE-7K/MUC: missing class folder; unpack CRC-VAL-HE-7K.zip again"),
    "crc part": ("crc", lambda r: shutil.rmtree(r / "CRC-VAL-HE-7K"), r"CRC-VAL-HE-7K: missing folder; unpack CRC-VAL-HE-7K.zip there"),
    "crc wrong class": ("crc", lambda r: shutil.move(first_image(r, "ADI-*.tif"), r / "CRC-VAL-HE-7K" / "BACK"), r"BACK/ADI-\w+.tif: not an image of class BACK"),
    "crc counts": ("crc", lambda r: None, r"NCT-CRC-HE-100K/ADI: 10 images of class ADI, not the published 10,407; unpack"),
    "two rows": ("mhist", lambda r: rewrite(r / "annotations.csv", "MHIST_aab.png", "MHIST_aaa.png"), r"annotations.csv: line 3: a second row for 'MHIST_aaa.png'; keep one"),
    "label": ("mhist", lambda r: rewrite(r / "annotations.csv", ",HP,", ",hp,"), r"line 2: label 'hp' is not in the class list \(HP, SSA\)"),
    "partition": ("mhist", lambda r: rewrite(r / "annotations.csv", ",train", ",tain"), r"line 2: partition 'tain' is neither train nor test"),
    "votes": ("mhist", lambda r: rewrite(r / "annotations.csv", ",0,train", ",6,train"), r"line 2: 6 of 7 votes for SSA do not make the label HP"),
    "endless votes": ("mhist", lambda r: rewrite(r / "annotations.csv", ",0,train", f",{'9' * 5000},train"), r"line 2: '9+' is no number of votes from 0 to 7"),
    "no votes": ("mhist", lambda r: rewrite(r / "annotations.csv", ",0,train", ",8,train"), r"line 2: '8' is no number of votes from 0 to 7"),
    "short row": ("mhist", lambda r: rewrite(r / "annotations.csv", ",0,train", ",train"), r"line 2: 3 values, not 4"),
    "path": ("mhist", lambda r: rewrite(r / "annotations.csv", "MHIST_aaa.png", "../a.png"), r"line 2: '../a.png' is no name of an image"),
    "header": ("mhist", lambda r: rewrite(r / "annotations.csv", "Partition", "Split"), r"the first line must be 'Image Name,.*Partition', found"),
    "no table": ("mhist", lambda r: (r / "annotations.csv").unlink(), r"annotations.csv: cannot be read \(No such file or directory\)"),
    "no images": ("mhist", lambda r: shutil.rmtree(r / "images"), r"images: missing folder; unpack images.zip there"),
    "image of a row": ("mhist", lambda r: (r / "images" / "MHIST_aac.png").unlink(), r"MHIST_aac.png: in annotations.csv but not there"),
    "row of an image": ("mhist", lambda r: shutil.copy(r / "images" / "MHIST_aac.png", r / "images" / "MHIST_zzz.png"), r"MHIST_zzz.png: not in annotations.csv; move it away"),
    "other magnification": ("breakhis", lambda r: first_image(r, "SOB_M_DC-14-2523-40-001.png").rename(first_image(r, "SOB_M_DC_14-2523") / "40X" / "SOB_M_DC-14-2523-100-001.png"), r"SOB_M_DC-14-2523-100-001.png: not a 40X image of type DC"),
    "other type": ("breakhis", lambda r: shutil.copy(first_image(r, "SOB_B_F-14-9133-40-001.png"), first_image(r, "SOB_M_DC_14-2523") / "40X"), r"SOB_B_F-14-9133-40-001.png: not a 40X image of type DC"),
    "two of one image": ("breakhis", lambda r: shutil.copy(first_image(r, "SOB_M_DC-14-2523-40-001.png"), first_image(r, "SOB_M_DC_14-2773") / "40X"), r"SOB_M_DC-14-2523-40-001.png: lies there 2 times; keep one"),
    "patient": ("breakhis", lambda r: shutil.rmtree(first_image(r, "SOB_B_F_14-9133")), r"fibroadenoma: 227 images of class fibroadenoma, not the published 253"),
    "renamed patient": ("breakhis", lambda r: first_image(r, "SOB_M_DC-14-2523-40-001.png").rename(first_image(r, "SOB_M_DC_14-2523") / "40X" / "SOB_M_DC-14-2524-40-001.png"), r"9 images of patient 2523 \(ductal_carcinoma\), not the published 10"),
    "h5 absent": ("pcam", lambda r: (r / f"{P}valid_x.h5").unlink(), r"valid_x.h5: no such file"),
    "h5 cut": ("pcam", lambda r: cut(r / f"{P}test_x.h5"), r"test_x.h5: the HDF5 file is cut short \([\d,]+ bytes are there\); get it again"),
    "h5 text": ("pcam", lambda r: (r / f"{P}test_y.h5").write_text("hello" * 200), r"test_y.h5: not a readable HDF5 file"),
    "h5 key": ("pcam", lambda r: h5(r / f"{P}train_x.h5", lambda f: f.move("x", "z")), r"train_x.h5: expected 'x' as uint8 \[N, 96, 96, 3\], found nothing \[\] \(the file holds z\)"),
    "h5 shape": ("pcam", lambda r: replace_data(r / f"{P}train_x.h5", "x", np.zeros((48, 64, 96, 3), "uint8")), r"expected 'x' as uint8 \[N, 96, 96, 3\], found uint8 \[48, 64, 96, 3\]"),
    "h5 labels": ("pcam", lambda r: replace_data(r / f"{P}train_y.h5", "y", np.zeros((47, 1, 1, 1), "uint8")), r"train_y.h5: 'y' is \[47, 1, 1, 1\], not \[48, 1, 1, 1\]"),
    "h5 label": ("pcam", lambda r: replace_data(r / f"{P}train_y.h5", "y", np.full((48, 1, 1, 1), 2, "uint8")), r"label 2 of image 0 is neither 0 nor 1"),
    "h5 counts": ("pcam", lambda r: None, r"train_x.h5: 48 images, not the published 262,144"),
    "meta of others": ("pcam", lambda r: rewrite(r / f"{P}valid_meta.csv", "False,False", "True,True"), r"valid_meta.csv: center_tumor_patch of row 0 is not the label in y.h5 \(1 such rows\)"),
    "meta rows": ("pcam", lambda r: cut(r / f"{P}valid_meta.csv"), r"valid_meta.csv: (.* rows for 16 images|cannot be read)"),
    "meta column": ("pcam", lambda r: rewrite(r / f"{P}valid_meta.csv", "wsi", "slide"), r"valid_meta.csv: no column 'wsi'"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_gets_one_line(copy, case, request):
    name, spoil, message = FAULTS[case]
    if "counts" not in case:
        request.getfixturevalue("scaled")
    root = copy(name)
    spoil(root)
    with pytest.raises(EosinError) as caught:
        open_task(f"{name}:{root}")
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(root) in str(caught.value)
    assert "\n" not in str(caught.value)
    # `data check` says it too, and that the set is not whole.
    lines = check_data_set(name, root, deep=False)
    assert any(line.fine is False and re.search(message, line.text) for line in lines)


def test_a_slide_on_two_sides_is_refused(copy):
    root = copy("pcam")
    rewrite(root / f"{P}test_meta.csv", "camelyon16_test_000", "camelyon16_train_000", -1)
    with pytest.raises(EosinError, match="slide 'camelyon16_train_000' is in both test and train"):
        open_task(f"pcam:{root}?check=loose")
    assert open_task(f"pcam:{root}?check=loose&group=none").grouping == "image"


def test_a_subset_is_never_silent(copy):
    root = copy("bach")
    first_image(root, "b017.tif").unlink()
    with pytest.raises(EosinError, match=re.escape("to use what is there, write ?check=loose")):
        open_task(f"bach:{root}")
    task = open_task(f"bach:{root}?check=loose")
    assert task.name == "bach (subset: 399 of 400)"
    assert any(note.startswith("subset (399 of 400 images): ") and "b017.tif" in note for note in task.notes)
    assert any("not the pinned 'three-way' one: train/val/test 218/49/132" in note for note in task.notes)


def test_a_val_that_is_cut_here_is_not_called_published(copy):
    root = copy("bach")
    for row in [row for first, end in bach._VAL for row in range(first, end)]:
        first_image(root, bach.bach_names()[row].split("/")[1]).unlink()
    task = open_task(f"bach:{root}?check=loose")
    assert len(task.val)
    assert task.split_source.startswith("published: thunder's")
    assert task.split_source.endswith("given; made: 20 % of train as val by patient, stratified, seed 0")
    assert "made" not in open_task(f"bach:{root}?check=loose&split=eva").split_source


def test_an_altered_set_is_not_called_a_subset(copy):
    root = copy("bach")
    shutil.copy(first_image(root, "b017.tif"), first_image(root, "Benign") / "more.tif")
    task = open_task(f"bach:{root}?check=loose")
    assert task.name == "bach (altered)"
    assert any(note.startswith("not the published set: ") for note in task.notes)


def test_another_split_of_the_same_sizes_is_noted(public_sets, monkeypatch):
    # Two images of one class change sides: the counts stay, the hash does not.
    swapped = {15: "train", 14: "val"}
    side = bach._side
    monkeypatch.setattr(bach, "_side", lambda row, split: swapped.get(row) or side(row, split))
    notes = open_task(f"bach:{public_sets['bach']}").notes
    assert any(re.search("not the pinned 'three-way' one: hash [0-9a-f]{16}, not 4f605f5e083580e1", n) for n in notes)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bach", "give the folder of the set, as bach:DIR"),
        ("bach:/nowhere", "/nowhere: no such folder; `eosin data get bach --root /nowhere` says how"),
        ("bach:{bach}?split=four", "field 'split'"),
        ("bach:{bach}?splt=eva", "unknown field 'splt'; did you mean 'split'"),
        ("mhist:{mhist}?val=1.5", "must be a share between 0 and 1"),
        ("bahc:/nowhere", "did you mean 'bach'"),
    ],
)
def test_bad_specs(public_sets, spec, message):
    with pytest.raises(EosinError, match=re.escape(message)):
        open_task(spec.format(**public_sets))


def test_check_finds_the_whole_set_whole(public_sets):
    for name in ("bach", "mhist", "breakhis"):
        lines = check_data_set(name, public_sets[name], deep=False)
        assert all(line.fine for line in lines)
        assert lines[-1].text == f"{DATA_SETS[name].images:,} of {DATA_SETS[name].images:,} images" or len(lines) > 2
    assert check_data_set("bach", public_sets["bach"] / "nowhere")[0].fine is False


def small_bach(root):
    import replicas

    replicas.bach(root, size=(64, 48), each=3)
    about = DATA_SETS["bach"]
    return about.model_copy(update={"counts": {"Photos": dict.fromkeys(about.classes, 3)}, "image_size": (64, 48)})


def test_a_deep_check_decodes_every_image(tmp_path):
    about = small_bach(tmp_path)
    assert all(line.fine is not False for line in check_data_set(about, tmp_path))
    victim = first_image(tmp_path, "iv003.tif")
    other = first_image(tmp_path, "n002.tif")
    for path, data in ((victim, victim.read_bytes()[:2000]), (other, None)):
        path.unlink()
        if data is None:
            Image.new("RGB", (48, 64)).save(path)
        else:
            path.write_bytes(data)
    wrong = [line.text for line in check_data_set(about, tmp_path) if line.fine is False]
    assert len(wrong) == 2
    assert re.match(r"Invasive/iv003.tif: cannot be read \(.*\); get it again", wrong[0])
    assert wrong[1] == "Normal/n002.tif: 48×64 px, not 64×48; get it again"
    assert all(line.fine is not False for line in check_data_set(about, tmp_path, deep=False))


def test_a_deep_check_compares_checksums(public_sets, copy):
    root = copy("pcam")
    lines = {line.subject: line for line in check_data_set("pcam", root)}
    assert lines[f"MD5 of {P}train_x.h5"].fine is False
    assert "not the published 01844da899645b4d6f84946d417ba453" in lines[f"MD5 of {P}train_x.h5"].text


def test_the_checksums_that_came_with_mhist_are_used(tmp_path):
    import hashlib

    import replicas

    counts = {"train": {"HP": 6, "SSA": 4}, "test": {"HP": 2, "SSA": 2}}
    root = replicas.mhist(tmp_path, counts=counts)
    good = hashlib.md5((root / "annotations.csv").read_bytes()).hexdigest()
    (root / "MD5SUMs.txt").write_text(f"{good}  annotations.csv\n{'0' * 32} *images/../images.zip\n")
    (root / "images.zip").write_bytes(b"no zip")
    lines = {line.subject: line.fine for line in check_data_set("mhist", root)}
    assert lines["layout"] is False
    assert lines["MD5 of annotations.csv"] is True
    assert lines["MD5 of images.zip"] is False
