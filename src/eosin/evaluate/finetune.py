"""Fine-tuning: the whole encoder and a linear head, trained on crops and flips; the validation images choose.

For each point of a grid (learning rate × weight decay × layer decay), from the encoder's weights,

    AdamW (Loshchilov and Hutter, ICLR 2019), linear warm-up, half a cosine to 0, mean cross-entropy,

a look at the validation images after every epoch, an end where `patience` epochs brought nothing better, and the
weights of the best epoch. Of the points, the best on the validation images predicts the test. Best is the highest
balanced accuracy, among equals the lowest log-loss, among those the first.

The study (Kang et al., CVPR 2023) fine-tunes too; its settings are not known. These are ours, from common practice:
AdamW with weight decay 0.05 and layer-wise decay as BEiT (Bao et al., ICLR 2022), off by default since it holds back a
network without pre-training, which is the floor of the comparison; a head of zeros, or LP-FT (Kumar et al., ICLR 2022).
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from eosin.core.errors import EosinError, StorageError, nearest
from eosin.core.presets import preset_names
from eosin.evaluate.protocol import PROTOCOLS, Answer, Fit, Material, Prediction, Protocol

__all__ = ["Finetune", "GridPoint"]


@dataclass(frozen=True)
class GridPoint:
    """One way to train.

    Attributes:
        rate: Peak learning rate of the head.
        weight_decay: Of matrices and kernels.
        layer_decay: Factor on the learning rate from each layer to the one before it.
    """

    rate: float
    weight_decay: float
    layer_decay: float


@dataclass(frozen=True)
class Finetune(Protocol):
    """Fine-tuning of the whole encoder, with early stopping on the validation images.

    Attributes:
        rates: Peak learning rates tried.
        weight_decays: Weight decays tried.
        layer_decays: Layer-wise decays of the learning rate tried; 1 is none.
        epochs: Passes over the training images at most.
        least_steps: Steps at most where `epochs` passes are fewer: then there are more passes.
        patience: Passes without a better validation score after which training ends; more where `least_steps` makes
            more passes of `epochs`, in proportion.
        warmup: Share of the steps in which the learning rate rises.
        batch: Images a step at most; a pass is cut into equal parts.
        scale: Smallest and largest share of the image in a crop.
        flip: Probability of a left-right flip, and of a top-bottom flip.
        preset: Augmentation of the colors, of a pre-training preset such as "pathology"; "none" for crops and flips.
        drop_path: Largest rate of stochastic depth (Huang et al., ECCV 2016).
        smoothing: Label smoothing.
        head: "zero", or "probe" to start from the head that suits the frozen encoder (LP-FT).
    """

    name: ClassVar[str] = "finetune"
    version: ClassVar[int] = 1
    reference: ClassVar[str] = "full fine-tuning as in Kang et al., CVPR 2023, by AdamW with early stopping"
    changes: ClassVar[dict[int, str]] = {1: "first version"}
    pixels: ClassVar[bool] = True

    rates: tuple[float, ...] = (1e-3, 3e-4, 1e-4)
    weight_decays: tuple[float, ...] = (0.05,)
    layer_decays: tuple[float, ...] = (1.0,)
    epochs: int = 30
    least_steps: int = 200
    patience: int = 10
    warmup: float = 0.1
    batch: int = 64
    scale: tuple[float, ...] = (0.2, 1.0)
    flip: float = 0.5
    preset: str = "none"
    drop_path: float = 0.0
    smoothing: float = 0.0
    head: str = "zero"

    def __post_init__(self) -> None:
        if min(self.epochs, self.patience, self.batch) < 1 or self.least_steps < 0:
            raise ValueError("epochs, patience and batch must be at least 1, least_steps at least 0")
        if not self.rates or not all(0 < rate < float("inf") for rate in self.rates):
            raise ValueError("rates must be above 0 and finite")
        if not self.weight_decays or not all(0 <= decay < float("inf") for decay in self.weight_decays):
            raise ValueError("weight_decays must be at least 0 and finite")
        if not self.layer_decays or not all(0 < decay <= 1 for decay in self.layer_decays):
            raise ValueError("layer_decays must be above 0 and at most 1")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be low+high with 0 < low <= high <= 1")
        for field in ("warmup", "drop_path", "smoothing"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 0 and below 1")
        if not 0 <= self.flip <= 1:
            raise ValueError("flip must be from 0 to 1")
        if self.head not in ("zero", "probe"):
            raise ValueError("head must be zero or probe")
        presets = preset_names()
        if self.preset not in presets:
            raise ValueError(f"unknown preset '{self.preset}'; {nearest(self.preset, presets)}")

    def points(self) -> list[GridPoint]:
        """Return the grid, in the order in which it is walked."""
        return [GridPoint(*values) for values in itertools.product(self.rates, self.weight_decays, self.layer_decays)]

    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """See `Protocol.answers`; each fit is trained by itself, and its checkpoints go once its answer is taken."""
        for place, fit in enumerate(fits):
            work: Path | None = None
            result: Prediction | EosinError
            try:
                if material.work is not None:
                    work = material.work / f"finetune-{self._key(material, fit)}"
                result = self._run(material, fit, work)
            except StorageError:
                raise
            except EosinError as error:
                result = error
            yield Answer(place, "", result)
            if work is not None:
                with contextlib.suppress(OSError):
                    shutil.rmtree(work)

    def _key(self, material: Material, fit: Fit) -> str:
        """Identify everything that the training of a fit depends on; the test images are not of it."""
        from eosin.core.files import short_hash
        from eosin.evaluate.pixels import pixels_of

        pixels = pixels_of(material, self.name)
        labels = [fit.labels[rows].tolist() for rows in (fit.train, fit.val)]
        return short_hash(
            *(self.version, asdict(self), pixels.encoder.fingerprint(), pixels.tiles.content_hash()),
            *(fit.train.tolist(), fit.val.tolist(), labels, fit.seed, material.precision),
        )

    def _run(self, material: Material, fit: Fit, work: Path | None) -> Prediction:
        from eosin.evaluate.finetune_run import FineTuning
        from eosin.evaluate.pixels import check_fit, pixels_of, present_classes

        pixels = pixels_of(material, self.name)
        check_fit(fit, self.name)
        tuning = FineTuning(self, material, pixels, fit, work)
        best, results = tuning.search()
        present = present_classes(fit)
        probabilities = np.zeros((len(fit.test), len(material.classes)))
        probabilities[:, present] = tuning.predict(fit.test)
        winner = results[best]
        chosen = {
            "rate": winner["rate"],
            "weight_decay": winner["weight_decay"],
            "layer_decay": winner["layer_decay"],
            "by": "validation balanced accuracy",
            "validation_balanced_accuracy": winner["validation_balanced_accuracy"],
            "validation_log_loss": winner["validation_log_loss"],
            "epoch": winner["epoch"],
            "epochs_run": winner["epochs_run"],
            "grid": results,
        }
        return Prediction(probabilities, chosen)


PROTOCOLS.register("finetune")(Finetune())
