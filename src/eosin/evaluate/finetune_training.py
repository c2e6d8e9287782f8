"""One training of fine-tuning, which goes on to the same bits after a kill.

Everything random is drawn from (seed, epoch or part of it, row), and a checkpoint holds all else: the weights, the
optimizer, the best weights so far and the place in the epoch.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from eosin.core.console import warn
from eosin.core.draws import Draws, permuted, stream_seed
from eosin.core.errors import EosinError
from eosin.evaluate.finetune_network import parameter_groups
from eosin.evaluate.pixels import ViewKey, balanced_accuracy_and_loss, drawn_views
from eosin.methods.drop_path import draw_masks
from eosin.training.checkpoints import Checkpoints
from eosin.training.schedules import warmup_cosine
from eosin.training.signals import StopSignal

if TYPE_CHECKING:
    from eosin.evaluate.finetune import GridPoint
    from eosin.evaluate.finetune_run import FineTuning

__all__ = ["SAVE_SECONDS", "Progress", "Training", "newest_or_none", "pass_parts"]

Rows = npt.NDArray[np.int64]
Weights = dict[str, Tensor]

SAVE_SECONDS = 30.0
"""Seconds of training between two checkpoints: what a kill costs at most, beside one step."""


def newest_or_none(checkpoints: Checkpoints | None) -> tuple[int, dict[str, Any]] | None:
    """Load the newest whole checkpoint; where all are damaged, remove them: what they held can be computed again."""
    try:
        return None if checkpoints is None else checkpoints.load_newest()
    except EosinError as error:
        assert checkpoints is not None
        warn(f"{checkpoints.directory}: training again from the start ({error})")
        shutil.rmtree(checkpoints.directory, ignore_errors=True)
        return None


def pass_parts(rows: Rows, batch: int, seed: int, epoch: int) -> list[Rows]:
    """Return the batches of an epoch: a random order of its own, cut in parts that differ by one image at most.

    A last batch of a few images would move the weights, and the statistics of batch norms, by noise.
    """
    order = permuted(np.arange(len(rows)), len(rows), stream_seed(seed, "finetune order", epoch))
    return np.array_split(rows[order], -(-len(rows) // batch))


class _Keys(Sequence[ViewKey]):
    """What each step from one on to the last shows: (rows, its epoch), found when it is asked for."""

    def __init__(self, tuning: FineTuning, first: int) -> None:
        self.tuning = tuning
        self.first = first
        self.epoch = -1
        self.parts: list[Rows] = []

    def __len__(self) -> int:
        return self.tuning.epochs * self.tuning.parts - self.first

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        epoch, part = divmod(self.first + index, self.tuning.parts)
        if epoch != self.epoch:
            fit = self.tuning.fit
            self.epoch, self.parts = epoch, pass_parts(fit.train, self.tuning.settings.batch, fit.seed, epoch)
        return self.parts[part], [epoch]


@dataclass
class Progress:
    """Where a training stands; all of it is in its checkpoints.

    Attributes:
        epoch: Epoch under way, counted from 0.
        part: Batches of it that were taken.
        loss: Their summed loss, weighted by images.
        best: (balanced accuracy, log-loss, epoch) of the best look at the validation images.
        weights: Of then.
        history: One line an epoch.
        ended: Why training is over; empty while it goes on.
    """

    epoch: int = 0
    part: int = 0
    loss: float = 0.0
    best: tuple[float, float, int] | None = None
    weights: Weights = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    ended: str = ""


class Training:
    """One point of the grid."""

    def __init__(self, tuning: FineTuning, point: GridPoint, place: int, stop: StopSignal) -> None:
        self.tuning = tuning
        self.point = point
        self.place = place
        self.stop = stop
        self.state = Progress()
        folder = None if tuning.work is None else tuning.work / f"point-{place}"
        self.checkpoints = None if folder is None else Checkpoints(folder, keep=1)

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every epoch."""
        tuning = self.tuning
        devices = [tuning.device] if tuning.device.type == "cuda" else []
        # What draws from torch's own generators, such as dropout, must not change those of the caller.
        with torch.random.fork_rng(devices=devices):
            self.model = tuning.build()
            groups = parameter_groups(self.model, self.point.layer_decay)
            self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=self.point.weight_decay)
            for group in self.optimizer.param_groups:
                group["weight_decay"] = self.point.weight_decay if group["decays"] else 0.0
            self._resume()
            self.saved = time.monotonic()
            tuning = self.tuning
            keys = _Keys(tuning, self.state.epoch * tuning.parts + self.state.part)
            # One reader for all epochs: starting its processes takes seconds.
            self.batches = drawn_views(tuning.views, keys, tuning.material.workers)
            while not self.state.ended:
                self._epoch()
                yield self.state
            del self.batches

    def forget(self) -> None:
        """Remove the checkpoints."""
        if self.checkpoints is not None:
            shutil.rmtree(self.checkpoints.directory, ignore_errors=True)

    # One epoch ---------------------------------------------------------------------------------------------------

    def _epoch(self) -> None:
        tuning, state = self.tuning, self.state
        parts = pass_parts(tuning.fit.train, tuning.settings.batch, tuning.fit.seed, state.epoch)
        losses: list[tuple[Tensor, int]] = []
        for part in parts[state.part :]:
            losses.append((self._step(next(self.batches)[0], part), len(part)))
            state.part += 1
            if self.stop.number or time.monotonic() - self.saved >= SAVE_SECONDS:
                self._add_losses(losses)
                self._save()
                self._obey()
        self._add_losses(losses)
        self._look()
        state.epoch, state.part, state.loss = state.epoch + 1, 0, 0.0
        if not state.ended and state.epoch == tuning.epochs:
            state.ended = "all epochs"

    def _add_losses(self, losses: list[tuple[Tensor, int]]) -> None:
        # Read here and not at every step, which would make the host wait for a GPU.
        for loss, count in losses:
            self.state.loss += loss.item() * count
        losses.clear()

    def _step(self, pixels: Tensor, rows: Rows) -> Tensor:
        tuning, settings = self.tuning, self.tuning.settings
        step = self.state.epoch * tuning.parts + self.state.part
        steps = tuning.epochs * tuning.parts
        rate = warmup_cosine(step + 1, steps + 1, peak=self.point.rate, warmup=round(settings.warmup * steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        seed = tuning.fit.seed
        torch.manual_seed(stream_seed(seed, "finetune torch", self.state.epoch, self.state.part) % 2**63)
        draws = Draws(seed, self.state.epoch, rows, "finetune")
        images = pixels.to(tuning.device, non_blocking=True)
        if tuning.colors is None:
            ready = self.model.encoder.normalize(images)
        else:
            (ready,) = tuning.colors(images, draws.within("colors"))
        truth = torch.from_numpy(tuning.labels[rows]).to(tuning.device)
        self.model.train()
        draw_masks(self.model.drop_paths, draws, [0], tuning.device)
        with tuning.autocast():
            logits = self.model(ready.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), truth, label_smoothing=settings.smoothing)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _look(self) -> None:
        """Score the validation images, keep the weights where they are the best so far, and decide whether to go on."""
        tuning, state, fit = self.tuning, self.state, self.tuning.fit
        scored = tuning.probabilities(self.model, tuning.validation_images())
        if not (np.isfinite(state.loss) and np.isfinite(scored).all()):
            state.ended = "diverged"
            return
        probabilities = np.zeros((len(fit.val), len(tuning.material.classes)))
        probabilities[:, tuning.present] = scored
        accuracy, loss = balanced_accuracy_and_loss(probabilities, fit.labels[fit.val])
        state.history.append(
            {
                "loss": round(state.loss / len(fit.train), 6),
                "validation_balanced_accuracy": round(accuracy, 6),
                "validation_log_loss": loss,
            }
        )
        if state.best is None or (-accuracy, loss) < (-state.best[0], state.best[1]):
            state.best = (accuracy, loss, state.epoch)
            state.weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        elif state.epoch - state.best[2] >= tuning.patience:
            state.ended = "patience"

    # Checkpoints -------------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        if self.stop.number:
            raise KeyboardInterrupt

    def _save(self) -> None:
        self.saved = time.monotonic()
        if self.checkpoints is None:
            return
        state = self.state
        self.checkpoints.save(
            state.epoch * self.tuning.parts + state.part,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": {name: getattr(state, name) for name in asdict(Progress())},
            },
        )

    def _resume(self) -> None:
        found = newest_or_none(self.checkpoints)
        if found is None:
            return
        self.model.load_state_dict(found[1]["model"])
        self.optimizer.load_state_dict(found[1]["optimizer"])
        self.state = Progress(**found[1]["progress"])
