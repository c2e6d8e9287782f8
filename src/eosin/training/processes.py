"""The processes of a run: one by default, several under `torchrun`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from eosin.core.errors import EosinError

__all__ = ["choose_device", "process_group"]


def choose_device(name: str | None) -> torch.device:
    """Return the device to train on.

    Args:
        name: "cpu", "cuda", "cuda:1", or None for the best one present. Under `torchrun`, "cuda" and None give each
            process of a host a GPU of its own.

    Raises:
        EosinError: If the named device is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name is None:
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise EosinError(f"device '{name}' is not known; use cpu, cuda or cuda:N") from None
        if device.type not in ("cpu", "cuda"):
            raise EosinError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EosinError(
                f"device '{name}': no CUDA device is visible here; use --device cpu, or see `eosin doctor`"
            )
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise EosinError(
            f"device '{device}': {torch.cuda.device_count()} CUDA devices are visible here, counted from 0; name one "
            "of them, or start fewer processes a host"
        )
    return device


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the process group that `torchrun` set up, if any, and leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
