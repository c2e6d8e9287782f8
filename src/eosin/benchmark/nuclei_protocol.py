"""How an encoder is scored by nuclei: HoVer-Net's decoders are trained on it, and it with them or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from eosin.benchmark.nuclei_task import is_nuclei_spec
from eosin.core.config import apply_overrides, describe_fields
from eosin.core.console import warn
from eosin.core.errors import EosinError, nearest
from eosin.evaluate import PROTOCOLS, Asked, open_protocols
from eosin.nuclei.config import FREE_FIELDS, NucleiConfig, PhaseName, TargetsConfig
from eosin.nuclei.recipe import load_nuclei_recipe

__all__ = [
    "CHANGES",
    "HOVERNET",
    "REFERENCE",
    "VARIANTS",
    "VERSION",
    "NucleiAsked",
    "fitting_tasks",
    "open_asked",
    "open_hovernet",
]

HOVERNET = "hovernet"
VERSION = 3
CHANGES = {
    1: "first version",
    2: "windows reach half over the border of an image: before, borders were hardly learned from",
    3: "what has seen the padding of the last convolution is left out: it changed nuclei where windows meet",
}
REFERENCE = (
    "Graham et al., HoVer-Net, Medical Image Analysis 2019; with a frozen encoder as Kang et al., CVPR 2023, compare "
    "encoders"
)
VARIANTS: dict[str, tuple[PhaseName, ...]] = {"frozen": ("decoder",), "finetune": ("decoder", "whole")}
"""Variant -> phases of the training."""

_SHORT: dict[str, tuple[str, ...]] = {
    "epochs": ("decoder.epochs", "whole.epochs"),
    "samples": ("decoder.samples", "whole.samples"),
    "batch_size": ("decoder.batch_size", "whole.batch_size"),
    "lr": ("decoder.lr", "whole.lr"),
    "width": ("network.width",),
    "window": ("network.window",),
    "geometry": ("network.geometry",),
    "trunk": ("network.trunk",),
    "types": ("network.types",),
    "patience": ("validation.patience",),
}
"""Short name of a setting -> fields of the training."""

_TAKEN = {
    "seed": "is one of --seeds",
    "precision": "is --precision",
    "device": "is the first of --devices",
    "phases": "follows from the variant, frozen or finetune",
    "data": "follows from the task, --fractions and --workers",
    "network.encoder": "is one of --encoders",
    "checkpoint": "is that of the benchmark",
    "log": "is that of the benchmark",
    "summary": "is no setting",
}
"""Fields, or their parents, that the benchmark itself sets."""


@dataclass(frozen=True)
class NucleiAsked:
    """A variant of the protocol as a command names it.

    Attributes:
        shown: How results call it: ``hovernet:frozen``, ``hovernet:finetune?epochs=10``.
        variant: A name in `VARIANTS`.
        config: The training, but for what the benchmark sets cell by cell.
    """

    shown: str
    variant: str
    config: NucleiConfig

    def settings(self) -> dict[str, Any]:
        """Return all of the training that its result depends on, but for what the benchmark sets cell by cell."""
        plain = self.config.plain()
        plain["network"].pop("encoder")
        for name in ("seed", "precision", "data", *FREE_FIELDS):
            plain.pop(name.partition(".")[0], None)
        # Results from before there was a choice stay known.
        if self.config.targets == TargetsConfig():
            plain.pop("targets")
        if self.config.network.trunk == "fine":
            plain["network"].pop("trunk")
        return plain


def open_asked(specs: Sequence[str]) -> tuple[list[Asked], list[NucleiAsked]]:
    """Read protocols of tiles and of nuclei, each once; "all" stands for every one.

    Raises:
        EosinError: If a name, a variant or a setting is unknown, or a value is wrong.
    """
    of_tiles: list[str] = []
    of_nuclei: dict[str, NucleiAsked] = {}
    for spec in specs:
        name = _name(spec)
        if name in (HOVERNET, "all"):
            of_nuclei |= {entry.shown: entry for entry in open_hovernet(HOVERNET if name == "all" else spec)}
        elif name not in PROTOCOLS:
            raise EosinError(f"unknown protocol '{name}'; {nearest(name, [*PROTOCOLS, HOVERNET])}")
        if name != HOVERNET:
            of_tiles.append(spec)
    return open_protocols(of_tiles), list(of_nuclei.values())


def _name(spec: str) -> str:
    return spec.partition("?")[0].partition(":")[0]


def fitting_tasks(tasks: Sequence[str], asked: Sequence[Asked], of_nuclei: Sequence[NucleiAsked]) -> list[str]:
    """Return the tasks that a protocol fits, and warn of the others.

    Args:
        tasks: Specs.
        asked: Protocols of tiles.
        of_nuclei: Protocols of nuclei.

    Raises:
        EosinError: If no protocol fits a task.
    """
    fitting = [task for task in tasks if (of_nuclei if is_nuclei_spec(task) else asked)]
    for task in tasks:
        if task in fitting:
            continue
        reason = (
            f"{task}: nuclei are segmented by the protocol {HOVERNET}; add it to --protocols, such as {HOVERNET}:frozen"
            if is_nuclei_spec(task)
            else f"{task}: {HOVERNET} segments nuclei, of tasks such as nuclei:folder:DIR; add a protocol such as knn"
        )
        if not fitting:
            raise EosinError(f"no protocol fits a task: {reason}")
        warn(reason)
    return fitting


def open_hovernet(spec: str) -> list[NucleiAsked]:
    """Read ``hovernet``, ``hovernet:frozen`` or ``hovernet:finetune``, each with ``?setting=value&setting=value``.

    Settings are `recipe` and fields of the training by their dotted names, such as ``decoder.lr=0.0005``; `epochs`,
    `samples`, `batch_size` and `lr` stand for those of both phases, `width`, `window`, `geometry`, `types` and
    `patience` for one field each.

    Raises:
        EosinError: If the variant or a setting is unknown, or a value is wrong.
    """
    head, _, query = spec.partition("?")
    variant = head.partition(":")[2]
    if variant and variant not in VARIANTS:
        raise EosinError(f"protocol '{spec}': unknown variant '{variant}'; {nearest(variant, VARIANTS)}")
    recipe, overrides = _settings(spec, query)
    suffix = f"?{query}" if query else ""
    found = []
    for name in [variant] if variant else VARIANTS:
        phases = {"phases": list(VARIANTS[name])}
        try:
            base = load_nuclei_recipe(recipe).plain()
            config = NucleiConfig.parse(apply_overrides(base, overrides | phases), recipe)
        except EosinError as error:
            raise EosinError(f"protocol '{spec}': {error}") from None
        found.append(NucleiAsked(f"{HOVERNET}:{name}{suffix}", name, config))
    return found


def _settings(spec: str, query: str) -> tuple[str, dict[str, Any]]:
    """Read settings: the recipe, and values by dotted name."""
    fields = {name for name, _, _ in describe_fields(NucleiConfig())}
    recipe, overrides, given = HOVERNET, dict[str, Any](), set[str]()
    for part in query.split("&") if query else []:
        key, separator, text = part.partition("=")
        if not separator or not text:
            raise EosinError(f"protocol '{spec}': '{part}' is no setting; settings are written ?key=value&key=value")
        if key in given:
            raise EosinError(f"protocol '{spec}': setting '{key}' is given twice; keep one")
        given.add(key)
        for name, reason in _TAKEN.items():
            if key == name or key.startswith(f"{name}."):
                raise EosinError(f"protocol '{spec}': setting '{key}' {reason}")
        if key == "recipe":
            recipe = text
            continue
        if key not in _SHORT and key not in fields:
            known = ["recipe", *_SHORT, *sorted(fields)]
            raise EosinError(f"protocol '{spec}': unknown setting '{key}'; {nearest(key, known)}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise EosinError(f"protocol '{spec}': {key}={text} cannot be read") from None
        for name in _SHORT.get(key, (key,)):
            # What is given by its own name stands.
            if name == key or name not in given:
                overrides[name] = value
    for phase in ("decoder", "whole"):
        # A recipe's number of windows would hide the epochs that were asked for.
        if f"{phase}.epochs" in overrides:
            overrides.setdefault(f"{phase}.samples", None)
    return recipe, overrides
