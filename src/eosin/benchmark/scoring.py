"""One encoder on one task under all seeds: a single pass over the tiles, then every protocol on what it gave."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.benchmark.cells import OpenTask, Subject, cell_key, with_fraction, write_cell
from eosin.benchmark.config import BenchmarkConfig
from eosin.benchmark.record import Record
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import short_hash
from eosin.data import Quarantine, default_workers
from eosin.evaluate import Asked, Embeddings, Material, ProbeData, embed, fit_of, material_of, probe_data
from eosin.evaluate.embed import PixelChange, Places
from eosin.tiling.pools import ray_address

__all__ = ["Cell", "Work", "check_places", "conditions"]

Cell = tuple[str, float, int]
"""Protocol as shown, fraction of the labels, seed."""


def conditions(asked: Sequence[Asked], fractions: Sequence[float]) -> list[tuple[str, float]]:
    """Return the protocols with the label fractions they are run at: all labels only, where shares make no sense."""
    return [(entry.shown, share) for entry in asked for share in (fractions if entry.protocol.fractions else (1.0,))]


def check_places(config: BenchmarkConfig) -> None:
    """Make sure that the devices exist and that an address can be one, also where all embeddings are there already.

    Raises:
        EosinError: If a device does not exist, both devices and a cluster are given, or the address is none.
    """
    Places(devices=config.devices, ray=config.ray)
    if config.ray is not None:
        ray_address(config.ray)


@dataclass(eq=False)
class Work:
    """An encoder, a task under several seeds whose tiles are the same, and the protocols.

    Attributes:
        config: Of the benchmark.
        asked: The protocols.
        subject: The encoder.
        opened: The task under each seed.
        about: The records' `command`, `libraries` and `precision`.
    """

    config: BenchmarkConfig
    asked: Sequence[Asked]
    subject: Subject
    opened: Mapping[int, OpenTask]
    about: dict[str, Any]

    def keys(self) -> dict[Cell, str]:
        """Return the key of every cell wanted."""
        return {
            (entry.shown, share, seed): cell_key(self.subject, opened, entry, share, seed, self.config.precision)
            for entry in self.asked
            for shown, share in conditions([entry], self.config.fractions)
            for seed, opened in self.opened.items()
        }

    @property
    def first(self) -> OpenTask:
        """The task under the first seed."""
        return next(iter(self.opened.values()))

    def embeddings(self) -> Embeddings:
        """Compute the features of all tiles, or take those that are kept."""
        return self._embed(self.first, None)

    def data(self, embeddings: Embeddings) -> tuple[dict[int, ProbeData], dict[int, EosinError]]:
        """Match the features with the task of each seed; a seed whose splits do not survive gets its reason."""
        found: dict[int, ProbeData] = {}
        failed: dict[int, EosinError] = {}
        for seed, opened in self.opened.items():
            try:
                found[seed] = probe_data(opened.task, embeddings)
            except EosinError as error:
                failed[seed] = error
        return found, failed

    def results(
        self, embeddings: Embeddings, data: Mapping[int, ProbeData], missing: Iterable[Cell]
    ) -> Iterator[tuple[Cell, Record | EosinError]]:
        """Compute the missing cells, protocol by protocol, each written before it is handed out."""
        wanted = set(missing)
        keys = self.keys()
        for family in _families(self.asked):
            shown = {entry.variant: entry for entry in family}
            places = list(dict.fromkeys((seed, share) for entry in family for seed, share in _places(entry, wanted)))
            if not places:
                continue
            variants = [v for v, entry in shown.items() if any(cell[0] == entry.shown for cell in wanted)]
            parts = [with_fraction(data[seed], share, seed) for seed, share in places]
            fits = [fit_of(part, seed, share) for part, (seed, share) in zip(parts, places, strict=True)]
            material = self._material(embeddings, parts[0], family[0])
            started = time.perf_counter()
            answered = set()
            try:
                for answer in family[0].protocol.answers(material, fits, variants):
                    seed, share = places[answer.fit]
                    entry = shown[answer.variant]
                    cell = (entry.shown, share, seed)
                    if cell not in wanted or cell in answered:
                        continue
                    answered.add(cell)
                    if isinstance(answer.result, EosinError):
                        yield cell, answer.result
                    else:
                        yield (
                            cell,
                            write_cell(
                                self.config.out,
                                self.subject,
                                self.opened[seed],
                                parts[answer.fit],
                                answer.result,
                                key=keys[cell],
                                asked=entry,
                                fraction=share,
                                seed=seed,
                                about=self.about,
                                started=started,
                            ),
                        )
                    started = time.perf_counter()
                if material.work is not None:
                    # What would have saved time after a kill; a later seed computes its own.
                    shutil.rmtree(material.work, ignore_errors=True)
            except StorageError:
                raise
            except EosinError as error:
                reason = error
            else:
                reason = EosinError(f"protocol '{family[0].protocol.name}' gave no answer")
            for entry in family:
                for seed, share in _places(entry, wanted):
                    if (entry.shown, share, seed) not in answered:
                        yield (entry.shown, share, seed), reason

    def _embed(self, opened: OpenTask, rows: npt.NDArray[np.int64] | None, change: PixelChange | None = None) -> Any:
        tiles = opened.task.tiles if rows is None else opened.task.tiles.select(rows)
        workers = default_workers() if self.config.workers is None else self.config.workers
        # The limit of unreadable tiles is one of the whole task, and the rows of a change have all been read.
        quarantine = Quarantine(self.config.out / "quarantine.jsonl" if rows is None else None)
        return embed(
            self.subject.encoder,
            tiles,
            batch_size=self.config.batch_size,
            workers=workers,
            precision=self.config.precision,
            change=change,
            cache=self.config.out / "embeddings",
            quarantine=quarantine,
            shard=self.config.shard if rows is None else None,
            devices=self.config.devices,
            ray=self.config.ray,
        )

    def _material(self, embeddings: Embeddings, data: ProbeData, asked: Asked) -> Material:
        def embed_changed(rows: npt.NDArray[np.int64], change: PixelChange) -> npt.NDArray[np.float32]:
            changed = self._embed(self.first, embeddings.rows[rows], change)
            if len(changed.rows) != len(rows):
                raise EosinError(
                    f"{self.first.task.name}: tiles became unreadable meanwhile; run the same command again"
                )
            return np.asarray(changed.features)

        settings = asked.shown.partition("?")[2]
        about_task = (self.first.task.tiles.content_hash(), self.config.precision)
        work = short_hash(self.subject.fingerprint, *about_task, asked.protocol.name, asked.protocol.version, settings)
        return material_of(
            data,
            self.subject.encoder,
            embed_changed=embed_changed,
            work=self.config.out / "work" / work,
            workers=default_workers() if self.config.workers is None else self.config.workers,
            precision=self.config.precision,
        )


def _families(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Group the variants of one protocol with the same settings."""
    families: dict[str, list[Asked]] = {}
    for entry in asked:
        families.setdefault(entry.shown.replace(f":{entry.variant}", "", 1), []).append(entry)
    return list(families.values())


def _places(entry: Asked, wanted: set[Cell]) -> list[tuple[int, float]]:
    """Return seeds and fractions of a protocol's missing cells."""
    return sorted((seed, share) for shown, share, seed in wanted if shown == entry.shown)
