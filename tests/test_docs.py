"""Every command and every Python example in the README and docs runs, on a small folder of synthetic tissue.

`sh` blocks hold commands, `python` blocks run in one namespace a page. Long ones are shortened by further fields, which
later ones override: what a page shows is what is parsed and run.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

import eosin.demo
from eosin.cli import VERBS, main
from eosin.synthetic import render_tile, write_slides, write_tiles

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SHORT = ["--samples", "64", "--batch_size", "16", "--optimizer.warmup_samples", "0"]
SHORT_NUCLEI = ["--network.width", "0.05", "--network.encoder", "random:test_resnet", "--validation.images", "1"]
SHORT_NUCLEI += ["--validation.every_steps", "4", "--decoder.samples", "2", "--decoder.batch_size", "1"]
SHORT_NUCLEI += ["--whole.samples", "2", "--whole.batch_size", "1"]
SHORT += ["--data.workers", "0", "--watch.tiles", "16", "--encoder.architecture", "test_resnet"]


def blocks(page):
    """Return (language, text) of the page's fenced blocks."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(text):
    """Split a shell block into commands, joining lines that end in a backslash."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    """What the pages speak of: tiles/, labelled.csv, slides/, images/, truth/, scales.csv, cut-slides, runs/first, results/."""
    folder = tmp_path_factory.mktemp("workspace")
    write_slides(folder / "slides", 4, seed=0)
    write_nuclei(folder, 2)
    (folder / "scales.csv").write_text("slide,mpp\nsite-1/P0000-1,0.499\n")
    write_tiles(folder / "tiles", tiles=96, slides=6, size=64)
    table = (folder / "tiles" / "index.csv").read_text().splitlines()
    (folder / "tiles" / "index.csv").unlink()
    (folder / "labelled.csv").write_text("\n".join([table[0], *(f"tiles/{line}" for line in table[1:])]) + "\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run(["eosin", "pretrain", "mocov2-small", "--data", "tiles", "--out", "runs/first"]) == 0
        assert run(["eosin", "tile", "slides", "--mpp", "0.5", "--size", "256", "--out", "cut-slides"]) == 0
        words = ["eosin", "benchmark", "--encoders", "mine=runs/first,color=color:stats", "--tasks", "csv:labelled.csv"]
        assert run([*words, "--out", "results"]) == 0
    finally:
        os.chdir(before)
    return folder


def write_nuclei(folder, count):
    """Write images/ and truth/, label maps of the same names."""
    for place in ("images", "truth"):
        (folder / place).mkdir()
    for index in range(count):
        tile = render_tile("tumor", size=96, mpp=0.25, index=index)
        Image.fromarray(tile.image.transpose(1, 2, 0)).save(folder / "images" / f"{index}.png")
        Image.fromarray(tile.instances.astype("uint16")).save(folder / "truth" / f"{index}.png")


def run(words):
    """Run `eosin …` or `python -m …` in this process and return the exit code."""
    if words[:2] == ["python", "-m"]:
        argv, sys.argv = sys.argv, words[2:]
        try:
            runpy.run_module(words[2], run_name="__main__")
        except SystemExit as stop:
            return stop.code or 0
        finally:
            sys.argv = argv
        return 0
    assert words[0] == "eosin", f"a test cannot run {words[0]}"
    arguments = words[1:]
    if arguments[0] == "pretrain" and "--help" not in arguments:
        recipe, rest = arguments[1], arguments[2:]
        arguments = ["pretrain", recipe, *SHORT, *rest]
    if arguments[:2] == ["nuclei", "train"] and "--help" not in arguments:
        arguments = ["nuclei", "train", arguments[2], *SHORT_NUCLEI, *arguments[3:]]
    if arguments[0] == "demo":
        arguments = [*arguments, "--minutes", "0.02"]
    return main(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_examples_run(page, workspace, tmp_path, monkeypatch, capsys):
    shutil.copytree(workspace, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("EOSIN_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(eosin.demo, "_TILES", 96)
    monkeypatch.setattr(eosin.demo, "_SLIDES", 6)
    namespace = {"__name__": "example"}
    for language, text in blocks(page):
        if language == "sh":
            for words in commands(text):
                # A demo of a few steps need not beat its baselines.
                allowed = (0, 1) if words[:2] == ["eosin", "demo"] else (0,)
                assert run(words) in allowed, f"{shlex.join(words)}\n{capsys.readouterr().err}"
        elif language == "python":
            exec(compile(text, str(page), "exec"), namespace)


def test_the_blocks_are_found():
    found = [language for page in PAGES for language, _ in blocks(page)]
    assert found.count("sh") >= 10
    assert found.count("python") >= 3


def test_every_verb_has_a_page_and_a_row():
    readme = (ROOT / "README.md").read_text()
    for verb in VERBS:
        assert f"| `eosin {verb}` |" in readme
    for link in re.findall(r"\]\(([\w/.-]+)\)", readme):
        assert (ROOT / link).exists(), link


def test_links_between_pages_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([\w/.-]+\.(?:md|png))\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
