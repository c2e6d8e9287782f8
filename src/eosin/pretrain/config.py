"""The configuration of a pre-training run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from eosin.augment import AugmentConfig
from eosin.core.config import Config, apply_overrides, flatten
from eosin.core.errors import EosinError
from eosin.methods import METHODS, Method, MethodConfig, Setting
from eosin.pretrain.presets import published_views, with_preset
from eosin.training.optimizers import OptimizerConfig
from eosin.training.sinks import LogConfig

__all__ = [
    "FREE_FIELDS",
    "CheckpointConfig",
    "DataConfig",
    "EncoderConfig",
    "PretrainConfig",
    "WatchConfig",
]

FREE_FIELDS = (
    "checkpoint",
    "data.workers",
    "data.quarantine_limit",
    "watch.on_collapse",
    "device",
    "augment_on",
    "compile",
    "log.tensorboard",
    "log.wandb",
    "log.mlflow",
)
"""Fields that may change when a run is resumed: none of them changes what is computed, except that on a GPU views made
in workers may differ by a grey level (`augment_on`)."""

SMALLEST_MPP, LARGEST_MPP = 0.01, 100.0
"""What a resolution in µm/px can be; numbers outside are in nm or mm."""


class DataConfig(Config):
    """The unlabelled tiles."""

    source: str | None = None
    """folder:DIR, csv:FILE, store:DIR or a path; set by --data."""
    splits: tuple[str, ...] | None = None
    """Use only tiles of these splits of the source."""
    size: int = Field(256, ge=8)
    """Side in pixels to which a tile's short side is resized before views are cut."""
    mpp: float | None = Field(None, ge=SMALLEST_MPP, le=LARGEST_MPP)
    """µm/px of the tiles that do not say theirs; needed for views with a field of view."""
    workers: int | None = Field(None, ge=0)
    """Processes that decode tiles; null chooses by the number of cores."""
    quarantine_limit: float = Field(0.01, ge=0.0, le=1.0)
    """Share of unreadable tiles above which the run stops."""


class EncoderConfig(Config):
    """The network to train."""

    architecture: str = "resnet50"
    """A timm architecture."""
    size: int = Field(224, ge=8)
    """Side in pixels of the images on which the trained encoder is to be used."""
    mpp: float | None = Field(None, gt=0.0)
    """Resolution of the tiles in µm/px, where they have one; written on the encoder's card."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of timm.create_model, such as zero_init_last."""


class CheckpointConfig(Config):
    """When to save."""

    every_steps: int | None = Field(None, ge=1)
    """Optimiser steps between checkpoints; null saves 20 over the run."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept: the newest ones."""


class WatchConfig(Config):
    """The collapse watch and the online probe."""

    every_steps: int | None = Field(None, ge=1)
    """Optimiser steps between looks at the encoder; null looks 20 times over the run."""
    tiles: int = Field(512, ge=16)
    """Tiles embedded at each look."""
    task: str | None = None
    """A labelled source for the online kNN probe, such as csv:tiles.csv: its validation split is scored, and the best
    encoder kept."""
    grace_steps: int = Field(100, ge=0)
    """Steps before a collapse may be reported: every run starts with near-equal projections."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """warn goes on; stop ends the run with its last checkpoint kept."""


class PretrainConfig(Config):
    """Everything that determines a pre-training run."""

    summary: str = ""
    """What the recipe is for, what it costs and what it reaches."""
    seed: int = Field(0, ge=0)
    """Seed of every draw."""
    samples: int = Field(256_000_000, ge=1)
    """Length of the run in tiles seen."""
    batch_size: int = 256
    """Tiles per optimiser step over all processes."""
    accumulate: int = Field(1, ge=1)
    """Pieces into which a process cuts its batch to save memory."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 runs the networks in mixed precision; losses stay fp32. auto is bf16 where the device has it in hardware."""
    compile: bool = False
    """Compile the networks with torch.compile."""
    device: str | None = None
    """cpu, cuda, cuda:N; null takes the best one present."""
    augment_on: Literal["fastest", "device", "workers"] = "fastest"
    """Where views are made: on the device that trains, or in the processes that decode; fastest tries both for a few
    steps and keeps the faster one."""
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = EncoderConfig()
    augment: AugmentConfig = AugmentConfig()
    method: SerializeAsAny[MethodConfig]
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _authors_values(cls, values: Any) -> Any:
        """Fill what is not given with the values of the preset, and of the method's authors."""
        if not isinstance(values, Mapping):
            return values
        named = values.get("method")
        name = named.name if isinstance(named, MethodConfig) else named.get("name") if named else None
        if not isinstance(name, str) or name not in METHODS:
            return values
        method = _class_of(name)
        defaults = dict(method.defaults)
        optimizer = values.get("optimizer", {})
        if isinstance(optimizer, Mapping):
            default = defaults.get("optimizer", {}).get("name", "sgd")
            if optimizer.get("name", default) != default:
                defaults.pop("optimizer", None)  # another optimiser's settings
        augment = values.get("augment")
        if isinstance(augment, Mapping) and augment.get("preset") is not None:
            defaults["augment"] = {"views": with_preset(published_views(name), augment["preset"])}
        return _in_order(_merged(defaults, values), method)

    @field_validator("method", mode="before")
    @classmethod
    def _resolve_method(cls, values: Any) -> Any:
        """Read the fields with the model of the method that is named."""
        if isinstance(values, MethodConfig):
            return values
        if not isinstance(values, Mapping) or not isinstance(values.get("name"), str):
            raise EosinError(f"field 'method.name' is missing; valid: {', '.join(METHODS)}")
        return _class_of(values["name"]).Config.parse(values, "method")

    @field_validator("batch_size")
    @classmethod
    def _more_than_one(cls, value: int) -> int:
        if value < 2:
            raise ValueError("one tile has no other to be told apart from; use 2 or more")
        return value

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return math.ceil(self.samples / self.batch_size)

    def resolved(self, tiles: int, *, bf16: bool = True) -> tuple[PretrainConfig, dict[str, Any]]:
        """Give every field that says `auto` its value.

        Args:
            tiles: Unlabelled tiles of the run.
            bf16: Whether the device computes bfloat16 in hardware.

        Returns:
            The configuration without `auto`, and the chosen values by dotted name.

        Raises:
            EosinError: If the method has no automatic value for a field.
        """
        fields = [name for name, value in flatten(self.plain()).items() if value == "auto"]
        method = _class_of(self.method.name)
        known = {"precision": "bf16" if bf16 else "fp32"}
        known |= method.automatic(self.method, Setting(tiles, self.batch_size, self.steps))
        usual = method.defaults.get("optimizer", {}).get("name", "sgd")
        for name in fields:
            # A rate of LARS is hundreds of times one of AdamW.
            if name in ("optimizer.lr", "optimizer.bias_lr") and name in known and self.optimizer.name != usual:
                raise EosinError(
                    f"field '{name}': the automatic value is for {usual}, optimizer.name is {self.optimizer.name}; "
                    "give a number"
                )
            if name not in known:
                offered = f"; it has for {', '.join(sorted(known))}" if known else ""
                raise EosinError(f"field '{name}': method {self.method.name} has no automatic value{offered}")
        chosen = {name: known[name] for name in fields}
        return PretrainConfig.parse(apply_overrides(self.plain(), chosen), "automatic values"), chosen


def _class_of(name: str) -> type[Method]:
    method = METHODS[name]
    assert isinstance(method, type)
    return method


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `given` with what it does not hold taken from `defaults`, mapping by mapping."""
    merged = dict(defaults) | dict(given)
    for name, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(given.get(name), Mapping):
            merged[name] = _merged(value, given[name])
    return merged


def _in_order(values: dict[str, Any], method: type[Method]) -> dict[str, Any]:
    """Put the views into the order in which the method takes them."""
    augment = values.get("augment")
    if not isinstance(augment, Mapping) or not isinstance(augment.get("views"), Mapping):
        return values
    views = augment["views"]
    ordered = {name: views[name] for name in method.views if name in views}
    return values | {"augment": {**augment, "views": ordered | dict(views)}}
