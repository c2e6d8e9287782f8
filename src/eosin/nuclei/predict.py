"""Nuclei of images and slides, with files for QuPath, tables, label maps and pictures; a stopped run goes on.

Of each picture the outputs are written when all its blocks are done, then a line into `pictures.jsonl`. Blocks of a
large picture lie in `.parts` until then, so that a run that was stopped, by kill -9 too, does only what is missing.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from eosin.core.config import Config
from eosin.core.console import note, progress_bar, warn
from eosin.core.errors import EosinError
from eosin.core.files import (
    append_json_line,
    atomic_file,
    directory_held,
    read_json_lines,
    short_hash,
    writable_directory,
)
from eosin.nuclei.found import Nuclei
from eosin.nuclei.geojson import ObjectType, write_geojson
from eosin.nuclei.label_files import LabelFormat, write_labels, write_tiled_labels
from eosin.nuclei.overlay import write_overlay
from eosin.nuclei.pictures import Picture, open_picture
from eosin.nuclei.stream import Stream, Windows, Work, cores, works
from eosin.nuclei.tables import TableFormat, write_table
from eosin.slides import FoundSlide, TissueConfig, find_slides, given_mpp
from eosin.slides.errors import UnusableSlide

__all__ = ["RECORDS", "SETTINGS", "PredictConfig", "Prediction", "predict"]

SETTINGS = "predict.json"
"""File of what a folder of predictions was made with."""
RECORDS = "pictures.jsonl"
"""File with a line for each picture."""

_VERSION = 1
# Pictures of up to so many blocks keep them in memory: they are quickly done again.
_FEW = 4
_LONGEST = 4096


class PredictConfig(Config):
    """How nuclei are predicted, and what is written."""

    mpp: float | None = Field(None, ge=0.05, le=20.0)
    """µm/px at which the network sees; that of its training images if not given."""
    whole: bool = False
    """Look at all of a slide, not at its tissue alone."""
    tissue: TissueConfig = TissueConfig()
    """How tissue is found."""
    objects: ObjectType = "detection"
    """What QuPath makes of nuclei."""
    table: TableFormat = "parquet"
    """Format of tables."""
    labels: LabelFormat | Literal["auto", "none"] = "auto"
    """Label maps: auto is PNG of images, and none of slides, whose label maps are TIFFs in tiles if asked for."""
    overlays: bool = True
    """Draw outlines over pictures."""
    block: int = Field(2048, ge=64)
    """Side in px of the blocks in which large pictures are searched; changes speed and memory, not nuclei."""
    batch_size: int | None = Field(None, ge=1)
    """Windows a pass; 16 on a GPU and 4 elsewhere if not given."""


FREE = {"block", "batch_size"}


@dataclass(frozen=True)
class Prediction:
    """What `predict` did.

    Attributes:
        out: The folder.
        records: The line of every picture asked for.
        done: Pictures done now.
        kept: Pictures done before.
        seconds: Of this run.
        network_seconds: Of these the network was at work.
        windows: Windows it has seen.
    """

    out: Path
    records: tuple[dict[str, Any], ...]
    done: int
    kept: int
    seconds: float
    network_seconds: float
    windows: int

    @property
    def failed(self) -> tuple[dict[str, Any], ...]:
        """Lines of pictures without a result."""
        return tuple(record for record in self.records if record["status"] != "done")

    @property
    def nuclei(self) -> int:
        """Of all pictures."""
        return sum(record.get("nuclei", 0) for record in self.records)

    def __str__(self) -> str:
        """Return the closing line."""
        found = len(self.records) - len(self.failed)
        parts = [f"{self.out}: {self.nuclei:,} nuclei in {found:,} pictures"]
        parts.append(f"{self.done:,} done now in {self.seconds:,.0f} s, {self.kept:,} before")
        if self.failed:
            first = self.failed[0]
            parts.append(f"{len(self.failed):,} failed (first '{first['name']}': {first['reason']})")
        return "; ".join(parts)


def predict(
    model: Any,
    sources: Sequence[Path],
    out: Path,
    config: PredictConfig | None = None,
    *,
    source_mpp: str | None = None,
    progress: bool = True,
) -> Prediction:
    """Find the nuclei of images and slides; what is done already, by the same network and settings, is kept.

    Args:
        model: The network, `NucleiModel` or what has its attributes.
        sources: Images, slides and folders of them.
        out: The folder to write.
        config: Settings.
        source_mpp: µm/px of files: a number for those that do not say it, or a CSV of slide,mpp whatever they say.
        progress: Show a bar.

    Raises:
        EosinError: If a source or a setting is faulty, `out` is in use, holds predictions by another network or other
            settings, or cannot be written, or no picture could be predicted.
    """
    config = config or PredictConfig()
    started = time.monotonic()
    found = _outside(out, find_slides(list(sources), plain=True))
    remarks: list[str] = []
    fallback, table = given_mpp(found, source_mpp, "--source-mpp", remarks)
    mpp = config.mpp if config.mpp is not None else model.mpp
    writable_directory(out)
    with directory_held(out), _stopped_alike():
        _agree(out, model, config, mpp)
        for remark in remarks:
            warn(remark)
        before = _records(out)
        missing = [file for file in found if not _current(out, before.get(file.name), file, table.get(file.name))]
        run = _Run(model, out, config, mpp, fallback, table)
        if missing:
            with _display(len(missing), progress) as shown:
                run.all(missing, shown)
            with contextlib.suppress(OSError):
                (out / ".parts").rmdir()
        records = _records(out)
    asked = [records[file.name] for file in found if file.name in records]
    result = Prediction(
        out,
        tuple(asked),
        done=len(missing) - run.failures,
        kept=len(found) - len(missing),
        seconds=time.monotonic() - started,
        network_seconds=run.network_seconds,
        windows=run.windows,
    )
    if len(result.failed) == len(asked):
        first = result.failed[0]
        raise EosinError(f"{first['path']}: {first['reason']}{_more(len(asked) - 1)}")
    return result


def _more(count: int) -> str:
    return f" ({count:,} more pictures failed, see {RECORDS})" if count else ""


@contextlib.contextmanager
def _stopped_alike() -> Iterator[None]:
    """Let SIGTERM, which schedulers send when a job's time is over, end a run as tidily as Ctrl-C."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _outside(out: Path, found: Sequence[FoundSlide]) -> list[FoundSlide]:
    """Leave out what earlier runs wrote, where the output lies in a folder of pictures."""
    written = out.resolve()
    left = [file for file in found if written not in file.path.resolve().parents]
    if not left:
        raise EosinError(f"{out}: is where predictions go, and holds all the pictures given; choose another --out")
    return left


def _agree(out: Path, model: Any, config: PredictConfig, mpp: float | None) -> None:
    """Make sure that what lies in the folder was made the same way, and write down how."""
    settings = {name: value for name, value in config.plain().items() if name not in FREE}
    wanted: dict[str, Any] = {
        "version": _VERSION,
        "model": {"name": model.name, "fingerprint": model.fingerprint, "classes": list(model.classes)},
        "settings": {**settings, "mpp": mpp},
    }
    path = out / SETTINGS
    if path.exists():
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = [name for name in wanted["settings"] if there["settings"].get(name) != wanted["settings"][name]]
            other = there["model"]["fingerprint"] != model.fingerprint or there["version"] != _VERSION
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise EosinError(f"{path}: damaged; remove {out}, or choose another --out") from None
        if other or differing:
            what = "another network" if other else f"other settings ({', '.join(differing)})"
            raise EosinError(f"{out}: holds predictions by {what}; choose another --out")
        return
    if any(out.glob("[!.]*")):
        raise EosinError(f"{out}: holds other files; choose another --out")
    with atomic_file(path, "w") as file:
        json.dump(wanted, file, indent=1, ensure_ascii=False)


def _records(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last line of each picture."""
    return {record["name"]: record for record in read_json_lines(out / RECORDS)}


def _state(file: FoundSlide, given: float | None) -> dict[str, Any]:
    """What must not change for a prediction to stay."""
    stat = file.path.stat()
    return {"path": str(file.path), "bytes": stat.st_size, "modified": stat.st_mtime_ns, "given_mpp": given}


def _current(out: Path, record: dict[str, Any] | None, file: FoundSlide, given: float | None) -> bool:
    if record is None or record["status"] != "done":
        return False
    try:
        state = _state(file, given)
    except OSError:
        return False
    return all(record["file"][name] == state[name] for name in state) and all(
        (out / name).is_file() for name in record["outputs"].values()
    )


class _Display:
    """Progress: pictures, and blocks of the one at work."""

    def __init__(self, pictures: int, shown: bool) -> None:
        self._bar = progress_bar("nuclei") if shown else None
        self._found = 0
        if self._bar is not None:
            self._pictures = self._bar.add_task("pictures", total=pictures, nuclei="")
            self._blocks = self._bar.add_task("blocks", total=0, nuclei="")

    def __enter__(self) -> _Display:
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


def _display(pictures: int, shown: bool) -> _Display:
    return _Display(pictures, shown)


@dataclass
class _Open:
    """A picture at work."""

    file: FoundSlide
    state: dict[str, Any]
    folder: Path
    """Of its blocks."""
    kept: bool
    """Whether blocks lie on the disk."""
    parts: dict[int, Nuclei | Path] = field(default_factory=dict)
    failure: str = ""
    started: float = field(default_factory=time.monotonic)


class _Run:
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
        self._open: dict[Picture, _Open] = {}
        self.failures = 0
        self.network_seconds = 0.0
        self.windows = 0

    def all(self, missing: Sequence[FoundSlide], shown: _Display) -> None:
        """Predict pictures, one after the other; those that fail are written down and told."""
        with self._stream() as stream, contextlib.closing(self._asked(missing, stream, shown)) as asked:
            try:
                for work, found in stream.run(asked):
                    opened = self._open[work.picture]
                    opened.failure = opened.failure or work.failure
                    if work.core is None:
                        self._close(work.picture)
                        shown.picture()
                        continue
                    if found is not None and not opened.failure:
                        self._keep(opened, work, found)
                    shown.block(0 if found is None else len(found))
            finally:
                self.network_seconds, self.windows = stream.network_seconds, stream.windows
                for picture in self._open:
                    picture.close()

    def _stream(self) -> Stream:
        on_gpu = getattr(getattr(self._model, "device", None), "type", "cpu") != "cpu"
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
            batch_size=self._config.batch_size or (16 if on_gpu else 4),
            readers=min(8, cores()),
            finders=min(4, max(1, cores() - 2)) if on_gpu else 0,
            folder=self._out,
        )

    def _asked(self, missing: Sequence[FoundSlide], stream: Stream, shown: _Display) -> Generator[Work]:
        """Open pictures when their turn comes, and list their blocks."""
        for file in missing:
            given = self._table.get(file.name)
            try:
                state = _state(file, given)
                picture = open_picture(file, mpp=self._mpp, source_mpp=given, fallback_mpp=self._fallback)
            except (UnusableSlide, OSError) as reason:
                self._fail(file, getattr(reason, "strerror", None) or str(reason))
                shown.picture()
                continue
            for told in picture.notes:
                note(f"{file.name}: {told}")
            blocks = works(picture, self._side())
            kept = len(blocks) - 1 > _FEW
            folder = self._out / ".parts" / short_hash(file.name, state, self._config.plain(), self._mpp)
            opened = _Open(file, state, folder, kept)
            self._open[picture] = opened
            if kept:
                writable_directory(folder)
                opened.parts = {int(part.stem): part for part in folder.glob("*.npz")}
            left = [work for work in blocks if work.number not in opened.parts]
            try:
                tissue = picture.looked_at(self._model.output, None if self._config.whole else self._config.tissue)
            except UnusableSlide as reason:
                opened.failure = str(reason)
                left, tissue = left[-1:], np.zeros((1, 1), dtype=bool)
            stream.expect(picture, tissue, left)
            shown.opened(len(left) - 1)
            yield from left

    def _side(self) -> int:
        """Side of blocks: a multiple of an output, so that few windows are at work for two blocks."""
        output = self._model.output
        return (
            max(1, round(self._config.block / output)) * output if self._config.block > output else self._config.block
        )

    def _keep(self, opened: _Open, work: Work, found: Nuclei) -> None:
        if not opened.kept:
            opened.parts[work.number] = found
            return
        path = opened.folder / f"{work.number:06d}.npz"
        found.save(path)
        opened.parts[work.number] = path

    def _fail(self, file: FoundSlide, reason: str) -> None:
        self.failures += 1
        append_json_line(
            self._out / RECORDS, {"name": file.name, "path": str(file.path), "status": "failed", "reason": reason}
        )
        warn(f"{file.path}: {reason}")

    def _close(self, picture: Picture) -> None:
        """Write the outputs of a picture whose blocks are done, and the line that says so."""
        opened = self._open.pop(picture)
        try:
            if not opened.failure:
                try:
                    record = self._write(picture, opened)
                except UnusableSlide as reason:
                    opened.failure = str(reason)
            if opened.failure:
                self._fail(opened.file, opened.failure)
                return
            append_json_line(self._out / RECORDS, record)
        finally:
            picture.close()
        shutil.rmtree(opened.folder, ignore_errors=True)

    def _write(self, picture: Picture, opened: _Open) -> dict[str, Any]:
        config, classes = self._config, self._model.classes
        numbers = sorted(opened.parts)

        def parts() -> Iterator[Nuclei]:
            for number in numbers:
                yield _loaded(opened.parts[number])

        counts = Counter[int]()
        total = 0
        for part in parts():
            total += len(part)
            counts.update(part.types.tolist())
        outputs = {}
        place = {"step": picture.step, "mpp": picture.mpp, "classes": classes}
        path = self._place("geojson", picture.name, ".geojson")
        write_geojson(parts(), path, objects=config.objects, name=f"{self._model.fingerprint}/{picture.name}", **place)
        outputs["geojson"] = path
        path = self._place("tables", picture.name, f".{config.table}")
        write_table(parts(), path, form=config.table, **place)
        outputs["table"] = path
        form = config.labels if config.labels != "auto" else ("png" if picture.kind == "image" else "none")
        if form != "none":
            outputs["labels"] = self._write_labels(picture, parts, form)
        if config.overlays:
            path = self._place("overlays", picture.name, ".png")
            pixels, factor = picture.thumbnail(_LONGEST)
            write_overlay(pixels, parts(), path, factor, classes)
            outputs["overlay"] = path
        names = ["background", *classes] if classes else []
        return {
            "name": picture.name,
            "path": str(picture.path),
            "status": "done",
            "kind": picture.kind,
            "nuclei": total,
            "types": {name: counts[kind] for kind, name in enumerate(names) if counts[kind] or kind},
            "width": picture.width,
            "height": picture.height,
            "mpp": picture.mpp,
            "step": list(picture.step),
            "seconds": round(time.monotonic() - opened.started, 3),
            "file": opened.state,
            "outputs": {kind: str(file.relative_to(self._out)) for kind, file in outputs.items()},
        }

    def _write_labels(self, picture: Picture, parts: Any, form: LabelFormat) -> Path:
        path = self._place("labels", picture.name, "")
        if picture.kind == "slide":
            return write_tiled_labels(list(parts()), picture.width, picture.height, path, picture.mpp)
        canvas = np.zeros((picture.height, picture.width), dtype=np.uint32)
        first = 1
        for part in parts():
            part.paint(canvas, (0, 0), first)
            first += len(part)
        return write_labels(canvas, path, form)

    def _place(self, kind: str, name: str, suffix: str) -> Path:
        """Return where an output goes, and make its folder; names may hold folders."""
        path = self._out / kind / f"{name}{suffix}"
        writable_directory(path.parent)
        return path


def _loaded(part: Nuclei | Path) -> Nuclei:
    if isinstance(part, Nuclei):
        return part
    found = Nuclei.load(part)
    if found is None:
        raise EosinError(f"{part}: damaged; remove it and run the same command again")
    return found
