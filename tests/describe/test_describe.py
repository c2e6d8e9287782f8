from __future__ import annotations

import io
import math

import numpy as np
import pytest
from rich.console import Console

from eosin.core.errors import EosinError
from eosin.data import open_tiles, pack
from eosin.describe import Description, describe, print_description
from eosin.describe.facts import sections
from eosin.describe.findings import findings

WHITE = np.full((64, 64, 3), 255, dtype=np.uint8)
BLACK = np.zeros((64, 64, 3), dtype=np.uint8)


def printed(description: Description, width: int = 80) -> str:
    file = io.StringIO()
    print_description(description, Console(file=file, width=width, color_system=None))
    return file.getvalue()


def cells(description: Description, name: str) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for section in sections(description) if section.name == name for row in section.rows}


def said(description: Description) -> str:
    return "\n".join(f"{finding.tone}: {finding.text}" for finding in findings(description))


def test_what_was_put_in_comes_out(write, tissue, tmp_path):
    from scipy.ndimage import gaussian_filter

    soft = [gaussian_filter(pixels, (3, 3, 0)) for pixels in tissue[:2]]
    index = write(
        [*tissue, *soft, WHITE, BLACK, b"no image"],
        label=[*["a"] * 8, *["b"] * 6, "", "", ""],
        split=["train"] * 10 + ["test"] * 7,
        slide=[f"s{number // 4}" for number in range(17)],
        patient=[f"p{number // 4}" for number in range(17)],
        mpp=[0.5] * 16 + [""],
    )
    found = describe(str(index), workers=0)
    tiles, quality, labels = (cells(found, name) for name in ("tiles", "quality", "labels"))
    assert tiles["tiles"] == ("17",)
    assert tiles["looked at"] == ("all, 1 of them unreadable (5.9 %)",)
    assert tiles["size"] == ("96 × 96 px (14), 64 × 64 px (2)",)
    assert tiles["resolution"] == ("0.5 µm/px; unknown for 1 tile",)
    assert tiles["extent"] == ("48 × 48 µm (14), 32 × 32 µm (2)",)
    assert tiles["slides"] == ("5, of 4 tiles in the median (1 to 4)",)
    assert labels["a"] == ("8", "47.1 %", "8", "0")
    assert labels["unknown"] == ("3", "17.6 %", "0", "3")
    assert labels["all"] == ("17", "100 %", "10", "7")
    assert [quality[name][0] for name in ("blank", "blurred", "black", "burnt out")] == ["2", "2", "1", "1"]
    assert quality["blurred"][1] == "14"
    assert cells(found, "unreadable") == {"016.png": ("not an image of a known format",)}
    text = said(found)
    assert "wrong: 1 patient is in more than one split ('p2': test, train)" in text
    assert "wrong: 1 slide is in more than one split ('s2': test, train)" in text
    assert "care: 3 tiles have no label" in text
    assert "care: Few tiles of 'a' (8), 'b' (6)" in text
    assert text.index("care") > text.rindex("wrong")


def test_a_folder_a_manifest_and_a_store_are_described_alike(write, tissue, tmp_path):
    index = write(tissue)
    pack([str(index)], tmp_path / "store")
    found = [describe(str(source), workers=0) for source in (index, tmp_path / "store", f"csv:{index}")]
    for other in found[1:]:
        assert (other.measured.table == found[0].measured.table).all()
        assert [row for section in sections(other)[1:] for row in section.rows] == [
            row for section in sections(found[0])[1:] for row in section.rows
        ]


def test_workers_change_nothing(write, tissue):
    index = write([*tissue * 3, b"broken"])
    alone, helped = (describe(str(index), workers=workers) for workers in (0, 1))
    assert alone.measured.table.tobytes() == helped.measured.table.tobytes()
    assert (alone.measured.digests == helped.measured.digests).all()
    assert printed(alone) == printed(helped)


def test_a_sample_is_decoded_and_all_is_counted(write, tissue):
    index = write(tissue * 5, label=[f"l{number % 3}" for number in range(60)])
    found = describe(str(index), sample=9, workers=0)
    assert len(found.measured) == found.asked == 9
    assert cells(found, "tiles")["looked at"] == ("9",)
    assert cells(found, "labels")["l1"][0] == "20"
    assert found.copies.looked_at == 60
    assert found.copies.groups == 12


@pytest.mark.parametrize(
    "images",
    [
        pytest.param([b"broken", b""], id="nothing readable"),
        pytest.param([WHITE, WHITE, BLACK], id="all blank"),
        pytest.param([np.full((8, 8, 3), (200, 120, 180), dtype=np.uint8)] * 2, id="8 px, one color"),
        pytest.param([np.full((64, 64, 3), (200, 120, 180), dtype=np.uint8)], id="one tile, one color"),
        pytest.param([np.random.default_rng(0).integers(0, 255, (9, 300, 3), dtype=np.uint8)], id="a strip"),
    ],
)
def test_poor_sources_are_described_without_a_number_that_is_none(write, images, tmp_path):
    index = write(images)
    found = describe(str(index), out=tmp_path / "tiles.html", workers=0)
    page = (tmp_path / "tiles.html").read_text(encoding="utf-8")
    for text in (printed(found), page.partition("</style>")[2]):
        words = text.lower().replace("<", " ").replace(">", " ").split()
        assert not {"nan", "inf", "none", "-inf", "nan,"} & set(words)
    assert cells(found, "tiles")["tiles"] == (str(len(images)),)


def test_a_source_that_is_mostly_unreadable_is_described_and_says_so(write, tissue):
    found = describe(str(write([*tissue[:2], b"x", b"y", b"z"])), workers=0)
    assert "Most tiles cannot be read" in said(found)
    assert len(found.stain) == 2


def test_a_damaged_shard_makes_tiles_unreadable_and_not_the_source(write, tissue, tmp_path):
    pack([str(write(tissue))], tmp_path / "store")
    tiles = open_tiles(tmp_path / "store")
    shard = next((tmp_path / "store").rglob("*.arrow"))
    size = shard.stat().st_size
    shard.write_bytes(b"\0" * size)
    found = describe(str(tmp_path / "store"), workers=0)
    assert found.measured.unreadable.count == len(tiles)
    assert cells(found, "tiles")["looked at"] == ("all, 12 of them unreadable (100 %)",)


def test_nothing_to_say_of_a_good_source(write, tissue):
    columns = {
        "label": ["a"] * 12,
        "slide": [f"s{number // 2}" for number in range(12)],
        "split": ["train"] * 8 + ["test"] * 4,
        "mpp": [0.5] * 12,
    }
    found = describe(str(write(tissue, **columns)), workers=0)
    assert findings(found) == []
    assert "Before you use them" not in printed(found)


def test_mixed_resolutions_are_told(write, tissue):
    found = describe(str(write(tissue, mpp=[0.5, 0.25] * 6, slide=["s"] * 12)), workers=0)
    assert cells(found, "tiles")["resolution"] == ("0.25 µm/px (6), 0.5 µm/px (6)",)
    assert "Resolutions differ, from 0.25 to 0.5 µm/px" in said(found)


def test_resolutions_that_are_none_are_told(write, tissue, tmp_path):
    found = describe(str(write(tissue[:4], mpp=[0.5, 0, -0.5, "inf"])), out=tmp_path / "tiles.html", workers=0)
    assert "wrong: 3 tiles have a resolution that no tile has, such as 0 µm/px" in said(found)
    assert printed(found)


def test_many_resolutions_and_sizes_are_summed_up(write):
    images = [np.full((32 + number, 40, 3), (200, 120, 180), dtype=np.uint8) for number in range(9)]
    found = describe(str(write(images, mpp=[0.2 + 0.01 * number for number in range(9)])), workers=0)
    assert cells(found, "tiles")["size"][0].startswith("width 40 px; height median 36, 90 % within 32.4 to 39.6")
    assert cells(found, "tiles")["resolution"][0].startswith("median 0.24,")


def test_the_terminal_may_be_narrow(write, tissue):
    long = [f"a label of many words, number {number}" for number in range(12)]
    found = describe(str(write(tissue, label=long, split=["train"] * 12)), workers=0)
    lines = printed(found).splitlines()[1:]
    assert max(len(line.rstrip()) for line in lines) <= 80


def test_markup_in_names_is_text(write, tissue):
    found = describe(str(write(tissue[:2], label=["[red]x[/red]", "[/]"])), workers=0)
    assert "[red]x[/red]" in printed(found)


def test_what_is_wrong_is_said_in_one_line(write, tissue, tmp_path):
    index = write(tissue[:1])
    with pytest.raises(EosinError, match=r"--sample -3: give how many"):
        describe(str(index), sample=-3)
    with pytest.raises(EosinError, match=r"ends in \.html"):
        describe(str(index), out=tmp_path / "page.txt")
    with pytest.raises(EosinError, match="no such file or folder"):
        describe(str(tmp_path / "absent"))
    with pytest.raises(EosinError, match="no column 'grade'"):
        describe(str(index), label_column="grade")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EosinError, match="it is empty"):
        describe(str(tmp_path / "empty"))


def test_numbers_are_those_of_one_tile(write, tissue):
    found = describe(str(write([tissue[0], BLACK])), workers=0).measured
    assert found.column("tissue")[0] > 0.3
    assert found.column("black").tolist() == [float((tissue[0].max(axis=2) <= 20).mean()), 1.0]
    assert found.column("white")[0] == float((tissue[0].min(axis=2) == 255).mean())
    assert found.column("width").tolist() == [96.0, 64.0]
    assert math.isnan(found.column("sharpness")[1])
