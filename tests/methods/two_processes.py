"""Run by test_methods_processes.py in each process: twenty steps of a method on this process's share of the batch."""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from eosin.core.collective import average, local_slice, position_in_run, processes
from eosin.core.draws import Draws
from eosin.encoders import build_encoder
from eosin.methods import METHODS
from eosin.training.batch_norm import synchronize_batch_norm

GRAY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
BATCH, STEPS, RATE = 8, 20, 0.005
CASES = {
    "mocov2": ("test_resnet", {"queue_size": 32, "dim": 16, "norm_group": 4, "momentum": 0.9}),
    "swav": (
        "test_resnet",
        {"prototypes": 12, "dim": 16, "queue_size": 16, "queue_start_samples": 24, "freeze_samples": 40},
    ),
    "barlowtwins": ("test_resnet", {"dim": 32, "hidden": 24}),
    "barlowtwins-narrow": ("test_resnet", {"dim": 6, "hidden": 24}),
    "dino": ("test_resnet", {"prototypes": 24, "hidden": 16, "bottleneck": 8, "momentum": 0.9, "drop_path": 0.0}),
    "dino-vit": (
        "test_vit",
        {"prototypes": 24, "hidden": 16, "bottleneck": 8, "drop_path": 0.2, "freeze_last_layer_samples": 40},
    ),
}


def run(case, out):
    name = case.split("-")[0]
    architecture, fields = CASES[case]
    entry = METHODS[name]
    config = entry.Config.parse({"name": name, **fields}, name)
    method = entry(config, lambda **options: build_encoder(architecture, size=32, **GRAY, **options), 0).double()
    method.prepare(BATCH, STEPS)
    model = method
    if processes() > 1:
        if method.norm == "synchronized":
            method = synchronize_batch_norm(method)
        model = DistributedDataParallel(method, broadcast_buffers=False)
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    sides = [side for count in method.views.values() for side in ([32] * count if count else [16] * 2)]
    generator = torch.Generator().manual_seed(5)
    losses, gradients = [], []
    for step in range(STEPS):
        views = [torch.randn(BATCH, 3, side, side, generator=generator, dtype=torch.float64) for side in sides]
        share = BATCH // processes()
        draws = Draws(0, step, list(range(position_in_run() * share, (position_in_run() + 1) * share)))
        method.zero_grad()
        loss = model([local_slice(view) for view in views], draws).loss
        loss.backward()
        method.before_step()
        losses.append(average(loss.detach()))
        gradients.append([None if p.grad is None else p.grad.clone() for p in trained])
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
        method.after_step()
    torch.save({"losses": losses, "gradients": gradients, "state": method.state_dict()}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 3:
        dist.init_process_group("gloo")
    run(sys.argv[1], sys.argv[2])
    if dist.is_initialized():
        dist.destroy_process_group()
