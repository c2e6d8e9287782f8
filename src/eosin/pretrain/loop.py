"""The pre-training loop.

    tiles -> views -> method(views).loss -> backward -> method.before_step -> optimiser -> method.after_step

Everything random is drawn from (seed, step, position in the batch), so a run that is killed and started again from a
checkpoint goes on to the same bits, whatever the number of decoding processes.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TaskID
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from eosin.augment import Views
from eosin.core.collective import average, position_in_run, processes
from eosin.core.console import warn
from eosin.core.draws import Draws, stream_seed
from eosin.core.errors import EosinError
from eosin.core.memory import keep_freed_memory
from eosin.data import Batch, Quarantine, Tiles, TrainingLoader, default_workers, pinned
from eosin.encoders import Encoder, save_encoder
from eosin.methods import Step
from eosin.pretrain.best import BestEncoder
from eosin.pretrain.build import build_method, check_crops
from eosin.pretrain.config import FREE_FIELDS, PretrainConfig
from eosin.pretrain.display import in_words, run_progress
from eosin.pretrain.placement import Placement, RunViews
from eosin.pretrain.probe import OnlineProbe
from eosin.pretrain.source import open_source, resolutions, tiles_hash, views_hash
from eosin.pretrain.watch import CollapseWatch, effective_rank, pair_signals
from eosin.training.batch_norm import synchronize_batch_norm
from eosin.training.guards import check_weights, memory_errors
from eosin.training.loop import StepLoop
from eosin.training.optimizers import build_optimizer, check_schedule, clip_gradients, set_hyperparameters
from eosin.training.processes import agree_on_step, choose_device, computes_bf16, process_group, say
from eosin.training.run import RunDirectory, run_directory
from eosin.training.signals import Interrupted
from eosin.training.throughput import Stopwatch, count_flops, measure_peak

__all__ = ["Interrupted", "pretrain"]

_NOT_FINITE = (
    "the last checkpoint is kept. Lower --optimizer.lr, lengthen --optimizer.warmup_samples or use --precision fp32"
)
_LESS_MEMORY = "use a smaller --batch_size or more --accumulate, or a smaller queue, head or network"


def pretrain(config: PretrainConfig, out: Path, *, command: str = "") -> Path:
    """Pre-train an encoder, or go on with the run in `out`.

    Args:
        config: The run's configuration, with `data.source` set.
        out: The run directory.
        command: The command line, for the record.

    Returns:
        Path of the trained encoder, `out/encoder.safetensors`.

    Raises:
        EosinError: If something in the configuration, the data or the directory is wrong; if the loss is not finite;
            if the encoder collapsed and `watch.on_collapse` is "stop".
        Interrupted: After Ctrl-C or SIGTERM, with a checkpoint saved.
    """
    device = choose_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    with process_group(device):
        tiles = open_source(config)
        config, chosen = config.resolved(len(tiles), bf16=computes_bf16(device))
        if config.precision == "bf16" and not computes_bf16(device):
            warn(f"{device} has no bfloat16 in hardware: --precision fp32 would be many times faster")
        check_schedule(config.optimizer, config.samples)
        with memory_errors(device, _LESS_MEMORY):
            trainer = _Trainer(config, tiles, device, chosen)
            settings = {"free": FREE_FIELDS, "command": command, "keep": config.checkpoint.keep, "log": config.log}
            with run_directory(out, config, **settings) as run:
                return trainer.train(out, run)


class _Trainer:
    """One run: networks, optimiser, and the state of the log."""

    def __init__(self, config: PretrainConfig, tiles: Tiles, device: torch.device, chosen: Mapping[str, Any]) -> None:
        self.config = config
        self.tiles = tiles
        self.device = device
        self.chosen = chosen
        method = build_method(config)
        check_crops(method, config)
        self.method = method.to(device).to(memory_format=torch.channels_last)
        if processes() > 1 and method.norm == "synchronized":
            self.method = synchronize_batch_norm(self.method)
        self.model: torch.nn.Module = self.method
        self.trained = [(name, value) for name, value in self.method.named_parameters() if value.requires_grad]
        self.optimizer = build_optimizer(config.optimizer, self.trained)
        self.views = RunViews(Views(config.augment), config.seed)
        self.mpp = resolutions(tiles, config)
        self.watch = CollapseWatch(self.method.chance_loss, self._piece(), config.watch.grace_steps)
        self.tiles_hash = tiles_hash(tiles)
        self.views_hash = views_hash(config, self.mpp)
        self.probe = OnlineProbe(config.watch, tiles, config.encoder.size, config.seed)
        self.lr = 0.0
        self.sums: dict[str, Tensor] = {}
        self.logged = 0
        self.loop = StepLoop(device, config.log.every_steps)
        self.clock = Stopwatch(device)
        self.flops = 0.0
        self.peak = 1.0

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.loop.step

    # The run -----------------------------------------------------------------------------------------------------

    def train(self, out: Path, run: RunDirectory | None) -> Path:
        result = out / "encoder.safetensors"
        if result.exists():
            say(f"{out} is finished already: {result}")
            return result
        self._resume(out, run)
        self._describe(out)
        self.best = BestEncoder(out, self.step) if run is not None else None
        quarantine = Quarantine(out / "quarantine.jsonl", self.config.data.quarantine_limit)
        with (
            self.loop.stop.listening(),
            run_progress(self.config, self.step, shown=run is not None) as (progress, task),
        ):
            self._loop(run, quarantine, progress, task)
        if run is not None:
            save_encoder(self.method.encoder, result)
            # Read anew: the other processes have listed theirs in the file.
            quarantine = Quarantine(out / "quarantine.jsonl", self.config.data.quarantine_limit)
            say(f"{quarantine.summary()}; encoder: {result}")
        return result

    def _resume(self, out: Path, run: RunDirectory | None) -> None:
        from eosin.training.checkpoints import Checkpoints

        found = Checkpoints(out / "checkpoints").load_newest()
        if found is not None:
            self.loop.step, state = found
            if state["tiles"] != self.tiles_hash:
                raise EosinError(
                    f"{self.tiles.spec}: the tiles are not those that {out} began with; restore them to resume, "
                    "or choose another --out"
                )
            if state.get("views", self.views_hash) != self.views_hash:
                raise EosinError(
                    f"{out}: the stain statistics, or the µm/px of the tiles, are not those that it began with; "
                    "restore them to resume, or choose another --out"
                )
            self.method.load_state_dict(state["method"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.watch.load_state_dict(state["watch"])
            self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
            self.logged = state["logged"]
            say(f"resuming {out} at step {self.step} of {self.config.steps}")
        agree_on_step(self.step, self.device, out)
        if run is not None:
            run.rewind(self.step)

    def _describe(self, out: Path) -> None:
        config = self.config
        say(self.tiles.describe())
        if self.chosen:
            values = ", ".join(f"{name} {value}" for name, value in self.chosen.items())
            say(f"auto for {len(self.tiles)} tiles, batch {config.batch_size}, {config.steps} steps: {values}")
        passes = config.samples / len(self.tiles)
        lr = config.optimizer.scaled(config.optimizer.lr, config.batch_size)
        say(
            f"{config.method.name} {config.encoder.architecture}: {len(self.tiles)} tiles, {config.samples} samples = "
            f"{passes:.1f} passes = {config.steps} steps of {config.batch_size}; "
            f"{config.precision} on {self.device}, lr {lr:g} → {out}"
        )

    def _loop(self, run: RunDirectory | None, quarantine: Quarantine, progress: Progress, task: TaskID) -> None:
        config = self.config
        workers = default_workers() if config.data.workers is None else config.data.workers
        placement = Placement(
            config.augment_on,
            step=self.step,
            steps=config.steps,
            workers=workers,
            batch_bytes=_view_bytes(config) // processes(),
            device=self.device,
        )
        if placement.reason and self.step < config.steps:
            say(placement.describe())
        while self.step < config.steps:
            loader = TrainingLoader(
                self.tiles,
                size=config.data.size,
                batch_size=config.batch_size // processes(),
                seed=config.seed,
                start_step=self.step,
                steps=placement.until,
                workers=workers,
                quarantine=quarantine,
                rank=position_in_run(),
                world=processes(),
                mpp=self.mpp,
                make_views=self.views if placement.where == "workers" else None,
            )
            self._segment(loader, placement, run, progress, task)
            settled = placement.turn()
            if settled:
                say(settled)

    def _segment(
        self,
        loader: TrainingLoader,
        placement: Placement,
        run: RunDirectory | None,
        progress: Progress,
        task: TaskID,
    ) -> None:
        """Take the steps of a loader."""
        config = self.config
        save_every = config.checkpoint.every_steps or max(1, config.steps // 20)
        look_every = config.watch.every_steps or max(1, config.steps // 20)

        def take(batch: Batch) -> None:
            self._take_step(batch)
            placement.step_taken()

        # The loading processes end before the run's lock goes.
        with contextlib.closing(self._batches(loader)) as batches:
            self.loop.run(
                batches,
                take,
                end=config.steps,
                look=lambda step: step % look_every == 0 or step == config.steps,
                report=lambda look: self._report(run, progress, task, look=look),
                save_every=save_every,
                save=lambda: self._save(run),
                shown=lambda: progress.update(task, completed=self.step),
            )

    def _batches(self, loader: TrainingLoader) -> Generator[Batch]:
        """Make all ready with the first batch."""
        with contextlib.closing(pinned(loader, self.device)) as batches:
            for batch in batches:
                if self.model is self.method and not self.flops:
                    self._make_ready(batch)
                    self.loop.forget_time()
                yield batch

    # One step ----------------------------------------------------------------------------------------------------

    def _make_ready(self, batch: Batch) -> None:
        """Count a step's operations, on a copy, then wrap the networks for speed and for several processes."""
        config = self.config
        piece = self._piece()
        views, draws = self._augment(batch, slice(0, piece))
        spare = copy.deepcopy(self.method).train()
        spare.steps += 1  # what a method says at its first step is said by the method itself
        self.flops = float(count_flops(lambda: self._forward(spare, views, draws).loss)) * config.batch_size / piece
        self.peak = measure_peak(self.device, torch.bfloat16 if config.precision == "bf16" else torch.float32)
        if config.compile:
            for module in self.method.modules():
                if isinstance(module, Encoder):
                    module.compile()
        if processes() > 1:
            self.model = DistributedDataParallel(self.method, broadcast_buffers=False)

    def _take_step(self, batch: Batch) -> None:
        config = self.config
        self.lr = set_hyperparameters(self.optimizer, config.optimizer, self.step, config.steps, config.batch_size)
        # What draws from torch's own generator, such as dropout, is seeded here and needs no saved state.
        torch.manual_seed(stream_seed(config.seed, "torch", self.step, position_in_run()) % 2**63)
        self.model.train()
        share = self._piece()
        self.clock.start()
        for start in range(0, len(batch.positions), share):
            last = start + share >= len(batch.positions)
            waiting = contextlib.nullcontext() if last or self.model is self.method else self.model.no_sync()  # type: ignore[operator]
            with waiting:
                self._accumulate(batch, slice(start, start + share))
        if config.optimizer.clip is not None:
            clip_gradients([value for _, value in self.trained], config.optimizer.clip)
        self.method.before_step()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.method.after_step()
        self.clock.lap("optimizer")
        if self.device.type == "cpu":
            self._check_finite(self.step + 1)

    def _piece(self) -> int:
        """Tiles in one forward pass."""
        return self.config.batch_size // (processes() * self.config.accumulate)

    def _augment(self, batch: Batch, rows: slice) -> tuple[list[Tensor], Draws]:
        """Return the views of some images of a batch on the device, and their draws for the networks."""
        if batch.views is not None:
            views = [view[rows].to(self.device, non_blocking=True) for view in batch.views]
        else:
            mpp = None if batch.mpp is None else batch.mpp[rows]
            images = batch.images[rows].to(self.device, non_blocking=True)
            views = self.views(images, batch.step, batch.positions[rows], mpp)
        draws = Draws(self.config.seed, batch.step, batch.positions[rows])
        return [view.contiguous(memory_format=torch.channels_last) for view in views], draws.within("network")

    def _forward(self, model: torch.nn.Module, views: list[Tensor], draws: Draws) -> Step:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.config.precision == "bf16"):
            output: Step = model(views, draws)
        return output

    def _accumulate(self, batch: Batch, rows: slice) -> None:
        config = self.config
        views, draws = self._augment(batch, rows)
        self.clock.lap("augment")
        output = self._forward(self.model, views, draws)
        self.clock.lap("forward")
        (output.loss / config.accumulate).backward()
        self.clock.lap("backward")
        scalars = {"loss": output.loss.detach(), **output.scalars, **pair_signals(*output.pairs)}
        self.projections = output.pairs[0]
        # Sums stay on the device: reading one each step would make the host wait for a GPU.
        values = average(torch.stack([value.detach().double() for value in scalars.values()])) / config.accumulate
        for name, value in zip(scalars, values.unbind(), strict=True):
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.clock.lap("watch")

    def _check_finite(self, step: int) -> None:
        if not torch.isfinite(self.sums["loss"]):
            raise EosinError(f"the loss is not finite at step {step}; {_NOT_FINITE}")

    # The log -----------------------------------------------------------------------------------------------------

    def _report(self, run: RunDirectory | None, progress: Progress, task: TaskID, *, look: bool) -> None:
        with self.loop.timed():
            self._check_finite(self.step)
            count = self.step - self.logged
            record: dict[str, Any] = {"step": self.step, "samples": self.step * self.config.batch_size}
            record |= {name: value.item() / count for name, value in self.sums.items()}
            record["lr"] = self.lr
            record["loss_at_chance"] = self.method.chance_loss
            self.sums, self.logged = {}, self.step
            parts = self.clock.seconds()
        if look and run is not None:
            self._look(record)
        record |= self._speed(parts)
        if run is None:
            return
        run.log(record)
        progress.update(task, loss=f"loss {record['loss']:.3f}", speed=f"{record['images_per_second']:.0f} img/s")
        if look:
            progress.console.print(in_words(record, self.config.steps))
        for message in self.watch.judge(record):
            warn(f"step {self.step}: {message}")
            if self.config.watch.on_collapse == "stop":
                raise EosinError(f"stopped at step {self.step} by --watch.on_collapse stop: {message}")

    def _look(self, record: dict[str, Any]) -> None:
        """Add what the probe finds, and keep the encoder that it finds best."""
        check_weights(self.method.state_dict(), self.step, _NOT_FINITE)
        record["watch/projection_rank"] = float(effective_rank(self.projections))
        record |= self.probe.look(self.method.encoder, self.device, mixed=self.config.precision == "bf16")
        assert self.best is not None
        self.best.consider(self.method.encoder, self.step, record)

    def _speed(self, parts: Mapping[str, float]) -> dict[str, float]:
        """Images a second, the share of time spent waiting for tiles, seconds a step by part, and MFU."""
        steps, speed = self.loop.speed(self.config.batch_size)
        if not steps:
            return {}
        per_second = speed["images_per_second"] / self.config.batch_size
        speed["mfu"] = self.flops * per_second / processes() / self.peak
        return speed | {f"time/{part}": seconds / steps for part, seconds in parts.items()}

    def _save(self, run: RunDirectory | None) -> None:
        if run is None:
            return
        if self.sums:
            self._check_finite(self.step)
        check_weights(self.method.state_dict(), self.step, _NOT_FINITE)
        run.checkpoints.save(
            self.step,
            {
                "tiles": self.tiles_hash,
                "views": self.views_hash,
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "watch": self.watch.state_dict(),
                "sums": self.sums,
                "logged": self.logged,
            },
        )


def _view_bytes(config: PretrainConfig) -> int:
    """Bytes of all views of a step."""
    return config.batch_size * sum(12 * view.count * view.size**2 for view in config.augment.views.values())
