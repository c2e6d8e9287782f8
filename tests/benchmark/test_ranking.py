from __future__ import annotations

from eosin.benchmark.ranking import rank_encoders
from eosin.benchmark.reading import read_ranks


def line(encoder, task, value, protocol="knn", fraction=1.0, seed=0, task_hash="t", **more):
    estimate = {"value": value, "low": None, "high": None}
    return {
        "encoder": encoder, "task": task, "protocol": protocol, "fraction": fraction, "seed": seed,
        "task_hash": task_hash,
        "metrics": {"accuracy": estimate, "calibration_error": estimate},
    } | more  # fmt: skip


def test_encoders_are_ranked_by_protocol_over_the_tasks_that_all_have():
    values = {"a": (0.9, 0.8, 0.7), "b": (0.8, 0.9, 0.6), "c": (0.1, 0.2, None)}
    lines = [
        line(name, task, value)
        for name, row in values.items()
        for task, value in zip(("one", "two", "three"), row, strict=True)
    ]
    lines.append(line("a", "one", 0.5, protocol="logistic"))
    (ranking,) = rank_encoders(lines, "accuracy")
    assert (ranking["protocol"], ranking["fraction"], ranking["tasks"]) == ("knn", 1.0, ["one", "two"])
    assert {entry["encoder"]: entry["rank"] for entry in ranking["encoders"]} == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert ranking["critical_difference"] > 0
    (lower,) = rank_encoders(lines, "calibration_error")
    assert lower["encoders"][0] == {"encoder": "c", "rank": 1.0}


def test_encoders_are_ranked_by_the_seeds_and_splits_that_all_of_them_have():
    lines = [line("a", task, 0.6, seed=seed) for task in ("one", "two") for seed in (0, 1)]
    lines += [line("b", "one", 0.7, seed=1), line("b", "two", 0.5, seed=1)]
    # Neither an easy seed nor another split of the task places an encoder.
    lines += [line("b", "two", 0.99, seed=2), line("a", "three", 0.9), line("b", "three", 0.1, task_hash="older")]
    (ranking,) = rank_encoders(lines, "accuracy")
    assert ranking["tasks"] == ["one", "two"]
    assert {entry["encoder"]: entry["rank"] for entry in ranking["encoders"]} == {"a": 1.5, "b": 1.5}
    lines = [line("a", "one", 0.6), line("b", "one", 0.5, seed=1)]
    (ranking,) = rank_encoders(lines, "accuracy")
    assert (ranking["tasks"], ranking["encoders"]) == ([], [])
    assert "no task" in ranking["reason"]


def test_an_older_version_of_a_protocol_is_not_ranked_with_the_newer():
    lines = [
        line(name, task, value, protocol_version=version)
        for task in ("one", "two")
        for name, value, version in (("a", 0.5, 2), ("b", 0.6, 2), ("c", 0.9, 1))
    ]
    (ranking,) = rank_encoders(lines, "accuracy")
    assert [entry["encoder"] for entry in ranking["encoders"]] == ["b", "a"]
    # An encoder that has both versions counts by the newer.
    lines += [line("c", task, 0.1, protocol_version=2) for task in ("one", "two")]
    (ranking,) = rank_encoders(lines, "accuracy")
    assert [entry["encoder"] for entry in ranking["encoders"]] == ["b", "a", "c"]


def test_a_benchmark_writes_its_ranks(configure):
    from eosin.benchmark import run_benchmark

    config = configure()
    run_benchmark(config)
    ranks = read_ranks(config.out)
    assert {entry["protocol"] for entry in ranks} == {"knn", "logistic"}
    assert all([e["encoder"] for e in entry["encoders"]] for entry in ranks)
