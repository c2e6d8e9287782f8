"""Public sets, from the web to their official layout: licence, downloads, unpacking; the same call again goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from eosin.core.console import console
from eosin.core.errors import EosinError
from eosin.core.files import DirectoryLock, writable_directory
from eosin.tasks.data_sets import DATA_SETS, DataSet, RemoteFile
from eosin.tasks.download import download, file_md5, free_space
from eosin.tasks.unpack import unpack_archive, unpack_gzip

__all__ = ["acquire"]

Say = Callable[[str], None]


def acquire(
    about: DataSet | str,
    root: Path,
    *,
    accept_licence: bool = False,
    keep_archives: bool = False,
    say: Say | None = None,
) -> None:
    """Get a public set: download what is missing, check it, unpack it.

    Files that lie in `root` already are used; archives are removed when they are unpacked. A process that is killed
    leaves nothing half-written under a final name.

    Args:
        about: The set, or its name.
        root: The folder of the set; made if absent.
        accept_licence: That the user may use it as its licence says, where that restricts use.
        keep_archives: Keep them.
        say: Told of each step.

    Raises:
        EosinError: If the licence is not accepted, the set is given out by form only, or a download fails: see
            `download` and `unpack_archive`.
    """
    about = DATA_SETS[about] if isinstance(about, str) else about
    tell = say or (lambda line: None)
    tell(f"{about.title}: {about.licence} ({about.licence_url}): {about.use}")
    if about.consent and not accept_licence:
        raise EosinError(
            f"{about.name}: {about.licence} allows {about.use}; read {about.licence_url}, and if this is your use, add "
            "--accept-licence"
        )
    writable_directory(root)
    with DirectoryLock(root, ".eosin-get.lock"), _display() as bars:
        for file in about.files:
            _get(about, file, root, keep_archives, tell, bars)


def _get(about: DataSet, file: RemoteFile, root: Path, keep: bool, tell: Say, bars: Progress) -> None:
    target = root / (file.becomes or file.name)
    if target.exists():
        tell(f"{target}: there already")
        return
    path = root / file.name
    if not path.exists():
        if not file.url:
            raise EosinError(f"{path}: {about.title} is not downloaded: {about.how}")
        tell(f"downloading {file.url}")
        if file.md5 is None:
            plain = ", and it comes without TLS" if file.url.startswith("http:") else ""
            tell(f"{file.name}: no checksum of it is published{plain}: who alters it on its way is not found out")
        room = file.becomes_bytes or 0
        bar = bars.add_task(file.name, total=file.bytes)
        download(file.url, path, md5=file.md5, size=file.bytes, room=room, progress=_bar(bars, bar))
    elif file.md5 is not None:
        # It may have been put there by hand.
        bar = bars.add_task(f"checking {file.name}", total=path.stat().st_size)
        got = file_md5(path, _bar(bars, bar))
        if got != file.md5:
            raise EosinError(
                f"{path}: MD5 {got}, not the published {file.md5}; remove it and run the same command again"
            )
    if file.becomes is None:
        return
    free_space(root, file.becomes_bytes or 0)
    bar = bars.add_task(f"unpacking {file.name}", total=file.becomes_bytes)
    if file.name.endswith((".zip", ".tar.gz")):
        unpack_archive(path, target, size=file.becomes_bytes, members=file.members, progress=_bar(bars, bar))
    else:
        unpack_gzip(path, target, size=file.becomes_bytes, md5=file.becomes_md5, progress=_bar(bars, bar))
    tell(f"{target}: unpacked")
    if not keep:
        path.unlink()


def _display() -> AbstractContextManager[Progress]:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _bar(bars: Progress, bar: TaskID) -> Callable[[int, int | None], None]:
    def advance(done: int, total: int | None) -> None:
        bars.update(bar, completed=done, total=total)

    return advance
