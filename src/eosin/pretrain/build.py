"""From a configuration to a method that is ready for its first step."""

from __future__ import annotations

from typing import Any

import torch

from eosin.core.errors import EosinError
from eosin.encoders import Encoder, build_encoder
from eosin.encoders.forward import FORWARD_ERRORS, first_line, forward_errors
from eosin.methods import METHODS, Method
from eosin.pretrain.config import PretrainConfig

__all__ = ["build_method", "check_crops"]


def build_method(config: PretrainConfig) -> Method:
    """Build a method with fresh networks.

    Args:
        config: The run's configuration, without `auto`.

    Raises:
        EosinError: If the method, its views, the network and the batch do not fit each other.
    """
    augment, encoder = config.augment, config.encoder

    def make_encoder(**options: Any) -> Encoder:
        return build_encoder(
            encoder.architecture,
            size=encoder.size,
            mean=augment.mean,
            std=augment.std,
            mpp=encoder.mpp,
            options=encoder.options,
            **options,
        )

    _check_views(config)
    method = METHODS[config.method.name](config.method, make_encoder, config.seed)
    method.prepare(config.batch_size, config.steps)
    return method


def _check_views(config: PretrainConfig) -> None:
    wanted: dict[str, int | None] = dict(METHODS[config.method.name].views)  # type: ignore[attr-defined]
    given = {name: view.count for name, view in config.augment.views.items()}
    fits = given.keys() <= wanted.keys() and all(
        given.get(name, 0) == count for name, count in wanted.items() if count is not None
    )
    if not fits:
        words = {name: "any number" if count is None else count for name, count in wanted.items()}
        raise EosinError(f"method {config.method.name} needs the views {words}, augment.views gives {given}")


@torch.no_grad()
def check_crops(method: Method, config: PretrainConfig) -> None:
    """Refuse views that the network cannot take, by giving it one image of each size.

    Raises:
        EosinError: Naming the view and a size that fits; or if it cannot take images of its own size.
    """
    encoder = method.encoder
    patch = getattr(getattr(encoder.backbone, "patch_embed", None), "patch_size", None)
    side = patch[0] if isinstance(patch, tuple) else patch
    training = encoder.training
    encoder.eval()
    for name, view in config.augment.views.items():
        if not view.count:
            continue
        where = f"augment.views.{name}.size {view.size}"
        if side and view.size % side:
            fitting = max(side, round(view.size / side) * side)
            raise EosinError(
                f"{where}: {config.encoder.architecture} takes multiples of its {side} px patches; "
                f"use --augment.views.{name}.size {fitting}"
            )
        try:
            encoder(torch.zeros(1, 3, view.size, view.size))
        except FORWARD_ERRORS as error:
            raise EosinError(
                f"{where}: {config.encoder.architecture} built for encoder.size {config.encoder.size} cannot take it "
                f"({first_line(error)}); give the views that size, or use another network"
            ) from error
    # Whoever takes the encoder gives it images of this size, the online probe first.
    with forward_errors(encoder.card, encoder.card.size):
        encoder(torch.zeros(1, 3, encoder.card.size, encoder.card.size))
    encoder.train(training)
