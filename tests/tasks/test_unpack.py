"""Archives: what is whole is unpacked whole; what is hostile or damaged leaves nothing behind."""

from __future__ import annotations

import gzip
import hashlib
import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from eosin.core.errors import EosinError
from eosin.tasks import unpack
from eosin.tasks.unpack import unpack_archive, unpack_gzip

GOOD = {"set/a/1.png": b"one", "set/a/2.png": b"two", "set/b/1.png": b"three" * 1000}


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            file.writestr(info, data, compress_type=zipfile.ZIP_DEFLATED)
    return path


def tarred(path, members):
    with tarfile.open(path, "w:gz") as file:
        for name, data in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data) if info.isreg() else 0
            file.addfile(info, io.BytesIO(data))
    return path


MAKE = {"zip": (zipped, "set.zip"), "tar": (tarred, "set.tar.gz")}


def made(kind, folder, members):
    make, name = MAKE[kind]
    return make(folder / name, members)


def contents(folder):
    return {
        path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("kind", MAKE)
def test_a_good_archive(tmp_path, kind):
    told = []
    archive = made(kind, tmp_path, {**GOOD, "__MACOSX/set/a/._1.png": b"mac"})
    count = unpack_archive(archive, tmp_path / "set", size=6000, progress=lambda done, total: told.append(done))
    assert (count, contents(tmp_path / "set")) == (3, GOOD)
    assert told[-1] == 5006
    with pytest.raises(EosinError, match="exists already"):
        unpack_archive(archive, tmp_path / "set")


@pytest.mark.parametrize("kind", MAKE)
def test_only_the_members_that_are_wanted(tmp_path, kind):
    archive = made(kind, tmp_path, GOOD)
    assert unpack_archive(archive, tmp_path / "set", members="set/a/") == 2
    assert set(contents(tmp_path / "set")) == {"set/a/1.png", "set/a/2.png"}


def link_in_zip(target):
    info = zipfile.ZipInfo("set/link")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return {info: target}


def special_in_tar(kind, target="/etc"):
    info = tarfile.TarInfo("set/link")
    info.type, info.linkname = kind, target
    return {info: b""}


HOSTILE = {
    "parent zip": ("zip", {"set/../../evil": b"x"}, "leads out of the folder"),
    "parent tar": ("tar", {"set/../../evil": b"x"}, "leads out of the folder"),
    "absolute zip": ("zip", {"/set/evil": b"x"}, "leads out of the folder"),
    "absolute tar": ("tar", {"/set/evil": b"x"}, "leads out of the folder"),
    "backslash": ("zip", {"set\\..\\..\\evil": b"x"}, "leads out of the folder"),
    "drive": ("zip", {"c:/evil": b"x"}, "leads out of the folder"),
    "elsewhere zip": ("zip", {"other/evil": b"x"}, "is not below set/"),
    "elsewhere tar": ("tar", {"evil": b"x"}, "is not below set/"),
    "link in zip": ("zip", link_in_zip(b"/etc"), "is a link or device"),
    "symbolic link": ("tar", special_in_tar(tarfile.SYMTYPE), "is a link or device"),
    "hard link": ("tar", special_in_tar(tarfile.LNKTYPE, "set/a/1.png"), "is a link or device"),
    "device": ("tar", special_in_tar(tarfile.CHRTYPE), "is a link or device"),
    "pipe": ("tar", special_in_tar(tarfile.FIFOTYPE), "is a link or device"),
    "bomb zip": ("zip", {"set/zeros": bytes(4_000_000)}, "unpacks to more than 0.00 GB"),
    "bomb tar": ("tar", {"set/zeros": bytes(4_000_000)}, "unpacks to more than 0.00 GB"),
    "file for a folder": ("zip", {"set/a": b"x", "set/a/1.png": b"y"}, "two members|cannot be written"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_whole(tmp_path, case):
    kind, members, message = HOSTILE[case]
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    archive = made(kind, folder, {"set/good.png": b"good", **members})
    with pytest.raises(EosinError, match=message) as caught:
        unpack_archive(archive, folder / "set", size=1000)
    assert str(archive) in str(caught.value) or str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
    assert not (folder / "set").exists()


def test_a_bomb_of_headers_alone(tmp_path, monkeypatch):
    """Neither a long header nor a stream of empty members is read to its end."""
    long = tarfile.TarInfo("set/1.png")
    long.pax_headers = {"comment": "x" * 3_000_000}
    with pytest.raises(EosinError, match="damaged or cut short .a header of 3,000,0"):
        unpack_archive(tarred(tmp_path / "set.tar.gz", {long: b"x"}), tmp_path / "set", size=1000)
    monkeypatch.setattr(unpack, "_BLOCK", 2**12)
    folders = {}
    for number in range(1000):
        member = tarfile.TarInfo(f"set/{number}")
        member.type = tarfile.DIRTYPE
        folders[member] = b""
    with pytest.raises(EosinError, match="holds far more than announced"):
        unpack_archive(tarred(tmp_path / "set.tar.gz", folders), tmp_path / "set", size=1000)
    assert not (tmp_path / "set").exists()


def test_a_bomb_without_an_announced_size(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "_BLOCK", 2**14)
    archive = zipped(tmp_path / "set.zip", {"set/zeros": bytes(2_000_000)})
    with pytest.raises(EosinError, match="unpacks to more than"):
        unpack_archive(archive, tmp_path / "set")


def test_a_name_met_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        zipped(
            tmp_path / "set.zip",
            {zipfile.ZipInfo("set/a.png"): b"x", zipfile.ZipInfo("set/a.png", (1999, 1, 1, 0, 0, 0)): b"y"},
        )
    with pytest.raises(EosinError, match=r"two members are called 'a.png'"):
        unpack_archive(tmp_path / "set.zip", tmp_path / "set")


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("fault", ["cut", "bits", "text"])
def test_a_damaged_archive(tmp_path, kind, fault):
    import random

    archive = made(kind, tmp_path, {f"set/{n}.bin": random.Random(n).randbytes(20_000) for n in range(20)})
    data = bytearray(archive.read_bytes())
    if fault == "bits":
        data[len(data) // 2] ^= 0xFF
    archive.write_bytes({"cut": bytes(data[: len(data) // 2]), "bits": bytes(data), "text": b"hello" * 50}[fault])
    with pytest.raises(EosinError, match=r"damaged or cut short \(.*\); remove it and get it again"):
        unpack_archive(archive, tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


@pytest.mark.parametrize("kind", MAKE)
def test_an_archive_of_nothing(tmp_path, kind):
    archive = made(kind, tmp_path, GOOD)
    with pytest.raises(EosinError, match="holds no files below set/c/"):
        unpack_archive(archive, tmp_path / "set", members="set/c/")


def test_a_killed_unpacking_is_cleared_away(tmp_path):
    # What a process that is no more left behind: its hold on it ended with it.
    left = tmp_path / ".set.abc.part"
    left.mkdir()
    (left / "half.png").write_bytes(b"half")
    unpack_archive(zipped(tmp_path / "set.zip", GOOD), tmp_path / "set")
    assert contents(tmp_path / "set") == GOOD
    assert not left.exists()


def test_gzip(tmp_path):
    data = b"label" * 10_000
    packed = tmp_path / "y.h5.gz"
    packed.write_bytes(gzip.compress(data))
    md5 = hashlib.md5(data).hexdigest()
    unpack_gzip(packed, tmp_path / "y.h5", size=len(data), md5=md5)
    assert (tmp_path / "y.h5").read_bytes() == data
    with pytest.raises(EosinError, match=f"what is in it has MD5 {md5}, not the published {'0' * 32}"):
        unpack_gzip(packed, tmp_path / "z.h5", md5="0" * 32)
    packed.write_bytes(gzip.compress(bytes(30_000_000)))
    with pytest.raises(EosinError, match="far more than announced"):
        unpack_gzip(packed, tmp_path / "z.h5", size=1000)
    packed.write_bytes(gzip.compress(data)[:-20])
    with pytest.raises(EosinError, match="damaged or cut short"):
        unpack_gzip(packed, tmp_path / "z.h5")
    assert {path.name for path in Path(tmp_path).iterdir()} == {"y.h5", "y.h5.gz"}
