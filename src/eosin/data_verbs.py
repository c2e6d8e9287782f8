"""The verbs that get and check public sets: `eosin data list`, `eosin data get`, `eosin data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from eosin.arguments import output, say
from eosin.core.errors import EosinError, nearest

__all__ = ["data_check", "data_get", "data_list"]

Positional = tyro.conf.Positional


def data_list(*, format: Literal["table", "json"] = "table", nuclei: bool = False) -> int:
    """List the public sets that are tasks: images, classes, scale, size, licence, who may use them, where they are.

    Args:
        format: table, or json with all that is known of each.
        nuclei: List the sets of labelled nuclei instead.
    """
    if nuclei:
        return _list_nuclei(format)
    from eosin.tasks import DATA_SETS

    if format == "json":
        import json

        sets = [{**about.plain(), "images": about.images, "parts": about.parts} for about in DATA_SETS.values()]
        print(json.dumps(sets, indent=2, ensure_ascii=False))  # noqa: T201 (data, not a line for people)
        return 0
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("set", "images", "classes", "µm/px", "download", "licence", "who may use it"):
        table.add_column(column, justify="right" if column in ("images", "classes", "µm/px") else "left")
    for about in DATA_SETS.values():
        size = f"{about.gigabytes:g} GB" + ("" if about.access == "download" else ", by form")
        numbers = (f"{about.images:,}", str(len(about.classes)), f"{about.mpp:g}")
        table.add_row(about.name, *numbers, size, about.licence, about.use)
    output.print(table)
    say("")
    for about in DATA_SETS.values():
        say(f"{about.name}: {about.home}")
    say("Get one: eosin data get NAME --root DIR. As a task: NAME:DIR.")
    say("Sets of labelled nuclei: eosin data list --nuclei.")
    return 0


def _list_nuclei(format: str) -> int:
    from eosin.nuclei.datasets import NUCLEI_SETS

    known = [entry.about for entry in NUCLEI_SETS.values() if entry.about.home]
    if format == "json":
        import json

        print(json.dumps([about.plain() for about in known], indent=2, ensure_ascii=False))  # noqa: T201 (data)
        return 0
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("set", "images", "types", "µm/px", "licence", "who may use it"):
        table.add_column(column, justify="right" if column in ("images", "types", "µm/px") else "left")
    for about in known:
        count = about.images or sum(about.counts.values())
        images = f"{count:,}" if count else "-"
        scale = f"{about.mpp:g}" if about.mpp else "-"
        table.add_row(about.name, images, str(len(about.classes)), scale, about.licence, about.use)
    output.print(table)
    say("")
    for about in known:
        say(f"{about.name}: {about.home}")
    say("Get them there; then NAME:DIR is the set, and eosin data check NAME --root DIR looks it over.")
    return 0


def data_get(
    task: Annotated[str, Positional],
    /,
    *,
    root: Path,
    accept_licence: bool = False,
    keep_archives: bool = False,
) -> int:
    """Download, check and unpack a public set; the same command again goes on where it was stopped.

    Args:
        task: A set of `eosin data list`.
        root: The folder of the set; NAME:ROOT is then the task.
        accept_licence: Say that your use is one that the licence allows, for sets that restrict it.
        keep_archives: Keep the archives when they are unpacked.
    """
    from eosin.tasks.acquire import acquire
    from eosin.tasks.checking import check_data_set

    acquire(task, root, accept_licence=accept_licence, keep_archives=keep_archives, say=say)
    wrong = [line for line in check_data_set(task, root, deep=False) if line.fine is False]
    for line in wrong:
        say(f"{line.subject}: {line.text}")
    say(f"{task} is not whole; see above." if wrong else f"{task} is whole: use it as {task}:{root}")
    return 2 if wrong else 0


def data_check(task: Annotated[str, Positional], /, *, root: Path, fast: bool = False) -> int:
    """Check that a folder holds a public set as it was published; exits with 2 if it does not.

    Args:
        task: A set of `eosin data list` or `eosin data list --nuclei`; `folder` for your own images and label maps.
        root: The folder of the set.
        fast: Names, counts and tables only: no image is decoded and no checksum computed.
    """
    from eosin.tasks import DATA_SETS
    from eosin.tasks.checking import check_data_set

    if task in DATA_SETS:
        title, checked = DATA_SETS[task].title, check_data_set(task, root, deep=not fast)
    else:
        from eosin.nuclei.datasets import NUCLEI_SETS
        from eosin.nuclei.datasets.checking import check_nuclei

        if task not in NUCLEI_SETS:
            raise EosinError(f"unknown data set '{task}'; {nearest(task, [*DATA_SETS, *NUCLEI_SETS])}")
        title, checked = NUCLEI_SETS[task].about.title, check_nuclei(task, root, deep=not fast)
    say(f"{title} in {root}")
    # No table: it would break the paths.
    marks = {True: "ok", False: "no", None: "- "}
    for line in checked:
        say(f"{marks[line.fine]}  {line.subject}: {line.text}")
    wrong = sum(line.fine is False for line in checked)
    say(f"{wrong} of {len(checked)} are not as published." if wrong else "All that could be compared is as published.")
    return 2 if wrong else 0
