"""Measuring tiles: what is measured, what is left out, and that a stopped run goes on to the same bits."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

import eosin.stain.measure as module
from eosin.augment.image_statistics import image_statistics
from eosin.core.errors import EosinError
from eosin.data import Quarantine, open_tiles
from eosin.stain.measure import MeasureConfig, measure, native_size, require_tissue
from eosin.stain.partial import load_partial, save_partial

CONFIG = MeasureConfig(space="lab", size=48)


def same(first, second):
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in ("values", "tissue", "rows"))


@pytest.mark.parametrize("space", ["lab", "hsv", "hed"])
@pytest.mark.parametrize("tissue_only", [True, False])
def test_the_numbers_are_those_of_each_tile_alone(tissue, space, tissue_only):
    tiles = open_tiles(tissue)
    measured = measure(tiles, MeasureConfig(space=space, tissue_only=tissue_only, size=48))
    assert measured.rows.tolist() == list(range(len(tiles)))
    for row in (0, 33, len(tiles) - 1):
        pixels = torch.from_numpy(tiles.image(row))[None].to(torch.float32) / 255
        values, share = image_statistics(pixels, space, tissue_only)
        assert measured.values[row] == pytest.approx(values[0].numpy(), rel=1e-5, abs=1e-6)
        assert measured.tissue[row] == pytest.approx(float(share[0]), rel=1e-5)


def test_workers_and_batches_change_no_bit(tissue, monkeypatch):
    tiles = open_tiles(tissue)
    alone = measure(tiles, CONFIG)
    assert same(alone, measure(tiles, CONFIG, workers=2))
    monkeypatch.setattr(module, "_BATCH", 7)
    assert same(alone, measure(tiles, CONFIG))


def test_threads_change_no_bit(tissue):
    tiles = open_tiles(tissue)
    before = torch.get_num_threads()
    alone = measure(tiles, CONFIG)
    try:
        torch.set_num_threads(2)
        assert same(alone, measure(tiles, CONFIG))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def stop_at(monkeypatch, row):
    read = module.load_square

    def reading(tiles, index, size):
        if index == row:
            raise KeyboardInterrupt
        return read(tiles, index, size)

    monkeypatch.setattr(module, "load_square", reading)


def counted(monkeypatch):
    read, rows = module.load_square, []

    def reading(tiles, index, size):
        rows.append(index)
        return read(tiles, index, size)

    monkeypatch.setattr(module, "load_square", reading)
    return rows


def test_ctrl_c_keeps_what_is_measured(tissue, tmp_path, monkeypatch):
    tiles, partial = open_tiles(tissue), tmp_path / "partial"
    with monkeypatch.context() as patch:
        stop_at(patch, 70)
        with pytest.raises(KeyboardInterrupt):
            measure(tiles, CONFIG, partial=partial, key="a")
    rows = counted(monkeypatch)
    assert same(measure(tiles, CONFIG, partial=partial, key="a"), measure(tiles, CONFIG))
    assert rows == [*range(64, len(tiles)), *range(len(tiles))]


@pytest.mark.parametrize("change", ["source", "space", "size", "damage", "empty"])
def test_a_partial_file_that_does_not_fit_is_not_used(tissue, tmp_path, monkeypatch, change, capsys):
    tiles, partial = open_tiles(tissue), tmp_path / "partial"
    with monkeypatch.context() as patch:
        stop_at(patch, 40)
        with pytest.raises(KeyboardInterrupt):
            measure(tiles, CONFIG, partial=partial, key="a")
    config, key = CONFIG, "a"
    if change == "source":
        key = "b"
    elif change == "space":
        config = MeasureConfig(space="hsv", size=48)
    elif change == "size":
        config = MeasureConfig(size=32)
    elif change == "damage":
        data = bytearray(partial.read_bytes())
        data[-5] ^= 1
        partial.write_bytes(data)
    else:
        partial.write_bytes(b"")
    expected = measure(tiles, config)
    rows = counted(monkeypatch)
    assert same(measure(tiles, config, partial=partial, key=key), expected)
    assert rows == list(range(len(tiles)))
    word = "damaged" if change in ("damage", "empty") else "of another source or other settings"
    assert word in capsys.readouterr().err


def test_a_partial_file_comes_back_as_it_was(tmp_path):
    table = np.random.default_rng(0).normal(size=(5, 8))
    save_partial(tmp_path / "p", "key", 7, table, {2: "broken", 6: "empty"})
    done, found, reasons = load_partial(tmp_path / "p", "key")
    assert done == 7
    assert np.array_equal(found, table)
    assert reasons == {2: "broken", 6: "empty"}
    assert load_partial(tmp_path / "absent", "key") is None


def test_unreadable_tiles_are_listed_once_even_after_a_stop(tissue, tmp_path, monkeypatch):
    source = tmp_path / "tiles"
    shutil.copytree(tissue, source)
    (source / "adipose" / "0.png").write_text("not an image")
    tiles, partial = open_tiles(source), tmp_path / "partial"
    with monkeypatch.context() as patch:
        stop_at(patch, 70)
        with pytest.raises(KeyboardInterrupt):
            measure(tiles, CONFIG, partial=partial, key="a")
    quarantine = Quarantine(None)
    measured = measure(tiles, CONFIG, partial=partial, key="a", quarantine=quarantine)
    assert quarantine.names == ["adipose/0.png"]
    assert len(measured.rows) == len(tiles) - 1
    assert 0 not in measured.rows


def test_too_many_unreadable_tiles_stop_it(tissue, tmp_path):
    source = tmp_path / "tiles"
    shutil.copytree(tissue, source)
    for number in range(3):
        (source / "adipose" / f"{number}.png").write_bytes(b"")
    with pytest.raises(EosinError, match=r"adipose/0\.png.*the file is empty"):
        measure(open_tiles(source), CONFIG)


def test_glass_is_blank(tmp_path, save_image):
    save_image(tmp_path / "white.png", 255)
    save_image(tmp_path / "black.png", 0)
    save_image(tmp_path / "gray.png", 128)
    measured = measure(open_tiles(tmp_path), CONFIG)
    assert np.isfinite(measured.values).all()
    assert not measured.stained.any()
    with pytest.raises(EosinError, match="none of the 3 tiles that were read shows stained tissue"):
        require_tissue(measured, "folder:x")
    save_image(tmp_path / "pink.png", (230, 120, 180))
    require_tissue(measure(open_tiles(tmp_path), CONFIG), "folder:x")


def test_no_tile_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(EosinError, match="no tile could be read"):
        measure(open_tiles(tmp_path), CONFIG, quarantine=Quarantine(None, 1.0))


def test_the_native_size(tmp_path, save_image):
    for number in range(5):
        save_image(tmp_path / f"{number}.png", 200, size=40)
    assert native_size(open_tiles(tmp_path)) == 40
    save_image(tmp_path / "a.png", 200, size=700)
    (tmp_path / "b.png").write_bytes(b"")
    assert native_size(open_tiles(tmp_path)) == 40
    for number in range(5):
        save_image(tmp_path / f"{number}.png", 200, size=700)
    assert native_size(open_tiles(tmp_path)) == 256
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "b.png").write_bytes(b"")
    assert native_size(open_tiles(tmp_path / "only")) == 256
