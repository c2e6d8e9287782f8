"""Linear evaluation with crops and flips: a frozen encoder, and a grid of linear heads trained at once by SGD.

The settings are VISSL's for linear evaluation on ImageNet (Goyal et al., 2021), the trainer of the study (Kang et al.,
CVPR 2023): trunk frozen in evaluation mode; batch norm without affine before the head; SGD with Nesterov momentum 0.9,
weight decay 5e-4 on weights and biases, batch 256, 28 epochs, the learning rate divided by 10 after 8, 16 and 24 of
them; random resized crops and flips; the center of the image for validation and test. What the study changed of them,
beside vertical flips, is not known. Ours: the grid, whose best head the validation images choose; at least
`least_steps` steps, for small sets; the norm's mean and deviation are those of all training views, and stay; heads
start at zero; and the crops are `views` fixed draws an image, so that the encoder sees each image so many times and
not once a step: image i shows in epoch e its view (e + o_i) mod `views`, o_i drawn from the seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError, StorageError
from eosin.evaluate.protocol import PROTOCOLS, Answer, Fit, Material, Prediction, Protocol, Rows

if TYPE_CHECKING:
    from eosin.evaluate.view_features import ViewFeatures

__all__ = ["Linear", "train_heads"]

Floats = npt.NDArray[np.float64]

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""DINOv2's thirteen (Oquab et al., TMLR 2024); VISSL's 0.01 is among them."""

_MOMENTUM = 0.9
_SMALL = 1_000_000
"""Weights of all heads below which their products run in one thread."""
_SPANS = (8 / 28, 16 / 28, 24 / 28)
"""Where the learning rate is divided by 10, as shares of the steps."""


class Step(NamedTuple):
    """What one step of `train_heads` takes: images, and the factor on every head's learning rate.

    Attributes:
        features: float32 [B, D].
        labels: int64 [B].
        factor: Of the learning rates.
    """

    features: npt.NDArray[np.float32]
    labels: Rows
    factor: float


def train_heads(
    steps: Iterator[Step], *, width: int, classes: int, rates: Sequence[float], decays: Sequence[float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Train heads by SGD with Nesterov momentum, all on the same batches.

    Each head is as if trained alone: with g the gradient of the mean cross-entropy plus decay × weights (biases too),
    m <- 0.9 m + g and w <- w - rate (g + 0.9 m), from w = m = 0. One matrix product serves all heads.

    Args:
        steps: The batches, in order.
        width: D.
        classes: C.
        rates: Learning rate of each of H heads.
        decays: Weight decay of each of H heads.

    Returns:
        Weights float32 [H, C, D] and biases float32 [H, C]; not finite where a head diverged.
    """
    import torch

    from eosin.evaluate.pixels import pick_device

    device = pick_device()
    heads = len(rates)
    rate = torch.tensor(rates, dtype=torch.float32, device=device).repeat_interleave(classes)
    decay = torch.tensor(decays, dtype=torch.float32, device=device).repeat_interleave(classes)
    # The bias is one more feature, which is 1: VISSL decays it as the others.
    weights = torch.zeros(width + 1, heads * classes, device=device)
    momentum = torch.zeros_like(weights)
    with torch.inference_mode(), _few_threads(weights.numel()):
        for step in steps:
            batch = torch.ones(len(step.labels), width + 1)
            batch[:, :width] = torch.from_numpy(step.features)
            batch = batch.to(device)
            error = torch.softmax((batch @ weights).view(-1, heads, classes), dim=2)
            truth = torch.from_numpy(step.labels).to(device)
            error[torch.arange(len(truth), device=device), :, truth] -= 1.0
            gradient = (batch.T @ error.view(len(truth), -1)).div_(len(truth)).addcmul_(weights, decay)
            momentum.mul_(_MOMENTUM).add_(gradient)
            weights.sub_(gradient.add_(momentum, alpha=_MOMENTUM).mul_(rate * step.factor))
        trained = weights.view(width + 1, heads, classes).permute(1, 2, 0).cpu().numpy()
    return np.ascontiguousarray(trained[:, :, :width]), np.ascontiguousarray(trained[:, :, width])


@contextlib.contextmanager
def _few_threads(values: int) -> Iterator[None]:
    """Work in one thread where the heads are small: waking others at every step costs more than they bring."""
    import torch

    threads = torch.get_num_threads()
    if values < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Linear(Protocol):
    """Linear heads on a frozen encoder, trained on crops and flips; the head is chosen on the validation images.

    The chosen head has the highest balanced accuracy on the validation images; among equals the lower validation
    log-loss, then the smaller learning rate.

    Attributes:
        rates: Learning rates tried, at a batch of 256; scaled with the batch where there are fewer images.
        decays: Weight decays tried.
        epochs: Passes over the training images.
        least_steps: Steps taken at least, by more passes.
        batch: Images a step.
        views: Crops an image, drawn once.
        scale: Smallest and largest share of the image in a crop.
        flip: Probability of a left-right flip, and of a top-bottom flip.
    """

    name: ClassVar[str] = "linear"
    version: ClassVar[int] = 1
    reference: ClassVar[str] = "VISSL's linear evaluation (Goyal et al., 2021), as in Kang et al., CVPR 2023"
    changes: ClassVar[dict[int, str]] = {1: "first version"}
    pixels: ClassVar[bool] = True

    rates: tuple[float, ...] = RATES
    decays: tuple[float, ...] = (5e-4, 0.0)
    epochs: int = 28
    least_steps: int = 1000
    batch: int = 256
    views: int = 7
    scale: tuple[float, ...] = (0.08, 1.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.views) < 1 or self.least_steps < 0:
            raise ValueError("epochs, batch and views must be at least 1, least_steps at least 0")
        if not self.rates or not all(0 < rate < float("inf") for rate in self.rates):
            raise ValueError("rates must be above 0 and finite")
        if not self.decays or not all(0 <= decay < float("inf") for decay in self.decays):
            raise ValueError("decays must be at least 0 and finite")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError("scale must be low+high with 0 < low <= high <= 1")
        if not 0 <= self.flip <= 1:
            raise ValueError("flip must be from 0 to 1")

    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """See `Protocol.answers`; the views are computed once, for the training rows of all fits."""
        from eosin.evaluate.pixels import CropLaw, check_fit, pixels_of
        from eosin.evaluate.view_features import ViewFeatures

        ready: list[int] = []
        for place, fit in enumerate(fits):
            try:
                pixels = pixels_of(material, self.name)
                check_fit(fit, self.name)
                ready.append(place)
            except EosinError as error:
                yield Answer(place, "", error)
        if not ready:
            return
        card = pixels.encoder.card
        law = CropLaw(card.size, card.interpolation, (self.scale[0], self.scale[1]), flip=self.flip)
        source = ViewFeatures(
            pixels, law, self.views, precision=material.precision, workers=material.workers, work=material.work
        )
        try:
            yield from self._answer_all(material, fits, ready, source)
        finally:
            source.close()

    def _answer_all(
        self, material: Material, fits: Sequence[Fit], ready: Sequence[int], source: ViewFeatures
    ) -> Iterator[Answer]:
        rows = np.unique(np.concatenate([fits[place].train for place in ready]))
        try:
            views = source.of(rows)
        except StorageError:
            raise
        except EosinError as error:
            for place in ready:
                yield Answer(place, "", error)
            return
        for place in ready:
            try:
                yield Answer(place, "", self._run(material, fits[place], rows, views))
            except StorageError:
                raise
            except EosinError as error:
                yield Answer(place, "", error)

    def _run(self, material: Material, fit: Fit, rows: Rows, views: npt.NDArray[np.float32]) -> Prediction:
        from eosin.evaluate.pixels import balanced_accuracy_and_loss, present_classes

        places = np.searchsorted(rows, fit.train)
        mean, scale = _norm(views, places)
        present = present_classes(fit)
        labels = np.searchsorted(present, fit.labels[fit.train])
        batch = min(self.batch, len(fit.train))
        grid = [(rate, decay) for rate in sorted(self.rates) for decay in self.decays]
        steps = _steps(self, views, places, labels, fit, mean, scale)
        weights, biases = train_heads(
            steps,
            width=views.shape[2],
            classes=len(present),
            rates=[rate * batch / 256 for rate, _ in grid],
            decays=[decay for _, decay in grid],
        )
        wanted = np.concatenate([fit.val, fit.test])
        inputs = (material.features[wanted].astype(np.float64) - mean) * scale
        scores: list[tuple[float, float] | None] = []
        answers: list[Floats] = []
        for head in range(len(grid)):
            probabilities = _probabilities(inputs, weights[head], biases[head], present, len(material.classes))
            answers.append(probabilities)
            finite = bool(np.isfinite(probabilities).all())
            truth = fit.labels[fit.val]
            scores.append(balanced_accuracy_and_loss(probabilities[: len(fit.val)], truth) if finite else None)
        alive = [(-score[0], score[1], head) for head, score in enumerate(scores) if score is not None]
        if not alive:
            raise EosinError("linear: every head diverged; try smaller rates, linear?rates=0.0001+0.00001")
        best = min(alive)[2]
        return Prediction(answers[best][len(fit.val) :], self._chosen(grid, scores, best, len(fit.train)))

    def _chosen(
        self, grid: Sequence[tuple[float, float]], scores: Sequence[tuple[float, float] | None], best: int, n: int
    ) -> dict[str, Any]:
        winner = scores[best]
        assert winner is not None
        rates = sorted({rate for rate, _ in grid})
        return {
            "rate": grid[best][0],
            "decay": grid[best][1],
            "by": "validation balanced accuracy",
            "validation_balanced_accuracy": winner[0],
            "validation_log_loss": winner[1],
            "at_edge_of_grid": grid[best][0] in (rates[0], rates[-1]),
            "passes": _passes(self, n),
            "grid": [
                {"rate": rate, "decay": decay, "validation_balanced_accuracy": score and score[0]}
                for (rate, decay), score in zip(grid, scores, strict=True)
            ],
        }


def _norm(views: npt.NDArray[np.float32], places: Rows) -> tuple[Floats, Floats]:
    """Return the mean of the training images' views, and the inverse of their deviation: float64 [D] each."""
    width, count = views.shape[2], len(places) * views.shape[1]
    blocks = [places[start : start + 1024] for start in range(0, len(places), 1024)]
    mean = sum((views[block].sum(axis=(0, 1), dtype=np.float64) for block in blocks), np.zeros(width)) / count
    squares = np.zeros(width)
    for block in blocks:
        squares += np.square(views[block].astype(np.float64) - mean).sum(axis=(0, 1))
    spread = np.sqrt(squares / count)
    # A constant feature says nothing about the training images; rounding must not blow it up on the others.
    spread[spread <= 1e-7 * np.maximum(np.abs(mean), np.finfo(np.float32).tiny)] = np.inf
    return mean, 1.0 / spread


def _passes(settings: Linear, n: int) -> int:
    steps = -(-n // settings.batch)
    return max(settings.epochs, -(-settings.least_steps // steps))


def _steps(
    settings: Linear,
    views: npt.NDArray[np.float32],
    places: Rows,
    labels: Rows,
    fit: Fit,
    mean: Floats,
    scale: Floats,
) -> Iterator[Step]:
    """Yield the batches of a fit: each pass in an order of its own, cut in parts that differ by one image at most."""
    from eosin.core.draws import Draws, permuted, stream_seed

    n, count = len(places), views.shape[1]
    parts, passes = -(-n // settings.batch), _passes(settings, n)
    first = np.floor(count * Draws(fit.seed, 0, fit.train, "linear").uniform("first view")[:, 0]).astype(np.int64)
    ends = [round(share * passes * parts) for share in _SPANS]
    taken = 0
    for epoch in range(passes):
        order = permuted(np.arange(n), n, stream_seed(fit.seed, "linear order", epoch))
        for part in np.array_split(order, parts):
            values = views[places[part], (epoch + first[part]) % count]
            inputs = ((values - mean) * scale).astype(np.float32)
            yield Step(inputs, labels[part], 0.1 ** sum(taken >= end for end in ends))
            taken += 1


def _probabilities(
    inputs: Floats, weights: npt.NDArray[np.float32], biases: npt.NDArray[np.float32], present: Rows, classes: int
) -> Floats:
    """Apply a head of the present classes: float64 [n, C], 0 for the others."""
    from scipy.special import softmax

    with np.errstate(all="ignore"):
        logits = inputs @ weights.T.astype(np.float64) + biases
        probabilities = np.zeros((len(inputs), classes))
        probabilities[:, present] = softmax(logits, axis=1)
    return probabilities


PROTOCOLS.register("linear")(Linear())
