"""Embedding in parts: kills, job arrays and several devices change neither the bits nor the list of unreadable tiles."""

from __future__ import annotations

import errno
import importlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save

import eosin.evaluate.embed_pass as embed_pass
import eosin.evaluate.embed_shards as embed_shards
from eosin.core.errors import EosinError
from eosin.core.files import directory_held
from eosin.data import Quarantine, open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate import embed, probe_data
from eosin.evaluate.embed_shards import Layout, PartStore
from eosin.evaluate.stain_shift import Restaining, open_shift
from eosin.tasks import open_task

SPEC = "random:test_resnet?size=32"
BROKEN = ("a/04.png", "b/21.png", "b/39.png")


@pytest.fixture
def folder(tmp_path):
    """Forty noise images in two classes, three of them unreadable."""
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "tiles" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(path)
    for name in BROKEN:
        (tmp_path / "tiles" / name).write_bytes(b"broken")
    return tmp_path / "tiles"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of eight tiles: five of them."""
    monkeypatch.setattr(embed_shards, "PART_TILES", 8)


def run(folder, cache, **options):
    """Embed the folder in batches of three, which do not divide a part; return the result and its quarantine."""
    quarantine = Quarantine(None, limit=0.1)
    given = {"batch_size": 3, "quarantine": quarantine} | options
    return embed(load_encoder(SPEC), open_tiles(str(folder)), cache=cache, **given), quarantine


def same(one, two):
    """Two results are the same to the bit, and so is what could not be read."""
    np.testing.assert_array_equal(one[0].features, two[0].features)
    assert one[0].rows.tolist() == two[0].rows.tolist()
    assert one[0].names.tolist() == two[0].names.tolist()
    assert {name: one[1].reason(name) for name in one[1].names} == {n: two[1].reason(n) for n in two[1].names}
    assert one[1].names == two[1].names


class Stops(Exception):
    """A kill."""


def stop_after(monkeypatch, parts):
    """Make the pass end after so many parts were written."""
    saved, written = PartStore.save, []

    def save_part(self, part):
        if len(written) == parts:
            raise Stops
        written.append(part.number)
        saved(self, part)

    monkeypatch.setattr(PartStore, "save", save_part)
    return written


@pytest.mark.parametrize("total", [1, 7, 8, 9, 40, 4096 * 8, 4096 * 8 + 1, 10**6])
def test_parts_cover_every_row_once(total):
    layout = Layout.of(total)
    spans = [layout.span(number) for number in range(len(layout))]
    assert [row for first, last in spans for row in (first, last)] == sorted(
        [0, total, *(first for first, _ in spans[1:]), *(last for _, last in spans[:-1])]
    )
    assert all(last > first for first, last in spans)
    assert len(layout) <= 4096
    assert layout.tiles % 8 == 0
    jobs = [layout.of_job((number, 3)) for number in range(3)]
    assert sorted(part for job in jobs for part in job) == layout.of_job(None) == list(range(len(layout)))


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_was_stopped_goes_on_to_the_same_bits(folder, tmp_path, monkeypatch, after, workers):
    whole = run(folder, None)
    assert whole[1].names == [open_tiles(str(folder)).names[row] for row in np.setdiff1d(range(40), whole[0].rows)]
    with monkeypatch.context() as patch:
        written = stop_after(patch, after)
        with pytest.raises(Stops):
            run(folder, tmp_path / "cache", workers=workers)
    parts = tmp_path / "cache" / whole[0].key
    assert sorted(path.name for path in parts.glob("*.safetensors")) == [
        f"{n:05d}-of-00005.safetensors" for n in written
    ]
    passes = []
    forward = embed_pass._encoded
    monkeypatch.setattr(embed_pass, "_encoded", lambda *given: passes.append(len(given[3])) or forward(*given))
    again = run(folder, tmp_path / "cache", workers=workers)
    same(whole, again)
    assert sum(passes) == 37 - sum(len(range(8 * n, 8 * n + 8)) for n in written) + sum(
        row < 8 * after for row in np.setdiff1d(range(40), whole[0].rows)
    )
    # What remains is the one file of before.
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{whole[0].key}.safetensors"]
    same(whole, run(folder, tmp_path / "cache"))


def test_jobs_of_an_array_join_on_any_machine(folder, tmp_path):
    whole = run(folder, None)
    for number in range(3):
        part, quarantine = run(folder, tmp_path / f"machine{number}", shard=(number, 3))
        assert part.total == 40
        assert part.missing == 40 - len(part.rows) - quarantine.count
        assert set(part.rows // 8 % 3) == {number}
        np.testing.assert_array_equal(part.features, whole[0].features[np.isin(whole[0].rows, part.rows)])
    with pytest.raises(EosinError, match="left to other jobs"):
        probe_data(open_task(str(folder)), part)
    home = tmp_path / "home" / part.key
    home.mkdir(parents=True)
    for path in tmp_path.glob(f"machine*/{part.key}/*.safetensors"):
        path.rename(home / path.name)
    encoder = load_encoder(SPEC)
    encoder.forward = None  # It would fail if there were anything left to compute.
    quarantine = Quarantine(None, limit=0.1)
    joined = embed(encoder, open_tiles(str(folder)), cache=tmp_path / "home", quarantine=quarantine)
    same(whole, (joined, quarantine))
    assert joined.missing == 0
    assert not home.exists()


def test_jobs_of_another_division_and_a_second_run_are_refused(folder, tmp_path):
    key = run(folder, None)[0].key
    parts = tmp_path / "cache" / key
    parts.mkdir(parents=True)
    with directory_held(parts, (0, 2)):
        run(folder, tmp_path / "cache", shard=(1, 2))
        for shard, told in (
            ((0, 2), "in use by process"),
            ((0, 3), "jobs of 2 parts are at work"),
            (None, "in use by"),
        ):
            with pytest.raises(EosinError, match=told):
                run(folder, tmp_path / "cache", shard=shard)
    with pytest.raises(EosinError, match="from 0 to n - 1"):
        run(folder, tmp_path / "cache", shard=(2, 2))
    with pytest.raises(EosinError, match="give cache"):
        run(folder, None, shard=(0, 2))


@pytest.mark.parametrize("damage", ["cut", "bit", "other key"])
def test_a_damaged_part_is_computed_again(folder, tmp_path, damage, capsys):
    whole = run(folder, None)
    for number in range(2):
        run(folder, tmp_path / "cache", shard=(number, 2))
    path = tmp_path / "cache" / whole[0].key / "00002-of-00005.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-5] ^= 4
    path.write_bytes(
        {"cut": data[:-7], "bit": data, "other key": data.replace(whole[0].key.encode(), b"0" * 16)}[damage]
    )
    same(whole, run(folder, tmp_path / "cache"))
    assert ("damaged" in capsys.readouterr().err) == (damage == "bit")


def test_parts_are_plain_safetensors_and_older_files_are_read(folder, tmp_path):
    whole = run(folder, tmp_path / "cache", shard=(0, 1))
    tensors = load_file(tmp_path / "cache" / whole[0].key / "00001-of-00005.safetensors")
    inside = (whole[0].rows >= 8) & (whole[0].rows < 16)
    np.testing.assert_array_equal(tensors["features"], whole[0].features[inside])
    np.testing.assert_array_equal(tensors["rows"], whole[0].rows[inside])
    joined = run(folder, tmp_path / "cache")
    path = tmp_path / "cache" / f"{whole[0].key}.safetensors"
    metadata, _, _ = embed_shards._header_of(path)
    # As it was written before there were parts.
    path.write_bytes(save({"features": joined[0].features, "rows": joined[0].rows}, metadata=metadata))
    older = run(folder, tmp_path / "cache")
    assert older[0].cached
    same(joined, older)


def test_a_part_without_a_readable_tile(folder, tmp_path):
    for path in open_tiles(str(folder)).names[8:16]:
        (folder / path).write_bytes(b"broken")
    one = run(folder, None, quarantine=(first := Quarantine(None, limit=0.5)))[0]
    run(folder, tmp_path / "cache", shard=(0, 1), quarantine=Quarantine(None, limit=0.5))
    two = run(folder, tmp_path / "cache", quarantine=(second := Quarantine(None, limit=0.5)))[0]
    same((one, first), (two, second))
    assert len(one.rows) == 40 - first.count < 33


def test_a_lost_disk_stops_the_pass_early(folder, monkeypatch):
    for path in open_tiles(str(folder)).names[:16]:
        (folder / path).write_bytes(b"broken")
    written = stop_after(monkeypatch, 9)
    with pytest.raises(EosinError, match="tiles are unreadable"):
        run(folder, None)
    assert written == [0]


def test_a_full_disk_says_what_is_kept(folder, tmp_path, monkeypatch):
    written = []
    write = embed_shards.write_tensors

    def fill_up(*given):
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(*given))

    with monkeypatch.context() as patch:
        patch.setattr(embed_shards, "write_tensors", fill_up)
        with pytest.raises(EosinError, match="no space left on the device.*2 of 5 parts that are done are kept"):
            run(folder, tmp_path / "cache")
    same(run(folder, None), run(folder, tmp_path / "cache"))


def test_several_processes_give_the_same_bits_with_a_change_of_the_pixels_too(folder):
    change = Restaining(open_shift("template:crc-lab"), 0, np.arange(40))
    one = run(folder, None, change=change, device="cpu")
    same(one, run(folder, None, change=change, devices=("cpu", "cpu"), workers=2))
    assert not np.array_equal(one[0].features, run(folder, None, device="cpu")[0].features)


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto means GPUs here")
def test_auto_is_the_cpu_where_there_is_no_gpu(folder):
    same(run(folder, None, device="cpu"), run(folder, None, devices=("auto",)))


DEADLY = """
import os, signal

class Deadly:
    \"\"\"Changes nothing, and kills its process at row 20, so often.\"\"\"

    key = name = "deadly"

    def __init__(self, marks, times):
        self.marks = marks
        self.times = times

    def __call__(self, images, rows):
        if 20 in rows and len(list(self.marks.iterdir())) < self.times:
            (self.marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return images
"""


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    """A class that other processes can import."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "deadly_change.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return importlib.import_module("deadly_change").Deadly


def test_a_killed_process_costs_its_part_and_no_more_than_two_are(folder, tmp_path, capsys, deadly):
    (tmp_path / "marks").mkdir()
    options = {"devices": ("cpu", "cpu"), "cache": tmp_path / "cache"}
    with pytest.raises(EosinError, match="was killed twice at part 2"):
        run(folder, change=deadly(tmp_path / "marks", 2), **options)
    for mark in list((tmp_path / "marks").iterdir())[1:]:
        mark.unlink()
    capsys.readouterr()
    got = run(folder, change=deadly(tmp_path / "marks", 2), **options)
    same(run(folder, None, change=deadly(tmp_path / "marks", 0)), got)
    assert "was killed (signal 9)" in capsys.readouterr().err


@pytest.mark.timeout(900)  # A cluster of its own starts, beside another test's on as few cores.
def test_ray_tasks_share_the_parts(folder, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    whole = run(folder, None, device="cpu")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stops):
            run(folder, tmp_path / "cache")
    same(whole, run(folder, tmp_path / "cache", ray="local"))
    with pytest.raises(EosinError, match="give cache"):
        run(folder, None, ray="local")


def test_devices_that_do_not_exist_and_encoders_that_cannot_travel(folder):
    for devices, told in ((("gpu9",), "write cpu"), (("cuda:99",), "GPUs are seen here")):
        with pytest.raises(EosinError, match=told):
            run(folder, None, devices=devices)
    with pytest.raises(EosinError, match="give one of them"):
        run(folder, None, devices=("cpu",), device="cpu")
    encoder = load_encoder(SPEC)
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    with pytest.raises(EosinError, match="gives other weights in another process"):
        embed(encoder, open_tiles(str(folder)), devices=("cpu", "cpu"), quarantine=Quarantine(None, limit=0.1))
