"""The benchmark's loop: what is missing is computed, cell by cell; what fails is listed and the rest goes on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eosin.benchmark.cells import CELLS, OpenTask, Subject, newest, open_subject
from eosin.benchmark.config import BenchmarkConfig
from eosin.benchmark.directory import FOLDERS, check_directory, is_drawn, load_done
from eosin.benchmark.galleries import GALLERIES, gallery_path, write_gallery
from eosin.benchmark.joining import write_joined
from eosin.benchmark.maps import MAPS, map_path, write_map
from eosin.benchmark.nuclei_protocol import NucleiAsked, fitting_tasks, open_asked
from eosin.benchmark.nuclei_scoring import NucleiWork
from eosin.benchmark.nuclei_task import OpenNuclei, is_nuclei_spec, open_nuclei_task
from eosin.benchmark.reading import read_failures
from eosin.benchmark.record import (
    FAILURES,
    RESULTS,
    Failure,
    Identity,
    Record,
    compared_metric,
    identity,
    is_nuclei,
)
from eosin.benchmark.scoring import Work, check_places, conditions
from eosin.benchmark.table import print_table
from eosin.core.console import console, warn
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import DirectoryLock, writable_directory, write_json_lines
from eosin.encoders import load_encoder
from eosin.encoders.named import NamedEncoder, named_encoders
from eosin.evaluate import Asked, ProbeData
from eosin.tasks import is_synthetic, open_task, task_content
from eosin.training.run import environment, utc_now
from eosin.training.signals import Interrupted

__all__ = ["run_benchmark"]

_WRITTEN_EVERY = 20.0
"""Seconds between two writings of results.jsonl; every cell is a file of its own at once."""


def run_benchmark(config: BenchmarkConfig, command: str = "") -> list[Record]:
    """Score encoders on tasks, or go on with the benchmark in `config.out`.

    Results of earlier calls with the same directory stay in it, so encoders and tasks can be added one by one, and
    the `cells/` and `predictions/` of several machines can be copied together.

    Args:
        config: What to run.
        command: The command line, for the records.

    Returns:
        The records of the cells asked for, in the order of encoders, tasks, protocols, fractions and seeds.

    Raises:
        EosinError: If the configuration or the directory is wrong; if no protocol fits a task; or, after all other
            cells are done and written, if some cells failed; these are listed in OUT/failures.jsonl.
    """
    encoders = named_encoders(config.encoders)
    asked, of_nuclei = open_asked(config.protocols)
    specs = fitting_tasks(config.tasks, asked, of_nuclei)
    check_places(config)
    check_directory(config.out)
    out = writable_directory(config.out)
    if config.shard is not None:
        # Jobs of an array share the directory; what keeps them apart are the embeddings' own locks.
        run = _Run(config, encoders, specs, asked, of_nuclei, command)
        run.compute()
        run.complain([])
        return []
    with DirectoryLock(out):
        for name in FOLDERS:
            writable_directory(out / name)
        run = _Run(config, encoders, specs, asked, of_nuclei, command)
        run.compute()
        records = run.finish()
    run.complain(records)
    return records


class _Run:
    """One call: the plan, what is done, and what failed."""

    def __init__(
        self,
        config: BenchmarkConfig,
        encoders: Sequence[NamedEncoder],
        specs: Sequence[str],
        asked: Sequence[Asked],
        of_nuclei: Sequence[NucleiAsked],
        command: str,
    ) -> None:
        self.config = config
        self.encoders = encoders
        self.asked = asked
        self.of_nuclei = of_nuclei
        self.specs = specs
        self.written = 0.0
        self.out = config.out
        described = environment(command)
        self.command = command
        libraries = {"python": described["python"], **described["libraries"]}
        self.about = {"command": command, "libraries": libraries, "precision": config.precision}
        # A job of an array neither needs the cells nor may clear what others are writing.
        self.done: dict[str, Record] = {} if config.shard else load_done(self.out)
        self.records: dict[Identity, Record] = {identity(record): record for record in newest(list(self.done.values()))}
        self.planned: list[Identity] = []
        self.failures: list[Failure] = []
        self.tasks: dict[tuple[str, int], OpenTask | OpenNuclei | EosinError] = {}
        self.trainings = 0
        self.parts = 0
        # A wrong encoder or task is then the whole benchmark, and told once, as the command's error.
        self.single = len(encoders) == len(self.specs) == 1

    # Computing ---------------------------------------------------------------------------------------------------

    def compute(self) -> None:
        """Compute the missing cells."""
        self._refuse_equal_task_names()
        try:
            self._compute()
        except KeyboardInterrupt:
            self._write_results()
            raise
        except Interrupted:
            # A training of nuclei has saved a checkpoint; the benchmark stops as one of tiles does.
            self._write_results()
            raise KeyboardInterrupt from None

    def _conditions(self, task: str) -> list[tuple[str, float]]:
        """Return the protocols that fit a task, with their fractions."""
        if is_nuclei_spec(task):
            return [(entry.shown, share) for entry in self.of_nuclei for share in self.config.fractions]
        return conditions(self.asked, self.config.fractions)

    def _compute(self) -> None:
        for encoder in self.encoders:
            seeds: dict[str, list[int]] = defaultdict(list)
            for seed in self.config.seeds:
                seeds[encoder.spec(seed)].append(seed)
            for spec, mine in seeds.items():
                self._encoder(encoder.name, spec, mine)

    def _refuse_equal_task_names(self) -> None:
        specs: dict[str, str] = {}
        for spec in self.specs:
            opened = self._open(spec, self.config.seeds[0])
            if isinstance(opened, EosinError):
                continue
            other = specs.setdefault(opened.name, spec)
            if other != spec:
                raise EosinError(
                    f"tasks '{other}' and '{spec}' are both named '{opened.name}'; "
                    f"name one: '{spec}{'&' if '?' in spec else '?'}name=NAME'"
                )

    def _open(self, spec: str, seed: int) -> OpenTask | OpenNuclei | EosinError:
        if is_nuclei_spec(spec):
            # No seed divides these.
            seed = self.config.seeds[0]
        if (spec, seed) not in self.tasks:
            try:
                if is_nuclei_spec(spec):
                    self.tasks[spec, seed] = open_nuclei_task(spec)
                    return self.tasks[spec, seed]
                task = open_task(spec, seed=seed, label_column=self.config.label_column)
                self.tasks[spec, seed] = OpenTask(spec, task, task_content(task), is_synthetic(task))
            except EosinError as error:
                self.tasks[spec, seed] = error
        return self.tasks[spec, seed]

    def _encoder(self, name: str, spec: str, seeds: Sequence[int]) -> None:
        try:
            subject = open_subject(name, spec, load_encoder(spec))
        except EosinError as error:
            for task in self.specs:
                for seed in seeds:
                    self._fail(name, task, seed, self._conditions(task), error)
            return
        for task in self.specs:
            # Seeds under which the tiles are the same share one pass over them, and are fitted together.
            shared: dict[str, dict[int, OpenTask]] = defaultdict(dict)
            for seed in seeds:
                opened = self._open(task, seed)
                if isinstance(opened, EosinError):
                    self._fail(name, task, seed, self._conditions(task), opened)
                elif isinstance(opened, OpenTask):
                    shared[opened.task.tiles.content_hash()][seed] = opened
            for group in shared.values():
                self._scores(Work(self.config, self.asked, subject, group, self.about), task)
            nuclei = self._open(task, seeds[0])
            if isinstance(nuclei, OpenNuclei):
                self._nuclei(NucleiWork(self.config, self.of_nuclei, subject, nuclei, seeds, self.about), task)

    def _scores(self, work: Work, task: str) -> None:
        """Compute the cells of an encoder and a task under some seeds."""
        if self.config.shard is not None:
            self._part(work, task)
            return
        subject, keys = work.subject, work.keys()
        missing = [cell for cell, key in keys.items() if key not in self.done]
        for cell in keys.keys() - set(missing):
            self._keep_done(subject, keys[cell])
        if not missing and not self._undrawn(work):
            return
        try:
            embeddings = work.embeddings()
        except StorageError:
            raise
        except EosinError as error:
            for seed in work.opened:
                self._fail(subject.name, task, seed, self._conditions(task), error)
            return
        data, failed = work.data(embeddings)
        for seed, reason in failed.items():
            self._fail(subject.name, task, seed, self._conditions(task), reason)
        for cell, result in work.results(embeddings, data, [cell for cell in missing if cell[2] in data]):
            protocol, fraction, seed = cell
            if isinstance(result, EosinError):
                self._fail(subject.name, task, seed, [(protocol, fraction)], result)
            else:
                self._told(result, keys[cell])
        self._draw(work, data)
        self._write_results()

    def _keep_done(self, subject: Subject, key: str) -> None:
        # The same weights may have moved since.
        run = None if subject.run is None else str(subject.run)
        self._keep({**self.done[key], "spec": subject.spec, "run": run})

    def _nuclei(self, work: NucleiWork, task: str) -> None:
        """Compute the cells of an encoder and a set of nuclei."""
        keys = work.keys()
        if self.config.shard is not None:
            self._trainings(work, task)
            return
        missing = [cell for cell, key in keys.items() if key not in self.done]
        for cell in keys.keys() - set(missing):
            self._keep_done(work.subject, keys[cell])
            work.let_go(cell, set(missing))
        for cell, result in work.results(missing):
            protocol, fraction, seed = cell
            if isinstance(result, EosinError):
                self._fail(work.subject.name, task, seed, [(protocol, fraction)], result)
            else:
                self._told(result, keys[cell])
        self._write_results()

    def _trainings(self, work: NucleiWork, task: str) -> None:
        """Train this job's share of an encoder's networks, every n-th of all; a call without --shard scores them."""
        part, parts = self.config.shard or (0, 1)
        for cell, key in work.keys().items():
            mine = self.trainings % parts == part
            self.trainings += 1
            if not mine or (self.out / CELLS / f"{key}.json").is_file():
                continue
            protocol, fraction, seed = cell
            try:
                work.train(cell)
                self.parts += 1
            except StorageError:
                raise
            except EosinError as error:
                self._fail(work.subject.name, task, seed, [(protocol, fraction)], error)

    def _part(self, work: Work, task: str) -> None:
        """Compute this job's part of an encoder's embeddings of a task."""
        name, number = work.subject.name, "{}/{}".format(*self.config.shard or ())
        try:
            found = work.embeddings()
        except StorageError:
            raise
        except EosinError as error:
            for seed in work.opened:
                self._fail(name, task, seed, self._conditions(task), error)
            return
        self.parts += 1
        left = f"; {found.missing} are left to other jobs" if found.missing else "; all are there"
        console.print(
            f"{name} | {work.first.task.name} | part {number}: {len(found.rows)} embeddings{left}", markup=False
        )

    def _told(self, record: Record, key: str) -> None:
        self.done[key] = record
        self._keep(record)
        if time.monotonic() - self.written > _WRITTEN_EVERY:
            self._write_results()
        value = record["metrics"][compared_metric(record)]["value"]
        shown = "undefined" if value is None else f"{value:.3f}"
        labels = "" if record["fraction"] == 1.0 else f" | {100 * record['fraction']:g} % of labels"
        told = f"{record['encoder']} | {record['task']} | {record['protocol']}{labels} | seed {record['seed']}: {shown}"
        console.print(told, markup=False)

    def _pictured(self, work: Work) -> tuple[OpenTask, Record, Path, Path] | None:
        """Return the task under the first seed, the record of the first protocol that has a result, map and gallery."""
        seed, subject = self.config.seeds[0], work.subject
        opened = work.opened.get(seed)
        if opened is None:
            return None
        for protocol, fraction in sorted(
            conditions(self.asked, self.config.fractions), key=lambda entry: (-entry[1], ":" in entry[0])
        ):
            record = self.records.get((subject.name, opened.task.name, protocol, fraction, seed))
            if record is not None and record["task_hash"] == opened.content:
                about = (subject.name, subject.fingerprint, opened.content)
                return opened, record, self.out / map_path(*about), self.out / gallery_path(*about, protocol)
        return None

    def _undrawn(self, work: Work) -> bool:
        pictured = self._pictured(work)
        return pictured is not None and not all(map(is_drawn, pictured[2:]))

    def _draw(self, work: Work, data: dict[int, ProbeData]) -> None:
        """Make the map and the gallery of the first seed, by the first protocol that has a result."""
        pictured = self._pictured(work)
        seed = self.config.seeds[0]
        if pictured is None or seed not in data:
            return
        opened, record, drawn, shown = pictured
        predictions, protocol = self.out / record["predictions"], record["protocol"]
        try:
            if not is_drawn(drawn):
                write_map(drawn, opened.task, data[seed], seed=seed, predictions=predictions, predicted_by=protocol)
            if not is_drawn(shown):
                write_gallery(shown, opened.task, data[seed], predictions=predictions, predicted_by=protocol, seed=seed)
        except StorageError:
            raise
        except EosinError as error:
            warn(f"no map or gallery of {work.subject.name} on {opened.name}: {error}")

    def _keep(self, record: Record) -> None:
        self.records[identity(record)] = record
        self.planned.append(identity(record))

    def _fail(
        self, name: str, task: str, seed: int, conditions: Sequence[tuple[str, float]], error: EosinError
    ) -> None:
        opened = self._open(task, seed)
        shown = task if isinstance(opened, EosinError) else opened.name
        for protocol, fraction in conditions:
            if (name, shown, protocol, fraction, seed) in self.planned:
                continue
            self.failures.append(
                {
                    "encoder": name,
                    "task": shown,
                    "protocol": protocol,
                    "fraction": fraction,
                    "seed": seed,
                    "reason": str(error),
                    "command": self.command,
                    "created": utc_now(),
                }
            )
            # An older result of other weights or another split would pass for this one.
            self.records.pop((name, shown, protocol, fraction, seed), None)
        if not self.single:
            warn(f"no result for {name} on {shown}, seed {seed}: {error}")

    # Writing -----------------------------------------------------------------------------------------------------

    def _sorted(self) -> list[Record]:
        names = [encoder.name for encoder in self.encoders]
        opened = [self.tasks.get((spec, self.config.seeds[0])) for spec in self.config.tasks]
        tasks = [entry.name for entry in opened if isinstance(entry, (OpenTask, OpenNuclei))]
        protocols = [*(entry.shown for entry in self.asked), *(entry.shown for entry in self.of_nuclei)]

        def order(record: Record) -> tuple[Any, ...]:
            return (
                *_place(record["encoder"], names),
                *_place(record["task"], tasks),
                *_place(record["protocol"], protocols),
                -record["fraction"],
                record["seed"],
            )

        return sorted(self.records.values(), key=order)

    def _write_results(self) -> None:
        records = self._sorted()
        there = {str(path.relative_to(self.out)) for name in (MAPS, GALLERIES) for path in (self.out / name).iterdir()}
        for record in records:
            about = (record["encoder"], record["fingerprint"], record["task_hash"])
            drawn, shown = map_path(*about), gallery_path(*about, record["protocol"])
            if is_nuclei(record):
                shown = f"{GALLERIES}/{record['key']}.parquet"
            record["map"] = drawn if drawn in there else None
            record["gallery"] = shown if shown in there else None
        write_json_lines(self.out / RESULTS, records)
        self.written = time.monotonic()

    def finish(self) -> list[Record]:
        """Write the files that join the cells; return the records asked for."""
        failed = {identity(failure) for failure in self.failures}
        older = [f for f in self._earlier_failures() if identity(f) not in failed | self.records.keys()]
        write_json_lines(self.out / FAILURES, [*older, *self.failures])
        if not self.records:
            return []
        self._write_results()
        records = self._sorted()
        write_joined(self.out, records)
        planned = set(self.planned)
        return [record for record in records if identity(record) in planned]

    def _earlier_failures(self) -> list[Failure]:
        try:
            return read_failures(self.out)
        except EosinError as error:
            warn(f"{str(error).partition(';')[0]}; it is written again, with the failures of this call alone")
            return []

    def complain(self, records: Sequence[Record]) -> None:
        """Raise if cells failed, with the results there are printed first."""
        if not self.failures:
            return
        if self.config.shard is not None:
            others = f" (of {len(self.failures)} results; the other parts are done)" if self.parts else ""
            raise EosinError(f"{self.failures[0]['reason']}{others}")
        reason = self.failures[0]["reason"]
        if self.single and not records:
            raise EosinError(reason)
        print_table(records, console, self.out)
        total = len(self.failures) + len(set(self.planned))
        raise EosinError(
            f"{len(self.failures)} of {total} results are missing, listed in {self.out / FAILURES} (first: {reason}); "
            "the same command computes only these"
        )


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name), "") if name in order else (len(order), name)
