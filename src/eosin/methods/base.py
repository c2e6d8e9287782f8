"""What every self-supervised method offers to the training loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from eosin.core.config import Config
from eosin.core.registry import Registry
from eosin.encoders import Encoder

__all__ = ["METHODS", "Method", "MethodConfig", "Step"]


class MethodConfig(Config):
    """Fields of a method; each method adds its own."""

    name: str
    """Name in the registry of methods."""


class Step(NamedTuple):
    """What one forward pass of a method gives.

    Attributes:
        loss: Scalar to minimise.
        scalars: Named scalars for the log, detached.
        features: [B, D] encoder outputs of the first view, detached.
        pairs: Two [B, d] L2-normalised projections of the two views of the same tiles, detached.
    """

    loss: Tensor
    scalars: dict[str, Tensor]
    features: Tensor
    pairs: tuple[Tensor, Tensor]


class Method(nn.Module):
    """A self-supervised method: networks, loss and state.

    All state that a run needs lives in `state_dict()`. A method knows no files, devices or number of processes.
    """

    Config: ClassVar[type[MethodConfig]]
    """The method's configuration model."""

    views: ClassVar[dict[str, int]]
    """The views it needs: how many of each name, in the order in which `forward` takes them."""

    chance_loss: float
    """The loss of a network that tells no two tiles apart: where a collapsed run ends."""

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The network to evaluate and export."""

    @abstractmethod
    def forward(self, views: list[Tensor]) -> Step:
        """Compute the loss of one batch.

        Args:
            views: float32 [B, 3, h, w] tensors, normalised, in the order of `views`.
        """

    def after_step(self, step: int) -> None:
        """Update the state that follows the optimiser.

        Args:
            step: The optimiser step just taken, counted from 0.
        """

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups to optimise, with any per-group settings."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def check(self, batch: int) -> None:
        """Refuse a batch that the method cannot train with.

        Args:
            batch: Tiles per optimiser step over all processes.

        Raises:
            EosinError: Naming the field and a value that works.
        """


METHODS: Registry[Callable[..., Method]] = Registry("method")
"""Each entry is called with (config, encoder factory, seed)."""
