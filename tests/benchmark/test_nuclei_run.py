"""Nuclei in whole benchmarks: what is written, how it goes on, how it fails. Trainings are stand-ins, but for one."""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import eosin.benchmark.nuclei_scoring as scoring
from eosin.benchmark import BenchmarkConfig, print_table, read_failures, read_results, run_benchmark
from eosin.benchmark.nuclei_gallery import NUCLEI_SCHEMA
from eosin.benchmark.reading import read_comparisons, read_leaderboard, read_ranks
from eosin.benchmark.record import Record
from eosin.benchmark.table import _brief
from eosin.core.errors import EosinError
from eosin.nuclei.datasets import open_nuclei
from eosin.nuclei.score import score_image, set_scores
from eosin.training.signals import Interrupted

SIDE = 28
PASSING = ("seconds", "created", "command")
COUNTS = {"train": 4, "val": 2, "test": 6}


def write_set(root: Path) -> Path:
    """Write a folder of images with four round nuclei each, of two types."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for side, count in COUNTS.items():
        for place in ("images", "labels", "types"):
            (root / side / place).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros((SIDE, SIDE), dtype=np.uint16)
            for nucleus, (cy, cx) in enumerate([(7, 7), (7, 21), (21, 7), (21, 21)], start=1):
                labels[(y - cy) ** 2 + (x - cx) ** 2 <= generator.integers(14, 26)] = nucleus
            pixels = np.where(labels[..., None] > 0, (90, 50, 140), (230, 170, 210)) + generator.integers(-9, 9)
            types = np.where(labels > 0, 1 + labels % 2, 0)
            for place, array in (("images", pixels), ("labels", labels), ("types", types)):
                kind = np.uint16 if place == "labels" else np.uint8
                Image.fromarray(array.astype(kind)).save(root / side / place / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("nuclei") / "disks")


@pytest.fixture
def configure(folder, tmp_path):
    def make(**changes):
        values = {
            "encoders": ("good=random:test_resnet", "poor=random:test_vit"),
            "tasks": (f"nuclei:folder:{folder}?classes=odd+even",),
            "protocols": ("hovernet:frozen",),
            "out": tmp_path / "bench",
            "workers": 0,
        }
        return BenchmarkConfig.parse(values | changes, "benchmark")

    return make


class StandIn:
    """Takes the place of trainings and networks: the poor encoder finds fewer nuclei."""

    def __init__(self):
        self.trained = []
        self.tested = []
        self.stop_after = None
        self.refuse = ""

    def train(self, config, out, command=""):
        if self.stop_after is not None and len(self.trained) == self.stop_after:
            raise Interrupted(signal.SIGINT, 3)
        if self.refuse and self.refuse in config.network.encoder:
            raise EosinError(f"network.encoder: {config.network.encoder} has no feature maps; choose a network")
        self.trained.append((config, out))
        out.mkdir(parents=True, exist_ok=True)
        (out / "model.safetensors").write_text(config.network.encoder)

    def load(self, path, **_):
        config = next(config for config, out in reversed(self.trained) if out == path)
        classes = ("odd", "even") if config.network.types and "classes" in config.data.source else ()
        return SimpleNamespace(classes=classes, window=104, card=SimpleNamespace(step=7, pq=0.5), config=config)

    def found(self, model, sample):
        self.tested.append(model.config)
        kept = 3 if "resnet" in model.config.network.encoder else 1 + model.config.seed % 2
        instances = np.where(sample.instances <= kept, sample.instances, 0).astype(np.int32)
        return instances, [2, 1, 2][:kept] if model.classes else []


@pytest.fixture
def stand_in(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setattr(scoring, "train_nuclei", stand_in.train)
    monkeypatch.setattr(scoring, "NucleiModel", stand_in)
    monkeypatch.setattr(scoring, "_found", stand_in.found)
    return stand_in


def results(config):
    return [{k: v for k, v in record.items() if k not in PASSING} for record in read_results(config.out)]


def test_records_hold_what_those_of_tiles_hold(configure, stand_in):
    config = configure(seeds=(0, 1), fractions=(1.0, 0.5))
    records = run_benchmark(config, command="eosin benchmark ...")
    assert len(records) == 2 * 2 * 2 == len(stand_in.trained)
    # Each network meets the test images once.
    assert len(stand_in.tested) == len(records) * COUNTS["test"]
    assert records == read_results(config.out)
    order = [(r["encoder"], r["protocol"], -r["fraction"], r["seed"]) for r in records]
    assert order == sorted(order)
    for record in records:
        assert set(record) == set(Record.__annotations__)
        assert json.loads((config.out / "cells" / f"{record['key']}.json").read_text())["metrics"] == record["metrics"]
        assert (record["task"], record["classes"], record["grouping"]) == ("disks", ["odd", "even"], "image")
        assert (record["protocol"], record["protocol_version"]) == ("hovernet:frozen", 3)
        assert record["higher_is_better"]
        assert (record["n_test"], record["n_groups"]) == (6, 6)
        # The share is one of the validation images too.
        assert (record["n_train"], record["n_val"]) == ((4, 2) if record["fraction"] == 1.0 else (2, 1))
        assert record["chosen"] == {"step": 7, "val_pq": 0.5}
        assert record["normalization"]["size"] == 104
        names = {"pq", "aji", "aji_plus", "dice", "dq", "sq", "f_d", "mpq_pannuke", "mpq_image", "mpq_set"}
        assert {*names, "f:odd", "f:even", "pq:odd"} <= record["metrics"].keys()
        for estimate in record["metrics"].values():
            assert estimate.keys() >= {"value", "low", "high"}
        table = pq.read_table(config.out / record["predictions"])
        assert table.num_rows == 6
        assert record["metrics"]["pq"]["value"] == pytest.approx(np.mean(table["pq"].to_pylist()))
        assert pq.read_schema(config.out / record["gallery"]).names == NUCLEI_SCHEMA.names
        assert record["map"] is None
    assert records[0]["metrics"]["pq"]["value"] == pytest.approx(2 * 3 / 7)
    assert not list((config.out / "work").iterdir())
    assert not list(config.out.rglob("*.part"))
    assert read_failures(config.out) == []


def test_a_training_is_what_was_asked_for(configure, stand_in, folder):
    protocols = ("hovernet?recipe=nuclei-small&width=0.1&validation.images=1",)
    config = configure(encoders=("good=random:test_resnet",), protocols=protocols, fractions=(0.5,), seeds=(3,))
    run_benchmark(config)
    frozen, whole = [training for training, _ in stand_in.trained]
    assert (frozen.phases, whole.phases) == (("decoder",), ("decoder", "whole"))
    assert (frozen.seed, frozen.data.fraction, frozen.network.encoder) == (3, 0.5, "random:test_resnet")
    assert (frozen.network.width, frozen.validation.images, frozen.precision) == (0.1, 1, "fp32")
    # At a command line a comma would part tasks.
    assert frozen.data.source == f"folder:{folder}?classes=odd,even"


def test_pairs_are_tested_on_the_same_images(configure, stand_in):
    config = configure(seeds=(0, 1))
    run_benchmark(config)
    (test,) = read_comparisons(config.out)
    assert (test["metric"], test["encoder"], test["reference"]) == ("pq", "good", "poor")
    assert (test["seeds"], test["n_groups"]) == ([0, 1], 6)
    good, poor = 2 * 3 / 7, (2 * 1 / 5 + 2 * 2 / 6) / 2
    assert test["difference"] == pytest.approx(good - poor)
    # All six images agree: two of 2^6 exchanges are as extreme.
    assert test["p"] == test["p_holm"] == 2 / 64
    lines = {line["encoder"]: line["metrics"]["pq"] for line in read_leaderboard(config.out)}
    assert lines["poor"]["value"] == pytest.approx(poor)
    assert lines["poor"]["sd"] == pytest.approx(np.std([2 / 5, 4 / 6], ddof=1))
    assert lines["poor"]["low"] == pytest.approx(poor)
    (ranking,) = read_ranks(config.out)
    assert (ranking["protocol"], ranking["metric"], ranking["tasks"]) == ("hovernet:frozen", "pq", ["disks"])
    assert [entry["encoder"] for entry in ranking["encoders"]] == ["good", "poor"]


def test_a_second_call_computes_nothing(configure, stand_in):
    config = configure()
    run_benchmark(config)
    before = {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()}
    stand_in.trained.clear()
    run_benchmark(config)
    assert stand_in.trained == []
    assert {path: path.read_bytes() for path in config.out.rglob("*") if path.is_file()} == before


def test_a_stopped_benchmark_goes_on_to_the_same_results(configure, stand_in, tmp_path):
    whole = configure(fractions=(1.0, 0.5), out=tmp_path / "whole")
    run_benchmark(whole)
    config = configure(fractions=(1.0, 0.5))
    stand_in.trained.clear()
    stand_in.stop_after = stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(config)
    assert len(read_results(config.out)) == stop_after
    stand_in.stop_after = None
    stand_in.trained.clear()
    run_benchmark(config)
    assert len(stand_in.trained) == 4 - stop_after
    assert results(config) == results(whole)


def test_what_a_kill_after_the_result_left_over_is_removed(configure, stand_in):
    config = configure()
    run_benchmark(config)
    left = stand_in.trained[0][1]
    left.mkdir(parents=True)
    run_benchmark(config)
    assert not left.exists()


def test_other_settings_data_and_weights_are_other_cells(configure, stand_in, folder, tmp_path):
    one = {"encoders": ("good=random:test_resnet",)}
    keys = {run_benchmark(configure(**one))[0]["key"]}
    for change in (
        {"protocols": ("hovernet:frozen?loss.np_dice=2",)},
        {"protocols": ("hovernet:finetune",)},
        {"seeds": (1,)},
        {"fractions": (0.5,)},
        {"precision": "bf16"},
        {"encoders": ("good=random:test_resnet?seed=1",)},
        {"tasks": (f"nuclei:folder:{folder}",)},
        {"tasks": (f"nuclei:folder:{write_set(tmp_path / 'disks')}?classes=odd+odder",)},
    ):
        keys |= {record["key"] for record in run_benchmark(configure(**one | change))}
    assert len(keys) == 9
    # The same files elsewhere are the same.
    stand_in.trained.clear()
    run_benchmark(configure(**one, tasks=(f"nuclei:folder:{tmp_path / 'disks'}?classes=odd+even",)))
    assert stand_in.trained == []


def test_a_label_of_the_test_side_costs_no_training(configure, stand_in, tmp_path):
    """A bad one is told before the first step; one that is mended leaves the run where it is."""
    root = write_set(tmp_path / "disks")
    label = root / "test" / "labels" / "3.png"
    whole = label.read_bytes()
    config = configure(encoders=("good=random:test_resnet",), tasks=(f"nuclei:folder:{root}",))
    Image.new("L", (SIDE - 1, SIDE)).save(label)
    with pytest.raises(EosinError):
        run_benchmark(config)
    assert stand_in.trained == []
    assert "test/labels/3.png: the label map is 27x28 px" in read_failures(config.out)[0]["reason"]
    places, keys = [], []
    for change in (whole, (root / "test" / "labels" / "2.png").read_bytes()):
        label.write_bytes(change)
        keys.append(run_benchmark(config)[0]["key"])
        places.append(stand_in.trained[-1][1])
    assert len(set(keys)) == 2
    assert len(set(places)) == 1
    # What is learned from is another training.
    (root / "train" / "labels" / "0.png").write_bytes(label.read_bytes())
    run_benchmark(config)
    assert stand_in.trained[-1][1] != places[0]


def test_a_run_of_before_is_taken_over(configure, stand_in, monkeypatch):
    """Its folder was named by the whole set."""
    config = configure(encoders=("good=random:test_resnet",))
    with monkeypatch.context() as patch:
        patch.setattr(scoring.NucleiWork, "_folder", lambda work, cell: work._place(work.keys()[cell]))
        patch.setattr(scoring, "save_cell", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_benchmark(config)
    (old,) = (config.out / "work").iterdir()
    (old / "checkpoint").touch()
    there = []
    train = stand_in.train

    def noted(training, out, command=""):
        there.append((out / "checkpoint").exists())
        train(training, out, command)

    monkeypatch.setattr(scoring, "train_nuclei", noted)
    run_benchmark(config)
    assert there == [True]
    assert not list((config.out / "work").iterdir())


def test_an_encoder_that_fails_leaves_a_gap_and_the_rest_goes_on(configure, stand_in, index):
    stand_in.refuse = "vit"
    config = configure(
        encoders=("poor=random:test_vit", "good=random:test_resnet"),
        tasks=(*configure().tasks, f"csv:{index}?name=tiles"),
        protocols=("knn", "hovernet:frozen"),
    )
    with pytest.raises(EosinError, match="1 of 4 results are missing"):
        run_benchmark(config)
    (failure,) = read_failures(config.out)
    assert (failure["encoder"], failure["task"], failure["protocol"]) == ("poor", "disks", "hovernet:frozen")
    assert "has no feature maps" in failure["reason"]
    records = read_results(config.out)
    pairs = {(record["encoder"], record["task"], record["protocol"]) for record in records}
    # knn is not asked of nuclei, nor hovernet of tiles.
    assert pairs == {("poor", "tiles", "knn"), ("good", "disks", "hovernet:frozen"), ("good", "tiles", "knn")}
    assert {c["metric"] for c in read_comparisons(config.out)} == {"balanced_accuracy"}
    console = Console(width=100, record=True, file=io.StringIO())
    print_table(records, console, config.out)
    text = console.export_text()
    assert "disks: nuclei of 2 types, intervals by image" in text
    assert "PQ [95 %]" in text
    assert "balanced accuracy [95 %]" in text


def test_a_call_in_which_nothing_fits_is_one_line(configure, stand_in):
    with pytest.raises(EosinError, match="no protocol fits a task: nuclei:folder.* add it to --protocols"):
        run_benchmark(configure(protocols=("knn", "logistic")))
    with pytest.raises(EosinError, match="images.*no such folder"):
        run_benchmark(configure(tasks=("nuclei:folder:/tmp",), encoders=("a=random:test_vit",)))


def test_fine_tuning_goes_on_where_the_frozen_variant_ended(configure, stand_in):
    """Each right after the other, in its folder; settings that differ begin anew."""
    config = configure(
        encoders=("good=random:test_resnet",),
        protocols=("hovernet", "hovernet:finetune?lr=0.5"),
        fractions=(0.5, 1.0),
    )
    given = []
    train = stand_in.train

    def noted(training, out, command=""):
        given.append(
            (training.phases, training.data.fraction, training.whole.lr, sorted(p.name for p in out.glob("*")))
        )
        train(training, out, command)

    scoring.train_nuclei = noted  # the fixture puts the real one back
    run_benchmark(config)
    both = ("decoder", "whole")
    assert given == [
        (phases, fraction, lr, found)
        for fraction in (0.5, 1.0)
        for phases, lr, found in ((("decoder",), 1e-4, []), (both, 1e-4, ["config.yaml"]), (both, 0.5, []))
    ]
    assert not list((config.out / "work").iterdir())


def test_jobs_of_an_array_share_the_trainings(configure, stand_in):
    config = configure(protocols=("hovernet",))
    for part in range(2):
        run_benchmark(configure(protocols=("hovernet",), shard=(part, 2)))
        assert len(stand_in.trained) == 2 * (part + 1)
    assert len({out for _, out in stand_in.trained}) == 4
    assert stand_in.tested == []
    assert len(run_benchmark(config)) == 4


def test_one_real_training_is_scored_as_the_functions_of_nuclei_score_it(configure, folder, monkeypatch):
    settings = "recipe=nuclei-small&width=0.03&window=104&samples=1&batch_size=1&types=false&validation.images=1"
    kept = []
    real = scoring.NucleiModel.load

    def load(path, **options):
        kept.append(real(path, **options))
        return kept[-1]

    monkeypatch.setattr(scoring.NucleiModel, "load", load)
    config = configure(encoders=("vit=random:test_vit",), protocols=(f"hovernet:frozen?{settings}",))
    (record,) = run_benchmark(config)
    (model,) = kept
    assert record["classes"] == []
    assert record["chosen"] == {"step": 1, "val_pq": model.card.pq}
    scores = []
    for image in open_nuclei(f"folder:{folder}").of("test"):
        sample = image.read()
        found, _ = scoring._found(model, sample)
        scores.append(score_image(image.name, sample.instances, found, group=image.group))
    assert record["metrics"] == set_scores(scores, seed=0)
    assert not list((config.out / "work").iterdir())


def test_long_settings_stand_once_below_the_table():
    long = [
        "hovernet:frozen?epochs=20&width=0.5",
        "hovernet:frozen?epochs=40&width=0.5",
        "eva?patience=7&batch=128&rates=0.1",
    ]
    names = _brief(["knn", *long])
    assert list(names.values()) == ["knn", "hovernet:frozen?…1", "hovernet:frozen?…2", "eva?…"]


def test_settings_of_what_is_not_printed_are_not(configure, stand_in):
    long = "hovernet:frozen?epochs=20&width=0.5"
    config = configure(encoders=("good=random:test_resnet",), protocols=(long,))
    (record,) = run_benchmark(config)
    folded = [{**record, "protocol": f"{long}&variant:{n}", "key": f"k{n}"} for n in range(5)]
    stream = io.StringIO()
    print_table([record], Console(file=stream, width=100), config.out)
    assert stream.getvalue().count("epochs=20, width=0.5") == 1
    stream = io.StringIO()
    print_table(folded, Console(file=stream, width=100), config.out)
    assert "5 results of hovernet" in stream.getvalue()
    assert "epochs=20, width=0.5" not in stream.getvalue()
