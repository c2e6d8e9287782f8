"""Predictions in files, scored against a truth in files or of a set."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.io
import tifffile
from PIL import Image

from eosin.core.errors import EosinError
from eosin.nuclei.label_files import read_label_file
from eosin.nuclei.label_writers import write_labels
from eosin.nuclei.score import score_image
from eosin.nuclei.score_files import score_files, write_scores
from eosin.synthetic import render_tile


@pytest.fixture(scope="module")
def tiles():
    return {name: render_tile("tumor", size=128, mpp=0.25, slide=seed) for seed, name in enumerate("abc")}


@pytest.fixture
def truth(tiles, tmp_path):
    folder = tmp_path / "truth"
    folder.mkdir()
    for name, tile in tiles.items():
        np.savez(folder / f"{name}.npz", inst_map=tile.instances, type_map=np.where(tile.types > 1, 2, tile.types))
    return folder


def write_guesses(folder, tiles, typed=True):
    folder.mkdir()
    for name, tile in tiles.items():
        labels, types = np.roll(tile.instances, 2, axis=1), np.roll(np.where(tile.types > 1, 2, tile.types), 2, axis=1)
        if typed:
            scipy.io.savemat(
                folder / f"{name}.mat", {"inst_map": labels.astype(float), "type_map": types.astype(float)}
            )
        else:
            write_labels(labels, folder / name, "png")
    return folder


def test_scores_are_those_of_the_arrays(tiles, truth, tmp_path):
    guesses = write_guesses(tmp_path / "guesses", tiles)
    scored = score_files(guesses, str(truth))
    assert scored.types == {1: "type 1", 2: "type 2"}
    for row, (name, tile) in zip(scored.images, tiles.items(), strict=True):
        types = np.where(tile.types > 1, 2, tile.types)
        wanted = score_image(
            name, tile.instances, np.roll(tile.instances, 2, axis=1), types, np.roll(types, 2, axis=1), (1, 2)
        )
        assert row["image"] == name
        assert row["pq"] == wanted.metrics["pq"]
        assert row["tp:type 2"] == wanted.types[1].tp
    assert {"mpq_pannuke", "mpq_image", "mpq_set", "f:type 1"} <= scored.metrics.keys()
    assert scored.metrics["pq"]["low"] <= scored.metrics["pq"]["value"] <= scored.metrics["pq"]["high"]


def test_both_ways_of_pairing_are_reached(tmp_path):
    """Two true and two found nuclei of which the official way loses a near pair; see test_types.py."""
    for name, places in {"truth": [(20, 20), (20, 30)], "guesses": [(24, 32), (20, 43)]}.items():
        labels = np.zeros((64, 64), np.uint16)
        for number, (y, x) in enumerate(places, 1):
            labels[y - 1 : y + 2, x - 1 : x + 2] = number
        (tmp_path / name).mkdir()
        Image.fromarray(labels).save(tmp_path / name / "a.png")
    found = {
        pairing: score_files(tmp_path / "guesses", str(tmp_path / "truth"), pairing=pairing)
        for pairing in ("official", "within")
    }
    assert {name: scored.metrics["f_d"]["value"] for name, scored in found.items()} == {"official": 0.0, "within": 0.5}
    path = write_scores(found["within"], tmp_path / "scores.json")
    assert json.loads(path.read_text())["centers"] == {"pairing": "within", "radius_px": None}


def test_without_types_on_one_side_none_are_scored(tiles, truth, tmp_path):
    guesses = write_guesses(tmp_path / "guesses", tiles, typed=False)
    scored = score_files(guesses, str(truth))
    assert scored.types == {}
    assert scored.metrics["pq"]["value"] > 0
    assert "mpq_set" not in scored.metrics


def test_types_of_some_files_only_are_refused(tiles, truth, tmp_path):
    guesses = write_guesses(tmp_path / "guesses", tiles)
    np.save(guesses / "b.npy", tiles["b"].instances)
    (guesses / "b.mat").unlink()
    with pytest.raises(EosinError, match=r"guesses: 'b' has no types .* 'a' has"):
        score_files(guesses, str(truth))


def write_predictions(out, tiles):
    """Write what `predict` would."""
    out.mkdir()
    (out / "labels").mkdir()
    (out / "tables").mkdir()
    lines = []
    for name, tile in tiles.items():
        write_labels(tile.instances, out / "labels" / name, "png")
        outputs = {"labels": f"labels/{name}.png", "table": f"tables/{name}.csv"}
        (out / outputs["table"]).write_text("type\n" + "1\n" * int(tile.instances.max()))
        record = {"name": name, "path": f"{name}.png", "status": "done", "nuclei": 1, "file": {}, "outputs": outputs}
        lines.append(json.dumps(record))
    (out / "pictures.jsonl").write_text("\n".join(lines) + "\n")
    (out / "predict.json").write_text(json.dumps({"model": {"classes": ["only"]}}))
    return out


def test_types_that_have_no_name_are_refused(tiles, truth, tmp_path):
    """As CoNSeP's seven of raw files, where a network says four: scored by number they would be wrong and look right."""
    out = write_predictions(tmp_path / "out", tiles)
    with pytest.raises(EosinError, match=r"truth: '.' holds the type 2, but there are 1 \(only\).*consep:ROOT"):
        score_files(out, str(truth))


@pytest.mark.parametrize(
    ("change", "message"), [("zero", "no pixel with a type"), ("moved", "not more than half|outside all nuclei")]
)
def test_true_types_that_disagree_with_the_nuclei_are_refused(tiles, truth, tmp_path, change, message):
    guesses = write_guesses(tmp_path / "guesses", tiles)
    types = tiles["b"].types * 0 if change == "zero" else np.roll(tiles["b"].types, 9, axis=0)
    np.savez(truth / "b.npz", inst_map=tiles["b"].instances, type_map=types)
    with pytest.raises(EosinError, match=message):
        score_files(guesses, str(truth))


def test_files_hold_what_was_scored(tiles, truth, tmp_path):
    scored = score_files(truth, str(truth))
    assert scored.metrics["pq"]["value"] == 1
    held = json.loads(write_scores(scored, tmp_path / "scores.json").read_text())
    assert held["metrics"] == scored.metrics
    assert [row["image"] for row in held["images"]] == ["a", "b", "c"]
    assert len(write_scores(scored, tmp_path / "scores.csv").read_text().splitlines()) == 4
    with pytest.raises(EosinError, match=r"ends in \.json"):
        write_scores(scored, tmp_path / "scores.xlsx")


def test_lists_that_do_not_match_are_named(tiles, truth, tmp_path):
    guesses = write_guesses(tmp_path / "guesses", tiles)
    (guesses / "b.mat").rename(guesses / "d.mat")
    with pytest.raises(EosinError, match=r"guesses: no prediction of 'b' of .*truth; it has 'd'"):
        score_files(guesses, str(truth))
    (truth / "b.npz").unlink()
    with pytest.raises(EosinError, match=r"truth: no label map of 'd' of .*guesses"):
        score_files(guesses, str(truth))
    with pytest.raises(EosinError, match=r"nowhere: no such folder; give a folder of label maps, or a set"):
        score_files(tmp_path / "nowhere", str(truth))
    with pytest.raises(EosinError, match="holds no label maps"):
        (tmp_path / "bare").mkdir()
        score_files(guesses, str(tmp_path / "bare"))


def test_a_map_of_another_size_is_refused_by_name(tiles, truth, tmp_path):
    guesses = write_guesses(tmp_path / "guesses", tiles)
    values = {"inst_map": tiles["b"].instances[:-1].astype(float), "type_map": tiles["b"].types[:-1].astype(float)}
    scipy.io.savemat(guesses / "b.mat", values)
    with pytest.raises(EosinError, match=r"b \(prediction\): the label map is 128x127 px"):
        score_files(guesses, str(truth))


@pytest.mark.parametrize("form", ["png", "tiff", "npy"])
def test_label_maps_come_back(tmp_path, form):
    labels = np.arange(12).reshape(3, 4) * 5461
    assert (read_label_file(write_labels(labels, tmp_path / "a", form)).labels == labels).all()
    many = labels + 70_000
    path = write_labels(many, tmp_path / "b", form)
    # Ids of more than 16 bits are not wrapped.
    assert path.suffix == {"png": ".tiff"}.get(form, f".{form}")
    assert (read_label_file(path).labels == many).all()


def test_types_of_a_list_by_id(tmp_path):
    labels = np.array([[0, 3, 3], [7, 7, 0]])
    lizard = {"inst_map": labels, "id": [[7], [3]], "class": [[1], [2]]}
    scipy.io.savemat(tmp_path / "lizard.mat", lizard)
    assert read_label_file(tmp_path / "lizard.mat").types.tolist() == [2, 1]
    scipy.io.savemat(tmp_path / "short.mat", {"inst_map": labels, "inst_type": [[1], [2], [2]]})
    with pytest.raises(EosinError, match=r"short\.mat: nucleus 7 has no entry in 'inst_type'"):
        read_label_file(tmp_path / "short.mat")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ({"x": 1}, "line 4 has no valid 'name'"),
        ({"name": "b"}, "line 4 of 'b' has no valid 'path'"),
        ({"name": "b", "path": "b.png", "status": "done", "outputs": [], "file": {}}, "line 4 of 'b' .* 'outputs'"),
        ({"name": "b", "path": "b.png", "status": "done", "outputs": {"table": "t"}, "file": 5}, "line 4 of .* 'file'"),
    ],
)
def test_a_damaged_line_is_told(tiles, truth, tmp_path, line, fault):
    out = write_predictions(tmp_path / "out", tiles)
    lines = out / "pictures.jsonl"
    whole = lines.read_text()
    lines.write_text(whole + json.dumps(line) + "\n")
    with pytest.raises(EosinError, match=rf"pictures\.jsonl: {fault}.*; remove that line and run the same `eosin nuc"):
        score_files(out, str(truth))
    # A later line of the same picture is what counts.
    if "name" in line:
        lines.write_text(json.dumps(line) + "\n" + whole)
        with pytest.raises(EosinError, match="but there are 1"):
            score_files(out, str(truth))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("labels/b.png", b"\x89PNG", r"labels/b\.png: cannot be read .*"),
        ("tables/b.csv", b"kind\n1\n", r"tables/b\.csv: cannot be read"),
        ("tables/b.csv", b"type,x\n1,1\n,1\n", r"tables/b\.csv: row 2 has no 'type'.*"),
        ("tables/b.csv", b"type\n1.5\n", r"tables/b\.csv: 'type' holds 1\.5"),
        ("tables/b.csv", b"type\n1000000\n", r"tables/b\.csv: 'type' holds 1e\+06"),
    ],
)
def test_a_damaged_output_can_be_made_again(tiles, truth, tmp_path, name, content, fault):
    out = write_predictions(tmp_path / "out", tiles)
    (out / name).write_bytes(content)
    with pytest.raises(EosinError, match=rf"{fault}; remove it and run the same `eosin nuclei predict`$"):
        score_files(out, str(truth))


@pytest.mark.parametrize(
    ("types", "fault"),
    [
        ([1e6, 1], "holds 1e[+]06"),
        ([1.5, 1], "holds 1.5"),
        ([np.nan, 1], "holds nan"),
        ([-1, 1], "holds -1"),
        (np.array(["tumor", "other"], dtype=object), "is a cell array"),
        (["tumor", "other"], "is text"),
    ],
)
def test_types_are_whole_numbers_of_a_byte(tmp_path, types, fault):
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, {"inst_map": np.array([[0, 1, 1], [2, 2, 0]]), "inst_type": types})
    for truth in (False, True):
        with pytest.raises(EosinError, match=rf"a\.mat: 'inst_type' {fault}; types are whole numbers from 0 to 255$"):
            read_label_file(path, truth=truth)


def test_a_map_of_types_and_ids_beyond_are_refused(tmp_path):
    labels = np.array([[0, 1, 1], [2, 2, 0]])
    np.savez(tmp_path / "a.npz", inst_map=labels, type_map=labels * 1000)
    for truth in (False, True):
        with pytest.raises(EosinError, match="'type_map' holds [12]000; types are whole numbers from 0 to 255"):
            read_label_file(tmp_path / "a.npz", truth=truth)
    scipy.io.savemat(tmp_path / "b.mat", {"inst_map": labels, "id": [[1.5], [2]], "class": [[1], [2]]})
    with pytest.raises(EosinError, match=r"'id' holds 1\.5; ids are whole numbers"):
        read_label_file(tmp_path / "b.mat")
    scipy.io.savemat(tmp_path / "c.mat", {"inst_map": labels, "id": [[1], [2], [3]], "class": [[1], [2]]})
    with pytest.raises(EosinError, match="3 entries in 'id' but 2 in 'class'"):
        read_label_file(tmp_path / "c.mat")


def test_damaged_and_colored_files_are_named(tmp_path):
    write_labels(np.random.default_rng(0).integers(0, 900, (30, 30)), tmp_path / "a", "png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(EosinError, match=r"a\.png: cannot be read"):
        read_label_file(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(EosinError, match=r"b\.png: an RGB picture"):
        read_label_file(tmp_path / "b.png")
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(EosinError, match=r"c\.tif: ids are of type float32"):
        read_label_file(tmp_path / "c.tif")
