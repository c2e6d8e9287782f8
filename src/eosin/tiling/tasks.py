"""The tasks that a pool's processes run, one call each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from eosin.slides import Slide, UnusableSlide
from eosin.tiling.cut import Chosen, CutPart, Plan, cut_part, open_for, plan_slide
from eosin.tiling.identity import file_identity
from eosin.tiling.jobs import SlideJob

__all__ = ["begin_slide", "continue_slide"]

# The slide that this process read last: parts of one slide often follow each other.
_last: dict[SlideJob, Slide] = {}


def _opened(job: SlideJob) -> Slide:
    if job not in _last:
        _let_go()
        _last[job] = open_for(job)
    return _last[job]


def _let_go() -> None:
    while _last:
        _last.popitem()[1].close()


def begin_slide(job: SlideJob, out: Path) -> tuple[Plan, list[CutPart]]:
    """Plan a slide and, where one part is all of it, cut it.

    Raises:
        UnusableSlide: If it cannot be cut.
        EosinError: If the output cannot be written.
    """
    try:
        seen = {"given": job.given(), **file_identity(job.path)}
        slide = _opened(job)
        plan = dataclasses.replace(plan_slide(slide, job, out / "previews"), seen=seen)
        parts = []
        if len(job.config.parts(len(plan.chosen))) == 2:
            parts.append(cut_part(slide, job, plan.chosen, 0, out / "shards", len(plan.chosen)))
        return plan, parts
    except OSError as error:
        raise _unreadable(job, error) from None
    finally:
        _let_go()


def continue_slide(job: SlideJob, out: Path, chosen: Chosen, part: int, total: int) -> CutPart:
    """Cut a part of a planned slide of so many tiles in total.

    Raises:
        UnusableSlide: If it cannot be read.
        EosinError: If the output cannot be written.
    """
    try:
        return cut_part(_opened(job), job, chosen, part, out / "shards", total)
    except OSError as error:
        _let_go()
        raise _unreadable(job, error) from None


def _unreadable(job: SlideJob, error: OSError) -> UnusableSlide:
    # A mask, region or list of coordinates is named; the slide is by the caller.
    file = f"{error.filename} " if error.filename not in (None, str(job.path)) else ""
    return UnusableSlide(f"{file}cannot be read ({error.strerror or error})")
