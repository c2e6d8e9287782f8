import csv
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import eosin.synthetic.collection as collection
from eosin.core.errors import EosinError
from eosin.synthetic import TISSUES, render_tile, write_tiles


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_collection_is_balanced_and_split_by_slide(tmp_path):
    index = write_tiles(tmp_path / "tiles", tiles=110, slides=6, size=32, seed=5)
    assert index == tmp_path / "tiles" / "index.csv"
    rows = read(index)
    assert list(rows[0]) == ["file", "label", "patient", "slide", "split", "mpp"]
    assert len(rows) == len({row["file"] for row in rows}) == 110
    labels = Counter(row["label"] for row in rows)
    assert set(labels) == set(TISSUES)
    assert max(labels.values()) - min(labels.values()) <= 1
    splits = {}
    for row in rows:
        splits.setdefault(row["slide"], set()).add(row["split"])
        assert row["patient"] == row["slide"]
        assert float(row["mpp"]) == 0.5
        assert row["file"].startswith(f"images/{row['label']}/{row['label']}-s")
    assert len(splits) == 6
    assert all(len(names) == 1 for names in splits.values())
    assert {name for names in splits.values() for name in names} == {"train", "val", "test"}
    on_disk = {path.relative_to(index.parent).as_posix() for path in index.parent.rglob("*.png")}
    assert on_disk == {row["file"] for row in rows}


def test_files_hold_the_tile_and_say_what_they_are(tmp_path):
    index = write_tiles(tmp_path / "tiles", tiles=24, slides=3, size=24, mpp=1.0, seed=8)
    assert "synthetic, not real tissue" in (index.parent / "README.txt").read_text(encoding="utf-8")
    for row in read(index):
        with Image.open(index.parent / row["file"]) as picture:
            assert "synthetic, not real tissue" in picture.text["Description"]
            pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        stem = row["file"].rsplit("/", 1)[1].removesuffix(".png")
        slide, number = (int(part.lstrip("s")) for part in stem.split("-")[1:])
        tile = render_tile(row["label"], size=24, mpp=1.0, seed=8, slide=slide, index=number)
        assert np.array_equal(pixels, tile.image)


@given(
    slides=st.integers(3, 200),
    shares=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
)
def test_split_counts_follow_the_shares(slides, shares, seed):
    total = sum(shares)
    wanted = {f"part{place}": share / total for place, share in enumerate(shares)}
    got = collection._split_slides(slides, wanted, seed)
    counts = Counter(got)
    assert len(got) == slides
    assert set(counts) == set(wanted)
    # Within one of the share, but that every split gets a slide.
    assert all(counts[name] == 1 or counts[name] < share * slides + 1 for name, share in wanted.items())
    assert got == collection._split_slides(slides, wanted, seed)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("tiles", {"tiles": 0}),
        ("slides", {"slides": 2}),
        ("size", {"size": 3}),
        ("mpp", {"mpp": 100}),
        ("seed", {"seed": -3}),
        ("splits", {"splits": {"train": 0.5, "test": 0.2}}),
        ("splits", {"splits": {"train": 1.0, "test": 0.0}}),
        ("splits", {"splits": {}}),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_left(tmp_path, name, change):
    with pytest.raises(EosinError, match=f"^{name}: "):
        write_tiles(tmp_path / "tiles", **({"tiles": 8, "slides": 3} | change))
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def fail_later(*args, **kwargs):
        drawn.append(args)
        if len(drawn) == 5:
            raise KeyboardInterrupt
        return render_tile(*args, **kwargs)

    monkeypatch.setattr(collection, "render_tile", fail_later)
    with pytest.raises(KeyboardInterrupt):
        write_tiles(tmp_path / "tiles", tiles=8, slides=3, size=16)
    assert not list(tmp_path.iterdir())


def test_an_occupied_folder_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(EosinError, match="exists already"):
        write_tiles(tmp_path, tiles=8, slides=3, size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
