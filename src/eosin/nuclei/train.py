"""Training of nuclei segmentation.

    images -> windows -> network -> losses -> backward -> Adam

in phases: first the decoders on a frozen encoder, then all. Everything random is drawn from (seed, step, position), so
a run that is killed and started again from a checkpoint goes on to the same bits. The Dice loss is a quotient of sums
over the batch; with several processes each computes it on the maps of all, so they train as one would.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from eosin.core.collective import gather, gather_with_gradient, position_in_run, processes
from eosin.core.config import apply_overrides
from eosin.core.console import warn
from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, short_hash
from eosin.core.memory import keep_freed_memory
from eosin.encoders import load_encoder
from eosin.nuclei.best_model import BestModel
from eosin.nuclei.config import FREE_FIELDS, NucleiConfig, PhaseName
from eosin.nuclei.hovernet import HoverNet
from eosin.nuclei.losses import hover_loss
from eosin.nuclei.model import MODEL_FILE, ModelCard, build_network, save_model, window_maps, with_scale
from eosin.nuclei.training_data import LearningBatch, TrainingData
from eosin.nuclei.training_display import described, in_words, plan, shown_progress
from eosin.nuclei.trunks import REFERENCE
from eosin.nuclei.validation import validate
from eosin.training.batch_norm import synchronize_batch_norm
from eosin.training.checkpoints import Checkpoints
from eosin.training.guards import check_weights, memory_errors
from eosin.training.loop import StepLoop
from eosin.training.processes import agree_on_step, choose_device, computes_bf16, process_group, say
from eosin.training.run import RunDirectory, run_directory
from eosin.training.signals import Interrupted
from eosin.training.sums import Sums

__all__ = ["train_nuclei", "with_more_phases"]

_LOOKS = 20
"""Looks at the validation images, and checkpoints, where no number of steps is given."""


def train_nuclei(config: NucleiConfig, out: Path, command: str = "") -> Path:
    """Train a network for nuclei, or go on with the run in `out`.

    Args:
        config: The run's configuration, with `data.source` set.
        out: The run directory.
        command: The command line, for the record.

    Returns:
        Path of the trained network, `out/model.safetensors`.

    Raises:
        EosinError: If something in the configuration, the data or the directory is wrong; if the loss is not finite.
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    out = Path(out)
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    with process_group(device):
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if computes_bf16(device) else "fp32"
            config = NucleiConfig.parse(apply_overrides(config.plain(), {"precision": precision}), "precision")
        elif precision == "bf16" and not computes_bf16(device):
            warn(f"{device} has no bfloat16 in hardware: --precision fp32 would be many times faster")
        data = TrainingData(config, device)
        advice = "use a smaller --decoder.batch_size and --whole.batch_size, or a smaller --network.width"
        with memory_errors(device, advice):
            trainer = _Trainer(config, data, device, precision)
            settings = {"free": FREE_FIELDS, "command": command, "keep": config.checkpoint.keep, "log": config.log}
            with run_directory(out, config, result=MODEL_FILE, **settings) as run:
                return trainer.train(out, run)


def with_more_phases(run: Path, config: NucleiConfig) -> None:
    """Make a finished run one that has phases left: the next `train_nuclei` takes them, as if it had taken all.

    Args:
        run: The directory of a finished run.
        config: Of it, with further phases behind its own.
    """
    # In this order a kill leaves a finished run, or one to resume.
    with atomic_file(run / "config.yaml", "w") as file:
        yaml.safe_dump(config.plain(), file, sort_keys=False)
    (run / MODEL_FILE).unlink(missing_ok=True)


@dataclass
class _Place:
    """Where a training stands.

    Attributes:
        phase: Place in `config.phases`; their number at the end.
        begun: Steps taken before the phase.
        seen: Windows seen before the phase.
        worse: Looks since the best one of the phase.
        peak: Panoptic quality at that look; -1 before the first.
    """

    phase: int = 0
    begun: int = 0
    seen: int = 0
    worse: int = 0
    peak: float = -1.0


class _Trainer:
    """One run: network, optimiser, and the state of the log."""

    def __init__(
        self, config: NucleiConfig, data: TrainingData, device: torch.device, precision: Literal["bf16", "fp32"]
    ) -> None:
        self.config = config
        self.data = data
        self.device = device
        self.precision = precision
        for name in config.phases:
            size = config.phase(name).batch_size
            if size % processes():
                raise EosinError(f"{name}.batch_size {size}: cannot be divided by {processes()} processes")
        encoder = None if config.network.encoder == REFERENCE else load_encoder(config.network.encoder)
        identity = "" if encoder is None else encoder.fingerprint()
        self.material = short_hash(data.set.learned_from, identity)
        # Checkpoints from before a test side could be mended held the whole set's.
        self.materials = (self.material, short_hash(data.set.fingerprint, identity))
        network = build_network(config.network, encoder, len(data.classes), seed=config.seed)
        self.card = ModelCard(
            network=config.network,
            encoder=None if encoder is None else encoder.card,
            classes=data.classes,
            mpp=data.set.mpp,
            postprocess=config.postprocess,
            source=data.set.name,
        )
        if encoder is not None:
            data.check_resolution(encoder.card.mpp, encoder.card.spec)
        self.network: HoverNet = network.to(device).to(memory_format=torch.channels_last)
        if processes() > 1:
            self.network = synchronize_batch_norm(self.network)
        self.model: torch.nn.Module = self.network
        self.lengths = [config.phase(name).length(len(data)) for name in config.phases]
        self.place = _Place()
        self.sums = Sums(device)
        self.loop = StepLoop(device, config.log.every_steps)
        self.saved = False

    @property
    def step(self) -> int:
        """Steps taken, in all phases."""
        return self.loop.step

    @property
    def over(self) -> bool:
        """Whether all phases are done."""
        return self.place.phase == len(self.config.phases)

    @property
    def phase(self) -> PhaseName:
        """The phase under way, or the last."""
        return self.config.phases[min(self.place.phase, len(self.config.phases) - 1)]

    @property
    def end(self) -> int:
        """Steps taken at the end of the phase, if nothing ends it earlier."""
        return self.place.begun + self.lengths[self.place.phase]

    @property
    def steps(self) -> int:
        """Steps of the run, if nothing ends the phases to come earlier."""
        return self.place.begun + sum(self.lengths[self.place.phase :])

    # The run -----------------------------------------------------------------------------------------------------

    def train(self, out: Path, run: RunDirectory | None) -> Path:
        result = out / MODEL_FILE
        if result.exists():
            say(f"{out} is finished already: {result}")
            return result
        self.best = BestModel(out)
        self._resume(out, run)
        say(self.data.describe())
        for line in plan(self.config, len(self.data), self.lengths):
            say(line)
        say(f"{described(self.network, self.config.network)}, {self.precision} on {self.device} → {out}")
        with (
            self.loop.stop.listening(),
            shown_progress(self.step, self.steps, shown=run is not None) as (progress, task),
        ):
            while not self.over:
                self._phase(run, progress, task)
                self._turn(out, run)
        if run is not None:
            if self.best.step:
                self.best.finish(result)
                say(f"best PQ on the validation images {self.best.score:.3f}, at step {self.best.step}: {result}")
            else:
                save_model(self.network, self.card.model_copy(update={"step": self.step}), result)
                say(f"no validation images: the last weights are kept: {result}")
        return result

    def _begin(self, state: dict[str, Any] | None) -> None:
        """Freeze what the phase freezes, and build its optimiser; its state is given where the phase is under way."""
        if self.over:
            return
        fields = self.config.phase(self.phase)
        trunk = self.network.trunk
        trunk.set_freeze(self.config.freeze if self.phase == "decoder" else None)
        body = {id(value) for part in trunk.body() for value in part.parameters()}
        learning = [value for value in self.network.parameters() if value.requires_grad]
        groups = [
            {"params": [value for value in learning if id(value) not in body], "factor": 1.0},
            {"params": [value for value in learning if id(value) in body], "factor": fields.encoder_lr},
        ]
        groups = [group for group in groups if group["params"]]
        # Without decay, which is decoupled from the gradient, this is Adam.
        self.optimizer = torch.optim.AdamW(groups, lr=fields.lr, weight_decay=fields.weight_decay)
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
        self.model = self.network
        if processes() > 1:
            unused = self.phase == "whole" and not trunk.uses_all
            self.model = DistributedDataParallel(self.network, broadcast_buffers=False, find_unused_parameters=unused)

    def _phase(self, run: RunDirectory | None, progress: Progress, task: TaskID) -> None:
        """Take the steps of a phase."""
        config, fields = self.config, self.config.phase(self.phase)
        save_every = config.checkpoint.every_steps or max(1, self.steps // _LOOKS)
        look_every = config.validation.every_steps or max(1, self.lengths[self.place.phase] // _LOOKS)
        seen = self.place.seen + (self.step - self.place.begun) * fields.batch_size

        def look(step: int) -> bool:
            return bool(self.data.val) and ((step - self.place.begun) % look_every == 0 or step == self.end)

        with contextlib.closing(self.data.batches(self.step, self.end, fields.batch_size, seen)) as batches:
            self.loop.run(
                batches,
                self._take_step,
                end=self.end,
                look=look,
                report=lambda look: self._report(run, progress, task, look=look),
                save_every=save_every,
                save=lambda: self._save(run),
                shown=lambda: progress.update(task, completed=self.step, total=self.steps),
                # A phase's end is saved when the next one stands.
                over=lambda: self.step == self.end or self._worse_for_long(),
            )

    def _worse_for_long(self) -> bool:
        patience = self.config.validation.patience
        return bool(patience) and self.place.worse >= patience

    def _turn(self, out: Path, run: RunDirectory | None) -> None:
        """Go on to the next phase, from the best weights."""
        fields = self.config.phase(self.phase)
        taken = self.step - self.place.begun
        if self.step < self.end:
            say(f"phase {self.phase} ended at step {self.step}: {self.place.worse} looks without a better PQ")
        seen = self.place.seen + taken * fields.batch_size
        self.place = _Place(self.place.phase + 1, self.step, seen)
        # The best weights are written: all processes wait for that here.
        agree_on_step(self.step, self.device, out)
        if self.best.step and not self.over:
            self.best.load_into(self.network)
        self._begin(None)
        self._save(run)
        stop = self.loop.stop.agreed(0, 1, self.device)
        if stop and not self.over:
            raise Interrupted(stop, self.step)

    def _resume(self, out: Path, run: RunDirectory | None) -> None:
        """Take up the run in `out` where it was left, or begin it."""
        found = Checkpoints(out / "checkpoints").load_newest()
        state: dict[str, Any] | None = None
        turned = False
        if found is not None:
            self.loop.step, state = found
            self.saved = True
            if state["material"] not in self.materials:
                raise EosinError(
                    f"{out}: the images of {self.data.set.source}, or the weights of {self.config.network.encoder}, "
                    "are not those that it began with; restore them to resume, or choose another --out"
                )
            self.network.load_state_dict(state["network"])
            self.sums.load_state_dict(state["sums"])
            self.place = _Place(**state["place"])
            self.best.step, self.best.score = state["best"]["step"], state["best"]["score"]
            say(f"resuming {out} at step {self.step} of {self.steps}")
            # A run of the phases before ended there, see `with_more_phases`: what `_turn` does is left to do.
            turned = state.get("phase", self.phase) != self.phase
            if turned and self.best.step:
                self.best.load_into(self.network)
        agree_on_step(self.step, self.device, out)
        if run is not None:
            run.rewind(self.step)
        self._begin(None if turned else state)
        if turned:
            # At once: a look may put other weights in the place of the best before the next checkpoint.
            self._save(run)

    def _save(self, run: RunDirectory | None) -> None:
        if run is None:
            return
        self._check_finite()
        check_weights(self.network.state_dict(), self.step, self._advice())
        run.checkpoints.save(
            self.step,
            {
                "material": self.material,
                "phase": self.phase,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "sums": self.sums.state_dict(),
                "place": asdict(self.place),
                "best": {"step": self.best.step, "score": self.best.score},
            },
        )
        self.saved = True

    # One step ----------------------------------------------------------------------------------------------------

    def _take_step(self, batch: LearningBatch) -> None:
        fields = self.config.phase(self.phase)
        rate = fields.rate(self.step - self.place.begun, self.lengths[self.place.phase])
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        if self.step == 0:
            self._check_encoder(batch.images[:1].to(self.device))
        # What draws from torch's own generator, such as dropout, is seeded here and needs no saved state.
        torch.manual_seed(stream_seed(self.config.seed, "nuclei", self.step, position_in_run()) % 2**63)
        images = batch.images.to(self.device, non_blocking=True)
        if self.data.color is not None:
            images = self.data.color.color(images, batch.draws)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            outputs: dict[str, Tensor] = self.model(images)
        said = {name: gather_with_gradient(value.float()) for name, value in outputs.items()}
        told = {name: gather(value.to(self.device, non_blocking=True)) for name, value in batch.targets.items()}
        loss = hover_loss(said, told, self.config.loss)
        loss.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.sums.add({"loss": loss.total, **loss.parts})
        if self.device.type == "cpu":
            self._check_finite(self.step + 1)

    def _check_encoder(self, images: Tensor) -> None:
        """Refuse an encoder whose maps are not finite before it is trained: no rate of learning mends that."""
        if self.config.network.encoder == REFERENCE:
            return
        trunk = self.network.trunk
        trunk.eval()
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            maps = trunk(trunk.normalize(images))
        if not all(torch.isfinite(each).all() for each in maps):
            raise EosinError(
                f"network.encoder: the features of {self.config.network.encoder} are not finite; its weights are "
                f"damaged, or overflow in {self.precision}: get them again, or choose another encoder"
            )

    def _advice(self) -> str:
        kept = "the last checkpoint is kept" if self.saved else "there is no checkpoint yet"
        return f"{kept}. Lower --{self.phase}.lr or use --precision fp32"

    def _check_finite(self, step: int | None = None) -> None:
        if not self.sums.finite():
            raise EosinError(f"the loss is not finite at step {step or self.step}; {self._advice()}")

    # The log -----------------------------------------------------------------------------------------------------

    def _report(self, run: RunDirectory | None, progress: Progress, task: TaskID, *, look: bool) -> None:
        fields = self.config.phase(self.phase)
        with self.loop.timed():
            self._check_finite()
            windows = self.place.seen + (self.step - self.place.begun) * fields.batch_size
            record: dict[str, Any] = {"step": self.step, "samples": windows, "epoch": windows / len(self.data)}
            record |= {"phase": self.place.phase + 1, **self.sums.take(), "lr": self.optimizer.param_groups[0]["lr"]}
        record |= self.loop.speed(fields.batch_size)[1]
        if look:
            self._look(record, write=run is not None)
        if run is None:
            return
        run.log(record)
        progress.update(task, loss=f"loss {record['loss']:.3f}", speed=f"{record['images_per_second']:.1f} windows/s")
        if look:
            progress.console.print(in_words(record, self.steps), markup=False)

    def _look(self, record: dict[str, Any], *, write: bool) -> None:
        """Score the validation images, and keep the weights if they are the best so far."""
        check_weights(self.network.state_dict(), self.step, self._advice())
        scores = validate(
            lambda images: window_maps(self.network, images, self.precision),
            self.data.val,
            window=self.network.window,
            output=self.network.kept,
            settings=with_scale(self.config.postprocess, self.data.set.mpp),
            classes=len(self.data.classes),
            device=self.device,
        )
        record |= {f"val/{name}": value for name, value in scores.items()}
        self.best.consider(self.network, self.card, self.step, scores["pq"], write=write)
        if scores["pq"] > self.place.peak:
            self.place.peak, self.place.worse = scores["pq"], 0
        else:
            self.place.worse += 1
        if not scores["found"] and scores["true"] and self.step == self.end and write:
            warn(
                f"phase {self.phase} ends without a nucleus found in {len(self.data.val)} validation images; it may be "
                f"too short, or --{self.phase}.lr too high"
            )
