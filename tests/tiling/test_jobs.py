from __future__ import annotations

from pathlib import Path

import pytest

from eosin.core.errors import EosinError
from eosin.slides import FoundSlide
from eosin.tiling.config import TilingConfig
from eosin.tiling.jobs import Extras, make_jobs, slide_key

FOUND = [
    FoundSlide(Path("/s/a/one.svs"), "a/one"),
    FoundSlide(Path("/s/b/one.svs"), "b/one"),
    FoundSlide(Path("/s/TCGA-AA-1234-x.tif"), "TCGA-AA-1234-x"),
]


def jobs(found: list[FoundSlide] = FOUND, **extras: object) -> tuple[dict[str, object], list[str]]:
    made, remarks = make_jobs(found, TilingConfig(), Extras(**extras))
    return {job.name: job for job in made}, remarks


def test_one_mpp_for_all_or_a_table(tmp_path: Path) -> None:
    made, remarks = jobs(source_mpp="0.25")
    assert {(job.source_mpp, job.fallback_mpp) for job in made.values()} == {(None, 0.25)}
    assert not remarks
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\na/one,0.5\nb/one.svs,0.25\nTCGA-AA-1234-x.tif,\nnobody,0.5\n")
    made, remarks = jobs(source_mpp=str(table))
    assert [job.source_mpp for job in made.values()] == [0.5, 0.25, None]
    assert remarks == [f"{table}: 1 rows name no slide given (first 'nobody'; write 'a/one')"]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffslide,mpp\na/one,0.5\n",
        " Slide , MPP \n a/one , 0.5 \n",
        "mpp,comment,slide\n0.5,,a/one,more,cells\n\n",
        "slide,mpp\n/s/a/one.svs,0.5\nb/one\n",
        '"slide","mpp"\r\n"a/one","0.5"\r\n',
    ],
)
def test_tables_as_people_and_programs_write_them(tmp_path: Path, text: str) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text(text, encoding="utf-8", newline="")
    made, remarks = jobs(source_mpp=str(table))
    assert [job.source_mpp for job in made.values()] == [0.5, None, None]
    assert not remarks


def test_a_table_may_name_a_slide_by_the_path_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "patients.csv"
    table.write_text(f"slide,patient\nslides/one.svs,p1\n{tmp_path}/slides/two.svs,p2\n")
    found = [FoundSlide(Path("slides/one.svs"), "one"), FoundSlide(Path("slides/two.svs"), "two")]
    made, remarks = jobs(found, patient=str(table))
    assert [job.patient for job in made.values()] == ["p1", "p2"]
    assert not remarks


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("slide,mpp\none,0.5\n", r"row 1: 'one' is the name of 2 slides; write a/one or b/one"),
        ("slide,mpp\na/one,fine\n", r"mpp of 'a/one': 'fine' is not a number$"),
        ("slide,mpp\na/one,500\n", r"500 µm/px is not between 0.05 and 20"),
        ("slide,mpp\na/one,0.5\na/one.svs,0.25\n", r"row 2 gives 'a/one.svs' a second mpp"),
        ("name,mpp\na/one,0.5\n", r"no column 'slide'; its columns: 'name', 'mpp'$"),
        ("slide;mpp\na/one;0,5\n", r"columns: 'slide;mpp'; part them by commas, and write numbers with a point"),
        ("slide\tmpp\na/one\t0.5\n", r"part them by commas"),
        ("slide,mpp\n", r"mpp.csv: no row has both a slide and its mpp"),
        ("slide,mpp\na/one\n", r"mpp.csv: no row has both a slide and its mpp"),
        ('slide,mpp\n"a/one,0.5\n', r"mpp.csv: not a readable CSV \(unexpected end of data\)"),
        ("", r"no column 'slide'; its columns: none"),
    ],
)
def test_faulty_tables_are_refused(tmp_path: Path, text: str, told: str) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text(text)
    with pytest.raises(EosinError, match=told):
        jobs(source_mpp=str(table))


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_table_of_another_encoding_is_refused_with_the_fix(tmp_path: Path, encoding: str) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\né,0.5\n", encoding=encoding)
    with pytest.raises(EosinError, match=r"its text is not UTF-8\); save it as CSV UTF-8$"):
        jobs(source_mpp=str(table))


@pytest.mark.parametrize("value", ["nan", "0", "-1", "20.1", "half", "inf"])
def test_absurd_mpp_is_refused(value: str) -> None:
    with pytest.raises(EosinError, match="--source-mpp"):
        jobs(source_mpp=value)


def test_patients(tmp_path: Path) -> None:
    made, remarks = jobs(patient=r"^(TCGA-\w\w-\w{4})")
    assert [job.patient for job in made.values()] == [None, None, "TCGA-AA-1234"]
    assert "2 slides do not match" in remarks[0]
    table = tmp_path / "patients.csv"
    table.write_text("\ufeffslide,patient\na/one,P1\nb/one,P1\n", encoding="utf-8")
    made, _ = jobs(patient=str(table))
    assert [job.patient for job in made.values()] == ["P1", "P1", None]
    with pytest.raises(EosinError, match="no regular expression"):
        jobs(patient="(")
    with pytest.raises(EosinError, match="has no group"):
        jobs(patient="TCGA")
    with pytest.raises(EosinError, match="not a readable CSV"):
        jobs(patient=str(tmp_path / "absent.csv"))


def test_files_beside_slides(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a/one.png", "TCGA-AA-1234-x.png", "stray.png", ".hidden.png", "note.txt"):
        (tmp_path / name).write_bytes(b"x")
    made, remarks = jobs(masks=tmp_path)
    assert [job.mask for job in made.values()] == [tmp_path / "a/one.png", None, tmp_path / "TCGA-AA-1234-x.png"]
    assert remarks == [
        f"{tmp_path}: 1 files fit no slide given (first 'stray.png'; call it 'a/one.png')",
        f"{tmp_path}: no masks for 1 slides, whose tissue is sought as without --masks (first 'b/one')",
    ]
    assert made["a/one"].given()["mask"] != made["b/one"].given()["mask"]
    (tmp_path / "one.png").write_bytes(b"x")
    with pytest.raises(EosinError, match="'one' is the name of 2 slides"):
        jobs(masks=tmp_path)
    with pytest.raises(EosinError, match="no folder of regions"):
        jobs(regions=tmp_path / "absent")


def test_suffixes_in_capitals_are_suffixes(tmp_path: Path) -> None:
    (tmp_path / "TCGA-AA-1234-x.PNG").write_bytes(b"x")
    made, _ = jobs(masks=tmp_path)
    assert made["TCGA-AA-1234-x"].mask == tmp_path / "TCGA-AA-1234-x.PNG"


def test_coordinates_leave_out_slides_without(tmp_path: Path) -> None:
    (tmp_path / "TCGA-AA-1234-x_patches.h5").write_bytes(b"x")
    made, remarks = jobs(coordinates=tmp_path)
    assert list(made) == ["TCGA-AA-1234-x"]
    assert "no coordinates for 2 slides" in remarks[0]


def test_a_file_for_the_only_slide(tmp_path: Path) -> None:
    path = tmp_path / "anything.geojson"
    path.write_text("{}")
    made, remarks = jobs(FOUND[:1], regions=path)
    assert made["a/one"].regions == path
    assert not remarks


def test_slides_without_regions_are_told_to_be_cut_whole(tmp_path: Path) -> None:
    (tmp_path / "TCGA-AA-1234-x.geojson").write_text("{}")
    made, remarks = jobs(regions=tmp_path)
    assert len(made) == 3
    assert remarks == [f"{tmp_path}: no regions for 2 slides, which are cut wherever they have tissue (first 'a/one')"]


def test_keys_are_file_names_of_their_own() -> None:
    names = ["a/one", "a_one", "a one", "ä/one", "x" * 300, "x" * 299 + "y", "..", "-", ".a"]
    keys = [slide_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(len(key) < 100 and "/" not in key and not key.startswith(".") for key in keys)
    assert slide_key("a/one").startswith("a_one-")
