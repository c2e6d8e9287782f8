from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eosin.core.draws import permuted, stream_seed
from eosin.core.errors import EosinError
from eosin.data import (
    Batch,
    Quarantine,
    Tiles,
    TrainingLoader,
    default_workers,
    iterate_tiles,
    load_square,
    open_tiles,
    pack,
    tiles_at,
)
from eosin.data.workers import read_ahead

Folder = Callable[..., Path]


def loader(tiles: Tiles, **options: object) -> TrainingLoader:
    defaults = {"size": 16, "batch_size": 4, "seed": 3, "steps": 6, "quarantine": Quarantine(None)}
    return TrainingLoader(tiles, **(defaults | options))


def same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert (one.step, one.micro) == (other.step, other.micro)
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_array_equal(one.positions, other.positions)
        assert torch.equal(one.images, other.images)


@given(st.integers(1, 200), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_each_pass_shows_each_tile_once(count: int, seed: int, number: int) -> None:
    shown = tiles_at(np.arange(count) + number * count, count, seed)
    assert sorted(shown) == list(range(count))
    np.testing.assert_array_equal(shown, permuted(np.arange(count), count, stream_seed(seed, "order", number)))


@given(st.integers(2, 60), st.integers(0, 99), st.lists(st.integers(0, 500), min_size=1, max_size=40))
def test_the_order_is_a_pure_function_of_the_sample(count: int, seed: int, samples: list[int]) -> None:
    together = tiles_at(samples, count, seed)
    assert list(together) == [int(tiles_at(sample, count, seed)) for sample in samples]


def test_passes_and_seeds_have_their_own_orders() -> None:
    orders = [tuple(tiles_at(np.arange(50) + 50 * number, 50, seed)) for number in range(3) for seed in range(3)]
    assert len(set(orders)) == len(orders)


def test_batches_hold_the_pixels_of_their_tiles(folder: Folder) -> None:
    tiles = open_tiles(folder(10))
    batches = list(loader(tiles))
    assert len(batches) == len(loader(tiles)) == 6
    for step, batch in enumerate(batches):
        assert batch.step == step
        assert batch.images.shape == (4, 3, 16, 16)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch.positions, range(4))
        np.testing.assert_array_equal(batch.indices, tiles_at(np.arange(4) + 4 * step, 10, 3))
        for image, index in zip(batch.images, batch.indices, strict=True):
            np.testing.assert_array_equal(image, load_square(tiles, index, 16))
    # 24 images of 10 tiles: two whole passes, batches straddling them, nothing dropped.
    shown = np.concatenate([batch.indices for batch in batches])
    assert sorted(shown[:10]) == sorted(shown[10:20]) == list(range(10))


@pytest.mark.parametrize("block", [1, 3, 5, 4096])
def test_the_order_is_that_of_the_samples_whatever_block_it_is_computed_by(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("eosin.data.loader._ORDER_BLOCK", block)
    tiles = open_tiles(folder(10))
    for step, batch in enumerate(loader(tiles, steps=9, start_step=2), start=2):
        np.testing.assert_array_equal(batch.indices, tiles_at(np.arange(4) + 4 * step, 10, 3))


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_workers_change_nothing(folder: Folder, tmp_path: Path, kind: str) -> None:
    source = folder(11)
    if kind == "store":
        pack([str(source)], tmp_path / "store")
        source = tmp_path / "store"
    tiles = open_tiles(source)
    alone = list(loader(tiles))
    for workers in (1, 2, 3):
        same(alone, list(loader(tiles, workers=workers)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 7), st.integers(1, 11), st.integers(1, 3))
def test_resuming_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, start: int, batch_size: int, accumulate: int
) -> None:
    tiles = small_source(tmp_path_factory)
    options = {"batch_size": max(1, batch_size // accumulate), "accumulate": accumulate}
    whole = list(loader(tiles, **options))
    same(whole[start * accumulate :], list(loader(tiles, start_step=start, **options)))


_SOURCES: dict[str, Tiles] = {}


def small_source(factory: pytest.TempPathFactory) -> Tiles:
    if "small" not in _SOURCES:
        root = factory.mktemp("small")
        for number in range(11):
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            from PIL import Image

            Image.fromarray(pixels).save(root / f"{number:02d}.png")
        _SOURCES["small"] = open_tiles(root)
    return _SOURCES["small"]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_processes_and_parts_make_up_the_same_global_batch(
    tmp_path_factory: pytest.TempPathFactory, batch_size: int, world: int, accumulate: int
) -> None:
    tiles = small_source(tmp_path_factory)
    total = batch_size * world * accumulate
    if total > len(tiles):
        return
    whole = list(loader(tiles, batch_size=total))
    parts = [
        list(loader(tiles, batch_size=batch_size, rank=rank, world=world, accumulate=accumulate))
        for rank in range(world)
    ]
    for step, batch in enumerate(whole):
        ordered = [parts[rank][step * accumulate + micro] for micro in range(accumulate) for rank in range(world)]
        assert {part.step for part in ordered} == {step}
        assert [part.micro for part in ordered] == [micro for micro in range(accumulate) for _ in range(world)]
        np.testing.assert_array_equal(np.concatenate([part.positions for part in ordered]), batch.positions)
        np.testing.assert_array_equal(np.concatenate([part.indices for part in ordered]), batch.indices)
        assert torch.equal(torch.cat([part.images for part in ordered]), batch.images)


def test_a_batch_larger_than_the_data_is_refused(folder: Folder) -> None:
    tiles = open_tiles(folder(10))
    loader(tiles, batch_size=10)
    with pytest.raises(EosinError, match=r"a batch of 11 is larger than the 10 tiles; use a batch size of at most 10$"):
        loader(tiles, batch_size=11)
    with pytest.raises(EosinError, match=r"a batch of 12 .* at most 2 a process \(× 4\)"):
        loader(tiles, batch_size=3, world=2, accumulate=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_global_generator_alone(folder: Folder, workers: int) -> None:
    tiles = open_tiles(folder(6))
    before = torch.get_rng_state()
    list(loader(tiles, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def damaged(folder: Folder) -> Path:
    """Ten tiles of which 002 and 007 cannot be read."""
    root = folder(10)
    (root / "002.png").write_bytes((root / "002.png").read_bytes()[:60])
    (root / "007.png").write_text("a text file")
    return root


def test_an_unreadable_tile_is_replaced_by_the_next_of_the_order(damaged: Path, tmp_path: Path) -> None:
    tiles = open_tiles(damaged)
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", limit=0.2)
    batches = list(loader(tiles, batch_size=5, quarantine=quarantine))
    shown = np.concatenate([batch.indices for batch in batches])
    expected = []
    for sample in range(30):
        start = sample - sample % 10
        followers = [int(tiles_at(start + (sample + ahead) % 10, 10, 3)) for ahead in range(10)]
        expected.append(next(tile for tile in followers if tile not in (2, 7)))
    assert list(shown) == expected
    for batch in batches:
        for image, index in zip(batch.images, batch.indices, strict=True):
            np.testing.assert_array_equal(image, load_square(tiles, index, 16))
    assert sorted(quarantine.names) == ["002.png", "007.png"]
    assert quarantine.reason("007.png") == "not an image of a known format"
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
    for workers in (1, 2):
        other = Quarantine(None, limit=0.2)
        same(batches, list(loader(tiles, batch_size=5, workers=workers, quarantine=other)))
        assert sorted(other.names) == sorted(quarantine.names)
    same(batches[4:], list(loader(tiles, batch_size=5, start_step=4, quarantine=Quarantine(None, limit=0.2))))


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_tiles_stop_the_run(damaged: Path, workers: int) -> None:
    tiles = open_tiles(damaged)
    with pytest.raises(EosinError, match=r"of 10 tiles are unreadable, more than the limit of 0\.1") as caught:
        list(loader(tiles, workers=workers, quarantine=Quarantine(None, limit=0.1)))
    assert "\n" not in str(caught.value)
    with pytest.raises(EosinError, match="more than the limit"):
        list(iterate_tiles(tiles, size=16, batch_size=3, workers=workers, quarantine=Quarantine(None)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_went_away_stops_the_run(folder: Folder, workers: int) -> None:
    root = folder(10)
    tiles = open_tiles(root)
    for path in root.iterdir():
        path.unlink()
    with pytest.raises(EosinError, match="10 tiles in a row are unreadable.*No such file") as caught:
        list(loader(tiles, workers=workers, quarantine=Quarantine(None, limit=1)))
    assert "Traceback" not in str(caught.value)


def test_every_readable_tile_in_order(damaged: Path) -> None:
    tiles = open_tiles(damaged)
    readable = [0, 1, 3, 4, 5, 6, 8, 9]
    for workers in (0, 2):
        for batch_size in (1, 3, 10, 64):
            quarantine = Quarantine(None, limit=0.2)
            batches = list(iterate_tiles(tiles, size=16, batch_size=batch_size, workers=workers, quarantine=quarantine))
            rows = np.concatenate([rows for _, rows in batches])
            images = torch.cat([images for images, _ in batches])
            assert list(rows) == readable
            assert all(len(rows) for _, rows in batches)
            for image, row in zip(images, readable, strict=True):
                np.testing.assert_array_equal(image, load_square(tiles, row, 16))
            assert quarantine.names == ["002.png", "007.png"]


def test_default_workers_follow_the_cores_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, processes, expected in [(1, 1, 0), (2, 1, 2), (64, 1, 16), (64, 8, 8), (4, 4, 0)]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert default_workers() == expected


READERS = """
import time

def echo(key):
    time.sleep(0.05)
    return key

def fail(key):
    raise RuntimeError("a fault of eosin's own")

def imports(key):
    import slow_to_import
    return key

def count_views(images, step, positions, mpp):
    "A stand-in for augmentation that says what it was given."
    import torch
    told = torch.tensor([[step, position] for position in positions], dtype=torch.float64)
    return [images.float().mean(dim=(2, 3)), told, torch.from_numpy(mpp.copy())]
"""


@pytest.fixture
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Readers in a module that a worker can import, however it was started."""
    (tmp_path / "readers_for_tests.py").write_text(READERS)
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("readers_for_tests", "slow_to_import"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("readers_for_tests")


def test_reading_ahead_keeps_the_order(readers: ModuleType) -> None:
    assert list(read_ahead(readers.echo, range(7), 3)) == list(range(7))
    assert list(read_ahead(readers.echo, [], 3)) == []


def test_a_killed_worker_is_an_error_that_says_so(readers: ModuleType) -> None:
    items = read_ahead(readers.echo, range(1000), 2)
    next(items)
    workers = multiprocessing.active_children()
    os.kill(workers[0].pid, signal.SIGKILL)
    with pytest.raises(EosinError, match="a loading process was killed.*use fewer workers or a smaller batch"):
        list(items)
    assert not set(workers) & set(multiprocessing.active_children())


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ConnectionResetError(), EOFError()])
def test_workers_whose_starter_was_killed_are_an_error_that_says_so(
    readers: ModuleType, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def start(*_: object) -> None:
        raise error

    monkeypatch.setattr("eosin.data.workers._start", start)
    with pytest.raises(EosinError, match=r"a loading process was killed.*use fewer workers or a smaller batch \(\S+"):
        next(read_ahead(readers.echo, range(10), 2))


SMALL_SHARED_MEMORY = """
import os, torch
from eosin.core.errors import EosinError
from eosin.data.workers import read_ahead

def batch(key):
    return key, [torch.ones(2_000_000)]

if __name__ == "__main__":
    try:
        for _ in read_ahead(batch, range(4), 2): pass
    except EosinError as error:
        print(error)
        print(os.listdir("/dev/shm"))
"""


@pytest.mark.skipif(not Path("/dev/shm").exists(), reason="needs /dev/shm")
def test_too_little_shared_memory_is_told_and_nothing_stays_in_it(tmp_path: Path) -> None:
    """In a mount namespace of its own, so that no other process loses its memory."""
    (tmp_path / "batches.py").write_text(SMALL_SHARED_MEMORY)
    inside = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && "$0" "$@"']
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace needs root")
    told = subprocess.run(
        [*inside, sys.executable, tmp_path / "batches.py"], capture_output=True, text=True, timeout=60
    )
    assert told.stdout.splitlines() == [
        "no room in /dev/shm for a batch from a loading process (8 MB); give it more, such as docker run --shm-size 8g, "
        "or use fewer workers or a smaller batch",
        "[]",
    ]
    assert not told.stderr


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_a_worker_is_not_taken_for_a_kill(readers: ModuleType, workers: int) -> None:
    with pytest.raises(RuntimeError, match="a fault of eosin's own"):
        list(read_ahead(readers.fail, range(3), workers))


def test_leaving_early_ends_the_workers(readers: ModuleType) -> None:
    before = set(multiprocessing.active_children())
    items = read_ahead(readers.echo, range(1000), 2)
    next(items)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    items.close()
    assert not workers & set(multiprocessing.active_children())


def test_a_thread_that_holds_a_lock_does_not_hang_the_workers(readers: ModuleType) -> None:
    # The thread is in the middle of an import when the workers start; forked, they would wait for it for ever.
    thread = threading.Thread(target=readers.imports, args=(0,))
    thread.start()
    time.sleep(0.2)
    assert list(read_ahead(readers.imports, range(4), 2)) == list(range(4))
    thread.join()


def test_workers_with_threads_alive_give_the_same_batches(folder: Folder) -> None:
    tiles = open_tiles(folder(9))
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        same(list(loader(tiles)), list(loader(tiles, workers=2)))
    finally:
        done.set()
        thread.join()


UNGUARDED = """
import signal, sys, threading, time
from eosin.data import Quarantine, iterate_tiles, open_tiles

stopping = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stopping.set())
threading.Thread(target=threading.Event().wait, daemon=True).start()
tiles = open_tiles(sys.argv[1])
after = 0
for images, rows in iterate_tiles(tiles, size=8, batch_size=1, workers=2, quarantine=Quarantine(None)):
    if rows[0] == 2:
        print("ready", flush=True)
        stopping.wait()
    after += stopping.is_set()
print("finished", after, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_for_the_main_process_to_handle(folder: Folder, tmp_path: Path, number: int) -> None:
    """A script without a main guard that finishes its work after Ctrl-C: the workers carry on and print nothing."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder(40))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=100)
    assert (output, errors) == ("finished 38\n", "")
    assert errors == ""
    assert process.returncode == 0


def test_workers_end_with_a_main_process_that_is_killed(folder: Folder, tmp_path: Path) -> None:
    """Also those of the fork server, which a program with threads gets: nothing else would ever end them."""
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder(40))], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    session = {int(path.name) for path in Path("/proc").glob("[0-9]*") if _session(path) == process.pid}
    assert len(session) >= 3
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while left := [number for number in session if _session(Path("/proc", str(number))) == process.pid]:
        assert time.monotonic() < end, f"{left} outlive the main process"
        time.sleep(0.1)


def _session(process: Path) -> int | None:
    try:
        state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)


@pytest.mark.parametrize("workers", [0, 2])
def test_views_are_made_of_each_batch_with_its_step_positions_and_resolutions(readers, tmp_path, workers):
    sides = [40, 80, 20, 160, 40, 40]
    for number, side in enumerate(sides):
        Image.new("RGB", (side, side), (number * 40, 0, 0)).save(tmp_path / f"{number}.png")
    tiles = open_tiles(str(tmp_path))
    mpp = np.array([0.5, 0.25, 1.0, 0.25, 2.0, 0.125])
    options = {"size": 40, "batch_size": 3, "steps": 4, "workers": workers, "mpp": mpp, "accumulate": 2, "seed": 1}
    plain = list(loader(tiles, **options))
    made = list(loader(tiles, **options, make_views=readers.count_views))
    assert len(plain) == len(made) == 8
    for batch, other in zip(plain, made, strict=True):
        expected = [mpp[tile] * sides[tile] / 40 for tile in batch.indices]
        np.testing.assert_allclose(batch.mpp, expected)
        assert batch.views is None
        assert len(other.images) == 0
        means, told, resolutions = other.views
        torch.testing.assert_close(means, batch.images.float().mean(dim=(2, 3)))
        assert told.tolist() == [[batch.step, position] for position in batch.positions]
        np.testing.assert_array_equal(resolutions, batch.mpp)
