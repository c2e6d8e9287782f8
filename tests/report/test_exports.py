"""The report as Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json

import pytest
from PIL import Image

from eosin.cli import main
from eosin.core.errors import EosinError
from eosin.report import write_report
from eosin.report.board import published_rows
from eosin.report.load import load_results
from eosin.report.published import official_set, published_for, read_published


def test_csv_has_a_line_per_standing_and_metric(typical, tmp_path):
    path = write_report(typical, tmp_path / "scores.csv", "csv")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    standings = load_results(typical).standings
    assert len(rows) == sum(len(line["metrics"]) for line in standings) + 1
    gap = next(row for row in rows if row["reason"])
    assert (gap["encoder"], gap["metric"], gap["value"]) == ("random", "", "")
    found = {(r["task"], r["encoder"], r["protocol"], r["metric"]): r for r in rows}
    for line in standings:
        for name, estimate in line["metrics"].items():
            row = found[line["task"], line["encoder"], line["protocol"], name]
            for key in ("value", "low", "high", "sd"):
                assert float(row[key]) == pytest.approx(estimate[key], rel=1e-5)


def test_json_holds_what_the_page_shows_without_pictures(rich, tmp_path):
    text = write_report(rich, tmp_path / "all.json", "json").read_text()
    view = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert len(view["data"]["rows"]) == 2 * 4 * (3 + 3 + 3 + 7)
    assert view["data"]["ranks"][0]["critical_difference"] == 1.7
    assert view["provenance"]["encoders"][0]["licence"] == "non-commercial"
    assert "base64" not in text
    assert view["data"]["higher"]["accuracy_lost"] is False


def test_markdown_ranks_ours_and_sets_published_figures_apart(rich, tmp_path):
    text = write_report(rich, tmp_path / "board.md", "md").read_text()
    ours, _, foreign = text.partition("Published by others, not measured here and not ranked")
    assert ours.index("| lunit-mocov2 | knn |") < ours.index("| color | knn |")
    assert "Virchow2" not in ours
    assert "| Virchow2 | Balanced accuracy | 0.861 | eva |" in foreign
    assert "not available" in foreign


def test_hostile_names_stay_text_in_every_format(builder, tmp_path):
    evil = "=cmd|'/C calc'!A0 <img src=x> | `$x$` [a](javascript:alert(1))"
    for name in (evil, "plain"):
        builder.cell(name, evil, "knn", skill=0.8, images=60)
    out = builder.write()
    rows = list(csv.DictReader(io.StringIO(write_report(out, tmp_path / "a.csv", "csv").read_text())))
    assert {row["encoder"] for row in rows} == {"'" + evil, "plain"}
    text = write_report(out, tmp_path / "a.md", "md").read_text()
    assert "<img" not in text
    assert "[a](" not in text
    pipes = {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| ")}
    assert len(pipes) == 1
    assert json.loads(write_report(out, tmp_path / "a.json", "json").read_text())["data"]["encoders"] == [evil, "plain"]
    with Image.open(write_report(out, tmp_path / "a.png", "png")) as image:
        assert image.format == "PNG"


def test_a_picture_of_one_and_of_many_is_drawn(rich, tmp_path):
    record = {
        "encoder": "a", "task": "t", "protocol": "knn", "seed": 0, "n_test": 9,
        "metrics": {"accuracy": {"value": None, "low": None, "high": None, "reason": "one class"}},
    }  # fmt: skip
    (tmp_path / "results.jsonl").write_text(json.dumps(record) + "\n")
    for out in (tmp_path, rich):
        with Image.open(write_report(out, tmp_path / "board.png", "png")) as image:
            assert image.width > 600
            assert len(image.convert("RGB").getcolors(10**6)) > 20


def test_published_figures_are_those_of_their_sources():
    assert {s.protocol for s in read_published()} == {
        "eva",
        "not stated where the figures are listed",
        "HoVer-Net, all trained",
    }
    nuclei = {(e.encoder, e.source.metric): e.value for e in published_for("consep")}
    assert nuclei["HoVer-Net (PyTorch)", "pq"] == 0.5464
    assert nuclei["HoVer-Net (PyTorch)", "aji"] == 0.6009
    mhist = {(e.encoder, e.source.metric): e.value for e in published_for("mhist")}
    assert mhist["Lunit DINO ViT-S/16", "balanced_accuracy"] == 0.781
    assert mhist["MoCo v2 ResNet-50", "accuracy"] == 0.8588
    assert [e.value for e in published_for("bach") if e.source.metric == "accuracy"] == [None] * 6
    assert published_for("oral") == []
    assert all(v is None or 0 < v < 1 for s in read_published() for f in s.figures.values() for v in f.values())


def test_published_figures_are_of_sets_that_there_are():
    from eosin.nuclei.datasets import NUCLEI_SETS
    from eosin.tasks import DATA_SETS

    named = {name for source in read_published() for values in source.figures.values() for name in values}
    assert named <= {*DATA_SETS, *NUCLEI_SETS}
    assert {"bach", "breakhis", "crc", "mhist", "pcam", "consep"} <= named


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("pcam:/data/pcam", "pcam"),
        ("crc:/data/crc?name=mine&val=0.1", "crc"),
        ("nuclei:consep:/data/consep?classes=4", "consep"),
        ("crc:/data/crc?check=loose", ""),
        ("/data/crc", ""),
        ("", ""),
    ],
)
def test_a_set_is_what_was_opened_as_it(spec, name):
    assert official_set(spec) == name


def test_a_folder_called_like_a_public_set_gets_no_published_figures(builder, tmp_path):
    for spec in ("folder:/data/crc", "csv:/data/index.csv?name=crc"):
        assert published_rows([builder.cell("color", "crc", "knn", skill=0.6, images=40, task_spec=spec)]) == []
    record = builder.cell("color", "another name", "knn", skill=0.6, images=40, task_spec="pcam:/data")
    rows = published_rows([record, record])
    assert len(rows) == 21
    assert {row["task"] for row in rows} == {"another name"}
    assert 0.955 in [row["value"] for row in rows]


def test_formats_and_names_that_do_not_fit_are_refused(typical, tmp_path, capsys):
    with pytest.raises(EosinError, match="ends in .png"):
        write_report(typical, tmp_path / "page.html", "png")
    with pytest.raises(EosinError, match="html"):
        write_report(typical, None, "htm")
    assert main(["report", str(typical), "--format", "csv", "--out", str(tmp_path / "x.csv")]) == 0
    assert (tmp_path / "x.csv").read_text().startswith("task,encoder,")
    assert main(["report", str(typical), "--format", "pdf"]) == 2
