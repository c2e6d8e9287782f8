"""A benchmark directory as `eosin benchmark` leaves it, made without any model."""

from __future__ import annotations

import io
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from eosin.benchmark.galleries import SCHEMA
from eosin.benchmark.pooling import compare, leaderboard
from eosin.core.files import append_json_line, short_hash
from eosin.evaluate.statistics import bootstrap_interval
from eosin.report.summary import METRIC_NAMES

ORAL = ("normal_100x", "normal_400x", "oscc_100x", "oscc_400x")
BONE = ("necrotic tumor", "non-tumor", "viable tumor")


@cache
def tissue(variant: int, kind: int) -> Image.Image:
    """Draw something pink with violet nuclei, more of them for a higher kind."""
    generator = np.random.default_rng([variant, kind])
    image = Image.new("RGB", (64, 64), tuple(int(v) for v in generator.integers((215, 150, 180), (245, 195, 215))))
    draw = ImageDraw.Draw(image)
    for _ in range(6 + 9 * kind):
        x, y, r = generator.integers(0, 64), generator.integers(0, 64), generator.integers(2, 5)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(88 + 10 * kind, 60, 140))
    return image


def thumbnail(generator: np.random.Generator, kind: int) -> bytes:
    """Return one of 32 pieces of tissue with a nucleus more, so that hardly two are the same, as a 64-pixel JPEG."""
    variant, x, y = generator.integers(0, (32, 60, 60))
    image = tissue(int(variant), kind).copy()
    image.paste((88 + 10 * kind, 60, 140), (int(x), int(y), int(x) + 4, int(y) + 4))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class Builder:
    """Writes the files of a benchmark directory."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.records: list[dict[str, Any]] = []
        for name in ("predictions", "maps", "galleries"):
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
            "pca_x": np.cos(angle) * 3 + generator.normal(0, 2, count),
            "pca_y": np.sin(angle) * 3 + generator.normal(0, 2, count),
            "group": [f"P{row % 12:02}" for row in range(count)] if record["grouping"] != "image" else [None] * count,
            "density": 0.2 + 0.1 * label + pictures.random(count) * 0.05,
            "red_share": [None, *(0.25 + 0.05 * pictures.random(count - 1))],
            "name": [f"{classes[c]}/tile_{row:04}.jpg" for row, c in enumerate(label)],
            "thumbnail": [thumbnail(pictures, int(c)) for c in label],
        }
        details = {"method": "t-SNE", "seed": 0, "predicted_by": "knn", "shown": count, "of": record["n_test"]}
        details["grouping"] = record["grouping"]
        columns["group"] = pa.array(columns["group"], pa.string())
        table = pa.table(columns).replace_schema_metadata({"eosin": json.dumps(details)})
        record["map"] = f"maps/{record['key']}.parquet"
        pq.write_table(table, self.out / record["map"])

    def gallery(self, record: dict[str, Any], queries: int = 6, errors: int = 8) -> None:
        classes = record["classes"]
        pictures = np.random.default_rng(6)
        rows: list[dict[str, Any]] = []

        def tile(place: int, prefix: str, **entry: Any) -> None:
            label = classes[place % len(classes)]
            name = f"{prefix}/{label}_{place:04}.jpg"
            seen = any(row["name"] == name for row in rows)
            picture = None if seen else thumbnail(np.random.default_rng(place), place % len(classes))
            rows.append({"name": name, "label": label, "thumbnail": picture, **entry})

        for query in range(queries):
            tile(query, "test", kind="query", query=query, rank=0, predicted=classes[0], probability=0.7)
            for rank in range(1, 7):
                tile(
                    query + (0 if rank < 5 else 1) + rank * len(classes),
                    "train",
                    kind="neighbor",
                    query=query,
                    rank=rank,
                    cosine=1 - rank / 50,
                )
        for rank in range(1, errors + 1):
            wrong = classes[(rank + 1) % len(classes)]
            tile(
                rank,
                "test",
                kind="error",
                rank=rank,
                predicted=wrong,
                probability=1 - rank / 40,
                truth_probability=rank / 80,
            )
        rows[0]["thumbnail"] = rows[0]["thumbnail"] or thumbnail(pictures, 0)
        details = {
            "predicted_by": record["protocol"],
            "seed": 0,
            "neighbors": 6,
            "train": 716,
            "test": record["n_test"],
            "wrong": 41,
        }
        table = pa.Table.from_pylist(rows, SCHEMA).replace_schema_metadata({"eosin": json.dumps(details)})
        record["gallery"] = f"galleries/{record['key']}.parquet"
        pq.write_table(table, self.out / record["gallery"])

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

    def write(self, metric: str = "balanced_accuracy", tested: tuple[str, ...] | None = None) -> Path:
        (self.out / "results.jsonl").write_text("")
        for record in self.records:
            append_json_line(self.out / "results.jsonl", record)
        for name, lines in (
            ("leaderboard.jsonl", leaderboard(self.out, self.records)),
            (
                "comparisons.jsonl",
                compare(self.out, [r for r in self.records if tested is None or r["protocol"] in tested], metric, []),
            ),
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


def write_rich(out: Path) -> Path:
    """Everything the page can show: fractions, few shots, changed images, ranks, galleries, an official data set."""
    builder = Builder(out)
    skills = {"lunit-mocov2": 0.86, "imagenet-vit-s16": 0.82, "random-r50": 0.66, "color": 0.6}
    tissue = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    for task, classes, grouping in (("mhist", ("HP", "SSA"), "image"), ("crc", tissue, "patient")):
        for place, (encoder, skill) in enumerate(skills.items()):
            about = {
                "classes": classes,
                "grouping": grouping,
                "licence": "non-commercial" if place == 0 else "Apache-2.0",
                "width": 2048,
                "task_spec": f"{task}:/data/{task}",
            }
            for protocol in ("knn", "logistic", "eva"):
                record = builder.cell(encoder, task, protocol, skill=skill + 0.01 * len(protocol), images=160, **about)
                if protocol != "eva":
                    builder.gallery(record)
                if protocol == "knn":
                    builder.map(record)
            for fraction in (0.01, 0.1, 0.25):
                builder.cell(
                    encoder,
                    task,
                    "logistic",
                    skill=skill - 0.2 + 0.3 * fraction,
                    fraction=fraction,
                    images=160,
                    **about,
                )
            for shots in (1, 4, 16):
                chosen = {"shots": shots, "draws": 1000, "sd": {"balanced_accuracy": 0.04}}
                builder.cell(
                    encoder, task, f"fewshot:simpleshot-{shots}", skill=skill - 0.4 / shots, chosen=chosen, **about
                )
            whole = builder.cell(encoder, task, "shift:none", skill=skill, images=160, **about)
            for number, change in enumerate(
                ("hed-light", "hed-strong", "template:crc-lab", "blur", "jpeg", "rotate-90")
            ):
                record = builder.cell(
                    encoder, task, f"shift:{change}", skill=skill - 0.03 * number, images=160, **about
                )
                for name in ("accuracy", "balanced_accuracy"):
                    lost = whole["metrics"][name]["value"] - record["metrics"][name]["value"]
                    record["metrics"][f"{name}_lost"] = {"value": lost, "low": lost - 0.03, "high": lost + 0.03}
                record["metrics"]["embedding_moved"] = {
                    "value": 0.03 * (number + 1 + place),
                    "low": 0.03 * (number + place),
                    "high": 0.03 * (number + 2 + place),
                }
    ranks = [{"encoder": name, "rank": rank} for name, rank in zip(skills, (1.0, 2.0, 3.2, 3.8), strict=True)]
    line = {
        "protocol": "knn", "fraction": 1.0, "metric": "balanced_accuracy", "tasks": ["mhist", "crc"], "encoders": ranks,
        "friedman": {"statistic": 5.4, "p": 0.145}, "critical_difference": 1.7, "cliques": [["lunit-mocov2", "imagenet-vit-s16"], ["imagenet-vit-s16", "random-r50", "color"]], "reason": None,
    }  # fmt: skip
    (out / "ranks.jsonl").write_text("")
    append_json_line(out / "ranks.jsonl", line)
    none = {"friedman": None, "critical_difference": None, "cliques": [], "reason": "two tasks are too few for a test"}
    append_json_line(out / "ranks.jsonl", line | none | {"protocol": "logistic"})
    return builder.write(tested=("knn", "eva"))


def write_grand(out: Path, encoders: int = 50, tasks: int = 5) -> Path:
    """A thousand lines: 50 encoders, 5 tasks and 4 protocols, with all their paired tests, maps and galleries."""
    builder = Builder(out)
    generator = np.random.default_rng(0)
    names = [f"encoder-{number:02}" for number in range(encoders)]
    protocols = ("knn", "logistic", "linear", "eva")
    standings, comparisons = [], []
    for task in [f"task-{number}" for number in range(tasks)]:
        for protocol in protocols:
            keys = {}
            for place, name in enumerate(names):
                key = short_hash(name, task, protocol)
                value = 0.6 + 0.3 * place / encoders + float(generator.normal(0, 0.03))
                metrics = {
                    m: {"value": value - 0.01 * i, "low": value - 0.05, "high": value + 0.04}
                    for i, m in enumerate(METRIC_NAMES)
                    if i < 5
                }
                record = {
                    "key": key, "encoder": name, "spec": f"timm:{name}", "architecture": "vit", "fingerprint": short_hash(name),
                    "task": task, "classes": list(ORAL), "grouping": "patient", "n_train": 1000, "n_val": 200, "n_test": 200,
                    "n_groups": 40, "protocol": protocol, "protocol_version": 1, "fraction": 1.0, "seed": 0, "metrics": metrics,
                    "predictions": f"predictions/{key}.parquet", "split_hash": "s", "run": None, "map": None, "task_hash": task,
                }  # fmt: skip
                truth = np.arange(200) % 4
                scores = generator.dirichlet(np.ones(4), 200) + 0.4 * np.eye(4)[truth] * (place / encoders)
                predicted = scores.argmax(axis=1)
                columns = {
                    "name": [f"{i:03}" for i in range(200)],
                    "truth": [ORAL[c] for c in truth],
                    "predicted": [ORAL[c] for c in predicted],
                }
                columns |= {f"p_{c}": scores[:, i] / 2 for i, c in enumerate(ORAL)}
                pq.write_table(pa.table(columns), out / record["predictions"])
                keys[name] = key
                builder.records.append(record)
                if protocol == "knn":
                    builder.gallery(record, queries=12, errors=24)
                    if place < 12:
                        builder.map(record, 200)
                standings.append(
                    {k: record[k] for k in ("encoder", "task", "protocol", "fraction", "metrics")}
                    | {"seeds": [0], "cells": [key]}
                )
            for i, first in enumerate(names):
                for second in names[i + 1 :]:
                    d = float(generator.normal(0, 0.05))
                    comparisons.append({
                        "task": task, "protocol": protocol, "fraction": 1.0, "metric": "balanced_accuracy", "encoder": first,
                        "reference": second, "difference": d, "low": d - 0.03, "high": d + 0.03, "p": 0.01, "p_holm": min(1.0, 0.002 / (abs(d) + 1e-3)),
                        "seeds": [0], "n_groups": 40, "grouping": "patient", "cells": [keys[first], keys[second]],
                    })  # fmt: skip
    for file, lines in (("results", builder.records), ("leaderboard", standings), ("comparisons", comparisons)):
        (out / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ranks = [{"encoder": name, "rank": 1.0 + i} for i, name in enumerate(reversed(names))]
    line = {
        "protocol": "knn", "fraction": 1.0, "metric": "balanced_accuracy", "tasks": [f"task-{i}" for i in range(tasks)], "encoders": ranks,
        "friedman": {"statistic": 80.0, "p": 1e-5}, "critical_difference": 15.0, "cliques": [names[i : i + 15] for i in range(0, encoders - 15, 8)], "reason": None,
    }  # fmt: skip
    (out / "ranks.jsonl").write_text(json.dumps(line) + "\n")
    return out


@pytest.fixture(scope="session")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rich(tmp_path_factory.mktemp("rich") / "lunit-and-friends")


@pytest.fixture(scope="session")
def rich_page(rich: Path) -> Path:
    from eosin.report import write_report

    return write_report(rich)


@pytest.fixture(scope="session")
def grand_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from eosin.report import write_report

    return write_report(write_grand(tmp_path_factory.mktemp("grand") / "bench"))


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
