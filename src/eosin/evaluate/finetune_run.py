"""The grid of fine-tuning: one training a point, the results of those that are done, and the weights of the best."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.console import progress_bar
from eosin.core.errors import EosinError
from eosin.core.files import writable_directory
from eosin.core.memory import lacks_memory
from eosin.core.presets import preset_folder
from eosin.evaluate.finetune_network import Classifier, build_classifier, probe_head
from eosin.evaluate.finetune_training import Progress, Training, newest_or_none
from eosin.evaluate.pixels import (
    CropLaw,
    DrawnViews,
    Pixels,
    center_views,
    exact_convolutions,
    pick_device,
    present_classes,
)
from eosin.training.checkpoints import Checkpoints
from eosin.training.signals import StopSignal

if TYPE_CHECKING:
    from eosin.augment import Views
    from eosin.evaluate.finetune import Finetune, GridPoint
    from eosin.evaluate.protocol import Fit, Material

__all__ = ["FineTuning", "color_views"]

Rows = npt.NDArray[np.int64]
Weights = dict[str, Tensor]

_HELD = 256 << 20
"""Bytes of validation pixels that are decoded once and kept."""


def color_views(preset: str, size: int, mean: Sequence[float], std: Sequence[float]) -> Views:
    """Return what a preset does to the colors of views that are cut already, and their normalization.

    Args:
        preset: A pre-training preset, with its turns; flips are the protocol's.
        size: Side of the views in px.
        mean: Of R, G, B in 0..1.
        std: Of R, G, B in 0..1.
    """
    from eosin.augment import AugmentConfig, Views
    from eosin.core.config import read_yaml

    fields = dict(read_yaml(preset_folder() / f"{preset}.yaml")["every_view"])
    # The crop and the flips are the protocol's: here the whole view is taken, which resamples nothing.
    fields |= {"horizontal_flip": 0.0, "vertical_flip": 0.0}
    fields |= {"count": 1, "size": size, "scale": [1.0, 1.0], "ratio": [1.0, 1.0]}
    config = {"preset": preset, "mean": list(mean), "std": list(std), "views": {"train": fields}}
    return Views(AugmentConfig.parse(config, f"preset {preset}"))


class FineTuning:
    """The trainings of one fit.

    Args:
        settings: The protocol.
        material: Features, precision, workers.
        pixels: Images and encoder; the encoder is not changed.
        fit: Rows, labels and seed.
        work: Folder for checkpoints, created when needed; None keeps none.
    """

    def __init__(self, settings: Finetune, material: Material, pixels: Pixels, fit: Fit, work: Path | None) -> None:
        self.settings = settings
        self.material = material
        self.pixels = pixels
        self.fit = fit
        self.work = work
        self.device = pick_device()
        self.present = present_classes(fit)
        self.labels = np.searchsorted(self.present, fit.labels.clip(min=0))
        card = pixels.encoder.card
        law = CropLaw(card.size, card.interpolation, (settings.scale[0], settings.scale[1]), flip=settings.flip)
        self.views = DrawnViews(pixels.tiles, law, fit.seed, "finetune")
        # "none" has no colors to change: the encoder's own normalization is the same, and cheaper.
        plain = settings.preset == "none"
        self.colors = None if plain else color_views(settings.preset, card.size, card.mean, card.std)
        self.parts = -(-len(fit.train) // settings.batch)
        self.epochs = max(settings.epochs, -(-settings.least_steps // self.parts))
        self.patience = -(-settings.patience * self.epochs // settings.epochs)
        self._held: list[Tensor] | None = None
        self._best: Weights = {}

    # The grid ----------------------------------------------------------------------------------------------------

    def search(self) -> tuple[int, list[dict[str, Any]]]:
        """Train every point of the grid that is not trained yet.

        Returns:
            The place of the best point, and what is said of each, ready for JSON.

        Raises:
            EosinError: If every point diverged, the encoder cannot be trained so, or memory does not suffice.
            KeyboardInterrupt: After Ctrl-C, with a checkpoint saved.
        """
        points = self.settings.points()
        results: list[dict[str, Any]] = []
        grid = None if self.work is None else Checkpoints(writable_directory(self.work) / "grid", keep=1)
        found = newest_or_none(grid)
        if found is not None:
            results, self._best = found[1]["results"], found[1]["weights"]
        stop = StopSignal()
        card = self.pixels.encoder.card
        with stop.listening(), _memory_errors(self.device), exact_convolutions(), progress_bar("where") as progress:
            label = f"fine-tuning {card.spec}"
            total, done = len(points) * self.epochs, len(results) * self.epochs
            bar = progress.add_task(label, total=total, completed=done, where="")
            for place, point in enumerate(points[len(results) :], start=len(results)):
                training = Training(self, point, place, stop)
                for state in training.run():
                    best = f"best {state.best[0]:.3f}" if state.best else ""
                    progress.update(bar, completed=place * self.epochs + state.epoch, where=f"lr {point.rate:g} {best}")
                progress.update(bar, completed=(place + 1) * self.epochs)
                results.append(_told(point, training.state))
                if _best_of(results) == place:
                    self._best = training.state.weights
                if grid is not None:
                    grid.save(place + 1, {"results": results, "weights": self._best})
                training.forget()
        if stop.number:  # asked to stop after the last step, by when the result was saved
            raise KeyboardInterrupt
        best_place = _best_of(results)
        if best_place is None:
            raise EosinError(
                f"{card.spec}: fine-tuning diverged at every learning rate; try smaller ones, "
                f"finetune?rates={min(self.settings.rates) / 10:g}"
            )
        return best_place, results

    def predict(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Return the best point's probabilities of rows' center views: float64 [n, classes present]."""
        model = self.build()
        model.load_state_dict(self._best)
        with _memory_errors(self.device), exact_convolutions():
            return self.probabilities(model, self.images(rows))

    # What a training needs ---------------------------------------------------------------------------------------

    def build(self) -> Classifier:
        """Return a network to train: the encoder's weights, and a new head."""
        fit, settings = self.fit, self.settings
        model = build_classifier(self.pixels.encoder, len(self.present), settings.drop_path)
        if settings.head == "probe":
            known = np.isin(fit.labels[fit.val], self.present)
            truth = np.where(known, self.labels[fit.val], -1)
            features = self.material.features
            weight, bias = probe_head(
                features[fit.train], self.labels[fit.train], features[fit.val], truth, len(self.present)
            )
            with torch.no_grad():
                model.head.weight.copy_(weight)
                model.head.bias.copy_(bias)
        return model.to(self.device).to(memory_format=torch.channels_last)

    def images(self, rows: Rows) -> Iterator[Tensor]:
        """Yield center views of rows."""
        card = self.pixels.encoder.card
        return center_views(
            self.pixels.tiles,
            rows,
            size=card.size,
            batch=2 * self.settings.batch,
            workers=self.material.workers,
            interpolation=card.interpolation,
        )

    def validation_images(self) -> Iterator[Tensor]:
        """Yield center views of the validation rows, decoded once where they are few."""
        if self._held is not None:
            yield from self._held
            return
        size = self.pixels.encoder.card.size
        keep = 3 * size**2 * len(self.fit.val) <= _HELD
        held = []
        for images in self.images(self.fit.val):
            if keep:
                held.append(images)
            yield images
        self._held = held if keep else None

    @torch.no_grad()
    def probabilities(self, model: Classifier, batches: Iterator[Tensor]) -> npt.NDArray[np.float64]:
        """Return softmax outputs in evaluation mode: float64 [n, classes present]."""
        model.eval()
        logits = []
        for images in batches:
            ready = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with self.autocast():
                values = model(model.encoder.normalize(ready))
            logits.append(values.float().cpu())
        if not logits:
            return np.zeros((0, len(self.present)))
        return torch.cat(logits).double().softmax(dim=1).numpy()

    def autocast(self) -> torch.autocast:
        """Return the precision of the network's passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.material.precision == "bf16")


def _told(point: GridPoint, state: Progress) -> dict[str, Any]:
    """Say what became of a point; one that diverged loses, whatever it was before."""
    alive = state.ended != "diverged" and state.best is not None
    return {
        **asdict(point),
        "validation_balanced_accuracy": state.best[0] if alive and state.best else None,
        "validation_log_loss": state.best[1] if alive and state.best else None,
        "epoch": state.best[2] + 1 if alive and state.best else None,
        "epochs_run": state.epoch,
        "ended": state.ended,
        "history": state.history,
    }


def _best_of(results: Sequence[dict[str, Any]]) -> int | None:
    scores = [
        (-result["validation_balanced_accuracy"], result["validation_log_loss"], place)
        for place, result in enumerate(results)
        if result["validation_balanced_accuracy"] is not None
    ]
    return min(scores)[2] if scores else None


@contextlib.contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    """Tell in one line that training needs more memory than there is."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise EosinError(f"finetune: not enough memory on {device}; use smaller batches, finetune?batch=16") from error
