"""Pooling over seeds against plain loops."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosin.benchmark.pooling import compare, leaderboard, pool
from eosin.core.errors import EosinError
from eosin.evaluate import Predicted, holm, paired_test
from eosin.evaluate.predictions import load_predictions

CLASSES = ["b", "a"]


def cell(out, encoder, seed, *, right, images=40, groups=8, grouping="patient", protocol="knn", first=0, task_hash="t"):
    (out / "predictions").mkdir(exist_ok=True)
    truth = np.arange(first, first + images) % 2
    generator = np.random.default_rng([seed, *encoder.encode()])
    hit = generator.random(images) < right
    score = np.where(hit, 0.9, 0.2) + generator.random(images) * 0.05
    probabilities = np.where((truth == 0)[:, None], np.stack([score, 1 - score], 1), np.stack([1 - score, score], 1))
    key = f"{encoder}-{protocol}-{seed}"
    names = [f"i{n}" for n in range(first, first + images)]
    table = {
        "name": names,
        "group": [f"g{n % groups}" for n in range(first, first + images)] if grouping != "image" else names,
        "truth": [CLASSES[t] for t in truth],
        "predicted": [CLASSES[p] for p in probabilities.argmax(1)],
        "p_a": probabilities[:, 1],
        "p_b": probabilities[:, 0],
    }
    pq.write_table(pa.table(table), out / "predictions" / f"{key}.parquet")
    value = float(np.mean([(probabilities.argmax(1) == truth)[truth == c].mean() for c in (0, 1)]))
    return {
        "key": key, "encoder": encoder, "task": "t", "protocol": protocol, "fraction": 1.0, "seed": seed,
        "task_hash": task_hash, "classes": CLASSES, "grouping": grouping, "n_test": images,
        "predictions": f"predictions/{key}.parquet",
        "metrics": {"balanced_accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}},
    }  # fmt: skip


def test_predictions_come_back_in_the_records_class_order(tmp_path):
    record = cell(tmp_path, "m", 0, right=1.0, images=4)
    found = load_predictions(tmp_path, record)
    assert list(found.truth) == [0, 1, 0, 1]
    assert np.asarray(found.probabilities)[0, 0] > 0.8
    assert list(found.groups) == ["g0", "g1", "g2", "g3"]
    assert load_predictions(tmp_path, record | {"grouping": "image"}).groups is None


def test_missing_or_foreign_predictions_are_named(tmp_path):
    record = cell(tmp_path, "m", 0, right=1.0)
    with pytest.raises(EosinError, match=r"m-knn-0\.parquet: unreadable"):
        load_predictions(tmp_path, record | {"classes": ["b", "c"]})
    (tmp_path / record["predictions"]).write_bytes(b"PAR1 no")
    with pytest.raises(EosinError, match="unreadable"):
        load_predictions(tmp_path, record)
    (tmp_path / record["predictions"]).unlink()
    with pytest.raises(EosinError, match="not found"):
        load_predictions(tmp_path, record)


def test_one_seed_keeps_its_own_interval(tmp_path):
    record = cell(tmp_path, "m", 0, right=0.8)
    assert pool(tmp_path, [record])["metrics"] == record["metrics"]


def test_several_seeds_are_averaged_and_share_one_drawing_of_patients(tmp_path):
    records = [cell(tmp_path, "m", seed, right=0.8) for seed in (0, 1, 2)]
    entry = pool(tmp_path, records)["metrics"]["balanced_accuracy"]
    values = [r["metrics"]["balanced_accuracy"]["value"] for r in records]
    assert entry["value"] == pytest.approx(np.mean(values))
    assert entry["sd"] == pytest.approx(np.std(values, ddof=1))

    generator = np.random.default_rng(9)
    rows = [pq.read_table(tmp_path / r["predictions"]).to_pylist() for r in records]
    draws = []
    for _ in range(3000):
        drawn = [f"g{n}" for n in generator.integers(0, 8, 8)]
        seeds = []
        for seed in rows:
            sample = [row for group in drawn for row in seed if row["group"] == group]
            recalls = [
                np.mean([row["predicted"] == c for row in sample if row["truth"] == c])
                for c in CLASSES
                if any(row["truth"] == c for row in sample)
            ]
            seeds.append(np.mean(recalls))
        draws.append(np.mean(seeds))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert (entry["low"], entry["high"]) == pytest.approx((low, high), abs=0.02)


def test_repeating_a_seed_does_not_narrow_the_interval(tmp_path):
    """Three identical seeds are one experiment: images met three times are still one image."""
    one = cell(tmp_path, "m", 0, right=0.7, grouping="image")
    copies = [one | {"seed": seed} for seed in (0, 1, 2)]
    two = pool(tmp_path, copies[:2])["metrics"]["balanced_accuracy"]
    three = pool(tmp_path, copies)["metrics"]["balanced_accuracy"]
    assert (two["low"], two["high"]) == pytest.approx((three["low"], three["high"]), abs=0.02)
    assert three["high"] - three["low"] > 0.15
    assert three["sd"] == pytest.approx(0.0, abs=1e-12)


def test_the_leaderboard_takes_over_unchanged_lines_only(tmp_path):
    records = [cell(tmp_path, "m", seed, right=0.8) for seed in (0, 1)]
    lines = leaderboard(tmp_path, records)
    mark = {"marked": {"value": 0.5, "low": None, "high": None}}
    marked = [line | {"metrics": mark} for line in lines]
    (tmp_path / "leaderboard.jsonl").write_text("".join(json.dumps(line) + "\n" for line in marked))
    assert leaderboard(tmp_path, records)[0]["metrics"] == mark
    changed = [records[0], records[1] | {"key": "other"}]
    assert "balanced_accuracy" in leaderboard(tmp_path, changed)[0]["metrics"]


def test_all_pairs_are_tested_and_corrected_together(tmp_path):
    rates = {"good": 0.95, "fair": 0.7, "poor": 0.5}
    records = [cell(tmp_path, name, seed, right=rate) for name, rate in rates.items() for seed in (0, 1)]
    found = compare(tmp_path, records, "balanced_accuracy", [])
    assert [(c["encoder"], c["reference"]) for c in found] == [("good", "fair"), ("good", "poor"), ("fair", "poor")]
    assert [c["p_holm"] for c in found] == pytest.approx(holm([c["p"] for c in found]))
    assert found[0]["seeds"] == [0, 1]

    def predicted(name):
        found = [load_predictions(tmp_path, r) for r in records if r["encoder"] == name]
        return [Predicted(p.names, p.truth, p.probabilities, p.groups) for p in found]

    plain = paired_test(predicted("good"), predicted("poor"))
    assert (found[1]["difference"], found[1]["p"]) == (plain.difference, plain.p)
    # Stored tests are taken over, and the correction follows the present family.
    again = compare(tmp_path, records[:4], "balanced_accuracy", [c | {"low": -9.0} for c in found])
    assert [c["low"] for c in again] == [-9.0]
    assert again[0]["p_holm"] == again[0]["p"]


def test_only_the_same_split_and_seed_is_compared(tmp_path):
    one = cell(tmp_path, "a", 0, right=0.9)
    assert compare(tmp_path, [one, cell(tmp_path, "b", 1, right=0.5)], "balanced_accuracy", []) == []
    assert compare(tmp_path, [one, cell(tmp_path, "b", 0, right=0.5, task_hash="u")], "balanced_accuracy", []) == []
    # The records agree but the images do not: unreadable tiles of one machine, say.
    assert compare(tmp_path, [one, cell(tmp_path, "b", 0, right=0.5, first=4)], "balanced_accuracy", []) == []


def test_a_family_is_one_task_protocol_and_fraction(tmp_path):
    records = []
    for fraction in (0.1, 1.0):
        for name, right in (("a", 0.95), ("b", 0.6)):
            record = cell(tmp_path, name, 0, right=right, protocol=f"knn{fraction:g}", groups=40)
            records.append(record | {"protocol": "knn", "fraction": fraction})
    records += [record | {"task": "other", "key": "other-" + record["key"]} for record in records]
    found = compare(tmp_path, records, "balanced_accuracy", [])
    assert [(c["task"], c["fraction"]) for c in found] == [("t", 0.1), ("t", 1.0), ("other", 0.1), ("other", 1.0)]
    # One pair each: nothing to correct for.
    assert all((c["encoder"], c["reference"]) == ("a", "b") and c["p_holm"] == c["p"] for c in found)


def test_seeds_of_an_older_version_are_neither_averaged_nor_compared_with_the_newer(tmp_path):
    older = cell(tmp_path, "m", 0, right=0.99) | {"protocol_version": 1}
    newer = [cell(tmp_path, "m", seed, right=0.6) | {"protocol_version": 2} for seed in (1, 2)]
    other = [cell(tmp_path, "n", seed, right=0.8) | {"protocol_version": 2} for seed in (0, 1, 2)]
    standing = leaderboard(tmp_path, [older, *newer, *other])[0]
    assert standing["seeds"] == [1, 2]
    values = [record["metrics"]["balanced_accuracy"]["value"] for record in newer]
    assert standing["metrics"]["balanced_accuracy"]["value"] == pytest.approx(np.mean(values), abs=1e-12)
    (test,) = compare(tmp_path, [older, *newer, *other], "balanced_accuracy", [])
    assert test["seeds"] == [1, 2]
    alone = [cell(tmp_path, "o", seed, right=0.9) | {"protocol_version": 1} for seed in (0, 1, 2)]
    tests = compare(tmp_path, [*newer, *other, *alone], "balanced_accuracy", [])
    assert [(t["encoder"], t["reference"]) for t in tests] == [("m", "n")]
    assert len(leaderboard(tmp_path, [*newer, *other, *alone])) == 3


def test_predictions_that_cannot_be_read_are_told_once_and_the_others_compared(tmp_path, capsys):
    records = [cell(tmp_path, name, seed, right=0.8) for name in ("one", "two", "three") for seed in (0, 1)]
    broken = tmp_path / records[3]["predictions"]  # of "two"
    broken.write_bytes(b"PAR1 no")
    entry = pool(tmp_path, records[2:4])["metrics"]["balanced_accuracy"]
    assert (entry["low"], entry["high"]) == (None, None)
    assert entry["value"] == pytest.approx(np.mean([r["metrics"]["balanced_accuracy"]["value"] for r in records[2:4]]))
    told = " ".join(capsys.readouterr().err.split())
    assert "no interval over the seeds of two" in told
    assert "two-knn-1.parquet: unreadable" in told
    found = compare(tmp_path, records, "balanced_accuracy", [])
    assert [(c["encoder"], c["reference"]) for c in found] == [("one", "three")]
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("encoders were not compared: ") == 1
    assert "two-knn-1.parquet: unreadable" in told
