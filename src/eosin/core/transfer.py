"""Small arrays on their way to a device."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["upload"]


def upload(values: Tensor | npt.NDArray[np.generic], device: torch.device) -> Tensor:
    """Return values on a device, without making the host wait for a GPU.

    From pageable memory a copy waits until the GPU has done all that was asked of it before; from page-locked memory it
    takes its place among it, and PyTorch keeps the memory until then.

    Args:
        values: On the host; on a CPU they are shared and not copied.
        device: Where they are needed.
    """
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.numel():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
