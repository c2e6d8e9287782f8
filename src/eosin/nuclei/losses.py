"""The four losses of HoVer-Net (Graham et al., Medical Image Analysis 2019, section 3.2).

Nucleus and type branch: cross entropy and Dice loss. With probabilities p [N, C, h, w], the one-hot truth t, and sums
over the tiles and pixels of a batch,

    bce = - mean over pixels of log p_true,   p cut to 1e-7 .. 1 - 1e-7,
    dice = sum over c of  1 - (2 sum p_c t_c + 1e-3) / (sum p_c + sum t_c + 1e-3),   background included.

HV branch: mean squared error of the maps, and of their gradients inside nuclei,

    mse = mean (p - t)^2,      msge = sum over nucleus pixels of ((dp - dt)_h^2 + (dp - dt)_v^2) / (2 n + 1e-8),

where n is the number of nucleus pixels, 2 n since the authors' mask has both channels, and the gradient is a
convolution with the 5 x 5 kernel h / (h^2 + v^2).

The paper takes the gradient of the horizontal map along the horizontal and of the vertical map along the vertical:
these are the directions in which touching nuclei jump. The authors' PyTorch code builds its kernels with the axes
exchanged, so it differentiates each map along the other direction, in which it is nearly constant. `gradient="along"`,
the default, is the paper's; `"official"` is what that code computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from eosin.core.config import Config
from eosin.core.errors import EosinError

__all__ = ["HoverLoss", "LossConfig", "bce", "dice", "hover_loss", "mse", "msge"]

_SMALLEST = 1e-7
_SMOOTH = 1e-3


class LossConfig(Config):
    """Weights of the losses; all 1 as published."""

    np_bce: float = Field(1.0, ge=0.0)
    """Cross entropy of nucleus or not."""
    np_dice: float = Field(1.0, ge=0.0)
    """Dice loss of nucleus or not."""
    hv_mse: float = Field(1.0, ge=0.0)
    """Squared error of the horizontal and vertical maps."""
    hv_msge: float = Field(1.0, ge=0.0)
    """Squared error of their gradients, inside nuclei."""
    tp_bce: float = Field(1.0, ge=0.0)
    """Cross entropy of the type."""
    tp_dice: float = Field(1.0, ge=0.0)
    """Dice loss of the type."""
    gradient: Literal["along", "official"] = "along"
    """Direction of the gradients: the paper's, or that of the authors' PyTorch code."""


class HoverLoss(NamedTuple):
    """The loss of a batch.

    Attributes:
        total: Scalar float32 with a gradient.
        parts: The unweighted losses by name (`np_bce`, ...), detached scalars.
    """

    total: Tensor
    parts: dict[str, Tensor]


def bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute the cross entropy.

    Args:
        logits: Float [N, C, h, w].
        truth: int64 [N, h, w], classes 0..C-1.

    Returns:
        Scalar, 0 to 16.1: a pixel whose true class has a probability below 1e-7 no longer pulls.
    """
    chosen = F.log_softmax(logits, dim=1).gather(1, truth[:, None])
    return -chosen.clamp(math.log(_SMALLEST), math.log1p(-_SMALLEST)).mean()


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute the Dice loss, summed over the classes; arguments as of `bce`.

    Returns:
        Scalar, 0 to C.
    """
    probabilities = logits.softmax(dim=1)
    dims = (0, 2, 3)
    # The sums over a class's own pixels need no one-hot truth of C channels in float.
    hits = torch.zeros_like(probabilities).scatter_(1, truth[:, None], probabilities.gather(1, truth[:, None]))
    own = torch.stack([(truth == kind).sum() for kind in range(logits.shape[1])]).to(probabilities)
    overlap, said = hits.sum(dim=dims), probabilities.sum(dim=dims)
    return (1 - (2 * overlap + _SMOOTH) / (said + own + _SMOOTH)).sum()


def mse(predicted: Tensor, truth: Tensor) -> Tensor:
    """Compute the mean squared error of HV maps, [N, 2, h, w] each."""
    return (predicted - truth).square().mean()


def msge(predicted: Tensor, truth: Tensor, nuclei: Tensor, gradient: Literal["along", "official"] = "along") -> Tensor:
    """Compute the mean squared error of the gradients of HV maps.

    Args:
        predicted: Float [N, 2, h, w], horizontal then vertical.
        truth: Likewise.
        nuclei: [N, h, w], nonzero inside nuclei.
        gradient: Direction; see the module.
    """
    steps = torch.arange(-2.0, 3.0, dtype=predicted.dtype, device=predicted.device)
    across = steps[None, :] / (steps[None, :].square() + steps[:, None].square() + 1e-15)
    first, second = (across, across.T) if gradient == "along" else (across.T, across)
    kernels = torch.stack([first, second])[:, None]
    # The gradient is linear: that of the difference is the difference of the gradients, at half the cost.
    change = F.conv2d(predicted - truth, kernels, padding=2, groups=2)
    inside = (nuclei > 0).to(change)[:, None]
    return (change.square() * inside).sum() / (2 * inside.sum() + 1e-8)


def hover_loss(
    outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor], config: LossConfig | None = None
) -> HoverLoss:
    """Compute all losses of a batch, in at least float32.

    Args:
        outputs: "np": [N, 2, h, w] logits, "hv": [N, 2, h, w], and "tp": [N, C, h, w] logits where types are learned.
        targets: "np": integer [N, h, w], "hv": float [N, 2, h, w], and "tp": integer [N, h, w], under 0..C-1.
        config: Weights.

    Raises:
        EosinError: If types are predicted but not given, or the other way around.
    """
    config = config or LossConfig()
    if ("tp" in outputs) != ("tp" in targets):
        missing = "targets" if "tp" in outputs else "outputs"
        raise EosinError(f"types are in one of outputs and targets and missing in the {missing}; give both or neither")
    weights = config.model_dump(exclude={"gradient"})
    with torch.autocast(outputs["np"].device.type, enabled=False):
        said = {name: value.to(torch.promote_types(value.dtype, torch.float32)) for name, value in outputs.items()}
        parts: dict[str, Tensor] = {}
        for branch in ("np", "tp"):
            if branch in said:
                truth = targets[branch].long()
                parts[f"{branch}_bce"] = bce(said[branch], truth)
                parts[f"{branch}_dice"] = dice(said[branch], truth)
        maps = targets["hv"].to(said["hv"])
        parts["hv_mse"] = mse(said["hv"], maps)
        parts["hv_msge"] = msge(said["hv"], maps, targets["np"], config.gradient)
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
    return HoverLoss(total, {name: value.detach() for name, value in parts.items()})
