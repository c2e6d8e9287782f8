"""Reading ahead in worker processes, in order, whatever their number."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from eosin.core.errors import EosinError

__all__ = ["Reader", "default_workers", "read_ahead"]

K = TypeVar("K", contravariant=True)
V = TypeVar("V", covariant=True)


class Reader(Protocol, Generic[K, V]):
    """What runs in a worker: a pure function of the key, and small to pickle."""

    def __call__(self, key: K, /) -> V:
        """Return the item of a key."""


def default_workers() -> int:
    """Return how many loading processes suit this process: its share of the cores it may use, at most 16.

    On a single core the loading is left to the main process (0).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 0 if share <= 1 else min(share, 16)


def read_ahead(reader: Reader[K, V], keys: Sequence[K], workers: int) -> Iterator[V]:
    """Yield `reader(key)` for each key, in order.

    Args:
        reader: Called in the workers, or here when there are none.
        keys: What to read.
        workers: Number of processes; each has up to two items under way or waiting.

    Raises:
        EosinError: As raised by the reader, or when a worker is killed.
    """
    if workers <= 0 or not keys:
        for key in keys:
            yield reader(key)
        return
    iterator = _start(_Guarded(reader), keys, min(workers, len(keys)))
    try:
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise EosinError(
                    "a loading process was killed, most often for want of memory; use fewer workers or a smaller "
                    f"batch ({str(error).splitlines()[0]})"
                ) from error
            if isinstance(item, EosinError):
                raise item
            yield item
    finally:
        # The workers end with the iterator.
        del iterator


class _Guarded(Dataset[Any]):
    """Hands an `EosinError` over as a value: raised in a worker it would arrive with a traceback in its message."""

    def __init__(self, reader: Reader[Any, Any]) -> None:
        self.reader = reader

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.reader(key)
        except EosinError as error:
            return error


def _start(dataset: Dataset[Any], keys: Iterable[Any], workers: int) -> Iterator[Any]:
    with _interrupts_held_back(), _child_handler_kept(), warnings.catch_warnings():
        # Forking with threads alive is sound here: the workers touch none of the parent's locks. More workers than
        # cores is the caller's choice.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[Any] = DataLoader(
            dataset,
            sampler=keys,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=2,
            worker_init_fn=_prepare_worker,
            # Forked workers share the columns of the source with this process; a million names are not sent to each.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            # The workers' base seed, which nothing here uses, would otherwise be drawn from the global generator, and
            # the number of workers would change every later draw.
            generator=torch.Generator(),
        )
        return iter(loader)


def _as_it_is(item: Any) -> Any:
    return item


def _prepare_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group: the main process alone decides and speaks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Let children be born with Ctrl-C blocked, so that none dies with a traceback before it is prepared."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _child_handler_kept() -> Iterator[None]:
    """Undo torch's SIGCHLD handler, which raises wherever the main thread happens to be.

    Without it a dead worker is still found, by the next request for an item, where it can be explained.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)
