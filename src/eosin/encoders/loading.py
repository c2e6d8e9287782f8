"""A network of timm with given weights: built without drawing any, loaded strictly, held in memory once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eosin.core.errors import EosinError
from eosin.encoders.backbone import create_backbone
from eosin.encoders.layers import refuse_loading
from eosin.encoders.state import Selected, select

__all__ = ["classifier_layers", "load_backbone", "load_state"]


def load_backbone(
    architecture: str,
    size: int,
    tensors: Mapping[str, Tensor],
    where: str,
    *,
    options: Mapping[str, Any] | None = None,
    prefix: str | None = None,
) -> tuple[nn.Module, Selected]:
    """Build a network and give it the weights of a checkpoint.

    The network is built on the meta device and takes the tensors as they are, so that a network of a billion weights
    is in memory once, and torch's global generator stays where it is.

    Args:
        architecture: timm's name.
        size: Side of the input in pixels; a position embedding of another size is resampled.
        tensors: Of the file, by path.
        where: What to name in an error.
        options: Further arguments of timm.create_model, see `layers.real_arguments`.
        prefix: Where in the checkpoint the network lies, if it is stated.

    Returns:
        The network, float32 on the CPU, and what was taken out of the checkpoint.

    Raises:
        EosinError: If tensors are missing, unexpected or misshapen, the choice between several networks is open, or an
            option would load weights from elsewhere.
        TypeError: If the network has no such option.
    """
    refuse_loading(options or {}, where)
    arguments = {"num_classes": 0, **(options or {})}
    with torch.random.fork_rng(devices=[]):
        backbone = _empty(architecture, size, arguments)
        selected = select(tensors, list(backbone.state_dict()), classifier_layers(architecture), where, prefix)
        load_state(backbone, _fitted(backbone, selected), where, assign=True)
        if any(buffer.is_meta for buffer in backbone.buffers()):
            # Buffers that no file holds, such as Swin's indices, are computed where the network is built for real.
            computed = create_backbone(architecture, size, **arguments)
            for name, buffer in computed.named_buffers():
                module, _, own = name.rpartition(".")
                if backbone.get_buffer(name).is_meta:
                    backbone.get_submodule(module).register_buffer(own, buffer, persistent=False)
    return backbone, selected


class _NothingDrawn(TorchFunctionMode):
    """Leaves out the drawing of weights on the meta device, where it changes nothing and takes most of the time."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run what is called, unless it fills a tensor that has no values."""
        kwargs = kwargs or {}
        # torch.nn.init hands its tensor over by name.
        filled = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "") in _FILLS and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)


_FILLS = {"uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"}
# Those of torch.nn.init, which are handed over as a whole.
_FILLS |= {"kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_", "trunc_normal_"}


def _empty(architecture: str, size: int, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"), _NothingDrawn():
            return create_backbone(architecture, size, **arguments)
    except (NotImplementedError, RuntimeError):
        # A network whose constructor reads a value of a tensor.
        return create_backbone(architecture, size, **arguments)


def classifier_layers(architecture: str) -> set[str]:
    """Return the names of the layers that timm counts as an architecture's classifier."""
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    names = config.classifier if config and config.classifier else ()
    return {names} if isinstance(names, str) else set(names)


def _fitted(backbone: nn.Module, selected: Selected) -> dict[str, Tensor]:
    """Resample a transformer's position embedding when it was trained at another size."""
    state = selected.state
    own, given = getattr(backbone, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or own.shape == given.shape or given.ndim != 3 or own.shape[-1] != given.shape[-1]:
        return state
    network: Any = backbone
    prefix = 0 if getattr(network, "no_embed_class", False) else int(getattr(network, "num_prefix_tokens", 0))
    grid = network.patch_embed.grid_size
    resampled = resample_abs_pos_embed(
        given, new_size=list(grid), num_prefix_tokens=prefix, antialias=selected.antialias
    )
    return state | {"pos_embed": resampled}


def load_state(backbone: nn.Module, state: Mapping[str, Tensor], where: str, *, assign: bool = False) -> None:
    """Load weights by name, all of them and nothing else.

    Args:
        backbone: The network.
        state: Its tensors by name.
        where: What to name in an error.
        assign: Take the tensors themselves, in the network's number formats, instead of copying them.

    Raises:
        EosinError: One line with the missing and unexpected names, or the first tensor of a wrong shape.
    """
    own = backbone.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise EosinError(f"{where}: {_summarize(missing, unexpected)}; is the architecture right?")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise EosinError(
                f"{where}: tensor '{name}' has shape {list(tensor.shape)}, the architecture needs "
                f"{list(own[name].shape)}; is the architecture (or the size) right?"
            )
    tensors = {name: tensor.to(own[name].dtype).contiguous() for name, tensor in state.items()} if assign else state
    with torch.no_grad():
        backbone.load_state_dict(dict(tensors), strict=True, assign=assign)


def _summarize(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Say in one line which tensors are missing and which are unexpected."""
    parts = []
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{len(names)} {kind} tensor{'s' * (len(names) > 1)} ({', '.join(names[:3])}{more})")
    return ", ".join(parts)
