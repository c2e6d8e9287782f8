"""What to benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from eosin.core.config import Config
from eosin.core.errors import EosinError

__all__ = ["BenchmarkConfig", "NamedEncoder", "named_encoders", "run_directory"]

_SEED = "{seed}"


class BenchmarkConfig(Config):
    """Encoders x tasks x protocols x label fractions x seeds."""

    encoders: Annotated[tuple[str, ...], Field(min_length=1)]
    """Each SPEC or NAME=SPEC; {seed} in a SPEC stands for each seed."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Task specs."""
    protocols: Annotated[tuple[str, ...], Field(min_length=1)] = ("knn", "logistic")
    """Names of protocols."""
    fractions: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=1)] = (1.0,)
    """Shares of the training and validation labels to use."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Seeds of splits that are made, of label subsets, of probes, and of {seed} in encoder specs."""
    out: Path
    """The benchmark directory."""
    label_column: str = "label"
    """Column of the label in manifests, unless a task spec says ?label=."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Tiles per forward pass."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode; null chooses by the number of cores."""

    @field_validator("encoders", "tasks", "protocols", "fractions", "seeds")
    @classmethod
    def _no_duplicates(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"'{value}' is given twice; keep one")
        return values


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder to benchmark.

    Attributes:
        name: Shown in results.
        template: Its spec, in which {seed} may stand.
    """

    name: str
    template: str

    def spec(self, seed: int) -> str:
        """Return the spec for a seed."""
        return self.template.replace(_SEED, str(seed))


def named_encoders(texts: tuple[str, ...]) -> list[NamedEncoder]:
    """Read ``SPEC`` and ``NAME=SPEC``; a name holds none of the characters ``: / ?``, which specs hold.

    A text that names a file or folder that exists, such as the run ``lr=0.1``, is a spec.

    Raises:
        EosinError: If a name or spec is empty, or two encoders have one name.
    """
    encoders: dict[str, NamedEncoder] = {}
    for text in texts:
        name, separator, spec = (part.strip() for part in text.partition("="))
        exists = Path(text.strip().partition("?")[0]).expanduser().exists()
        if not separator or exists or any(mark in name for mark in ":/?"):
            name = spec = text.strip()
        if not name or not spec:
            raise EosinError(f"encoder '{text}': write SPEC or NAME=SPEC")
        if name in encoders:
            raise EosinError(f"two encoders are named '{name}'; give one another name with NAME=SPEC")
        encoders[name] = NamedEncoder(name, spec)
    return list(encoders.values())


def run_directory(spec: str) -> Path | None:
    """Return the absolute path of the pre-training run that a spec names, by its directory or its encoder file."""
    path = Path(spec.partition("?")[0]).expanduser()
    for folder in (path, path.parent):
        if path.exists() and (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file():
            return folder.resolve()
    return None
