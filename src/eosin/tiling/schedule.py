"""Which task runs next: slides are begun in order, and those begun are finished first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from eosin.core.errors import EosinError
from eosin.slides import UnusableSlide
from eosin.tiling.cut import CutPart, Plan
from eosin.tiling.jobs import SlideJob
from eosin.tiling.pools import PATIENCE, LocalPool, Pool, ProcessDied
from eosin.tiling.records import Records
from eosin.tiling.tasks import begin_slide, continue_slide

__all__ = ["Advance", "Schedule"]

Advance = Callable[[SlideJob, float, int, int], None]
"""Told of a slide's share that was done (0 to 1), of tiles, and of their bytes."""


@dataclass
class _Started:
    """A slide of several parts, under way."""

    job: SlideJob
    plan: Plan
    bounds: list[int]
    parts: dict[int, CutPart] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return len(self.bounds) - 1


class Schedule:
    """Cuts slides with a pool and commits each when it is whole.

    A slide that cannot be cut is recorded and left; the others go on. A slide whose process died is tried once more,
    alone in a process of its own; if that dies too it is recorded as failed.

    Args:
        records: Where slides are committed.
        pool: Where tasks run.
        advance: Told of progress.
        ended: Told of each slide's record.
    """

    def __init__(self, records: Records, pool: Pool, advance: Advance, ended: Callable[[dict[str, Any]], None]) -> None:
        self.records = records
        # Processes of a cluster may work elsewhere.
        self._out = records.out.absolute()
        self.pool = pool
        self.advance = advance
        self.ended = ended
        self._started: dict[str, _Started] = {}
        self._parts: deque[tuple[_Started, int]] = deque()
        self._suspects: list[SlideJob] = []
        self._under_way = 0
        self.last_try = False
        """Whether a slide whose process dies is given up."""

    def run(self, jobs: Sequence[SlideJob]) -> None:
        """Cut all slides.

        Raises:
            EosinError: If the output cannot be written.
        """
        waiting = deque(jobs)
        while True:
            # One task more than there are processes: none waits while a result is dealt with.
            while self._under_way <= self.pool.size and (self._parts or waiting):
                if self._parts:
                    self._continue(*self._parts.popleft())
                else:
                    job = waiting.popleft()
                    self._submit((job, None), begin_slide, job, self._out)
            if not self._under_way:
                break
            (job, part), result = self.pool.next()
            self._under_way -= 1
            self._take(job, part, result)
        for job in self._suspects:
            self._alone(job)

    def _submit(self, tag: Any, task: Callable[..., Any], *arguments: Any) -> None:
        self.pool.submit(tag, task, *arguments)
        self._under_way += 1

    def _continue(self, started: _Started, part: int) -> None:
        if self._started.get(started.job.key) is not started:
            return
        every = started.plan.chosen
        chosen = every.part(*started.bounds[part : part + 2])
        self._submit((started.job, part), continue_slide, started.job, self._out, chosen, part, len(every))

    def _take(self, job: SlideJob, part: int | None, result: Any) -> None:
        if part is not None and job.key not in self._started:
            return
        if isinstance(result, ProcessDied) and not self.last_try:
            self._started.pop(job.key, None)
            if job not in self._suspects:
                self._suspects.append(job)
        elif isinstance(result, BaseException):
            self._fail(job, result)
        elif part is None:
            self._planned(job, *result)
        else:
            started = self._started[job.key]
            started.parts[part] = result
            self._advance(job, 1 / started.total, result)
            if len(started.parts) == started.total:
                del self._started[job.key]
                self._commit(job, started.plan, [started.parts[number] for number in range(started.total)])

    def _planned(self, job: SlideJob, plan: Plan, parts: list[CutPart]) -> None:
        if parts or not len(plan.chosen):
            for part in parts:
                self._advance(job, 1.0, part)
            if not parts:
                self.advance(job, 1.0, 0, 0)
            self._commit(job, plan, parts)
            return
        started = self._started[job.key] = _Started(job, plan, job.config.parts(len(plan.chosen)))
        self._parts += ((started, number) for number in range(started.total))

    def _advance(self, job: SlideJob, share: float, part: CutPart) -> None:
        self.advance(job, share, int(part.entry["tiles"]), int(part.entry["bytes"]))

    def _commit(self, job: SlideJob, plan: Plan, parts: list[CutPart]) -> None:
        try:
            record = self.records.commit(job, plan, parts)
        except FileNotFoundError:
            self._fail(job, UnusableSlide("the file was removed while it was cut"))
            return
        except (UnusableSlide, OSError) as error:
            self._fail(job, error)
            return
        self.ended(record)

    def _fail(self, job: SlideJob, error: BaseException) -> None:
        if isinstance(error, EosinError):
            raise error
        self._started.pop(job.key, None)
        reason = str(error)
        if isinstance(error, MemoryError):
            reason = "not enough memory; use fewer --jobs"
        elif isinstance(error, ProcessDied):
            reason = (
                f"the process reading it was killed, twice: a damaged file, too little memory (fewer --jobs), or "
                f"nothing done for {PATIENCE / 60:.0f} minutes"
            )
        elif not isinstance(error, UnusableSlide):
            first = (str(error).splitlines() or [""])[0]
            reason = f"cannot be read ({type(error).__name__}: {first})"
        self.ended(self.records.fail(job, reason))

    def _alone(self, job: SlideJob) -> None:
        """Cut a slide whose process died, in a process of its own."""
        pool = LocalPool(1)
        try:
            again = Schedule(self.records, pool, self.advance, self.ended)
            again.last_try = True
            again.run([job])
        finally:
            pool.close()
