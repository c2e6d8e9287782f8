"""Whether an operation runs as compiled loops (`eosin.augment.compiled`) or by PyTorch.

Compiled loops need numba (`pip install 'eosin[fast]'`) and images on a CPU. `EOSIN_NUMBA=0` turns them off. Both ways
give the same colors to 1e-4, not to the same bits.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from eosin.core.console import warn

__all__ = ["SWITCH", "Kernel", "in_place", "kernel"]

SWITCH = "EOSIN_NUMBA"
"""Environment variable that turns compiled loops off where it is 0."""

Kernel = Callable[..., None]


def kernel(name: str, images: Tensor) -> Kernel | None:
    """Return a compiled kernel, or None where PyTorch's way is to be taken.

    The first call of a process imports numba and loads the machine code from numba's cache, or compiles it and keeps
    it there: beside eosin's own files, or where `NUMBA_CACHE_DIR` says.

    Args:
        name: One of `eosin.augment.compiled.SIGNATURES`.
        images: What it is to work on.
    """
    if images.device.type != "cpu" or images.dtype != torch.float32 or images.requires_grad:
        return None
    if os.environ.get(SWITCH) == "0":
        return None
    return _load(name)


def in_place(compiled: Kernel, images: Tensor, *arguments: object) -> Tensor:
    """Run a kernel on float32 [B, 3, h, w], however they lie in memory; return the same tensor, changed."""
    pixels = images.contiguous()
    compiled(pixels.flatten(2).numpy(), *arguments)
    return images if images.is_contiguous() else images.copy_(pixels)


@cache
def _load(name: str) -> Kernel | None:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from eosin.augment import compiled

        found = getattr(compiled, name)
        try:
            found.compile(compiled.SIGNATURES[name])
        except Exception:
            # Most likely the cache: cut short, of another user, on a full disk. Machine code can do without.
            found = compiled.without_cache(found)
            found.compile(compiled.SIGNATURES[name])
        # Arguments of other types are an error, not a reason to compile for seconds in the middle of a run.
        found.disable_compile()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        warn(f"color operations are not compiled ({type(error).__name__}: {reason}); {SWITCH}=0 silences this")
        return None
    return found
