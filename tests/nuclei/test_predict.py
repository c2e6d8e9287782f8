"""Prediction of images and slides: the nuclei, the files, stops, what is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from threading import Event
from threading import enumerate as enumerate_threads
from time import sleep
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import tifffile
import torch
from PIL import Image

from eosin.core.errors import EosinError
from eosin.core.files import DirectoryLock
from eosin.nuclei import label_writers
from eosin.nuclei.config import PostprocessConfig
from eosin.nuclei.found import Nuclei
from eosin.nuclei.label_files import read_label_file
from eosin.nuclei.metrics import pq
from eosin.nuclei.model import Maps
from eosin.nuclei.pictures import Picture, open_picture
from eosin.nuclei.postprocess import postprocess
from eosin.nuclei.predict import PredictConfig, predict
from eosin.nuclei.predict_run import PredictRun
from eosin.nuclei.results import Results, remove_unfinished
from eosin.nuclei.shelf import Shelf
from eosin.nuclei.targets import targets
from eosin.slides import FoundSlide, TissueConfig, read_regions
from eosin.slides.errors import UnusableSlide
from eosin.synthetic import render_tile

GLASS = 255
# Maps painted as colors look like ink.
INK = TissueConfig(pen=False)


def painted(size=200, seed=0, mpp=0.25):
    """An image, uint8 [H, W, 3], whose red is the nucleus map, green the horizontal and blue the vertical one."""
    labels = render_tile("tumor", size=size, mpp=mpp, slide=seed).instances
    wanted = targets(labels)
    hv = np.round((wanted.hv + 1) * 127).clip(0, 254)
    return np.stack([wanted.np * 200, *hv], axis=-1).astype(np.uint8)


def read_off(pixels, typed=True):
    """The maps that an image was painted of, uint8 [..., 3, H, W]."""
    probability = (pixels[..., 0, :, :] % GLASS).astype(np.float32) / 255
    hv = pixels[..., 1:, :, :].astype(np.float32) / 127 - 1
    if not typed:
        return probability, hv, None
    left = pixels[..., 1, :, :] < 100
    kinds = np.stack([probability < 0.5, left, ~left], axis=-3)
    return probability, hv, kinds.astype(np.float32)


class Pretender:
    """Obeys the contract of `NucleiModel`."""

    window, output = 60, 44
    name = "pretender"

    def __init__(self, mpp=0.25, typed=True, stop_after=None, fingerprint="0123456789abcdef", precision="fp32"):
        self.mpp = mpp
        self.classes = ("left", "right") if typed else ()
        self.fingerprint = fingerprint
        self.postprocess = PostprocessConfig(scale=1.0 if mpp is None else 0.25 / mpp)
        self.device = SimpleNamespace(type="cpu")
        self.precision = precision
        self.seen = 0
        self._left = stop_after

    def maps(self, images):
        assert images.shape[1:] == (3, self.window, self.window)
        self.seen += len(images)
        if self._left is not None and self.seen > self._left:
            raise KeyboardInterrupt
        margin = (self.window - self.output) // 2
        inner = images.numpy()[:, :, margin:-margin, margin:-margin]
        return Maps(*read_off(inner, bool(self.classes)))


def expected(pixels, scale=1.0, typed=True):
    """The nuclei of a painted image, looked at as a whole."""
    found = postprocess(*read_off(pixels.transpose(2, 0, 1), typed), scale=scale, normalise="fixed")
    return Nuclei.of(found.table, found.instances), found.instances


def write_slide(path, pixels, mpp=0.25):
    scale = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    tifffile.imwrite(path, pixels, tile=(128, 128), compression="zlib", photometric="rgb", **scale)
    return path


def files(out):
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (".lock", "pictures.jsonl")
    }


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(painted(150)).save(folder / "a.png")
    Image.fromarray(painted(97, 1)[:31]).save(folder / "b.png")
    return folder


def test_the_label_map_of_an_image_is_that_of_the_whole(images, tmp_path):
    result = predict(Pretender(), [images], tmp_path / "out", PredictConfig(block=64), progress=False)
    assert result.done == 2
    assert not result.failed
    for name, pixels in (("a", painted(150)), ("b", painted(97, 1)[:31])):
        _, instances = expected(pixels)
        found = read_label_file(tmp_path / "out" / "labels" / f"{name}.png").labels
        assert found.shape == instances.shape
        score = pq(instances, found)
        assert (score.fp, score.fn) == (0, 0)
        assert score.iou_sum == score.tp > 0


def test_table_geojson_and_labels_say_the_same(images, tmp_path):
    out = tmp_path / "out"
    predict(Pretender(), [images / "a.png"], out, PredictConfig(objects="cell"), progress=False)
    table = pyarrow.parquet.read_table(out / "tables" / "a.parquet").to_pylist()
    collection = json.loads((out / "geojson" / "a.geojson").read_text())
    labels = read_label_file(out / "labels" / "a.png").labels
    assert collection["type"] == "FeatureCollection"
    assert len(collection["features"]) == len(table) == labels.max()
    for row, feature in zip(table, collection["features"], strict=True):
        ring = np.array(feature["geometry"]["coordinates"][0])
        assert (ring[0] == ring[-1]).all()
        x, y = ring.T
        area = abs((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) / 2
        inside = labels == row["id"]
        assert row["area_px"] == inside.sum()
        assert area >= row["area_px"]  # holes are filled
        rows, columns = np.nonzero(inside)
        assert row["x"] == pytest.approx(columns.mean() + 0.5)
        assert row["y"] == pytest.approx(rows.mean() + 0.5)
        assert (row["left"], row["right"]) == (columns.min(), columns.max() + 1) == (x.min(), x.max())
        # The image says nothing of µm.
        assert row["x_um"] is None
        assert row["area_um2"] is None
        said = feature["properties"]
        assert said["objectType"] == "cell"
        assert feature["nucleusGeometry"] == feature["geometry"]
        assert said["classification"]["name"] == row["class"] == ("left", "right")[row["type"] - 1]
        assert len(said["classification"]["color"]) == 3
        assert said["measurements"]["Probability"] == pytest.approx(row["probability"], abs=1e-4)
    assert len({feature["id"] for feature in collection["features"]}) == len(table)
    assert len(read_regions(out / "geojson" / "a.geojson").polygons) == len(table)
    with Image.open(out / "overlays" / "a.png") as overlay:
        assert overlay.size == (300, 326)


def slide_pixels(side=300, glass=150, mpp=0.25):
    pixels = np.full((side, side + glass, 3), GLASS, np.uint8)
    pixels[:, :side] = painted(side, mpp=mpp)
    return pixels


def test_a_slide_is_searched_where_there_is_tissue(tmp_path):
    pixels = slide_pixels(glass=400)
    write_slide(tmp_path / "s.tif", pixels)
    model = Pretender()
    config = PredictConfig(block=128, labels="tiff", tissue=INK)
    result = predict(model, [tmp_path / "s.tif"], tmp_path / "out", config, progress=False)
    assert result.records[0]["kind"] == "slide"
    # The tissue's 7 columns of windows, and those within 16 µm.
    assert 7 * 7 < model.seen <= 7 * 9
    _, instances = expected(pixels)
    labels = read_label_file(tmp_path / "out" / "labels" / "s.tiff").labels
    score = pq(instances, labels)
    assert score.iou_sum == score.tp == instances.max() > 30
    assert score.fp == 0
    whole = Pretender()
    predict(whole, [tmp_path / "s.tif"], tmp_path / "all", PredictConfig(whole=True), progress=False)
    assert whole.seen == 7 * 16


@pytest.mark.parametrize("shelf", [0, 1 << 30])
def test_blocks_and_memory_do_not_change_the_nuclei(tmp_path, monkeypatch, shelf):
    monkeypatch.setattr("eosin.nuclei.stream._SHELF", shelf)
    pixels = painted(300)
    write_slide(tmp_path / "s.tif", pixels)
    config = PredictConfig(block=70, whole=True, labels="tiff", overlays=False)
    predict(Pretender(), [tmp_path / "s.tif"], tmp_path / "out", config, progress=False)
    labels = read_label_file(tmp_path / "out" / "labels" / "s.tiff").labels
    _, instances = expected(pixels)
    score = pq(instances, labels)
    assert score.iou_sum == score.tp == instances.max()
    assert score.fp == 0


def test_a_stopped_run_goes_on_and_ends_with_the_same_files(tmp_path, monkeypatch):
    pixels = slide_pixels(side=256, mpp=0.5)
    write_slide(tmp_path / "s.tif", pixels, mpp=0.5)
    config = PredictConfig(block=70, labels="tiff", tissue=INK)
    kept = []
    keep = PredictRun._keep
    monkeypatch.setattr(
        PredictRun, "_keep", lambda run, opened, work, found: kept.append(work.number) or keep(run, opened, work, found)
    )
    predict(Pretender(mpp=0.5), [tmp_path / "s.tif"], tmp_path / "whole", config, progress=False)
    every = list(kept)
    out = tmp_path / "out"
    kept.clear()
    with pytest.raises(KeyboardInterrupt):
        predict(Pretender(mpp=0.5, stop_after=40), [tmp_path / "s.tif"], out, config, progress=False)
    assert kept == every[: len(kept)]
    assert 0 < len(kept) < len(every)
    assert not [*out.glob("geojson/*"), *out.glob("geojson/.*"), *out.glob("tables/*")]
    left_over = ("geojson/.s.geojson.8hx2.part", "tables/.s.parquet.9c_q.part", "labels/.s.tiff.a_b1.part")
    for left in (*left_over, "overlays/deep/.s.png.00zz.part"):  # as kill -9 leaves them
        (out / left).parent.mkdir(parents=True, exist_ok=True)
        (out / left).write_bytes(b"half")
    kept_before = list(kept)
    kept.clear()
    result = predict(Pretender(mpp=0.5), [tmp_path / "s.tif"], out, config, progress=False)
    assert result.done == 1
    assert kept_before + kept == every
    assert files(out) == files(tmp_path / "whole")
    third = Pretender(mpp=0.5)
    again = predict(third, [tmp_path / "s.tif"], out, config, progress=False)
    assert (again.kept, third.seen) == (1, 0)


def test_processes_write_the_same_files(images, tmp_path, monkeypatch):
    write_slide(images / "s.tif", slide_pixels(side=200))
    config = PredictConfig(block=70, labels="tiff", tissue=INK)
    predict(Pretender(), [images], tmp_path / "threads", config, progress=False)

    def write(*_):
        raise AssertionError("written in this process")

    # A process looks the method up by its name, in a class of its own.
    monkeypatch.setattr(Results, "write", write)
    on_gpu = Pretender()
    on_gpu.device = SimpleNamespace(type="cuda")
    result = predict(on_gpu, [images], tmp_path / "processes", config, progress=False)
    assert result.done == 3
    assert {record["kind"] for record in result.records} == {"image", "slide"}
    assert files(tmp_path / "threads") == files(tmp_path / "processes")


def test_a_run_that_is_stopped_ends_the_label_map_of_a_slide(tmp_path, monkeypatch):
    write_slide(tmp_path / "s.tif", slide_pixels(side=200))
    config = PredictConfig(block=70, labels="tiff", tissue=INK)
    monkeypatch.setattr(label_writers, "_TILE", 64)
    begun, runs = Event(), []
    settle = PredictRun._settle

    def interrupted(run, *arguments):
        if run._closing:
            runs.append(run)
            assert begun.wait(60)
            raise KeyboardInterrupt
        settle(run, *arguments)

    def slowly(labels, *_):
        # As slow as the map of a large slide: the run is stopped before it is written.
        begun.set()
        assert runs[0]._stopped.wait(60)

    with monkeypatch.context() as patched:
        patched.setattr(Nuclei, "paint", slowly)
        patched.setattr(PredictRun, "_settle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(Pretender(), [tmp_path / "s.tif"], tmp_path / "out", config, progress=False)
    assert not list((tmp_path / "out" / "labels").iterdir())
    assert nothing_is_left_of(tmp_path / "s.tif")
    predict(Pretender(), [tmp_path / "s.tif"], tmp_path / "out", config, progress=False)
    predict(Pretender(), [tmp_path / "s.tif"], tmp_path / "whole", config, progress=False)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def nothing_is_left_of(path):
    """Whether no file of a picture is open, and nothing is being written."""
    opened = [str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.exists()]
    return str(path) not in opened and not [thread for thread in enumerate_threads() if thread.name == "outputs"]


@pytest.mark.parametrize("name", ["a.png", "s.tif"])
def test_an_interruption_while_a_picture_is_closed_leaves_nothing(images, tmp_path, monkeypatch, name):
    write_slide(images / "s.tif", slide_pixels(side=200))
    close_readers = Picture.close_readers

    def interrupted(picture):
        close_readers(picture)
        if picture.path.name == name and picture not in left:
            left.append(picture)
            raise KeyboardInterrupt

    left = []
    monkeypatch.setattr(Picture, "close_readers", interrupted)
    config = PredictConfig(block=70, tissue=INK)
    with pytest.raises(KeyboardInterrupt):
        predict(Pretender(), [images / "s.tif", images / "a.png"], tmp_path / "out", config, progress=False)
    assert nothing_is_left_of(images / name)
    assert not list((tmp_path / "out").rglob("*.part"))


def test_pictures_that_are_whole_when_a_run_is_stopped_are_not_made_again(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(painted(60, number)).save(folder / f"{number}.png")
    settle = PredictRun._settle

    def interrupted(run, shown, most=0, slides=0):
        if len(run._closing) == 3:
            raise KeyboardInterrupt
        if not most:
            settle(run, shown, most, slides)

    with monkeypatch.context() as patched:
        patched.setattr(PredictRun, "_settle", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(Pretender(), [folder], tmp_path / "out", progress=False)
    result = predict(Pretender(), [folder], tmp_path / "out", progress=False)
    # The third was waiting for the one thread that writes, or had begun.
    assert result.kept >= 1
    assert result.done + result.kept == 4


def test_few_pictures_wait_for_their_files(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(30):
        Image.fromarray(painted(60, number % 3)).save(folder / f"{number:02d}.png")
    waiting = []
    close, write = PredictRun._close, Results.write
    monkeypatch.setattr(
        PredictRun, "_close", lambda run, picture: waiting.append(len(run._closing)) or close(run, picture)
    )
    monkeypatch.setattr(Results, "write", lambda *arguments: sleep(0.03) or write(*arguments))
    assert predict(Pretender(), [folder], tmp_path / "out", progress=False).done == 30
    assert max(waiting) == 8


def test_blank_slides_are_not_all_opened_first(tmp_path, monkeypatch):
    for number in range(60):
        write_slide(tmp_path / f"{number:02d}.tif", np.full((64, 64, 3), 255, np.uint8))
    most = []
    close = PredictRun._close
    monkeypatch.setattr(PredictRun, "_close", lambda run, picture: most.append(len(run._open)) or close(run, picture))
    config = PredictConfig(labels="none")
    result = predict(Pretender(), sorted(tmp_path.glob("*.tif")), tmp_path / "out", config, progress=False)
    assert result.done == 60
    assert result.nuclei == 0
    assert max(most) < 40


def test_few_slides_wait_for_their_files_and_what_is_drawn_over_is_read_last(tmp_path, monkeypatch):
    for number in range(8):
        write_slide(tmp_path / f"{number}.tif", np.full((64, 64, 3), 255, np.uint8))
    waiting, closed, early = [], [], []
    close, thumbnail, write_labels = PredictRun._close, Picture.thumbnail, Results.write_labels

    def noted(run, picture):
        waiting.append(len(run._closing))
        closed.append(picture)
        close(run, picture)

    monkeypatch.setattr(PredictRun, "_close", noted)
    monkeypatch.setattr(
        Picture,
        "thumbnail",
        lambda picture, longest: early.append(picture not in closed) or thumbnail(picture, longest),
    )
    monkeypatch.setattr(Results, "write_labels", lambda *arguments: sleep(0.1) or write_labels(*arguments))
    slides, config = sorted(tmp_path.glob("*.tif")), PredictConfig(labels="tiff")
    assert predict(Pretender(), slides, tmp_path / "out", config, progress=False).done == 8
    assert max(waiting) == 2
    assert early == [False] * 8


def test_a_folder_that_is_named_like_a_half_written_file_stays(tmp_path):
    folder = tmp_path / "labels" / ".a.part"
    folder.mkdir(parents=True)
    (folder / ".b.png.x1.part").write_bytes(b"half")
    remove_unfinished(tmp_path)
    assert not list(folder.iterdir())


def test_a_label_map_is_made_of_blocks_that_are_written(tmp_path, monkeypatch):
    write_slide(tmp_path / "s.tif", slide_pixels(side=200))
    config = PredictConfig(block=70, labels="tiff", tissue=INK, overlays=False)
    predict(Pretender(), [tmp_path / "s.tif"], tmp_path / "whole", config, progress=False)
    save = Nuclei.save
    monkeypatch.setattr(Nuclei, "save", lambda part, path: sleep(0.2) or save(part, path))
    predict(Pretender(), [tmp_path / "s.tif"], tmp_path / "out", config, progress=False)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(images, tmp_path, monkeypatch, at):
    write_slide(images / "s.tif", slide_pixels(side=200))
    config = PredictConfig(block=70, labels="tiff", tissue=INK)
    synced, done = os.fsync, []

    def full(descriptor):
        done.append(descriptor)
        if len(done) >= at:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(EosinError, match="no space left on the device; free some"):
            predict(Pretender(), [images], tmp_path / "out", config, progress=False)
    assert not list((tmp_path / "out").rglob("*.part"))
    assert nothing_is_left_of(images / "s.tif")
    predict(Pretender(), [images], tmp_path / "out", config, progress=False)
    predict(Pretender(), [images], tmp_path / "whole", config, progress=False)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_processes_that_search_do_without_torch():
    code = "import sys, eosin.nuclei.preload; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize("name", ["a.png", "s.tif"])
def test_a_picture_that_cannot_be_shown_fails_and_the_others_go_on(images, tmp_path, monkeypatch, name):
    write_slide(images / "s.tif", slide_pixels(side=200))
    thumbnail = Picture.thumbnail

    def damaged(picture, longest):
        if picture.path.name == name:
            raise UnusableSlide("damaged in its middle")
        return thumbnail(picture, longest)

    monkeypatch.setattr(Picture, "thumbnail", damaged)
    config = PredictConfig(block=70, tissue=INK)
    result = predict(Pretender(), [images], tmp_path / "out", config, progress=False)
    assert [(Path(failed["path"]).name, failed["reason"]) for failed in result.failed] == [
        (name, "damaged in its middle")
    ]
    assert result.done == 2
    stem = name.partition(".")[0]
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.lstrip(".").startswith(f"{stem}.")]
    monkeypatch.setattr(Picture, "thumbnail", thumbnail)
    assert predict(Pretender(), [images], tmp_path / "out", config, progress=False).done == 1


def test_a_run_that_goes_on_with_other_blocks_begins_the_slide_anew(tmp_path):
    """As it does on another device, where blocks have another size."""
    write_slide(tmp_path / "s.tif", slide_pixels(side=256, mpp=0.5), mpp=0.5)
    whole = predict(
        Pretender(mpp=0.5), [tmp_path / "s.tif"], tmp_path / "whole", PredictConfig(tissue=INK), progress=False
    )
    with pytest.raises(KeyboardInterrupt):
        predict(
            Pretender(mpp=0.5, stop_after=40),
            [tmp_path / "s.tif"],
            tmp_path / "out",
            PredictConfig(block=70, tissue=INK),
            progress=False,
        )
    config = PredictConfig(block=100, tissue=INK)
    result = predict(Pretender(mpp=0.5), [tmp_path / "s.tif"], tmp_path / "out", config, progress=False)
    assert result.nuclei == whole.nuclei > 0
    with pytest.raises(EosinError, match="precision"):
        predict(Pretender(mpp=0.5, precision="bf16"), [tmp_path / "s.tif"], tmp_path / "out", config, progress=False)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), BrokenProcessPool("gone")])
def test_want_of_memory_is_one_line(images, tmp_path, error):
    network = Pretender()

    def fail(_):
        raise error

    network.maps = fail
    with pytest.raises(EosinError, match="memory.*--batch-size"):
        predict(network, [images], tmp_path / "out", progress=False)
    assert not [*(tmp_path / "out").glob("*/.*"), *(tmp_path / "out").glob("*/*")]


def test_coordinates_are_those_of_level_0(tmp_path):
    pixels = painted(160)
    big = pixels.repeat(2, axis=0).repeat(2, axis=1)
    write_slide(tmp_path / "s.tif", big, mpp=0.25)
    model = Pretender(mpp=0.5)
    predict(model, [tmp_path / "s.tif"], tmp_path / "out", PredictConfig(whole=True), progress=False)
    nuclei, _ = expected(pixels, scale=0.5)
    table = pyarrow.parquet.read_table(tmp_path / "out" / "tables" / "s.parquet").to_pydict()
    assert sorted(table["area_px"]) == sorted(nuclei.areas.tolist())
    assert sorted(table["area_um2"]) == pytest.approx(sorted(nuclei.areas * 0.25))
    assert sorted(table["x"]) == pytest.approx(sorted(2 * nuclei.centroids[:, 0] + 1))
    assert sorted(table["x_um"]) == pytest.approx(sorted((nuclei.centroids[:, 0] + 0.5) / 2))
    regions = read_regions(tmp_path / "out" / "geojson" / "s.geojson")
    assert max(polygon.rings[0].max() for polygon in regions.polygons) > 300


def test_windows_beyond_the_border_are_mirrored_whatever_is_read_with_them(tmp_path):
    from eosin.nuclei.pictures import Strip

    pixels = painted(100)[:50]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    picture = open_picture(FoundSlide(tmp_path / "a.png", "a"), mpp=None)
    padded = np.pad(pixels, ((8, 60), (8, 60), (0, 0)), mode="reflect")
    both = picture.windows(Strip(1, 0, 3), 60, 44)
    for column in range(3):
        wanted = padded[44:104, 44 * column : 44 * column + 60]
        assert (both[column] == wanted).all()
        assert (picture.windows(Strip(1, column, column + 1), 60, 44)[0] == wanted).all()


def test_a_damaged_image_is_named_and_the_others_go_on(images, tmp_path):
    data = (images / "a.png").read_bytes()
    (images / "c.png").write_bytes(data[: len(data) // 2])
    out = tmp_path / "out"
    result = predict(Pretender(), [images], out, progress=False)
    assert [record["name"] for record in result.failed] == ["c"]
    assert "c.png" in result.failed[0]["path"]
    assert "decoded" in result.failed[0]["reason"]
    assert not list(out.rglob("c.*"))
    (images / "c.png").write_bytes(data)
    mended = predict(Pretender(), [images], out, progress=False)
    assert (mended.done, mended.kept, mended.failed) == (1, 2, ())


def test_an_output_that_was_cut_is_made_again(images, tmp_path):
    out = tmp_path / "out"
    predict(Pretender(), [images], out, progress=False)
    whole = files(out)
    (out / "labels" / "a.png").write_bytes(b"\x89PNG")
    again = predict(Pretender(), [images], out, progress=False)
    assert (again.done, again.kept) == (1, 1)
    assert files(out) == whole
    # Lines of before say no sizes: what is there is taken.
    lines = [json.loads(line) for line in (out / "pictures.jsonl").read_text().splitlines()]
    before = [{name: value for name, value in line.items() if name != "bytes"} for line in lines]
    (out / "pictures.jsonl").write_text("".join(json.dumps(line) + "\n" for line in before))
    (out / "labels" / "a.png").write_bytes(b"\x89PNG")
    assert predict(Pretender(), [images], out, progress=False).kept == 2


@pytest.mark.parametrize(
    "change", [{}, {"status": 1}, {"outputs": []}, {"outputs": {}}, {"file": 5}, {"file": {}}, {"bytes": 7}]
)
def test_a_damaged_line_is_a_picture_that_is_not_done(images, tmp_path, change):
    out = tmp_path / "out"
    predict(Pretender(), [images / "b.png"], out, progress=False)
    record = json.loads((out / "pictures.jsonl").read_text())
    bad = {**record, **change} if change else {"name": "b"}
    with (out / "pictures.jsonl").open("a") as file:
        file.write('{"x": 1}\n' + json.dumps(bad) + "\n")
    assert predict(Pretender(), [images / "b.png"], out, progress=False).done == 1
    assert predict(Pretender(), [images / "b.png"], out, progress=False).kept == 1


def test_what_is_refused(images, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    with pytest.raises(EosinError, match="empty: no slides; it is empty"):
        predict(Pretender(), [tmp_path / "empty"], out, progress=False)
    write_slide(tmp_path / "none.svs", painted(64), mpp=None)
    with pytest.raises(EosinError, match=r"none\.svs: the file does not say its µm/px; give --source-mpp"):
        predict(Pretender(), [tmp_path / "none.svs"], out, progress=False)
    assert predict(Pretender(), [tmp_path / "none.svs"], out, source_mpp="0.25", progress=False).done == 1
    write_slide(tmp_path / "coarse.tif", painted(64), mpp=0.5)
    with pytest.raises(EosinError, match=r"coarse\.tif: 0\.25 µm/px is finer .*ask for 0\.5 or coarser"):
        predict(Pretender(), [tmp_path / "coarse.tif"], tmp_path / "coarse", progress=False)
    with pytest.raises(EosinError, match="the network does not know its µm/px; give --mpp"):
        predict(Pretender(mpp=None), [tmp_path / "coarse.tif"], tmp_path / "unknown", progress=False)
    with pytest.raises(EosinError, match="holds predictions by another network; choose another --out"):
        predict(Pretender(fingerprint="other"), [images], out, progress=False)
    with pytest.raises(EosinError, match=r"other settings \(objects\)"):
        predict(Pretender(), [images], out, PredictConfig(objects="cell"), progress=False)
    with pytest.raises(EosinError, match="empty2: holds other files; choose another --out"):
        (tmp_path / "empty2").mkdir()
        (tmp_path / "empty2" / "mine.txt").touch()
        predict(Pretender(), [images], tmp_path / "empty2", progress=False)
    with DirectoryLock(out), pytest.raises(EosinError, match="in use by"):
        predict(Pretender(), [images], out, progress=False)


def test_a_shelf_keeps_more_than_its_memory(tmp_path):
    shelf = Shelf(20, tmp_path)
    for number in range(6):
        shelf.put(number, bytes([number]) * 10)
    shelf.drop(4)
    shelf.put(7, bytes([7]) * 10)
    assert [shelf.get(number) for number in (0, 3, 5, 7)] == [bytes([n]) * 10 for n in (0, 3, 5, 7)]
    assert shelf.get(4) is None
    assert len(shelf) == 6
    assert not list(tmp_path.iterdir())
