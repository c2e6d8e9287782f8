"""What to benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from eosin.core.config import Config
from eosin.core.errors import EosinError

__all__ = ["BenchmarkConfig", "read_fractions", "read_seeds", "run_directory"]


class BenchmarkConfig(Config):
    """Encoders x tasks x protocols x label fractions x seeds."""

    encoders: Annotated[tuple[str, ...], Field(min_length=1)]
    """Each SPEC or NAME=SPEC; {seed} in a SPEC stands for each seed."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Task specs."""
    protocols: Annotated[tuple[str, ...], Field(min_length=1)] = ("knn", "logistic")
    """Protocols: NAME, NAME:VARIANT, either with ?setting=value; a name stands for all of its variants."""
    fractions: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=1)] = (1.0,)
    """Shares of the training and validation labels to use."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Seeds of splits that are made, of label subsets, of probes, and of {seed} in encoder specs."""
    out: Path
    """The benchmark directory."""
    label_column: str = "label"
    """Column of the label in manifests, unless a task spec says ?label=."""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """Tiles per forward pass; null finds one that fits."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the encoder's passes; features and probes are float32 either way."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode; null chooses by the number of cores."""
    shard: tuple[int, int] | None = None
    """(i, n): compute part i, counted from 0, of n of every embedding, and nothing else; for job arrays that share
    the directory. A call without it joins the parts and goes on."""
    devices: tuple[str, ...] = ()
    """Devices to embed on, a process each, such as cuda:0 and cuda:1; ("auto",) is every GPU here."""
    ray: str | None = None
    """Address of a Ray cluster to embed on; "auto" is the one that runs here, "local" starts one."""

    @field_validator("encoders", "tasks", "protocols", "fractions", "seeds")
    @classmethod
    def _no_duplicates(cls, values: tuple[object, ...]) -> tuple[object, ...]:
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"'{value}' is given twice; keep one")
        return values


def read_seeds(text: str) -> tuple[int, ...]:
    """Read the option --seeds: whole numbers, separated by commas.

    Raises:
        EosinError: If it holds none, or something else.
    """
    parts = _parts(text)
    if not parts or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
        raise EosinError(f"--seeds {text}: seeds are whole numbers from 0, such as --seeds 0,1,2")
    return tuple(map(int, parts))


def read_fractions(text: str) -> tuple[float, ...]:
    """Read the option --fractions: shares, separated by commas.

    Raises:
        EosinError: If it holds none, or something else.
    """
    try:
        shares = tuple(map(float, _parts(text)))
    except ValueError:
        shares = ()
    if not shares or not all(0 < share <= 1 for share in shares):
        raise EosinError(f"--fractions {text}: shares are above 0 and at most 1, such as --fractions 0.1,1")
    return shares


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def run_directory(spec: str) -> Path | None:
    """Return the absolute path of the pre-training run that a spec names, by its directory or its encoder file."""
    path = Path(spec.partition("?")[0]).expanduser()
    for folder in (path, path.parent):
        if path.exists() and (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file():
            return folder.resolve()
    return None
