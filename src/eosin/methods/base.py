"""What every self-supervised method offers to the training loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor, nn

from eosin.core.config import Config
from eosin.core.draws import Draws
from eosin.core.registry import Registry
from eosin.encoders import Encoder

__all__ = ["METHODS", "Method", "MethodConfig", "Setting", "Step"]


class MethodConfig(Config):
    """Fields of a method; each method adds its own."""

    name: str
    """Name in the registry of methods."""


class Step(NamedTuple):
    """What one forward pass of a method gives.

    Attributes:
        loss: Scalar to minimise.
        scalars: Named scalars for the log, detached; those under `watch/` are judged by the collapse watch.
        features: [B, D] encoder outputs of the first view, detached.
        pairs: Two [B, d] L2-normalised projections of the two views of the same tiles, detached.
    """

    loss: Tensor
    scalars: dict[str, Tensor]
    features: Tensor
    pairs: tuple[Tensor, Tensor]


class Setting(NamedTuple):
    """What the values of `auto` fields are chosen from.

    Attributes:
        tiles: Unlabelled tiles of the run.
        batch: Tiles per optimiser step over all processes.
        steps: Optimiser steps of the run.
    """

    tiles: int
    batch: int
    steps: int


class Method(nn.Module):
    """A self-supervised method: networks, loss and state.

    All state that a run needs lives in `state_dict()`. A method knows no files, devices or number of processes.

    Attributes:
        steps: Optimiser steps taken; part of the state.
        batch: Tiles per optimiser step over all processes, known after `prepare`.
        total_steps: Optimiser steps of the run, known after `prepare`.
    """

    Config: ClassVar[type[MethodConfig]]
    """The method's configuration model."""

    views: ClassVar[Mapping[str, int | None]]
    """The views it needs, in the order in which `forward` takes them: how many of each name, None for any number."""

    defaults: ClassVar[Mapping[str, Any]] = {}
    """The authors' optimiser and views, as far as they differ from the configuration's own defaults: nested fields
    under `optimizer`, `encoder` and `augment`."""

    norm: ClassVar[Literal["synchronized", "own"]] = "synchronized"
    """Whether batch norm takes its statistics over all processes, or the method sees to them."""

    chance_loss: float
    """The loss of a network that tells no two tiles apart: where a collapsed run ends."""

    def __init__(self) -> None:
        super().__init__()
        # Kept on the host: reading it from a GPU at each step would wait for it.
        self.steps = 0
        self.batch = 0
        self.total_steps = 0

    @classmethod
    def automatic(cls, config: Any, setting: Setting) -> dict[str, Any]:
        """Return values for the fields that may say `auto`, by dotted name, such as {"method.momentum": 0.99}.

        Args:
            config: The method's configuration, in which fields may still say `auto`.
            setting: Size of the data and length of the run.
        """
        return {}

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The network to evaluate and export."""

    @abstractmethod
    def forward(self, views: list[Tensor], draws: Draws | None = None) -> Step:
        """Compute the loss of one batch, or of one of the pieces into which a step's batch is cut.

        Args:
            views: float32 [B, 3, h, w] tensors, normalised, in the order of `views`.
            draws: Random draws of these tiles, for what is random inside the networks.
        """

    def prepare(self, batch: int, total_steps: int) -> None:
        """Take note of the run's size; called once before the first step, and again when a run is resumed.

        Args:
            batch: Tiles per optimiser step over all processes.
            total_steps: Optimiser steps of the run.

        Raises:
            EosinError: If the method cannot train so, naming the field and a value that works.
        """
        self.batch, self.total_steps = batch, total_steps

    def before_step(self) -> None:
        """Change the gradients before the optimiser sees them; called once an optimiser step."""

    def after_step(self) -> None:
        """Update the state that follows the optimiser; called once an optimiser step."""
        self.steps += 1

    def get_extra_state(self) -> dict[str, Any]:
        """Return the part of the state that is no tensor."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over what `get_extra_state` returned."""
        self.steps = state["steps"]


METHODS: Registry[Callable[..., Method]] = Registry("method")
"""Each entry is called with (config, encoder factory, seed); the factory takes `drop_path`, 0 unless given."""
