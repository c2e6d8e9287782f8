"""From a run to the encoder of one of its steps."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from eosin.core.config import read_yaml
from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.encoders import Encoder, load_encoder
from eosin.encoders.export import Format, check_output, export_encoder
from eosin.encoders.files import ENCODER_FILE
from eosin.pretrain.best import MEASURE
from eosin.pretrain.build import build_method
from eosin.pretrain.config import PretrainConfig
from eosin.training.checkpoints import Checkpoints

__all__ = ["export"]

BEST_FILE = "best.safetensors"


def export(source: str, out: Path, format: Format, checkpoint: str | None = None) -> str:
    """Write the encoder of a run, or any other, for use elsewhere.

    Args:
        source: A run directory, finished or not, or an encoder spec.
        out: The file, or for timm the directory, to write.
        format: See `eosin.encoders.export.export_encoder`.
        checkpoint: `best`, `last` or a step of the run; the finished encoder, or the last checkpoint, if not given.

    Returns:
        What was written, in words.

    Raises:
        EosinError: If the run has no such checkpoint, the source is no encoder, or it cannot be written.
    """
    check_output(out, format)
    folder = Path(source).expanduser()
    if (folder / "config.yaml").is_file():
        run = _Run(folder)
        step, encoder = run.encoder(checkpoint)
        origin = f"{source}, {run.describe(step)}"
    else:
        if checkpoint is not None:
            raise EosinError(f"{source}: is no run directory (it has no config.yaml); leave --checkpoint out")
        encoder, origin = load_encoder(source), source
    export_encoder(encoder, out, format)
    card = encoder.card
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (card.mean, card.std))
    pixels = f"{card.size} px, mean ({mean}), std ({std})"
    return f"{origin}\n{out}: {format}, {card.architecture}, width {card.width}, {pixels}"


class _Run:
    """What a run directory holds: checkpoints, the best encoder, the finished one, and the probe's scores."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = PretrainConfig.parse(read_yaml(path / "config.yaml"), str(path / "config.yaml"))
        self.checkpoints = Checkpoints(path / "checkpoints")
        self.finished = (path / ENCODER_FILE).is_file()
        self.scores = self._scores()

    def _scores(self) -> dict[int, float]:
        """Return the online probe's score at each look; a damaged log must not keep anyone from the encoder."""
        try:
            records = read_json_lines(self.path / "metrics.jsonl")
        except EosinError as error:
            warn(f"{error}; scores are not shown")
            return {}
        return {record["step"]: record[MEASURE] for record in records if MEASURE in record and "step" in record}

    def encoder(self, checkpoint: str | None) -> tuple[int, Encoder]:
        """Return the step that is meant and its encoder."""
        if checkpoint == "best":
            return self._best()
        if checkpoint is None and self.finished:
            return self.config.steps, load_encoder(str(self.path / ENCODER_FILE))
        if checkpoint in (None, "last"):
            found = self.checkpoints.load_newest()
            if found is None:
                raise EosinError(f"{self.path}: {self._held()}")
            return found[0], self._built(found[1])
        assert checkpoint is not None
        if not checkpoint.isdecimal():
            raise EosinError(f"--checkpoint {checkpoint}: must be best, last or a step; {self._held()}")
        return int(checkpoint), self._at(int(checkpoint))

    def _at(self, step: int) -> Encoder:
        for at, path in self.checkpoints.saved():
            if at == step:
                return self._built(self._read(path))
        if self.finished and step == self.config.steps:
            return load_encoder(str(self.path / ENCODER_FILE))
        if (self.path / BEST_FILE).is_file() and step == self._best_step():
            return self._best()[1]
        raise EosinError(f"{self.path}: has no checkpoint of step {step}; {self._held()}")

    def _best(self) -> tuple[int, Encoder]:
        if not (self.path / BEST_FILE).is_file():
            why = "its probe has not looked yet" if self.config.watch.task else "it had no --watch.task to score by"
            raise EosinError(f"{self.path}: the run kept no best encoder: {why}; use --checkpoint last")
        return self._best_step(), load_encoder(str(self.path / BEST_FILE))

    def _best_step(self) -> int:
        path = (self.path / BEST_FILE).with_suffix(".json")
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError):
            raise EosinError(f"{path}: absent or damaged, the best step is unknown; use --checkpoint last") from None

    @staticmethod
    def _read(path: Path) -> Mapping[str, Any]:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise EosinError(f"{path}: cannot be read ({error.strerror}); use another --checkpoint") from None
        if not path.stem.endswith(hashlib.sha256(content).hexdigest()[:16]):
            raise EosinError(f"{path}: damaged (its bytes do not match its checksum); use another --checkpoint")
        state: Mapping[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state

    def _built(self, state: Mapping[str, Any]) -> Encoder:
        """Build the method that the run trains, and take its encoder."""
        with torch.random.fork_rng(devices=[]):
            method = build_method(self.config)
        try:
            method.load_state_dict(state["method"])
        except (RuntimeError, KeyError) as error:
            problem = " ".join(str(error).split())[:200]
            raise EosinError(f"{self.path}: the checkpoint does not fit config.yaml ({problem})") from None
        return method.encoder.eval()

    def _held(self) -> str:
        """List the steps whose encoders are kept."""
        steps = {at for at, _ in self.checkpoints.saved()}
        steps |= {self.config.steps} if self.finished else set()
        if (self.path / BEST_FILE).is_file():
            steps.add(self._best_step())
        if not steps:
            return "no checkpoint yet; run `eosin pretrain` longer"
        return f"it keeps {', '.join(str(step) for step in sorted(steps))}"

    def describe(self, step: int) -> str:
        """Name a step with its score, and the best one if that is another."""
        told = f"step {step} of {self.config.steps}"
        if not self.scores:
            return told
        score = self.scores.get(step)
        told += f": kNN balanced accuracy {score:.3f}" if score is not None else ": the probe did not look then"
        best = max(self.scores, key=lambda at: (self.scores[at], -at))
        if best == step:
            return f"{told}, the best of {len(self.scores)} looks"
        return f"{told}; the best was {self.scores[best]:.3f} at step {best} (--checkpoint best)"
