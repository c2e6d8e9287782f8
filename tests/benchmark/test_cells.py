from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.benchmark.cells import OpenTask, cell_key, open_subject, subset
from eosin.encoders import load_encoder
from eosin.evaluate import open_protocol
from eosin.synthetic import write_tiles
from eosin.tasks import is_synthetic, open_task, task_content


@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    fraction=st.floats(0.01, 1.0),
    seed=st.integers(0, 5),
)
def test_a_label_subset_is_stratified_nested_and_keeps_order(labels, fraction, seed):
    labels = np.array(labels)
    rows = np.flatnonzero(np.arange(len(labels)) % 2 == 0)
    kept = subset(labels, rows, fraction, seed, "train")
    assert np.array_equal(kept, np.sort(kept))
    assert set(kept) <= set(rows)
    for label in np.unique(labels[rows]):
        count = int((labels[rows] == label).sum())
        assert int((labels[kept] == label).sum()) == max(1, round(fraction * count))
    smaller = subset(labels, rows, fraction / 2, seed, "train")
    assert set(smaller) <= set(kept)
    assert np.array_equal(kept, subset(labels, rows, fraction, seed, "train"))


def test_seeds_and_splits_draw_other_subsets():
    labels, rows = np.zeros(200, int), np.arange(200)
    first = subset(labels, rows, 0.3, 0, "train")
    assert not np.array_equal(first, subset(labels, rows, 0.3, 1, "train"))
    assert not np.array_equal(first, subset(labels, rows, 0.3, 0, "val"))
    assert np.array_equal(subset(labels, rows, 1.0, 0, "train"), rows)


def test_a_tasks_content_is_everything_but_its_name(index):
    task = open_task(f"csv:{index}")
    content = task_content(task)
    assert content == task_content(replace(task, name="other", reference="other"))
    changed = task.labels.copy()
    changed[0] = 2 if changed[0] != 2 else 1
    for other in (
        replace(task, labels=changed),
        replace(task, test=task.test[1:]),
        replace(task, classes=("x", "b", "c")),
        replace(task, groups=None, grouping="image"),
        replace(task, version=task.version + 1),
        replace(task, tiles=task.tiles.select(np.arange(10))),
    ):
        assert task_content(other) != content


def test_a_key_tells_cells_apart(index):
    task = open_task(f"csv:{index}")
    opened = OpenTask("spec", task, task_content(task), False)
    subject = open_subject("color", "color:stats", load_encoder("color:stats"))
    (knn,), (other,), (logistic,) = (open_protocol(spec) for spec in ("knn", "knn?k=5", "logistic"))
    base = cell_key(subject, opened, knn, 1.0, 0, "fp32")
    assert base == cell_key(replace(subject, spec="elsewhere"), replace(opened, spec="other"), knn, 1.0, 0, "fp32")
    others = {
        cell_key(replace(subject, name="other"), opened, knn, 1.0, 0, "fp32"),
        cell_key(replace(subject, fingerprint="0"), opened, knn, 1.0, 0, "fp32"),
        cell_key(subject, replace(opened, content="0"), knn, 1.0, 0, "fp32"),
        cell_key(subject, opened, logistic, 1.0, 0, "fp32"),
        cell_key(subject, opened, other, 1.0, 0, "fp32"),
        cell_key(subject, opened, knn, 0.5, 0, "fp32"),
        cell_key(subject, opened, knn, 1.0, 1, "fp32"),
        cell_key(subject, opened, knn, 1.0, 0, "bf16"),
    }
    assert len(others) == 8
    assert base not in others


def test_a_key_covers_versions_and_what_a_variant_depends_on(index, monkeypatch):
    task = open_task(f"csv:{index}")
    opened = OpenTask("spec", task, task_content(task), False)
    subject = open_subject("color", "color:stats", load_encoder("color:stats"))
    for spec in ("knn", "shift:blur"):
        (asked,) = open_protocol(spec)
        keys = [cell_key(subject, opened, asked, 1.0, 0, "fp32")]
        with monkeypatch.context() as patch:
            patch.setattr(type(asked.protocol), "version", asked.protocol.version + 1)
            keys.append(cell_key(subject, opened, asked, 1.0, 0, "fp32"))
        with monkeypatch.context() as patch:
            patch.setattr(type(asked.protocol), "depends", lambda self, variant: f"other {variant}")
            keys.append(cell_key(subject, opened, asked, 1.0, 0, "fp32"))
        assert len(set(keys)) == 3


@pytest.mark.parametrize("spec", ["csv:{}", "folder:{}"])
def test_drawn_tiles_are_known_as_synthetic(spec, tmp_path, index):
    drawn = write_tiles(tmp_path / "drawn", tiles=60, slides=6, size=32)
    source = spec.format(drawn if spec.startswith("csv") else drawn.parent / "images")
    assert is_synthetic(open_task(source))
    assert not is_synthetic(open_task(f"csv:{index}"))
