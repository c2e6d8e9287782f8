"""Embeddings of others: eva's folders in the format that eva writes, and our own Parquet."""

from __future__ import annotations

import csv
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from eosin.core.errors import EosinError
from eosin.evaluate import evaluate, read_embeddings


def eva_folder(folder, splits=("train", "val", "test"), each=24, groups=False, width=5):
    """What eva's ClassificationEmbeddingsWriter leaves: lists of one tensor, named as the image, and a manifest."""
    rng = np.random.default_rng(0)
    vectors, rows = {}, []
    for number in range(each * len(splits)):
        split, target = splits[number // each], (10, 2, 9)[number % 3]
        vector = torch.as_tensor(rng.normal(size=width) + 4.0 * np.eye(width)[target % 3], dtype=torch.float32)
        name = f"{split}/Class{target}/image-{number:03d}"
        path = folder / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save([vector] if number % 2 else [vector[None]], path)
        vectors[f"{name}.tif"] = vector.numpy()
        rows.append([f"{name}.tif", f"{name}.pt", str(target), split, *([f"w{number // 6}"] if groups else [])])
    write(folder, rows, groups)
    return vectors, rows


def write(folder, rows, groups=False):
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["origin", "embeddings", "target", "split", *(["wsi_id"] if groups else [])])
        writer.writerows(rows)


def test_evas_folder_is_read_as_written(tmp_path):
    vectors, rows = eva_folder(tmp_path)
    data = read_embeddings(tmp_path)
    assert data.classes == ("2", "9", "10")
    assert data.names.tolist() == [row[0] for row in rows]
    for name, vector, label, row in zip(data.names, data.features, data.labels, rows, strict=True):
        np.testing.assert_array_equal(vector, vectors[name])
        assert data.classes[label] == row[2]
    assert data.features.dtype == np.float32
    assert (data.train.tolist(), data.val[0], data.test[0]) == (list(range(24)), 24, 48)
    assert (data.groups, data.grouping, data.dropped) == (None, "image", 0)
    assert evaluate(data, "knn", resamples=10).metrics["accuracy"]["value"] > 0.9
    assert evaluate(data, "eva?steps=300&rate=0.01", resamples=10).metrics["accuracy"]["value"] > 0.9


def test_without_a_test_the_val_is_reported_and_another_drawn_from_train(tmp_path):
    eva_folder(tmp_path, splits=("train", "val"), each=60, groups=True)
    data = read_embeddings(tmp_path)
    assert data.test.tolist() == list(range(60, 120))
    assert 6 <= len(data.val) <= 24
    assert sorted([*data.train, *data.val]) == list(range(60))
    assert not {*data.groups[data.train]} & {*data.groups[data.val]}
    assert data.grouping == "slide"
    again = read_embeddings(tmp_path)
    np.testing.assert_array_equal(again.val, data.val)


class Bad:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pickle", "no file of tensors"),
        ("several", "holds 2 embeddings"),
        ("maps", r"no tensor \[D\]"),
        ("gone", "cannot be read"),
        ("width", "has 4 features"),
        ("infinite", "not finite"),
        ("split", "split 'dev'"),
        ("outside", "outside the folder"),
        ("column", "no column 'target'"),
        ("empty", "no images"),
        ("no manifest", "no manifest.csv"),
        ("one class", "one class"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, what, message):
    _, rows = eva_folder(tmp_path)
    first = tmp_path / rows[0][1]
    values = {
        "pickle": Bad(),
        "several": [torch.ones(5), torch.ones(5)],
        "maps": torch.ones(5, 3),
        "width": [torch.ones(4)],
        "infinite": [torch.full((5,), float("nan"))],
    }
    if what in values:
        torch.save(values[what], first if what != "width" else tmp_path / rows[1][1])
    if what == "gone":
        first.unlink()
    if what in ("split", "outside", "one class"):
        column, value = {"split": (3, "dev"), "outside": (1, "../secret.pt"), "one class": (2, "1")}[what]
        changed = rows if what == "one class" else rows[:1]
        write(
            tmp_path,
            [[value if i == column else x for i, x in enumerate(row)] for row in changed] + rows[len(changed) :],
        )
    if what == "column":
        (tmp_path / "manifest.csv").write_text("origin,embeddings,split\na,a.pt,train\n")
    if what == "empty":
        write(tmp_path, [])
    if what == "no manifest":
        (tmp_path / "manifest.csv").unlink()
    with pytest.raises(EosinError, match=message) as caught:
        read_embeddings(tmp_path)
    assert "\n" not in str(caught.value)


def parquet(path, **changes):
    rng = np.random.default_rng(0)
    labels = np.array(["b", "a"] * 15)
    features = (rng.normal(size=(30, 4)) + 5.0 * (labels == "a")[:, None]).astype(np.float32)
    columns = {
        "name": pa.array([f"i{number}" for number in range(30)]),
        "label": pa.array(labels.tolist()),
        "patient": pa.array([f"p{number // 3}" for number in range(30)]),
        "split": pa.array(["train"] * 15 + ["val"] * 6 + ["test"] * 9),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), 4),
    } | changes
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)
    return features


def test_our_own_parquet_is_read(tmp_path):
    features = parquet(tmp_path / "out.parquet")
    data = read_embeddings(tmp_path / "out.parquet")
    np.testing.assert_array_equal(data.features, features)
    assert data.classes == ("a", "b")
    assert data.labels[:4].tolist() == [1, 0, 1, 0]
    assert (len(data.train), len(data.val), len(data.test)) == (15, 6, 9)
    assert (data.grouping, data.groups[3]) == ("patient", "p1")
    assert evaluate(data, "logistic", resamples=10).metrics["accuracy"]["value"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": None}, "no column 'split'"),
        ({"label": pa.array(["a", None] * 15)}, "column 'label' has gaps"),
        ({"feature": pa.array([1.0] * 30)}, "no lists of one length"),
        ({"split": pa.array(["val"] * 30)}, "no image in the train split"),
    ],
)
def test_what_is_wrong_with_a_parquet_is_named(tmp_path, changes, message):
    parquet(tmp_path / "out.parquet", **changes)
    with pytest.raises(EosinError, match=message):
        read_embeddings(tmp_path / "out.parquet")


def test_other_files_are_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("nothing")
    with pytest.raises(EosinError, match="no Parquet file of embeddings"):
        read_embeddings(tmp_path / "x.parquet")
