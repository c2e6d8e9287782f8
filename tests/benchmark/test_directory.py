"""What lies in a directory already is not overwritten, and what is damaged there is made again."""

from __future__ import annotations

import json
import shutil

import pytest

from eosin.benchmark import read_results, run_benchmark
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
    with pytest.raises(EosinError, match="or choose another --out"):
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
