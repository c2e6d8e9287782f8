"""Scalars of steps, summed where they are computed until they are logged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from eosin.core.collective import average

__all__ = ["Sums"]


class Sums:
    """Sums of named scalars over steps; reading one each step would make the host wait for a GPU.

    Args:
        device: Where the scalars are.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.values: dict[str, Tensor] = {}
        self.steps = 0

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Add one step's scalars, averaged over the processes, in float64."""
        stacked = average(torch.stack([value.detach().double() for value in scalars.values()]))
        for name, value in zip(scalars, stacked.unbind(), strict=True):
            self.values[name] = self.values[name] + value if name in self.values else value
        self.steps += 1

    def finite(self) -> bool:
        """Tell whether all that was summed is finite; on a GPU this waits for it."""
        return not self.values or bool(torch.isfinite(torch.stack(list(self.values.values()))).all())

    def take(self) -> dict[str, float]:
        """Return the means over the steps, and begin anew."""
        means = {name: value.item() / max(1, self.steps) for name, value in self.values.items()}
        self.values, self.steps = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return all of the state, for a checkpoint."""
        return {"values": self.values, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.values = {name: value.to(self.device) for name, value in state["values"].items()}
        self.steps = state["steps"]
