"""Tasks from a user's own labelled images: a folder of class folders, a manifest, or a tile store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eosin.core.registry import Registry
from eosin.data import open_tiles
from eosin.tasks.spec import parse_options, split_spec
from eosin.tasks.task import Task, TaskOptions, build_task

__all__ = ["TASKS", "open_labelled", "open_task"]

TASKS: Registry[Callable[..., Task]] = Registry("task scheme")
"""Scheme -> (source without its scheme, options, spec, seed, label_column) -> Task."""

_VERSION = 1


def open_task(spec: str, *, seed: int = 0, label_column: str = "label") -> Task:
    """Open a task from its spec.

    Args:
        spec: ``folder:DIR``, ``csv:FILE``, ``store:DIR``, a bare path of one of these, or ``synthetic``; then, after a
            `?`, options (see `TaskOptions`): ``csv:index.csv?label=grade&group=slide``.
        seed: Of the parts of the split that are not given.
        label_column: Column that holds the class, unless the spec says.

    Raises:
        EosinError: If the source cannot be read, or is no task: see `build_task`.
    """
    source, options = split_spec(str(spec))
    scheme, separator, rest = source.partition(":")
    if source in TASKS:
        return TASKS[source]("", options, str(spec), seed, label_column)
    if separator and scheme in TASKS:
        return TASKS[scheme](rest, options, str(spec), seed, label_column)
    if separator and not Path(source).exists() and scheme.isidentifier():
        TASKS[scheme]  # raises, naming the nearest scheme
    return open_labelled(source, options, str(spec), seed, label_column)


def open_labelled(source: str, options: dict[str, str], spec: str, seed: int, label_column: str) -> Task:
    """Open any source of labelled tiles, given as `open_tiles` takes it."""
    chosen = parse_options(TaskOptions, options, spec)
    column = chosen.label or label_column
    tiles = open_tiles(source, label_column=column)
    return build_task(
        tiles,
        chosen,
        name=chosen.name or _display_name(source, column),
        version=_VERSION,
        reference=f"labels of {source}",
        seed=seed,
    )


def _scheme(name: str) -> None:
    def open_source(source: str, options: dict[str, str], spec: str, seed: int, label_column: str) -> Task:
        return open_labelled(f"{name}:{source}", options, spec, seed, label_column)

    open_source.__doc__ = f"Open `{name}:` sources."
    TASKS.register(name)(open_source)


for _name in ("folder", "csv", "store"):
    _scheme(_name)


def _display_name(source: str, column: str) -> str:
    """Name a task after its files: ``oral/index:label4`` for ``csv:.../oral/index.csv?label=label4``."""
    scheme, separator, rest = source.partition(":")
    path = Path(rest if separator and scheme in TASKS else source).expanduser().resolve()
    name = f"{path.parent.name}/{path.stem}" if path.is_file() else path.name
    return name if column == "label" else f"{name}:{column}"
