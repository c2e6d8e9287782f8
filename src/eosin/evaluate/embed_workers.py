"""Parts of an embedding pass on several devices: one process each, or the tasks of a Ray cluster.

Each process loads the encoder by its spec, makes sure that it is the same, and writes its parts into the folder that
all share. The death of a process (the kernel wants memory back, a driver fails) costs the parts it was at.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.server import end_with_parent, start_server
from eosin.data.workers import script_left_out
from eosin.encoders import load_encoder
from eosin.evaluate.embed_pass import Pass, compute_parts
from eosin.evaluate.embed_shards import PartStore

if TYPE_CHECKING:
    from eosin.encoders import Encoder

__all__ = ["Order", "check_devices", "run_on_devices", "run_on_ray"]

Told = Callable[[int, dict[int, str]], None]
"""Called with the number of a part that is done, and its unreadable rows with the reasons."""

# So often may a part, or a device without a part, lose its process.
_TRIES = 2


@dataclass(frozen=True, eq=False)
class Order:
    """What a process needs to compute parts.

    Attributes:
        spec: The encoder's.
        fingerprint: The encoder's, to be compared with what the spec gives there.
        work: What to compute.
        store: Where parts go.
        threads: Of a CPU pass: with another number the last bits may be others.
        directory: The working directory, from which relative paths start.
    """

    spec: str
    fingerprint: str
    work: Pass
    store: PartStore
    threads: int = field(default_factory=torch.get_num_threads)
    directory: Path = field(default_factory=Path.cwd)


def _same_encoder(spec: str, fingerprint: str) -> Encoder:
    """Load an encoder, and make sure that it is the one meant.

    Raises:
        EosinError: If it is another one here.
    """
    encoder = load_encoder(spec)
    found = encoder.fingerprint()
    if found != fingerprint:
        raise EosinError(
            f"{spec}: gives other weights in another process (fingerprint {found} instead of {fingerprint}); save the "
            "encoder, and name its file"
        )
    return encoder


def check_devices(devices: Sequence[str]) -> tuple[str, ...]:
    """Return the devices to use: for "auto" every GPU here, or else the CPU.

    Raises:
        EosinError: If a name is none, or there is no such device.
    """
    if tuple(devices) == ("auto",):
        return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count())) or ("cpu",)
    for name in devices:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise EosinError(f"device '{name}': write cpu, cuda, cuda:1 or auto") from None
        count = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= count:
            raise EosinError(f"device '{name}': {count} GPUs are seen here; see `eosin doctor`")
    return tuple(devices)


# Processes of this machine -------------------------------------------------------------------------------------------


def _serve(connection: Connection, order: Order, device: str) -> None:
    """Compute the parts that are asked for, until there are no more or nobody listens."""
    end_with_parent()

    def more() -> Iterator[int]:
        while True:
            connection.send(("more",))
            number = connection.recv()
            if number is None:
                return
            yield number

    def advance(tiles: int) -> None:
        connection.send(("advanced", tiles))

    try:
        if torch.device(device).type == "cpu":
            torch.set_num_threads(order.threads)
        encoder = _same_encoder(order.spec, order.fingerprint)
        while True:
            connection.send(("ready",))
            first = connection.recv()
            if first is None:
                return
            numbers = itertools.chain([first], more())
            for part in compute_parts(encoder, order.work, order.store.layout, torch.device(device), numbers, advance):
                order.store.save(part)
                connection.send(("done", part.number, part.unreadable))
    except (EOFError, ConnectionError):
        # The process that asked has gone; what is done is on disk.
        return
    except EosinError as error:
        connection.send(("failed", error))
    except Exception:
        connection.send(("broken", traceback.format_exc()))


class _Worker:
    """A process at a device, and the parts that it was given."""

    def __init__(self, order: Order, device: str) -> None:
        self.device = device
        self.parts: list[int] = []
        self.waits = False
        context = start_server("eosin.evaluate.embed_workers")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, order, device))
        with script_left_out():
            try:
                self.process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise EosinError(
                    f"this pass cannot be sent to another process ({error}); leave out devices and Ray"
                ) from None
        other.close()

    def give(self, number: int | None) -> None:
        """Answer a request; a process that died meanwhile is found by its sentinel."""
        self.waits = False
        if number is not None:
            self.parts.append(number)
        with contextlib.suppress(OSError):
            self.connection.send(number)

    def messages(self) -> Iterator[tuple[Any, ...]]:
        """Yield what it said."""
        with contextlib.suppress(EOFError, OSError):
            while self.connection.poll():
                yield self.connection.recv()

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class _Crew:
    """One process a device, fed from one queue.

    Args:
        order: What each needs to know.
        devices: Where they run; one process for each entry.
        numbers: The parts to compute.
        told: What to call for each that is done.
        advance: What to call with the number of tiles of each batch.
    """

    def __init__(
        self, order: Order, devices: Sequence[str], numbers: Sequence[int], told: Told, advance: Callable[[int], None]
    ) -> None:
        self.order = order
        self.told = told
        self.advance = advance
        self.queue = deque(numbers)
        self.left = set(numbers)
        self.deaths = Counter[int | str]()
        self.workers = list[_Worker]()
        self.devices = devices[: len(numbers)]

    def run(self) -> None:
        """Compute all parts; every process has ended on return."""
        try:
            for device in self.devices:
                self.workers.append(_Worker(self.order, device))
            while self.left:
                speakers: dict[Any, _Worker] = {worker.connection: worker for worker in self.workers}
                speakers |= {worker.process.sentinel: worker for worker in self.workers}
                for worker in dict.fromkeys(speakers[key] for key in wait(list(speakers))):
                    self._hear(worker)
        finally:
            for worker in self.workers:
                worker.end()

    def _hear(self, worker: _Worker) -> None:
        alive = worker.process.is_alive()
        for kind, *what in worker.messages():
            if kind == "advanced":
                self.advance(what[0])
            elif kind == "more":
                worker.give(self.queue.popleft() if self.queue else None)
            elif kind == "ready":
                worker.waits = True
            elif kind == "done":
                self.left.discard(what[0])
                worker.parts.remove(what[0])
                self.told(what[0], what[1])
            elif kind == "failed":
                raise what[0]
            else:
                raise RuntimeError(f"on {worker.device}: {what[0]}")
        if not alive:
            self._bury(worker)
        for other in self.workers:
            if other.waits and self.queue:
                other.give(self.queue.popleft())

    def _bury(self, worker: _Worker) -> None:
        """Give a dead process's parts to others, and its device another process."""
        code = worker.process.exitcode
        self.workers.remove(worker)
        worker.end()
        # With no part at hand it died while it loaded the encoder.
        victims: list[int] | list[str] = worker.parts[:1] or [worker.device]
        self.queue.extendleft(reversed(worker.parts))
        why, fix = f"exit code {code}", "as it says above"
        if code is not None and code < 0:
            why, fix = f"signal {-code}", "most often for want of memory; use a smaller batch or fewer workers"
        for victim in victims:
            self.deaths[victim] += 1
            if self.deaths[victim] >= _TRIES:
                at = f" at part {victim}" if isinstance(victim, int) else " as it started"
                raise EosinError(f"the process on {worker.device} was killed twice{at} ({why}), {fix}")
        warn(f"the process on {worker.device} was killed ({why}), {fix}; its parts are done again")
        self.workers.append(_Worker(self.order, worker.device))


def run_on_devices(
    order: Order, devices: Sequence[str], numbers: Sequence[int], told: Told, advance: Callable[[int], None]
) -> None:
    """Compute parts in one process a device.

    Args:
        order: What to compute; its loading processes are divided among the devices.
        devices: Such as ("cuda:0", "cuda:1"); a name twice means two processes there.
        numbers: The parts.
        told: Called for each that is done, in the order in which they end.
        advance: Called with the number of tiles of each batch.

    Raises:
        EosinError: As raised by a process, or if two processes are killed over one part.
    """
    workers = max(1, order.work.workers // len(devices)) if order.work.workers else 0
    _Crew(replace(order, work=replace(order.work, workers=workers)), devices, numbers, told, advance).run()


# Tasks of a Ray cluster ----------------------------------------------------------------------------------------------


# A process gets tasks one after the other: the encoder is loaded for the first of them.
_kept_encoder = functools.lru_cache(maxsize=1)(_same_encoder)


def _ray_task(order: Order, numbers: Sequence[int]) -> list[tuple[int, int, dict[int, str]]]:
    """Compute parts; return each one's number, its tiles, and its unreadable rows."""
    os.chdir(order.directory)
    encoder = _kept_encoder(order.spec, order.fingerprint)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # A task that is done again, after a death, takes over what it had done.
    there = set(order.store.finished()).intersection(numbers)
    spans = {number: order.store.layout.span(number) for number in numbers}
    finished = [(number, spans[number][1] - spans[number][0], order.store.unreadable(number)) for number in there]
    missing = [number for number in numbers if number not in there]
    for part in compute_parts(encoder, order.work, order.store.layout, device, missing):
        order.store.save(part)
        finished.append((part.number, len(part.rows) + len(part.unreadable), part.unreadable))
    return finished


def run_on_ray(order: Order, address: str, numbers: Sequence[int], told: Told, advance: Callable[[int], None]) -> None:
    """Compute parts as tasks of a Ray cluster whose hosts all see tiles, encoder and parts under the same paths.

    A task takes a GPU where the cluster has some, with the loading processes of `order` beside it; else a core.

    Args:
        order: What to compute.
        address: As of `eosin.tiling.pools.RayPool`.
        numbers: The parts.
        told: Called for each that is done.
        advance: Called with the number of tiles done.

    Raises:
        EosinError: As raised by a task, if there is no cluster, or if a part is lost twice.
    """
    from eosin.tiling.pools import ProcessDied, RayPool

    with contextlib.closing(RayPool(address, gpus=True, cores=max(1, order.work.workers), patience=0)) as pool:
        shared = pool.share(order if pool.gpus else replace(order, work=replace(order.work, workers=0)))
        # A few tasks for each place: long enough to pay for their start, short enough to end together.
        size = max(1, min(64, len(numbers) // (4 * pool.size)))
        deaths = Counter[int]()
        waiting = [tuple(numbers[first : first + size]) for first in range(0, len(numbers), size)]
        for group in waiting:
            pool.submit(group, _ray_task, shared, group)
        left = len(waiting)
        while left:
            group, result = pool.next()
            if isinstance(result, ProcessDied):
                deaths[group[0]] += 1
                if deaths[group[0]] >= _TRIES:
                    raise EosinError(f"a Ray task died twice at part {group[0]} ({result}); use a smaller batch")
                warn(f"a Ray task died ({result}); its parts are done again")
                pool.submit(group, _ray_task, shared, group)
                continue
            if isinstance(result, BaseException):
                raise result
            left -= 1
            for number, tiles, unreadable in result:
                told(number, unreadable)
                advance(tiles)
