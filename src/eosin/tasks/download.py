"""One file from the web: resumed where it was stopped, checked, and under its name only when it is whole.

What has come so far is in ``NAME.part``, and what it is a part of in ``NAME.part.json``: the address, the size and the
server's tag for this version of the file. A resumed download asks for the rest of that version only (RFC 9110, Range
and If-Range); a server that cannot do so sends all, and the download begins anew. The standard library's urllib is
enough for this: it knows redirections and proxies, and is no further dependency.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eosin import __version__
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, storage_errors

__all__ = ["Progress", "download", "file_md5", "free_space"]

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and, where the server says it, the whole size."""

_BLOCK = 2**20
_TIMEOUT = 60.0
# Attempts that bring nothing new, one after the other; each waits twice as long as the one before.
_ATTEMPTS = 5
_FIRST_WAIT = 1.0

# What ends a transfer half-way.
_BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError, urllib.error.URLError)


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from TLS to a connection on which anybody can change what comes."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Refuse the step from https to another scheme."""
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise urllib.error.HTTPError(req.full_url, code, f"leads from https to {newurl}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Changed(Exception):
    """The server has another version of the file than the part that is here."""


def download(
    url: str,
    path: Path,
    *,
    md5: str | None = None,
    size: int | None = None,
    room: int = 0,
    progress: Progress | None = None,
    wait: float = _FIRST_WAIT,
) -> None:
    """Download a file; the same call again goes on where it was stopped, in whatever way.

    Args:
        url: ``http://`` or ``https://``.
        path: Where it goes; its folder must exist.
        md5: What the file's MD5 must be.
        size: What its size must be.
        room: Bytes that must stay free besides, such as for what is unpacked later.
        progress: Told of each block.
        wait: Seconds before the second attempt.

    Raises:
        EosinError: If the server cannot be reached or refuses, the disk has too little room, or what came is not the
            file that was asked for. A damaged download is removed, so that the next one begins anew.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise EosinError(f"{url}: only http and https are downloaded from")
    part, about = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _attempt(url, part, about, size, room, progress)
            break
        except _Changed:
            _forget(part, about)
            failures += 1
            problem = "the server sends another version of the file each time"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise EosinError(_refused(url, error)) from None
            failures += 1
            problem = f"the server answers {error.code} {error.reason}"
        except _BROKEN as error:
            # An attempt that brought something counts as none.
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            problem = _reason(error)
        if failures >= _ATTEMPTS:
            raise EosinError(
                f"{urlsplit(url).hostname}: {problem}; check the network and run the same command again, or download "
                f"{url} by hand to {path}"
            )
        time.sleep(wait * 2 ** (failures - 1))
    _accept(part, about, path, url, md5, size)


def _refused(url: str, error: urllib.error.HTTPError) -> str:
    return f"{url}: the server refuses it ({error.code} {error.reason}); the address may have changed"


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "no answer in time"
    if isinstance(inner, OSError) and inner.strerror:
        return f"cannot be reached ({inner.strerror})"
    if isinstance(inner, http.client.IncompleteRead):
        return "the connection breaks off again and again"
    return f"cannot be reached ({inner})"


def _attempt(url: str, part: Path, about: Path, size: int | None, room: int, progress: Progress | None) -> None:
    """Get what is missing of a file.

    Raises:
        _Changed: If the part is of another version.
        OSError, http.client.HTTPException: If the transfer breaks off.
    """
    known = _known(about, url)
    have = part.stat().st_size if known is not None and part.exists() else 0
    if known is None:
        _forget(part, about)
    if known is not None and have and have == known.get("size"):
        return
    headers = {"User-Agent": f"eosin/{__version__}", "Accept-Encoding": "identity"}
    if have and known is not None:
        headers["Range"] = f"bytes={have}-"
        headers["If-Range"] = str(known["tag"])
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the scheme was checked)
    try:
        answer = urllib.request.build_opener(_NoDowngrade).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            raise _Changed from None
        raise
    with answer:
        if answer.status != 206:
            have = 0
        total = _total(answer, have)
        if size is not None and total is not None and total != size:
            raise EosinError(
                f"{url}: the server has {total:,} bytes, not the published {size:,}; the file was changed, or a proxy "
                "answers in its place"
            )
        free_space(part.parent, (total or size or 0) - have + room)
        _remember(about, url, total, answer.headers)
        _store(answer, part, have, total if size is None else size, progress)


def _total(answer: Any, have: int) -> int | None:
    """Return the whole size, and check that a part of a file begins where ours ends."""
    if answer.status == 206:
        unit, _, span = str(answer.headers.get("Content-Range", "")).partition(" ")
        first, _, rest = span.partition("-")
        total = rest.partition("/")[2]
        if unit != "bytes" or first != str(have):
            raise _Changed
        return int(total) if total.isdecimal() else None
    length = answer.headers.get("Content-Length")
    return int(length) if length is not None and length.isdecimal() else None


def _store(answer: Any, part: Path, have: int, total: int | None, progress: Progress | None) -> None:
    with storage_errors(part), open(part, "r+b" if part.exists() else "wb", opener=_no_link) as file:
        file.truncate(have)
        file.seek(have)
        while block := _read(answer):
            have += len(block)
            if total is not None and have > total:
                raise EosinError(f"{answer.url}: sends more than {total:,} bytes; this is not the published file")
            file.write(block)
            if progress is not None:
                progress(have, total)
        file.flush()
        os.fsync(file.fileno())
    if total is not None and have < total:
        raise http.client.IncompleteRead(b"", total - have)


def _no_link(path: str, flags: int) -> int:
    # In a folder that others can write to, a link would lead the download over any file of this user.
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _read(answer: Any) -> bytes:
    """Read a block; the network's errors are told from the disk's, whose numbers those of TLS share."""
    try:
        block: bytes = answer.read(_BLOCK)
    except OSError as error:
        raise urllib.error.URLError(error) from None
    return block


def _known(about: Path, url: str) -> dict[str, Any] | None:
    """Return what the part that is here is a part of; None if it cannot be gone on with."""
    try:
        known = json.loads(about.read_text(encoding="utf-8"))
        return known if known["url"] == url and known["tag"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(about: Path, url: str, total: int | None, headers: Any) -> None:
    tag = headers.get("ETag")
    if tag is None or tag.startswith("W/"):
        # A weak tag names no exact bytes.
        tag = headers.get("Last-Modified")
    with atomic_file(about, "w") as file:
        json.dump({"url": url, "size": total, "tag": tag}, file)


def _forget(part: Path, about: Path) -> None:
    # The description first: a part without it is never gone on with.
    about.unlink(missing_ok=True)
    part.unlink(missing_ok=True)


def _accept(part: Path, about: Path, path: Path, url: str, md5: str | None, size: int | None) -> None:
    """Check a whole file and give it its name."""
    have = part.stat().st_size
    wrong = f"{have:,} bytes, not {size:,}" if size is not None and have != size else ""
    if not wrong and md5 is not None and (got := file_md5(part)) != md5:
        wrong = f"MD5 {got}, not the published {md5}"
    if wrong:
        _forget(part, about)
        raise EosinError(f"{url}: what came has {wrong}, and was removed; run the same command again")
    with storage_errors(path):
        part.replace(path)
    with contextlib.suppress(OSError):
        about.unlink()


def file_md5(path: Path, progress: Progress | None = None) -> str:
    """Return the MD5 of a file's bytes in hexadecimal; publishers of data sets give no better checksum."""
    total = hashlib.md5(usedforsecurity=False)
    done, size = 0, path.stat().st_size
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
            done += len(block)
            if progress is not None:
                progress(done, size)
    return total.hexdigest()


def free_space(folder: Path, needed: int) -> None:
    """Make sure that a folder's disk has room.

    Raises:
        EosinError: If it has not.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EosinError(
            f"{folder}: {needed / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} GB are free; free some, or choose "
            "another --root"
        )
