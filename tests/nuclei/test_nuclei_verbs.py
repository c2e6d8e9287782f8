"""The verbs: what they print, and what is wrong with their arguments, in one line."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from eosin.cli import main


@pytest.fixture
def maps(tmp_path):
    labels = np.zeros((20, 30), np.uint16)
    labels[2:8, 3:9], labels[12:18, 3:25] = 1, 2
    for folder in ("found", "truth"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", labels)
    return tmp_path


def test_score_prints_a_table_and_writes_a_file(maps, capsys):
    words = ["nuclei", "score", str(maps / "found"), str(maps / "truth"), "--out", str(maps / "s.csv")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "1 images, 95 % intervals over 1 images" in said
    row = next(line.split() for line in said.splitlines() if "aji_plus" in line)
    assert "1.0000" in row
    assert (maps / "s.csv").read_text().startswith("image,")


@pytest.mark.parametrize(("failed", "code"), [((), 0), (({"name": "b"},), 2)])
def test_predict_fails_where_a_picture_did(failed, code, monkeypatch):
    from eosin.nuclei import model, predict

    monkeypatch.setattr(model.NucleiModel, "load", lambda *_, **__: None)
    monkeypatch.setattr(predict, "predict", lambda *_, **__: SimpleNamespace(failed=failed))
    assert main(["nuclei", "predict", "run", "x.png", "--out", "o"]) == code


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["predict", "nowhere", "x.png", "--out", "o"], "nowhere: no such run directory or file"),
        (["predict", "nowhere", "--out", "o"], "give images or slides: eosin nuclei predict nowhere IMAGES"),
        (["predict", "nowhere", "x.png"], "eosin nuclei predict: --out missing"),
        (["predict", "run", "x.png", "--out", "o", "--mpp", "100"], "field 'mpp'"),
        (["predict", "run", "x.png", "--out", "o", "--lables", "png"], "did you mean '--labels'?"),
        (["score", "found", "nowhere"], "nowhere: no such folder; give a folder of label maps, or a set"),
        (["score", "found", "nowhere", "--out", "x.txt"], "x.txt: give a file name that ends in .json"),
        (
            ["score", "found", "nowhere", "--out", "found"],
            "found: is a directory; give a file such as found/scores.json",
        ),
        (["train", "nuclei-small", "--out", "o"], "--data is missing"),
        (["train", "nuclei-small", "--data", "synthetic:"], "--out is missing"),
        (["train", "hovernett", "--data", "synthetic:"], "did you mean 'hovernet'?"),
        (["train", "--data", "synthetic:", "--out", "o", "--decoder.lrr", "1"], "did you mean"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(words, problem, maps, monkeypatch, capsys):
    monkeypatch.chdir(maps)
    assert main(["nuclei", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert problem in said
    assert "\n" not in said
    assert not (maps / "o").exists()
