"""What files say of their scale, and what is made of it."""

from __future__ import annotations

import math

import pytest

from eosin.core.errors import EosinError
from eosin.slides import mpp
from eosin.slides.mpp import Reading, Scale

APERIO = "Aperio Image Library v11\r\n100x80 (240x240) JPEG/RGB Q=30|AppMag = 20|MPP = {}|Left = 25.69"


@pytest.mark.parametrize(("text", "value"), [("0.4990", 0.499), ("0,2527", 0.2527), (" 0.25 ", 0.25)])
def test_aperio(text, value):
    scale = mpp.aperio_scale(APERIO.format(text), None)
    assert scale == Scale((value, value), "aperio.MPP", 20.0, "", ())


def test_aperio_fields_of_a_saved_region_come_first():
    fields = mpp.aperio_fields("Aperio x|MPP = 0.5;Aperio y|MPP = 0.25|Left = 1")
    assert fields == {"MPP": "0.5;Aperio y", "Left": "1"} or fields["MPP"].startswith("0.5")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "0.01", "252.7"])
def test_absurd_values_are_missing_and_named(text):
    scale = mpp.aperio_scale(APERIO.format(text), None)
    assert scale.mpp is None
    message = mpp.missing_scale(scale)
    assert "aperio.MPP says" in message
    assert f"{float(text):.4g}" in message
    assert "--source-mpp 0.5" in message


def test_the_fix_is_worded_by_the_objective_and_never_made_of_it():
    assert "recorded at 40x: usually about 0.25); give --source-mpp 0.25" in mpp.missing_scale(Scale(objective=40.0))
    plain = mpp.missing_scale(Scale())
    assert "does not say" in plain
    assert "--source-mpp" in plain
    assert "x:" not in plain
    assert mpp.choose_scale([], 20.0).mpp is None


def test_statements_that_disagree_are_noted_and_the_formats_own_is_used():
    own, other = Reading("aperio.MPP", 0.5, 0.5), Reading("TIFF resolution", 0.25, 0.25)
    scale = mpp.choose_scale([own, other])
    assert scale.mpp == (0.5, 0.5)
    assert scale.notes == ("aperio.MPP says 0.5 µm/px, which is used; TIFF resolution says 0.25 µm/px",)
    assert mpp.choose_scale([own, Reading("TIFF resolution", 0.51, 0.51)]).notes == ()
    assert mpp.choose_scale([own, Reading("TIFF resolution", 352.8, 352.8)]).notes == ()


@pytest.mark.parametrize(
    ("x", "unit", "expected"),
    [(20_000, 3, 0.5), (50_800, 2, 0.5), (72, 2, None), (96, 2, None), (300, 2, None), (1, 3, None), (1, 2, None)],
)
def test_tiff_resolution_is_believed_where_a_microscope_could_have_it(x, unit, expected):
    scale = mpp.choose_scale([mpp.resolution_reading(x, x, unit)])
    assert scale.mpp == (None if expected is None else (pytest.approx(expected), pytest.approx(expected)))
    assert scale.source == ("" if expected is None else "TIFF resolution")


def test_tiff_resolution_without_a_unit_or_value_says_nothing():
    assert mpp.resolution_reading(20_000, 20_000, 1) is None
    assert mpp.resolution_reading(None, 20_000, 3) is None
    assert mpp.resolution_reading(0, 0, 3) is None


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("0.25", "µm", 0.25),
        ("0.25", "\u03bcm", 0.25),
        ("250", "nm", 0.25),
        ("0.00025", "mm", 0.25),
        ("0.25", None, 0.25),
        ("1", "pixel", None),
        (None, "µm", None),
        ("wide", "µm", None),
        ("1", "reference frame", None),
    ],
)
def test_ome_lengths(value, unit, expected):
    assert mpp.ome_length(value, unit) == (None if expected is None else pytest.approx(expected))


def test_openslide_properties():
    scale = mpp.openslide_scale(
        {"openslide.mpp-x": "0.2325", "openslide.mpp-y": "0.2324", "openslide.objective-power": "40"}
    )
    assert scale == Scale((0.2325, 0.2324), "openslide.mpp-x", 40.0)
    one_axis = mpp.openslide_scale({"openslide.mpp-y": "0.5"})
    assert one_axis.mpp == (0.5, 0.5)
    assert mpp.openslide_scale({"openslide.mpp-x": "0"}).mpp is None
    assert mpp.openslide_scale({}).mpp is None
    noted = mpp.openslide_scale(
        {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.5", "tiff.ResolutionUnit": "centimeter"}
        | {"tiff.XResolution": "40000", "tiff.YResolution": "40000"}
    )
    assert noted.mpp == (0.5, 0.5)
    assert "TIFF resolution says 0.25" in noted.notes[0]


def test_a_given_scale_replaces_the_files_and_says_so():
    scale = mpp.given_scale(Scale((0.25, 0.25), "aperio.MPP", 40.0), 0.5)
    assert (scale.mpp, scale.source) == ((0.5, 0.5), "given")
    assert scale.notes == ("aperio.MPP says 0.25 µm/px; the given 0.5 is used",)
    assert mpp.given_scale(Scale((0.25, 0.25), "aperio.MPP"), 0.2527).notes == ()
    assert mpp.given_scale(Scale(), 0.5).notes == ()
    assert mpp.given_scale(Scale(), None) == Scale()


@pytest.mark.parametrize("value", [0, -0.5, math.nan, math.inf, 0.01, 100])
def test_a_given_scale_that_no_slide_has_is_refused(value):
    with pytest.raises(EosinError, match="source mpp"):
        mpp.given_scale(Scale(), value)
