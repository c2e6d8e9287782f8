"""The run directory: configuration, metrics, checkpoints, environment; one process writes it, and it resumes."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from eosin.core.collective import position_in_run
from eosin.core.config import Config, differing_fields, flatten, read_yaml
from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import (
    DirectoryLock,
    append_json_line,
    atomic_file,
    read_json_lines,
    storage_errors,
    writable_directory,
)
from eosin.training.checkpoints import Checkpoints
from eosin.training.sinks import LogConfig, Sink, check_sinks, open_sinks

__all__ = ["RunDirectory", "environment", "run_directory", "utc_now"]

_SHOWN = 4
_LIBRARIES = ("eosin", "torch", "torchvision", "timm", "numpy", "pillow", "pyarrow", "scikit-learn", "safetensors")


def environment(command: str) -> dict[str, Any]:
    """Describe the machine and the library versions, as saved beside every result."""
    versions: dict[str, str | None] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": command,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "libraries": versions,
        "arguments": sys.argv[1:],
    }


def utc_now() -> str:
    """Return the time in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunDirectory:
    """A training run on disk.

    Args:
        path: The directory; created if absent.
        config: The resolved configuration.
        free: Dotted names of fields, or of their parents, that may differ when a run is resumed because they do not
            change its result.
        command: The command line, for the record.
        keep: Checkpoints to keep.
        log: Where records go besides `metrics.jsonl`.
        result: Name of the file that a finished run has.

    Raises:
        EosinError: If the directory is in use, is not a run, not writable, or holds a run of another configuration.
    """

    def __init__(
        self,
        path: Path,
        config: Config,
        *,
        free: Collection[str],
        command: str,
        keep: int,
        log: LogConfig,
        result: str = "encoder.safetensors",
    ) -> None:
        check_sinks(log)
        self.path = writable_directory(path)
        self.config = config
        self.free = free
        self.command = command
        self.result = path / result
        self.checkpoints = Checkpoints(path / "checkpoints", keep)
        self.metrics_path = path / "metrics.jsonl"
        self._lock = DirectoryLock(path)
        self._log_config = log
        self._sinks: list[Sink] | None = None

    def __enter__(self) -> RunDirectory:
        self._lock.__enter__()
        try:
            self._take_over()
        except BaseException:
            self._lock.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with storage_errors(self.path):
                for sink in self._sinks or ():
                    sink.close()
        finally:
            self._lock.__exit__()

    def _take_over(self) -> None:
        config_path = self.path / "config.yaml"
        if config_path.exists():
            held = read_yaml(config_path)
            # A field that came later has its default in earlier runs; what cannot be read is told by the comparison.
            with suppress(EosinError):
                held = type(self.config).parse(held, str(config_path)).plain()
            different = [
                line
                for line in differing_fields(held, self.config.plain())
                if not any(line.startswith((f"{name}:", f"{name}.")) for name in self.free)
            ]
            if different:
                raise EosinError(
                    f"{self.path}: holds a run of another configuration ({_shortened(different)}); "
                    "use the same fields to resume it, or another --out"
                )
        elif any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise EosinError(f"{self.path}: holds other files and no run; choose another --out")
        for part in self.path.glob(".*.part"):
            part.unlink()
        if self.finished:
            return
        with atomic_file(config_path, "w") as file:
            yaml.safe_dump(self.config.plain(), file, sort_keys=False)
        self._describe()

    def _describe(self) -> None:
        """Write `environment.json`: this start, and under `earlier` those before it."""
        path = self.path / "environment.json"
        earlier: list[dict[str, Any]] = []
        if path.exists():
            try:
                last = json.loads(path.read_text(encoding="utf-8"))
                earlier = [*last.pop("earlier"), last]
            except (ValueError, KeyError, TypeError, AttributeError):
                warn(f"{path}: damaged; written anew without the starts before this one")
        start = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "earlier": earlier}
        with atomic_file(path, "w") as file:
            json.dump(environment(self.command) | start, file, indent=2)

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return self.result.exists()

    def log(self, record: dict[str, Any]) -> None:
        """Append a record, which has a `step`, to `metrics.jsonl` and to the sinks."""
        append_json_line(self.metrics_path, record)
        step = record["step"]
        with storage_errors(self.path):
            if self._sinks is None:
                self._sinks = open_sinks(self._log_config, self.path, flatten(self.config.plain()), step - 1)
            for sink in self._sinks:
                sink.write({name: value for name, value in record.items() if name != "step"}, step)

    def rewind(self, step: int) -> None:
        """Drop what was logged after the checkpoint from which the run goes on, and what its saving left over."""
        self.checkpoints.tidy(step)
        records = read_json_lines(self.metrics_path)
        for number, record in enumerate(records, start=1):
            if not isinstance(record.get("step"), int):
                raise EosinError(f"{self.metrics_path}: record {number} has no step; remove that line")
        kept = [record for record in records if record["step"] <= step]
        if self.metrics_path.exists():
            with atomic_file(self.metrics_path, "w") as file:
                for record in kept:
                    file.write(json.dumps(record, ensure_ascii=False, separators=(", ", ": ")) + "\n")


def run_directory(path: Path, config: Config, **arguments: Any) -> AbstractContextManager[RunDirectory | None]:
    """Return the run directory, which the first process alone writes; arguments as of `RunDirectory`."""
    return RunDirectory(path, config, **arguments) if position_in_run() == 0 else nullcontext()


def _shortened(differences: list[str]) -> str:
    """Name a few of many differing fields: first those that name a thing, such as the method."""
    ordered = sorted(differences, key=lambda line: (not line.split(":")[0].endswith(".name"), line))
    more = f"; and {len(ordered) - _SHOWN} more fields" if len(ordered) > _SHOWN else ""
    return "; ".join(ordered[:_SHOWN]) + more
