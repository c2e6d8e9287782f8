"""Files written while blocks come: in order, whole or not at all, errors told to who brings the blocks."""

from __future__ import annotations

import json
import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from eosin.core.errors import EosinError
from eosin.nuclei import outputs as outputs_module
from eosin.nuclei.found import Nuclei
from eosin.nuclei.geojson import write_geojson
from eosin.nuclei.outputs import Outputs
from eosin.nuclei.postprocess import describe
from eosin.nuclei.tables import write_table


def block(number, count=3):
    labels = np.zeros((12, 12 * count + 4), dtype=np.int32)
    for place in range(count):
        labels[2:8, 12 * place + 2 : 12 * place + 6 + number % 4] = place + 1
    return Nuclei.of(describe(labels, np.ones(labels.shape, np.float32), None), labels, origin=(0, 12 * number))


@pytest.fixture(scope="module")
def blocks():
    return [block(number, count) for number, count in enumerate([3, 0, 1, 5, 2] * 6)]


def test_files_are_those_of_one_call(blocks, tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
    write_geojson(blocks, tmp_path / "first" / "a.geojson", name="x")
    write_table(blocks, tmp_path / "first" / "a.csv", form="csv")
    outputs = Outputs(
        [
            partial(write_geojson, path=tmp_path / "second" / "a.geojson", name="x"),
            partial(write_table, path=tmp_path / "second" / "a.csv", form="csv"),
        ]
    )
    for number, part in enumerate(blocks):
        if number % 2:
            part.save(tmp_path / f"{number}.npz")
        outputs.add(tmp_path / f"{number}.npz" if number % 2 else part)
    assert not list((tmp_path / "second").glob("a.*"))
    outputs.finish()
    for name in ("a.geojson", "a.csv"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert len(json.loads((tmp_path / "second" / "a.geojson").read_text())["features"]) == sum(map(len, blocks))


def test_processes_put_nuclei_into_the_same_words(blocks, tmp_path):
    write_geojson(blocks, tmp_path / "here.geojson", name="x", step=(2.0, 2.0), mpp=0.5, classes=("a",))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        path = tmp_path / "there.geojson"
        count = write_geojson(blocks, path, name="x", step=(2.0, 2.0), mpp=0.5, classes=("a",), pool=pool)
    assert count == sum(map(len, blocks))
    assert (tmp_path / "here.geojson").read_bytes() == path.read_bytes()


def test_what_is_abandoned_leaves_nothing(blocks, tmp_path):
    outputs = Outputs([partial(write_geojson, path=tmp_path / "a.geojson", name="x")])
    for part in blocks:
        outputs.add(part)
    outputs.abandon()
    outputs.abandon()
    assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_is_told_and_nobody_waits(blocks, tmp_path):
    outputs = Outputs(
        [
            partial(write_table, path=tmp_path / "absent" / "a.csv", form="csv"),
            partial(write_geojson, path=tmp_path / "a.geojson", name="x"),
        ]
    )
    with pytest.raises(EosinError, match="a.csv"):
        for _ in range(10):
            for part in blocks:
                outputs.add(part)
    outputs.abandon()
    assert not list(tmp_path.iterdir())


def test_a_damaged_block_is_named(tmp_path):
    (tmp_path / "3.npz").write_bytes(b"PK damaged")
    outputs = Outputs([partial(write_geojson, path=tmp_path / "a.geojson", name="x")])
    outputs.add(tmp_path / "3.npz")
    with pytest.raises(EosinError, match=r"3\.npz: damaged"):
        outputs.finish()
    outputs.abandon()
    assert {path.name for path in tmp_path.iterdir()} == {"3.npz"}


def test_who_brings_blocks_waits_for_a_slow_writer(blocks):
    may, taken = threading.Event(), []

    def slow(parts):
        may.wait()
        taken.extend(parts)

    outputs = Outputs([slow])
    threading.Timer(0.3, may.set).start()
    for part in blocks * 2:
        outputs.add(part)
    assert may.is_set()
    outputs.finish()
    assert taken == blocks * 2


def test_a_writer_that_is_busy_before_it_writes_is_not_waited_for(blocks, tmp_path, monkeypatch):
    """Such as one that reads a slide to draw over, for minutes."""
    monkeypatch.setattr(outputs_module, "_PATIENCE", 0.2)
    may, ended = threading.Event(), threading.Event()

    def reads_first(parts):
        try:
            may.wait(60)
            write_geojson(parts, tmp_path / "b.geojson", name="x")
        finally:
            ended.set()

    outputs = Outputs([reads_first, partial(write_geojson, path=tmp_path / "a.geojson", name="x")])
    for part in blocks[:3]:
        outputs.add(part)
    with ThreadPoolExecutor(1) as pool:
        # Who waits for the end of the files is let go too.
        finish = pool.submit(outputs.finish)
        assert not outputs.abandon()
        assert isinstance(finish.exception(timeout=30), outputs_module._Abandoned)
    may.set()
    assert ended.wait(60)
    assert outputs.abandon()
    assert not (tmp_path / "b.geojson").exists()
    assert not list(tmp_path.glob(".*"))
