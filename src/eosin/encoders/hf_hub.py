"""`hf-hub:OWNER/NAME[@REVISION]`: a repository of the Hugging Face Hub in timm's format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from eosin.core.console import note
from eosin.core.errors import EosinError
from eosin.encoders.backbone import TimmEncoder, check_architecture, embedding_width
from eosin.encoders.base import Card, Channels, Encoder
from eosin.encoders.hub import hub_file, hub_folder
from eosin.encoders.layers import LOADING
from eosin.encoders.loading import load_backbone
from eosin.encoders.pathology import entry_for_repository
from eosin.encoders.random import IMAGENET_MEAN, IMAGENET_STD
from eosin.encoders.registry import ENCODERS, Options, Scheme, feature_of, spec_of, whole_number
from eosin.encoders.state import read_tensors

__all__ = ["load_hf_hub"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# What eosin decides itself when it builds the network.
_DECIDED = {"img_size", "dynamic_img_size", "num_classes", "in_chans", "features_only", *LOADING}


def load_hf_hub(name: str, options: Options) -> Encoder:
    """Load a repository that timm's `push_to_hf_hub` or `save_for_hf` wrote: `config.json` and the weights.

    Files are looked for in ``$EOSIN_HOME/encoders/OWNER--NAME[@REVISION]/``, in the Hugging Face cache and at the Hub.
    Mean, std, size and interpolation are the configuration's; the licence is that of the README's front matter.

    Args:
        name: Owner, name and, after an @, a branch, tag or commit.
        options: `size` of the input; `feature` in place of timm's pooling.

    Raises:
        EosinError: If the repository is not to be had, not in timm's format, or its weights are not its network's.
    """
    repository, _, revision = name.partition("@")
    spec = f"hf-hub:{name}"
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise EosinError(f"{spec}: name a repository as hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    folder = hub_folder(repository, revision or None)
    config = _configuration(_found(spec, repository, ["config.json"], folder, revision), spec, repository)
    values: Mapping[str, Any] = config.get("pretrained_cfg") or config
    architecture = str(config["architecture"])
    check_architecture(architecture, spec)
    size = whole_number(options, "size", int((values.get("input_size") or (3, 224, 224))[-1]), 1)
    arguments = {key: value for key, value in (config.get("model_args") or {}).items() if key not in _DECIDED}
    pool = arguments.get("global_pool", config.get("global_pool"))
    feature = feature_of(options, "pooled")
    if pool is not None:
        arguments["global_pool"] = pool
    if pool == "" and feature == "pooled":
        raise EosinError(f"{spec}: gives tokens, not an embedding; add ?feature=cls or ?feature=cls+mean_patch")
    path = _found(spec, repository, _WEIGHTS, folder, revision)
    backbone, selected = _network(architecture, size, path, spec, repository, arguments)
    if selected:
        note(f"{spec}: left out {', '.join(selected[:3])}, which the embedding does not use")
    readme = hub_file(spec, repository, ["README.md"], folder / "README.md", revision=revision or None, optional=True)
    card = Card(
        spec=spec_of(spec, options),
        architecture=architecture,
        size=size,
        mean=_three(values.get("mean"), IMAGENET_MEAN),
        std=_three(values.get("std"), IMAGENET_STD),
        # As timm: whatever is not bilinear is taken as bicubic.
        interpolation="bilinear" if values.get("interpolation") == "bilinear" else "bicubic",
        licence=_licence(readme, values.get("license")),
        width=embedding_width(backbone, feature),
        options=arguments,
        feature=feature,
        reference=f"https://huggingface.co/{repository}",
    )
    return TimmEncoder(card, backbone)


def _found(spec: str, repository: str, names: Any, folder: Path, revision: str) -> Path:
    path = hub_file(spec, repository, names, folder / names[0], revision=revision or None)
    assert path is not None
    return path


def _network(
    architecture: str, size: int, path: Path, spec: str, repository: str, arguments: Mapping[str, Any]
) -> tuple[Any, tuple[str, ...]]:
    try:
        backbone, selected = load_backbone(architecture, size, read_tensors(path), str(path), options=arguments)
    except TypeError as error:
        raise EosinError(f"{spec}: timm's {architecture} refuses its model_args ({error})") from None
    except EosinError as error:
        known = entry_for_repository(repository)
        if known is None:
            raise
        raise EosinError(f"{error}; pathology:{known} knows what its configuration leaves out") from None
    return backbone, selected.left_out


def _configuration(path: Path, spec: str, repository: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise EosinError(f"{path}: damaged; remove it and load {spec} again") from None
    if isinstance(config, dict) and "architecture" in config:
        return config
    kind = f"a transformers model ({config['model_type']})" if "model_type" in config else "not in timm's format"
    known = entry_for_repository(repository)
    fix = f"use pathology:{known}" if known else "name the file itself: FILE.safetensors?architecture=NAME"
    raise EosinError(f"{spec}: is {kind}, not a network of timm; {fix}")


def _three(values: Any, default: Channels) -> Channels:
    if not values:
        return default
    first, second, third = (float(value) for value in values)
    return first, second, third


def _licence(readme: Path | None, configured: str | None) -> str:
    """Say the licence: of the model card, else of the configuration, which timm fills from its own network."""
    stated = None if readme is None else _front_matter(readme)
    return stated or (f"{configured} (by its config.json)" if configured else "unstated by its repository")


def _front_matter(readme: Path) -> str | None:
    text = readme.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    try:
        front = yaml.safe_load(text[3:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    if not isinstance(front, dict) or not front.get("license"):
        return None
    licence = str(front["license"])
    named = front.get("license_name") or front.get("license_link")
    return f"{licence} ({named})" if licence == "other" and named else licence


ENCODERS.register("hf-hub")(
    Scheme(
        load=load_hf_hub,
        options=("size", "feature"),
        examples=(),
        summary="a repository of the Hugging Face Hub in timm's format",
    )
)
