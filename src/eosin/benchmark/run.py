"""The benchmark's loop: what is missing is computed, cell by cell; what fails is listed and the rest goes on."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eosin.benchmark.cells import (
    CELLS,
    OpenTask,
    Subject,
    cell_key,
    newest,
    open_subject,
    run_cell,
)
from eosin.benchmark.config import BenchmarkConfig
from eosin.benchmark.maps import MAPS, map_path, write_map
from eosin.benchmark.pooling import compare, leaderboard
from eosin.benchmark.record import (
    COMPARISONS,
    FAILURES,
    LEADERBOARD,
    RESULTS,
    Failure,
    Identity,
    Record,
    identity,
    read_comparisons,
    read_failures,
)
from eosin.benchmark.table import print_table
from eosin.core.console import console, warn
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import DirectoryLock, writable_directory, write_json_lines
from eosin.data import Quarantine, default_workers
from eosin.encoders import load_encoder
from eosin.encoders.named import NamedEncoder, named_encoders
from eosin.evaluate import PROTOCOLS, ProbeData, embed, probe_data
from eosin.evaluate.cells import load_cells
from eosin.tasks import is_synthetic, open_task, task_content
from eosin.training.run import environment, utc_now

__all__ = ["COMPARED", "run_benchmark"]

COMPARED = "balanced_accuracy"
"""The metric of the paired tests."""


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
        EosinError: If the configuration or the directory is wrong, or, after all other cells are done and written, if
            some cells failed; these are listed in OUT/failures.jsonl.
    """
    encoders = named_encoders(config.encoders)
    for protocol in config.protocols:
        PROTOCOLS[protocol]
    out = writable_directory(config.out)
    with DirectoryLock(out):
        for name in (CELLS, "predictions", MAPS):
            writable_directory(out / name)
        run = _Run(config, encoders, command)
        run.compute()
        records = run.finish()
    run.complain(records)
    return records


class _Run:
    """One call: the plan, what is done, and what failed."""

    def __init__(self, config: BenchmarkConfig, encoders: Sequence[NamedEncoder], command: str) -> None:
        self.config = config
        self.encoders = encoders
        self.out = config.out
        described = environment(command)
        self.command = command
        self.about = {"command": command, "libraries": {"python": described["python"], **described["libraries"]}}
        self.done: dict[str, Record] = load_cells(self.out, CELLS, identity)
        self.records: dict[Identity, Record] = {identity(record): record for record in newest(list(self.done.values()))}
        self.planned: list[Identity] = []
        self.failures: list[Failure] = []
        self.tasks: dict[tuple[str, int], OpenTask | EosinError] = {}
        # A wrong encoder or task is then the whole benchmark, and told once, as the command's error.
        self.single = len(encoders) == len(config.tasks) == 1

    # Computing ---------------------------------------------------------------------------------------------------

    def compute(self) -> None:
        """Compute the missing cells."""
        self._refuse_equal_task_names()
        for encoder in self.encoders:
            seeds: dict[str, list[int]] = defaultdict(list)
            for seed in self.config.seeds:
                seeds[encoder.spec(seed)].append(seed)
            for spec, mine in seeds.items():
                self._encoder(encoder.name, spec, mine)

    def _refuse_equal_task_names(self) -> None:
        specs: dict[str, str] = {}
        for spec in self.config.tasks:
            opened = self._open(spec, self.config.seeds[0])
            if isinstance(opened, EosinError):
                continue
            other = specs.setdefault(opened.task.name, spec)
            if other != spec:
                raise EosinError(
                    f"tasks '{other}' and '{spec}' are both named '{opened.task.name}'; "
                    f"name one: '{spec}{'&' if '?' in spec else '?'}name=NAME'"
                )

    def _open(self, spec: str, seed: int) -> OpenTask | EosinError:
        if (spec, seed) not in self.tasks:
            try:
                task = open_task(spec, seed=seed, label_column=self.config.label_column)
                self.tasks[spec, seed] = OpenTask(spec, task, task_content(task), is_synthetic(task))
            except EosinError as error:
                self.tasks[spec, seed] = error
        return self.tasks[spec, seed]

    def _encoder(self, name: str, spec: str, seeds: Sequence[int]) -> None:
        try:
            subject = open_subject(name, spec, load_encoder(spec))
        except EosinError as error:
            for task in self.config.tasks:
                for seed in seeds:
                    self._fail(name, task, seed, self._conditions(), error)
            return
        for task in self.config.tasks:
            for seed in seeds:
                opened = self._open(task, seed)
                try:
                    if isinstance(opened, EosinError):
                        raise opened
                    self._scores(subject, opened, seed)
                except StorageError:
                    raise
                except EosinError as error:
                    self._fail(name, task, seed, self._conditions(), error)

    def _conditions(self) -> list[tuple[str, float]]:
        return [(protocol, fraction) for protocol in self.config.protocols for fraction in self.config.fractions]

    def _scores(self, subject: Subject, opened: OpenTask, seed: int) -> None:
        """Compute the cells of an encoder, a task and a seed from one pass over the tiles."""
        keys = {entry: cell_key(subject, opened, *entry, seed) for entry in self._conditions()}
        for key in keys.values():
            if key in self.done:
                # The same weights may have moved since.
                run = None if subject.run is None else str(subject.run)
                self._keep({**self.done[key], "spec": subject.spec, "run": run})
        missing = [entry for entry, key in keys.items() if key not in self.done]
        drawn = self.out / map_path(subject.name, subject.fingerprint, opened.content)
        map_wanted = seed == self.config.seeds[0] and not drawn.is_file()
        if not missing and not map_wanted:
            return
        started = time.perf_counter()
        data = self._features(subject, opened)
        for protocol, fraction in missing:
            self._cell(subject, opened, data, protocol, fraction, seed, keys[protocol, fraction], started)
            started = time.perf_counter()
        if map_wanted:
            self._draw(drawn, subject, opened, data, seed)

    def _features(self, subject: Subject, opened: OpenTask) -> ProbeData:
        workers = default_workers() if self.config.workers is None else self.config.workers
        embeddings = embed(
            subject.encoder,
            opened.task.tiles,
            batch_size=self.config.batch_size,
            workers=workers,
            cache=self.out / "embeddings",
            quarantine=Quarantine(self.out / "quarantine.jsonl"),
        )
        return probe_data(opened.task, embeddings)

    def _cell(
        self,
        subject: Subject,
        opened: OpenTask,
        data: ProbeData,
        protocol: str,
        fraction: float,
        seed: int,
        key: str,
        started: float,
    ) -> None:
        try:
            record = run_cell(
                self.out,
                subject,
                opened,
                data,
                key=key,
                protocol=protocol,
                fraction=fraction,
                seed=seed,
                about=self.about,
                started=started,
            )
        except StorageError:
            raise
        except EosinError as error:
            self._fail(subject.name, opened.spec, seed, [(protocol, fraction)], error)
            return
        self.done[key] = record
        self._keep(record)
        self._write_results()
        value = record["metrics"][COMPARED]["value"]
        shown = "undefined" if value is None else f"{value:.3f}"
        labels = "" if fraction == 1.0 else f" | {100 * fraction:g} % of labels"
        console.print(f"{subject.name} | {opened.task.name} | {protocol}{labels} | seed {seed}: {shown}", markup=False)

    def _draw(self, path: Path, subject: Subject, opened: OpenTask, data: ProbeData, seed: int) -> None:
        for protocol, fraction in sorted(self._conditions(), key=lambda entry: -entry[1]):
            record = self.records.get((subject.name, opened.task.name, protocol, fraction, seed))
            if record is not None and record["task_hash"] == opened.content:
                predictions = self.out / record["predictions"]
                write_map(path, opened.task, data, seed=seed, predictions=predictions, predicted_by=protocol)
                return

    def _keep(self, record: Record) -> None:
        self.records[identity(record)] = record
        self.planned.append(identity(record))

    def _fail(
        self, name: str, task: str, seed: int, conditions: Sequence[tuple[str, float]], error: EosinError
    ) -> None:
        opened = self._open(task, seed)
        shown = task if isinstance(opened, EosinError) else opened.task.name
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
        tasks = [entry.task.name for entry in opened if isinstance(entry, OpenTask)]
        protocols = list(self.config.protocols)

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
        for record in records:
            path = map_path(record["encoder"], record["fingerprint"], record["task_hash"])
            record["map"] = path if (self.out / path).is_file() else None
        write_json_lines(self.out / RESULTS, records)

    def finish(self) -> list[Record]:
        """Write the files that join the cells; return the records asked for."""
        failed = {identity(failure) for failure in self.failures}
        older = [f for f in read_failures(self.out) if identity(f) not in failed | self.records.keys()]
        write_json_lines(self.out / FAILURES, [*older, *self.failures])
        if not self.records:
            return []
        self._write_results()
        records = self._sorted()
        write_json_lines(self.out / LEADERBOARD, leaderboard(self.out, records))
        write_json_lines(self.out / COMPARISONS, compare(self.out, records, COMPARED, read_comparisons(self.out)))
        planned = set(self.planned)
        return [record for record in records if identity(record) in planned]

    def complain(self, records: Sequence[Record]) -> None:
        """Raise if cells failed, with the results there are printed first."""
        if not self.failures:
            return
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
