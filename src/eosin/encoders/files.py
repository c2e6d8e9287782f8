"""Encoders as files: `FILE.safetensors` with a card in its header, and the one in a run directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.encoders.backbone import TimmEncoder, check_architecture, create_backbone, embedding_width, load_state
from eosin.encoders.base import Card, Encoder
from eosin.encoders.random import IMAGENET_MEAN, IMAGENET_STD
from eosin.encoders.registry import ENCODERS, Options, Scheme, whole_number

__all__ = ["ENCODER_FILE", "load_file", "save_encoder"]

ENCODER_FILE = "encoder.safetensors"
CARD_KEY = "eosin_card"


def save_encoder(encoder: Encoder, path: Path) -> None:
    """Write an encoder's weights, under timm's names, with its card in the header.

    The file is whole or absent, never half-written. timm and any safetensors reader can use it.

    Args:
        encoder: A timm encoder, trained or not.
        path: The `.safetensors` file; its directory must exist.

    Raises:
        EosinError: If the encoder has no weights, the disk is full or the place is not writable.
    """
    if not isinstance(encoder, TimmEncoder):
        raise EosinError(f"{encoder.card.spec}: has no weights to save; name it by its spec instead")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    data = save(tensors, metadata={CARD_KEY: json.dumps(encoder.card.plain()), "format": "pt"})
    with atomic_file(path) as file:
        file.write(data)


def load_file(name: str, options: Options) -> Encoder:
    """Load the encoder in a `.safetensors` file, or in the `encoder.safetensors` of a run directory.

    A file without a card needs `?architecture=NAME`; ImageNet's normalisation is then assumed, with a warning, and
    timm's classifier tensors are left out.

    Args:
        name: The path.
        options: `size` overrides the card's; `architecture` states it where the file has no card.

    Raises:
        EosinError: If the file is absent, damaged, has no card and no architecture is given, or its tensors are not
            those of the architecture.
    """
    path = _file_of(Path(name).expanduser())
    metadata, state = _read(path)
    if CARD_KEY in metadata:
        card = _stored_card(metadata[CARD_KEY], path, options)
    else:
        card = _stated_card(path, options)
        classifier = _classifier(card.architecture)
        state = {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] not in classifier}
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone(card.architecture, card.size, num_classes=0, **card.options)
    load_state(backbone, _fitted(backbone, state), str(path))
    spec = name + ("?" + "&".join(f"{key}={value}" for key, value in options.items()) if options else "")
    return TimmEncoder(card.model_copy(update={"spec": spec, "width": embedding_width(backbone)}), backbone)


def _file_of(path: Path) -> Path:
    if path.is_dir():
        file = path / ENCODER_FILE
        if file.is_file():
            return file
        if (path / "checkpoints").is_dir():
            raise EosinError(
                f"{path}: the run has checkpoints but no {ENCODER_FILE} yet; finish it by running the same "
                f"`eosin pretrain` command again, it resumes, or take what it has: eosin export {path} --out "
                "NAME.safetensors"
            )
        raise EosinError(f"{path}: no {ENCODER_FILE} in this directory; give a run directory or a .safetensors file")
    if not path.is_file():
        schemes = ", ".join(f"{scheme}:" for scheme in ENCODERS if scheme != "file")
        raise EosinError(f"{path}: no such run directory or file, and no scheme in front of it (schemes: {schemes})")
    if path.suffix != ".safetensors":
        raise EosinError(f"{path}: only .safetensors files are read; convert the weights to one first")
    return path


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
        raise EosinError(f"{path}: damaged or no safetensors file ({problem}); copy it again") from None


def _stored_card(text: str, path: Path, options: Options) -> Card:
    if "architecture" in options:
        raise EosinError(f"{path}: states its architecture itself; leave ?architecture= out")
    try:
        values: Any = json.loads(text)
    except ValueError:
        raise EosinError(f"{path}: the card in its header is damaged; copy the file again") from None
    card = Card.parse(values, f"{path} (card)")
    check_architecture(card.architecture, str(path))
    return card.model_copy(update={"size": whole_number(options, "size", card.size, 1)})


def _stated_card(path: Path, options: Options) -> Card:
    if "architecture" not in options:
        raise EosinError(f"{path}: has no eosin card; state the network: {path}?architecture=NAME&size=224")
    architecture = options["architecture"]
    check_architecture(architecture, str(path))
    size = whole_number(options, "size", 224, 1)
    warn(f"{path} has no card: taken as {architecture} at {size} px with ImageNet mean and std, licence unknown")
    return Card(
        spec=str(path),
        architecture=architecture,
        size=size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="unknown",
        width=1,
    )


def _classifier(architecture: str) -> set[str]:
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    names = config.classifier if config and config.classifier else ()
    return {names} if isinstance(names, str) else set(names)


def _fitted(backbone: torch.nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Resample a transformer's position embedding when it was trained at another size."""
    own, given = getattr(backbone, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or own.shape == given.shape or given.ndim != 3 or own.shape[-1] != given.shape[-1]:
        return state
    prefix = int(getattr(backbone, "num_prefix_tokens", 0)) if not getattr(backbone, "no_embed_class", False) else 0
    grid = backbone.patch_embed.grid_size  # type: ignore[union-attr]
    return state | {"pos_embed": resample_abs_pos_embed(given, new_size=grid, num_prefix_tokens=prefix)}


ENCODERS.register("file")(
    Scheme(
        load=load_file,
        options=("size", "architecture"),
        examples=(),
        summary="a run directory or a .safetensors file",
    )
)
