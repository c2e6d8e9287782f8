"""Archives from the web, unpacked so that nothing in them can do harm.

Only plain files and folders below one named folder are taken. A member whose path leads out of it, a link, a device or
a name met twice refuses the whole archive; so does more than was announced, as of an archive bomb. The folder appears
whole or not at all.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from eosin.core.errors import EosinError
from eosin.core.files import atomic_directory, atomic_file, storage_errors
from eosin.tasks.download import Progress

__all__ = ["unpack_archive", "unpack_gzip"]

_BLOCK = 2**20
_SLACK = 1.5  # how much more than announced may come
_UNKNOWN = 20  # how many times the archive's size may come, where nothing is announced
_MEMBERS = 2_000_000

_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)


def unpack_archive(
    archive: Path, folder: Path, *, size: int | None = None, members: str = "", progress: Progress | None = None
) -> int:
    """Unpack a ``.zip`` or ``.tar.gz`` whose members lie in one folder.

    Args:
        archive: The file.
        folder: Where its top folder, of the same name, goes; must not exist.
        size: Bytes that are announced.
        members: Take only members whose path begins so.
        progress: Told of the bytes that were written.

    Returns:
        Number of files.

    Raises:
        EosinError: If the archive is damaged, holds anything else, or too much; nothing is left of it then.
    """
    limit = int(_SLACK * size) + _BLOCK if size is not None else _UNKNOWN * archive.stat().st_size + 64 * _BLOCK
    written = count = 0
    try:
        with atomic_directory(folder) as part:
            for name, source in _members(archive, limit):
                if "__MACOSX" in name.split("/"):
                    continue
                relative = _below(archive, name, folder.name)
                if source is None or not name.startswith(members):
                    continue
                count += 1
                if count > _MEMBERS:
                    raise EosinError(f"{archive}: more than {_MEMBERS:,} files; this is not the published archive")
                target = part / relative
                with storage_errors(target):
                    written = _copy(archive, source, target, written, limit)
                if progress is not None:
                    progress(written, size)
            if not count:
                raise EosinError(f"{archive}: holds no files below {members or folder.name}; get it again")
    except _DAMAGED as error:
        raise EosinError(f"{archive}: damaged or cut short ({error}); remove it and get it again") from None
    return count


def _copy(archive: Path, source: IO[bytes], target: Path, written: int, limit: int) -> int:
    """Write one member and return the bytes written so far."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = open(target, "xb")  # noqa: SIM115 (closed below; only the opening is guarded)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise EosinError(f"{archive}: two members are called '{target.name}'; this is not the published file") from None
    with file:
        while block := source.read(_BLOCK):
            written += len(block)
            if written > limit:
                raise EosinError(
                    f"{archive}: unpacks to more than {limit / 1e9:,.2f} GB, far more than announced; this is not the "
                    "published archive"
                )
            file.write(block)
    return written


def _below(archive: Path, name: str, top: str) -> PurePosixPath:
    """Return a member's path below the top folder.

    Raises:
        EosinError: If it lies elsewhere.
    """
    path = PurePosixPath(name)
    if (
        not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in name
        or "\0" in name
        or ":" in path.parts[0]
    ):
        raise EosinError(f"{archive}: member {name!r} leads out of the folder; the archive is not to be trusted")
    if path.parts[0] != top:
        raise EosinError(f"{archive}: member {name!r} is not below {top}/; this is not the published archive")
    return PurePosixPath(*path.parts[1:])


def _members(archive: Path, limit: int) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield each member's path and, of a file, its bytes.

    Args:
        archive: The file.
        limit: Bytes that the members may have; a stream of headers is held to it too.

    Raises:
        EosinError: If a member is a link or device, or there are far more bytes than announced.
    """
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise EosinError(_special(archive, info.filename))
                if info.flag_bits & 1:
                    raise EosinError(f"{archive}: member {info.filename!r} is encrypted; get the archive again")
                if info.is_dir():
                    yield info.filename, None
                else:
                    with zipped.open(info) as file:
                        yield info.filename, file
        return
    # By gzip itself: tarfile's own reading of it does not compare the checksum at the end.
    with gzip.open(archive, "rb") as unbounded:
        packed: Any = _Bounded(archive, unbounded, limit + 64 * _BLOCK)
        with tarfile.open(fileobj=packed, mode="r|", tarinfo=_ShortHeaders) as tar:
            for member in tar:
                if member.isdir():
                    yield member.name, None
                elif member.isreg():
                    yield member.name, tar.extractfile(member)
                else:
                    raise EosinError(_special(archive, member.name))
        while packed.read(_BLOCK):
            pass


class _ShortHeaders(tarfile.TarInfo):
    """Members whose extended headers, which tarfile reads into memory whole, are as short as a name is."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> _ShortHeaders:
        """Read a header block."""
        member = super().frombuf(buf, encoding, errors)
        if not (member.isreg() or member.isdir()) and member.size > _BLOCK:
            raise tarfile.ReadError(f"a header of {member.size:,} bytes")
        return member


class _Bounded:
    """A stream that ends in an error after so many bytes: empty members can be a bomb too.

    Args:
        archive: What to name in the error.
        stream: The bytes.
        limit: How many there may be.
    """

    def __init__(self, archive: Path, stream: gzip.GzipFile, limit: int) -> None:
        self.archive = archive
        self.stream = stream
        self.left = limit

    def read(self, count: int = _BLOCK) -> bytes:
        block = self.stream.read(count)
        self.left -= len(block)
        if self.left < 0:
            raise EosinError(f"{self.archive}: holds far more than announced; this is not the published archive")
        return block


def _special(archive: Path, name: str) -> str:
    return f"{archive}: member {name!r} is a link or device; the archive is not to be trusted"


def unpack_gzip(
    packed: Path, path: Path, *, size: int | None = None, md5: str | None = None, progress: Progress | None = None
) -> None:
    """Unpack a ``.gz`` of one file, block by block.

    Args:
        packed: The file.
        path: Where what is in it goes, whole or not at all.
        size: Bytes that are announced.
        md5: What the MD5 must be.
        progress: Told of the bytes that were written.

    Raises:
        EosinError: If it is damaged, too much, or something else than announced.
    """
    limit = int(_SLACK * size) + _BLOCK if size is not None else _UNKNOWN * packed.stat().st_size + 64 * _BLOCK
    total, written = hashlib.md5(usedforsecurity=False), 0
    try:
        with contextlib.closing(gzip.open(packed, "rb")) as source, atomic_file(path) as file:
            while block := source.read(_BLOCK):
                written += len(block)
                if written > limit:
                    raise EosinError(f"{packed}: unpacks to more than {limit / 1e9:,.2f} GB, far more than announced")
                total.update(block)
                file.write(block)
                if progress is not None:
                    progress(written, size)
            if md5 is not None and total.hexdigest() != md5:
                raise EosinError(
                    f"{packed}: what is in it has MD5 {total.hexdigest()}, not the published {md5}; remove it and "
                    "get it again"
                )
    except _DAMAGED as error:
        raise EosinError(f"{packed}: damaged or cut short ({error}); remove it and get it again") from None
