"""Tensors out of a checkpoint: read without running anything in it, and found however deep they lie."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eosin.core.errors import EosinError
from eosin.encoders.keys import timm_names

__all__ = ["SUFFIXES", "Selected", "read_safetensors", "read_tensors", "read_torch", "select"]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".torch", ".tar")
"""Endings of the files that are read; all but the first are PyTorch's."""

_PREFERRED = ("teacher", "ema", "target", "encoder_q", "query", "online", "student", "backbone", "trunk", "encoder")
"""Where a checkpoint holds several networks: the first of these words in the path names the one to evaluate."""

_HEADS = frozenset(
    {"fc", "head", "heads", "classifier", "head_dist", "projection_head", "projector", "predictor", "prototypes"}
    | {"pooler", "mask_token", "dino_head", "ibot_head"}
)


@dataclass(frozen=True)
class Selected:
    """The tensors of one network out of a checkpoint.

    Attributes:
        state: The tensors under timm's names.
        prefix: Where they lay, such as "teacher.backbone."; empty at the top.
        left_out: Names of heads that were left out.
        antialias: Whether a smaller position embedding is smoothed, see `keys.Converted`.
    """

    state: dict[str, Tensor]
    prefix: str
    left_out: tuple[str, ...]
    antialias: bool


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by the path at which they lie in it, joined by dots.

    Raises:
        EosinError: If the file is damaged, or holds Python objects other than tensors.
    """
    return read_safetensors(path)[1] if path.suffix == ".safetensors" else read_torch(path)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read metadata and tensors of a safetensors file.

    Raises:
        EosinError: If the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise EosinError(f"{path}: damaged or no safetensors file ({problem}); copy it again") from None


def read_torch(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file written by `torch.save`, new or old format, with `weights_only=True`.

    Raises:
        EosinError: If the file is damaged, holds Python objects other than tensors, or holds no tensor.
    """
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise EosinError(f"{path}: {_refused(str(error))}") from None
    except Exception as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        if "TorchScript" in str(error):
            raise EosinError(f"{path}: is TorchScript, a program; save its state_dict() with torch.save") from None
        raise EosinError(f"{path}: damaged or not written by torch.save ({problem}); copy it again") from None
    tensors = _flat(value)
    if not tensors:
        raise EosinError(f"{path}: holds no tensors by name; save a state_dict() with torch.save")
    return tensors


def _refused(message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if found is None:
        return "damaged or not written by torch.save; copy it again"
    return (
        f"holds Python objects other than tensors ({found[1]}), which could run code and are not loaded; where you "
        "trust the file, keep its tensors: python -c \"import torch; torch.save(torch.load('IN', "
        "weights_only=False)['state_dict'], 'OUT.pth')\""
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {prefix: value.detach()} if prefix else {}
    if not isinstance(value, Mapping):
        return {}
    tensors: dict[str, Tensor] = {}
    for key, item in value.items():
        if isinstance(key, str):
            tensors |= _flat(item, f"{prefix}.{key}" if prefix else key)
    return tensors


def select(
    tensors: Mapping[str, Tensor], own: Iterable[str], classifier: Iterable[str], where: str, prefix: str | None = None
) -> Selected:
    """Find the tensors of one network in a checkpoint.

    The place is the one under which most of the network's tensors lie. Where a checkpoint holds the network several
    times, the teacher comes before the student, the query encoder before the key encoder. Heads are left out; counters
    of batch norm, which no forward pass in evaluation reads, may be missing.

    Args:
        tensors: Of the file, by path.
        own: Names of the network's tensors.
        classifier: Names of layers that are its classifier.
        where: What to name in an error.
        prefix: The place, where it is stated; with or without a dot at its end, "none" for the top.

    Raises:
        EosinError: If nothing lies at the place stated, or the choice is open.
    """
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    if prefix == "none":
        found = ""
    elif prefix is not None:
        prefix = f"{prefix.rstrip('.')}."
        if not any(name.startswith(prefix) for name in tensors):
            raise EosinError(f"{where}: no tensor lies under prefix '{prefix}'; {_places(tensors)}")
        found = prefix
    else:
        found = _best_prefix(tensors, wanted, where)
    converted = timm_names(_under(tensors, found))
    heads = {*_HEADS, *classifier}
    left_out = [name for name in converted.state if name not in wanted and _is_head(name, heads)]
    state = {name: tensor for name, tensor in converted.state.items() if name not in set(left_out)}
    for name in own:
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros((), dtype=torch.long))
    return Selected(state, found, tuple(left_out), converted.antialias)


def _is_head(name: str, heads: set[str]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _places(tensors: Mapping[str, Tensor]) -> str:
    tops = sorted({".".join(name.split(".")[:2]) for name in tensors})
    more = f" and {len(tops) - 6} more" if len(tops) > 6 else ""
    return f"the file holds {', '.join(tops[:6])}{more}"


def _best_prefix(tensors: Mapping[str, Tensor], wanted: set[str], where: str) -> str:
    anchors = {"cls_token", "embeddings.cls_token", "conv1.weight", "patch_embed.proj.weight", *sorted(wanted)[:1]}
    candidates = {
        name.removesuffix(anchor)
        for name in tensors
        for anchor in anchors
        if name == anchor or name.endswith(f".{anchor}")
    }
    covered = {prefix: _coverage(tensors, prefix, wanted) for prefix in sorted(candidates)}
    most = max(covered.values(), default=0)
    if not most:
        return ""
    best = [prefix for prefix, count in covered.items() if count == most]
    ranks = {prefix: _rank(prefix) for prefix in best}
    first = [prefix for prefix in best if ranks[prefix] == min(ranks.values())]
    if len(first) > 1:
        named = " or ".join(f"?prefix={prefix.rstrip('.') or 'none'}" for prefix in first)
        raise EosinError(f"{where}: the network is there {len(first)} times; state which with {named}")
    return first[0]


def _coverage(tensors: Mapping[str, Tensor], prefix: str, wanted: set[str]) -> int:
    # On the meta device: names are all that matters, and joining matrices of a large network costs memory.
    shapes = {name: tensor.to("meta") for name, tensor in _under(tensors, prefix).items()}
    return len(wanted & timm_names(shapes).state.keys())


def _rank(prefix: str) -> int:
    words = re.split(r"[._]", prefix) + prefix.split(".")
    return min((place for place, word in enumerate(_PREFERRED) if word in words), default=len(_PREFERRED))
