"""What every protocol has: a name, a version, a reference, and one way from an encoder's work on a task to answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError, StorageError, nearest
from eosin.core.registry import Registry

if TYPE_CHECKING:
    from eosin.data import Tiles
    from eosin.encoders import Encoder
    from eosin.evaluate.embed import PixelChange

__all__ = [
    "PROTOCOLS",
    "Answer",
    "Asked",
    "FeatureProtocol",
    "Fit",
    "Material",
    "Prediction",
    "Protocol",
    "open_protocol",
    "open_protocols",
]

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Material:
    """What an encoder made of a task's images, and the images: all that a protocol may look at, save the labels.

    Attributes:
        features: float32 [N, D].
        classes: C class names.
        groups: str [N], patient or slide of each row; None when unknown.
        tiles: The N images, in step with the features; None where only features are at hand.
        encoder: The encoder in evaluation mode; None where only features are at hand. A protocol that changes it works
            on a copy.
        embed_changed: Features of some rows after a change of their pixels: (rows int64 [n], change) -> float32
            [n, D], kept by content; None where only features are at hand.
        work: A folder of this encoder and task, for what must survive a kill; None to keep nothing.
        workers: Processes that decode.
        precision: "fp32" or "bf16", of the encoder's passes.
    """

    features: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    groups: npt.NDArray[Any] | None = None
    tiles: Tiles | None = None
    encoder: Encoder | None = None
    embed_changed: Callable[[Rows, PixelChange], npt.NDArray[np.float32]] | None = None
    work: Path | None = None
    workers: int = 0
    precision: str = "fp32"


@dataclass(frozen=True, eq=False)
class Fit:
    """One thing to fit: a split, a share of its labels, and a seed.

    Attributes:
        labels: int64 [N], class indices; -1 for every row that is neither in `train` nor in `val`.
        train: int64, rows to fit on.
        val: int64, rows to choose settings on.
        test: int64, rows to predict.
        seed: Of whatever the protocol draws.
        fraction: Share of the labels that `train` and `val` are, in (0, 1].
    """

    labels: Rows
    train: Rows
    val: Rows
    test: Rows
    seed: int = 0
    fraction: float = 1.0


@dataclass(frozen=True)
class Prediction:
    """A protocol's answer for the test images.

    Attributes:
        probabilities: float64 [n_test, C], rows summing to 1.
        chosen: What was selected and on what, ready for JSON.
        votes: Whether `probabilities` are shares of many classifiers' hard decisions: what comes of the confusion
            matrix is then that of the matrix averaged over these classifiers, not of the majority's.
        unchanged: float64 [n_test, C], probabilities of the same images before their pixels were changed; None where
            nothing was changed. Metrics lost are measured against them.
        moved: float64 [n_test], cosine distance of each test image's embedding to that of the unchanged image.
        decisions: int [V, n_test], the class that each of V voters said, where `votes`; scoring adds the standard
            deviation over them to `chosen` (as "sd") and lets them go.
    """

    probabilities: Floats
    chosen: dict[str, Any] = field(default_factory=dict)
    votes: bool = False
    unchanged: Floats | None = None
    moved: Floats | None = None
    decisions: npt.NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of one fit under one variant of a protocol.

    Attributes:
        fit: Its place in the fits asked for.
        variant: Name of the variant; "" for a protocol without variants.
        result: The prediction, or why there is none.
    """

    fit: int
    variant: str
    result: Prediction | EosinError


class Protocol(ABC):
    """A way to score an encoder.

    A protocol is a frozen dataclass; its fields are settings, each of which a spec may override.

    Attributes:
        name: In records and on the command line.
        version: Raised, with a line in `changes`, when the same encoder would score differently.
        reference: Where it is published.
        changes: What each version changed.
        higher_is_better: Direction of its scores.
        variants: Names of its variants, each a result of its own; ("",) where there is one.
        fractions: Whether shares of the labels make sense for it.
        pixels: Whether it needs images and encoder, not only features.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    reference: ClassVar[str]
    changes: ClassVar[dict[int, str]]
    higher_is_better: ClassVar[bool] = True
    variants: ClassVar[tuple[str, ...]] = ("",)
    fractions: ClassVar[bool] = True
    pixels: ClassVar[bool] = False

    def depends(self, variant: str) -> str:
        """Identify what the results of a variant depend on beside `version` and the settings; "" where nothing is.

        A benchmark computes a cell again where it changes, such as the pixels that a named change makes.
        """
        return ""

    @abstractmethod
    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """Answer every fit under every variant, each as soon as it is known, in any order.

        A fit that cannot be answered (a class without training images, no validation images) gets its reason as its
        answer; the others go on.

        Args:
            material: Features, images, encoder.
            fits: What to fit.
            variants: Of `variants`; all by default.
        """


class FeatureProtocol(Protocol):
    """A protocol that needs nothing but features and treats each fit by itself."""

    def answers(
        self, material: Material, fits: Sequence[Fit], variants: Sequence[str] | None = None
    ) -> Iterator[Answer]:
        """See `Protocol.answers`."""
        for place, fit in enumerate(fits):
            result: Prediction | EosinError
            try:
                result = self.run(
                    material.features,
                    fit.labels,
                    material.classes,
                    fit.train,
                    fit.val,
                    fit.test,
                    material.groups,
                    fit.seed,
                )
            except StorageError:
                raise
            except EosinError as error:
                result = error
            yield Answer(place, "", result)

    @abstractmethod
    def run(
        self,
        features: npt.NDArray[np.float32],
        labels: Rows,
        classes: Sequence[str],
        train: Rows,
        val: Rows,
        test: Rows,
        groups: npt.NDArray[Any] | None = None,
        seed: int = 0,
    ) -> Prediction:
        """Fit on the training rows, choose on the validation rows, predict the test rows.

        Args:
            features: float32 [N, D].
            labels: int64 [N], class indices; those of the test rows are not looked at.
            classes: C class names.
            train: Rows to fit on.
            val: Rows to choose settings on.
            test: Rows to predict.
            groups: [N], patient or slide of each row, None when unknown.
            seed: Of whatever the protocol draws.
        """


PROTOCOLS: Registry[Protocol] = Registry("protocol")


@dataclass(frozen=True)
class Asked:
    """A protocol as a command names it.

    Attributes:
        shown: How results call it: ``knn``, ``fewshot:simpleshot-4``, ``knn?k=5``.
        protocol: With its settings.
        variant: "" where it has no variants.
    """

    shown: str
    protocol: Protocol
    variant: str


def open_protocol(spec: str) -> list[Asked]:
    """Read ``NAME``, ``NAME:VARIANT`` and either with ``?setting=value&setting=value``.

    Args:
        spec: A name in `PROTOCOLS`; without a variant, all of its variants are asked for.

    Raises:
        EosinError: If the name, the variant or a setting is unknown, or a value is wrong.
    """
    head, _, query = spec.partition("?")
    name, _, variant = head.partition(":")
    protocol = PROTOCOLS[name]
    if query:
        protocol = _with_settings(protocol, query, spec)
    if variant and variant not in protocol.variants:
        known = [value for value in protocol.variants if value]
        fix = nearest(variant, known) if known else f"'{name}' has no variants"
        raise EosinError(f"protocol '{spec}': unknown variant '{variant}'; {fix}")
    suffix = f"?{query}" if query else ""
    chosen = [variant] if variant else list(protocol.variants)
    return [Asked(f"{name}:{value}{suffix}" if value else f"{name}{suffix}", protocol, value) for value in chosen]


def open_protocols(specs: Sequence[str]) -> list[Asked]:
    """Read several specs, in order, each protocol and variant once; "all" stands for every protocol."""
    asked: dict[str, Asked] = {}
    for spec in [name for given in specs for name in (list(PROTOCOLS) if given == "all" else [given])]:
        for entry in open_protocol(spec):
            asked.setdefault(entry.shown, entry)
    return list(asked.values())


def _with_settings(protocol: Protocol, query: str, spec: str) -> Protocol:
    from pydantic import TypeAdapter, ValidationError

    known = {entry.name: getattr(protocol, entry.name) for entry in fields(protocol)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in query.split("&"):
        key, separator, text = part.partition("=")
        if not separator or not text:
            raise EosinError(f"protocol '{spec}': '{part}' is no setting; settings are written ?key=value&key=value")
        if key not in known:
            fix = nearest(key, known) if known else f"'{protocol.name}' has no settings"
            raise EosinError(f"protocol '{spec}': unknown setting '{key}'; {fix}")
        if key in values:
            raise EosinError(f"protocol '{spec}': setting '{key}' is given twice; keep one")
        kind = type(known[key])
        try:
            if kind is tuple:
                entries = text.split("+")
                values[key] = tuple(TypeAdapter(type(known[key][0])).validate_strings(entry) for entry in entries)
            else:
                values[key] = TypeAdapter(kind).validate_strings(text)
        except ValidationError:
            wanted = f"{type(known[key][0]).__name__}s joined by '+'" if kind is tuple else kind.__name__
            raise EosinError(f"protocol '{spec}': {key}={text} is no {wanted}") from None
    try:
        return replace(protocol, **values)  # type: ignore[type-var]
    except ValueError as error:
        raise EosinError(f"protocol '{spec}': {error}") from None
