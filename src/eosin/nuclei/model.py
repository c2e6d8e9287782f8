"""A trained network for nuclei: in one file with all it needs, and what it says of windows."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from eosin.core.config import Config
from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.encoders.base import Card
from eosin.nuclei.config import NetworkConfig, PostprocessConfig
from eosin.nuclei.hovernet import HoverNet, scaled
from eosin.nuclei.trunks import REFERENCE, PreactResNet50, ResNetTrunk, Trunk

if TYPE_CHECKING:
    from eosin.encoders import Encoder

__all__ = ["MODEL_FILE", "Maps", "ModelCard", "NucleiModel", "build_network", "save_model", "window_maps", "with_scale"]

MODEL_FILE = "model.safetensors"
_CARD_KEY = "eosin_nuclei"

Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Maps:
    """What the network says of the middles of windows, on the CPU.

    Attributes:
        np_prob: float32 [B, h, w], probability of being nucleus.
        hv: float32 [B, 2, h, w], horizontal and vertical place in the nucleus, -1 to 1 where it learned well.
        tp_prob: float32 [B, 1 + n, h, w], probability of each type, background first; None without types.
    """

    np_prob: Floats32
    hv: Floats32
    tp_prob: Floats32 | None


class ModelCard(Config):
    """What travels with the weights."""

    network: NetworkConfig
    """The network; its encoder's weights are in the file."""
    encoder: Card | None
    """The encoder's card; None for the paper's own network."""
    classes: tuple[str, ...]
    """Types 1 to n by name; empty where none were learned."""
    mpp: Annotated[float, Field(gt=0.0)] | None
    """µm/px of the training images; None where unknown."""
    postprocess: PostprocessConfig
    """How maps become nuclei."""
    source: str
    """The set that it was trained on."""
    step: int = Field(0, ge=0)
    """Training steps taken."""
    pq: float | None = None
    """Panoptic quality on the validation images; None where there were none."""

    def plain(self) -> dict[str, Any]:
        """Return the values, without a field that came later where it is as it was before: fingerprints stay."""
        values = super().plain()
        if self.network.trunk == "fine":
            values["network"].pop("trunk")
        return values


def build_network(
    config: NetworkConfig, encoder: Encoder | None, classes: int, *, seed: int = 0, where: str = "network.encoder"
) -> HoverNet:
    """Build a network in training mode; what is not the encoder is drawn, from the seed alone.

    Args:
        config: Geometry and width; `config.encoder` is read for the paper's network only.
        encoder: Taken over and, where it becomes a `ResNetTrunk`, changed. None for the paper's own network.
        classes: Types of nuclei; 0 for none.
        seed: Of the draws.
        where: What to name in an error.

    Raises:
        EosinError: If the encoder has no weights or no feature maps, or the trunk is not for it.
    """
    # The meta device has no generator to keep.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "nuclei network") % 2**63)
        return HoverNet(_trunk(config, encoder, where), config.geometry, classes, config.width, config.window)


def _trunk(config: NetworkConfig, encoder: Encoder | None, where: str) -> Trunk:
    if encoder is None:
        if config.trunk == "pyramid":
            raise EosinError(
                f"network.trunk pyramid: {REFERENCE} has maps of its own; leave it out, or give an encoder"
            )
        return PreactResNet50(config.geometry)
    if not any(True for _ in encoder.backbone.parameters()):
        raise EosinError(f"{where}: {encoder.card.spec} has no weights and no feature maps; choose a network")
    if config.trunk == "fine" and ResNetTrunk.fits(encoder):
        return ResNetTrunk(encoder, config.geometry)
    from eosin.nuclei.pyramid import PyramidTrunk

    fine, middle, coarse = (scaled(channels, config.width) for channels in (256, 512, 1024))
    return PyramidTrunk(encoder, config.geometry, config.sides[0], (fine, middle, coarse, coarse), config.pixels)


def window_maps(network: HoverNet, images: Tensor, precision: Literal["bf16", "fp32"]) -> Maps:
    """Compute the maps of windows in evaluation mode, where the network lies.

    Args:
        network: In whatever mode; it is left in evaluation mode.
        images: uint8 [B, 3, window, window], RGB.
        precision: Of the network's passes.

    Returns:
        Maps of `HoverNet.kept` px, in the middle of the windows.
    """
    network.eval()
    device = next(network.parameters()).device
    mixed = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
    with torch.no_grad(), mixed:
        outputs = network(images.to(device, non_blocking=True))
    edge, stop = (network.output - network.kept) // 2, (network.output + network.kept) // 2
    outputs = {name: maps[..., edge:stop, edge:stop] for name, maps in outputs.items()}
    return Maps(
        outputs["np"].float().softmax(dim=1)[:, 1].cpu().numpy(),
        outputs["hv"].float().cpu().numpy(),
        outputs["tp"].float().softmax(dim=1).cpu().numpy() if "tp" in outputs else None,
    )


class NucleiModel:
    """A trained network.

    Attributes:
        card: What travels with the weights.
        name: Of the run directory or the file.
        fingerprint: 16 hexadecimal digits that name weights and card.
        network: The network, in evaluation mode, on `device`.
        device: Where it runs.
        precision: "bf16" or "fp32".
    """

    def __init__(
        self,
        card: ModelCard,
        network: HoverNet,
        *,
        name: str,
        fingerprint: str,
        device: torch.device,
        precision: Literal["bf16", "fp32"],
    ) -> None:
        self.card = card
        self.name = name
        self.fingerprint = fingerprint
        self.device = device
        self.precision = precision
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)

    @classmethod
    def load(
        cls, path: Path | str, *, device: str | None = None, precision: Literal["auto", "bf16", "fp32"] = "auto"
    ) -> NucleiModel:
        """Load a run directory or its `model.safetensors`.

        Args:
            path: The directory or the file.
            device: cpu, cuda or cuda:N; None takes the best one present.
            precision: auto is bf16 where the device has it in hardware.

        Raises:
            EosinError: If there is no such file, the run is not finished, or the file is damaged or something else.
        """
        from eosin.encoders.state import read_safetensors
        from eosin.training.processes import choose_device, computes_bf16

        file = _file_of(Path(path).expanduser())
        metadata, tensors = read_safetensors(file)
        if _CARD_KEY not in metadata:
            raise EosinError(f"{file}: is no network for nuclei; give what `eosin nuclei train` wrote")
        try:
            values: Any = json.loads(metadata[_CARD_KEY])
        except ValueError:
            raise EosinError(f"{file}: the card in its header is damaged; copy the file again") from None
        card = ModelCard.parse(values, f"{file} (card)")
        network = _filled(card, tensors, str(file))
        place = choose_device(device)
        chosen = ("bf16" if computes_bf16(place) else "fp32") if precision == "auto" else precision
        name = file.parent.name if file.name == MODEL_FILE else file.stem
        return cls(card, network, name=name, fingerprint=_fingerprint(card, tensors), device=place, precision=chosen)

    @property
    def window(self) -> int:
        """Side of the input in pixels."""
        return self.card.network.sides[0]

    @property
    def output(self) -> int:
        """Side of the maps in pixels, in the middle of the window; see `HoverNet.kept`."""
        return self.network.kept

    @property
    def mpp(self) -> float | None:
        """µm/px of the training images; None where unknown."""
        return self.card.mpp

    @property
    def classes(self) -> tuple[str, ...]:
        """Types 1 to n; empty where none were learned."""
        return self.card.classes

    @property
    def postprocess(self) -> PostprocessConfig:
        """How maps become nuclei, `scale` filled in."""
        return with_scale(self.card.postprocess, self.mpp)

    def maps(self, images: Tensor) -> Maps:
        """Compute the maps of windows.

        Args:
            images: uint8 [B, 3, window, window], RGB.

        Raises:
            EosinError: If the windows are of another size.
        """
        return window_maps(self.network, images, self.precision)


def with_scale(settings: PostprocessConfig, mpp: float | None) -> PostprocessConfig:
    """Fill in the scale of the post-processing, given the µm/px of the images; 1 where it is unknown."""
    scale = settings.scale or (1.0 if mpp is None else 0.25 / mpp)
    return settings.model_copy(update={"scale": scale})


def save_model(network: HoverNet, card: ModelCard, path: Path) -> None:
    """Write weights and card in one file, whole or not at all.

    Args:
        network: The weights.
        card: Their card.
        path: The `.safetensors` file; its directory must exist.

    Raises:
        EosinError: If the disk is full or the place is not writable.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_file(path) as file:
        # One entry: safetensors writes several in any order, and the same run would not give the same bytes.
        file.write(save(tensors, metadata={_CARD_KEY: json.dumps(card.plain())}))


def _file_of(path: Path) -> Path:
    if path.is_dir():
        file = path / MODEL_FILE
        if file.is_file():
            return file
        if (path / "checkpoints").is_dir():
            raise EosinError(
                f"{path}: the run has no {MODEL_FILE} yet; finish it by running the same `eosin nuclei train` command "
                "again, it resumes"
            )
        raise EosinError(f"{path}: no {MODEL_FILE} in this directory; give what `eosin nuclei train` wrote")
    if not path.is_file():
        raise EosinError(f"{path}: no such run directory or file; give what `eosin nuclei train` wrote")
    if path.suffix != ".safetensors":
        raise EosinError(f"{path}: a network for nuclei is a .safetensors file; give what `eosin nuclei train` wrote")
    return path


def _filled(card: ModelCard, tensors: dict[str, Tensor], where: str) -> HoverNet:
    """Build the network of a card and give it the weights."""
    from eosin.encoders.loading import load_backbone, load_state

    encoder = None
    if card.encoder is not None:
        from eosin.encoders.backbone import TimmEncoder

        prefix = "trunk.encoder.backbone."
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        backbone, _ = load_backbone(
            card.encoder.architecture, card.encoder.size, own, where, options=card.encoder.options, prefix="none"
        )
        encoder = TimmEncoder(card.encoder, backbone)
    elif card.network.encoder != REFERENCE:
        raise EosinError(f"{where}: its card names an encoder and describes none; copy the file again")
    network = build_network(card.network, encoder, len(card.classes), where=where)
    load_state(network, tensors, where)
    return network


def _fingerprint(card: ModelCard, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(card.plain(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
