"""Linear classifiers on frozen, standardized features: a grid of learning rates and weight decays trained at once.

What DINOv2 trains (Oquab et al., TMLR 2024, `eval/linear.py`): one linear layer, cross-entropy, SGD with momentum 0.9,
a cosine schedule per step down to 0, 13 learning rates scaled by batch / 256, first weights from N(0, 0.01^2), the best
head chosen at the end. Its images are augmented, so it needs the encoder in every step; here the features are cached.
Two things differ, because any encoder must be served: features are standardized (He et al., CVPR 2022, put a batch norm
without weights there, as features of different encoders differ in scale by orders of magnitude), and three weight
decays stand beside each rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.evaluate.heads import Scaling, Span, class_means, outside_factor, sgd_heads, shuffled, with_ones
from eosin.evaluate.protocol import PROTOCOLS, Answer, Fit, Material, Prediction, Protocol, Rows

__all__ = ["LinearCached"]

_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
_VALIDATED = 1 << 22
"""Logits of validation images at once, over all heads."""


@dataclass(frozen=True, eq=False)
class _Training:
    """A fit made ready: the classes that it has, its scaled images, and where its heads start."""

    present: Rows
    scaling: Scaling
    images: Tensor
    span: Span
    labels: Tensor


@dataclass(frozen=True)
class LinearCached(Protocol):
    """SGD on cached features, for every learning rate and weight decay at once; the validation images choose.

    The head with the highest balanced accuracy on the validation images is taken; among equals the lower validation
    log-loss, then the smaller rate, then the larger decay. It is not fitted again. Classes without a training image
    have no output and probability 0.

    Every share of the labels is trained for `passes` passes, but for at least `least_steps` steps: a tenth of the
    labels must not mean a tenth of the training. Heads of one fit run side by side; fits follow one another on a CPU,
    where the weights of one fit just fill the cache, and run together on a GPU.

    Attributes:
        rates: Learning rates for a mini-batch of 256; multiplied by batch / 256.
        decays: Weight decays, of biases too.
        batch: Images of a step.
        passes: Over the training images.
        least_steps: Fewest steps.
        momentum: Of SGD.
    """

    name: ClassVar[str] = "linear-cached"
    version: ClassVar[int] = 1
    reference: ClassVar[str] = (
        "13 learning rates, SGD 0.9, cosine: DINOv2 (Oquab et al., TMLR 2024); on standardized features (He et al., "
        "CVPR 2022), x 3 weight decays"
    )
    changes: ClassVar[dict[int, str]] = {1: "first version"}

    rates: tuple[float, ...] = _RATES
    decays: tuple[float, ...] = (0.0, 1e-4, 1e-3)
    batch: int = 64
    passes: float = 10.0
    least_steps: int = 1250
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if not all(math.isfinite(rate) and rate > 0 for rate in self.rates):
            raise ValueError(f"rates={list(self.rates)} must be above 0")
        if not all(math.isfinite(decay) and decay >= 0 for decay in self.decays):
            raise ValueError(f"decays={list(self.decays)} must be at least 0")
        if self.batch < 1 or self.least_steps < 1 or not math.isfinite(self.passes) or self.passes < 0:
            raise ValueError(
                f"batch={self.batch} and least_steps={self.least_steps} must be at least 1, passes={self.passes} at"
                " least 0"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must lie in [0, 1)")

    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """See `Protocol.answers`."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        places = []
        for place, fit in enumerate(fits):
            problem = _problem(fit)
            if problem is None:
                places.append(place)
            else:
                yield Answer(place, "", problem)
        for group in self._groups(places, fits, material.features.shape[1], device):
            predictions = self._train(material.features, [fits[place] for place in group], material.classes, device)
            for place, prediction in zip(group, predictions, strict=True):
                yield Answer(place, "", prediction)

    def grid(self) -> tuple[Tensor, Tensor]:
        """Every learning rate, scaled by the mini-batch, with every decay: float64 [J] each."""
        rates, decays = torch.tensor(self.rates, dtype=torch.float64), torch.tensor(self.decays, dtype=torch.float64)
        return rates.repeat_interleave(len(decays)) * self.batch / 256, decays.repeat(len(rates))

    def steps(self, images: int) -> int:
        """Steps for a number of training images."""
        return max(self.least_steps, math.ceil(self.passes * images / self.batch))

    def _groups(self, places: list[int], fits: Sequence[Fit], width: int, device: torch.device) -> Iterator[list[int]]:
        """Fits that train in one go: of equally many images and classes, as many as fit the memory; one on a CPU."""
        if device.type == "cpu":
            yield from ([place] for place in places)
            return
        alike: dict[tuple[int, int], list[int]] = {}
        for place in places:
            fit = fits[place]
            alike.setdefault((len(fit.train), len(np.unique(fit.labels[fit.train]))), []).append(place)
        for (images, classes), members in alike.items():
            heads = len(self.rates) * len(self.decays)
            bytes_each = 4 * width * (2 * classes * heads + images)
            room = max(1, torch.cuda.mem_get_info(device)[0] // 3 // bytes_each)
            yield from (members[start : start + room] for start in range(0, len(members), room))

    def _train(
        self, features: npt.NDArray[np.float32], fits: list[Fit], classes: Sequence[str], device: torch.device
    ) -> list[Prediction | EosinError]:
        ready: list[_Training] = []
        for before, fit in zip([None, *fits], fits, strict=False):
            same = before is not None and np.array_equal(before.train, fit.train)
            ready.append(ready[-1] if same else _prepared(features, fit, device))
        rates, decays = self.grid()
        steps = self.steps(len(fits[0].train))
        starts = [_first_weights(features.shape[1], len(classes), fit.seed) for fit in fits]
        placed = [one.span.start(start[:, one.present].to(device)) for one, start in zip(ready, starts, strict=True)]
        orders = [shuffled(len(fit.train), self.batch, steps, stream_seed(fit.seed, self.name)) for fit in fits]
        trained = sgd_heads(
            [one.images for one in ready],
            [one.labels for one in ready],
            torch.stack([torch.cat([inside, torch.zeros_like(inside[:1])]) for inside, _ in placed]),
            torch.as_tensor(np.stack(orders), device=device),
            rates,
            decays,
            self.momentum,
        )
        shrunk = outside_factor(rates, decays, steps, self.momentum).to(device, torch.float32)
        predictions: list[Prediction | EosinError] = []
        for one, fit, weights, (_, outside) in zip(ready, fits, trained, placed, strict=True):
            whole = torch.cat([one.span.whole(weights[:-1], outside, shrunk), weights[-1:]])
            predictions.append(self._choose(features, fit, one, whole, len(classes), steps))
        return predictions

    def _choose(
        self,
        features: npt.NDArray[np.float32],
        fit: Fit,
        training: _Training,
        weights: Tensor,
        classes: int,
        steps: int,
    ) -> Prediction | EosinError:
        """Choose among weights [D + 1, C present, J] by the validation images and predict the test images.

        A head that diverged is not chosen, whatever class its comparisons with NaN come out as.
        """
        rates, decays = self.grid()
        accuracies, losses = _validated(features, fit, training, weights)
        # Rounded, so that equal heads are equal however their sums were ordered.
        keys = [
            (-round(accuracies[head], 9), round(losses[head], 6), float(rates[head]), -float(decays[head]))
            for head in range(len(rates))
        ]
        finite = weights.isfinite().flatten(0, 1).all(dim=0).tolist()
        alive = [head for head in range(len(keys)) if finite[head] and math.isfinite(losses[head])]
        if not alive:
            return EosinError(
                "linear-cached: every head diverged; try smaller rates, linear-cached?rates=0.0001+0.00001"
            )
        best = min(alive, key=keys.__getitem__)
        test = training.scaling.apply(features, fit.test, np.float64)
        chosen = weights[:, :, best].double().cpu().numpy()
        logits = test @ chosen[:-1] + chosen[-1]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = np.zeros((len(fit.test), classes))
        probabilities[:, training.present] = shares / shares.sum(axis=1, keepdims=True)
        rate, decay = self.rates[best // len(self.decays)], self.decays[best % len(self.decays)]
        facts: dict[str, Any] = {
            "rate": rate,
            "decay": decay,
            "by": "validation balanced accuracy",
            "validation_balanced_accuracy": accuracies[best],
            "steps": steps,
            "at_edge_of_grid": rate in (min(self.rates), max(self.rates)),
        }
        return Prediction(probabilities, facts)


def _problem(fit: Fit) -> EosinError | None:
    if not len(fit.val):
        return EosinError("linear-cached: no validation images to choose the learning rate on; give a val split")
    if len(np.unique(fit.labels[fit.train])) < 2:
        return EosinError("linear-cached: the training images are of one class only; give images of a second class")
    return None


def _prepared(features: npt.NDArray[np.float32], fit: Fit, device: torch.device) -> _Training:
    scaling = Scaling.of(features, fit.train)
    images = torch.as_tensor(scaling.apply(features, fit.train)).to(device)
    present, labels = np.unique(fit.labels[fit.train], return_inverse=True)
    span = Span.of(images)
    return _Training(present, scaling, with_ones(span.inside(images)), span, torch.as_tensor(labels, device=device))


def _first_weights(width: int, classes: int, seed: int) -> Tensor:
    """N(0, 0.01^2) for every class of the task, whether it has training images or not: float32 [D, C]."""
    generator = np.random.default_rng(stream_seed(seed, "linear-cached", "start"))
    return torch.as_tensor(generator.normal(0.0, 0.01, (width, classes)).astype(np.float32))


def _validated(
    features: npt.NDArray[np.float32], fit: Fit, training: _Training, weights: Tensor
) -> tuple[list[float], list[float]]:
    """Balanced accuracy and log-loss of every head on the validation images.

    An image of a class that was not trained counts as wrong, and not in the loss, where it would be the same for all.
    """
    width, classes, heads = weights.shape
    device = weights.device
    known = np.full(int(max(training.present.max(), fit.labels[fit.val].max())) + 1, -1)
    known[training.present] = np.arange(classes)
    truth = torch.as_tensor(known[fit.labels[fit.val]], device=device)
    hits, losses = [], torch.zeros(heads, dtype=torch.float64, device=device)
    step = max(1, _VALIDATED // (classes * heads))
    for first in range(0, len(fit.val), step):
        rows = fit.val[first : first + step]
        images = with_ones(torch.as_tensor(training.scaling.apply(features, rows)).to(device))
        logits = (images @ weights.reshape(width, classes * heads)).view(len(rows), classes, heads)
        wanted = truth[first : first + step]
        hits.append(logits.argmax(dim=1) == wanted[:, None])
        inside = wanted >= 0
        picked = torch.log_softmax(logits[inside], dim=1)
        places = wanted[inside][:, None, None].expand(-1, 1, heads)
        losses -= picked.gather(1, places).squeeze(1).sum(dim=0, dtype=torch.float64)
    labels = torch.as_tensor(fit.labels[fit.val], device=device)
    accuracies = class_means(torch.cat(hits), labels, int(labels.max()) + 1)
    counted = max(1, int((truth >= 0).sum()))
    return accuracies.tolist(), (losses / counted).tolist()


PROTOCOLS.register("linear-cached")(LinearCached())
