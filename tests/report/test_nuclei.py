"""Nuclei on the page and in the exports: made from files of a benchmark, without any network."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from eosin.benchmark.joining import write_joined
from eosin.core.files import write_json_lines
from eosin.report import write_report
from eosin.report.load import load_results
from eosin.report.nuclei_figures import nuclei_figures
from eosin.report.summary import headline_metric, in_sentence, metric_name
from eosin.report.view import build_view

_SPEC = importlib.util.spec_from_file_location("nuclei_files", Path(__file__).with_name("nuclei_files.py"))
files = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(files)

SKILLS = {"mocov2": 0.85, "random": 0.6}
CLASSES = ("epithelial", "spindle")
FAILURE = {
    "encoder": "color",
    "task": "consep",
    "protocol": "hovernet:frozen",
    "fraction": 1.0,
    "seed": 0,
    "reason": "network.encoder: color:stats has no weights and no feature maps; choose a network",
    "command": "eosin benchmark",
    "created": "",
}


def write(out, records, failures=()):
    write_json_lines(out / "results.jsonl", records)
    write_json_lines(out / "failures.jsonl", failures)
    write_joined(out, records)
    return out


@pytest.fixture(scope="module")
def images():
    return files.samples(4, 96)


@pytest.fixture(scope="module")
def of_nuclei(tmp_path_factory, images):
    """Two encoders, one typed set, frozen at two fractions and two seeds; a third encoder failed."""
    out = tmp_path_factory.mktemp("nuclei") / "bench"
    records = [
        files.nuclei_cell(
            out,
            encoder,
            "consep",
            "hovernet:frozen",
            images,
            skill=skill * (0.8 + 0.2 * fraction),
            fraction=fraction,
            seed=seed,
            classes=CLASSES,
        )
        for encoder, skill in SKILLS.items()
        for fraction in (1.0, 0.25)
        for seed in (0, 1)
    ]
    return write(out, records, [FAILURE])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, of_nuclei, typical):
    """The same beside tiles."""
    out = tmp_path_factory.mktemp("mixed") / "bench"
    shutil.copytree(typical, out)
    for name in ("predictions", "galleries"):
        shutil.copytree(of_nuclei / name, out / name, dirs_exist_ok=True)
    lines = [json.loads(line) for part in (typical, of_nuclei) for line in (part / "results.jsonl").open()]
    return write(out, lines, [FAILURE])


def test_each_task_has_a_metric_of_its_own(mixed):
    results = load_results(mixed)
    assert headline_metric(results, "consep") == "pq"
    assert headline_metric(results, "oral") == headline_metric(results) == "balanced_accuracy"
    view = build_view(results)
    assert {task["name"]: task["metric"] for task in view["data"]["tasks"]} == {
        "oral": "balanced_accuracy",
        "osteosarcoma": "balanced_accuracy",
        "consep": "pq",
    }
    assert [group for group, _ in view["metric_groups"]] == ["Tiles", "Nuclei"]
    assert ("pq", "PQ") in view["metric_groups"][1][1]
    assert view["scores"] == "balanced accuracy and PQ"
    card = next(card for card in view["tasks"] if card["name"] == "consep")
    (finding,) = card["findings"]
    assert finding["encoder"] == "mocov2"
    assert finding["estimate"]["value"] == pytest.approx(
        np.mean([r["metrics"]["pq"]["value"] for r in results.records if r["task"] == "consep"][:2])
    )
    # Counts of nuclei are no classes: nothing of them is taken for a confusion matrix or a curve.
    assert {task for _, task, _, _ in results.confusions} == {"oral", "osteosarcoma"} == {k[1] for k in results.rocs}
    assert results.missing == []


def test_names_of_metrics():
    assert metric_name("pq") == in_sentence("pq") == "PQ"
    assert metric_name("f:spindle") == "F of spindle"
    assert (in_sentence("balanced_accuracy"), in_sentence("dice")) == ("balanced accuracy", "Dice")
    assert in_sentence("auroc") == "AUROC"


def test_a_page_of_nuclei_alone_leaves_out_what_is_of_tiles(of_nuclei, tmp_path):
    view = build_view(load_results(of_nuclei))
    assert view["metric"] == "pq"
    assert {"nuclei", "efficiency"} <= set(view["sections"])
    assert not {"confusion", "map", "roc", "tiles"} & {name for name, _ in view["navigation"]}
    page = write_report(of_nuclei, tmp_path / "report.html").read_text()
    assert 'id="confusion"' not in page
    assert "<optgroup" not in page
    assert "nuclei of 2 types · 4 test images" in page
    assert "no per-image predictions" not in page.lower()


def test_values_of_images_and_the_curve_over_iou(of_nuclei):
    results = load_results(of_nuclei)
    cells = nuclei_figures(results.nuclei, lambda protocol, fraction: f"{protocol} {fraction:g}")["cells"]
    assert len(cells) == 4
    first = cells[0]
    assert (first["encoder"], first["condition"], first["seeds"], first["images"]) == (
        "mocov2",
        "hovernet:frozen 1",
        2,
        4,
    )
    tables = [pq.read_table(of_nuclei / record["predictions"])["pq"].to_pylist() for record in results.records[:2]]
    assert first["values"] == pytest.approx(sorted(np.mean(tables, axis=0)), abs=1e-4)
    value = np.mean([record["metrics"]["pq"]["value"] for record in results.records[:2]])
    assert first["curve"][0] == pytest.approx(value, abs=1e-4)
    assert first["curve"] == sorted(first["curve"], reverse=True)


def test_galleries_are_of_all_labels_and_the_first_seed_and_fit_a_budget(of_nuclei, monkeypatch):
    nuclei = load_results(of_nuclei).nuclei
    assert [(g.encoder, g.fraction, g.seed) for g in nuclei.galleries] == [("mocov2", 1.0, 0), ("random", 1.0, 0)]
    name = lambda protocol, fraction: protocol  # noqa: E731
    shown = nuclei_figures(nuclei, name)
    assert [len(gallery["images"]) for gallery in shown["galleries"]] == [4, 4]
    # A picture that both show is there once.
    assert len(shown["pictures"]) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in shown["pictures"])
    image = shown["galleries"][0]["images"][0]
    assert image["kind"] == "worst"
    assert image["truth"].startswith("M")
    assert not image["part"]
    size = sum(map(len, shown["pictures"])) + sum(
        len(image[name]) for g in shown["galleries"] for image in g["images"] for name in ("truth", "found")
    )
    monkeypatch.setattr("eosin.report.nuclei_figures._BUDGET", size // 2)
    fewer = nuclei_figures(nuclei, name)
    assert [len(gallery["images"]) for gallery in fewer["galleries"]] == [2, 2]
    monkeypatch.setattr("eosin.report.nuclei_figures._BUDGET", 100)
    none = nuclei_figures(nuclei, name)
    assert (none["galleries"], none["left_out"]) == ([], 2)


def test_damaged_files_are_told_and_the_rest_is_shown(of_nuclei, tmp_path):
    out = tmp_path / "bench"
    shutil.copytree(of_nuclei, out)
    records = load_results(out).records
    (out / records[0]["predictions"]).unlink()
    (out / records[0]["gallery"]).write_bytes(b"no parquet")
    results = load_results(out)
    assert len(results.missing) == 2
    assert results.nuclei.cells[0].seeds == 1
    assert [gallery.encoder for gallery in results.nuclei.galleries] == ["random"]
    build_view(results)


def test_exports_carry_nuclei(mixed, tmp_path):
    lines = list(csv.DictReader(write_report(mixed, tmp_path / "r.csv", "csv").open()))
    of_pq = [line for line in lines if line["metric"] == "pq"]
    assert {(line["task"], line["encoder"], line["fraction"]) for line in of_pq} == {
        ("consep", encoder, fraction) for encoder in SKILLS for fraction in ("1.0", "0.25")
    }
    assert {line["metric"] for line in lines if line["task"] == "consep"} >= {"aji", "dice", "f:spindle"}
    assert "no feature maps" in next(line["reason"] for line in lines if line["encoder"] == "color" and line["reason"])
    text = write_report(mixed, tmp_path / "r.md", "md").read_text()
    table = text.partition("## consep")[2]
    assert "| Encoder | Protocol | PQ ↑ | AJI ↑ | Dice ↑" in table
    assert "F of spindle" not in table
    assert "HoVer-Net (PyTorch) | PQ | 0.546" in table
    assert "| Encoder | Protocol | Balanced accuracy ↑" in text.partition("## consep")[0]
    assert "Balanced accuracy and PQ with its 95 % interval" in text
    data = json.loads(write_report(mixed, tmp_path / "r.json", "json").read_text())["data"]
    assert "pictures" not in data["nuclei"]
    assert data["nuclei"]["galleries"][0]["images"][0].keys() >= {"name", "pq", "tp"}
    assert "truth" not in data["nuclei"]["galleries"][0]["images"][0]
    assert write_report(mixed, tmp_path / "r.png", "png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def page(mixed, tmp_path_factory):
    """The page in a browser, opened from disk without a network; it may complain of nothing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    program = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium or Chrome is installed")
    path = write_report(mixed, tmp_path_factory.mktemp("page") / "report.html")
    assert path.stat().st_size < 15_000_000
    complaints = []
    with playwright.sync_playwright() as context:
        browser = context.chromium.launch(executable_path=program, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(120_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        yield page
        browser.close()
    assert complaints == []


def heading(page, task):
    table = page.locator(f"#boards [aria-label='Leaderboard of {task}']")
    return table.locator("thead th").nth(2).inner_text()


def test_tables_show_the_chosen_metric_or_their_own(page):
    assert "Balanced accuracy" in heading(page, "oral")
    assert "PQ" in heading(page, "consep")
    page.select_option("#metric", "aji")
    assert "AJI" in heading(page, "consep")
    assert "Balanced accuracy" in heading(page, "oral")
    # Published figures stand with their own metric.
    assert "0.601" in page.locator("#boards tbody.published").inner_text()
    page.select_option("#metric", "auroc")
    assert "PQ" in heading(page, "consep")
    page.select_option("#metric", "balanced_accuracy")


def test_differences_and_curves_are_of_pq(page):
    page.select_option("#difference-task", "consep")
    assert "hovernet:frozen, PQ" in page.locator("#significance").inner_text()
    assert "mocov2" in page.locator("#difference-tables").inner_text()
    page.select_option("#efficiency-task", "consep")
    assert "PQ; bands" in page.locator("#efficiency-note").inner_text()
    page.select_option("#difference-task", "oral")


def test_best_and_worst_images_are_outlined(page):
    assert page.locator("#nuclei-plots figure").count() == 2
    assert page.locator("#nuclei-plots .boxlayer path.box").count() == 2
    assert "Values are means over 2 seeds" in page.locator("#nuclei-note").inner_text()
    assert page.locator("#nuclei-gallery svg").count() == 4
    assert page.locator("#nuclei-gallery path.outline.truth").count() >= 3
    missed = page.locator("#nuclei-gallery path.missed").count()
    page.select_option("#nuclei-encoder", "random")
    assert page.locator("#nuclei-gallery path.missed").count() >= missed
    page.select_option("#nuclei-layers", "prediction")
    assert not page.locator("#nuclei-gallery path.truth").first.is_visible()
    assert page.locator("#nuclei-gallery path.found").first.is_visible()


@pytest.mark.parametrize("width", [1400, 500])
def test_nothing_overflows(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")
    inside = "e => e.getBoundingClientRect().right <= innerWidth + 1"
    assert all(svg.evaluate(inside) for svg in page.locator("#nuclei-gallery svg").all())
