"""Galleries and maps against plain implementations on synthetic tissue."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from eosin.benchmark.galleries import SCHEMA, gallery_path, nearest_neighbors, worst_errors, write_gallery
from eosin.benchmark.maps import stain_of, write_map
from eosin.encoders import load_encoder
from eosin.evaluate import embed, probe_data
from eosin.evaluate.predictions import prediction_table
from eosin.evaluate.statistics import Predicted
from eosin.tasks import open_task


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    task = open_task("synthetic?tiles=120&slides=12&size=32")
    data = probe_data(task, embed(load_encoder("color:stats"), task.tiles, workers=0))
    generator = np.random.default_rng(0)
    predicted = Predicted(
        data.names[data.test], data.labels[data.test], generator.dirichlet(np.ones(len(data.classes)), len(data.test))
    )
    table = prediction_table(predicted, data.classes)
    pq.write_table(table, folder / "predictions.parquet")
    return task, data, table, folder / "predictions.parquet"


def test_neighbors_are_those_of_a_plain_search_over_blocks(monkeypatch):
    generator = np.random.default_rng(1)
    features = generator.normal(size=(60, 5)).astype(np.float32)
    features[7] = 0
    queries, candidates = np.array([3, 7, 20]), np.arange(25, 60)
    plain = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    expected = np.argsort(-(plain[queries] @ plain[candidates].T), axis=1, kind="stable")[:, :4]
    for block in (7, 1000):
        monkeypatch.setattr("eosin.benchmark.galleries._BLOCK", block)
        rows, cosine = nearest_neighbors(features, queries, candidates, 4)
        assert np.array_equal(rows[[0, 2]], candidates[expected[[0, 2]]])
        assert np.allclose(cosine[0], (plain[3] @ plain[rows[0]].T), atol=1e-6)
        # A vector without a direction is as near to one as to another: the first ones.
        assert np.array_equal(rows[1], candidates[:4])
    assert nearest_neighbors(features, queries, candidates[:2], 4)[0].shape == (3, 2)


def test_worst_errors_are_wrong_and_the_surest_first(case):
    _, _, table, _ = case
    rows = table.to_pylist()
    wrong = sorted((r for r in rows if r["truth"] != r["predicted"]), key=lambda r: -r[f"p_{r['predicted']}"])
    found = worst_errors(table, 5)
    assert [entry["name"] for entry in found] == [row["name"] for row in wrong[:5]]
    for entry, row in zip(found, wrong, strict=False):
        assert entry["label"] == row["truth"] != entry["predicted"]
        assert entry["probability"] == row[f"p_{row['predicted']}"] > entry["truth_probability"]


def test_a_gallery_holds_each_picture_once(case, tmp_path):
    task, data, _, predictions = case
    path = tmp_path / gallery_path("color", "f", "h", "knn")
    assert gallery_path("color", "f", "h", "knn") != gallery_path("color", "f", "h", "logistic")
    path.parent.mkdir()
    write_gallery(path, task, data, predictions=predictions, predicted_by="knn", queries=6, neighbors=3, errors=4)
    table = pq.read_table(path)
    assert table.schema.remove_metadata() == SCHEMA
    details = json.loads(table.schema.metadata[b"eosin"])
    assert details["predicted_by"] == "knn"
    assert details["test"] == len(data.test)
    rows = table.to_pylist()
    assert [row["kind"] for row in rows].count("query") == 6
    assert [row["kind"] for row in rows].count("neighbor") == 18
    assert [row["kind"] for row in rows].count("error") == 4
    pictures = [row["name"] for row in rows if row["thumbnail"]]
    assert sorted(pictures) == sorted({row["name"] for row in rows})
    queries = [row for row in rows if row["kind"] == "query"]
    # Each class in its turn.
    assert len({row["label"] for row in queries}) == min(6, len(set(data.labels[data.test])))
    train, test = (set(data.names[split].tolist()) for split in (data.train, data.test))
    for row in rows:
        assert row["name"] in (train if row["kind"] == "neighbor" else test)
    for number in range(6):
        cosines = [row["cosine"] for row in rows if row["kind"] == "neighbor" and row["query"] == number]
        assert cosines == sorted(cosines, reverse=True)


def test_queries_do_not_depend_on_the_encoder(case, tmp_path):
    from dataclasses import replace

    task, data, _, predictions = case
    other = replace(data, features=np.random.default_rng(3).normal(size=data.features.shape).astype(np.float32))
    names = []
    for number, entry in enumerate((data, other)):
        write_gallery(tmp_path / f"{number}", task, entry, predictions=predictions, predicted_by="knn")
        rows = pq.read_table(tmp_path / f"{number}").to_pylist()
        names.append([row["name"] for row in rows if row["kind"] == "query"])
    assert names[0] == names[1]


def test_stain_is_measured():
    white = np.full((3, 4, 4), 255, np.uint8)
    assert stain_of(white) == (0.0, None)
    pixels = white.copy()
    pixels[0, :2] = 24  # density log10(256/25) = 1.0103 in the red channel of half the pixels
    density, share = stain_of(pixels)
    assert density == pytest.approx(np.log10(256 / 25) / 6)
    assert share == pytest.approx(1.0)
    violet, pink = np.array([90, 60, 140]), np.array([230, 130, 180])
    tiles = [np.broadcast_to(color[:, None, None], (3, 2, 2)).astype(np.uint8) for color in (violet, pink)]
    assert stain_of(tiles[0])[1] > stain_of(tiles[1])[1]


def test_a_map_tells_patient_stain_and_both_layouts(case, tmp_path):
    task, data, _, predictions = case
    write_map(tmp_path / "map", task, data, seed=0, predictions=predictions, predicted_by="knn")
    table = pq.read_table(tmp_path / "map")
    rows = table.to_pylist()
    groups = dict(zip(data.names.tolist(), data.groups.tolist(), strict=True))
    assert all(row["group"] == groups[row["name"]] for row in rows)
    assert json.loads(table.schema.metadata[b"eosin"])["grouping"] == data.grouping
    assert all(0 < row["density"] < 2.41 and 0 < row["red_share"] < 1 for row in rows)
    across = np.array([row["pca_x"] for row in rows])
    up = np.array([row["pca_y"] for row in rows])
    assert across.var() >= up.var() > 0
    assert abs(np.corrcoef(across, up)[0, 1]) < 1e-6
