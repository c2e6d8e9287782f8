"""One run over pictures: opened when their turn comes, their blocks kept, their outputs written."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter, deque
from collections.abc import Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from eosin.core.console import note, progress_bar, warn
from eosin.core.errors import EosinError
from eosin.core.files import append_json_line, short_hash, writable_directory
from eosin.nuclei.finders import Finders
from eosin.nuclei.found import Nuclei, loaded
from eosin.nuclei.outputs import Outputs
from eosin.nuclei.pictures import Picture, open_picture
from eosin.nuclei.predictions import RECORDS, PredictConfig, state_of
from eosin.nuclei.results import Results, remove_unfinished
from eosin.nuclei.stream import Stream, Windows, Work, cores, works
from eosin.slides import FoundSlide
from eosin.slides.errors import UnusableSlide

__all__ = ["Display", "PredictRun"]

# Images of up to so many blocks keep them in memory: they are quickly done again.
_FEW = 4
# Blocks that may wait to be written.
_SAVES = 2
# Seconds in which a stopped run ends the files that it is writing.
_PATIENCE = 5.0
# Pictures, and slides among them, whose files are being written while the network is at the next ones.
_CLOSING = 8
_SLIDES_CLOSING = 2


class Display:
    """Progress: pictures, and blocks of the one at work."""

    def __init__(self, pictures: int, shown: bool) -> None:
        self._bar = progress_bar("nuclei") if shown else None
        self._found = 0
        if self._bar is not None:
            self._pictures = self._bar.add_task("pictures", total=pictures, nuclei="")
            self._blocks = self._bar.add_task("blocks", total=0, nuclei="")

    def __enter__(self) -> Display:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def opened(self, blocks: int) -> None:
        """Blocks were added to what is to do."""
        if self._bar is not None:
            total = self._bar.tasks[self._blocks].total or 0
            self._bar.update(self._blocks, total=total + blocks)

    def block(self, nuclei: int) -> None:
        """A block is done."""
        self._found += nuclei
        if self._bar is not None:
            self._bar.update(self._blocks, advance=1, nuclei=f"{self._found:,} nuclei")

    def picture(self) -> None:
        """A picture is done."""
        if self._bar is not None:
            self._bar.advance(self._pictures)


@dataclass
class _Open:
    """A picture at work."""

    file: FoundSlide
    state: dict[str, Any]
    folder: Path
    """Of its blocks."""
    results: Results
    outputs: Outputs | None = None
    """Files that are written while the blocks come; None where all are written at the end."""
    parts: dict[int, Nuclei | Path] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    """Blocks done by an earlier run that no output has yet."""
    counts: Counter[int] = field(default_factory=Counter)
    """Nuclei by type."""
    saves: deque[Future[None]] = field(default_factory=deque)
    """Parts that are being written."""
    failure: str = ""
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0


class PredictRun:
    """One run over the pictures that are missing."""

    def __init__(
        self,
        model: Any,
        out: Path,
        config: PredictConfig,
        mpp: float | None,
        fallback: float | None,
        table: dict[str, float],
    ) -> None:
        self._model, self._out, self._config, self._mpp = model, out, config, mpp
        self._fallback, self._table = fallback, table
        self._on_gpu = model.device.type != "cpu"
        self._open: dict[Picture, _Open] = {}
        self._closing: deque[tuple[Picture, _Open, Future[dict[str, Path]]]] = deque()
        self._closers = ThreadPoolExecutor(1)
        self._stopped = Event()
        self._pool: Finders | None = None
        self.failures = 0
        self.network_seconds = 0.0
        self.windows = 0

    def all(self, missing: Sequence[FoundSlide], shown: Display) -> None:
        """Predict pictures, one after the other; those that fail are written down and told."""
        remove_unfinished(self._out)
        with (
            self._stream() as stream,
            ThreadPoolExecutor(1) as self._saver,
            contextlib.closing(self._asked(missing, stream, shown)) as asked,
        ):
            self._pool = stream.pool
            try:
                for work, found in stream.run(asked):
                    opened = self._open[work.picture]
                    opened.failure = opened.failure or work.failure
                    if work.core is None:
                        self._close(work.picture)
                    else:
                        if found is not None and not opened.failure:
                            self._keep(opened, work, found)
                        shown.block(0 if found is None else len(found))
                    self._settle(shown, _CLOSING, _SLIDES_CLOSING)
                self._settle(shown)
            finally:
                self.network_seconds, self.windows = stream.network_seconds, stream.windows
                self._leave()

    def _stream(self) -> Stream:
        settings = self._model.postprocess
        if settings.normalise == "official":
            note("slopes are scaled by a constant, not by the image's own, so that blocks of a picture agree")
        # At another resolution than it learned at, nuclei have another size.
        own = self._model.mpp
        scale = settings.scale if own is None or self._mpp is None else settings.scale * own / self._mpp
        if own is None and self._mpp is not None:
            scale = 0.25 / self._mpp
        model: Windows = self._model
        return Stream(
            model,
            scale=scale,
            batch_size=self._config.batch_size or (16 if self._on_gpu else 4),
            readers=min(8, cores()),
            finders=min(8, max(2, cores() - 2)) if self._on_gpu else 0,
            folder=self._out,
        )

    def _asked(self, missing: Sequence[FoundSlide], stream: Stream, shown: Display) -> Generator[Work]:
        """Open pictures when their turn comes, and list their blocks."""
        for file in missing:
            given = self._table.get(file.name)
            try:
                state = state_of(file, given)
                picture = open_picture(file, mpp=self._mpp, source_mpp=given, fallback_mpp=self._fallback)
            except (UnusableSlide, OSError) as reason:
                self._fail(file, getattr(reason, "strerror", None) or str(reason))
                shown.picture()
                continue
            for told in picture.notes:
                note(f"{file.name}: {told}")
            blocks = works(picture, self._side())
            kept = picture.kind == "slide" or len(blocks) - 1 > _FEW
            folder = self._out / ".parts" / short_hash(file.name, state, self._config.plain(), self._mpp, self._side())
            opened = _Open(file, state, folder, Results.of(picture, self._model, self._config, self._out))
            self._open[picture] = opened
            if kept:
                writable_directory(folder)
                opened.parts = {int(part.stem): part for part in folder.glob("*.npz")}
                opened.waiting = deque(sorted(opened.parts))
            left = [work for work in blocks if work.number not in opened.parts]
            try:
                tissue = picture.looked_at(self._model.output, None if self._config.whole else self._config.tissue)
            except UnusableSlide as reason:
                opened.failure = str(reason)
                left, tissue = left[-1:], np.zeros((1, 1), dtype=bool)
            if kept and not opened.failure:
                opened.outputs = opened.results.begin(picture, stream.pool)
            stream.expect(picture, tissue, left)
            shown.opened(len(left) - 1)
            yield from left

    def _side(self) -> int:
        """Side of blocks: a multiple of an output, so that few windows are at work for two blocks."""
        output: int = self._model.output
        side = self._config.block or 1024
        return round(side / output) * output if side > output else side

    def _give(self, opened: _Open, before: int | None = None) -> None:
        """Bring what an earlier run did to the outputs, up to a block."""
        while opened.waiting and (before is None or opened.waiting[0] < before):
            self._add(opened, loaded(opened.parts[opened.waiting.popleft()]))

    def _add(self, opened: _Open, part: Nuclei) -> None:
        assert opened.outputs is not None
        opened.counts.update(part.types.tolist())
        opened.outputs.add(part)

    def _keep(self, opened: _Open, work: Work, found: Nuclei) -> None:
        if opened.outputs is None:
            opened.counts.update(found.types.tolist())
            opened.parts[work.number] = found
            return
        try:
            self._give(opened, work.number)
            self._add(opened, found)
        except UnusableSlide as reason:
            # What outlines are drawn over cannot be read.
            opened.failure = str(reason)
            return
        path = opened.folder / f"{work.number:06d}.npz"
        opened.parts[work.number] = path
        # Compression takes time in which the next block's maps are put together.
        opened.saves.append(self._saver.submit(found.save, path))
        while len(opened.saves) > _SAVES or (opened.saves and opened.saves[0].done()):
            opened.saves.popleft().result()

    def _fail(self, file: FoundSlide, reason: str) -> None:
        self.failures += 1
        append_json_line(
            self._out / RECORDS, {"name": file.name, "path": str(file.path), "status": "failed", "reason": reason}
        )
        warn(f"{file.path}: {reason}")

    def _close(self, picture: Picture) -> None:
        """Have the files of a picture whose blocks are done written, beside what comes."""
        opened = self._open[picture]
        files: Future[dict[str, Path]] = Future()
        picture.close_readers()
        try:
            shown = None if opened.outputs or opened.failure else opened.results.shown(picture)
        except UnusableSlide as reason:
            opened.failure = str(reason)
        if opened.failure:
            files.set_exception(UnusableSlide(opened.failure))
        elif opened.outputs is not None:
            files = self._closers.submit(self._finish, picture, opened)
        else:
            parts = [loaded(opened.parts[number]) for number in sorted(opened.parts)]
            files = (self._pool or self._closers).submit(opened.results.write, parts, shown)
            picture.close()
        files.add_done_callback(lambda _: setattr(opened, "ended", time.monotonic()))
        # In this order, whatever interrupts it, the picture is in one of the two.
        self._closing.append((picture, opened, files))
        del self._open[picture]

    def _finish(self, picture: Picture, opened: _Open) -> dict[str, Path]:
        """Bring the rest to the outputs, and write what is made of all blocks."""
        assert opened.outputs is not None
        for save in opened.saves:
            save.result()
        self._give(opened)
        opened.outputs.finish()
        picture.close()
        parts = [opened.parts[number] for number in sorted(opened.parts)]
        return opened.results.files(opened.results.write_labels(parts, self._go_on))

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise CancelledError

    def _settle(self, shown: Display, most: int = 0, slides: int = 0) -> None:
        """Note pictures whose files are written, and wait while more than so many, or so many slides, are not."""
        while self._closing and (
            self._closing[0][2].done()
            or len(self._closing) > most
            or sum(opened.outputs is not None for _, opened, _ in self._closing) > slides
        ):
            picture, opened, files = self._closing[0]
            try:
                self._note(picture, opened, files.result())
                picture.close()
            except UnusableSlide as reason:
                self._abandon(picture, opened)
                self._fail(opened.file, str(reason))
            self._closing.popleft()
            shown.picture()

    def _note(self, picture: Picture, opened: _Open, files: dict[str, Path]) -> None:
        """Say in a line that a picture is done."""
        classes = self._model.classes
        names = ["background", *classes] if classes else []
        record = {
            "name": picture.name,
            "path": str(picture.path),
            "status": "done",
            "kind": picture.kind,
            "nuclei": opened.counts.total(),
            "types": {name: opened.counts[kind] for kind, name in enumerate(names) if opened.counts[kind] or kind},
            "width": picture.width,
            "height": picture.height,
            "mpp": picture.mpp,
            "step": list(picture.step),
            "seconds": round((opened.ended or time.monotonic()) - opened.started, 3),
            "file": opened.state,
            "bytes": {kind: file.stat().st_size for kind, file in files.items()},
            "outputs": {kind: str(file.relative_to(self._out)) for kind, file in files.items()},
        }
        append_json_line(self._out / RECORDS, record)
        shutil.rmtree(opened.folder, ignore_errors=True)

    def _abandon(self, picture: Picture, opened: _Open) -> None:
        """Leave nothing of a picture half written, and no file of it open."""
        if opened.outputs is None or opened.outputs.abandon():
            picture.close()

    def _leave(self) -> None:
        """Leave nothing half written and no file open, whatever ended the run; note what is whole."""
        self._stopped.set()
        for picture, opened in self._open.items():
            self._abandon(picture, opened)
        closing = [each for each in self._closing if not each[2].cancel()]
        wait([files for _, _, files in closing], timeout=_PATIENCE)
        for picture, opened, files in self._closing:
            if files.done() and not files.cancelled() and files.exception() is None:
                with contextlib.suppress(EosinError):
                    self._note(picture, opened, files.result())
            self._abandon(picture, opened)
        self._closers.shutdown(wait=True, cancel_futures=True)
