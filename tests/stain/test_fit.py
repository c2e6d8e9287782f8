"""Fitting a source's stain: the file, what it says of itself, going on after a kill, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import eosin.stain.measure as module
from eosin.augment.stain_statistics import load_statistics
from eosin.core.errors import EosinError
from eosin.data import open_tiles
from eosin.stain import fit, parse_components, tables
from eosin.stain.fit import subset


def test_the_file_says_what_was_measured(tissue, tmp_path, save_image):
    for path in sorted(tissue.glob("stroma/*.png")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    save_image(tmp_path / "white.png", 255)
    save_image(tmp_path / "black.png", 0)
    (tmp_path / "broken.png").write_bytes(b"")
    out = tmp_path / "out" / "stain.json"
    statistics, unreadable = fit(str(tmp_path), out, space="hsv", quarantine_limit=0.1)
    assert statistics == load_statistics(str(out))
    assert (statistics.tiles, statistics.skipped) == (15, 3)
    assert statistics.settings["blank"] == 2
    assert statistics.settings["unreadable"] == unreadable.count == 1
    assert statistics.settings["size"] == 48
    assert statistics.settings["versions"]["scikit-learn"]
    assert statistics.source == f"folder:{tmp_path}"
    assert statistics.source_hash == open_tiles(tmp_path).content_hash()
    assert statistics.mixture is not None
    assert [path.name for path in sorted(out.parent.iterdir())] == ["stain.json", "stain.quarantine.jsonl"]


def test_the_list_of_unreadable_tiles_is_this_fits(tissue, tmp_path):
    (tmp_path / "a.quarantine.jsonl").write_text('{"name": "other.png", "reason": "the file is empty"}\n')
    _, unreadable = fit(str(tissue), tmp_path / "a.json", limit=20)
    assert unreadable.summary() == "no unreadable tiles"
    assert not (tmp_path / "a.quarantine.jsonl").exists()


def test_an_independent_model_has_no_mixture(tissue, tmp_path):
    statistics, _ = fit(str(tissue), tmp_path / "a.json", model="independent")
    assert statistics.mixture is None
    assert len(tables(statistics)) == 1


def test_workers_change_no_byte(tissue, tmp_path):
    for workers in (0, 2):
        fit(str(tissue), tmp_path / f"{workers}.json", workers=workers)
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "2.json").read_bytes()


def test_a_subset_is_drawn_by_the_seed(tissue, tmp_path):
    tiles = open_tiles(tissue)
    few = subset(tiles, 20, seed=0)
    assert list(few.names) == list(subset(tiles, 20, seed=0).names) == sorted(few.names)
    assert list(few.names) != list(subset(tiles, 20, seed=1).names)
    assert len(set(few.names)) == 20
    assert subset(tiles, 10_000, seed=0) is tiles
    assert subset(tiles, None, seed=0) is tiles
    statistics, _ = fit(str(tissue), tmp_path / "a.json", limit=20)
    assert statistics.tiles + statistics.skipped == 20
    assert statistics.settings["limit"] == 20
    with pytest.raises(EosinError, match="--limit 0"):
        subset(tiles, 0, seed=0)


KILLED = """
import os, signal, sys
from pathlib import Path
import eosin.stain.measure as module
from eosin.stain import fit

module._SAVE_SECONDS, module._SAVE_SHARE = -1.0, 1e9
read = module.load_square
def reading(tiles, row, size):
    if row == 70:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(tiles, row, size)
module.load_square = reading
fit(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_killed_fit_goes_on_to_the_same_bytes(tissue, tmp_path, monkeypatch):
    out = tmp_path / "stain.json"
    done = subprocess.run([sys.executable, "-c", KILLED, str(tissue), str(out)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".stain.json.partial"]
    read, rows = module.load_square, []

    def reading(tiles, row, size):
        rows.append(row)
        return read(tiles, row, size)

    monkeypatch.setattr(module, "load_square", reading)
    fit(str(tissue), out)
    assert rows == list(range(64, len(open_tiles(tissue))))
    assert [path.name for path in tmp_path.iterdir()] == ["stain.json"]
    fit(str(tissue), tmp_path / "whole.json")
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()


@pytest.fixture(scope="module")
def three_stains(tmp_path_factory):
    """180 tiles from three stains that differ in color and in contrast."""
    folder = tmp_path_factory.mktemp("stains")
    generator = np.random.default_rng(5)
    stains = (((205, 125, 180), 9.0), ((120, 85, 165), 22.0), ((225, 165, 200), 15.0))
    for number in range(180):
        color, contrast = stains[number % 3]
        base = np.array(color) + generator.normal(0, 3.0, 3)
        noise = generator.normal(0, 1, (24, 24, 3)) * (contrast + generator.normal(0, 1.0, 3))
        Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.parametrize("space", ["lab", "hsv"])
def test_the_least_bic_finds_three_stains(three_stains, tmp_path, space):
    statistics, _ = fit(str(three_stains), tmp_path / "a.json", space=space)
    mixture = statistics.mixture
    assert len(mixture.weights) == 3
    assert min(mixture.bic, key=mixture.bic.get) == "3"
    assert mixture.weights == pytest.approx([1 / 3] * 3, abs=0.02)
    named = tables(statistics)
    assert [table.title for table in named] == [f"Stain in {space.upper()}", "Mixture"]
    assert [cell for cell in named[1].columns[1].cells if "←" in cell] == [f"{mixture.bic['3']:,.1f} ←"]


def test_a_given_number_of_components_is_kept(three_stains, tmp_path):
    statistics, _ = fit(str(three_stains), tmp_path / "a.json", components=2)
    assert len(statistics.mixture.weights) == 2
    assert list(statistics.mixture.bic) == ["2"]


def test_the_components_of_the_command_line():
    assert parse_components(None, "gmm") == parse_components("auto", "gmm") == "auto"
    assert parse_components(None, "independent") == "auto"
    assert parse_components("3", "gmm") == 3
    for text in ("0", "-1", "two", "1.5", "²"):
        with pytest.raises(EosinError, match="whole number from 1, or auto"):
            parse_components(text, "gmm")
    with pytest.raises(EosinError, match="independent model has none"):
        parse_components("3", "independent")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 106}, "has only 105 tiles"),
        ({"limit": 5, "components": 6}, "has only 5 tiles"),
        ({"limit": 1}, "at least 2 tiles"),
        ({"size": 4}, "--size 4"),
        ({"size": 100_000}, "--size 100000: give a side from 8 to 2,048 px"),
        ({"seed": -1}, "--seed -1: give a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "--seed 4294967296"),
        ({"splits": ["train"]}, "no tile has a split"),
        ({"quarantine_limit": 2.0}, "quarantine_limit 2.0"),
    ],
)
def test_settings_that_cannot_be(tissue, tmp_path, options, message):
    with pytest.raises(EosinError, match=message):
        fit(str(tissue), tmp_path / "a.json", **options)
    assert not (tmp_path / "a.json").exists()


def test_a_source_without_tissue(tmp_path, save_image):
    (tmp_path / "tiles").mkdir()
    for number in range(4):
        save_image(tmp_path / "tiles" / f"{number}.png", 245 + number)
    with pytest.raises(EosinError, match="none of the 4 tiles that were read shows stained tissue") as caught:
        fit(str(tmp_path / "tiles"), tmp_path / "a.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.json").exists()


def test_fewer_stained_tiles_than_components(tissue, tmp_path, save_image):
    (tmp_path / "tiles").mkdir()
    for path in sorted(tissue.glob("stroma/*.png"))[:3]:
        (tmp_path / "tiles" / path.name).write_bytes(path.read_bytes())
    for number in range(4):
        save_image(tmp_path / "tiles" / f"{number}.png", 255)
    with pytest.raises(EosinError, match=r"4 components needs as many tiles with tissue \(got 3\)"):
        fit(str(tmp_path / "tiles"), tmp_path / "a.json", components=4)


def test_places_that_cannot_be_written(tissue, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(EosinError, match=r"is a directory; give a file such as .*stain\.json"):
        fit(str(tissue), tmp_path / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(EosinError, match="is a file"):
        fit(str(tissue), tmp_path / "file" / "a.json")


def test_a_source_is_not_overwritten_by_mistake(tissue, tmp_path):
    index = tmp_path / "index.csv"
    index.write_text("file\n" + "\n".join(str(path) for path in sorted(tissue.glob("stroma/*.png"))) + "\n")
    before = index.read_text()
    with pytest.raises(EosinError, match=r"index\.csv: give a file name that ends in \.json, such as .*index\.json$"):
        fit(f"csv:{index}", index)
    assert index.read_text() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission(tissue, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(EosinError, match="not writable"):
        fit(str(tissue), tmp_path / "a.json")


def test_the_numbers_are_plain_json(tissue, tmp_path):
    fit(str(tissue), tmp_path / "a.json", limit=40)
    values = json.loads((tmp_path / "a.json").read_text())
    assert set(values["mixture"]) == {"weights", "means", "covariances", "bic"}
