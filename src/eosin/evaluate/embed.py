"""One pass of an encoder over the tiles, kept by content: the same weights, pixels and transform run once.

What is done is kept in parts (`embed_shards`) until all is: a run that was killed goes on, an array of jobs or several
devices (`embed_workers`) share the parts, and the bits are those of one undisturbed run.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from eosin.core.console import progress_bar, warn
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, short_hash, writable_directory
from eosin.data import Quarantine, Tiles
from eosin.evaluate.embed_pass import FEATURES, Pass, PixelChange, Precision, compute_parts
from eosin.evaluate.embed_shards import Layout, PartStore, read_tensors, write_tensors
from eosin.evaluate.embed_workers import Order, check_devices, run_on_devices, run_on_ray

if TYPE_CHECKING:
    from eosin.encoders import Encoder

__all__ = ["Embeddings", "PixelChange", "Places", "embed", "embedding_key", "fill", "make_pass"]

# Raised when the pixels that reach an encoder would differ: the resizing rule of `data` or this module's own steps.
_TRANSFORM = "short side to size, antialiased, by the card's filter; center crop; 1"
_FORMAT = "eosin embeddings 1"


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of the tiles that could be read.

    Attributes:
        features: float32 [n, D].
        rows: int64 [n], the row of each in the source, ascending.
        names: str [n], the tiles' names.
        total: Number of tiles in the source; `total - missing - n` were unreadable.
        key: Identity of (encoder, tiles, transform, change of the pixels).
        cached: Whether they came from the cache.
        missing: Tiles that are left to other jobs of the array.
    """

    features: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    names: npt.NDArray[np.str_]
    total: int
    key: str
    cached: bool = False
    missing: int = 0


@dataclass(frozen=True)
class Places:
    """Where a pass runs.

    Attributes:
        device: In this process; None for CUDA where there is one, else the CPU.
        devices: In a process each, instead: names, or ("auto",) for every GPU here.
        ray: On a Ray cluster at this address, instead.
    """

    device: str | torch.device | None = None
    devices: tuple[str, ...] = ()
    ray: str | None = None

    def __post_init__(self) -> None:
        """Check what was given.

        Raises:
            EosinError: If two of the three are, or a device does not exist.
        """
        given = [name for name in ("device", "devices", "ray") if getattr(self, name)]
        if len(given) > 1:
            raise EosinError(f"{' and '.join(given)}: give one of them")
        object.__setattr__(self, "devices", check_devices(self.devices))

    @property
    def here(self) -> torch.device | None:
        """The device of this process; None where the work is done in others."""
        if self.ray is not None or len(self.devices) > 1:
            return None
        name = self.devices[0] if self.devices else self.device
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def embedding_key(
    encoder: Encoder, tiles: Tiles, precision: Precision = "fp32", change: PixelChange | None = None
) -> str:
    """Return 16 hexadecimal digits over the encoder's weights and card, the tiles, the transform and the change."""
    changed = () if change is None else (change.key,)
    return short_hash(encoder.fingerprint(), tiles.content_hash(), encoder.card.size, _TRANSFORM, precision, *changed)


def embed(
    encoder: Encoder,
    tiles: Tiles,
    *,
    batch_size: int | None = None,
    workers: int = 0,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    change: PixelChange | None = None,
    cache: Path | None = None,
    quarantine: Quarantine | None = None,
    shard: tuple[int, int] | None = None,
    devices: Sequence[str] = (),
    ray: str | None = None,
) -> Embeddings:
    """Compute the features of all tiles, or take them from the cache.

    Each tile is resized to the encoder's size, changed where `change` is given, normalized by the encoder's mean and
    std, and encoded in evaluation mode without augmentation. Unreadable tiles are left out and quarantined.

    For one kind of device and one batch size the features are the same bits however the work was divided or disturbed;
    another batch size changes them by floating-point rounding. A batch size found by itself is kept with the first
    part, and those that follow are made with it.

    Args:
        encoder: Any encoder; it is left on `device`, in the mode it was in. Other processes load it by its card's spec.
        tiles: N tiles.
        batch_size: Tiles per forward pass; None finds it, see `choose_batch`.
        workers: Processes that decode, divided among the devices.
        device: Where to run; CUDA where there is one, else the CPU, by default.
        precision: "bf16" runs the encoder under autocast; the features are float32 either way.
        change: What to do to the pixels first, on the device.
        cache: Folder for ``<key>.safetensors``, and until that is whole for its parts, in ``<key>/``; None to keep
            nothing. A damaged file is computed anew.
        quarantine: Where unreadable tiles are listed; by default in memory, with its usual limit.
        shard: (i, n), counted from 0: compute every n-th part, from the i-th, as one of n jobs that share `cache`. The
            result has their rows alone; a call without a shard then computes what lacks, and joins.
        devices: A process on each of these devices, such as ("cuda:0", "cuda:1"); ("auto",) for every GPU here.
        ray: Address of a Ray cluster to use instead, "auto" for the one that runs here, or "local" to start one.

    Raises:
        EosinError: If a feature is not finite (the message names the encoder and the first tile), the width changes, no
            tile can be read, more of them are unreadable than the quarantine allows, memory does not suffice, or
            another process computes the same.
    """
    places = Places(device, tuple(devices), ray)
    if cache is None and (shard is not None or ray is not None):
        raise EosinError("shard and ray need a cache folder, where the parts meet; give cache")
    work = make_pass(encoder, tiles, batch_size=batch_size, workers=workers, precision=precision, change=change)
    key = embedding_key(encoder, tiles, precision, change)
    quarantine = Quarantine(None) if quarantine is None else quarantine
    path = None if cache is None else Path(cache) / f"{key}.safetensors"
    stored = None if path is None else _load(path, key, len(tiles))
    if stored is not None:
        return _from_cache(stored, tiles, key, quarantine)
    layout = Layout.of(len(tiles))
    own = shard is None and places.here is not None
    with _store(path, key, layout, own=own, scratch=places.here is None) as store, store.held(shard):
        # Another process may have joined the parts before it let go of them.
        stored = None if path is None or store.folder is None else _load(path, key, len(tiles))
        if stored is not None:
            return _from_cache(stored, tiles, key, quarantine)
        return _computed(encoder, work, store, shard, places, quarantine, path)


def _computed(
    encoder: Encoder,
    work: Pass,
    store: PartStore,
    shard: tuple[int, int] | None,
    places: Places,
    quarantine: Quarantine,
    path: Path | None,
) -> Embeddings:
    """Compute what lacks in a store that is held; without a shard, join the parts to `path` and remove them."""
    tiles, numbers = work.tiles, store.layout.of_job(shard)
    try:
        unreadable = fill(encoder, work, store, numbers, places, quarantine)
        features, rows = _joined(encoder, work, store, numbers, places, quarantine)
    except BaseException:
        if shard is None and not store.finished():
            store.remove()
        raise
    if shard is None:
        if not len(rows):
            raise EosinError(f"{tiles.spec}: no tile could be read; {quarantine.summary(met=True)}")
        if path is not None:
            _save(path, store.key, features, rows, len(tiles), unreadable)
        store.remove()
    names = np.asarray(tiles.names).astype(str)[rows]
    missing = len(tiles) - len(rows) - len(unreadable)
    return Embeddings(features, rows, names, len(tiles), store.key, missing=missing)


def make_pass(
    encoder: Encoder,
    tiles: Tiles,
    *,
    batch_size: int | None,
    workers: int,
    precision: Precision,
    change: PixelChange | None = None,
    **dense: Any,
) -> Pass:
    """Gather what a pass depends on; `embed` says what each means, and `Pass`.

    Raises:
        EosinError: If the batch size is not positive or the number of workers negative.
    """
    if batch_size is not None and batch_size < 1:
        raise EosinError(f"batch_size {batch_size}: must be at least 1")
    if workers < 0:
        raise EosinError(f"workers {workers}: must be at least 0")
    return Pass(
        tiles=tiles.without_columns(),
        precision=precision,
        change=change,
        dense=dense.get("dense"),
        batch_size=batch_size,
        shrink=batch_size is None,
        workers=workers,
        shown=encoder.card.spec,
    )


@contextlib.contextmanager
def _store(path: Path | None, key: str, layout: Layout, *, own: bool, scratch: bool) -> Iterator[PartStore]:
    """Choose where parts are kept: a single one of this process's own need not be, as it is the whole."""
    if path is None and scratch:
        with tempfile.TemporaryDirectory(prefix="eosin-embed-") as folder:
            yield PartStore(Path(folder), key, layout)
    elif path is None or (own and len(layout) == 1 and not path.with_suffix("").is_dir()):
        yield PartStore(None, key, layout)
    else:
        yield PartStore(path.with_suffix(""), key, layout)


def fill(
    encoder: Encoder, work: Pass, store: PartStore, numbers: Sequence[int], places: Places, quarantine: Quarantine
) -> dict[int, str]:
    """Compute those of some parts that are not there; list the unreadable tiles of all of them, in order.

    Args:
        encoder: The encoder.
        work: What to compute.
        store: Where parts are kept.
        numbers: Parts that should be there on return.
        places: Where to run.
        quarantine: Where unreadable tiles are listed.

    Returns:
        The unreadable rows of these parts, ascending, with the reasons.

    Raises:
        EosinError: As `embed`.
    """
    there = set(store.finished()).intersection(numbers)
    unreadable = {row: reason for number in sorted(there) for row, reason in store.unreadable(number).items()}
    missing = [number for number in numbers if number not in there]
    if missing:
        tiles = {number: last - first for number in numbers for first, last in [store.layout.span(number)]}
        changed = "" if work.change is None else f", {work.change.name}"
        with progress_bar() as progress:
            bar = progress.add_task(
                f"embedding with {work.shown}{changed}",
                total=sum(tiles.values()),
                completed=sum(tiles[number] for number in there),
            )

            def told(number: int, reasons: dict[int, str]) -> None:
                unreadable.update(reasons)
                # Rather now than after hours, where a disk is gone.
                if len(unreadable) > quarantine.limit * len(work.tiles):
                    _list(unreadable, work.tiles, quarantine)

            def advance(count: int) -> None:
                progress.advance(bar, count)

            if work.batch_size is None:
                work = replace(work, batch_size=store.batch())
            if places.here is not None:
                with contextlib.closing(
                    compute_parts(encoder, work, store.layout, places.here, missing, advance)
                ) as parts:  # type: ignore[type-var]
                    for part in parts:
                        store.save(part)
                        told(part.number, part.unreadable)
            else:
                order = Order(encoder.card.spec, encoder.fingerprint(), work, store)
                if places.ray is not None:
                    run_on_ray(order, places.ray, missing, told, advance)
                else:
                    run_on_devices(order, places.devices, missing, told, advance)
            progress.update(bar, completed=sum(tiles.values()))
    _list(unreadable, work.tiles, quarantine)
    return dict(sorted(unreadable.items()))


def _list(unreadable: dict[int, str], tiles: Tiles, quarantine: Quarantine) -> None:
    for row in sorted(unreadable):
        quarantine.add(str(tiles.names[row]), unreadable[row])
    if unreadable:
        quarantine.check(len(tiles))


def _joined(
    encoder: Encoder, work: Pass, store: PartStore, numbers: Sequence[int], places: Places, quarantine: Quarantine
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Read parts into one array, float32 [n, D], and their rows, int64 [n]; a damaged one is computed again."""
    most = sum(last - first for first, last in map(store.layout.span, numbers))
    features = np.empty((0, 0), np.float32)
    rows = np.empty(most, np.int64)
    kept = 0
    for number in numbers:
        part = store.load(number)
        if part is None:
            fill(encoder, work, store, [number], places, quarantine)
            part = store.load(number)
        if part is None:
            raise EosinError(f"{store.path(number)}: damaged as soon as it was written; check the disk")
        if not len(part.rows):
            continue
        values = part.arrays[FEATURES]
        if not kept:
            # Untouched pages of what unreadable tiles leave over cost nothing.
            features = np.empty((most, values.shape[1]), np.float32)
        if features.shape[1] != values.shape[1]:
            raise EosinError(
                f"{work.shown}: features changed width from {features.shape[1]} to {values.shape[1]} at tile "
                f"'{work.tiles.names[int(part.rows[0])]}'"
            )
        features[kept : kept + len(values)] = values
        rows[kept : kept + len(values)] = part.rows
        kept += len(values)
    return features[:kept], rows[:kept]


_Stored = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], dict[str, str]]


def _from_cache(stored: _Stored, tiles: Tiles, key: str, quarantine: Quarantine) -> Embeddings:
    features, rows, reasons = stored
    _list({int(row): reason for row, reason in reasons.items()}, tiles, quarantine)
    names = np.asarray(tiles.names).astype(str)[rows]
    return Embeddings(features, rows, names, len(tiles), key, cached=True)


def _save(
    path: Path,
    key: str,
    features: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    total: int,
    unreadable: dict[int, str],
) -> None:
    metadata = {
        "format": _FORMAT,
        "key": key,
        "total": str(total),
        "unreadable": json.dumps({str(row): reason for row, reason in unreadable.items()}),
    }
    writable_directory(path.parent)
    with atomic_file(path) as file:
        write_tensors(file, {"rows": rows, FEATURES: features}, metadata, (FEATURES, "rows"))


def _load(path: Path, key: str, total: int) -> _Stored | None:
    """Read a cache file; None where there is none, or it is not what was written."""
    if not path.is_file():
        return None
    with contextlib.suppress(OSError, KeyError, ValueError, TypeError):
        metadata, arrays = read_tensors(path, (FEATURES, "rows"))
        if metadata["key"] == key and metadata["total"] == str(total):
            return arrays[FEATURES], arrays["rows"], json.loads(metadata["unreadable"])
    warn(f"{path}: damaged; computing these embeddings again")
    return None
