"""Batches made ready for a GPU while it works on the one before."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace

import torch

from eosin.data.loader import Batch

__all__ = ["pinned"]

_AHEAD = 2


def pinned(batches: Iterable[Batch], device: torch.device) -> Generator[Batch]:
    """Put batches into page-locked memory, from which a GPU copies without the host's help; in a thread, ahead of use.

    Args:
        batches: The batches.
        device: Where they go; for a CPU they are passed on as they are.
    """
    if device.type != "cuda":
        yield from batches
        return
    yield from ahead(_pinned(batch) for batch in batches)


def _pinned(batch: Batch) -> Batch:
    views = batch.views if batch.views is None else [view.pin_memory() for view in batch.views]
    return replace(batch, images=batch.images.pin_memory(), views=views)


def ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Take batches in a thread, up to two before they are asked for; what fails there is raised here."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
        except BaseException as error:
            put(error)
        else:
            put(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
