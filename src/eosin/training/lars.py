"""Layer-wise adaptive rates: LARS as in Barlow Twins, LARC as in SwAV.

Both scale the update of each parameter p, with gradient g, to a length relative to |p|; with trust t, weight decay w,
momentum m and learning rate r,

    LARS    u = g + w p
            u <- u t |p| / |u|                          (1 instead of the factor if |p| or |u| is 0)
    LARC    u = (g + w p) t |p| / (|g| + w |p| + 1e-8)  (u = g if |p| or |g| is 0)

    v <- m v + u,    p <- p - r v

with v = 0 at first. Barlow Twins' LARS leaves biases and the weights of norms unadapted; SwAV's LARC adapts them too.

Y. You et al., "Large Batch Training of Convolutional Networks", arXiv:1708.03888; authors' code:
facebookresearch/barlowtwins (`main.py`); NVIDIA/apex (`apex/parallel/LARC.py`, with clip=False), which SwAV uses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["LARC", "LARS"]


class _Adaptive(Optimizer):
    """Momentum over updates that a subclass computes for all parameters of a group at once, none read on the host.

    Args:
        parameters: Parameters or parameter groups.
        lr: Learning rate.
        momentum: Decay of the running sum of updates.
        weight_decay: Weight decay.
        trust: Length of an update relative to its parameter.
    """

    _rules: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        super().__init__(parameters, {**defaults, **self._rules})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay as they are, and so does their momentum.

        Args:
            closure: Computes the loss anew and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._step(group, parameters)
        return loss

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        updates = self._updates(group, parameters, [parameter.grad for parameter in parameters])  # type: ignore[misc]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        velocities = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, updates)
        torch._foreach_add_(parameters, velocities, alpha=-group["lr"])

    @abstractmethod
    def _updates(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        """Return u of each parameter; the gradients must stay as they are."""


class LARS(_Adaptive):
    """Barlow Twins' LARS; a group's `adapted` says whether its updates are scaled, true unless given."""

    _rules: ClassVar[Mapping[str, Any]] = {"adapted": True}

    def _updates(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        updates = gradients
        if group["weight_decay"]:
            updates = list(torch._foreach_add(updates, parameters, alpha=group["weight_decay"]))
        if not group["adapted"]:
            return updates
        lengths, sizes = _norms(updates), _norms(parameters)
        ratios = torch.where((lengths > 0) & (sizes > 0), group["trust"] * sizes / lengths, 1.0)
        return _scaled(updates, ratios, own=updates is not gradients)


class LARC(_Adaptive):
    """Apex's LARC, without clipping, around SGD with momentum."""

    def _updates(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        decay = group["weight_decay"]
        lengths, sizes = _norms(gradients), _norms(parameters)
        ratios = torch.where(sizes > 0, group["trust"] * sizes / (lengths + decay * sizes + 1e-8), 1.0)
        # Without a gradient there is no weight decay either.
        ratios = torch.where(lengths > 0, ratios, 0.0)
        return _scaled(list(torch._foreach_add(gradients, parameters, alpha=decay)), ratios, own=True)


def _scaled(updates: list[Tensor], ratios: Tensor, *, own: bool) -> list[Tensor]:
    """Multiply each update by its ratio, in place where the updates are no one else's."""
    if not own:
        return list(torch._foreach_mul(updates, list(ratios.unbind())))
    torch._foreach_mul_(updates, list(ratios.unbind()))
    return updates


def _norms(tensors: list[Tensor]) -> Tensor:
    return torch.stack(torch._foreach_norm(tensors))
