"""The page's text: complete, escaped, and honest about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eosin.core.errors import EosinError
from eosin.report import write_report
from eosin.report.board import board_rows
from eosin.report.figures import chance, condition
from eosin.report.load import load_results
from eosin.report.sprites import Sprite
from eosin.report.summary import caveats

HOSTILE = "</script><script>alert(1)</script>"
TAG = "<img src=x onerror=alert(2)>"


class Reader(HTMLParser):
    """Collects tags, text per tag and the JSON of the page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.json, self.inside = [], [], "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = dict(attrs).get("id", "") if tag == "script" else tag

    def handle_data(self, text):
        if self.inside == "data":
            self.json += text
        elif self.inside not in ("", "style"):
            self.words.append(text)


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


def test_the_page_is_complete_and_calls_nobody(typical_page):
    text = typical_page.read_text(encoding="utf-8")
    assert len(text.encode()) < 8e6
    page = read(typical_page)
    assert not [
        t
        for t in page.tags
        if {"src", "href"} & set(t[1]) and not str(t[1].get("href", "")).startswith(("#", "data:,"))
    ]
    assert {t[1]["id"] for t in page.tags if t[0] == "section"} == {
        "summary", "leaderboard", "differences", "confusion", "roc", "map", "training", "provenance",
    }  # fmt: skip
    words = " ".join(" ".join(page.words).split())
    for wanted in ("Read with care", "How to read the intervals", "no regularization strength converged", "2.6.0"):
        assert wanted in words
    for wanted in ("eosin benchmark --encoders", "queue_size: 4096"):
        assert wanted in words
    headings = [a for t, a in page.tags if t == "th"]
    assert all(a.get("scope") in ("row", "col", "colgroup") for a in headings)
    assert sum(t == "table" for t, _ in page.tags) == sum(t == "caption" for t, _ in page.tags)


def test_every_number_of_the_leaderboard_is_on_the_page(typical, typical_page):
    rows = {(r["encoder"], r["task"], r["protocol"]): r for r in json.loads(read(typical_page).json)["rows"]}
    results = load_results(typical)
    assert len(results.standings) == 11
    assert len(rows) == 12
    for line in results.standings:
        row = rows[line["encoder"], line["task"], line["protocol"]]
        for name, estimate in line["metrics"].items():
            expected = [estimate[key] for key in ("value", "low", "high", "sd")]
            assert row["values"][name] == pytest.approx(expected, rel=1e-5)
    assert rows["random", "osteosarcoma", "logistic"]["gap"] == "failed: no regularization strength converged"
    best = max(
        (r for r in results.standings if (r["task"], r["protocol"]) == ("oral", "knn")),
        key=lambda r: r["metrics"]["accuracy"]["value"],
    )
    leads = [
        r["encoder"] for r in rows.values() if (r["task"], r["protocol"]) == ("oral", "knn") and "accuracy" in r["best"]
    ]
    assert leads == [best["encoder"]]


def test_the_data_of_the_figures(typical_page):
    data = json.loads(read(typical_page).json)
    assert data["encoders"] == ["mocov2", "random", "color"]
    oral, bone = data["tasks"]
    assert oral["chance"]["balanced_accuracy"] == 0.25
    assert bone["chance"]["auroc"] == 0.5
    assert bone["chance"]["accuracy"] is None
    assert len(data["differences"]) == 4
    tests = {(f["task"], f["condition"]): f["pairs"] for f in data["differences"]}
    assert len(tests["oral", "knn"]) == 3
    panels = {panel["title"]: panel for panel in data["training"]}
    assert list(panels) == [
        "Loss", "Online kNN accuracy", "Projection spread", "Effective rank", "Positive similarity", "Learning rate",
    ]  # fmt: skip
    assert panels["Loss"]["chance"] == pytest.approx(np.log(4097), rel=1e-5)
    assert [curve["steps"][-1] for curve in panels["Loss"]["curves"]] == [600, 600]
    maps = data["embedding"]["maps"]
    assert {(m["encoder"], m["task"]) for m in maps} == {
        (e, t) for e in data["encoders"] for t in ("oral", "osteosarcoma")
    }
    tiles = data["embedding"]["tiles"]["oral"]
    assert tiles["sprite"]["src"].startswith("data:image/jpeg;base64,")
    # The same tiles in three maps are stored once.
    assert tiles["sprite"]["count"] == len(set(tiles["thumbnail"])) == len(tiles["name"]) == 120


def test_confusion_counts_are_those_of_the_predictions(typical, typical_page):
    data = json.loads(read(typical_page).json)
    results = load_results(typical)
    entry = next(e for e in data["confusion"] if (e["encoder"], e["task"], e["condition"]) == ("random", "oral", "knn"))
    assert entry["seeds"] == 2
    counts = dict.fromkeys([(t, p) for t in entry["classes"] for p in entry["classes"]], 0)
    for record in results.records:
        if (record["encoder"], record["task"], record["protocol"]) == ("random", "oral", "knn"):
            for row in pq.read_table(typical / record["predictions"]).to_pylist():
                counts[row["truth"], row["predicted"]] += 1
    for i, truth in enumerate(entry["classes"]):
        assert entry["counts"][i] == [counts[truth, predicted] for predicted in entry["classes"]]


def test_of_votes_the_confusion_holds_the_shares_that_were_scored(builder):
    record = builder.cell("a", "oral", "fewshot:simpleshot-4", skill=0.7, images=60)
    path = builder.out / record["predictions"]
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"votes": "true"}), path)
    (found,) = load_results(builder.write()).confusions.values()
    assert found.votes
    for i, truth in enumerate(found.classes):
        rows = [row for row in table.to_pylist() if row["truth"] == truth]
        shares = [sum(row[f"p_{name}"] for row in rows) for name in found.classes]
        assert found.counts[i].tolist() == pytest.approx(shares, abs=1e-9)
    # Not what the majority said, which is never an image's share.
    assert (found.counts % 1 != 0).all()
    data = json.loads(read(write_report(builder.out)).json)
    assert data["confusion"][0]["votes"] is True
    assert data["confusion"][0]["counts"] == found.counts.round(1).tolist()


def test_results_of_an_older_version_are_left_out_and_the_page_says_so(builder):
    builder.cell("a", "oral", "logistic", skill=0.7, seed=0, protocol_version=1, precision="fp32")
    builder.cell("a", "oral", "logistic", skill=0.7, seed=1, protocol_version=2, precision="fp32")
    builder.cell("b", "oral", "logistic", skill=0.7, seed=1, protocol_version=1, precision="bf16")
    results = load_results(builder.write())
    assert [(r["encoder"], r["seed"]) for r in results.records] == [("a", 1), ("b", 1)]
    assert {line["encoder"]: line["seeds"] for line in results.standings} == {"a": [1], "b": [1]}
    assert results.comparisons == []
    text = " ".join(caveats(results))
    assert "1 result of older versions of a protocol left out" in text
    assert "versions 1 and 2 of the protocol stand side by side and are not comparable" in text
    assert "results in bf16 and fp32 stand side by side" in text
    page = write_report(builder.out).read_text()
    assert "<dt>precision</dt><dd>bf16, fp32</dd>" in page


def test_names_that_are_html_or_script_stay_text(builder):
    classes = (HOSTILE, "b" + TAG, "c'\"&{{ 7*7 }}")
    for encoder in (HOSTILE, TAG):
        record = builder.cell(
            encoder, f"task {TAG}", "knn", skill=0.8, classes=classes, images=60, command=f"eosin {HOSTILE}"
        )
        builder.map(record, 40)
        builder.run(record, 3)
    page = write_report(builder.write())
    reader = read(page)
    assert sum(tag == "script" for tag, _ in reader.tags) == 3
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    data = json.loads(reader.json)
    assert data["encoders"] == [HOSTILE, TAG]
    assert data["confusion"][0]["classes"] == list(classes)
    assert "49" not in data["confusion"][0]["classes"][2]
    assert HOSTILE not in reader.json
    assert HOSTILE in reader.words


def test_lines_stand_by_task_protocol_and_share_whatever_ran_first(builder):
    for task, protocol, fraction in [
        ("oral", "logistic", 0.1), ("bone", "knn", 1.0), ("oral", "knn", 1.0), ("oral", "logistic", 1.0),
        ("oral", "knn", 0.1), ("oral", "logistic", 0.25),
    ]:  # fmt: skip
        builder.cell("color", task, protocol, skill=0.7, fraction=fraction)
    rows = board_rows(load_results(builder.write()), ["color"], ["accuracy"])
    assert [(row["task"], row["protocol"], row["fraction"]) for row in rows] == [
        ("oral", "logistic", 1.0), ("oral", "logistic", 0.25), ("oral", "logistic", 0.1), ("oral", "knn", 1.0),
        ("oral", "knn", 0.1), ("bone", "knn", 1.0),
    ]  # fmt: skip


def test_a_gap_has_the_reason_of_its_own_share_of_the_labels(builder):
    for fraction in (1.0, 0.1):
        builder.cell("color", "oral", "knn", skill=0.7, fraction=fraction)
    builder.cell("random", "oral", "logistic", skill=0.5)
    out = builder.write()
    failure = {"encoder": "random", "task": "oral", "protocol": "knn", "fraction": 0.1, "seed": 0, "reason": "too few"}
    (out / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    rows = board_rows(load_results(out), ["color", "random"], ["accuracy"])
    gaps = {row["fraction"]: row["gap"] for row in rows if row["protocol"] == "knn" and row["encoder"] == "random"}
    assert gaps == {1.0: "not run", 0.1: "failed: too few"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run `eosin benchmark"),
        ("", "holds no results"),
        ('{"encoder": "a"\n{}\n', "line 1 is damaged"),
        ('{"encoder": "a"}\n', "field 'task' is missing"),
        ("[1]\n", "line 1 is damaged; run the same `eosin benchmark` again"),
        ('{"encoder": "a', "line 1 is damaged; run the same `eosin benchmark` again"),
        ('{"encoder":"a","task":"t","protocol":"p","seed":0,"n_test":1,"metrics":{"accuracy":0.5}}\n', "'metrics'"),
    ],
)
def test_broken_results_are_one_clear_error(content, message, tmp_path):
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(EosinError, match=re.escape(message)) as caught:
        write_report(tmp_path)
    assert "results.jsonl" in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_bare_record_makes_a_page_that_says_what_is_missing(tmp_path):
    """Only what a record cannot do without: results of another machine, without any other file."""
    record = {
        "encoder": "a", "task": "t", "protocol": "knn", "seed": 0, "n_test": 9,
        "metrics": {"accuracy": {"value": None, "low": None, "high": None, "reason": "one class"}},
    }  # fmt: skip
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    words = " ".join(" ".join(read(write_report(tmp_path)).words).split())
    for sentence in (
        "No paired tests are stored",
        "No per-image predictions",
        "No embedding map",
        "no curves",
        "No command",
    ):
        assert sentence in words


def test_damaged_and_missing_files_are_listed_not_fatal(builder):
    records = [builder.cell("a", "t", "knn", skill=0.8, seed=seed) for seed in (0, 1, 2)]
    builder.map(records[0])
    builder.run(records[1])
    out = builder.write()
    (out / records[0]["map"]).write_bytes(b"not parquet")
    (out / records[1]["predictions"]).unlink()
    (out / "run-1" / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step"\n{"step": 3}\n')
    (out / "leaderboard.jsonl").unlink()
    results = load_results(out)
    assert len(results.missing) == 4
    assert not results.maps
    assert results.confusions["a", "t", "knn", 1.0].seeds == 2
    # Without the predictions of all seeds there is a mean and no interval.
    estimate = results.standings[0]["metrics"]["accuracy"]
    assert estimate["low"] is None
    assert estimate["value"] == pytest.approx(np.mean([r["metrics"]["accuracy"]["value"] for r in records]))
    assert "4 files could not be read" in " ".join(read(write_report(out)).words)


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("comparisons.jsonl", '{"cells": []}\n', "comparisons.jsonl: 1 line lacks a field"),
        ("comparisons.jsonl", '{"cells": 5}\n{}\n', "comparisons.jsonl: 2 lines lack a field"),
        ("comparisons.jsonl", '{"cells": [', "comparisons.jsonl: line 1 is damaged; run the same `eosin benchmark`"),
        (
            "ranks.jsonl",
            '{"protocol": "knn", "fraction": "a", "metric": "pq", "tasks": [], "encoders": []}\n',
            "ranks.jsonl: 1 line lacks a field",
        ),
        (
            "ranks.jsonl",
            '{"protocol": "knn", "fraction": 1, "metric": "pq", "tasks": [], "encoders": [], "friedman": 3}\n',
            "ranks.jsonl: 1 line lacks a field",
        ),
    ],
)
def test_damaged_lines_of_what_was_joined_are_left_out_and_named(builder, name, line, said):
    for encoder in ("a", "b"):
        builder.cell(encoder, "t", "knn", skill=0.8, images=30)
    out = builder.write()
    (out / name).write_text(line)
    write_report(out)
    (sentence,) = load_results(out).missing
    assert said in sentence


def test_a_leaderboard_of_wrong_types_is_made_again(builder):
    builder.cell("a", "t", "knn", skill=0.8, images=30)
    out = builder.write()
    whole = load_results(out).standings
    for change in ({"cells": 5}, {"metrics": {"accuracy": 1}}):
        (out / "leaderboard.jsonl").write_text(json.dumps({**whole[0], **change}) + "\n")
        assert load_results(out).standings == whole


def test_comparisons_of_replaced_cells_are_left_out(builder):
    for name in ("a", "b"):
        builder.cell(name, "t", "knn", skill=0.8)
    out = builder.write()
    assert len(load_results(out).comparisons) == 1
    lines = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text(lines[0] + "\n" + json.dumps(json.loads(lines[1]) | {"key": "new"}) + "\n")
    assert load_results(out).comparisons == []


def test_synthetic_tissue_is_announced(builder):
    builder.cell("a", "drawn", "knn", skill=0.8, synthetic=True)
    out = builder.write()
    words = " ".join(read(write_report(out)).words)
    assert "Synthetic tissue." in words
    assert "Every image here was drawn by a program." in words
    builder.cell("a", "real", "knn", skill=0.8)
    assert "The images of drawn were drawn by a program." in " ".join(read(write_report(builder.write())).words)


def test_no_banner_over_real_tissue(typical_page):
    assert "drawn by a program" not in " ".join(read(typical_page).words)


def test_thumbnails_fit_the_budget_and_keep_their_place(builder):
    import base64
    import io

    from PIL import Image

    sprite = Sprite()
    colors = [(250, 10, 10), (10, 200, 10), (10, 10, 250)]
    places = []
    for color in colors:
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), color).save(buffer, "PNG")
        places.append(sprite.add(buffer.getvalue()))
    assert places == [0, 1, 2]
    assert sprite.add(buffer.getvalue()) == 2
    assert sprite.add(b"no image") == sprite.add(None) == -1
    few = Sprite(most=0)
    assert few.add(buffer.getvalue()) == -1
    large = sprite.encode(10**6)
    small = sprite.encode(1)
    assert len(small["src"]) < len(large["src"])
    with Image.open(io.BytesIO(base64.b64decode(large["src"].partition(",")[2]))) as grid:
        for place, color in enumerate(colors):
            x, y = place % large["columns"], place // large["columns"]
            pixel = grid.getpixel((x * large["side"] + large["side"] // 2, y * large["side"] + large["side"] // 2))
            assert np.abs(np.array(pixel) - color).max() < 12
    assert Sprite().encode(10**6) is None


def test_conditions_and_chance():
    assert condition("knn", 1.0) == "knn"
    assert condition("knn", 0.1) == "knn, 10 % of labels"
    assert chance("balanced_accuracy", 4) == 0.25
    assert chance("auroc", 4) == 0.5
    assert chance("accuracy", 4) is None


def test_predictions_of_unlisted_classes_are_left_out(builder):
    record = builder.cell("a", "t", "knn", skill=0.8, classes=("x", "y"), images=20)
    out = builder.write()
    path = out / record["predictions"]
    table = pq.read_table(path)
    odd = pa.array(["z", *table["predicted"].to_pylist()[1:]])
    pq.write_table(table.set_column(table.column_names.index("predicted"), "predicted", odd), path)
    results = load_results(out)
    assert not results.confusions
    assert "names classes that its record does not list" in results.missing[0]
