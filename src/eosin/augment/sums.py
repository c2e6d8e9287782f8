"""Sums over the pixels of an image, in one order whatever the number of threads."""

from __future__ import annotations

from torch import Tensor

__all__ = ["pixel_sums"]

RUN = 256


def pixel_sums(values: Tensor) -> Tensor:
    """Sum over the last axis.

    On a CPU, PyTorch divides a sum among its threads where it is the only one asked for, as that of a single image's
    weights is: its last bits then depend on the number of threads, and a worker, which has one, would make another view
    than the process that trains. Here many short sums come first.

    Args:
        values: float32 [..., N].

    Returns:
        float32 [...].
    """
    if values.device.type != "cpu":
        return values.sum(-1)
    whole = values.shape[-1] // RUN * RUN
    total = values[..., whole:].sum(-1)
    if whole:
        total += values[..., :whole].unflatten(-1, (whole // RUN, RUN)).sum(-1).sum(-1)
    return total
