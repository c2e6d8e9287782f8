"""Optimisers by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch.optim import Optimizer

from eosin.core.config import Config

__all__ = ["OptimizerConfig", "build_optimizer", "set_learning_rate"]

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class OptimizerConfig(Config):
    """The optimiser and its learning-rate schedule (linear warm-up, then cosine)."""

    name: Literal["sgd", "adamw"] = "sgd"
    """sgd or adamw."""
    lr: float = Field(0.03, gt=0.0)
    """Peak learning rate at a batch of 256; scaled linearly with the batch unless `scale_lr` is false."""
    scale_lr: bool = True
    """Multiply `lr` by batch / 256."""
    final_lr: float = Field(0.0, ge=0.0)
    """Learning rate at the end, scaled likewise."""
    warmup_samples: int = Field(0, ge=0)
    """Length of the linear warm-up from 0, in samples."""
    stair_samples: int = Field(0, ge=0)
    """Hold the learning rate for this many samples; 0 changes it at every step."""
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """Momentum (sgd)."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates (adamw)."""
    weight_decay: float = Field(1e-4, ge=0.0)
    """Weight decay."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def scaled(self, lr: float, batch: int) -> float:
        """Return a learning rate as used with a batch of `batch` tiles."""
        return lr * batch / 256 if self.scale_lr else lr


def build_optimizer(config: OptimizerConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """Build the optimiser over a method's parameter groups; the loop sets the learning rate at each step."""
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, foreach=True)
    return torch.optim.SGD(
        groups,
        lr=0.0,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        foreach=True,
    )


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all groups; a group's own `lr_scale` multiplies it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
