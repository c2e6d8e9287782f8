"""Reading ahead in worker processes, in order, whatever their number."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sized
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from eosin.core.errors import EosinError
from eosin.core.server import end_with_parent, server_context, signals_held_back

__all__ = ["Reader", "default_workers", "read_ahead", "script_left_out"]

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 (what could not be filled there is removed)

K = TypeVar("K", contravariant=True)
V = TypeVar("V", covariant=True)


class Reader(Protocol, Generic[K, V]):
    """What runs in a worker: a pure function of the key, of an importable kind, and small to pickle."""

    def __call__(self, key: K, /) -> V:
        """Return the item of a key."""


def default_workers() -> int:
    """Return how many loading processes suit this process: its share of the cores it may use, at most 16.

    On a single core the loading is left to the main process (0).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return 0 if share <= 1 else min(share, 16)


def read_ahead(reader: Reader[K, V], keys: Iterable[K], workers: int) -> Iterator[V]:
    """Yield `reader(key)` for each key, in order.

    Args:
        reader: Called in the workers, or here when there are none.
        keys: What to read; drawn in this process, up to two for each worker before they are needed.
        workers: Number of processes; each has up to two items under way or waiting.

    Raises:
        EosinError: As raised by the reader, or when a worker is killed.
    """
    if workers <= 0 or not keys:
        for key in keys:
            yield reader(key)
        return
    try:
        most = len(keys) if isinstance(keys, Sized) else workers
        iterator = _start(_Guarded(reader), keys, min(workers, most))
    except (ConnectionError, EOFError) as error:
        # The process that starts the workers has gone; as a broken pipe it would pass for a reader that closed ours.
        raise _killed(str(error) or type(error).__name__) from None
    try:
        while True:
            killed = ""
            try:
                item = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                killed = str(error).splitlines()[0]
                if "exited unexpectedly" not in killed:
                    raise
            if killed:
                # Raised here and not above: as its cause the first error would keep the other workers alive.
                raise _killed(killed)
            if isinstance(item, EosinError):
                raise item
            yield item
    finally:
        # The workers end with the iterator.
        del iterator


def _killed(reason: str) -> EosinError:
    return EosinError(
        "a loading process was killed, most often for want of memory or of room in /dev/shm; use fewer workers or a "
        f"smaller batch ({reason})"
    )


class _Guarded(Dataset[Any]):
    """Hands an `EosinError` over as a value: raised in a worker it would arrive with a traceback in its message."""

    def __init__(self, reader: Reader[Any, Any]) -> None:
        self.reader = reader

    def __getitem__(self, key: Any) -> Any:
        try:
            item = self.reader(key)
            if get_worker_info() is not None:
                _share(item)
            return item
        except EosinError as error:
            return error


def _share(item: Any) -> None:
    """Move an item's tensors to shared memory, here where a lack of it can be told.

    Moved by the thread that sends them, they would be lost, and the main process would wait for them for ever.
    """
    if isinstance(item, tuple | list):
        for part in item:
            _share(part)
    elif isinstance(item, torch.Tensor):
        try:
            item.share_memory_()
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            # torch leaves the file that it could not fill.
            for name in re.findall(r"</(torch_\w+)>", str(error)):
                Path(_SHARED_MEMORY, name).unlink(missing_ok=True)
            needed = item.untyped_storage().nbytes() / 1e6
            raise EosinError(
                f"no room in {_SHARED_MEMORY} for a batch from a loading process ({needed:,.0f} MB); give it more, "
                "such as docker run --shm-size 8g, or use fewer workers or a smaller batch"
            ) from None


def _start(dataset: Dataset[Any], keys: Iterable[Any], workers: int) -> Iterator[Any]:
    with signals_held_back(), _child_handler_kept(), script_left_out(), warnings.catch_warnings():
        # More workers than cores is the caller's choice.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader: DataLoader[Any] = DataLoader(
            dataset,
            sampler=keys,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=2,
            worker_init_fn=_prepare_worker,
            multiprocessing_context=_context(),
            # The workers' base seed, which nothing here uses, would otherwise be drawn from the global generator, and
            # the number of workers would change every later draw.
            generator=torch.Generator(),
        )
        return iter(loader)


def _context() -> BaseContext:
    """Choose how workers start.

    A fork is immediate and shares the source's columns, but copies every lock as it stands: a thread that imports or
    draws at that moment leaves its lock shut in the child for good. So it is used only while no other thread lives.
    """
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    return server_context("eosin.data.loader")


@contextlib.contextmanager
def script_left_out() -> Iterator[None]:
    """Keep new processes from running the user's script again: readers are importable and need nothing from it.

    A script without `if __name__ == "__main__"` would start itself over in every worker.
    """
    main = vars(sys.modules["__main__"])
    held: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main["__spec__"] = None
    main.pop("__file__", None)
    try:
        yield
    finally:
        main.update(held)


def _as_it_is(item: Any) -> Any:
    return item


def _prepare_worker(_: int) -> None:
    # Signals reach the whole process group: the main process alone decides and speaks.
    end_with_parent()


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
