"""Optimisers by name, and what a step sets on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.training.lars import LARC, LARS
from eosin.training.schedules import cosine, warmup_cosine

__all__ = ["OptimizerConfig", "build_optimizer", "check_schedule", "clip_gradients", "set_hyperparameters"]

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Samples = Annotated[int, Field(ge=0)]


class OptimizerConfig(Config):
    """The optimiser, its learning-rate schedule (linear warm-up, then cosine) and its parameter groups."""

    name: Literal["sgd", "lars", "larc", "adamw"] = "sgd"
    """sgd, lars (Barlow Twins'), larc (SwAV's) or adamw."""
    lr: PositiveFloat | Literal["auto"] = 0.03
    """Peak learning rate at a batch of 256; scaled linearly with the batch unless `scale_lr` is false."""
    scale_lr: bool = True
    """Multiply `lr`, and with it `bias_lr` and `warmup_lr`, by batch / 256."""
    bias_lr: PositiveFloat | Literal["auto"] | None = None
    """Peak learning rate of parameters of one dimension (biases, weights of norms), scaled as `lr`; null takes `lr`."""
    final_lr: float = Field(0.0, ge=0.0)
    """Learning rate at the end."""
    scale_final_lr: bool = True
    """Scale `final_lr` as `lr`; false takes it as it is."""
    warmup_samples: Samples | Literal["auto"] = 0
    """Length of the linear warm-up, in samples."""
    warmup_lr: float = Field(0.0, ge=0.0)
    """Learning rate at the start of the warm-up, scaled as `lr`."""
    stair_samples: int = Field(0, ge=0)
    """Hold the learning rate for this many samples; 0 changes it at every step."""
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    """Momentum (sgd, lars, larc)."""
    nesterov: bool = False
    """Nesterov momentum (sgd)."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates (adamw)."""
    weight_decay: float = Field(1e-4, ge=0.0)
    """Weight decay."""
    final_weight_decay: float | None = Field(None, ge=0.0)
    """Weight decay at the end, reached along a cosine in every step; null keeps it constant."""
    decay_vectors: bool = True
    """Apply weight decay to parameters of one dimension too."""
    trust: float = Field(0.001, gt=0.0)
    """Length of a parameter's update relative to the parameter, at a learning rate of 1 (lars, larc)."""
    clip: PositiveFloat | None = None
    """Largest L2 norm of the gradient of each parameter by itself; null does not clip."""

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> Self:
        if self.nesterov and self.name != "sgd":
            raise ValueError(f"nesterov is for sgd, {self.name} has none; use false")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def scaled(self, lr: float | Literal["auto"], batch: int) -> float:
        """Return a learning rate as used with a batch of `batch` tiles."""
        assert lr != "auto"
        return lr * batch / 256 if self.scale_lr else lr


def build_optimizer(config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
    """Build the optimiser; learning rates and weight decay are set by `set_hyperparameters` before each step.

    Parameters of more than one dimension form one group, biases and other vectors another, if they are treated
    differently.

    Args:
        config: Fields without `auto`.
        parameters: Named parameters, on the device where they stay; those that need no gradient are left out.
    """
    groups = _groups(config, parameters)
    if config.name == "lars":
        return LARS(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, trust=config.trust)
    if config.name == "larc":
        return LARC(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, trust=config.trust)
    optimizer: Optimizer
    if config.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    else:
        optimizer = torch.optim.SGD(
            groups,
            lr=0.0,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if config.momentum:
            _start_momentum(optimizer)
    optimizer.register_step_pre_hook(_align_gradients)
    return optimizer


def set_hyperparameters(optimizer: Optimizer, config: OptimizerConfig, step: int, steps: int, batch: int) -> float:
    """Set the learning rate and the weight decay of every group for one step.

    Args:
        optimizer: As built by `build_optimizer`.
        config: Fields without `auto`.
        step: Step counted from 0.
        steps: Steps of the run.
        batch: Tiles per step over all processes.

    Returns:
        The learning rate of parameters of more than one dimension.
    """
    assert config.warmup_samples != "auto"
    lr = warmup_cosine(
        step,
        steps,
        peak=config.scaled(config.lr, batch),
        final=config.scaled(config.final_lr, batch) if config.scale_final_lr else config.final_lr,
        warmup=config.warmup_samples // batch,
        start=config.scaled(config.warmup_lr, batch),
        stair=max(1, config.stair_samples // batch),
    )
    decay = config.weight_decay
    if config.final_weight_decay is not None:
        decay = cosine(step, steps, decay, config.final_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = decay if group["decays"] else 0.0
    return lr


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> None:
    """Shorten the gradient of each parameter, by itself, to an L2 norm of `limit`; nothing is read on the host.

    Args:
        parameters: Those without a gradient are passed over.
        limit: Largest norm.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return
    norms = torch.stack(torch._foreach_norm(gradients))
    torch._foreach_mul_(gradients, list((limit / (norms + 1e-6)).clamp(max=1.0).unbind()))


def check_schedule(config: OptimizerConfig, samples: int) -> None:
    """Refuse a warm-up, or a first stair of the learning rate, that the run does not outlast.

    Args:
        config: Fields without `auto`.
        samples: Length of the run in samples.
    """
    assert config.warmup_samples != "auto"
    if config.warmup_samples >= samples:
        raise EosinError(
            f"optimizer.warmup_samples {config.warmup_samples}: the warm-up is longer than the run of {samples} "
            f"samples; use --optimizer.warmup_samples {samples // 10}, or more --samples"
        )
    if config.stair_samples >= samples:
        raise EosinError(
            f"optimizer.stair_samples {config.stair_samples}: the learning rate would never change in a run of "
            f"{samples} samples; use --optimizer.stair_samples 0 to change it at every step"
        )


def _groups(config: OptimizerConfig, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Collect parameters under the rules that hold for them, matrices first."""
    assert config.lr != "auto"
    assert config.bias_lr != "auto"
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            (vectors if parameter.ndim <= 1 or name.endswith(".bias") else matrices).append(parameter)
    rules: dict[str, Any] = {"lr_scale": 1.0, "decays": True}
    rules_of_vectors = {
        "lr_scale": 1.0 if config.bias_lr is None else config.bias_lr / config.lr,
        "decays": config.decay_vectors,
    }
    if config.name == "lars":
        rules["adapted"], rules_of_vectors["adapted"] = True, False
    if rules == rules_of_vectors:
        matrices, vectors = [*matrices, *vectors], []
    groups = [{"params": matrices, **rules}, {"params": vectors, **rules_of_vectors}]
    return [group for group in groups if group["params"]]


def _start_momentum(optimizer: Optimizer) -> None:
    """Give every parameter a momentum of zero, which its first gradient replaces.

    PyTorch's fused SGD cannot take a step in which some parameters have a momentum and others, frozen until then, not.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _align_gradients(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Lay out each gradient as its parameter: the fused CPU kernels walk through both in storage order, unchecked."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is not None and gradient.stride() != parameter.stride():
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
