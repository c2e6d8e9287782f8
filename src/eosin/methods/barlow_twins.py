"""Barlow Twins.

One network, a backbone and a three-layer projector, sees both views of a tile. Its outputs are brought to mean 0 and
variance 1 per dimension over the batch, each view by itself, which gives z_a and z_b in R^(N x D), and

    C = z_a^T z_b / N,        loss = sum_d (C_dd - 1)^2 + lambda sum_{d != e} C_de^2.

The first term makes every dimension the same for both views, the second makes dimensions tell different things. C is
taken over the tiles of all processes.

A batch of N < D tiles needs no D x D matrix. With the Gram matrices of the two views,

    |C|_F^2 = < z_a z_a^T, z_b z_b^T > / N^2,        C_dd = sum_n z_a,nd z_b,nd / N,

the loss is  sum_d (C_dd - 1)^2 + lambda (|C|_F^2 - sum_d C_dd^2), exactly.

J. Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021; authors' code:
facebookresearch/barlowtwins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from eosin.core.collective import gather_with_gradient
from eosin.core.draws import Draws, stream_seed
from eosin.core.errors import EosinError
from eosin.encoders import Encoder
from eosin.methods.base import METHODS, Method, MethodConfig, Setting, Step

__all__ = ["BarlowTwins", "BarlowTwinsConfig", "barlow_twins_loss"]

_WARMUP = 12_811_670
"""Ten epochs of ImageNet-1k, in images."""

_BIAS_SHARE = 0.024
"""Learning rate of biases and norms relative to that of weights: what is left of the authors' `--scale-loss`."""

_VIEW: Mapping[str, Any] = {
    "count": 1,
    "size": 224,
    "scale": [0.08, 1.0],
    "interpolation": "bicubic",
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "probability": 0.8},
    "grayscale": 0.2,
}
_DEFAULTS: Mapping[str, Any] = {
    "optimizer": {
        "name": "lars",
        "lr": 0.2,
        "bias_lr": 0.0048,
        "final_lr": 0.0002,
        "warmup_samples": _WARMUP,
        "weight_decay": 1e-6,
        "decay_vectors": False,
    },
    "augment": {
        "views": {
            "first": {**_VIEW, "blur": {"probability": 1.0}},
            "second": {**_VIEW, "blur": {"probability": 0.1}, "solarize": {"probability": 0.2}},
        }
    },
}

Width = Annotated[int, Field(ge=2)]


class BarlowTwinsConfig(MethodConfig):
    """Barlow Twins; the defaults are the authors' (`main.py`)."""

    name: Literal["barlowtwins"] = "barlowtwins"
    hidden: Width | Literal["auto"] = 8192
    """Width of the projector's two hidden layers."""
    dim: Width | Literal["auto"] = 8192
    """Width of the projections that are correlated (D)."""
    redundancy: float = Field(0.0051, ge=0.0)
    """Weight of the correlations between different dimensions (lambda)."""


def barlow_twins_loss(z_a: Tensor, z_b: Tensor, redundancy: float) -> Tensor:
    """Compute the Barlow Twins loss in the cheaper of its two exact forms.

    Args:
        z_a: Float [N, D], projections of the first view, normalised per dimension over the N tiles.
        z_b: Float [N, D], projections of the second view, normalised likewise.
        redundancy: Weight of the correlations between different dimensions.

    Returns:
        Scalar; there is no second derivative.
    """
    return _weigh(*_correlate(z_a, z_b), redundancy)


@METHODS.register("barlowtwins")
class BarlowTwins(Method):
    """Redundancy reduction between two views.

    Args:
        config: The method's fields.
        make_encoder: Builds an untrained encoder; called once.
        seed: Seed of the networks.
    """

    Config: ClassVar[type[MethodConfig]] = BarlowTwinsConfig
    views: ClassVar[Mapping[str, int | None]] = {"first": 1, "second": 1}
    defaults: ClassVar[Mapping[str, Any]] = _DEFAULTS

    def __init__(self, config: BarlowTwinsConfig, make_encoder: Callable[..., Encoder], seed: int) -> None:
        super().__init__()
        self.config = config
        self.dim, hidden = int(config.dim), int(config.hidden)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "barlowtwins"))
            self.backbone = make_encoder()
            layers: list[nn.Module] = []
            for inputs in (self.backbone.width, hidden):
                layers += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
            self.projector = nn.Sequential(*layers, nn.Linear(hidden, self.dim, bias=False))
        self.view_norm = nn.BatchNorm1d(self.dim, affine=False)
        # Constant projections are 0 after the norm, unrelated ones correlate by chance: C is near 0 either way.
        self.chance_loss = float(self.dim)

    @classmethod
    def automatic(cls, config: Any, setting: Setting) -> dict[str, Any]:
        """See `Method.automatic`.

        Learning rates follow the authors' table over the batch, 0.7 at 128 to 0.2 at 2048, for LARS; widths are ours:
        n tiles can decorrelate no more than n dimensions, and fewer leave the loss something to average over.
        """
        width = next((width for limit, width in _WIDTHS.items() if setting.tiles < limit), 8192)
        lr = float(np.interp(math.log2(setting.batch), *_LEARNING_RATES))
        return {
            "method.hidden": width,
            "method.dim": width,
            "optimizer.lr": round(lr, 4),
            "optimizer.bias_lr": round(_BIAS_SHARE * lr, 6),
            "optimizer.warmup_samples": min(_WARMUP, int(0.1 * setting.steps) * setting.batch),
        }

    @property
    def encoder(self) -> Encoder:
        """The backbone."""
        return self.backbone

    def prepare(self, batch: int, total_steps: int) -> None:
        """See `Method.prepare`."""
        super().prepare(batch, total_steps)
        if batch < 2:
            raise EosinError(
                "batch_size 1: correlations are taken over the tiles of a batch; use --batch_size 2 or more"
            )

    def forward(self, views: list[Tensor], draws: Draws | None = None) -> Step:
        """See `Method.forward`; each view passes by itself, so batch norm never mixes the statistics of the two."""
        features, z_a = self._project(views[0])
        _, z_b = self._project(views[1])
        with torch.autocast(z_a.device.type, enabled=False):
            diagonal, others = _correlate(gather_with_gradient(z_a), gather_with_gradient(z_b))
            loss = _weigh(diagonal, others, self.config.redundancy)
        scalars = {
            "watch/redundancy": others.detach() / (self.dim * (self.dim - 1)),
            "watch/view_correlation": diagonal.detach().mean(),
        }
        pairs = (F.normalize(z_a.detach(), dim=1), F.normalize(z_b.detach(), dim=1))
        return Step(loss, scalars, features.detach().float(), pairs)

    def _project(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of a view, and its projections normalised over the batch in at least float32."""
        features = self.backbone(view)
        projections = self.projector(features)
        with torch.autocast(projections.device.type, enabled=False):
            exact = projections.to(torch.promote_types(projections.dtype, torch.float32))
            return features, self.view_norm(exact)


_WIDTHS = {20_000: 1024, 100_000: 2048, 500_000: 4096}
"""Number of tiles below which a projector has this width."""

_LEARNING_RATES = ([6.0, 7.0, 8.0, 9.0, 10.0, 11.0], [1.0, 0.7, 0.4, 0.3, 0.25, 0.2])
"""log2 of the batch, and the best learning rate per 256 tiles in the authors' runs of 300 epochs; at 64 their guess."""


def _correlate(z_a: Tensor, z_b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the diagonal of C, [D], and the sum of the squares of its other entries."""
    tiles, dim = z_a.shape
    if tiles >= dim:
        matrix = z_a.T @ z_b / tiles
        return matrix.diagonal(), matrix.square().fill_diagonal_(0).sum()
    diagonal = torch.linalg.vecdot(z_a, z_b, dim=0) / tiles
    # The gradient of |C|^2 is (z_b z_b^T) z_a for either place in which z_a stands in its own Gram matrix: taken for
    # one and doubled, it costs half the products.
    half = ((z_a @ z_a.detach().T) * (z_b @ z_b.detach().T)).sum() / tiles**2
    return diagonal, 2 * half - half.detach() - diagonal.square().sum()


def _weigh(diagonal: Tensor, others: Tensor, redundancy: float) -> Tensor:
    return (diagonal - 1).square().sum() + redundancy * others
