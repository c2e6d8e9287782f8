"""A benchmark directory as `eosin benchmark` leaves it, made without any model."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from eosin.benchmark.pooling import compare, leaderboard
from eosin.core.files import append_json_line, short_hash
from eosin.evaluate.statistics import bootstrap_interval

ORAL = ("normal_100x", "normal_400x", "oscc_100x", "oscc_400x")
BONE = ("necrotic tumor", "non-tumor", "viable tumor")


def thumbnail(generator: np.random.Generator, kind: int) -> bytes:
    """Draw something pink with violet nuclei, more of them for a higher kind, as a 64-pixel JPEG."""
    image = Image.new("RGB", (64, 64), tuple(int(v) for v in generator.integers((215, 150, 180), (245, 195, 215))))
    draw = ImageDraw.Draw(image)
    for _ in range(6 + 9 * kind):
        x, y, r = generator.integers(0, 64), generator.integers(0, 64), generator.integers(2, 5)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(88 + 10 * kind, 60, 140))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class Builder:
    """Writes the files of a benchmark directory."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.records: list[dict[str, Any]] = []
        for name in ("predictions", "maps"):
            (out / name).mkdir(parents=True, exist_ok=True)

    def cell(
        self,
        encoder: str,
        task: str,
        protocol: str,
        *,
        skill: float,
        classes: tuple[str, ...] = ORAL,
        images: int = 239,
        grouping: str = "image",
        seed: int = 0,
        fraction: float = 1.0,
        **changes: Any,
    ) -> dict[str, Any]:
        key = short_hash(encoder, task, protocol, seed, fraction)
        shared = np.random.default_rng([len(task), images])
        truth = shared.integers(0, len(classes), images)
        difficulty = shared.random(images)
        own = np.random.default_rng([seed, len(protocol), *encoder.encode()])
        right = difficulty + own.normal(0, 0.12, images) < skill
        guess = np.where(right, truth, (truth + 1 + own.integers(0, len(classes) - 1, images)) % len(classes))
        probabilities = own.dirichlet(np.ones(len(classes)), images) * 0.5
        probabilities[np.arange(images), guess] += 0.5
        predicted = probabilities.argmax(axis=1)
        groups = np.array([f"p{row % 12}" for row in range(images)])
        names = [f"{classes[c]}/tile_{row:04}.jpg" for row, c in enumerate(truth)]
        columns = {
            "name": names,
            "group": groups if grouping != "image" else names,
            "truth": [classes[c] for c in truth],
            "predicted": [classes[c] for c in predicted],
            **{f"p_{name}": probabilities[:, number] for number, name in enumerate(classes)},
        }
        pq.write_table(pa.table(columns), self.out / "predictions" / f"{key}.parquet")
        metrics = bootstrap_interval(truth, probabilities, None if grouping == "image" else groups, resamples=200)
        record = {
            "key": key,
            "encoder": encoder,
            "spec": f"runs/{encoder}-s{seed}",
            "architecture": "color:stats" if encoder == "color" else "resnet18",
            "fingerprint": short_hash(encoder, 0 if encoder == "color" else seed),
            "normalization": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 128},
            "run": None,
            "task": task,
            "task_spec": f"csv:{task}/index.csv",
            "task_version": 1,
            "task_hash": short_hash(task),
            "split_hash": short_hash("split", task),
            "split_source": "given",
            "classes": list(classes),
            "grouping": grouping,
            "n_train": 716,
            "n_val": 239,
            "n_test": images,
            "n_groups": images if grouping == "image" else 12,
            "protocol": protocol,
            "protocol_version": 1,
            "fraction": fraction,
            "seed": seed,
            "chosen": {"C": 0.1},
            "metrics": metrics,
            "higher_is_better": True,
            "synthetic": False,
            "predictions": f"predictions/{key}.parquet",
            "map": None,
            "libraries": {"eosin": "0.1.0", "torch": "2.6.0", "timm": "1.0.15", "scikit-learn": "1.5.2"},
            "seconds": 12.3,
            "command": f"eosin benchmark --encoders mocov2=runs/s{{seed}},color=color:stats --tasks {task} --out bench",
            "created": "2025-11-23T07:30:00+00:00",
            **changes,
        }
        self.records.append(record)
        return record

    def map(self, record: dict[str, Any], count: int = 120, classes: tuple[str, ...] | None = None) -> None:
        classes = classes or tuple(record["classes"])
        generator = np.random.default_rng(len(record["encoder"]))
        pictures = np.random.default_rng(5)
        label = pictures.integers(0, len(classes), count)
        angle = 2 * math.pi * label / len(classes)
        columns = {
            "x": np.cos(angle) * 8 + generator.normal(0, 2.4, count),
            "y": np.sin(angle) * 8 + generator.normal(0, 2.4, count),
            "label": [classes[c] for c in label],
            "predicted": [classes[c if generator.random() < 0.8 else 0] for c in label],
            "name": [f"{classes[c]}/tile_{row:04}.jpg" for row, c in enumerate(label)],
            "thumbnail": [thumbnail(pictures, int(c)) for c in label],
        }
        details = {"method": "t-SNE", "seed": 0, "predicted_by": "knn", "shown": count, "of": record["n_test"]}
        table = pa.table(columns).replace_schema_metadata({"eosin": json.dumps(details)})
        record["map"] = f"maps/{record['key']}.parquet"
        pq.write_table(table, self.out / record["map"])

    def run(self, record: dict[str, Any], steps: int = 60) -> None:
        path = self.out / f"run-{record['seed']}"
        path.mkdir(exist_ok=True)
        noise = np.random.default_rng(record["seed"])
        for step in range(1, steps + 1):
            done = step / steps
            line: dict[str, Any] = {
                "step": step * 10,
                "samples": step * 1280,
                "loss": 8.32 - 3.1 * (1 - math.exp(-4 * done)) + noise.normal(0, 0.04),
                "lr": 0.06 * (1 + math.cos(math.pi * done)) / 2,
                "loss_at_chance": math.log(4097),
                "watch/positive_similarity": 0.35 + 0.4 * done,
                "watch/projection_spread": 0.7 + 0.2 * done,
            }
            if step % 3 == 0:
                line |= {"watch/knn_accuracy": 0.55 + 0.22 * done, "watch/effective_rank": 20 + 90 * done}
            append_json_line(path / "metrics.jsonl", line)
        (path / "config.yaml").write_text("method:\n  name: mocov2\n  queue_size: 4096\nbatch_size: 128\nseed: 0\n")
        record["run"] = str(path)

    def write(self, metric: str = "balanced_accuracy") -> Path:
        (self.out / "results.jsonl").write_text("")
        for record in self.records:
            append_json_line(self.out / "results.jsonl", record)
        for name, lines in (
            ("leaderboard.jsonl", leaderboard(self.out, self.records)),
            ("comparisons.jsonl", compare(self.out, self.records, metric, [])),
        ):
            (self.out / name).unlink(missing_ok=True)
            for line in lines:
                append_json_line(self.out / name, line)
        return self.out


def write_typical(out: Path, seeds: int = 2) -> Path:
    """Three encoders, two tasks, two protocols; one cell failed; runs, maps and predictions are there."""
    builder = Builder(out)
    skills = {"mocov2": (0.82, 0.74), "random": (0.71, 0.66), "color": (0.58, 0.68)}
    for encoder, (oral, bone) in skills.items():
        for protocol, bonus in (("knn", -0.03), ("logistic", 0.0)):
            for seed in range(seeds):
                record = builder.cell(encoder, "oral", protocol, skill=oral + bonus, seed=seed)
                if encoder == "mocov2":
                    builder.run(record) if protocol == "knn" else record.update(run=str(out / f"run-{seed}"))
                if protocol == "knn" and seed == 0:
                    builder.map(record)
                if (encoder, protocol) == ("random", "logistic"):
                    continue
                record = builder.cell(
                    encoder,
                    "osteosarcoma",
                    protocol,
                    skill=bone + bonus,
                    classes=BONE,
                    images=96,
                    seed=seed,
                    grouping="patient",
                )
                if protocol == "knn" and seed == 0:
                    builder.map(record, 96)
    failure = {"encoder": "random", "task": "osteosarcoma", "protocol": "logistic", "fraction": 1.0, "seed": 0}
    append_json_line(
        out / "failures.jsonl",
        failure | {"reason": "no regularization strength converged", "command": "eosin benchmark", "created": ""},
    )
    return builder.write()


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path / "bench")


@pytest.fixture(scope="session")
def typical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_typical(tmp_path_factory.mktemp("typical") / "bench")


@pytest.fixture(scope="session")
def typical_page(typical: Path) -> Path:
    from eosin.report import write_report

    return write_report(typical)
