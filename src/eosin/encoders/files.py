"""Encoders as files: a card and weights of eosin's own, or the weights of others with their architecture stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from eosin.core.console import note, warn
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.encoders.backbone import TimmEncoder, check_architecture, embedding_width
from eosin.encoders.base import Card, Encoder
from eosin.encoders.loading import load_backbone
from eosin.encoders.random import IMAGENET_MEAN, IMAGENET_STD
from eosin.encoders.registry import ENCODERS, Options, Scheme, channels, feature_of, spec_of, whole_number
from eosin.encoders.state import SUFFIXES, read_safetensors, read_torch

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
    """Load the encoder in a file of weights, or in the `encoder.safetensors` of a run directory.

    A file without a card needs `?architecture=NAME`. Its network is looked for however deep it lies (`state_dict`,
    `module.`, `backbone.`, `encoder_q.`, `teacher`); heads are left out, with a note. ImageNet's normalisation is
    assumed, with a warning, where it is not stated.

    Args:
        name: The path.
        options: `size` overrides the card's; `architecture`, `mean`, `std`, `feature` and `prefix` state what a file
            without a card does not.

    Raises:
        EosinError: If the file is absent, damaged, holds Python objects, has no card and no architecture is given, or
            its tensors are not those of the architecture.
    """
    path = _file_of(Path(name).expanduser())
    metadata, tensors = read_safetensors(path) if path.suffix == ".safetensors" else ({}, read_torch(path))
    own = CARD_KEY in metadata
    card = _stored_card(metadata[CARD_KEY], path, options) if own else _stated_card(path, options)
    prefix = "none" if own else options.get("prefix")
    try:
        backbone, selected = load_backbone(
            card.architecture, card.size, tensors, str(path), options=card.options, prefix=prefix
        )
    except TypeError as error:
        raise EosinError(f"{path}: timm's {card.architecture} refuses the options of its card ({error})") from None
    if selected.left_out:
        more = f" and {len(selected.left_out) - 3} more" if len(selected.left_out) > 3 else ""
        note(f"{path}: left out {', '.join(selected.left_out[:3])}{more}, which the embedding does not use")
    width = embedding_width(backbone, card.feature)
    return TimmEncoder(card.model_copy(update={"spec": spec_of(name, options), "width": width}), backbone)


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
        raise EosinError(f"{path}: no {ENCODER_FILE} in this directory; give a run directory or a file of weights")
    if not path.is_file():
        schemes = ", ".join(f"{scheme}:" for scheme in ENCODERS if scheme != "file")
        raise EosinError(f"{path}: no such run directory or file, and no scheme in front of it (schemes: {schemes})")
    if path.suffix not in SUFFIXES:
        raise EosinError(f"{path}: no file of weights by its name, which ends in {', '.join(SUFFIXES)}; rename it")
    return path


def _stored_card(text: str, path: Path, options: Options) -> Card:
    for key in ("architecture", "mean", "std", "feature", "prefix"):
        if key in options:
            raise EosinError(f"{path}: states its {key} itself; leave ?{key}= out")
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
    mean, std = channels(options, "mean", IMAGENET_MEAN), channels(options, "std", IMAGENET_STD)
    assumed = " and ".join(key for key in ("mean", "std") if key not in options)
    with_statistics = f" with ImageNet {assumed}" if assumed else ""
    warn(f"{path} has no card: taken as {architecture} at {size} px{with_statistics}, licence unknown")
    return Card(
        spec=str(path),
        architecture=architecture,
        size=size,
        mean=mean,
        std=std,
        licence="unknown",
        width=1,
        feature=feature_of(options, "pooled"),
    )


ENCODERS.register("file")(
    Scheme(
        load=load_file,
        options=("size", "architecture", "mean", "std", "feature", "prefix"),
        examples=(),
        summary="a run directory or a file of weights",
    )
)
