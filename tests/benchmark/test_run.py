"""Whole benchmarks on tiny tiles: what they write, how they go on, how they fail."""

from __future__ import annotations

import io
import json
import re
import sys
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import eosin.benchmark.scoring as scoring_module
from eosin.benchmark import print_table, read_failures, read_results, run_benchmark
from eosin.benchmark.maps import lay_out, umap_layout
from eosin.benchmark.reading import read_comparisons
from eosin.benchmark.record import Record
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import DirectoryLock
from eosin.evaluate import PROTOCOLS, FeatureProtocol, Prediction

PASSING = ("seconds", "created", "command")


def results(config):
    return [{k: v for k, v in record.items() if k not in PASSING} for record in read_results(config.out)]


def count_calls(monkeypatch, name):
    calls = []
    real = getattr(scoring_module, name)
    monkeypatch.setattr(scoring_module, name, lambda *args, **kwargs: (calls.append(args), real(*args, **kwargs))[1])
    return calls


def test_a_benchmark_writes_all_it_promises(configure):
    config = configure(seeds=(0, 1), fractions=(1.0, 0.5))
    records = run_benchmark(config, command="eosin benchmark ...")
    assert len(records) == 2 * 2 * 2 * 2
    assert records == read_results(config.out)
    for record in records:
        assert set(record) == set(Record.__annotations__)
        assert json.loads((config.out / "cells" / f"{record['key']}.json").read_text())["metrics"] == record["metrics"]
        estimate = record["metrics"]["balanced_accuracy"]
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
        table = pq.read_table(config.out / record["predictions"])
        assert table.column_names == ["name", "group", "truth", "predicted", "p_a", "p_b", "p_c"]
        hits = [t == p for t, p in zip(table["truth"].to_pylist(), table["predicted"].to_pylist(), strict=True)]
        assert record["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(hits))
        assert record["n_test"] == len(hits) == 18
        assert record["n_groups"] == 3
        assert record["grouping"] == "patient"
        assert record["command"] == "eosin benchmark ..."
        assert record["libraries"]["torch"]
        assert (config.out / record["map"]).is_file()
    assert {r["n_train"] for r in records if r["fraction"] == 0.5} == {18}
    assert {r["n_val"] for r in records if r["fraction"] == 0.5} == {9}
    order = [(r["encoder"], r["protocol"], -r["fraction"], r["seed"]) for r in records]
    assert order == sorted(order)
    comparisons = read_comparisons(config.out)
    assert {(c["encoder"], c["reference"]) for c in comparisons} == {("color", "histogram")}
    assert len(comparisons) == 4
    assert all(c["seeds"] == [0, 1] and c["grouping"] == "patient" for c in comparisons)
    assert not list(config.out.rglob("*.part"))
    assert not (config.out / "failures.jsonl").exists()


def test_a_second_call_computes_nothing_and_changes_nothing(configure, monkeypatch):
    config = configure()
    run_benchmark(config)
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    cells, passes = count_calls(monkeypatch, "write_cell"), count_calls(monkeypatch, "embed")
    run_benchmark(config)
    assert not cells
    assert not passes
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == before


def test_adding_an_encoder_computes_only_it(configure, monkeypatch):
    run_benchmark(configure(encoders=("color=color:stats",)))
    cells = count_calls(monkeypatch, "write_cell")
    config = configure()
    records = run_benchmark(config)
    assert {call[1].name for call in cells} == {"histogram"}
    assert [r["encoder"] for r in records] == ["color", "color", "histogram", "histogram"]
    # What is asked for is returned; what was there stays in the file.
    assert {r["encoder"] for r in run_benchmark(configure(encoders=("histogram=color:histogram",)))} == {"histogram"}
    assert {r["encoder"] for r in read_results(config.out)} == {"color", "histogram"}


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_killed_benchmark_goes_on_to_the_same_results(configure, monkeypatch, tmp_path, stop_after):
    whole = configure(out=tmp_path / "whole")
    run_benchmark(whole)
    config = configure()
    real = scoring_module.write_cell
    done = []

    def killed(*args, **kwargs):
        if len(done) == stop_after:
            raise KeyboardInterrupt
        done.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(scoring_module, "write_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(config)
    assert len(read_results(config.out)) == stop_after
    monkeypatch.setattr(scoring_module, "write_cell", real)
    calls = count_calls(monkeypatch, "write_cell")
    run_benchmark(config)
    assert len(calls) == 4 - stop_after
    assert results(config) == results(whole)


def test_damaged_and_incomplete_cells_are_computed_anew(configure, monkeypatch):
    config = configure()
    records = run_benchmark(config)
    expected = results(config)
    (config.out / "cells" / f"{records[0]['key']}.json").write_text('{"key": ')
    (config.out / records[1]["predictions"]).unlink()
    calls = count_calls(monkeypatch, "write_cell")
    run_benchmark(config)
    assert len(calls) == 2
    assert results(config) == expected


def test_the_seed_reaches_the_encoder_and_the_split(configure, tmp_path, write_index):
    unsplit = write_index(tmp_path / "unsplit", split=False)
    config = configure(
        encoders=("untrained=random:resnet10t?seed={seed}&size=32", "color=color:stats"),
        tasks=(f"csv:{unsplit}",),
        seeds=(0, 1),
        protocols=("knn",),
    )
    records = run_benchmark(config)
    untrained = [r for r in records if r["encoder"] == "untrained"]
    assert [r["spec"] for r in untrained] == [f"random:resnet10t?seed={seed}&size=32" for seed in (0, 1)]
    assert len({r["fingerprint"] for r in untrained}) == 2
    assert len({r["fingerprint"] for r in records if r["encoder"] == "color"}) == 1
    assert len({r["split_hash"] for r in records}) == 2
    assert [c["seeds"] for c in read_comparisons(config.out)] == [[0, 1]]


class Refusing(FeatureProtocol):
    name, version, reference, changes = "refusing", 1, "", {1: "first"}

    def run(self, features, labels, classes, train, val, test, groups=None, seed=0):
        if features.shape[1] == 48:
            raise EosinError("48 features are too many [for a test]")
        return Prediction(np.full((len(test), len(classes)), 1 / len(classes)))


def test_a_failing_cell_is_listed_and_the_rest_goes_on(configure, monkeypatch, capsys, index):
    monkeypatch.setitem(PROTOCOLS._entries, "refusing", Refusing())
    config = configure(protocols=("refusing", "knn"), tasks=(f"csv:{index}?name=tiles", "folder:/absent"))
    with pytest.raises(EosinError, match=r"5 of 8 results are missing, listed in .*failures\.jsonl \(first: "):
        run_benchmark(config, command="again")
    assert {(r["encoder"], r["protocol"]) for r in read_results(config.out)} == {
        ("color", "refusing"), ("color", "knn"), ("histogram", "knn"),
    }  # fmt: skip
    failures = read_failures(config.out)
    assert ("histogram", "tiles", "refusing") in {(f["encoder"], f["task"], f["protocol"]) for f in failures}
    assert sum(f["task"] == "folder:/absent" for f in failures) == 4
    assert "48 features are too many [for a test]" in capsys.readouterr().err
    # Mended, the failure goes away; the tasks that this call does not ask for keep theirs.
    monkeypatch.setitem(PROTOCOLS._entries, "refusing", PROTOCOLS["knn"])
    run_benchmark(configure(protocols=("refusing", "knn")))
    assert {f["task"] for f in read_failures(config.out)} == {"folder:/absent"}


def test_an_encoder_that_cannot_run_leaves_a_gap_and_the_rest_goes_on(configure):
    wrong = {"levit": "random:levit_128s?size=100", "seed": f"random:test_vit?seed={10**23}"}
    encoders = (*(f"{name}={spec}" for name, spec in wrong.items()), "color=color:stats")
    config = configure(encoders=encoders)
    with pytest.raises(EosinError, match="4 of 6 results are missing"):
        run_benchmark(config)
    assert {record["encoder"] for record in read_results(config.out)} == {"color"}
    reasons = {failure["encoder"]: failure["reason"] for failure in read_failures(config.out)}
    assert "size=100: the network fails on images of 100 px (" in reasons["levit"]
    assert "must be at most" in reasons["seed"]


def test_a_single_wrong_encoder_or_task_is_told_once(configure, capsys):
    for changes in ({"encoders": ("random:resnet19",)}, {"encoders": ("color:stats",), "tasks": ("folder:/absent",)}):
        with pytest.raises(EosinError, match=r"resnet19|/absent"):
            run_benchmark(configure(**changes))
    assert capsys.readouterr().err == ""


def test_wrong_names_are_refused_before_anything_is_computed(configure, index, tmp_path):
    with pytest.raises(EosinError, match="did you mean 'knn'"):
        run_benchmark(configure(protocols=("knnn",)))
    assert not (tmp_path / "bench").exists()
    with pytest.raises(EosinError, match="both named 'tiles'"):
        run_benchmark(configure(tasks=(f"csv:{index}?name=tiles", f"{index}?name=tiles")))


def test_two_benchmarks_do_not_share_a_directory(configure):
    config = configure()
    config.out.mkdir()
    with DirectoryLock(config.out), pytest.raises(EosinError, match="in use by process"):
        run_benchmark(config)


def test_a_full_disk_stops_at_once_and_is_no_failed_cell(configure, monkeypatch):
    calls = []

    def full(*args, **kwargs):
        calls.append(args)
        raise StorageError("cells: no space left on the device")

    with monkeypatch.context() as patch:
        patch.setattr(scoring_module, "write_cell", full)
        with pytest.raises(EosinError, match="no space left"):
            run_benchmark(configure())
    assert len(calls) == 1
    config = configure()
    assert read_failures(config.out) == []
    assert len(run_benchmark(config)) > 1


def test_new_weights_replace_the_old_result(configure, tmp_path, monkeypatch):
    """The same name with other weights is another cell; the page shows the weights of the last call."""
    first = configure(encoders=("net=random:resnet10t?seed=0&size=32",), protocols=("knn",))
    old = run_benchmark(first)[0]
    second = configure(encoders=("net=random:resnet10t?seed=1&size=32",), protocols=("knn",))
    new = run_benchmark(second)[0]
    assert new["fingerprint"] != old["fingerprint"]
    assert [r["key"] for r in read_results(first.out)] == [new["key"]]
    calls = count_calls(monkeypatch, "write_cell")
    run_benchmark(first)
    assert not calls
    assert [r["key"] for r in read_results(first.out)] == [old["key"]]


def test_the_map_shows_test_tiles_with_pictures(configure):
    config = configure(encoders=("color=color:stats",))
    record = run_benchmark(config)[0]
    table = pq.read_table(config.out / record["map"])
    details = json.loads(table.schema.metadata[b"eosin"])
    assert details["shown"] == details["of"] == 18
    assert details["predicted_by"] == "knn"
    predictions = pq.read_table(config.out / record["predictions"])
    said = dict(zip(predictions["name"].to_pylist(), predictions["predicted"].to_pylist(), strict=True))
    truth = dict(zip(predictions["name"].to_pylist(), predictions["truth"].to_pylist(), strict=True))
    for row in table.to_pylist():
        assert row["predicted"] == said[row["name"]]
        assert row["label"] == truth[row["name"]]
        with Image.open(io.BytesIO(row["thumbnail"])) as picture:
            assert (picture.format, picture.size) == ("JPEG", (64, 64))
    assert np.isfinite(table["x"].to_numpy()).all()


@pytest.mark.parametrize(("count", "width"), [(1, 4), (2, 4), (5, 1), (10, 6), (40, 1), (60, 8)])
def test_any_number_of_points_is_laid_out(count, width):
    features = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    points, method = lay_out(features)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert ("t-SNE" in method) == (count >= 30)
    assert np.array_equal(points, lay_out(features)[0])


def test_equal_features_are_laid_out_too():
    points, method = lay_out(np.ones((40, 3), np.float32))
    assert not points.any()
    assert "equal" in method


def test_groups_stay_apart_on_the_map():
    generator = np.random.default_rng(0)
    features = np.concatenate([generator.normal(c, 0.3, size=(40, 8)) for c in (0, 5)]).astype(np.float32)
    points, _ = lay_out(features)
    centers = points[:40].mean(0), points[40:].mean(0)
    nearer = [np.linalg.norm(p - centers[0]) < np.linalg.norm(p - centers[1]) for p in points]
    assert nearer == [True] * 40 + [False] * 40


def test_the_table_shows_value_interval_spread_and_version(configure):
    config = configure(seeds=(0, 1))
    records = run_benchmark(config)
    stream = io.StringIO()
    print_table(records, Console(file=stream, width=150), config.out)
    text = stream.getvalue()
    assert "tiles: 3 classes, intervals by patient" in text
    for record in records:
        assert f"{record['protocol']} v{record['protocol_version']}" in text
    assert text.count("(2)") == 4
    single = io.StringIO()
    print_table(records[:1], Console(file=single, width=150))
    estimate = records[0]["metrics"]["balanced_accuracy"]
    assert f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]" in single.getvalue()
    assert "one seed" in single.getvalue()


def test_the_table_fits_a_narrow_terminal(configure):
    config = configure(seeds=(0, 1), encoders=("an encoder of quite some name=color:stats", "color:histogram"))
    stream = io.StringIO()
    print_table(run_benchmark(config), Console(file=stream, width=80), config.out)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r"\d \[[\d.]+, [\d.]+\] +[\d.]+ +[\d.]+ +[\d.]+ \(2\) +\d+ *\n", text)) == 4


def test_umap_is_a_third_layout_where_it_is_installed(configure, monkeypatch):
    class Umap:
        def __init__(self, **settings):
            assert settings["random_state"] == 0

        def fit_transform(self, components):
            return components[:, :2] + 100.0

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Umap))
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    assert umap_layout(features).min() > 50
    assert umap_layout(features[:10]) is None
    assert umap_layout(np.ones((40, 3), np.float32)) is None
    monkeypatch.setitem(sys.modules, "umap", None)
    assert umap_layout(features) is None
    record = run_benchmark(configure(encoders=("color=color:stats",)))[0]
    assert "umap_x" not in pq.read_table(configure().out / record["map"]).column_names


@pytest.mark.parametrize("name", ["comparisons.jsonl", "leaderboard.jsonl", "ranks.jsonl"])
@pytest.mark.parametrize("damage", ['{"cells": ["a"]}\n{}\n', "{\n{}\n"])
def test_a_damaged_file_that_is_made_from_others_is_made_again(configure, name, damage):
    config = configure()
    run_benchmark(config)
    whole = (config.out / name).read_bytes()
    (config.out / name).write_text(damage)
    run_benchmark(config)
    assert (config.out / name).read_bytes() == whole
