"""An encoder in the formats of others: timm, torchvision, ONNX.

Whatever is written is read back by the library it is for, on the path a user would take, and kept only if its
embeddings of random images equal the encoder's own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, cast, get_args

import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from eosin.core.errors import EosinError
from eosin.core.files import atomic_directory, atomic_file, storage_errors, writable_directory
from eosin.encoders.backbone import TimmEncoder
from eosin.encoders.base import Card, Encoder
from eosin.encoders.files import save_encoder
from eosin.encoders.forward import forward_errors
from eosin.encoders.layers import named_layers
from eosin.encoders.registry import load_encoder

__all__ = ["ONNX_OPSET", "TORCHVISION", "Format", "check_output", "export_encoder"]

Format = Literal["safetensors", "timm", "torchvision", "onnx"]

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Architectures that timm and torchvision compute alike, with the same names of tensors."""

ONNX_OPSET = 18
"""The oldest operator set that PyTorch's exporter writes: more runtimes read it."""

_SUFFIXES: dict[Format, tuple[str, ...]] = {
    "safetensors": (".safetensors",),
    "timm": (),
    "torchvision": (".pth", ".safetensors"),
    "onnx": (".onnx",),
}
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_PROTOBUF_LIMIT = 2**31 - 2**24
_TOLERANCE = 1e-5
_CHECKED_IMAGES = 3

Function = Callable[[Tensor], Tensor]


def check_output(out: Path, format: Format) -> None:
    """Refuse an output before anything is loaded.

    Args:
        out: The file, or for timm the directory, to write.
        format: What it is to hold.

    Raises:
        EosinError: If it exists, its name does not fit the format, or a package is missing.
    """
    if format not in get_args(Format):
        raise EosinError(f"format '{format}': valid: {', '.join(get_args(Format))}")
    if os.path.lexists(out):
        raise EosinError(f"{out}: exists already; choose another --out or remove it")
    suffixes = _SUFFIXES[format]
    if suffixes and out.suffix not in suffixes:
        raise EosinError(f"{out}: a file for {format} ends in {' or '.join(suffixes)}; rename --out")
    if format == "onnx":
        missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise EosinError(f"format onnx needs {', '.join(missing)}: pip install 'eosin[onnx]'")


def export_encoder(encoder: Encoder, out: Path, format: Format) -> None:
    """Write an encoder for use elsewhere.

    * safetensors: eosin's own file, with the card in its header.
    * timm: a directory for `timm.create_model("local-dir:OUT", pretrained=True)`.
    * torchvision: a state dict without `fc`, for `torchvision.models`.
    * onnx: `images`, float32 [N, 3, size, size], normalised, to `embedding`, [N, width]; the card is in the metadata.

    Args:
        encoder: A timm encoder on the CPU; left in evaluation mode.
        out: The file, or for timm the directory, to write. It appears only once it has been checked.
        format: One of the above.

    Raises:
        EosinError: If the output exists, the format does not know the network, what was written does not compute the
            same, or the disk is full.
    """
    check_output(out, format)
    if not isinstance(encoder, TimmEncoder):
        raise EosinError(f"{encoder.card.spec}: has no weights to export; name a network")
    if format == "torchvision" and encoder.card.architecture not in TORCHVISION:
        raise EosinError(
            f"{encoder.card.architecture}: torchvision has no such network under the same names; it has "
            f"{', '.join(TORCHVISION)}; use --format timm or onnx"
        )
    if format == "timm" and (named := named_layers(encoder.card.options)):
        raise EosinError(
            f"{encoder.card.architecture}: timm's config file cannot hold its {', '.join(named)}; "
            "use --format safetensors or onnx"
        )
    writable_directory(out.parent)
    encoder.eval()
    # Networks are built to be overwritten: their random weights must not move the caller's random state.
    with torch.random.fork_rng(devices=[]), _placed(out, directory=format == "timm") as place:
        _WRITERS[format](encoder, place)
        _check(encoder, _READERS[format](encoder.card, place), out, format)


@contextlib.contextmanager
def _placed(out: Path, *, directory: bool) -> Iterator[Path]:
    """Yield a place in a temporary directory beside `out` and rename it at the end; nothing stays after an error."""
    if directory:
        with atomic_directory(out) as place:
            yield place
        return
    staging = out.with_name(f".{out.name}.export")
    try:
        with atomic_directory(staging) as folder:
            yield folder / out.name
            # Inside, so that no killed process leaves a directory that the next export does not remove.
            with storage_errors(out):
                (folder / out.name).replace(out)
    finally:
        with contextlib.suppress(OSError):
            staging.rmdir()


@torch.no_grad()
def _check(encoder: Encoder, function: Function, out: Path, format: str) -> None:
    card = encoder.card
    images = torch.randn(_CHECKED_IMAGES, 3, card.size, card.size, generator=torch.Generator().manual_seed(0))
    with forward_errors(card, card.size):
        expected = encoder(images)
    found = function(images)
    problem = f"shape {list(found.shape)} instead of {list(expected.shape)}"
    if expected.shape == found.shape:
        difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if difference <= _TOLERANCE:
            return
        problem = f"largest relative difference {difference:.1e}"
    raise EosinError(
        f"{out}: the {format} file does not give the encoder's own embeddings ({problem}), so it is not kept"
    )


# safetensors ---------------------------------------------------------------------------------------------------------


def _read_own(card: Card, place: Path) -> Function:
    return load_encoder(str(place))


# timm ----------------------------------------------------------------------------------------------------------------


def _write_timm(encoder: Encoder, place: Path) -> None:
    card = encoder.card
    backbone: Any = encoder.backbone
    known = timm.get_pretrained_cfg(card.architecture, allow_unregistered=True)
    arguments = _size_arguments(card)
    pool = getattr(backbone, "global_pool", None)
    config = {
        "architecture": card.architecture,
        "num_classes": 0,
        "num_features": int(backbone.num_features),
        "global_pool": pool if isinstance(pool, str) else getattr(pool, "pool_type", None),
        "model_args": arguments | card.options,
        "pretrained_cfg": {
            "input_size": [3, card.size, card.size],
            "fixed_input_size": "img_size" in arguments and "dynamic_img_size" not in arguments,
            "interpolation": card.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(card.mean),
            "std": list(card.std),
            "num_classes": 0,
            # With these timm adapts the network to other classes or channels.
            "first_conv": known and known.first_conv,
            "classifier": known and known.classifier,
            "license": card.licence,
        },
        "eosin_card": card.plain(),
    }
    save_encoder(encoder, place / "model.safetensors")
    with atomic_file(place / "config.json", "w") as file:
        json.dump(config, file, indent=2)


def _size_arguments(card: Card) -> dict[str, Any]:
    """Find the arguments with which `create_backbone` gave the network its size."""
    attempts: tuple[dict[str, Any], ...] = ({"img_size": card.size, "dynamic_img_size": True}, {"img_size": card.size})
    for arguments in attempts:
        try:
            timm.create_model(card.architecture, num_classes=0, **arguments)
        except TypeError as error:
            if not any(name in str(error) for name in arguments):
                raise
        else:
            return arguments
    return {}


def _read_timm(card: Card, place: Path) -> Function:
    network: nn.Module = timm.create_model(f"local-dir:{place}", pretrained=True)
    return network.eval()


# torchvision ---------------------------------------------------------------------------------------------------------


def _write_torchvision(encoder: Encoder, place: Path) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    if place.suffix == ".safetensors":
        data = save(tensors, metadata={"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        data = buffer.getvalue()
    with atomic_file(place) as file:
        file.write(data)


def _read_torchvision(card: Card, place: Path) -> Function:
    from torchvision.models import get_model

    network: Any = get_model(card.architecture, weights=None)
    network.fc = nn.Identity()
    state = load_file(place) if place.suffix == ".safetensors" else torch.load(place, weights_only=True)
    network.load_state_dict(state, strict=True)
    return cast(nn.Module, network).eval()


# ONNX ----------------------------------------------------------------------------------------------------------------


def _write_onnx(encoder: Encoder, place: Path) -> None:
    card = encoder.card
    if sum(tensor.nbytes for tensor in encoder.state_dict().values()) > _PROTOBUF_LIMIT:
        raise EosinError(f"{card.architecture}: an ONNX file holds at most 2 GB; use --format timm or safetensors")
    import onnx

    images = torch.zeros(2, 3, card.size, card.size)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                encoder,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["embedding"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=ONNX_OPSET,
                verbose=False,
            )
    except Exception as error:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EosinError(
            f"{card.architecture}: PyTorch cannot write it as ONNX ({problem}); use --format timm or safetensors"
        ) from error
    assert program is not None
    model = program.model_proto
    values = {name: value for name, value in card.plain().items() if value is not None}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    onnx.helper.set_model_props(model, texts)
    with atomic_file(place) as file:
        file.write(model.SerializeToString())


def _read_onnx(card: Card, place: Path) -> Function:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(place, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["embedding"], {"images": images.numpy()})[0])

    return run


_WRITERS: dict[Format, Callable[[Encoder, Path], None]] = {
    "safetensors": save_encoder,
    "timm": _write_timm,
    "torchvision": _write_torchvision,
    "onnx": _write_onnx,
}
_READERS: dict[Format, Callable[[Card, Path], Function]] = {
    "safetensors": _read_own,
    "timm": _read_timm,
    "torchvision": _read_torchvision,
    "onnx": _read_onnx,
}
