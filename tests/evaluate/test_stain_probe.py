"""The stain-shift probe: its numbers from plain computations, what it may not see, and what it does again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from eosin.cli import main
from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.core.files import DirectoryLock
from eosin.encoders import load_encoder
from eosin.evaluate import PROTOCOLS, FeatureProtocol, Prediction, embed, evaluate, probe_data, stain_probe
from eosin.evaluate.predictions import load_predictions
from eosin.evaluate.stain_probe import StainProbeConfig
from eosin.evaluate.stain_shift import SHIFTS, Restaining, Shift
from eosin.tasks import open_task

CLASSES = "abc"
SIZE = 16


def write_tiles(folder: Path, patients: int = 20, seed: int = 1) -> Path:
    """Write three classes of pink tiles that differ a little in color, six tiles a patient."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    lines = ["file,label,patient,split"]
    for number in range(6 * patients):
        patient = number // 6
        color = np.array([170, 110, 150]) + np.eye(3)[number % 3] * 22 + generator.normal(0, 13, 3)
        tile = color + generator.normal(0, 20, (SIZE, SIZE, 3))
        name = f"tile-{number:03d}.png"
        Image.fromarray(tile.clip(0, 255).astype(np.uint8)).save(folder / name)
        lines.append(f"{name},{CLASSES[number % 3]},p{patient},{('train', 'train', 'val', 'test')[patient % 4]}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder / "index.csv"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiles(tmp_path_factory.mktemp("tiles"))


@pytest.fixture
def configure(index: Path, tmp_path: Path) -> Callable[..., StainProbeConfig]:
    def make(**changes: object) -> StainProbeConfig:
        values = {
            "encoders": (f"color=color:stats?size={SIZE}",),
            "task": f"csv:{index}?name=tiles",
            "shifts": ("hed-light", "eosin+"),
            "out": tmp_path / "out",
            "workers": 0,
        }
        return StainProbeConfig.parse(values | changes, "stain probe")

    return make


def by_shift(records: list[dict]) -> dict[str, dict]:
    return {record["shift"]: record for record in records}


def pixels_of(index: Path, names) -> torch.Tensor:
    tiles = [np.asarray(Image.open(index.parent / name)).transpose(2, 0, 1) for name in names]
    return torch.from_numpy(np.stack(tiles))


def test_the_numbers_are_those_of_a_plain_computation(configure, index):
    config = configure()
    records = by_shift(stain_probe.run_stain_probe(config)[0])
    assert list(records) == ["none", "hed-light", "eosin+"]
    task = open_task(config.task)
    encoder = load_encoder(f"color:stats?size={SIZE}").eval()

    def features(images: torch.Tensor) -> np.ndarray:
        return encoder(encoder.normalize(images)).numpy().astype(np.float64)

    names = np.asarray(task.tiles.names)
    train, test = features(pixels_of(index, names[task.train])), pixels_of(index, names[task.test])
    mean, std = train.mean(axis=0), train.std(axis=0)
    model = LogisticRegression(C=records["none"]["chosen"]["C"], max_iter=10_000, tol=1e-10)
    model.fit((train - mean) / std, task.labels[task.train])
    truth = task.labels[task.test]
    plain = model.predict((features(test) - mean) / std)
    own = features(test)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    apart = 1 - own @ own.T
    between = apart[~np.eye(len(own), dtype=bool)].mean()
    for name, record in records.items():
        # Positions are rows of the whole task.
        images = Restaining(SHIFTS[name], 0, task.test)(test, np.arange(len(test)))
        moved = features(images)
        predicted = model.predict((moved - mean) / std)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        distance = 1 - (moved * own).sum(axis=1)
        itself = ((1 - moved @ own.T).argmin(axis=1) == np.arange(len(own))).mean()
        expected = {
            "accuracy": accuracy_score(truth, predicted),
            "balanced_accuracy": balanced_accuracy_score(truth, predicted),
            "accuracy_loss": accuracy_score(truth, plain) - accuracy_score(truth, predicted),
            "distance": distance.mean(),
            "between": between,
            "movement": distance.mean() / between,
            "recognized": itself,
        }
        expected["balanced_accuracy_loss"] = balanced_accuracy_score(truth, plain) - expected["balanced_accuracy"]
        values = {metric: entry["value"] for metric, entry in record["metrics"].items()}
        assert values == pytest.approx(expected, abs=1e-6)
        low, high = paired_interval(plain == truth, predicted == truth, task.groups[task.test])
        loss = record["metrics"]["accuracy_loss"]
        assert (loss["low"], loss["high"]) == pytest.approx((low, high))
    assert records["hed-light"]["metrics"]["movement"]["value"] > 0.01
    assert records["hed-light"]["metrics"]["accuracy_loss"]["value"] != 0


def paired_interval(before: np.ndarray, after: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Draw patients, and take the difference of the accuracies of their tiles."""
    units = np.unique(groups)
    values = []
    for drawn in np.random.default_rng(stream_seed(0, "bootstrap")).integers(0, len(units), size=(1000, len(units))):
        rows = np.concatenate([np.flatnonzero(groups == units[number]) for number in drawn])
        values.append(before[rows].mean() - after[rows].mean())
    low, high = np.percentile(values, [2.5, 97.5])
    return low, high


def test_unshifted_scores_are_those_of_evaluate(configure):
    config = configure(shifts=(), encoders=("random:resnet10t?size=32",))
    (record,) = stain_probe.run_stain_probe(config)[0]
    task = open_task(config.task)
    result = evaluate(probe_data(task, embed(load_encoder("random:resnet10t?size=32"), task.tiles)), "logistic")
    for name in ("accuracy", "balanced_accuracy"):
        assert record["metrics"][name] == pytest.approx(result.metrics[name])
    assert record["chosen"] == result.chosen
    assert record["grouping"] == "patient"
    assert record["n_groups"] == 5
    found = load_predictions(config.out, record)
    np.testing.assert_allclose(found.probabilities, result.predicted.probabilities, atol=1e-12)
    assert list(found.groups) == list(result.predicted.groups)


class Unchanged:
    def sample(self, draws, images):
        return {}

    def apply(self, images, parameters):
        return images


def test_a_shift_that_changes_nothing_moves_and_loses_nothing(configure, monkeypatch):
    monkeypatch.setitem(SHIFTS._entries, "same", Shift("same", 1, "the same pixels, by way of floats", Unchanged()))
    records = by_shift(stain_probe.run_stain_probe(configure(shifts=("same",)))[0])
    for name in ("none", "same"):
        metrics = records[name]["metrics"]
        for metric, value in (("distance", 0), ("movement", 0), ("recognized", 1), ("balanced_accuracy_loss", 0)):
            assert (metrics[metric]["value"], metrics[metric]["low"], metrics[metric]["high"]) == (value,) * 3
        assert metrics["accuracy_loss"]["p"] == 1
    assert records["same"]["metrics"]["accuracy"] == records["none"]["metrics"]["accuracy"]


def test_batches_and_workers_do_not_matter(configure, tmp_path):
    found = []
    for number, (batch_size, workers) in enumerate([(64, 0), (7, 1), (1, 0)]):
        config = configure(batch_size=batch_size, workers=workers, out=tmp_path / str(number), shifts=("hed-strong",))
        records = stain_probe.run_stain_probe(config)[0]
        found.append([(record["key"], record["metrics"]) for record in records])
    for other in found[1:]:
        for (key, metrics), (other_key, other_metrics) in zip(found[0], other, strict=True):
            assert key == other_key
            for name in metrics:
                assert other_metrics[name] == pytest.approx(metrics[name], abs=1e-6)


def test_test_labels_change_no_prediction_and_no_movement(configure, tmp_path):
    before = by_shift(stain_probe.run_stain_probe(configure())[0])
    other = write_tiles(tmp_path / "other")
    lines = other.read_text().splitlines()
    turned = {"a": "b", "b": "c", "c": "a"}
    for number, line in enumerate(lines):
        name, label, patient, split = line.split(",")
        if split == "test":
            lines[number] = ",".join([name, turned[label], patient, split])
    other.write_text("\n".join(lines) + "\n")
    config = configure(task=f"csv:{other}?name=tiles", out=tmp_path / "second")
    after = by_shift(stain_probe.run_stain_probe(config)[0])
    for name, record in before.items():
        assert after[name]["chosen"] == record["chosen"]
        for metric in ("distance", "between", "movement", "recognized"):
            assert after[name]["metrics"][metric] == record["metrics"][metric]
        assert after[name]["metrics"]["accuracy"] != record["metrics"]["accuracy"]
        one, two = load_predictions(tmp_path / "out", record), load_predictions(tmp_path / "second", after[name])
        np.testing.assert_array_equal(one.probabilities, two.probabilities)


class Watched(FeatureProtocol):
    """A protocol that notes what it was handed."""

    name, version, reference, changes = "watched", 1, "", {}

    def run(self, features, labels, classes, train, val, test, groups=None, seed=0):
        self.labels, self.rows, self.features, self.groups = labels, (train, val, test), features, groups
        return Prediction(np.full((len(test), len(classes)), 1 / len(classes)), {})


def test_the_protocol_sees_no_test_label_and_no_restained_tile_to_fit_on(configure, monkeypatch):
    watched = Watched()
    monkeypatch.setitem(PROTOCOLS._entries, "watched", watched)
    config = configure(protocol="watched")
    stain_probe.run_stain_probe(config)
    task = open_task(config.task)
    train, val, test = watched.rows
    assert (train.tolist(), val.tolist()) == (task.train.tolist(), task.val.tolist())
    assert set(test.tolist()).isdisjoint([*train, *val])
    hidden = np.setdiff1d(np.arange(len(watched.labels)), np.concatenate([train, val]))
    assert (watched.labels[hidden] == -1).all()
    np.testing.assert_array_equal(watched.labels[train], task.labels[train])
    # As they are, and under each of the two shifts; each with its patient.
    assert len(test) == 3 * len(task.test)
    np.testing.assert_array_equal(watched.groups[test], np.tile(task.groups[task.test], 3))
    np.testing.assert_array_equal(watched.features[test[: len(task.test)]], watched.features[task.test])


def test_restained_tiles_change_nothing_that_is_fitted(configure, tmp_path):
    few = by_shift(stain_probe.run_stain_probe(configure(shifts=("eosin+",), out=tmp_path / "few"))[0])
    many = by_shift(stain_probe.run_stain_probe(configure(shifts=("hed-strong", "hed-light", "eosin+")))[0])
    for name in ("none", "eosin+"):
        assert many[name]["chosen"] == few[name]["chosen"]
        for metric, entry in few[name]["metrics"].items():
            assert many[name]["metrics"][metric] == pytest.approx(entry, abs=1e-12)


def test_what_is_done_is_not_done_again(configure, monkeypatch):
    config = configure(seeds=(0, 1))
    first, summary = stain_probe.run_stain_probe(config)
    lines = [json.loads(line) for line in (config.out / "shift.jsonl").read_text().splitlines()]
    assert lines == first
    called = []
    monkeypatch.setattr(
        stain_probe, "embed", lambda *given, **options: called.append(options) or embed(*given, **options)
    )
    assert stain_probe.run_stain_probe(config) == (first, summary)
    assert not called
    more, _ = stain_probe.run_stain_probe(configure(seeds=(0, 1), shifts=("eosin+", "hematoxylin-")))
    assert [options["change"].name for options in called if "change" in options] == ["hematoxylin-"] * 2
    assert [record["shift"] for record in more] == ["none", "eosin+", "hematoxylin-"] * 2
    kept = {record["key"]: record for record in first}
    assert [record for record in more if record["key"] in kept] == [
        kept[record["key"]] for record in more if record["key"] in kept
    ]
    # The file holds what earlier calls computed, too.
    assert len((config.out / "shift.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_cell_is_computed_again(configure, damage, capsys):
    config = configure()
    first = stain_probe.run_stain_probe(config)[0]
    cell = config.out / "shift-cells" / f"{first[1]['key']}.json"
    if damage == "cut":
        cell.write_bytes(cell.read_bytes()[:100])
    else:
        (config.out / first[1]["predictions"]).unlink()
    again = stain_probe.run_stain_probe(config)[0]
    assert "computing this cell again" in capsys.readouterr().err
    assert again[1]["metrics"] == first[1]["metrics"]
    assert [again[0], again[2]] == [first[0], first[2]]


def test_new_weights_a_new_version_and_another_probe_are_new_cells(configure, monkeypatch):
    first = stain_probe.run_stain_probe(configure())[0]
    others = [
        stain_probe.run_stain_probe(configure(encoders=("color=color:histogram?size=16",)))[0],
        stain_probe.run_stain_probe(configure(protocol="knn"))[0],
        stain_probe.run_stain_probe(configure(seeds=(1,)))[0],
    ]
    monkeypatch.setattr(stain_probe, "VERSION", 2)
    others.append(stain_probe.run_stain_probe(configure())[0])
    keys = [record["key"] for records in (first, *others) for record in records]
    assert len(set(keys)) == len(keys) == 15
    assert others[-1][0]["probe_version"] == 2


def test_seeds_are_pooled_and_encoders_compared(configure):
    encoders = (f"color=color:stats?size={SIZE}", f"histogram=color:histogram?size={SIZE}")
    config = configure(encoders=encoders, seeds=(0, 1), shifts=("hed-light",))
    records, summary = stain_probe.run_stain_probe(config)
    assert [(line["encoder"], line["shift"]) for line in summary] == [
        (encoder, shift) for encoder in ("color", "histogram") for shift in ("none", "hed-light")
    ]
    losses, hits = {}, {}
    for encoder in ("color", "histogram"):
        mine = [r for r in records if r["encoder"] == encoder]
        losses[encoder] = [r["metrics"]["balanced_accuracy_loss"]["value"] for r in mine if r["shift"] == "hed-light"]
        hits[encoder] = [load_predictions(config.out, record) for record in mine]
    line = {line["encoder"]: line for line in summary if line["shift"] == "hed-light"}
    loss = line["color"]["metrics"]["balanced_accuracy_loss"]
    assert loss["value"] == pytest.approx(np.mean(losses["color"]))
    assert loss["sd"] == pytest.approx(np.std(losses["color"], ddof=1))
    assert loss["low"] <= loss["value"] <= loss["high"]
    difference = line["histogram"]["metrics"]["balanced_accuracy_loss_difference"]
    assert difference["value"] == pytest.approx(np.mean(losses["histogram"]) - np.mean(losses["color"]))
    assert line["histogram"]["against"] == "color"
    assert line["color"]["against"] is None
    # By a loop over drawn patients; every split is given, so both seeds have the same test tiles.
    truth, groups = np.asarray(hits["color"][0].truth), np.asarray(hits["color"][0].groups)
    units, values = np.unique(groups), []
    right = {name: [np.asarray(p.probabilities).argmax(axis=1) for p in parts] for name, parts in hits.items()}
    for drawn in np.random.default_rng(stream_seed(0, "bootstrap")).integers(0, len(units), size=(1000, len(units))):
        rows = np.concatenate([np.flatnonzero(groups == units[number]) for number in drawn])

        def lost(name, seed, rows=rows):
            hit = [right[name][2 * seed + number][rows] == truth[rows] for number in (0, 1)]
            present = np.unique(truth[rows])
            before, after = (np.mean([part[truth[rows] == label].mean() for label in present]) for part in hit)
            return before - after

        values.append(np.mean([lost("histogram", seed) - lost("color", seed) for seed in (0, 1)]))
    assert [difference["low"], difference["high"]] == pytest.approx(np.percentile(values, [2.5, 97.5]))


def test_unreadable_test_tiles_are_left_out_and_counted(configure, tmp_path):
    index = write_tiles(tmp_path / "broken")
    names = [line.split(",")[0] for line in index.read_text().splitlines() if line.endswith("test")]
    (index.parent / names[3]).write_bytes(b"broken")
    config = configure(task=f"csv:{index}?name=tiles")
    whole = open_task(config.task)
    for out in ("one", "one", "two"):
        # The second call takes the embeddings from the cache, the third computes them.
        records = stain_probe.run_stain_probe(configure(task=config.task, out=tmp_path / out))[0]
        assert [record["n_unreadable"] for record in records] == [1] * 3
        assert records[1]["n_test"] == len(whole.test) - 1
        found = load_predictions(tmp_path / out, records[1])
        assert names[3] not in list(found.names)
        for cell in (tmp_path / out / "shift-cells").iterdir():
            cell.unlink()
    # A tile keeps its draws when another is left out: positions are rows of the task.
    (index.parent / names[3]).write_bytes((write_tiles(tmp_path / "same").parent / names[3]).read_bytes())
    repaired = stain_probe.run_stain_probe(configure(task=config.task, out=tmp_path / "three"))[0]
    one, two = load_predictions(tmp_path / "two", records[1]), load_predictions(tmp_path / "three", repaired[1])
    kept = [list(two.names).index(name) for name in one.names]
    np.testing.assert_allclose(np.asarray(two.probabilities)[kept], one.probabilities, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shifts": ("hed-lihgt",)}, "unknown stain shift 'hed-lihgt'; did you mean 'hed-light'?"),
        ({"protocol": "logistc"}, "unknown protocol 'logistc'; did you mean 'logistic'?"),
        ({"encoders": ("colour:stats",)}, "colour"),
        ({"task": "folder:missing"}, "missing"),
        ({"shifts": ("template:nowhere.json",)}, "nowhere.json: no such file"),
    ],
)
def test_bad_input_is_told_in_one_line_before_anything_is_computed(configure, changes, said):
    config = configure(**changes)
    with pytest.raises(EosinError) as caught:
        stain_probe.run_stain_probe(config)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (config.out / "embeddings").exists()


@pytest.mark.parametrize(("field", "value"), [("seeds", (0, 0)), ("encoders", ()), ("seeds", (-1,)), ("batch_size", 0)])
def test_senseless_fields_are_refused(configure, field, value):
    with pytest.raises(EosinError, match=field):
        configure(**{field: value})


def test_an_encoder_that_fails_does_not_stop_the_others(configure, capsys):
    config = configure(encoders=("gone=runs/gone", f"color=color:stats?size={SIZE}"))
    with pytest.raises(EosinError, match=r"gone.*the others are in .*shift\.jsonl"):
        stain_probe.run_stain_probe(config)
    assert "gone" in capsys.readouterr().err
    assert len((config.out / "shift.jsonl").read_text().splitlines()) == 3


def test_two_commands_cannot_use_one_directory(configure):
    config = configure()
    config.out.mkdir()
    with DirectoryLock(config.out), pytest.raises(EosinError, match="in use"):
        stain_probe.run_stain_probe(config)


def test_the_verb_prints_a_line_per_encoder_and_shift(index, tmp_path, capsys):
    words = ["stain", "probe", "--encoders", f"mine=color:stats?size={SIZE}", "--task", f"csv:{index}"]
    assert main([*words, "--shifts", "hed-light", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith("mine")] == [
        ["mine", "none"],
        ["mine", "hed-light"],
    ]
    assert "stain-shift v1" in printed
    assert "by patient" in " ".join(printed.split())
    assert main([*words, "--shifts", "hed-lite", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'hed-light'?" in capsys.readouterr().err


def test_color_alone_suffers_on_oral_tissue(real_data, tmp_path):
    config = StainProbeConfig(
        encoders=("color:stats?size=64",),
        task=f"csv:{real_data / 'oral' / 'index.csv'}?label=label4",
        shifts=("hed-light", "template:crc-lab"),
        out=tmp_path,
        workers=0,
    )
    records = by_shift(stain_probe.run_stain_probe(config)[0])
    assert records["none"]["metrics"]["movement"]["value"] == 0
    for name in ("hed-light", "template:crc-lab"):
        metrics = records[name]["metrics"]
        assert metrics["movement"]["low"] > 0.1
        assert metrics["recognized"]["high"] < 0.5
    assert records["template:crc-lab"]["metrics"]["balanced_accuracy_loss"]["low"] > 0
