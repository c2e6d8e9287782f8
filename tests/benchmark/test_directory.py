"""What lies in a directory already is not overwritten, and what is damaged there is made again."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest

from eosin.benchmark import read_results, run_benchmark
from eosin.benchmark.maps import read_predictions
from eosin.core.errors import EosinError

COLOR = {"encoders": ("color=color:stats",), "protocols": ("knn",)}


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@pytest.mark.parametrize("text", ['{"accuracy": 0.9}\n', "[1]\n", "no JSON at all\n", '{"key": ["x"]}\n'])
def test_somebody_elses_results_are_not_overwritten(configure, text):
    config = configure(**COLOR)
    config.out.mkdir()
    (config.out / "results.jsonl").write_text(text)
    with pytest.raises(EosinError, match=r"results\.jsonl holds results whose cells/ are not there; copy cells/"):
        run_benchmark(config)
    assert [path.name for path in config.out.iterdir()] == ["results.jsonl"]
    assert (config.out / "results.jsonl").read_text() == text


def test_results_whose_cells_are_gone_are_not_dropped(configure):
    config = configure(**COLOR)
    run_benchmark(config)
    shutil.rmtree(config.out / "cells")
    before = contents(config.out)
    with pytest.raises(EosinError, match="choose another --out"):
        run_benchmark(configure(encoders=("histogram=color:histogram",), protocols=("knn",)))
    assert contents(config.out) == before


def test_one_cell_that_is_gone_is_enough(configure):
    config = configure(encoders=("color=color:stats",))
    key = run_benchmark(config)[0]["key"]
    (config.out / "cells" / f"{key}.json").unlink()
    with pytest.raises(EosinError, match="copy cells/"):
        run_benchmark(config)


@pytest.mark.parametrize("damage", ["cut", "gone", "twice"])
def test_damaged_results_with_all_cells_are_rebuilt(configure, damage):
    config = configure(encoders=("color=color:stats",))
    run_benchmark(config)
    path = config.out / "results.jsonl"
    whole = path.read_text()
    path.write_text({"cut": whole[:-20], "gone": "", "twice": whole + whole}[damage])
    run_benchmark(config)
    assert path.read_text() == whole


@pytest.mark.parametrize("names", [("notes.txt",), ("quarantine.jsonl", "config.yaml"), ("run/a", "b")])
def test_a_folder_of_other_files_is_left_alone(configure, names):
    config = configure(**COLOR)
    for name in names:
        (config.out / name).parent.mkdir(parents=True, exist_ok=True)
        (config.out / name).write_text("mine")
    before = contents(config.out)
    for changes in ({}, {"shard": (0, 2)}):
        with pytest.raises(EosinError, match="bench: holds other files; choose another --out"):
            run_benchmark(configure(**COLOR, **changes))
    assert contents(config.out) == before


@pytest.mark.parametrize("name", [".lock", "embeddings/x.safetensors", "work/x", "tissue/index.csv"])
def test_what_a_stopped_call_or_the_demo_leaves_is_no_obstacle(configure, name):
    config = configure(**COLOR)
    (config.out / name).parent.mkdir(parents=True)
    (config.out / name).write_text("")
    run_benchmark(config)
    assert json.loads((config.out / "results.jsonl").read_text()) == read_results(config.out)[0]


def test_a_cell_without_what_readers_need_is_computed_anew(configure, capsys):
    config = configure(encoders=("color=color:stats",))
    records = run_benchmark(config)
    expected = [record["metrics"] for record in records]
    for record, change in zip(records, ({"metrics": None}, {"task_hash": 5}), strict=True):
        (config.out / "cells" / f"{record['key']}.json").write_text(json.dumps(record | change))
    assert [record["metrics"] for record in run_benchmark(config)] == expected
    assert capsys.readouterr().err.replace("\n", "").count("computing this cell again") == 2


def test_damaged_predictions_maps_and_galleries_heal(configure, capsys):
    config = configure(encoders=("color=color:stats",))
    records = run_benchmark(config)
    first = records[0]
    whole = {name: (config.out / name).read_bytes() for name in (first["map"], first["gallery"])}
    predicted = pq.read_table(config.out / first["predictions"])
    cut = (config.out / first["predictions"]).read_bytes()[:-30]
    (config.out / first["predictions"]).write_bytes(cut)
    pq.write_table(predicted.drop_columns(["p_c"]), config.out / records[1]["predictions"])
    (config.out / first["map"]).unlink()
    run_benchmark(config)
    assert pq.read_table(config.out / first["predictions"]).equals(predicted)
    assert "p_c" in pq.read_schema(config.out / records[1]["predictions"]).names
    assert capsys.readouterr().err.replace("\n", "").count("computing this cell again") == 2
    (config.out / first["map"]).write_bytes(whole[first["map"]][:-30])
    (config.out / first["gallery"]).unlink()
    assert run_benchmark(config)[0]["gallery"] == first["gallery"]
    assert {name: (config.out / name).read_bytes() for name in whole} == whole


def test_predictions_that_are_damaged_inside_are_named(configure, capsys):
    config = configure(**COLOR)
    record = run_benchmark(config)[0]
    path = config.out / record["predictions"]
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 200 + content[204:])
    (config.out / record["map"]).unlink()
    run_benchmark(config)
    told = capsys.readouterr().err.replace("\n", "")
    assert "no map or gallery of color on tiles" in told
    assert "remove it and run the same command again" in " ".join(told.split())
    with pytest.raises(EosinError, match=r"parquet: unreadable \("):
        read_predictions(path)


def test_damaged_failures_are_written_again(configure, capsys):
    config = configure(**COLOR)
    run_benchmark(config)
    (config.out / "failures.jsonl").write_text('{"encoder": "a"')
    run_benchmark(config)
    assert not (config.out / "failures.jsonl").exists()
    assert "line 1 is damaged" in " ".join(capsys.readouterr().err.split())
