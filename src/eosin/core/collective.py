"""Calls that span the processes of a run and are the identity in a single one.

A method uses these and so needs to know neither the number of processes nor its own rank.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "average",
    "gather",
    "gather_with_gradient",
    "largest",
    "local_slice",
    "position_in_run",
    "processes",
    "total",
]


def processes() -> int:
    """Return the number of processes in the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def position_in_run() -> int:
    """Return this process's rank, 0 in a single process."""
    return dist.get_rank() if processes() > 1 else 0


@torch.no_grad()
def gather(tensor: Tensor) -> Tensor:
    """Concatenate the processes' tensors in rank order, without gradients.

    Args:
        tensor: [B, ...], the same shape in every process.

    Returns:
        [B x processes, ...].
    """
    if processes() == 1:
        return tensor
    # The bytes travel as they lie: source and targets must share one memory format.
    tensor = tensor.contiguous()
    parts = [torch.empty_like(tensor) for _ in range(processes())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


@torch.no_grad()
def average(tensor: Tensor) -> Tensor:
    """Return the mean of the processes' tensors, without gradients.

    Args:
        tensor: Floating-point, the same shape in every process.
    """
    if processes() == 1:
        return tensor
    return total(tensor) / processes()


@torch.no_grad()
def total(tensor: Tensor) -> Tensor:
    """Return the sum of the processes' tensors, without gradients.

    Args:
        tensor: The same shape in every process.
    """
    if processes() == 1:
        return tensor
    result = tensor.clone()
    dist.all_reduce(result)
    return result


def gather_with_gradient(tensor: Tensor) -> Tensor:
    """Concatenate the processes' tensors in rank order, for a loss that every process computes on the whole.

    Gradients are those of the mean over processes of their losses, as `DistributedDataParallel` takes it: each process
    receives, for its own rows, the sum over the processes' gradients, which is one process's times their number since
    all compute the same.

    Args:
        tensor: [B, ...], the same shape in every process.

    Returns:
        [B x processes, ...].
    """
    if processes() == 1:
        return tensor
    whole: Tensor = _Gather.apply(tensor)
    return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return local_slice(gradient) * processes()


def largest(number: int, device: torch.device) -> int:
    """Return the largest of the processes' numbers; on a GPU this waits for it.

    Args:
        number: This process's.
        device: Where the processes exchange tensors.
    """
    if processes() == 1:
        return number
    value = torch.tensor(number, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value)


def local_slice(tensor: Tensor) -> Tensor:
    """Return this process's equal share of a tensor that all processes hold whole."""
    return tensor.chunk(processes())[position_in_run()]
