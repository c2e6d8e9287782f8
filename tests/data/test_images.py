from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.data import UnreadableImage, decode_image, load_square, open_tiles
from eosin.data.images import MAXIMUM_PIXELS, square_image

Encode = Callable[..., bytes]


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def ramp(top: int, dtype: type) -> np.ndarray:
    return np.linspace(0, top, 16 * 12).reshape(12, 16).round().astype(dtype)


def test_rgb_is_kept_to_the_bit() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    decoded = decode_image(file_of(Image.fromarray(pixels)))
    assert decoded.dtype == np.uint8
    assert decoded.transpose(1, 2, 0).flags.c_contiguous
    np.testing.assert_array_equal(decoded, pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
def test_jpeg_decodes_as_pillow_does(options: dict[str, int], encode: Encode) -> None:
    data = encode(1, (301, 255), "JPEG", quality=85, **options)
    np.testing.assert_array_equal(
        decode_image(data).transpose(1, 2, 0), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    )


def test_what_follows_a_jpeg_changes_no_pixel(encode: Encode) -> None:
    """With something behind its end a JPEG is decoded by Pillow."""
    data = encode(1, (301, 255), "JPEG", quality=85)
    np.testing.assert_array_equal(decode_image(data + b"comment"), decode_image(data))
    np.testing.assert_array_equal(square_image(data + b"comment", 100), square_image(data, 100))


@pytest.mark.parametrize("size", [(64, 64), (64, 80), (300, 200)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pixels_are_put_where_they_are_wanted(encode: Encode, size: tuple[int, int], kind: str) -> None:
    data = encode(1, size, kind)
    room = np.full((2, 64, 64, 3), 7, np.uint8)
    out = room[1].transpose(2, 0, 1)
    assert square_image(data, 64, out=out) is out
    np.testing.assert_array_equal(out, square_image(data, 64))
    assert (room[0] == 7).all()


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_jpeg_cut_short_is_unreadable(encode: Encode, share: float) -> None:
    data = encode(1, (301, 255), "JPEG", quality=85)
    with pytest.raises(UnreadableImage, match="truncated"):
        decode_image(data[: int(len(data) * share)])


@pytest.mark.filterwarnings("error")
def test_works_where_warnings_are_errors(encode: Encode) -> None:
    assert decode_image(encode(1, (30, 25), "JPEG")).shape == (3, 25, 30)


def test_gray_and_palette_are_expanded() -> None:
    gray = ramp(255, np.uint8)
    for data in (file_of(Image.fromarray(gray)), file_of(Image.fromarray(gray).convert("P"))):
        np.testing.assert_array_equal(decode_image(data), np.stack([gray] * 3))
    jpeg = file_of(Image.fromarray(gray), "JPEG")
    assert decode_image(jpeg).shape == (3, 12, 16)
    bits = file_of(Image.fromarray(gray > 99))
    np.testing.assert_array_equal(decode_image(bits), np.stack([(gray > 99) * np.uint8(255)] * 3))


def test_transparency_is_laid_over_white() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 4), dtype=np.uint8)
    color, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    expected = color * alpha + 255 * (1 - alpha)
    decoded = decode_image(file_of(Image.fromarray(pixels))).transpose(1, 2, 0)
    assert np.abs(decoded - expected).max() <= 1
    clear = Image.fromarray(np.zeros((12, 16), np.uint8)).convert("P")
    assert (decode_image(file_of(clear, transparency=0)) == 255).all()
    gray_alpha = Image.fromarray(np.zeros((12, 16, 2), np.uint8), "LA")
    assert (decode_image(file_of(gray_alpha)) == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    # Half cyan, no other ink: red is halved.
    ink = Image.new("CMYK", (16, 16), (128, 0, 0, 0))
    decoded = decode_image(file_of(ink, kind))
    np.testing.assert_allclose(decoded.mean(axis=(1, 2)), (127, 255, 255), atol=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_sixteen_bits_the_upper_eight_are_kept(kind: str) -> None:
    deep = ramp(65535, np.uint16)
    np.testing.assert_array_equal(decode_image(file_of(Image.fromarray(deep), kind)), np.stack([deep // 256] * 3))


def test_deep_color_png() -> None:
    import struct
    import zlib

    deep = np.random.default_rng(2).integers(0, 65536, (9, 11, 3)).astype(">u2")

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    header = struct.pack(">IIBBBBB", 11, 9, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode_image(data), (deep // 256).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["F", "I"])
def test_deeper_pixels_are_refused(mode: str) -> None:
    image = Image.fromarray(np.full((12, 12), 1e6, np.float32 if mode == "F" else np.int32))
    with pytest.raises(UnreadableImage, match="floating-point" if mode == "F" else "32-bit"):
        decode_image(file_of(image, "TIFF"))


def test_orientation_tags_are_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(Image.new("RGB", (32, 16), "red"), "JPEG", exif=exif)
    assert decode_image(data).shape == (3, 16, 32)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_images_are_unreadable(kind: str, size: int | None, encode: Encode) -> None:
    data = encode(3, (200, 200), kind)
    for keep in (len(data) // 2, len(data) - 40):
        with pytest.raises(UnreadableImage):
            decode_image(data[:keep]) if size is None else square_image(data[:keep], size)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a text file\n", "not an image"),
        ((1, 1), "1×1 px"),
        ((300, 7), "300×7 px: a side is shorter than 8"),
    ],
)
def test_no_images(data: bytes | tuple[int, int], reason: str, encode: Encode) -> None:
    if isinstance(data, tuple):
        data = encode(0, data)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode_image(data, "slide/a.png")
    assert caught.value.__notes__ == ["slide/a.png"]


def test_a_large_image_passes_and_a_bomb_does_not() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        large = file_of(Image.new("RGB", (20_000, 2_000), "pink"), "JPEG")
        assert decode_image(large).shape == (3, 2_000, 20_000)
        assert square_image(large, 32).shape == (3, 32, 32)
    bomb = file_of(Image.new("1", (20_000, 20_000)), compress_level=1)
    assert MAXIMUM_PIXELS < 20_000 * 20_000
    with pytest.raises(UnreadableImage, match="pixels that an image may have"):
        decode_image(bomb)


def test_the_limit_is_ours_and_not_pillows(monkeypatch: pytest.MonkeyPatch, encode: Encode) -> None:
    data = encode(0, (100, 90))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100 * 90 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(data).shape == (3, 90, 100)
    # Programs that open slides often lift Pillow's guard; ours stays.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("eosin.data.images.MAXIMUM_PIXELS", 100 * 90 - 1)
    with pytest.raises(UnreadableImage, match="100×90 px: more than"):
        decode_image(data)


@pytest.mark.parametrize("shape", [(64, 64), (100, 64), (64, 101), (37, 90)])
def test_square_is_a_resize_of_the_short_side_and_a_central_cut(shape: tuple[int, int], encode: Encode) -> None:
    width, height = shape
    data = encode(4, shape)
    scale = 48 / min(shape)
    whole = Image.open(io.BytesIO(data)).resize(
        (max(48, int(width * scale)), max(48, int(height * scale))), Image.Resampling.BILINEAR
    )
    left, top = round((whole.width - 48) / 2), round((whole.height - 48) / 2)
    expected = np.asarray(whole)[top : top + 48, left : left + 48].transpose(2, 0, 1)
    # Both work in fixed point with their own rounding.
    assert np.abs(square_image(data, 48).astype(int) - expected).max() <= 1


def test_square_of_the_right_size_is_untouched(encode: Encode) -> None:
    data = encode(5, (48, 48))
    np.testing.assert_array_equal(square_image(data, 48), decode_image(data))


def test_jpeg_shrunk_in_decoding_stays_close(real_data: Path) -> None:
    tiles = open_tiles(real_data / "osteosarcoma")
    for index in (0, 11, 23):
        quick = load_square(tiles, index, 224)
        whole = Image.open(io.BytesIO(tiles.read(index))).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        difference = np.abs(quick.astype(int) - np.asarray(whole).transpose(2, 0, 1))
        assert difference.mean() < 1.5
        np.testing.assert_array_equal(quick, load_square(tiles, index, 224))


@pytest.mark.parametrize(
    ("name", "filter_"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_square_image_resizes_by_the_filter_asked_for(name, filter_):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    expected = np.asarray(Image.fromarray(pixels).resize((40, 40), filter_)).transpose(2, 0, 1).astype(int)
    assert np.abs(square_image(buffer.getvalue(), 40, name).astype(int) - expected).max() <= 1
