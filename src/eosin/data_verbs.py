"""The verbs that get and check public sets: `eosin data list`, `eosin data get`, `eosin data check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from eosin.arguments import output, say

__all__ = ["data_check", "data_get", "data_list"]

Positional = tyro.conf.Positional


def data_list(*, format: Literal["table", "json"] = "table") -> int:
    """List the public sets that are tasks: images, classes, scale, size, licence, who may use them, where they are.

    Args:
        format: table, or json with all that is known of each.
    """
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
        task: A set of `eosin data list`.
        root: The folder of the set.
        fast: Names, counts and tables only: no image is decoded and no checksum computed.
    """
    from eosin.tasks import DATA_SETS
    from eosin.tasks.checking import check_data_set

    about = DATA_SETS[task]
    checked = check_data_set(about, root, deep=not fast)
    say(f"{about.title} in {root}")
    # No table: it would break the paths.
    marks = {True: "ok", False: "no", None: "- "}
    for line in checked:
        say(f"{marks[line.fine]}  {line.subject}: {line.text}")
    wrong = sum(line.fine is False for line in checked)
    say(f"{wrong} of {len(checked)} are not as published." if wrong else "All that could be compared is as published.")
    return 2 if wrong else 0
