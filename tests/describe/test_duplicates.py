from __future__ import annotations

import re

import numpy as np
import pytest

from eosin.data import open_tiles, pack
from eosin.describe import describe
from eosin.describe.duplicates import file_sizes, find_copies, group_digests

WHITE = np.full((96, 96, 3), 255, dtype=np.uint8)


def test_copies_are_the_files_of_the_same_bytes(write, tissue):
    tiles = open_tiles(write([tissue[0], tissue[1], tissue[0], tissue[2], tissue[0], tissue[1]]))
    found = find_copies(tiles, file_sizes(tiles))
    groups = {}
    for row, group in zip(found.rows.tolist(), found.group.tolist(), strict=True):
        groups.setdefault(group, []).append(row)
    assert groups == {0: [0, 2, 4], 1: [1, 5]}
    assert found.first.tolist() == [0, 1]


def test_files_of_one_size_are_no_copies_and_empty_files_neither(tmp_path):
    for name, data in (("a.png", b"1234"), ("b.png", b"1235"), ("c.png", b""), ("d.png", b"")):
        (tmp_path / name).write_bytes(data)
    tiles = open_tiles(tmp_path)
    assert find_copies(tiles, file_sizes(tiles)).count == 0


def test_only_files_of_equal_size_are_read(write, tissue, monkeypatch):
    tiles = open_tiles(write([*tissue, tissue[3]]))
    read = []
    take = type(tiles.source).take
    monkeypatch.setattr(
        type(tiles.source), "take", lambda self, rows: (read.extend(rows.tolist()), take(self, rows))[1]
    )
    assert find_copies(tiles, file_sizes(tiles)).rows.tolist() == [3, 12]
    assert {3, 12} <= set(read)
    assert len(read) < 6


def test_a_store_and_its_folder_have_the_same_copies(write, tissue, tmp_path):
    index = write([tissue[0], tissue[1], tissue[0]], label=["a", "b", "b"])
    pack([str(index)], tmp_path / "store")
    found = [describe(str(source), workers=0).copies for source in (index, tmp_path / "store")]
    assert found[0] == found[1]
    assert (found[0].groups, found[0].surplus, found[0].across, found[0].examples) == (1, 1, {"label": 1}, ((0, 2),))


def test_contradictions_come_first_and_are_counted_by_column(write, tissue):
    index = write(
        [tissue[0], tissue[0], tissue[1], tissue[1], tissue[2], tissue[2]],
        label=["a", "a", "a", "b", "a", ""],
        split=["train", "train", "train", "train", "train", "test"],
        patient=["p", "p", "p", "p", "p", "q"],
    )
    found = describe(str(index), workers=0).copies
    assert found.across == {"split": 1, "label": 1, "patient": 1}
    assert found.examples == ((2, 3), (4, 5), (0, 1))


@pytest.mark.parametrize("sample", [0, 1])
def test_copies_of_glass_are_counted_apart(write, tissue, sample):
    index = write([WHITE, WHITE, tissue[0], tissue[0]], label=["a", "b", "a", "a"])
    found = describe(str(index), sample=sample, workers=0).copies
    assert (found.groups, found.blank, found.across) == (1, 1, {"label": 0})
    assert found.examples == ((2, 3),)


def test_lookalikes_are_neither_copies_nor_blank(write, tissue):
    nearly = (tissue[0] * 0.96).astype(np.uint8)
    index = write([tissue[0], nearly, tissue[0], tissue[1], WHITE, WHITE - 1], split=["train", "test", *["train"] * 4])
    found = describe(str(index), workers=0).lookalikes
    assert (found.looked_at, found.groups, found.surplus) == (3, 1, 1)
    assert found.examples == ((0, 1),)
    assert found.across == {"split": 1}


def test_digests_are_numbered_by_what_they_are():
    values = np.array([[1, 2], [2, 1], [1, 2], [1, 3]], dtype=np.uint64)
    numbers = group_digests(values)
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 3
    assert group_digests(values[:0]).shape == (0,)


def test_real_copies_with_contradicting_labels_are_found(real_data, tmp_path):
    lines = (real_data / "oral" / "index.csv").read_text(encoding="utf-8").splitlines()
    chosen = [line for line in lines[1:] if re.search(r"Normal_100x_|OSCC_100x_(34|35)\d\.", line)]
    index = tmp_path / "index.csv"
    index.write_text("\n".join([lines[0], *(f"{real_data}/oral/{line}" for line in chosen)]), encoding="utf-8")
    found = describe(str(index), workers=0)
    names = open_tiles(index).names
    pairs = {tuple(names[row].rpartition("/")[2] for row in group) for group in found.lookalikes.examples}
    # Seen by eye: the same fields, filed as normal and as carcinoma.
    assert {("Normal_100x_69.jpg", "OSCC_100x_350.jpg"), ("Normal_100x_71.jpg", "OSCC_100x_348.jpg")} <= pairs
    assert found.lookalikes.across["label"] == 2
    assert found.lookalikes.groups < 5
