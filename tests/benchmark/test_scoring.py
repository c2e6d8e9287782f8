"""Many fits of one encoder and task in one call: variants, seeds, fractions, settings, and what fails among them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

import eosin.benchmark.scoring as scoring_module
from eosin.benchmark import read_failures, read_results, run_benchmark
from eosin.core.errors import EosinError
from eosin.evaluate import PROTOCOLS, Answer, Prediction, Protocol

CALLS = []


@dataclass(frozen=True)
class Twofold(Protocol):
    """Answers each fit with its training labels' shares; refuses the variant "right" of seed 1."""

    name, version, reference, changes = "twofold", 1, "", {1: "first"}
    variants = ("left", "right")

    smoothing: float = 1.0
    sides: tuple[int, ...] = (1, 2)

    def answers(self, material, fits, variants=None):
        CALLS.append((material, list(fits), list(variants or self.variants)))
        for place in reversed(range(len(fits))):
            fit = fits[place]
            for variant in variants or self.variants:
                if variant == "right" and fit.seed == 1:
                    yield Answer(place, variant, EosinError("seed 1 is left"))
                    continue
                shares = np.bincount(fit.labels[fit.train], minlength=len(material.classes)) + self.smoothing
                yield Answer(place, variant, Prediction(np.tile(shares / shares.sum(), (len(fit.test), 1))))


@pytest.fixture(autouse=True)
def twofold(monkeypatch):
    monkeypatch.setitem(PROTOCOLS._entries, "twofold", Twofold())
    CALLS.clear()


def test_seeds_and_fractions_come_in_one_call_with_the_labels_that_may_be_seen(configure):
    config = configure(encoders=("color=color:stats",), protocols=("twofold:left",), seeds=(0, 1), fractions=(0.5, 1.0))
    records = run_benchmark(config)
    assert len(records) == 4
    ((material, fits, variants),) = CALLS
    assert variants == ["left"]
    assert sorted((fit.seed, fit.fraction) for fit in fits) == [(0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0)]
    for fit in fits:
        learned = np.concatenate([fit.train, fit.val])
        hidden = np.setdiff1d(np.arange(len(fit.labels)), learned)
        assert (fit.labels[hidden] == -1).all()
        assert (fit.labels[learned] >= 0).all()
        assert not np.intersect1d(learned, fit.test).size
    # A seed draws labels of its own, and the smaller share lies inside the larger.
    train = {(fit.seed, fit.fraction): set(fit.train.tolist()) for fit in fits}
    assert all(train[seed, 0.5] < train[seed, 1.0] for seed in (0, 1))
    assert train[0, 0.5] != train[1, 0.5]
    assert len(material.tiles) == len(material.features)
    assert material.encoder.card.spec == "color:stats"
    assert {record["n_train"] for record in records} == {18, 36}


def test_a_name_stands_for_all_variants_and_a_refused_one_is_a_gap(configure):
    config = configure(
        encoders=("color=color:stats", "histogram=color:histogram"), protocols=("twofold",), seeds=(0, 1)
    )
    with pytest.raises(EosinError, match=r"2 of 8 results are missing"):
        run_benchmark(config)
    assert {(r["protocol"], r["seed"]) for r in read_results(config.out)} == {
        ("twofold:left", 0), ("twofold:right", 0), ("twofold:left", 1),
    }  # fmt: skip
    assert {(f["protocol"], f["seed"], f["reason"]) for f in read_failures(config.out)} == {
        ("twofold:right", 1, "seed 1 is left")
    }


def test_only_missing_fits_and_variants_are_asked_for_again(configure):
    run_benchmark(configure(encoders=("color=color:stats",), protocols=("twofold:left",)))
    run_benchmark(configure(encoders=("color=color:stats",), protocols=("twofold",), fractions=(1.0, 0.5)))
    _, fits, variants = CALLS[1]
    assert sorted(fit.fraction for fit in fits) == [0.5, 1.0]
    assert variants == ["left", "right"]
    run_benchmark(configure(encoders=("color=color:stats",), protocols=("twofold",), fractions=(1.0, 0.5)))
    assert len(CALLS) == 2


def test_settings_are_read_shown_and_told_apart(configure):
    config = configure(
        encoders=("color=color:stats",), protocols=("twofold:left", "twofold:left?smoothing=3&sides=4+5")
    )
    records = run_benchmark(config)
    assert [record["protocol"] for record in records] == ["twofold:left", "twofold:left?smoothing=3&sides=4+5"]
    assert len({record["key"] for record in records}) == 2


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("twofold:lefft", r"unknown variant 'lefft'; did you mean 'left'"),
        ("knn:left", r"unknown variant 'left'; 'knn' has no variants"),
        ("knn?kk=3", r"unknown setting 'kk'"),
        ("knn?k", r"'k' is no setting"),
        ("knn?k=three", r"k=three is no int"),
        ("knn?k=0", r"k=0"),
        ("knn?k=3&k=4", r"'k' is given twice"),
        ("twofold?sides=1+x", r"sides=1\+x is no ints joined by '\+'"),
    ],
)
def test_a_wrong_protocol_is_refused_before_anything_is_computed(configure, spec, problem):
    config = configure(protocols=(spec,))
    with pytest.raises(EosinError, match=problem):
        run_benchmark(config)
    assert not config.out.exists()


def test_a_protocol_without_fractions_is_run_on_all_labels_only(configure, monkeypatch):
    monkeypatch.setattr(Twofold, "fractions", False)
    records = run_benchmark(
        configure(encoders=("color=color:stats",), protocols=("twofold:left", "knn"), fractions=(0.5, 1.0))
    )
    assert [(r["protocol"], r["fraction"]) for r in records] == [("twofold:left", 1.0), ("knn", 1.0), ("knn", 0.5)]


def test_changed_pixels_are_embedded_for_the_rows_asked_and_kept(configure, monkeypatch):
    seen = []

    class Darker:
        key = name = "darker"

        def __call__(self, images, rows):
            seen.append(len(images))
            return images // 2

    def answers(self, material, fits, variants=None):
        rows = fits[0].test[::-1].copy()
        changed = [material.embed_changed(rows, Darker()) for _ in range(2)]
        np.testing.assert_array_equal(*changed)
        unchanged = material.features[rows]
        assert (changed[0][:, :3] < unchanged[:, :3]).all()
        seen.append("same")
        yield Answer(0, "left", Prediction(np.full((len(rows), 3), 1 / 3)))

    monkeypatch.setattr(Twofold, "answers", answers)
    run_benchmark(configure(encoders=("color=color:stats",), protocols=("twofold:left",)))
    assert seen == [18, "same"]


def test_precision_reaches_the_pass_and_the_record(configure, monkeypatch):
    asked = []
    real = scoring_module.embed

    def noted(*args, **options):
        asked.append(options["precision"])
        return real(*args, **options)

    monkeypatch.setattr(scoring_module, "embed", noted)
    encoders = ("net=random:resnet10t?size=32",)
    exact, fast = (
        run_benchmark(configure(encoders=encoders, protocols=("knn",), precision=precision))
        for precision in ("fp32", "bf16")
    )
    assert asked == ["fp32", "bf16"]
    assert (exact[0]["precision"], fast[0]["precision"]) == ("fp32", "bf16")
    assert exact[0]["key"] != fast[0]["key"]


def test_jobs_of_an_array_share_a_directory_and_a_last_call_joins_them(configure, tmp_path, monkeypatch):
    encoders = ("color=color:stats", "net=random:resnet10t?size=32")
    whole = run_benchmark(configure(encoders=encoders, out=tmp_path / "whole"))
    config = configure(encoders=encoders)
    for number in range(3):
        assert run_benchmark(configure(encoders=encoders, shard=(number, 3))) == []
        assert not (config.out / "results.jsonl").exists()
    passes = []
    real = type(PROTOCOLS["knn"]).run
    monkeypatch.setattr(type(PROTOCOLS["knn"]), "run", lambda *args: (passes.append(1), real(*args))[1])
    monkeypatch.setattr("eosin.encoders.base.Encoder.normalize", None)  # an encoder that is run now fails
    joined = run_benchmark(config)
    assert passes
    for one, two in zip(whole, joined, strict=True):
        assert (one["key"], one["metrics"]) == (two["key"], two["metrics"])


def test_a_job_of_an_array_tells_what_it_cannot_embed(configure):
    config = configure(encoders=("color=color:stats", "none=random:resnet19"), shard=(0, 2))
    with pytest.raises(EosinError, match=r"resnet19.*the other parts are done"):
        run_benchmark(config)
    assert not (config.out / "failures.jsonl").exists()


def test_a_job_that_can_embed_nothing_says_no_more(configure):
    config = configure(encoders=("none=random:resnet19",), shard=(0, 2))
    with pytest.raises(EosinError, match=r"resnet19") as caught:
        run_benchmark(config)
    assert "are done" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": ("nonsense",)}, "device 'nonsense': write cpu, cuda"),
        ({"devices": ("cuda:77",)}, "device 'cuda:77': .* GPUs are seen here"),
        ({"ray": "nonsense"}, "--ray nonsense: write HOST:PORT"),
        ({"ray": ""}, "write HOST:PORT"),
        ({"ray": "local", "devices": ("cpu",)}, "devices and ray: give one of them"),
    ],
)
def test_places_that_are_none_are_refused_though_all_embeddings_are_there(configure, changes, message):
    config = {"encoders": ("color=color:stats",), "protocols": ("knn",)}
    run_benchmark(configure(**config))
    for shard in (None, (0, 2)):
        with pytest.raises(EosinError, match=message):
            run_benchmark(configure(**config, **changes, shard=shard))


def test_a_protocol_that_forgets_a_cell_leaves_a_gap_not_silence(configure, monkeypatch):
    def answers(self, material, fits, variants=None):
        yield Answer(0, "left", Prediction(np.full((len(fits[0].test), 3), 1 / 3)))

    monkeypatch.setattr(Twofold, "answers", answers)
    config = configure(encoders=("color=color:stats",), protocols=("twofold", "knn"))
    with pytest.raises(EosinError, match=r"1 of 3 results are missing"):
        run_benchmark(config)
    assert [(f["protocol"], f["reason"]) for f in read_failures(config.out)] == [
        ("twofold:right", "protocol 'twofold' gave no answer")
    ]
