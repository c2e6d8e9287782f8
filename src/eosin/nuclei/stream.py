"""From pictures to the nuclei of their blocks, the network kept busy.

Threads read strips of windows ahead; the network runs in a thread of its own, one batch while the next is made ready;
blocks whose maps are there are searched for nuclei meanwhile, by processes where the network is on a GPU. What the
network said of a window is kept until no block needs it any more: in memory up to a limit, then in a file, so that
memory does not grow with the slide.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from eosin.nuclei.finders import Finders
from eosin.nuclei.found import Nuclei
from eosin.nuclei.pictures import Picture, Strip
from eosin.nuclei.postprocess import Floats32
from eosin.nuclei.shelf import Shelf
from eosin.nuclei.stitch import Box, blocks, find, margins, surroundings
from eosin.slides.errors import UnusableSlide

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Stream", "Windows", "Work", "cores", "works"]

_WIDEST_STRIP = 16
# Bytes of maps kept in memory.
_SHELF = 512 << 20
_Window = tuple[tuple[Picture, int, int], npt.NDArray[np.uint8]]

# Batches given to the network before one is asked back.
_BATCHES = 2


class Said(Protocol):
    """What a network says of windows; see `model.Maps`."""

    @property
    def np_prob(self) -> Floats32: ...
    @property
    def hv(self) -> Floats32: ...
    @property
    def tp_prob(self) -> Floats32 | None: ...


class Windows(Protocol):
    """What this module needs of a network; see `model.NucleiModel`."""

    @property
    def window(self) -> int:
        """Side of the input in px."""
        ...

    @property
    def output(self) -> int:
        """Side of the maps in px, in the middle of the window."""
        ...

    def maps(self, images: Tensor) -> Said:
        """Compute the maps of windows, uint8 [B, 3, window, window]."""
        ...


@dataclass
class Work:
    """One block of a picture, or, with `core` None, the picture's end.

    Attributes:
        picture: Of which.
        number: Of the block, counted from 0 row by row.
        core: The block's own part.
        failure: Why there is no answer, if there is none.
    """

    picture: Picture
    number: int
    core: Box | None
    failure: str = ""


@dataclass
class _Needs:
    """Of one picture: which outputs show tissue, and how many blocks still need each."""

    tissue: npt.NDArray[np.bool_]
    left: npt.NDArray[np.int32]
    asked: npt.NDArray[np.bool_]


def works(picture: Picture, side: int, done: Iterable[int] = ()) -> list[Work]:
    """List the blocks of a picture that are not done, and its end.

    Args:
        picture: Of which.
        side: Of a block's core in px.
        done: Numbers of blocks to leave out.
    """
    left = set(done)
    cores = enumerate(blocks(picture.width, picture.height, side))
    return [*(Work(picture, number, core) for number, core in cores if number not in left), Work(picture, -1, None)]


@dataclass
class _Batch:
    """Windows that the network is at, and what may go on when it is done."""

    keys: list[tuple[Picture, int, int]]
    said: Future[Said]
    ready: list[Work]


class Stream:
    """Finds the nuclei of blocks, in the order in which they are asked for; a context manager.

    Args:
        model: The network.
        scale: See `postprocess`.
        batch_size: Windows a pass.
        readers: Threads that read.
        finders: Processes that search maps for nuclei; 0 for a thread here.
        folder: Where maps go that do not fit into memory.
        shelf: Bytes of maps kept in memory; 512 MiB if not given.

    Attributes:
        pool: The processes that search; None where there are none.
        network_seconds: How long the network was at work.
        windows: Windows it has seen.
    """

    def __init__(
        self,
        model: Windows,
        *,
        scale: float = 1.0,
        batch_size: int = 16,
        readers: int = 2,
        finders: int = 0,
        folder: Path,
        shelf: int | None = None,
    ) -> None:
        self._model = model
        self._scale = scale
        self._batch_size = batch_size
        self._margins = margins(scale)
        self._shelf = Shelf(_SHELF if shelf is None else shelf, folder)
        self._needs: dict[Picture, _Needs] = {}
        self._readers = ThreadPoolExecutor(readers)
        self._ahead = 2 * readers
        self._network = ThreadPoolExecutor(1)
        self.pool = Finders(finders) if finders else None
        self._finders: Finders | Executor = self.pool or ThreadPoolExecutor(1)
        self._searching = max(1, finders) + 1
        self.network_seconds = 0.0
        self.windows = 0

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._readers, self._network, self._finders):
            pool.shutdown(wait=True, cancel_futures=True)

    def expect(self, picture: Picture, tissue: npt.NDArray[np.bool_], asked: Iterable[Work]) -> None:
        """Announce a picture before its blocks come.

        Args:
            picture: Which.
            tissue: bool [rows, columns], see `Picture.looked_at`.
            asked: The blocks that will be asked for.
        """
        left = np.zeros(tissue.shape, dtype=np.int32)
        for work in asked:
            if work.core is not None and tissue[self._outputs(work.core)].any():
                left[self._outputs(self._block(work, 0))] += 1
        self._needs[picture] = _Needs(tissue, left, np.zeros(tissue.shape, dtype=bool))

    def _block(self, work: Work, width: int) -> Box:
        assert work.core is not None
        return surroundings(work.core, self._margins[width], work.picture.width, work.picture.height)

    def _outputs(self, box: Box) -> tuple[slice, slice]:
        """Rows and columns of the outputs that a part of a picture lies in."""
        output = self._model.output
        return slice(box.y0 // output, -(-box.y1 // output)), slice(box.x0 // output, -(-box.x1 // output))

    def run(self, asked: Iterable[Work]) -> Iterator[tuple[Work, Nuclei | None]]:
        """Find the nuclei of blocks, in their order; None where there is no tissue, or the picture failed."""
        searched: deque[tuple[Work, Future[Nuclei | None] | None]] = deque()
        for work in self._mapped(asked):
            searched.append((work, self._search(work)))
            while len(searched) > self._searching or (searched and _done(searched[0][1])):
                yield self._answer(*searched.popleft())
        while searched:
            yield self._answer(*searched.popleft())

    def _search(self, work: Work, width: int = 0) -> Future[Nuclei | None] | None:
        """Begin to search a block whose maps are there."""
        needs = self._needs[work.picture]
        if work.core is None or work.failure or not needs.tissue[self._outputs(work.core)].any():
            return None
        block = self._block(work, width)
        probability, hv, types = self._assembled(work.picture, block)
        if width == 0:
            self._release(work.picture, block)
        size = work.picture.width, work.picture.height
        last = width == len(self._margins) - 1
        return self._finders.submit(find, probability, hv, types, block, work.core, size, scale=self._scale, last=last)

    def _answer(self, work: Work, search: Future[Nuclei | None] | None) -> tuple[Work, Nuclei | None]:
        if work.core is None:
            needs = self._needs.pop(work.picture)
            for row, column in np.argwhere(needs.asked):
                self._shelf.drop((work.picture, int(row), int(column)))
        if search is None:
            return work, None
        found = search.result()
        for width in range(1, len(self._margins)):
            if found is not None:
                break
            try:
                found = self._wider(work, width)
            except UnusableSlide as reason:
                work.failure = str(reason)
                return work, None
        return work, found

    def _wider(self, work: Work, width: int) -> Nuclei | None:
        """Look at a block with a wider margin: the windows that are gone or were not looked at yet are looked at."""
        needs = self._needs[work.picture]
        place = self._outputs(self._block(work, width))
        wanted = np.zeros_like(needs.tissue)
        wanted[place] = needs.tissue[place]
        for row, column in np.argwhere(wanted):
            wanted[row, column] = (work.picture, int(row), int(column)) not in self._shelf
        fetched = []
        for strip in _strips(wanted):
            pixels = work.picture.windows(strip, self._model.window, self._model.output)
            keys = [(work.picture, strip.row, column) for column in range(strip.first, strip.stop)]
            for start in range(0, len(keys), self._batch_size):
                batch = keys[start : start + self._batch_size]
                said = self._network.submit(self._pass, list(pixels[start : start + self._batch_size])).result()
                self._put(batch, said)
            fetched += keys
        again = self._search(work, width)
        for key in fetched:
            # Blocks to come will bring it themselves, if they need it.
            if not needs.asked[key[1], key[2]] or not needs.left[key[1], key[2]]:
                self._shelf.drop(key)
        assert again is not None
        return again.result()

    def _mapped(self, asked: Iterable[Work]) -> Iterator[Work]:
        """Pass on each block when the maps that it needs are on the shelf."""
        running: deque[_Batch] = deque()
        keys: list[tuple[Picture, int, int]] = []
        pixels: list[npt.NDArray[np.uint8]] = []
        waiting: list[Work] = []
        with contextlib.closing(self._read(asked)) as read:
            for item in read:
                if isinstance(item, Work):
                    if keys:
                        # Its windows are in the batch that is being filled.
                        waiting.append(item)
                    elif running:
                        running[-1].ready.append(item)
                    else:
                        yield item
                    continue
                keys.append(item[0])
                pixels.append(item[1])
                if len(keys) == self._batch_size:
                    running.append(_Batch(keys, self._network.submit(self._pass, pixels), waiting))
                    keys, pixels, waiting = [], [], []
                    if len(running) > _BATCHES:
                        yield from self._finished(running.popleft())
            if keys:
                running.append(_Batch(keys, self._network.submit(self._pass, pixels), waiting))
        while running:
            yield from self._finished(running.popleft())

    def _finished(self, batch: _Batch) -> list[Work]:
        self._put(batch.keys, batch.said.result())
        return batch.ready

    def _pass(self, pixels: list[npt.NDArray[np.uint8]]) -> Said:
        import torch

        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        started = time.perf_counter()
        said = self._model.maps(images)
        self.network_seconds += time.perf_counter() - started
        self.windows += len(pixels)
        return said

    def _put(self, keys: list[tuple[Picture, int, int]], said: Said) -> None:
        kinds = None if said.tp_prob is None else said.tp_prob.argmax(axis=1).astype(np.uint8)
        for place, key in enumerate(keys):
            if key in self._shelf:
                continue
            data = said.np_prob[place].astype(np.float32).tobytes() + said.hv[place].astype(np.float32).tobytes()
            self._shelf.put(key, data if kinds is None else data + kinds[place].tobytes())

    def _read(self, asked: Iterable[Work]) -> Generator[Work | _Window]:
        """Read windows ahead, each block behind the last window that it needs."""
        ahead: deque[tuple[Work, Strip | None, Future[npt.NDArray[np.uint8]] | None]] = deque()
        window, output = self._model.window, self._model.output
        failed: dict[Picture, str] = {}
        try:
            for work in asked:
                for strip in self._missing(work):
                    ahead.append((work, strip, self._readers.submit(work.picture.windows, strip, window, output)))
                    while len(ahead) > self._ahead:
                        yield from _opened(ahead.popleft(), failed)
                ahead.append((work, None, None))
                # Pictures of which nothing is left to read are not all opened first.
                while len(ahead) > self._ahead:
                    yield from _opened(ahead.popleft(), failed)
            while ahead:
                yield from _opened(ahead.popleft(), failed)
        finally:
            for _, _, pending in ahead:
                if pending is not None:
                    pending.cancel()

    def _missing(self, work: Work) -> Iterator[Strip]:
        """Windows that a block needs and no block before it needed."""
        needs = self._needs[work.picture]
        if work.core is None or not needs.tissue[self._outputs(work.core)].any():
            return
        place = self._outputs(self._block(work, 0))
        wanted = np.zeros_like(needs.tissue)
        wanted[place] = needs.tissue[place] & ~needs.asked[place]
        needs.asked |= wanted
        yield from _strips(wanted)

    def _assembled(self, picture: Picture, block: Box) -> tuple[Floats32, Floats32, npt.NDArray[np.uint8] | None]:
        """Put the maps of a block together; where there is no tissue there is no nucleus."""
        output = self._model.output
        pixels = output * output
        probability = np.zeros((block.height, block.width), dtype=np.float32)
        hv = np.zeros((2, block.height, block.width), dtype=np.float32)
        types: npt.NDArray[np.uint8] | None = None
        rows, columns = self._outputs(block)
        for row in range(rows.start, rows.stop):
            for column in range(columns.start, columns.stop):
                data = self._shelf.get((picture, row, column))
                if data is None:
                    continue
                values = np.frombuffer(data, dtype=np.float32, count=3 * pixels).reshape(3, output, output)
                x, y = column * output, row * output
                part = Box(max(x, block.x0), max(y, block.y0), min(x + output, block.x1), min(y + output, block.y1))
                into, out_of = part.within(block), part.within(Box(x, y, x + output, y + output))
                probability[into] = values[0][out_of]
                hv[(slice(None), *into)] = values[(slice(1, 3), *out_of)]
                if len(data) > 12 * pixels:
                    types = np.zeros(probability.shape, dtype=np.uint8) if types is None else types
                    kinds = np.frombuffer(data, dtype=np.uint8, offset=12 * pixels).reshape(output, output)
                    types[into] = kinds[out_of]
        return probability, hv, types

    def _release(self, picture: Picture, block: Box) -> None:
        """Take windows off the shelf that no block to come needs."""
        needs = self._needs[picture]
        place = self._outputs(block)
        needs.left[place] -= 1
        for row, column in np.argwhere(needs.left[place] == 0):
            self._shelf.drop((picture, int(row) + place[0].start, int(column) + place[1].start))


def _done(search: Future[Nuclei | None] | None) -> bool:
    return search is None or search.done()


def _strips(wanted: npt.NDArray[np.bool_]) -> Iterator[Strip]:
    """Join outputs side by side, so that what they share is read once."""
    for row in np.flatnonzero(wanted.any(axis=1)).tolist():
        columns = np.flatnonzero(wanted[row])
        for run in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1):
            for start in range(int(run[0]), int(run[-1]) + 1, _WIDEST_STRIP):
                yield Strip(row, start, min(start + _WIDEST_STRIP, int(run[-1]) + 1))


def _opened(
    item: tuple[Work, Strip | None, Future[npt.NDArray[np.uint8]] | None], failed: dict[Picture, str]
) -> Iterator[Work | _Window]:
    work, strip, pending = item
    if strip is None or pending is None:
        work.failure = work.failure or failed.get(work.picture, "")
        yield work
        return
    try:
        pixels = pending.result()
    except UnusableSlide as reason:
        failed.setdefault(work.picture, str(reason))
        return
    for place, window in enumerate(pixels):
        yield (work.picture, strip.row, strip.first + place), window


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
