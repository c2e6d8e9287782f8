"""What stops a run in one line: too little memory, and numbers that are not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from eosin.core.errors import EosinError
from eosin.core.memory import lacks_memory

__all__ = ["check_weights", "memory_errors"]


@contextlib.contextmanager
def memory_errors(device: torch.device, advice: str) -> Iterator[None]:
    """Tell in one line that a training needs more memory than there is.

    Args:
        device: Where it runs.
        advice: What to do about it.

    Raises:
        EosinError: In place of what PyTorch or Python raise.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise EosinError(f"not enough memory on {device}; {advice}") from error


def check_weights(state: Mapping[str, Any], step: int, advice: str) -> None:
    """Refuse weights that a gradient which is not finite has left; its own loss can still be finite.

    Args:
        state: Weights by name; what is no tensor is passed over.
        step: Steps taken.
        advice: What to do about it.

    Raises:
        EosinError: If one is not finite.
    """
    weights = [value for value in state.values() if isinstance(value, Tensor)]
    if not torch.stack([torch.isfinite(value).all() for value in weights]).all():
        raise EosinError(f"the weights are not finite after step {step}; {advice}")
