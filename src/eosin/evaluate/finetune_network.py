"""What fine-tuning trains: a copy of the encoder with a linear head, and its parameters in layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from eosin.core.errors import EosinError
from eosin.encoders.forward import forward_errors
from eosin.evaluate.pixels import balanced_accuracy_and_loss

if TYPE_CHECKING:
    from eosin.encoders import Encoder
    from eosin.methods.drop_path import PositionalDropPath

__all__ = ["Classifier", "build_classifier", "layer_numbers", "parameter_groups", "probe_head"]

Rows = npt.NDArray[np.int64]


class Classifier(nn.Module):
    """An encoder and a linear layer on its embedding.

    Attributes:
        encoder: The encoder, a copy.
        head: Linear(width, classes).
        drop_paths: Layers of stochastic depth, whose masks `draw_masks` sets; none without it.
    """

    def __init__(self, encoder: Encoder, classes: int, drop_paths: Sequence[PositionalDropPath] = ()) -> None:
        super().__init__()
        self.encoder = encoder
        # Without PyTorch's draws, which would move the caller's generator.
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, encoder.width, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.drop_paths = tuple(drop_paths)

    def forward(self, images: Tensor) -> Tensor:
        """Map float32 [B, 3, H, W], normalized, to logits [B, C]."""
        with forward_errors(self.encoder.card, images.shape[-1]):
            features = self.encoder(images)
        logits: Tensor = self.head(features)
        return logits


def build_classifier(encoder: Encoder, classes: int, drop_path: float = 0.0) -> Classifier:
    """Copy an encoder, all of its parameters to be trained, and put a head of zeros on it.

    Args:
        encoder: Left as it is.
        classes: C.
        drop_path: Largest rate of stochastic depth (0..1), linear over the blocks.

    Raises:
        EosinError: If the encoder has no parameters, or no stochastic depth and some is asked for.
    """
    if not any(True for _ in encoder.backbone.parameters()):
        raise EosinError(f"{encoder.card.spec}: has no weights to fine-tune; choose a network, or another protocol")
    own = copy.deepcopy(encoder)
    layers = _add_drop_path(own, drop_path) if drop_path else []
    for parameter in own.parameters():
        parameter.requires_grad_(True)
    return Classifier(own, classes, layers)


def _add_drop_path(encoder: Encoder, rate: float) -> list[PositionalDropPath]:
    """Put stochastic depth where timm puts it in a network that is built with it, and leaves an empty place else."""
    from timm.layers import DropPath

    from eosin.encoders.backbone import create_backbone
    from eosin.methods.drop_path import PositionalDropPath

    card = encoder.card
    refused = EosinError(f"{card.spec}: {card.architecture} has no stochastic depth; leave finetune?drop_path out")
    try:
        with torch.random.fork_rng(devices=[]):
            example = create_backbone(card.architecture, card.size, num_classes=0, drop_path_rate=rate, **card.options)
    except (TypeError, RuntimeError):  # an unknown argument, or no network of timm's
        raise refused from None
    layers = []
    for name, module in example.named_modules():
        if isinstance(module, DropPath):
            parent, _, last = name.rpartition(".")
            layer = PositionalDropPath(module.drop_prob, module.scale_by_keep)
            try:
                block = encoder.backbone.get_submodule(parent)
            except AttributeError:
                raise refused from None
            setattr(block, last, layer)
            layers.append(layer)
    if not layers:
        raise refused
    return layers


def layer_numbers(backbone: nn.Module, spec: str) -> tuple[dict[str, int], int]:
    """Number the layers of a network as timm groups them, the stem being 0.

    Args:
        backbone: A timm network without classifier.
        spec: What to name in an error.

    Returns:
        The layer of each parameter by name, and the number of the head, the last of all.

    Raises:
        EosinError: If timm does not say which layers the network has.
    """
    from timm.models._manipulate import group_with_matcher

    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        raise EosinError(f"{spec}: timm knows no layers of this network; set finetune?layer_decays=1")
    head = "classifier of the task"
    named: list[tuple[str, Any]] = [*backbone.named_parameters(), (head, None)]
    numbers: dict[str, int] = dict(group_with_matcher(named, matcher(coarse=False), reverse=True))  # type: ignore[arg-type]
    return {name: number for name, number in numbers.items() if name != head}, numbers[head]


def parameter_groups(model: Classifier, layer_decay: float) -> list[dict[str, Any]]:
    """Group parameters by layer and by whether they decay.

    A parameter of layer l has `lr_scale` = layer_decay^(L - l), L being the head (BEiT, Bao et al., ICLR 2022). Those
    of one dimension, and those that timm names for the architecture (position embedding, class token), do not decay.

    Args:
        model: What is trained.
        layer_decay: In (0, 1]; 1 treats all layers alike.

    Returns:
        Groups with `params`, `lr_scale` and `decays`.
    """
    backbone = model.encoder.backbone
    numbers, last = ({}, 0) if layer_decay == 1.0 else layer_numbers(backbone, model.encoder.card.spec)
    spared = set(backbone.no_weight_decay()) if hasattr(backbone, "no_weight_decay") else set()  # type: ignore[operator]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}

    def add(parameter: nn.Parameter, number: int, decays: bool) -> None:
        fresh = {"params": [], "lr_scale": layer_decay ** (last - number), "decays": decays}
        groups.setdefault((number, decays), fresh)["params"].append(parameter)

    for name, parameter in backbone.named_parameters():
        add(parameter, numbers.get(name, last), parameter.ndim > 1 and name not in spared)
    trunk = {id(parameter) for parameter in backbone.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in trunk:
            add(parameter, last, parameter.ndim > 1)
    return [groups[key] for key in sorted(groups)]


def probe_head(
    features: npt.NDArray[np.float32], labels: Rows, val: npt.NDArray[np.float32], truth: Rows, classes: int
) -> tuple[Tensor, Tensor]:
    """Fit a head on frozen features, by logistic regression whose strength the validation images choose.

    It is where LP-FT starts (Kumar et al., ICLR 2022): fine-tuning from a head of noise first distorts the features.

    Args:
        features: float32 [n, D], training images.
        labels: int64 [n], in 0..C-1, each present.
        val: float32 [m, D], validation images.
        truth: int64 [m], in 0..C-1, or -1 where the class has no training image.
        classes: C.

    Returns:
        Weight float32 [C, D] and bias float32 [C], for features as they are.
    """
    from scipy.special import softmax
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    center, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    spread[spread <= 1e-7 * np.maximum(np.abs(center), np.finfo(np.float32).tiny)] = np.inf
    inputs, known = (features - center) / spread, truth >= 0
    tested = (val[known] - center) / spread
    best: tuple[tuple[float, float], npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
    model = LogisticRegression(solver="lbfgs", max_iter=200, warm_start=True)
    for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        model.set_params(C=strength)
        with threadpool_limits(1, user_api="blas"):
            model.fit(inputs, labels)
        weight, bias = model.coef_, model.intercept_
        if classes == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        score = (0.0, 0.0)
        if known.any():
            accuracy, loss = balanced_accuracy_and_loss(softmax(tested @ weight.T + bias, axis=1), truth[known])
            score = (accuracy, -loss)
        if best is None or score > best[0]:
            best = score, weight.copy(), bias.copy()
    assert best is not None
    weight = best[1] / spread
    return torch.from_numpy(weight).float(), torch.from_numpy(best[2] - weight @ center).float()
