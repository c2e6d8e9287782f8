"""Opening tasks: names, splits, groups, and every bad input with the line it gets."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.core.errors import EosinError
from eosin.tasks import TASKS, open_task


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), (value % 256, 80, 160)).save(path)


def manifest(folder: Path, rows: list[dict[str, str]], name: str = "index.csv") -> Path:
    """Write a manifest and its images; rows may leave out `file`."""
    for number, row in enumerate(rows):
        row.setdefault("file", f"images/{number:03d}.png")
        if not (folder / row["file"]).exists():
            picture(folder / row["file"], number)
    columns = ["file", *sorted({key for row in rows for key in row} - {"file"})]
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / name


def rows_of(classes: str, **columns: str) -> list[dict[str, str]]:
    """One row per letter of `classes`; each column gives one word per row."""
    rows = [{"label": letter} for letter in classes]
    for name, words in columns.items():
        for row, word in zip(rows, words.split(), strict=True):
            row[name] = "" if word == "-" else word
    return rows


GIVEN = rows_of("ababab", split="train train val val test test")


def test_split_column_is_used_as_given(tmp_path):
    task = open_task(f"csv:{manifest(tmp_path, GIVEN)}")
    assert task.classes == ("a", "b")
    assert task.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert (task.train.tolist(), task.val.tolist(), task.test.tolist()) == ([0, 1], [2, 3], [4, 5])
    assert (task.split_source, task.grouping, task.groups) == ("given", "image", None)
    assert task.name == f"{tmp_path.name}/index"
    assert open_task(str(tmp_path / "index.csv"), seed=9).split_hash == task.split_hash


def test_folders_of_splits_and_classes(tmp_path):
    for number in range(12):
        split = ("train", "train", "test")[number % 3]
        picture(tmp_path / "set" / split / "ab"[number // 3 % 2] / f"{number}.png", number)
    task = open_task(f"folder:{tmp_path / 'set'}", seed=1)
    assert task.name == "set"
    assert {task.tiles.names[row].split("/")[0] for row in task.test} == {"test"}
    assert {task.tiles.names[row].split("/")[0] for row in [*task.train, *task.val]} == {"train"}
    assert len(task.val) == 2
    assert task.split_source.startswith("given; made: 20 % of train as val by image")
    other = open_task(str(tmp_path / "set"), seed=2)
    assert other.test.tolist() == task.test.tolist()


def test_no_split_is_made_by_patient(tmp_path):
    rows = [{"label": "abc"[i % 3], "patient": f"p{i % 15:02d}", "slide": f"s{i % 30:02d}"} for i in range(120)]
    path = manifest(tmp_path, rows)
    task = open_task(f"csv:{path}", seed=4)
    assert task.grouping == "patient"
    sides = [set(task.groups[part].tolist()) for part in (task.train, task.val, task.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert [len(part) for part in (task.train, task.val, task.test)] == [72, 24, 24]
    for part in (task.train, task.val, task.test):
        assert set(task.labels[part].tolist()) == {0, 1, 2}
    assert task.split_source == "made: train/val/test 60/20/20 % by patient, stratified, seed 4"
    assert open_task(f"csv:{path}", seed=4).split_hash == task.split_hash
    assert open_task(f"csv:{path}", seed=5).split_hash != task.split_hash
    assert open_task(f"csv:{path}?group=slide", seed=4).grouping == "slide"
    by_image = open_task(f"csv:{path}?group=none&test=0.25&val=0.25")
    assert (by_image.groups, by_image.grouping) == (None, "image")
    assert [len(part) for part in (by_image.train, by_image.val, by_image.test)] == [60, 30, 30]


def test_slide_is_the_group_where_no_patient_is_known(tmp_path):
    rows = [{"label": "ab"[i % 2], "slide": f"s{i % 10}"} for i in range(40)]
    assert open_task(str(manifest(tmp_path, rows))).grouping == "slide"


def test_validation_is_made_from_train_by_patient(tmp_path):
    rows = [
        {"label": "ab"[i % 2], "patient": f"p{i % 12}", "split": "test" if i % 12 < 3 else "train"} for i in range(48)
    ]
    task = open_task(str(manifest(tmp_path, rows)))
    assert not set(task.groups[task.train].tolist()) & set(task.groups[task.val].tolist())
    assert {int(name[1:]) for name in task.groups[task.test]} == {0, 1, 2}
    assert len(task.val)


def test_label_column_and_name(tmp_path):
    rows = [{"label": "x", "grade": "ab"[i % 2]} for i in range(20)]
    path = manifest(tmp_path, rows, "list.csv")
    assert open_task(f"csv:{path}?label=grade").name == f"{tmp_path.name}/list:grade"
    assert open_task(f"csv:{path}", label_column="grade").classes == ("a", "b")
    assert open_task(f"csv:{path}?label=grade&name=mine").name == "mine"


def test_a_path_may_hold_a_question_mark(tmp_path):
    for number in range(20):
        picture(tmp_path / "why?x=1" / "ab"[number % 2] / f"{number}.png", number)
    assert open_task(str(tmp_path / "why?x=1")).name == "why?x=1"


def test_a_class_without_test_images_is_noted(tmp_path):
    rows = rows_of("ababcc", split="train train test test train val")
    task = open_task(str(manifest(tmp_path, rows)))
    assert task.notes == ("class 'c' has no test images: its scores are left out of the means",)


def test_a_class_of_one_patient_is_trained_and_not_tested(tmp_path):
    rows = [{"label": "ab"[i % 2], "patient": f"p{i % 10}"} for i in range(40)]
    rows += [{"label": "rare", "patient": "p99"} for _ in range(4)]
    task = open_task(str(manifest(tmp_path, rows)))
    assert set(task.labels[task.test].tolist()) == {0, 1}
    assert 2 in task.labels[task.train]
    assert "rare" in task.notes[0]


SPLIT6 = "train train val val test test"
BAD = {
    "one class": (rows_of("aaaaaa", split=SPLIT6), "", "all images are of class 'a'; a task needs at least two"),
    "class of one": (rows_of("aaaaab", split=SPLIT6), "", "class 'b' has one image; give it more images or drop"),
    "missing label": (
        [*rows_of("ababa"), {"label": "", "file": "images/lost.png"}],
        "",
        "1 rows have no label, first 'images/lost.png'",
    ),
    "nan label": (
        [*rows_of("ababa"), {"label": "NaN", "file": "images/lost.png"}],
        "",
        "1 rows have no label, first 'images/lost.png'",
    ),
    "no label column": ([{"grade": "a"}, {"grade": "b"}], "", "no labels found"),
    "unknown split": (rows_of("abab", split="train train tset test"), "", "unknown split 'tset'; did you mean 'test'"),
    "missing split": (rows_of("abab", split="train train - test"), "", "1 rows have no split, first 'images/002.png'"),
    "no test": (rows_of("abab", split="train train val val"), "", "the test split is empty; mark some rows 'test'"),
    "no train": (rows_of("abab", split="test test val val"), "", "the train split is empty"),
    "untrained class": (
        rows_of("ababcc", split="train train test test test test"),
        "",
        "class 'c' is in test but not in train",
    ),
    "untrained class in val": (
        rows_of("ababcc", split="train train test test val val"),
        "",
        "class 'c' is in val but not in train",
    ),
    "one class in train": (
        rows_of("aabb", split="train test val val"),
        "",
        "class 'b' is in val but not in train",
    ),
    "patient crosses": (
        rows_of("ababab", split=SPLIT6, patient="p q r r q s"),
        "",
        "patient 'q' is in both test and train",
    ),
    "slide crosses": (rows_of("ababab", split=SPLIT6, slide="p q r q s s"), "", "slide 'q' is in both train and val"),
    "patient unknown for some": (rows_of("abab", patient="p q r -"), "", "no patient, first 'images/003.png'; fill"),
    "group that is not known": (rows_of("abab"), "?group=patient", "no patient is known; use ?group=none"),
    "unknown group": (rows_of("abab"), "?group=case", "field 'group'"),
    "one patient": (rows_of("abab", patient="p p p p"), "", "no patient can be held out for a test"),
    "one patient in train": (
        rows_of("ababab", patient="p p p p q q", split="train train train train test test"),
        "",
        "no patient of the training images can be held out to validate; give more patients",
    ),
    "unknown option": (rows_of("abab"), "?grop=slide", "unknown field 'grop'; did you mean 'group'"),
    "no value": (rows_of("abab"), "?group", "'group' is no option"),
    "twice": (rows_of("abab"), "?test=0.2&test=0.3", "'test' is given twice"),
    "share": (rows_of("abab"), "?test=1.5", "must be a share between 0 and 1"),
    "no number": (rows_of("abab"), "?test=half", "field 'test'"),
    "shares": (rows_of("abab"), "?test=0.5&val=0.5", "leave nothing to train on"),
    "share of a given split": (GIVEN, "?test=0.5", "?test= with a split that is given"),
    "share of a given validation split": (GIVEN, "?val=0.5", "?val= with a validation split that is given"),
    "label column": (GIVEN, "?label=grade", "no column 'grade'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_one_line(tmp_path, case):
    rows, options, message = BAD[case]
    path = manifest(tmp_path, [dict(row) for row in rows])
    with pytest.raises(EosinError) as caught:
        open_task(f"csv:{path}{options}")
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_crossing_patient_can_be_accepted(tmp_path):
    rows, _, _ = BAD["patient crosses"]
    assert open_task(f"{manifest(tmp_path, [dict(row) for row in rows])}?group=none").grouping == "image"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sintetic:x", "did you mean 'synthetic'"),
        ("csv:/nowhere/index.csv", "/nowhere/index.csv"),
        ("/nowhere", "/nowhere"),
        ("synthetic:here", "has no path"),
        ("synthetic?tile=4", "did you mean 'tiles'"),
        ("synthetic?tiles=30&slides=5", "do not fill 5 slides with every tissue; use tiles=40"),
        ("synthetic?slides=2", "at least 3 slides"),
        ("synthetic?tiles=many", "field 'tiles'"),
    ],
)
def test_unknown_sources_are_refused(spec, message):
    with pytest.raises(EosinError, match=message.replace("?", r"\?")):
        open_task(spec)


def sources(folder: Path) -> dict[str, str]:
    """One small source for each scheme."""
    from eosin.data import StoreWriter

    rows = [{"label": "ab"[i % 2], "file": f"{'ab'[i % 2]}/{i:03d}.png"} for i in range(30)]
    (folder / "plain").mkdir()
    index = manifest(folder / "plain", rows)
    with StoreWriter(folder / "store") as writer:
        for row in rows:
            writer.add((folder / "plain" / row["file"]).read_bytes(), name=row["file"], label=row["label"])
    return {
        "folder": f"folder:{folder / 'plain'}",
        "csv": f"csv:{index}",
        "store": f"store:{folder / 'store'}",
        "synthetic": "synthetic?tiles=40&slides=5&size=32",
    }


@pytest.mark.parametrize("scheme", TASKS)
def test_every_scheme_gives_a_whole_task(tmp_path, monkeypatch, public_sets, scheme):
    monkeypatch.setenv("EOSIN_HOME", str(tmp_path / "home"))
    public = {name: f"{name}:{folder}?check=loose" for name, folder in public_sets.items()}
    task = open_task({**sources(tmp_path), **public}[scheme], seed=1)
    rows = np.concatenate([task.train, task.val, task.test])
    assert sorted(rows.tolist()) == list(range(len(task.tiles)))
    assert min(len(task.train), len(task.val), len(task.test)) > 0
    assert len(task.labels) == len(task.tiles)
    assert task.labels.max() == len(task.classes) - 1
    assert list(task.classes) == sorted(set(task.tiles.label))
    for row, label in zip(range(len(task.tiles)), task.labels, strict=True):
        assert task.classes[label] == task.tiles.label[row]
    assert task.version >= 1
    assert task.reference
    assert task.higher_is_better
    assert len(task.split_hash) == 16
    assert task.synthetic == (scheme == "synthetic")


def test_folder_csv_and_store_of_the_same_images_split_alike(tmp_path, monkeypatch):
    found = sources(tmp_path)
    tasks = [open_task(found[scheme], seed=3) for scheme in ("folder", "csv", "store")]
    assert len({task.split_hash for task in tasks}) == 1


def test_synthetic_is_rendered_once(tmp_path, monkeypatch):
    monkeypatch.setenv("EOSIN_HOME", str(tmp_path))
    spec = "synthetic?tiles=40&slides=5&size=32&seed=2"
    first = open_task(spec)
    assert first.name == "synthetic:seed=2:size=32:slides=5:tiles=40"
    folders = list((tmp_path / "synthetic").iterdir())
    written = [path.stat().st_mtime_ns for path in sorted(folders[0].rglob("*.png"))]
    again = open_task(spec, seed=5)
    assert [path.stat().st_mtime_ns for path in sorted(folders[0].rglob("*.png"))] == written
    assert again.split_hash == first.split_hash
    assert first.grouping == "patient"
    open_task("synthetic?tiles=40&slides=5&size=32&seed=3")
    assert len(list((tmp_path / "synthetic").iterdir())) == 2


def test_oral_tissue(real_data):
    task = open_task(f"csv:{real_data / 'oral' / 'index.csv'}?label=label4")
    assert task.name == "oral/index:label4"
    assert task.classes == ("normal-100x", "normal-400x", "oscc-100x", "oscc-400x")
    assert len(task.tiles) == 1194
    assert task.split_source == "given"
    assert task.grouping == "image"


def test_few_slides_of_colorectal_tissue(real_data):
    task = open_task(f"folder:{real_data / 'crc'}")
    assert (len(task.classes), len(task.tiles)) == (7, 70)
    for part, count in ((task.train, 6), (task.val, 2), (task.test, 2)):
        assert np.bincount(task.labels[part]).tolist() == [count] * 7
