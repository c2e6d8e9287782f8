"""TIFFs as scanners and converters write them: which images are levels, and their pixels."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from eosin.slides import UnusableSlide, open_slide
from eosin.slides.openslide_backend import OpenSlideSlide
from eosin.slides.tiff import TiffSlide

OME = (
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Instrument ID="I:0"><Objective ID="O:0" '
    'NominalMagnification="40"/></Instrument>{}</OME>'
)
OME_IMAGE = (
    '<Image ID="Image:{n}"><Pixels ID="Pixels:{n}" DimensionOrder="{order}" Type="uint8" SizeX="{x}" SizeY="{y}" '
    'SizeC="{c}" SizeZ="{z}" SizeT="1" {more}>{channels}{data}</Pixels></Image>'
)


def tissue(height: int = 300, width: int = 401) -> np.ndarray:
    """Smooth colors, so that lossy compression stays close."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 31 + 1), np.cos(y / 23), np.sin((x + y) / 41)], axis=2)
    return (160 + 70 * waves).astype(np.uint8)


def whole(path: Path, level: int = 0) -> np.ndarray:
    with open_slide(path) as slide:
        return slide.read_level(level, 0, 0, slide.levels[level].width, slide.levels[level].height)


def image(n: int, size: tuple[int, int], planes: list[int] | None, samples: int = 3, **more: object) -> str:
    """One Image element of OME-XML; `planes` are the pages of its channels."""
    c = int(more.pop("c", 3))
    data = "".join(f'<TiffData IFD="{page}" FirstC="{channel}"/>' for channel, page in enumerate(planes or []))
    z, order = more.pop("z", 1), more.pop("order", "XYCZT")
    return OME_IMAGE.format(
        n=n,
        x=size[0],
        y=size[1],
        c=c,
        z=z,
        order=order,
        data=data or "<TiffData/>",
        channels=f'<Channel ID="C:{n}" SamplesPerPixel="{samples}"/>' * (c // samples),
        more=" ".join(f'{key}="{value}"' for key, value in more.items()),
    )


STORED = {
    "raw": {},
    "raw strips": {"tile": None, "rowsperstrip": 7},
    "raw in one strip": {"tile": None, "rowsperstrip": 300},
    "lzw": {"compression": "lzw", "predictor": True},
    "lzw strips": {"compression": "lzw", "tile": None, "rowsperstrip": 33},
    "deflate": {"compression": "deflate", "predictor": True},
    "zstd": {"compression": "zstd"},
    "packbits": {"compression": "packbits"},
    "jpeg 2000": {"compression": "jpeg2000"},
    "planar": {"planarconfig": "separate"},
    "planar lzw": {"planarconfig": "separate", "compression": "lzw"},
    "big": {},
    "motorola": {},
    "jpeg": {"compression": "jpeg"},
    "jpeg strips": {"compression": "jpeg", "tile": None, "rowsperstrip": 64},
    "jpeg 4:2:0": {"compression": "jpeg", "subsampling": (2, 2)},
    "jpeg rgb": {"compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}},
    "webp": {"compression": "webp"},
}


@pytest.mark.parametrize("kind", STORED)
def test_pixels_however_they_are_stored(tmp_path, kind):
    pixels = tissue()
    stored = np.moveaxis(pixels, 2, 0) if "planar" in kind else pixels
    options = {"tile": (96, 112), "photometric": "rgb", "metadata": None} | STORED[kind]
    path = tmp_path / "a.tif"
    order = ">" if kind == "motorola" else "<"
    tifffile.imwrite(path, np.ascontiguousarray(stored), bigtiff=kind == "big", byteorder=order, **options)
    got = whole(path)
    expected = tifffile.imread(path)
    np.testing.assert_array_equal(got, np.moveaxis(expected, 0, 2) if "planar" in kind else expected)
    assert np.abs(got.astype(int) - pixels).mean() <= (3 if "jpeg" in kind or kind == "webp" else 0)
    with open_slide(path) as slide:
        assert slide.format == "tiff"
        np.testing.assert_array_equal(slide.read_level(0, 77, 90, 200, 150), got[90:240, 77:277])


@pytest.mark.parametrize("bits", ["<u2", ">u2"])
@pytest.mark.parametrize("compression", [None, "lzw"])
def test_of_16_bits_the_upper_8_are_kept(tmp_path, bits, compression):
    pixels = tissue()
    deep = (pixels.astype(np.uint16) << 8) + 200
    options = {"photometric": "rgb", "tile": (64, 64), "byteorder": bits[0], "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", deep, compression=compression, **options)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif"), pixels)


def test_grey_palette_and_transparency(tmp_path):
    pixels = tissue()
    grey = np.ascontiguousarray(pixels[..., 0])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, grey, tile=(64, 64), photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(whole(path), np.repeat(grey[..., None], 3, axis=2))
    tifffile.imwrite(path, grey, tile=(64, 64), photometric="miniswhite", metadata=None)
    np.testing.assert_array_equal(whole(path), np.repeat(255 - grey[..., None], 3, axis=2))
    colors = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
    tifffile.imwrite(path, grey, tile=(64, 64), photometric="palette", colormap=colors, metadata=None)
    np.testing.assert_array_equal(whole(path), (colors >> 8).T[grey].astype(np.uint8))
    opacity = np.broadcast_to(np.linspace(0, 255, 401).astype(np.uint8), (300, 401))
    rgba = np.dstack([pixels, opacity])
    tifffile.imwrite(path, rgba, tile=(64, 64), photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    over_white = np.asarray(
        Image.alpha_composite(Image.new("RGBA", (401, 300), "white"), Image.fromarray(rgba)).convert("RGB")
    )
    assert np.abs(whole(path).astype(int) - over_white).max() <= 1
    tifffile.imwrite(path, rgba, tile=(64, 64), photometric="rgb", extrasamples=["unspecified"], metadata=None)
    np.testing.assert_array_equal(whole(path), pixels)


def test_what_is_not_read_here_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue().astype(np.float32), tile=(64, 64), photometric="rgb", metadata=None)
    with pytest.raises(UnusableSlide, match=r"a TIFF that is not read \(.*float32.*8-bit RGB in tiles"):
        open_slide(path)
    options = {"planarconfig": "contig", "photometric": "minisblack", "tile": (64, 64), "metadata": None}
    tifffile.imwrite(path, np.zeros((200, 200, 5), np.uint8), **options)
    with pytest.raises(UnusableSlide, match="has 5 channels; only brightfield RGB"):
        open_slide(path)


def test_a_tile_without_bytes_is_white_here_and_through_openslide(tmp_path):
    pixels = tissue(256, 256)
    path = tmp_path / "a.tif"

    def tiles():
        for index, (y, x) in enumerate([(0, 0), (0, 128), (128, 0), (128, 128)]):
            yield None if index == 2 else np.ascontiguousarray(pixels[y : y + 128, x : x + 128])

    tifffile.imwrite(path, tiles(), shape=(256, 256, 3), dtype=np.uint8, tile=(128, 128), photometric="rgb")
    expected = pixels.copy()
    expected[128:, :128] = 255
    np.testing.assert_array_equal(whole(path), expected)
    backend = OpenSlideSlide(path, 1 << 24)
    np.testing.assert_array_equal(backend.read(0, 0, 0, 256, 256), expected)


def write_aperio(path: Path, compression: object = "jpeg") -> np.ndarray:
    """An Aperio slide: full resolution, thumbnail in strips, a level, label and macro; with MPP and AppMag."""
    pixels = tissue(601, 803)
    level = np.asarray(Image.fromarray(pixels[:600, :800]).reduce(4))
    header = "Aperio Image Library v12.0\r\n803x601 (240x240) J Q=70|AppMag = 40|MPP = 0.2525|Left = 1.5"
    tiled = {"tile": (96, 96), "compression": compression, "photometric": "rgb", "metadata": None}
    strips = {"photometric": "rgb", "metadata": None, "compression": "jpeg", "rowsperstrip": 16}
    with tifffile.TiffWriter(path) as writer:
        writer.write(pixels, description=header, **tiled)
        writer.write(np.ascontiguousarray(pixels[::2, ::2]), description="Aperio\r\n803x601 -> 402x301", **strips)
        writer.write(level, description="Aperio\r\n803x601 -> 200x150 JPEG/RGB Q=70", **tiled)
        writer.write(tissue(120, 90), description="Aperio\r\nlabel 90x120", subfiletype=1, **strips)
        writer.write(tissue(100, 300), description="Aperio\r\nmacro 300x100", subfiletype=9, **strips)
    return pixels


@pytest.mark.parametrize("compression", ["jpeg", "lzw", 33005])
def test_aperio(tmp_path, compression):
    path = tmp_path / "a.svs"
    write_aperio(path, compression)
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference:
        assert slide.format == "aperio"
        assert (slide.mpp, slide.mpp_source, slide.objective) == ((0.2525, 0.2525), "aperio.MPP", 40)
        assert [(level.width, level.height) for level in slide.levels] == list(reference.level_dimensions)
        assert [level.downsample for level in slide.levels] == [(1, 1), (4, 4)]
        for index, size in enumerate(reference.level_dimensions):
            theirs = np.asarray(reference.read_region((0, 0), index, size))[..., :3]
            np.testing.assert_array_equal(slide.read_level(index, 0, 0, *size), theirs)


def test_aperio_jpeg_2000_in_ycbcr(tmp_path):
    pixels = tissue(192, 192)
    converted = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    path = tmp_path / "a.svs"

    def tiles():
        for y in (0, 96):
            for x in (0, 96):
                tile = np.ascontiguousarray(converted[y : y + 96, x : x + 96])
                yield imagecodecs.jpeg2k_encode(tile, level=0, reversible=True, mct=False, codecformat="J2K")

    options = {"tile": (96, 96), "compression": 33003, "photometric": "rgb", "metadata": None}
    tifffile.imwrite(
        path, tiles(), shape=(192, 192, 3), dtype=np.uint8, description="Aperio x\r\n192x192|MPP = 0.5", **options
    )
    got = whole(path).astype(int)
    with openslide.OpenSlide(path) as reference:
        theirs = np.asarray(reference.read_region((0, 0), 0, (192, 192)))[..., :3]
    assert np.abs(got - theirs).max() <= 1
    assert np.abs(got - pixels).max() <= 3


def test_jpeg_2000_with_subsampled_colors_is_not_read_here(tmp_path):
    path = tmp_path / "a.svs"
    options = {"tile": (96, 96), "photometric": "rgb", "metadata": None, "compression": 33005}
    tifffile.imwrite(path, tissue(96, 96), **options)
    data = bytearray(path.read_bytes())
    size = data.index(b"\xff\x51")
    data[size + 44] = data[size + 45] = 2  # the second component: one sample for 2 × 2 px
    path.write_bytes(data)
    with pytest.raises(UnusableSlide, match="JPEG 2000 with subsampled colors"):
        open_slide(path)


def test_an_aperio_scale_in_strips(tmp_path):
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, tissue(), description="Aperio x\r\n|MPP = 0.25", photometric="rgb", metadata=None)
    with open_slide(path) as slide:
        assert slide.mpp == (0.25, 0.25)


def test_rgb_in_jpeg_that_does_not_say_so(tmp_path):
    """Aperio's JPEG/RGB: the decoder would take it for YCbCr."""
    pixels = tissue(192, 192)
    path = tmp_path / "a.svs"

    def tiles():
        for y in (0, 96):
            for x in (0, 96):
                tile = np.ascontiguousarray(pixels[y : y + 96, x : x + 96])
                data = imagecodecs.jpeg8_encode(tile, 95, colorspace="RGB", outcolorspace="RGB")
                # No Adobe marker, and components that are not called R, G and B.
                marker = data.index(b"\xff\xee")
                data = data[:marker] + data[marker + 16 :]
                frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
                data = bytearray(data)
                for component in range(3):
                    data[frame + 10 + 3 * component] = data[scan + 5 + 2 * component] = component
                yield bytes(data)

    options = {"tile": (96, 96), "compression": "jpeg", "photometric": "rgb", "metadata": None}
    options |= {"compressionargs": {"outcolorspace": "rgb"}}
    tifffile.imwrite(
        path, tiles(), shape=(192, 192, 3), dtype=np.uint8, description="Aperio x\r\n192x192|MPP = 0.5", **options
    )
    got = whole(path)
    with openslide.OpenSlide(path) as reference:
        np.testing.assert_array_equal(got, np.asarray(reference.read_region((0, 0), 0, (192, 192)))[..., :3])
    assert np.abs(got.astype(int) - pixels).max() <= 6
    backend = TiffSlide(path, 1 << 24)
    shrunk, factor = backend.reduced(0, 16)
    assert factor == 8
    small = shrunk.read(0, 0, 0, 24, 24).astype(int)
    assert np.abs(small - pixels.reshape(24, 8, 24, 8, 3).mean((1, 3))).max() <= 3
    backend.close()


def test_levels_of_a_plain_pyramid_in_any_order(tmp_path):
    pixels = tissue(480, 640)
    half, quarter = np.asarray(Image.fromarray(pixels).reduce(2)), np.asarray(Image.fromarray(pixels).reduce(4))
    options = {"tile": (96, 96), "photometric": "rgb", "metadata": None}
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(quarter, subfiletype=1, **options)
        writer.write(pixels, **options)
        writer.write(half, subfiletype=1, **options)
        writer.write(tissue(200, 500), subfiletype=1, **options)  # a macro: other proportions
        writer.write(np.ascontiguousarray(half[::4, ::4]), photometric="rgb", metadata=None)  # a thumbnail: no tiles
    with open_slide(path) as slide:
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2), (4, 4)]
        for index, expected in enumerate((pixels, half, quarter)):
            level = slide.levels[index]
            np.testing.assert_array_equal(slide.read_level(index, 0, 0, level.width, level.height), expected)


def test_levels_in_sub_directories(tmp_path):
    pixels = tissue(480, 640)
    half = np.asarray(Image.fromarray(pixels).reduce(2))
    options = {"tile": (96, 96), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(pixels, subifds=1, **options)
        writer.write(half, subfiletype=1, **options)
    np.testing.assert_array_equal(whole(tmp_path / "a.tif", 1), half)


@pytest.mark.parametrize("planar", [False, True])
def test_ome_with_sub_directories(tmp_path, planar):
    pixels = tissue(480, 640)
    half = np.asarray(Image.fromarray(pixels).reduce(2))
    path = tmp_path / "a.ome.tif"
    options = {"tile": (96, 96), "photometric": "rgb", "compression": "lzw"}
    metadata = {"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.00026}
    metadata |= {"PhysicalSizeYUnit": "mm"}
    if planar:
        options["planarconfig"] = "separate"
        metadata["axes"] = "SYX"
    with tifffile.TiffWriter(path, ome=True) as writer:
        for index, level in enumerate((pixels, half)):
            stored = np.ascontiguousarray(np.moveaxis(level, 2, 0)) if planar else level
            more = {"subifds": 1, "metadata": metadata} if index == 0 else {"subfiletype": 1}
            writer.write(stored, **options, **more)
    with open_slide(path) as slide:
        assert slide.format == "ome-tiff"
        assert slide.mpp == (pytest.approx(0.25), pytest.approx(0.26))
        assert slide.mpp_source == "OME PhysicalSizeX"
        assert [level.downsample for level in slide.levels] == [(1, 1), (2, 2)]
    np.testing.assert_array_equal(whole(path), pixels)
    np.testing.assert_array_equal(whole(path, 1), half)


def test_ome_with_levels_as_images_of_their_own(tmp_path):
    """As Bio-Formats wrote pyramids before version 6; with a macro besides."""
    pixels = tissue(480, 640)
    half = np.asarray(Image.fromarray(pixels).reduce(2))
    macro = tissue(100, 300)
    text = OME.format(
        image(0, (300, 100), [0]) + image(1, (640, 480), [1], PhysicalSizeX=0.5) + image(2, (320, 240), [2])
    )
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=False) as writer:
        for index, level in enumerate((macro, pixels, half)):
            options = {"tile": (96, 96), "photometric": "rgb", "metadata": None}
            writer.write(level, description=text if index == 0 else None, **options)
    with open_slide(path) as slide:
        assert slide.mpp == (0.5, 0.5)
        assert slide.objective == 40
        assert slide.notes == ("holds 3 images; the largest, 640 × 480 px, is read",)
    np.testing.assert_array_equal(whole(path), pixels)
    np.testing.assert_array_equal(whole(path, 1), half)


@pytest.mark.parametrize(("order", "listed"), [("XYCZT", True), ("XYZCT", True), ("XYCZT", False), ("XYZCT", False)])
def test_ome_with_a_page_per_channel_and_focal_plane(tmp_path, order, listed):
    pixels = tissue()
    pages = [pixels[..., c] if z == 0 else np.full(pixels.shape[:2], 9, np.uint8) for z in range(2) for c in range(3)]
    first = [0, 1, 2]
    if order == "XYZCT":
        pages, first = [pages[z * 3 + c] for c in range(3) for z in range(2)], [0, 2, 4]
    text = OME.format(image(0, (401, 300), first if listed else None, samples=1, z=2, order=order, PhysicalSizeX=0.25))
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=False) as writer:
        for index, page in enumerate(pages):
            options = {"tile": (96, 96), "photometric": "minisblack", "metadata": None}
            writer.write(np.ascontiguousarray(page), description=text if index == 0 else None, **options)
    np.testing.assert_array_equal(whole(path), pixels)
    with open_slide(path) as slide:
        assert slide.notes == ("has 2 focal planes or times; the first is read",)


def test_ome_fluorescence_is_refused(tmp_path):
    text = OME.format(image(0, (200, 200), [0, 1, 2, 3, 4], samples=1, c=5))
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=False) as writer:
        for index in range(5):
            options = {"tile": (96, 96), "photometric": "minisblack", "metadata": None}
            writer.write(np.zeros((200, 200), np.uint8), description=text if index == 0 else None, **options)
    with pytest.raises(UnusableSlide, match="has 5 channels; only brightfield RGB"):
        open_slide(path)


def test_an_imagej_scale(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", tissue(), imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp == (0.25, 0.25)
        assert slide.mpp_source == "ImageJ resolution"


def test_scale_and_resolution_tags_that_disagree(tmp_path):
    path = tmp_path / "a.svs"
    options = {"tile": (96, 96), "photometric": "rgb", "metadata": None, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, tissue(), description="Aperio x\r\n|MPP = 0.5", resolution=(40_000, 40_000), **options)
    with open_slide(path) as slide:
        assert slide.mpp == (0.5, 0.5)
        assert slide.notes == ("aperio.MPP says 0.5 µm/px, which is used; TIFF resolution says 0.25 µm/px",)
    tifffile.imwrite(path, tissue(), description="Aperio x\r\n|MPP = 0|AppMag = 20", resolution=(72, 72), **options)
    with open_slide(path) as slide, pytest.raises(UnusableSlide, match=r"aperio.MPP says 0 µm/px, .*at 20x"):
        slide.require_mpp()
