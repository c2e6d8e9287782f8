"""Tiles in HDF5 files: exact pixels, one handle a process, and an identity without reading all."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor

import h5py
import numpy as np
import pytest

from eosin.core.errors import EosinError
from eosin.data import Quarantine, Tiles, UnreadableImage, hdf5, iterate_tiles
from eosin.data.hdf5 import HDF5Images, open_hdf5, read_hdf5
from eosin.data.tiles import Names

SIZE = (24, 16)


def write(path, count, seed=0, **options):
    images = np.random.default_rng(seed).integers(0, 256, (count, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=images, **options)
    return images


@pytest.fixture
def two(tmp_path):
    """Two files, one in packed chunks, and their images in one array."""
    first = write(tmp_path / "a.h5", 5, seed=1, chunks=(2, SIZE[1], SIZE[0], 3), compression="gzip")
    second = write(tmp_path / "b.h5", 7, seed=2)
    files = [open_hdf5(tmp_path / name, "x", SIZE) for name in ("a.h5", "b.h5")]
    return files, np.concatenate([first, second])


def tiles_of(files):
    source = HDF5Images(files)
    return Tiles(spec="h5", names=Names([f"{row:02d}" for row in range(len(source.rows))]), source=source)


def test_pixels_are_exact(two):
    files, images = two
    tiles = tiles_of(files)
    for row in (0, 4, 5, 11):
        assert np.array_equal(tiles.image(row).transpose(1, 2, 0), images[row])
    some = tiles.select([11, 0, 5]).select([2, 0])
    assert some.names[:].tolist() == ["05", "11"]
    assert np.array_equal(some.image(0).transpose(1, 2, 0), images[5])
    assert np.array_equal(some.image(1).transpose(1, 2, 0), images[11])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_them(two, workers):
    files, images = two
    got = [
        batch
        for batch, _ in iterate_tiles(
            tiles_of(files), size=16, batch_size=4, workers=workers, quarantine=Quarantine(None)
        )
    ]
    assert np.array_equal(np.concatenate([batch.numpy() for batch in got]), images.transpose(0, 3, 1, 2)[..., 4:20])


def test_raw_pixels_decode_as_by_pillow():
    import io

    from PIL import Image

    from eosin.data.images import decode_image, square_image

    pixels = np.random.default_rng(3).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    data = b"P6\n24 16\n255\n" + pixels.tobytes()
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    got = decode_image(data)
    assert np.array_equal(got.transpose(1, 2, 0), pixels)
    got[:] = 0  # its own memory
    for size in (16, 12, 40):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        assert np.array_equal(square_image(data, size), square_image(file.getvalue(), size))
    # Other forms and damaged ones are left to Pillow, and to what it says of them.
    commented = b"P6\n# by hand\n24 16\n255\n" + pixels.tobytes()
    assert np.array_equal(decode_image(commented).transpose(1, 2, 0), pixels)
    for bad in (data[:-5], b"P6\n4 4\n255\n" + bytes(48), b"P6\n99999 99999\n255\n"):
        with pytest.raises(UnreadableImage):
            decode_image(bad)


def test_each_file_is_opened_once_a_process(two, monkeypatch):
    files, _ = two
    opened = []
    real = hdf5._opened
    monkeypatch.setattr(hdf5, "_opened", lambda path: opened.append(path.name) or real(path))
    monkeypatch.setattr(hdf5, "_handles", {})
    tiles = tiles_of(files)
    for _ in range(3):
        for row in range(12):
            tiles.read(row)
        tiles.select([3, 9]).read(1)
    assert sorted(opened) == ["a.h5", "b.h5"]


def _child(source, row, pipe):
    pipe.send((source.read(row)[-8:], hdf5._owner == os.getpid(), len(hdf5._handles)))
    pipe.close()


def test_a_new_process_opens_its_own(two):
    files, images = two
    source = tiles_of(files).source
    source.read(11)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(source.read, 11).result(120)[-8:] == images[11].tobytes()[-8:]


@pytest.mark.skipif(sys.platform != "linux", reason="fork")
def test_a_forked_process_opens_its_own(two):
    files, images = two
    source = tiles_of(files).source
    source.read(0)
    source.read(11)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(source, 11, there))
    process.start()
    there.close()
    assert here.poll(120)
    assert here.recv() == (images[11].tobytes()[-8:], True, 1)
    process.join(30)
    assert source.read(0)[-8:] == images[0].tobytes()[-8:]


def test_it_pickles_small(two):
    source = tiles_of(two[0]).source
    source.read(3)
    data = pickle.dumps(source)
    assert len(data) < 2000
    assert pickle.loads(data).read(3) == source.read(3)


def test_the_identity_is_of_the_content(tmp_path, two):
    files, _ = two
    write(tmp_path / "copy.h5", 7, seed=2)
    write(tmp_path / "other.h5", 7, seed=3)
    same, other = (open_hdf5(tmp_path / name, "x", SIZE) for name in ("copy.h5", "other.h5"))
    assert same.identity == files[1].identity
    assert other.identity != files[1].identity
    hashes = [tiles_of([file]).content_hash() for file in (files[1], same, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    digests = list(tiles_of(files).source.digests())
    assert len(set(digests)) == 12
    assert list(tiles_of(files).select([7, 2]).source.digests()) == [digests[7], digests[2]]


def test_the_identity_reads_little_of_a_large_file(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file["x"] = np.full((20_000, SIZE[1], SIZE[0], 3), 7, dtype=np.uint8)
    before = hdf5._identity(tmp_path / "large.h5", ())
    read = []
    real = open

    class Counting:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def seek(self, place):
            self.file.seek(place)

        def read(self, count):
            read.append(count)
            return self.file.read(count)

    monkeypatch.setattr(hdf5, "open", lambda path, mode: Counting(real(path, mode)), raising=False)
    assert hdf5._identity(tmp_path / "large.h5", ()) == before
    assert sum(read) == 2**20 < (tmp_path / "large.h5").stat().st_size / 10


def test_a_damaged_place_is_an_unreadable_tile(tmp_path):
    write(tmp_path / "a.h5", 6, chunks=(1, SIZE[1], SIZE[0], 3), compression="gzip")
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["x"].id.get_chunk_info(3)
    data = bytearray((tmp_path / "a.h5").read_bytes())
    data[place.byte_offset : place.byte_offset + 40] = bytes(40)
    (tmp_path / "a.h5").write_bytes(data)
    source = HDF5Images([open_hdf5(tmp_path / "a.h5", "x", SIZE)])
    source.read(2)
    with pytest.raises(UnreadableImage, match="image 3 of .*a.h5 cannot be read"):
        source.read(3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"hello" * 100), "not a readable HDF5 file"),
        (
            lambda path: (write(path, 5), path.write_bytes(path.read_bytes()[:3000])),
            r"cut short \(3,000 bytes are there\)",
        ),
    ],
)
def test_faults_of_a_file(tmp_path, make, message):
    make(tmp_path / "a.h5")
    for call in (lambda path: open_hdf5(path, "x", SIZE), lambda path: read_hdf5(path, "y")):
        with pytest.raises(EosinError, match=f"a.h5: .*{message}"):
            call(tmp_path / "a.h5")


def test_a_missing_data_set_is_named(tmp_path):
    write(tmp_path / "a.h5", 5)
    with pytest.raises(EosinError, match=r"a.h5: no data set 'y' \(it holds x\)"):
        read_hdf5(tmp_path / "a.h5", "y")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["y"] = h5py.Empty("f")
    with pytest.raises(EosinError, match=r"a.h5: 'y' holds no values; get it again"):
        read_hdf5(tmp_path / "a.h5", "y")
    with pytest.raises(EosinError, match=r"expected 'x' as uint8 \[N, 24, 16, 3\], found uint8 \[5, 16, 24, 3\]"):
        open_hdf5(tmp_path / "a.h5", "x", SIZE[::-1])


def test_without_h5py_it_says_how_to_install_it(tmp_path, monkeypatch):
    write(tmp_path / "a.h5", 5)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(EosinError, match=r"HDF5 files need h5py: pip install 'eosin\[h5\]'"):
        open_hdf5(tmp_path / "a.h5", "x", SIZE)


@pytest.mark.parametrize("how", ["external link", "soft link", "external storage", "virtual"])
def test_nothing_outside_the_file_is_read(tmp_path, how):
    """HDF5 can name any file of the machine as its values."""
    images = write(tmp_path / "other.h5", 3)
    raw = tmp_path / "secret.bin"
    raw.write_bytes(images.tobytes())
    with h5py.File(tmp_path / "a.h5", "w") as file:
        if how == "external link":
            file["x"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "x")
        elif how == "soft link":
            file["y"] = images
            file["x"] = h5py.SoftLink("/y")
        elif how == "external storage":
            file.create_dataset("x", images.shape, "u1", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])
        else:
            layout = h5py.VirtualLayout(images.shape, "u1")
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", images.shape)
            file.create_virtual_dataset("x", layout)
    with pytest.raises(EosinError, match="'x' leads to another file or place"):
        open_hdf5(tmp_path / "a.h5", "x", SIZE)
    with pytest.raises(EosinError, match="'x' leads to another file or place"):
        read_hdf5(tmp_path / "a.h5", "x")
