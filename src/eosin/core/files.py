"""Files that are whole or absent: atomic writes, content hashes, locks on output directories."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from eosin.core.errors import EosinError, StorageError

__all__ = [
    "DirectoryLock",
    "append_json_line",
    "atomic_directory",
    "atomic_file",
    "directory_held",
    "file_sha256",
    "output_file",
    "read_json_lines",
    "short_hash",
    "storage_errors",
    "writable_directory",
    "write_json_lines",
]


def writable_directory(path: Path) -> Path:
    """Create an output directory and make sure it can be written to.

    Raises:
        EosinError: If the path is a file, or cannot be created or written.
    """
    with storage_errors(path):
        file = path.exists() and not path.is_dir()
    if file:
        raise EosinError(f"{path}: is a file; give a directory for the output")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError):
        raise EosinError(f"{path}: part of this path is a file; give a directory for the output") from None
    except OSError as error:
        raise _storage_error(path, error) from None
    return path


def output_file(path: Path, suffix: str, usual: str) -> Path:
    """Make sure that a result can be written to a file of this name, and create its folder.

    A name without the suffix is refused: what reads it later goes by that, and a source named by mistake stays whole.

    Args:
        path: The file.
        suffix: How its name must end, with the point.
        usual: A name to offer.

    Raises:
        EosinError: If it is a directory, ends otherwise, or its folder cannot be written.
    """
    with storage_errors(path):
        directory = path.is_dir()
    if directory:
        raise EosinError(f"{path}: is a directory; give a file such as {path / usual}")
    if path.suffix != suffix:
        raise EosinError(f"{path}: give a file name that ends in {suffix}, such as {path.with_suffix(suffix)}")
    writable_directory(path.parent)
    return path


_STORAGE_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE),
    # The directory was removed, or something else put in its place, while the command ran.
    *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what can go wrong on a disk while writing `path` into an `EosinError` that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in _STORAGE_ERRORS:
            raise _storage_error(path, error) from error
        raise


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(f"{path}: no space left on the device; free some, or choose another output directory")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(f"{path}: not writable; choose another output directory or change its permissions")
    return StorageError(f"{path}: cannot be written ({error.strerror})")


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Write a file so that a reader, or a crash at any moment, sees the old one or the whole new one.

    Args:
        path: The final path; its parent must exist.
        mode: "wb" or "w".

    Yields:
        An open file; on leaving, it is synced and renamed to `path`. On an error nothing is left behind.

    Raises:
        EosinError: If the disk is full or the place is not writable.
    """
    with storage_errors(path):
        encoding = None if "b" in mode else "utf-8"
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, mode, encoding=encoding) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _sync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


_UMASK = threading.Lock()


def _umask() -> int:
    # It can only be read by setting it, for all threads.
    with _UMASK:
        umask = os.umask(0)
        os.umask(umask)
    return umask


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Fill a directory that appears whole or not at all; what a killed process left of it is removed first.

    Args:
        path: The final path, which must not exist yet or be empty.

    Yields:
        A temporary directory beside `path`, renamed to it at the end and removed on an error.

    Raises:
        EosinError: If `path` holds something already, the disk is full or the place is not writable.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise EosinError(f"{path}: exists already; choose another output or remove it")
    writable_directory(path.parent)
    with storage_errors(path):
        _remove_abandoned(path)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
        # Held until the process ends, however it ends.
        mark = os.open(temporary, os.O_RDONLY)
        fcntl.flock(mark, fcntl.LOCK_EX)
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            os.close(mark)


def _remove_abandoned(path: Path) -> None:
    """Remove the temporary directories of `path` that no living process holds."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            mark = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part)
            finally:
                os.close(mark)


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """Append one JSON object as a line, in one write, so that readers see whole lines.

    A last line that a crash cut short is removed first.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=True, separators=(", ", ": ")) + "\n"
    with storage_errors(path), open(path, "ab+") as file:
        _cut_to_whole_lines(file)
        file.write(line.encode())


def _cut_to_whole_lines(file: IO[bytes]) -> None:
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            file.truncate(start + newline + 1)
            return
        end = start
    file.truncate(0)


def read_json_lines(path: Path, *, whole: bool = False, fix: str = "remove that line") -> list[dict[str, Any]]:
    """Read the whole lines of a JSON-lines file; a last line that a crash cut short while appending is left out.

    Args:
        path: The file; an absent one holds no lines.
        whole: The file was written at once, so a last line that is cut short is damage too.
        fix: What the error tells to do.

    Raises:
        EosinError: If a line before the last is damaged, or with `whole` any.
    """
    if not path.exists():
        return []
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError
            records.append(record)
        except ValueError:
            if number == len(lines) and not whole:
                break
            raise EosinError(f"{path}: line {number} is damaged; {fix}") from None
    return records


def write_json_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write JSON lines at once, whole or not at all; without lines, remove what an earlier run wrote."""
    if not lines:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path, "w") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False, separators=(", ", ": ")) + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(*parts: object) -> str:
    """Return 16 hexadecimal digits that identify JSON-serialisable parts."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_held: set[IO[str]] = set()


def _let_go() -> None:
    """Close a parent's lock files in its forked child: they would hold the lock after the parent's death."""
    while _held:
        _held.pop().close()


os.register_at_fork(after_in_child=_let_go)


class DirectoryLock:
    """A hold on an output directory, released by the kernel when the process ends, however it ends.

    Args:
        directory: The directory; must exist.
        name: File that stands for the hold.
        shared: Let others hold it too, as long as they share it.
        wait: Wait for others to let go, instead of refusing.
    """

    def __init__(self, directory: Path, name: str = ".lock", *, shared: bool = False, wait: bool = False) -> None:
        self.path = directory / name
        self._how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        self._file: IO[str] | None = None

    def __enter__(self) -> DirectoryLock:
        with storage_errors(self.path):
            file = open(self.path, "a+", encoding="utf-8")
        try:
            fcntl.flock(file, self._how)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise EosinError(f"{self.path.parent}: in use by {owner}; wait for it or choose another --out") from None
        except OSError as error:
            file.close()
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise StorageError(
                    f"{self.path.parent}: its file system keeps no locks ({error.strerror}); mount it with them "
                    "(Lustre: -o flock), or choose another --out"
                ) from None
            raise
        try:
            with storage_errors(self.path):
                file.truncate(0)
                # Without a buffer: one that a full disk refused would be written once more when the file is closed.
                os.write(file.fileno(), f"process {os.getpid()}".encode())
        except BaseException:
            file.close()
            raise
        self._file = file
        _held.add(file)
        return self

    def __exit__(self, *_: object) -> None:
        # The file stays: removing it would let a process that has just opened it hold a lock nobody else can see.
        if self._file is not None:
            if not self._file.closed:
                self._file.truncate(0)
                self._file.close()
            _held.discard(self._file)
            self._file = None


@contextlib.contextmanager
def directory_held(directory: Path, shard: tuple[int, int] | None = None) -> Iterator[None]:
    """Hold an output directory: alone, or with the other jobs of an array.

    Args:
        directory: The directory; must exist.
        shard: (i, n): this is the i-th, counted from 0, of n jobs that share the directory.

    Raises:
        EosinError: If it is held by others, or by jobs of another division.
    """
    if shard is None:
        with DirectoryLock(directory):
            yield
        return
    number, count = shard
    array = f".lock-of-{count}"
    with (
        DirectoryLock(directory, shared=True),
        DirectoryLock(directory, array, shared=True),
        DirectoryLock(directory, f".lock-{number}-of-{count}"),
    ):
        # Parts of another division would be of the same work.
        for other in directory.glob(".lock-of-*"):
            try:
                with DirectoryLock(directory, other.name) if other.name != array else contextlib.nullcontext():
                    pass
            except EosinError:
                raise EosinError(
                    f"--shard {number}/{count}: jobs of {other.name.removeprefix('.lock-of-')} parts are at work in "
                    f"{directory}; wait for them, or divide by the same number"
                ) from None
        yield
