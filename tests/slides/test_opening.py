"""Opening: which reader serves which file, real slides against OpenSlide, and files that are no slides."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from eosin.core.errors import EosinError
from eosin.slides import UnusableSlide, open_slide, opening, tiff_decode
from eosin.slides import plain as plain_module


def write_tiff(path: Path, pixels: np.ndarray | None = None, **options) -> Path:
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (500, 600, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, **({"tile": (128, 128), "photometric": "rgb", "metadata": None} | options))
    return path


def reason(path: Path) -> str:
    """Why a file cannot be opened and read whole: one line that leaves out the path."""
    with pytest.raises(UnusableSlide) as caught, open_slide(path) as slide:
        slide.read_level(0, 0, 0, slide.width, slide.height)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) not in message
    assert message[0].islower() or message[0].isupper()
    return message


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides_have_the_pixels_that_openslide_reads(real_data, name):
    path = real_data / "slides" / name
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        assert slide.format == "aperio"
        assert [(level.width, level.height) for level in slide.levels] == list(reference.level_dimensions)
        for index, size in enumerate(reference.level_dimensions):
            theirs = np.asarray(reference.read_region((0, 0), index, size))[..., :3]
            np.testing.assert_array_equal(slide.read_level(index, 0, 0, *size), theirs)


def test_scales_of_the_real_slides(real_data):
    with open_slide(real_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert (slide.mpp, slide.mpp_source, slide.objective) == ((0.499, 0.499), "aperio.MPP", 20)
    with open_slide(real_data / "slides" / "tcga-cr-7395-01a-01-ts1.svs") as slide:
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2)]
        with pytest.raises(UnusableSlide, match="does not say its µm/px; give --source-mpp"):
            slide.require_mpp()
    with open_slide(real_data / "slides" / "OS-1-detail.ome.tif") as slide:
        assert slide.format == "ome-tiff"
        assert slide.mpp == (pytest.approx(0.2271, abs=1e-4), pytest.approx(0.2271, abs=1e-4))
        assert slide.notes == ()
        whole = tifffile.imread(real_data / "slides" / "OS-1-detail.ome.tif")
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 1101, 1101), whole)


def test_a_plain_image_is_one_level(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    for name in ("a.png", "b.bmp", "c.jp2", "d.svs"):
        kind = {"c.jp2": "JPEG2000", "d.svs": "PNG"}.get(name)
        Image.fromarray(pixels).save(tmp_path / name, kind)
        with open_slide(tmp_path / name, source_mpp=0.5) as slide:
            assert slide.format == "plain"
            assert len(slide.levels) == 1
            np.testing.assert_array_equal(slide.read_level(0, 20, 10, 90, 70), pixels[10:80, 20:110])
            blocks = slide.read(0, 0, 1.0, 150, 100).astype(float) - pixels.reshape(100, 2, 150, 2, 3).mean((1, 3))
            assert np.abs(blocks).max() <= 0.5


def test_plain_images_of_other_modes(tmp_path):
    grey = np.arange(100, dtype=np.uint8).reshape(10, 10)
    path = tmp_path / "a.png"
    Image.fromarray(grey.astype(np.uint16) * 256).save(path)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 10, 10), np.repeat(grey[..., None], 3, axis=2))
    Image.new("RGBA", (10, 10), (200, 0, 0, 0)).save(path)
    with open_slide(path) as slide:
        assert np.all(slide.read_level(0, 0, 0, 10, 10) == 255)


def test_the_dpi_of_a_photograph_are_no_scale(tmp_path):
    image = Image.new("RGB", (40, 30))
    image.save(tmp_path / "a.png", dpi=(300, 300))
    with open_slide(tmp_path / "a.png") as slide, pytest.raises(UnusableSlide, match=r"its dpi says 84.\d+ µm/px"):
        slide.require_mpp()
    image.save(tmp_path / "b.png", dpi=(50_800, 50_800))
    with open_slide(tmp_path / "b.png") as slide:
        assert slide.mpp == (pytest.approx(0.5, rel=1e-3), pytest.approx(0.5, rel=1e-3))


def test_too_many_pixels_to_decode_at_once(tmp_path, monkeypatch):
    Image.new("RGB", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(plain_module, "MAXIMUM_BYTES", 4 * 50_000)
    assert "more than the 50,000 px that can be decoded at once; save it as a tiled TIFF" in reason(tmp_path / "a.png")
    monkeypatch.setattr(tiff_decode, "MAXIMUM_BYTES", 4 * 50_000)
    path = write_tiff(tmp_path / "b.tif", tile=None, rowsperstrip=500, compression="lzw")
    assert "stored in one piece of 600 × 500 px" in reason(path)


@pytest.mark.parametrize("mode", ["RGBA", "I;16", "RGB", "P"])
def test_a_plain_image_is_kept_once(tmp_path, mode):
    """36 megapixels of at most 4 bytes: a second copy, as an earlier conversion made, would take as much again."""
    pixels = Image.effect_noise((6000, 100), 60).resize((6000, 6000))
    if mode == "I;16":
        pixels = Image.fromarray(np.asarray(pixels).astype(np.uint16) * 257)
    pixels = pixels if mode == "I;16" else pixels.convert(mode)
    pixels.save(tmp_path / "a.png", compress_level=1)
    code = """
import sys
from eosin.slides import open_slide

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

with open_slide(sys.argv[1], source_mpp=0.5) as slide:
    before = peak()
    slide.read(0, 0, 0.5, 100, 100)
    slide.thumbnail(8.0)
    print(peak() - before)
"""
    ran = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 36e6 * 4 + 60e6


def test_files_that_are_no_slides(tmp_path):
    path = tmp_path / "a.svs"
    path.write_bytes(b"")
    assert reason(path).startswith("empty (0 bytes)")
    path.write_text("no pixels here\n")
    assert reason(path) == "not an image of a known format"
    path.write_bytes(b"II*\0")
    assert "truncated" in reason(path)
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert reason(path) == "not an image of a known format"
    path.write_bytes(b"II*\0\x08\0\0\0" + b"\0" * 40)
    assert reason(path) == "holds no image"
    assert reason(tmp_path) == "is a folder; give a slide's file, or a folder of DICOM files"
    assert reason(tmp_path / "none.svs") == "does not exist"
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    assert "leads back to itself" in reason(tmp_path / "loop.svs")
    assert "does not exist" in reason(path / "inside.svs") or "cannot be read" in reason(path / "inside.svs")


def test_a_file_without_permission(tmp_path, monkeypatch):
    path = write_tiff(tmp_path / "a.tif")
    path.chmod(0)
    if os.access(path, os.R_OK):
        # This user may read everything.
        denied = PermissionError(errno.EACCES, "Permission denied")
        monkeypatch.setattr(opening, "open", Mock(side_effect=denied), raising=False)
    assert reason(path) == "may not be read; change its permissions"


def test_a_mirax_slide_without_its_folder(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "case 1.mrxs", "JPEG")
    assert reason(tmp_path / "case 1.mrxs") == (
        "its pixels lie in the folder case 1 beside it, which is missing or incomplete; copy it too"
    )


@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_truncated(tmp_path, share, bigtiff):
    whole = write_tiff(tmp_path / "a.tif", compression="jpeg", bigtiff=bigtiff).read_bytes()
    path = tmp_path / "b.tif"
    path.write_bytes(whole[: int(len(whole) * share)])
    assert reason(path).startswith(("truncated", "its list of tiles is damaged"))


def test_truncated_behind_level_0(tmp_path):
    """Without its last directory the file would pass for a slide with fewer levels."""
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    options = {"tile": (128, 128), "photometric": "rgb", "metadata": None}
    path = tmp_path / "a.tif"
    for subifds in (0, 1):
        with tifffile.TiffWriter(path) as writer:
            writer.write(pixels, subifds=subifds, **options)
            writer.write(np.ascontiguousarray(pixels[::2, ::2]), subfiletype=1, **options)
        with tifffile.TiffFile(path) as tif:
            last = tif.pages[0].pages[0] if subifds else tif.pages[1]
            offset = last.offset
        path.write_bytes(path.read_bytes()[: offset + 10])
        assert "truncated" in reason(path)


def test_real_slides_cut_short(real_data, tmp_path, capfd):
    for name in ("CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "OS-1-detail.ome.tif"):
        whole = (real_data / "slides" / name).read_bytes()
        for share in (0.0005, 0.3, 0.65, 0.7):
            path = tmp_path / name
            path.write_bytes(whole[: int(len(whole) * share)])
            assert "truncated" in reason(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzw", "deflate"])
@pytest.mark.parametrize("damage", ["zeros", "second half"])
def test_damaged_tiles(tmp_path, compression, damage, capfd):
    path = write_tiff(tmp_path / "a.tif", compression=compression)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[0].dataoffsets[7], tif.pages[0].databytecounts[7]
    start = offset if damage == "zeros" else offset + count // 2
    data[start : offset + count] = bytes(offset + count - start)
    path.write_bytes(data)
    assert reason(path).startswith("a source tile is damaged (row 2, column 3: ")
    with open_slide(path) as slide:
        assert slide.read_level(0, 0, 0, 200, 100).shape == (100, 200, 3)
        with pytest.raises(UnusableSlide, match="damaged"):
            slide.thumbnail_by(4.0)
    assert capfd.readouterr() == ("", "")


def test_damaged_directories_never_end_in_a_traceback(tmp_path, capfd):
    """Bytes overwritten anywhere in the header: read, or refused in one line."""
    path = write_tiff(tmp_path / "a.tif", compression="jpeg", description="Aperio x|MPP = 0.5")
    whole = path.read_bytes()
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[0].offset
    draws = np.random.default_rng(0)
    started = time.monotonic()
    for _ in range(150):
        data = bytearray(whole)
        for at in draws.integers(start, min(start + 300, len(data)), 3):
            data[at] = draws.integers(256)
        path.write_bytes(data)
        try:
            with open_slide(path) as slide:
                slide.read_level(0, 0, 0, 32, 32)
        except UnusableSlide as error:
            lines = str(error).splitlines()
            assert len(lines) == 1, lines
        if time.monotonic() - started > 8:
            break
    assert capfd.readouterr() == ("", "")


def test_damaged_ome_xml(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), description="<OME><Image></OME>", metadata=None)
    assert "its OME-XML is damaged (mismatched tag" in reason(path)
    text = '<OME><Image><Pixels SizeX="65" SizeY="64" SizeC="3"><Channel SamplesPerPixel="3"/></Pixels></Image></OME>'
    tifffile.imwrite(path, np.zeros((64, 64, 3), np.uint8), description=text, metadata=None)
    assert "its OME-XML says 65 × 64 px, its pixels are 64 × 64" in reason(path)


def test_what_is_given_is_checked_first(tmp_path):
    with pytest.raises(EosinError, match="source mpp 0"):
        open_slide(tmp_path / "none.svs", source_mpp=0)


@pytest.mark.parametrize("vendor", ["hamamatsu", "leica", "philips-tiff", "ventana", "dicom", "sakura"])
def test_formats_that_openslide_knows_are_left_to_it(tmp_path, monkeypatch, vendor):
    """Many are TIFFs, of which a plain reader would take overlapping or padded tiles for an image."""
    path = write_tiff(tmp_path / "a.tif")
    served = Mock(side_effect=UnusableSlide("asked"))
    monkeypatch.setattr(opening, "detect", lambda _: vendor)
    monkeypatch.setattr(opening, "OpenSlideSlide", served)
    assert reason(path) == "asked"
    served.assert_called_once_with(path, 256 << 20)


def test_a_folder_of_dicom_files_is_a_slide(tmp_path, monkeypatch):
    for name in ("b.dcm", "a.dcm", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    served = Mock(side_effect=UnusableSlide("asked"))
    monkeypatch.setattr(opening, "detect", lambda path: "dicom" if path.name == "b.dcm" else None)
    monkeypatch.setattr(opening, "OpenSlideSlide", served)
    assert reason(tmp_path) == "asked"
    served.assert_called_once_with(tmp_path / "b.dcm", 256 << 20)


def test_a_closed_slide_does_not_read_another_file(tmp_path):
    path = write_tiff(tmp_path / "a.tif")
    slide = open_slide(path)
    slide.close()
    slide.close()
    with open(path, "rb"), pytest.raises(Exception, match="the slide is closed"):
        slide.read_level(0, 0, 0, 10, 10)


def test_openslide_serves_formats_of_its_own(tmp_path, real_data):
    """A Trestle slide: a TIFF that the fast way must leave alone."""
    source = real_data / "slides" / "CMU-1-Small-Region.svs"
    with open_slide(source) as slide:
        pixels = slide.read_level(0, 0, 0, 1024, 1024)
    path = tmp_path / "a.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "metadata": None, "compression": "jpeg"}
    text = "Objective Power=20;White Balance=1;Background Color=FFFFFF;OverlapsXY= 0 0"
    with tifffile.TiffWriter(path) as writer:
        for step in (1, 2):
            level = np.ascontiguousarray(pixels[::step, ::step])
            writer.write(level, description=text, software="MedScan 1", subfiletype=int(step > 1), **options)
    with open_slide(path, source_mpp=0.5) as slide, openslide.OpenSlide(path) as reference:
        assert slide.format == "openslide:trestle"
        assert slide.objective == 20
        theirs = np.asarray(reference.read_region((64, 32), 0, (500, 400)))[..., :3]
        np.testing.assert_array_equal(slide.read_level(0, 64, 32, 500, 400), theirs)
        assert slide.read(10, 20, 1.0, 300, 200).shape == (200, 300, 3)
    shutil.copy(path, tmp_path / "b.svs")
    with open_slide(tmp_path / "b.svs") as slide:
        assert slide.format == "openslide:trestle"
