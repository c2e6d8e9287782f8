"""The configuration of a training of nuclei segmentation."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from eosin.core.config import Config
from eosin.nuclei.augment import NucleiAugment
from eosin.nuclei.losses import LossConfig
from eosin.nuclei.targets import SMALL, Center
from eosin.training.sinks import LogConfig

__all__ = [
    "FREE_FIELDS",
    "GEOMETRIES",
    "Freeze",
    "Geometry",
    "NetworkConfig",
    "NucleiCheckpointConfig",
    "NucleiConfig",
    "NucleiDataConfig",
    "PhaseConfig",
    "PhaseName",
    "PostprocessConfig",
    "TrunkName",
    "ValidationConfig",
]

Geometry = Literal["original", "fast"]
Freeze = Literal["full", "reference"]
PhaseName = Literal["decoder", "whole"]
TrunkName = Literal["fine", "pyramid"]

GEOMETRIES: dict[Geometry, tuple[int, int]] = {"original": (270, 80), "fast": (256, 164)}
"""Published sides in pixels of the input window and of the output, which lies in its middle."""

FREE_FIELDS = (
    "summary",
    "checkpoint",
    "data.workers",
    "device",
    "log.tensorboard",
    "log.wandb",
    "log.mlflow",
)
"""Fields that may change when a run is resumed: none of them changes what is computed."""


class NucleiDataConfig(Config):
    """The labelled images."""

    source: str | None = None
    """A set such as folder:DIR or consep:DIR; set by --data."""
    fraction: float = Field(1.0, gt=0.0, le=1.0)
    """Share of the training images that is used; smaller shares are part of larger ones."""
    workers: int | None = Field(None, ge=0)
    """Threads that cut windows and make targets ahead of the network; null chooses by the number of cores."""


class NetworkConfig(Config):
    """The network: an encoder and HoVer-Net's decoders."""

    encoder: str = "random:resnet50"
    """An encoder's spec, or preact_resnet50: the untrained network of the HoVer-Net paper."""
    geometry: Geometry = "fast"
    """original takes windows of 270 px and puts out 80, with convolutions of 5 px; fast 256 and 164, with 3 px."""
    window: int | None = Field(None, ge=1)
    """Side of the input in pixels, in place of the published one: fast takes multiples of 8 and puts out 92 px less,
    original 6 more than a multiple of 8 and puts out 190 px less."""
    width: float = Field(1.0, gt=0.0, le=4.0)
    """Factor on the channels of the decoders."""
    types: bool = True
    """Learn the types of nuclei where the set has them."""
    trunk: TrunkName = "fine"
    """What becomes of a ResNet: fine sets its stem to stride 1, as HoVer-Net does; pyramid leaves it at the resolution
    that it was trained at, under the pyramid that other encoders get, at a sixteenth of the encoder's cost."""
    pixels: bool = True
    """Add a convolution of the image itself to the finest map of encoders whose own maps are coarser than 2 px."""

    @property
    def sides(self) -> tuple[int, int]:
        """Sides in pixels of the input window and of the output."""
        window, output = GEOMETRIES[self.geometry]
        return (window, output) if self.window is None else (self.window, self.window - window + output)

    @model_validator(mode="after")
    def _window_fits(self) -> Self:
        rest, least = (6, 198) if self.geometry == "original" else (0, 104)
        if self.window is not None and (self.window % 8 != rest or self.window < least):
            near = max(least, round((self.window - rest) / 8) * 8 + rest)
            raise ValueError(f"window {self.window}: geometry {self.geometry} does not take it; use {near}")
        return self


class PhaseConfig(Config):
    """One phase of the training."""

    epochs: PositiveFloat = 50.0
    """Length; an epoch has as many windows as outputs fit over the training images, so that each pixel is learned from
    once an epoch on average."""
    samples: int | None = Field(None, ge=1)
    """Length in windows, in place of `epochs`."""
    batch_size: int = Field(16, ge=1)
    """Windows a step over all processes."""
    lr: PositiveFloat = 1e-4
    """Learning rate of Adam."""
    encoder_lr: PositiveFloat = 1.0
    """Learning rate of the encoder as a multiple of `lr`, where it is trained."""
    drop_epochs: PositiveFloat = 25.0
    """Epochs after which the learning rate is multiplied by `drop`, again and again; with `samples`, of the same share
    of the phase: drop_epochs / epochs."""
    drop: float = Field(0.1, gt=0.0, le=1.0)
    """Factor on the learning rate at each drop; 1 keeps it constant."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Weight decay, decoupled from the gradient; 0 as published."""

    def length(self, epoch: int) -> int:
        """Return the steps of the phase, given the windows of an epoch."""
        samples = math.ceil(self.epochs * epoch) if self.samples is None else self.samples
        return math.ceil(samples / self.batch_size)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step counted from 0, of `steps`."""
        return self.lr * self.drop ** math.floor(step / steps * self.epochs / self.drop_epochs)


class TargetsConfig(Config):
    """What is learned of a label map; see `eosin.nuclei.targets`."""

    center: Center = "official"
    """Where the HV maps of a nucleus are 0: official is one pixel left of and above its center of mass, as in the
    authors' code, exact is that center."""
    small: int = Field(SMALL, ge=1)
    """Nuclei with fewer pixels than this inside the output stay 0 in the HV maps."""


class ValidationConfig(Config):
    """Validation while training: panoptic quality of whole images."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between looks; null looks 20 times a phase."""
    images: int | None = Field(None, ge=1)
    """Most validation images at a look; null takes all."""
    patience: int = Field(0, ge=0)
    """Looks without a better PQ after which a phase ends; 0 never ends it early. The whole phase begins with the best
    weights of the decoder phase, and the best of all are the result."""


class PostprocessConfig(Config):
    """From the network's maps to nuclei; see `eosin.nuclei.postprocess`."""

    normalise: Literal["official", "fixed"] = "fixed"
    """official scales slopes by what else is in the image, fixed by a constant."""
    scale: float | None = Field(None, ge=0.05, le=20.0)
    """Size of a nucleus in pixels relative to 0.25 µm/px; null computes it from the set's resolution, or takes 1."""


class NucleiCheckpointConfig(Config):
    """When to save."""

    every_steps: int | None = Field(None, ge=1)
    """Steps between checkpoints; null saves 20 over the run."""
    keep: int = Field(1, ge=1)
    """Checkpoints kept: the newest ones."""


class NucleiConfig(Config):
    """Everything that determines a training of nuclei segmentation."""

    summary: str = ""
    """What the recipe is for, what it costs and what it reaches."""
    seed: int = Field(0, ge=0)
    """Seed of every draw."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 runs the network in mixed precision; losses stay fp32. auto is bf16 where the device has it in hardware."""
    device: str | None = None
    """cpu, cuda, cuda:N; null takes the best one present."""
    data: NucleiDataConfig = NucleiDataConfig()
    network: NetworkConfig = NetworkConfig()
    augment: NucleiAugment = NucleiAugment()
    targets: TargetsConfig = TargetsConfig()
    loss: LossConfig = LossConfig()
    phases: tuple[PhaseName, ...] = ("decoder", "whole")
    """What is trained, one after the other: decoder leaves the encoder frozen, whole trains all."""
    freeze: Freeze = "full"
    """In the decoder phase: full leaves the encoder as it is, batch norm statistics included; reference lets these
    move, and trains the first convolution of preact_resnet50, as the authors' code does."""
    decoder: PhaseConfig = PhaseConfig(batch_size=16)
    whole: PhaseConfig = PhaseConfig(batch_size=4)
    validation: ValidationConfig = ValidationConfig()
    postprocess: PostprocessConfig = PostprocessConfig()
    checkpoint: NucleiCheckpointConfig = NucleiCheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _each_phase_once(self) -> Self:
        if not self.phases or len(set(self.phases)) != len(self.phases):
            raise ValueError("phases: give decoder, whole, or both, each once")
        return self

    def phase(self, name: PhaseName) -> PhaseConfig:
        """Return the fields of a phase."""
        return self.decoder if name == "decoder" else self.whole
