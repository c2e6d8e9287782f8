"""Linear probing as kaiko's eva does it: its settings to the letter, all fits of an encoder and task trained at once.

Read from eva 0.4.5 (`configs/vision/pathology/offline/classification`, `core/models/modules/head.py`): a linear layer
on the features as they are; cross-entropy, or for two classes one output and binary cross-entropy with the second class
as the positive one; AdamW (Loshchilov and Hutter, ICLR 2019), learning rate 3e-4, PyTorch's weight decay of 0.01,
biases too; mini-batches of 256 in a new order every epoch, the last one smaller; at most 12,500 steps; after every
epoch balanced accuracy on the validation images, the best epoch's weights kept (a later one must be strictly better),
and an end once `patience` epochs in a row were no better. eva's tasks state their patience as a number; it is the
epochs of a fifth of the steps, ceil(0.2 * 12500 / ceil(n / 256)), for all of them. In the first five epochs the
learning rate is a third: eva names no scheduler, and its default is PyTorch's `ConstantLR`, whose defaults do that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.evaluate.heads import AdamW
from eosin.evaluate.protocol import PROTOCOLS, Answer, Fit, Material, Prediction, Protocol

__all__ = ["Eva"]

_SLOW_EPOCHS = 5
_SLOW_FACTOR = 1.0 / 3.0
_REMEMBERED = 32
"""Steps, or one epoch if that is longer, after which the validation of the epochs in them is made up for."""
_REMEMBERED_VALUES = 1 << 24


@dataclass(eq=False)
class _Running:
    """A fit in training.

    Attributes:
        place: Its place in the fits asked for.
        val: [n, D + 1], validation images with ones.
        truth: int64 [n], their classes.
        best: Highest score so far.
        reached: Score that last renewed the patience.
        weights: [D + 1, outputs], of the best epoch.
        epoch: The best epoch, counted from 1.
        waited: Epochs since.
        seen: Epochs judged.
        done: Whether it has waited for too long.
    """

    place: int
    val: Tensor
    truth: Tensor
    best: float = -math.inf
    reached: float = -math.inf
    weights: Tensor = field(default_factory=lambda: torch.empty(0))
    epoch: int = 0
    waited: int = 0
    seen: int = 0
    done: bool = False

    def judge(self, score: float, weights: Tensor, patience: int, min_delta: float) -> None:
        """Take in the score of the next epoch: a checkpoint is kept, and patience renewed, by a strictly better one.

        What renews the patience is better by more than `min_delta` than what did so before, as in Lightning: many small
        steps add up to one.
        """
        self.seen += 1
        if score > self.best:
            self.best, self.weights, self.epoch = score, weights.clone(), self.seen
        if score - min_delta > self.reached:
            self.reached, self.waited = score, 0
        else:
            self.waited += 1
        self.done = self.waited >= patience


@dataclass(frozen=True)
class Eva(Protocol):
    """Linear probing by eva's settings; the epoch that is best on the validation images predicts the test.

    Where eva has a validation split only (BACH, NCT-CRC-HE, MHIST) it reports the best epoch's score on that very
    split; here the test chose nothing, unless the task itself validates on it (``bach:DIR?split=eva``). A class without
    training images has an output, as in eva, but probability 0.

    Attributes:
        rate: Learning rate.
        weight_decay: Of AdamW.
        batch: Images of a step.
        steps: Most steps.
        patience: Epochs without a better score after which a fit ends; 0 for eva's rule.
        min_delta: By how much a score must be better to renew the patience.
    """

    name: ClassVar[str] = "eva"
    version: ClassVar[int] = 1
    reference: ClassVar[str] = "kaiko-eva 0.4.5, offline classification (Gatopoulos et al., MIDL 2024 short papers)"
    changes: ClassVar[dict[int, str]] = {1: "first version"}

    rate: float = 3e-4
    weight_decay: float = 0.01
    batch: int = 256
    steps: int = 12_500
    patience: int = 0
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and self.rate > 0 and 0 <= self.weight_decay < math.inf):
            raise ValueError(f"rate={self.rate} must be above 0 and weight_decay={self.weight_decay} at least 0")
        if self.batch < 1 or self.steps < 1 or self.patience < 0 or not self.min_delta >= 0:
            raise ValueError(
                f"batch={self.batch} and steps={self.steps} must be at least 1, patience={self.patience} and"
                f" min_delta={self.min_delta} at least 0"
            )

    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """See `Protocol.answers`."""
        alike: dict[int, list[int]] = {}
        for place, fit in enumerate(fits):
            if not len(fit.val):
                yield Answer(place, "", EosinError("eva: no validation images to stop by; give a val split"))
            elif len(np.unique(fit.labels[fit.train])) < 2:
                problem = "eva: the training images are of one class only; give images of a second class"
                yield Answer(place, "", EosinError(problem))
            else:
                alike.setdefault(len(fit.train), []).append(place)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if alike:
            ones = np.ones((len(material.features), 1), dtype=np.float32)
            features = torch.as_tensor(np.concatenate([material.features, ones], axis=1), device=device)
        for places in alike.values():
            for fitted in self._train(features, {place: fits[place] for place in places}, len(material.classes)):
                result = self._predict(material.features, fits[fitted.place], fitted, len(material.classes))
                yield Answer(fitted.place, "", result)

    def epoch_steps(self, images: int) -> int:
        """Steps of an epoch over n training images."""
        return min(self.steps, -(-images // self.batch))

    def epochs_waited(self, images: int) -> int:
        """The patience for n training images: as given, or eva's rule."""
        return self.patience or -(-self.steps // (5 * self.epoch_steps(images)))

    def _train(self, features: Tensor, fits: dict[int, Fit], classes: int) -> Iterator[_Running]:
        """Train fits of equally many training images side by side; each comes as soon as it has ended."""
        count, device = len(next(iter(fits.values())).train), features.device
        running = [_running(features, place, fit) for place, fit in fits.items()]
        outputs = 1 if classes == 2 else classes
        weights = torch.stack([_first_weights(features.shape[1] - 1, outputs, fit.seed) for fit in fits.values()])
        optimizer = AdamW(weights.to(device), self.weight_decay)
        patience = self.epochs_waited(count)
        # A last epoch that the limit cuts short is not validated, so that its steps cannot matter.
        epochs = self.steps // self.epoch_steps(count)
        together = max(1, min(_REMEMBERED // self.epoch_steps(count), _REMEMBERED_VALUES // weights.numel()))
        batches = _Batches(features, list(fits.values()), outputs, self.batch)
        for first in range(0, epochs, together):
            numbers = range(first, min(first + together, epochs))
            history = []
            for number in numbers:
                rate = self.rate * (_SLOW_FACTOR if number < _SLOW_EPOCHS else 1.0)
                for images, wanted in batches.epoch(number):
                    optimizer.step(_gradient(images, wanted, optimizer.weights), rate)
                history.append(optimizer.weights.clone())
            for index, one in enumerate(running):
                snapshots = torch.stack([moment[index] for moment in history])
                for score, moment in zip(_scores(one, snapshots), snapshots, strict=True):
                    if not one.done:
                        one.judge(score, moment, patience, self.min_delta)
            keep = [index for index, one in enumerate(running) if not one.done]
            yield from (one for one in running if one.done)
            if not keep:
                return
            if len(keep) < len(running):
                running = [running[index] for index in keep]
                optimizer.keep(keep)
                batches = _Batches(features, [fits[one.place] for one in running], outputs, self.batch)
        yield from running

    def _predict(
        self, features: npt.NDArray[np.float32], fit: Fit, fitted: _Running, classes: int
    ) -> Prediction | EosinError:
        if not fitted.epoch:
            return EosinError(
                f"eva: training diverged at rate {self.rate:g}; features as large as"
                f" {np.abs(features[fit.train]).max():.2g} need a protocol that standardizes them: linear-cached"
            )
        weights = fitted.weights.double().cpu().numpy()
        with np.errstate(over="ignore", invalid="ignore"):
            logits = features[fit.test].astype(np.float64) @ weights[:-1] + weights[-1]
        if classes == 2:
            logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
        absent = np.setdiff1d(np.arange(classes), fit.labels[fit.train])
        logits[:, absent] = -np.inf
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        count = len(fit.train)
        chosen = {
            "epoch": fitted.epoch,
            "by": "validation balanced accuracy",
            "validation_balanced_accuracy": fitted.best,
            "epochs": fitted.seen,
            "patience": self.epochs_waited(count),
            "steps_of_an_epoch": self.epoch_steps(count),
            "stopped_early": fitted.done,
        }
        return Prediction(shares / shares.sum(axis=1, keepdims=True), chosen)


def _running(features: Tensor, place: int, fit: Fit) -> _Running:
    rows, truth = (torch.as_tensor(values, device=features.device) for values in (fit.val, fit.labels[fit.val]))
    return _Running(place, features[rows], truth)


def _order(images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(stream_seed(seed, "eva", "epoch", epoch)).permutation(images)


def _first_weights(width: int, outputs: int, seed: int) -> Tensor:
    """Draw weights and biases as `torch.nn.Linear` does, from U(-1/sqrt(D), 1/sqrt(D)): float32 [D + 1, outputs]."""
    generator = np.random.default_rng(stream_seed(seed, "eva", "start"))
    bound = 1.0 / math.sqrt(width)
    return torch.as_tensor(generator.uniform(-bound, bound, (width + 1, outputs)).astype(np.float32))


class _Batches:
    """Mini-batches of several fits with equally many training images, side by side.

    Args:
        features: [N, D + 1].
        fits: F fits.
        outputs: Of a head.
        batch: Images of a step.
    """

    def __init__(self, features: Tensor, fits: list[Fit], outputs: int, batch: int) -> None:
        self.features, self.fits, self.outputs, self.batch = features, fits, outputs, batch
        # One mini-batch is the same in any order.
        self.whole = self._take(np.stack([fit.train for fit in fits])) if len(fits[0].train) <= batch else None

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [F, B, D + 1] and what their outputs should be, [F, B, outputs], once each, in a new order."""
        if self.whole is not None:
            yield self.whole
            return
        orders = np.stack([fit.train[_order(len(fit.train), fit.seed, number)] for fit in self.fits])
        for start in range(0, orders.shape[1], self.batch):
            yield self._take(orders[:, start : start + self.batch])

    def _take(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        labels = np.stack([fit.labels[row] for fit, row in zip(self.fits, rows, strict=True)])
        places, truth = (torch.as_tensor(values, device=self.features.device) for values in (rows, labels))
        wanted = truth[..., None] if self.outputs == 1 else torch.nn.functional.one_hot(truth, self.outputs)
        return self.features[places], wanted.to(self.features.dtype)


def _gradient(images: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """Of the mean (binary) cross-entropy of images [F, B, D + 1] by weights [F, D + 1, outputs]."""
    logits = images @ weights
    shares = torch.sigmoid(logits) if weights.shape[2] == 1 else torch.softmax(logits, dim=2)
    return (images.transpose(1, 2) @ shares.sub_(wanted)).div_(wanted.shape[1])


def _scores(one: _Running, snapshots: Tensor) -> list[float]:
    """Score every snapshot [K, D + 1, outputs] on the validation images, as torchmetrics does for eva.

    Two classes: the mean of sensitivity and specificity, at probability above 0.5; a side without images counts 0.
    More: the mean of the recalls over the classes that an image has or was predicted to have. Weights that are not
    finite score -inf.
    """
    epochs, width, outputs = snapshots.shape
    logits = (one.val @ snapshots.permute(1, 0, 2).reshape(width, epochs * outputs)).view(-1, epochs, outputs)
    predicted = (logits[..., 0] > 0).long() if outputs == 1 else logits.argmax(dim=2)
    classes = max(2, outputs)
    told = torch.nn.functional.one_hot(predicted, classes).bool()
    truth = torch.nn.functional.one_hot(one.truth, classes).bool()[:, None, :]
    hits = (told & truth).sum(dim=0).double()
    images = truth.sum(dim=0).double()
    counted = (torch.ones_like(hits) if outputs == 1 else ((told.sum(dim=0) + images) > 0)).double()
    recalls = hits / images.clamp(min=1.0)
    means = (recalls * counted).sum(dim=1) / counted.sum(dim=1)
    values: list[float] = means.masked_fill(~snapshots.isfinite().flatten(1).all(dim=1), -math.inf).tolist()
    return values


PROTOCOLS.register("eva")(Eva())
