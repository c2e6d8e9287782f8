"""Where log records go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from eosin.core.config import Config
from eosin.core.errors import EosinError

__all__ = ["LogConfig", "Sink", "check_sinks", "open_sinks"]


class LogConfig(Config):
    """The log."""

    every_steps: int = Field(10, ge=1)
    """Optimiser steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Write the run's tb/ folder."""
    wandb: str | None = None
    """Weights & Biases project to log to (needs eosin[wandb])."""
    mlflow: str | None = None
    """MLflow experiment to log to, at MLFLOW_TRACKING_URI (needs eosin[mlflow])."""


class Sink(Protocol):
    """Takes numbers by name and step."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Record the values of a step."""

    def close(self) -> None:
        """Finish."""


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Its thread prints a traceback when the disk is full, and the next call raises the same error here.
        self.hook = threading.excepthook
        threading.excepthook = self._unless_of_the_writer
        # What was written after the checkpoint that a run resumes from is hidden.
        self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        try:
            self.writer.close()
        finally:
            threading.excepthook = self.hook

    def _unless_of_the_writer(self, failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            self.hook(failure)


class _Wandb:
    def __init__(self, project: str, run: Path, config: Mapping[str, Any]) -> None:
        import wandb

        # The id makes a resumed run go on in the same place.
        self.run = wandb.init(
            project=project, name=run.name, id=_identity(run), resume="allow", dir=str(run), config=dict(config)
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class _MLflow:
    def __init__(self, experiment: str, run: Path, config: Mapping[str, Any]) -> None:
        import mlflow

        self.client = mlflow.MlflowClient()
        found = self.client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self.client.create_experiment(experiment)
        tag = _identity(run)
        known = self.client.search_runs([number], filter_string=f"tags.eosin = '{tag}'")
        if known:
            self.run_id = known[0].info.run_id
            self.client.update_run(self.run_id, status="RUNNING")
            return
        self.run_id = self.client.create_run(number, run_name=run.name, tags={"eosin": tag}).info.run_id
        for name, value in config.items():
            self.client.log_param(self.run_id, name, value)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.client.log_metric(self.run_id, name.replace("/", "."), value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


def _identity(run: Path) -> str:
    from eosin.core.files import short_hash

    return short_hash(str(run.resolve()))


def check_sinks(config: LogConfig) -> None:
    """Refuse a service whose library is not installed.

    Raises:
        EosinError: Naming the extra to install.
    """
    for extra in ("wandb", "mlflow"):
        if getattr(config, extra) is not None and importlib.util.find_spec(extra) is None:
            raise EosinError(f"log.{extra}: {extra} is not installed; pip install 'eosin[{extra}]'")


def open_sinks(config: LogConfig, run: Path, fields: Mapping[str, Any], step: int) -> list[Sink]:
    """Open the sinks that a configuration asks for.

    Args:
        config: Which sinks.
        run: The run directory.
        fields: The run's configuration, by dotted name.
        step: Steps taken so far.
    """
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(_TensorBoard(run / "tb", step))
    if config.wandb is not None:
        sinks.append(_Wandb(config.wandb, run, fields))
    if config.mlflow is not None:
        sinks.append(_MLflow(config.mlflow, run, fields))
    return sinks
