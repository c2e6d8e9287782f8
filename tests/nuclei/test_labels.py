"""What is taken for a label map, what is refused and in which words; ids made contiguous; types of nuclei."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from eosin.core.errors import EosinError
from eosin.nuclei.labels import check_labels, instance_types, refuse_mask, relabel, relabel_with_ids, split_parts

IDS = st.sampled_from([0, 1, 2, 9, 300, 65_536, 2**24, 2**24 + 7, 2**31 - 1])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((4, 4, 3), np.uint8), "an RGB picture"),
        (np.zeros((4, 4, 4), np.uint8), "an RGBA picture"),
        (np.zeros((2, 4, 5), np.int32), r"shape \(2, 4, 5\)"),
        (np.zeros((4, 4), np.float32), "type float32"),
        (np.zeros((4, 4), bool), "a mask"),
        (np.full((4, 4), -2, np.int32), "the id -2"),
        (np.array([[0, 255, 0, 255]], np.uint8), "a mask of 0 and 255"),
        (np.full((4, 4), "a"), "of type <U1"),
        (np.zeros((0, 4), np.int32), "no pixels"),
    ],
)
def test_what_is_no_label_map_is_refused_by_name(labels, words):
    with pytest.raises(EosinError, match=f"^images/a.png: .*{words}"):
        check_labels(labels, "images/a.png")


def squares(count, side=40):
    """`count` nuclei of 2x2 px, apart from each other."""
    labels = np.zeros((side, side), np.int64)
    for number in range(count):
        y, x = divmod(number, side // 2)
        labels[2 * y : 2 * y + 1, 2 * x : 2 * x + 1] = number + 1
    return labels


def test_ids_that_did_not_fit_into_8_bits():
    with pytest.raises(EosinError, match="id 1 names 2 separate nuclei"):
        check_labels(squares(300).astype(np.uint8), "a")  # wrapped
    with pytest.raises(EosinError, match="id 255 names 46 separate nuclei"):
        check_labels(np.minimum(squares(300), 255).astype(np.uint8), "a")  # cut
    for count in (254, 255):
        assert check_labels(squares(count).astype(np.uint8), "a").max() == count
    assert check_labels(squares(300).astype(np.uint16), "a").max() == 300


def test_a_mask_of_one_id():
    parts = np.zeros((40, 40), np.uint16)
    parts[2:8, 2:8] = parts[2:8, 20:26] = 7
    parts[30, 30] = parts[34, 30] = 7  # specks
    refuse_mask(parts, "a")  # a nucleus that a fold cuts in two
    refuse_mask(np.zeros((4, 4), np.uint8), "a")
    parts[20:26, 2:8] = 7
    with pytest.raises(EosinError, match=r"^a: a mask of 0 and 7 \(3 separate parts\), not ids of nuclei; number its"):
        refuse_mask(parts, "a")
    parts[20:26, 2:8] = 8
    refuse_mask(parts, "a")


def test_what_is_a_label_map_is_returned_as_it_is():
    labels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert check_labels(labels, "a", (3, 4)) is labels
    assert check_labels(labels[:, :, None], "a").shape == (3, 4)
    with pytest.raises(EosinError, match="is 4x3 px and its image 3x4 px"):
        check_labels(labels, "a", (4, 3))
    whole = check_labels(labels.astype(float), "a", whole_floats=True)
    assert whole.dtype == np.int64
    assert (whole == labels).all()
    for wrong in (0.5, np.nan, np.inf, -1.0):
        with pytest.raises(EosinError, match=r"no whole numbers|id -1"):
            check_labels(np.full((2, 2), wrong), "a", whole_floats=True)


@given(st.data())
def test_relabeling(data):
    labels = data.draw(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=IDS))
    found = relabel_with_ids(labels)
    ids = sorted(set(labels.ravel().tolist()) - {0})
    assert found.ids.tolist() == ids
    assert found.instances.dtype == np.int32
    assert (np.array([0, *ids])[found.instances] == labels).all()
    assert (relabel(found.instances) == found.instances).all()


@given(arrays(np.int32, (7, 8), elements=st.integers(0, 3)))
def test_parts(labels):
    parts = split_parts(labels)
    assert ((parts > 0) == (labels > 0)).all()
    count = sum(ndimage.label(labels == value)[1] for value in (1, 2, 3))
    assert sorted(set(parts.ravel().tolist()) | {0}) == list(range(count + 1))
    for number in range(1, count + 1):
        own = parts == number
        assert len(np.unique(labels[own])) == 1
        assert ndimage.label(own)[1] == 1


def test_types():
    labels = np.array([[7, 7, 0], [0, 2, 2]])
    assert instance_types(labels, np.array([[3, 3, 0], [0, 1, 1]]), "t").tolist() == [1, 3]  # in the order of the ids
    for types, words in (
        ([[3, 3, 0], [0, 1, 2]], "nucleus 2 has pixels of the types 1, 2"),
        ([[3, 0, 0], [0, 1, 1]], "nucleus 7 has pixels of the types 0, 3"),
        ([[3, 3, 0], [0, 0, 0]], "nucleus 2 has no type"),
        ([[3, 3, 4], [0, 1, 1]], "1 px have a type but belong to no nucleus"),
        ([[3, 3], [0, 1]], "2x2 px"),
        ([[3, 3, 0], [0, 1, 10**8]], "the type 100000000"),
    ):
        with pytest.raises(EosinError, match=f"^t: .*{words}"):
            instance_types(labels, np.array(types), "t")
    assert instance_types(labels, np.array([[3, 0, 5], [0, 2, 1]]), "t", majority=True).tolist() == [1, 3]
    assert instance_types(labels, np.zeros((2, 3), int), "t", majority=True).tolist() == [0, 0]
    assert instance_types(np.zeros((2, 3), int), np.zeros((2, 3), int), "t").tolist() == []


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.measure", None)
    with pytest.raises(EosinError, match=r"pip install 'eosin\[nuclei\]'"):
        split_parts(np.ones((2, 2), int))
