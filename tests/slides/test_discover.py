"""Which files of a messy folder are slides, and what they are called."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from eosin.core.errors import EosinError
from eosin.slides.discover import find_slides


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"slide")
    return root


def named(*sources: Path, **options: object) -> dict[str, str]:
    found = find_slides(sources, **options)
    assert [slide.name for slide in found] == sorted(slide.name for slide in found)
    return {slide.name: slide.path.name for slide in found}


def dicom(series: str, *, implicit: bool = False, refers_to: str = "") -> bytes:
    """The head of a DICOM file: preamble, then, among others, a reference, the study's and the series' identity."""

    def element(group: int, number: int, value: str) -> bytes:
        data = value.encode() + b"\0" * (len(value) % 2)
        head = struct.pack("<HH", group, number)
        return head + (struct.pack("<I", len(data)) if implicit else b"UI" + struct.pack("<H", len(data))) + data

    reference = element(0x20, 0x0E, refers_to) if refers_to else b""
    body = reference + element(0x08, 0x18, "1.2.840.1") + element(0x20, 0x0D, "1.2.3") + element(0x20, 0x0E, series)
    return bytes(128) + b"DICM" + body + bytes(100)


def test_at_any_depth_by_suffix_and_without_hidden_files(tmp_path):
    make(
        tmp_path, "b.SVS", "a/x.ome.tif", "a/y.ndpi", "._b.svs", ".hidden/z.svs", "__MACOSX/b.svs", "notes.txt", "p.png"
    )
    assert named(tmp_path) == {"a/x": "x.ome.tif", "a/y": "y.ndpi", "b": "b.SVS"}


def test_plain_images_only_when_asked_for_or_named(tmp_path):
    make(tmp_path, "a.svs", "b.png", "c.odd")
    assert named(tmp_path) == {"a": "a.svs"}
    assert named(tmp_path, plain=True) == {"a": "a.svs", "b": "b.png"}
    assert named(tmp_path / "b.png", tmp_path / "c.odd") == {"b": "b.png", "c": "c.odd"}


def test_links_are_followed_and_loops_end(tmp_path):
    make(tmp_path / "slides", "deep/a.svs")
    make(tmp_path / "elsewhere", "b.svs")
    (tmp_path / "slides" / "deep" / "loop").symlink_to(tmp_path / "slides")
    (tmp_path / "slides" / "again").symlink_to(tmp_path / "slides" / "deep")
    (tmp_path / "slides" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "slides" / "itself").symlink_to("itself")
    (tmp_path / "slides" / "A-link.svs").symlink_to("deep/a.svs")
    assert named(tmp_path / "slides") == {"deep/a": "a.svs", "out/b": "b.svs"}


def test_a_link_to_nothing_and_a_closed_folder_are_told(tmp_path, monkeypatch):
    make(tmp_path, "a.svs", "closed/b.svs")
    (tmp_path / "c.svs").symlink_to("nowhere.svs")
    scan = os.scandir

    def refuse(path: Path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    remarks: list[str] = []
    assert named(tmp_path, remark=remarks.append) == {"a": "a.svs"}
    assert [str(tmp_path / "c.svs") in remarks[0], str(tmp_path / "closed") in remarks[1]] == [True, True]
    assert "permissions" in remarks[1]


def test_a_name_that_is_no_text_is_told(tmp_path):
    make(tmp_path, "a.svs")
    try:
        (tmp_path / os.fsdecode(b"b\xff.svs")).write_bytes(b"slide")
    except OSError:
        pytest.skip("this disk takes UTF-8 names only")
    remarks: list[str] = []
    assert named(tmp_path, remark=remarks.append) == {"a": "a.svs"}
    assert "rename" in remarks[0]
    remarks[0].encode()


def test_the_data_of_mrxs_and_vms_slides_are_no_slides(tmp_path):
    make(
        tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "m/thumbnail.tif", "v/1.vms", "v/1.jpg", "v/1_macro.jpg"
    )
    make(tmp_path, "v/other.jpg")
    (tmp_path / "v" / "1.vms").write_text("[Virtual Microscope Specimen]\nImageFile=1.jpg\nMacroImage=1_macro.jpg\n")
    assert named(tmp_path, plain=True) == {"m": "m.mrxs", "v/1": "1.vms", "v/other": "other.jpg"}


@pytest.mark.parametrize("implicit", [False, True])
def test_a_dicom_series_is_one_slide(tmp_path, implicit):
    for name, series in (("1", "1.2.10"), ("2", "1.2.10"), ("3", "1.2.11"), ("other/1", "1.2.10")):
        make(tmp_path, f"{name}.dcm")
        (tmp_path / f"{name}.dcm").write_bytes(dicom(series, implicit=implicit, refers_to="1.2.99"))
    make(tmp_path, "broken.dcm", "empty.dcm")
    assert list(named(tmp_path)) == ["1", "3", "broken", "empty", "other/1"]


def test_names_clash_within_a_folder(tmp_path):
    make(tmp_path, "a.svs", "a.tiff", "a.svs.tiff", "b.svs", "d/a.svs")
    assert named(tmp_path) == {
        "a.svs": "a.svs",
        "a.tiff": "a.tiff",
        "a.svs.tiff": "a.svs.tiff",
        "b": "b.svs",
        "d/a": "a.svs",
    }


def test_names_clash_between_sources(tmp_path):
    make(tmp_path, "one/slides/a.svs", "two/slides/a.svs", "three/a.svs", "three/b.svs")
    found = named(tmp_path / "one/slides", tmp_path / "two/slides", tmp_path / "three")
    assert list(found) == ["b", "one/slides/a", "three/a", "two/slides/a"]


def test_no_clash_is_without_end(tmp_path):
    make(tmp_path, "A/sub/x.svs", "A/sub/x.png", "C/x.svs")
    found = find_slides([tmp_path / "A", tmp_path / "A/sub/x.png", tmp_path / "C"])
    assert len({slide.name for slide in found}) == len(found) == 3
    assert not any(".." in slide.name or slide.name.startswith("/") for slide in found)


def test_overlapping_sources_give_a_slide_once(tmp_path):
    make(tmp_path, "a/x.svs", "y.svs")
    assert named(tmp_path, tmp_path / "a", tmp_path / "a/x.svs") == {"a/x": "x.svs", "y": "y.svs"}


def test_what_is_no_slide_is_refused(tmp_path):
    make(tmp_path, "empty/.keep", "texts/a.txt")
    for source, part in (
        (tmp_path / "none", "no such"),
        (tmp_path / "empty", "empty"),
        (tmp_path / "texts", "1 files"),
    ):
        with pytest.raises(EosinError, match=part) as error:
            find_slides([source])
        assert str(source) in str(error.value)
    with pytest.raises(EosinError, match="no slides given"):
        find_slides([])
    os.mkfifo(tmp_path / "pipe.svs")
    with pytest.raises(EosinError, match="neither"):
        find_slides([tmp_path / "pipe.svs"])


@pytest.mark.parametrize("name", ["new\nline.svs", "a\tb.svs", "\x1b[31mred.svs", "line\u2028separator.svs"])
def test_names_that_break_lines_or_command_terminals_are_told(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "no-break\u00a0space \u3000.svs").write_bytes(b"x")
    remarks = []
    assert [slide.name for slide in find_slides([tmp_path], remark=remarks.append)] == ["no-break\u00a0space \u3000"]
    assert len(remarks) == 1
    assert remarks[0].isprintable()
    assert remarks[0].endswith("is in the name; left out; rename it")


def test_a_pipe_is_told(tmp_path):
    (tmp_path / "a.svs").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe.svs")
    remarks = []
    assert len(find_slides([tmp_path], remark=remarks.append)) == 1
    assert remarks == [f"{tmp_path / 'pipe.svs'}: a pipe, socket or device; left out"]
