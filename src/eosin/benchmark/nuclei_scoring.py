"""One encoder on one set of nuclei: a training for each cell, scored once on the test images, then its run is removed.

The run lies in `work/` of the benchmark directory, where a training that was killed goes on from its last checkpoint.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow.parquet as pq
import torch

from eosin.benchmark.cells import CELLS, Subject, about_encoder
from eosin.benchmark.config import BenchmarkConfig
from eosin.benchmark.galleries import GALLERIES
from eosin.benchmark.nuclei_gallery import Extremes
from eosin.benchmark.nuclei_protocol import VERSION, NucleiAsked
from eosin.benchmark.nuclei_scores import metric_types, score_table
from eosin.benchmark.nuclei_task import OpenNuclei
from eosin.benchmark.record import Record
from eosin.core.config import apply_overrides
from eosin.core.errors import EosinError, StorageError
from eosin.core.files import atomic_file, short_hash
from eosin.evaluate.cells import save_cell
from eosin.nuclei.config import NucleiConfig
from eosin.nuclei.datasets import NucleiImage, NucleiSample, fraction
from eosin.nuclei.labels import Labels
from eosin.nuclei.model import NucleiModel
from eosin.nuclei.postprocess import postprocess
from eosin.nuclei.score import ImageScore, score_image, set_scores
from eosin.nuclei.train import train_nuclei, with_more_phases
from eosin.nuclei.types import RADIUS
from eosin.nuclei.validation import image_maps
from eosin.training.guards import memory_errors
from eosin.training.run import utc_now

__all__ = ["NucleiWork"]

Cell = tuple[str, float, int]
"""Protocol as shown, fraction of the labels, seed."""

# Raised when the same training would be scored differently, or another training be made of the same settings.
_VERSION = 1
_RADIUS_MPP = 0.25
"""µm/px at which `RADIUS` is measured."""


@dataclass(eq=False)
class NucleiWork:
    """An encoder, a set of nuclei, the variants of the protocol, fractions and seeds.

    Attributes:
        config: Of the benchmark.
        asked: Variants of the protocol.
        subject: The encoder.
        opened: The set.
        seeds: Under which the encoder is this one.
        about: The records' `command`, `libraries` and `precision`.
    """

    config: BenchmarkConfig
    asked: Sequence[NucleiAsked]
    subject: Subject
    opened: OpenNuclei
    seeds: Sequence[int]
    about: dict[str, Any]

    def keys(self) -> dict[Cell, str]:
        """Return the key of every cell wanted: 16 hexadecimal digits over all that determines its result."""
        return {
            (entry.shown, share, seed): self._key(entry, share, seed)
            for entry in self.asked
            for share in self.config.fractions
            for seed in self.seeds
        }

    def _key(self, asked: NucleiAsked, share: float, seed: int, content: str | None = None) -> str:
        about_encoder = (self.subject.name, self.subject.fingerprint)
        about_task = (self.opened.name, content or self.opened.content, self.opened.version)
        how = (asked.shown, VERSION, asked.settings(), share, seed, self.config.precision)
        return short_hash("nuclei", _VERSION, *about_encoder, *about_task, *how)

    def results(self, missing: Iterable[Cell]) -> Iterator[tuple[Cell, Record | EosinError]]:
        """Compute the missing cells one by one, each written before it is handed out.

        A training that begins as another does comes right after it, and goes on where that one ended.
        """
        keys = self.keys()
        phases = {entry.shown: len(entry.config.phases) for entry in self.asked}
        ordered = sorted(missing, key=lambda cell: (*cell[1:], phases[cell[0]]))
        for place, cell in enumerate(ordered):
            try:
                yield cell, self._result(cell, keys[cell], set(ordered[place + 1 :]))
            except StorageError:
                raise
            except EosinError as error:
                yield cell, error
            if torch.cuda.is_available():
                # A network may be held in circles of references, and the next one needs its memory.
                gc.collect()

    def train(self, cell: Cell) -> None:
        """Train the network of a cell, or go on with it.

        Raises:
            EosinError: If it cannot be trained.
            Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
        """
        self._adopt(cell)
        train_nuclei(self._training(cell), self._folder(cell), self.about["command"])

    def let_go(self, cell: Cell, wanted: Set[Cell]) -> None:
        """Leave the run of a cell whose result is written to one that goes on with it, or remove it.

        Args:
            cell: Which.
            wanted: Cells that are to be computed.
        """
        self._adopt(cell)
        if not self._folder(cell).exists():
            return
        own = self._training(cell)
        for entry in self.asked:
            other = (entry.shown, *cell[1:])
            longer = self._training(other)
            begins = longer.phases[: len(own.phases)] == own.phases and longer.phases != own.phases
            same = longer.model_copy(update={"phases": own.phases}) == own
            if other in wanted and begins and same and not self._folder(other).exists():
                with_more_phases(self._folder(cell), longer)
                self._folder(cell).rename(self._folder(other))
                return
        shutil.rmtree(self._folder(cell), ignore_errors=True)

    def _folder(self, cell: Cell) -> Path:
        # By what is learned from: a label that is mended on the test side costs no training.
        shown, share, seed = cell
        asked = next(entry for entry in self.asked if entry.shown == shown)
        return self._place(self._key(asked, share, seed, self.opened.set.learned_from))

    def _place(self, key: str) -> Path:
        # A run does not go on under other paths, even where the files are the same.
        run = short_hash(key, self.opened.source, self.subject.spec)
        return self.config.out / "work" / f"nuclei-{run}"

    def _adopt(self, cell: Cell) -> None:
        """Take over a run that was begun when folders were named by the whole set, test side included."""
        before, now = self._place(self.keys()[cell]), self._folder(cell)
        if before.exists() and not now.exists():
            before.rename(now)

    @property
    def _device(self) -> str | None:
        return next((name for name in self.config.devices if name != "auto"), None)

    @property
    def _precision(self) -> Literal["fp32", "bf16"]:
        return self.config.precision

    def _training(self, cell: Cell) -> NucleiConfig:
        """Return the configuration of a cell's training."""
        shown, share, seed = cell
        asked = next(entry for entry in self.asked if entry.shown == shown)
        overrides = {
            "seed": seed,
            "precision": self._precision,
            "device": self._device,
            "data.source": self.opened.source,
            "data.fraction": share,
            "data.workers": self.config.workers,
            "network.encoder": self.subject.spec,
            "validation.images": self._validated(asked, share),
            "log.tensorboard": False,
        }
        return NucleiConfig.parse(apply_overrides(asked.config.plain(), overrides), shown)

    def _validated(self, asked: NucleiAsked, share: float) -> int | None:
        """Return how many validation images are looked at: they are labelled too, so the share is one of them as well.

        All of them where there are none.
        """
        there = len(self.opened.set.of("val"))
        most = asked.config.validation.images or there
        return min(most, max(1, round(share * there))) if there else asked.config.validation.images

    def _result(self, cell: Cell, key: str, wanted: Set[Cell]) -> Record:
        started = time.perf_counter()
        self.train(cell)
        model = NucleiModel.load(self._folder(cell), device=self._device, precision=self._precision)
        classes = model.classes
        scores, extremes = self._scores(model)
        with atomic_file(self.config.out / "predictions" / f"{key}.parquet") as file:
            pq.write_table(score_table(scores, classes), file)
        shown, share, seed = cell
        details = {"predicted_by": shown, "fraction": share, "seed": seed, "test": len(scores)}
        extremes.write(self.config.out / GALLERIES / f"{key}.parquet", details)
        record = {
            "key": key,
            **self._about_encoder(model),
            **self._about_task(cell, classes),
            "protocol": shown,
            "protocol_version": VERSION,
            "fraction": share,
            "seed": seed,
            "chosen": {"step": model.card.step, "val_pq": model.card.pq},
            "metrics": set_scores(scores, metric_types(classes) or None, seed=seed),
            "predictions": f"predictions/{key}.parquet",
            "map": None,
            "gallery": f"{GALLERIES}/{key}.parquet",
            "precision": self.about["precision"],
            "libraries": self.about["libraries"],
            "seconds": round(time.perf_counter() - started, 3),
            "command": self.about["command"],
            "created": utc_now(),
        }
        save_cell(self.config.out, CELLS, record)
        self.let_go(cell, wanted)
        return cast(Record, record)

    def _scores(self, model: NucleiModel) -> tuple[list[ImageScore], Extremes]:
        """Find the nuclei of the test images and score them, image by image."""
        scores, extremes = [], Extremes()
        for image in self.opened.set.of("test"):
            sample = image.read()
            found, types = _found(model, sample)
            score = _score(image, sample, found, types, model.classes)
            scores.append(score)
            extremes.add(score, sample, found)
        return scores, extremes

    def _about_encoder(self, model: NucleiModel) -> dict[str, Any]:
        described = about_encoder(self.subject)
        # Images are not resized to the encoder's own size: it sees windows.
        return described | {"normalization": {**described["normalization"], "size": model.window}}

    def _about_task(self, cell: Cell, classes: Sequence[str]) -> dict[str, Any]:
        opened, config = self.opened, self._training(cell)
        sides = opened.set.of
        val = len(sides("val"))
        return {
            "task": opened.name,
            "task_spec": opened.spec,
            "task_version": opened.version,
            "task_hash": opened.content,
            "split_hash": opened.split_hash,
            "split_source": opened.set.split_source,
            "classes": list(classes),
            "grouping": opened.grouping,
            "notes": list(opened.set.notes),
            "n_train": len(fraction(sides("train"), cell[1], cell[2])),
            "n_val": min(val, config.validation.images or val),
            "n_test": len(sides("test")),
            "n_groups": opened.groups,
            "n_unreadable": 0,
            "higher_is_better": True,
            "synthetic": opened.synthetic,
        }


def _found(model: NucleiModel, sample: NucleiSample) -> tuple[Labels, list[int]]:
    """Find the nuclei of an image: int32 [H, W], and the type of each in the order of ids; no types without."""
    with memory_errors(model.device, "use a smaller width"):
        maps = image_maps(model.maps, sample.image, model.window, model.output)
    settings = model.postprocess
    found = postprocess(
        maps.np_prob[0],
        maps.hv[0],
        None if maps.tp_prob is None else maps.tp_prob[0],
        scale=settings.scale or 1.0,
        normalise=settings.normalise,
    )
    return found.instances, [nucleus.type or 0 for nucleus in found.table] if model.classes else []


def _score(
    image: NucleiImage, sample: NucleiSample, found: Labels, types: Sequence[int], classes: Sequence[str]
) -> ImageScore:
    if classes and sample.types is None:
        raise EosinError(f"{image.name}: has no types, and other images have; set ?types=false in the protocol")
    return score_image(
        image.name,
        sample.instances,
        found,
        sample.types[1:] if classes and sample.types is not None else None,
        types if classes else None,
        tuple(metric_types(classes)),
        group=image.group,
        tissue=image.tissue,
        radius=RADIUS if image.mpp is None else RADIUS * _RADIUS_MPP / image.mpp,
    )
