from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from eosin.data.tiles import FileBytes, Names, Tiles
from eosin.describe.columns import read_columns
from eosin.describe.sample import choose_rows


def made(count, **columns):
    names = Names([f"{number}.png" for number in range(count)])
    arrays = {name: np.array([*values, None], dtype=object)[:-1] for name, values in columns.items()}
    return Tiles("folder:x", names, FileBytes(Path(), names), **arrays)


def random_column(generator, count, values):
    return [values[place] for place in generator.integers(0, len(values), count)]


def test_counts_are_those_of_a_plain_count():
    generator = np.random.default_rng(0)
    label = random_column(generator, 500, ["b", "a", None, "10"])
    found = read_columns(made(500, label=label)).label
    plain = Counter(label)
    assert dict(zip(found.names, found.counts.tolist(), strict=True)) == {key: plain[key] for key in ("10", "a", "b")}
    assert found.unknown == plain[None]
    assert [found.names[code] if code >= 0 else None for code in found.codes] == label


def test_what_is_unknown_for_all_tiles_is_no_column():
    assert read_columns(made(3, label=[None, None, None])).label is None


def test_leaks_are_the_patients_and_slides_with_several_splits():
    generator = np.random.default_rng(1)
    patient = random_column(generator, 60, [f"p{number}" for number in range(20)] + [None])
    split = random_column(generator, 60, ["train", "test", None])
    plain = defaultdict(set)
    for owner, part in zip(patient, split, strict=True):
        if owner and part:
            plain[owner].add(part)
    wrong = sorted(owner for owner, parts in plain.items() if len(parts) > 1)
    found = read_columns(made(60, patient=patient, split=split)).leaks["patient"]
    assert wrong
    assert found.count == len(wrong)
    assert found.examples == tuple((owner, ("test", "train")) for owner in wrong[:5])


def test_no_leak_where_splits_respect_patients():
    found = read_columns(made(4, patient=["a", "a", "b", "b"], split=["train", "train", "test", None]))
    assert found.leaks["patient"].count == 0


def test_a_slide_of_two_patients_is_mixed():
    found = read_columns(made(3, slide=["s", "s", "t"], patient=["a", "b", "a"]))
    assert found.mixed_slides.examples == (("s", ("a", "b")),)


def test_the_sample_has_of_each_slide_and_label_its_share():
    generator = np.random.default_rng(2)
    slide = [f"s{number}" for number, size in enumerate((400, 300, 200, 100)) for _ in range(size)]
    order = generator.permutation(1000)
    slide = [slide[place] for place in order]
    label = random_column(generator, 1000, ["a", "b"])
    columns = read_columns(made(1000, slide=slide, label=label))
    rows = choose_rows(columns, 100, 0)
    assert (np.diff(rows) > 0).all()
    chosen = Counter(slide[row] for row in rows)
    assert chosen == {"s0": 40, "s1": 30, "s2": 20, "s3": 10}
    for name, size in chosen.items():
        part = [row for row in rows if slide[row] == name and label[row] == "a"]
        share = sum(s == name and text == "a" for s, text in zip(slide, label, strict=True)) / Counter(slide)[name]
        assert abs(len(part) - share * size) <= 1


def test_the_sample_is_the_same_again_another_with_another_seed_and_all_where_asked():
    columns = read_columns(made(300))
    rows = choose_rows(columns, 50, 0)
    assert len(rows) == len(set(rows.tolist())) == 50
    assert (rows == choose_rows(columns, 50, 0)).all()
    assert (rows != choose_rows(columns, 50, 1)).any()
    for sample in (0, 300, 301):
        assert (choose_rows(columns, sample, 0) == np.arange(300)).all()


@pytest.mark.parametrize("sample", [2, 3, 40, 99, 298, 299])
def test_of_many_slides_tiles_come_in_pairs(sample):
    slide = [f"s{number // 3:03d}" for number in range(300)]
    rows = choose_rows(read_columns(made(300, slide=slide, label=["a", "b", "c"] * 100)), sample, 0)
    assert len(set(rows.tolist())) == sample
    if 40 <= sample < 100:
        several = Counter(Counter(slide[row] for row in rows).values())
        assert several[2] >= sample // 4
