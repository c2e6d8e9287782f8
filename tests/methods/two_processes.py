"""Run by test_moco_processes.py in each process: a few MoCo steps on this process's share of the batch."""

import sys

import torch
import torch.distributed as dist

from eosin.core.collective import local_slice, processes
from eosin.encoders import build_encoder
from eosin.methods import MoCo, MoCoConfig

GRAY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def run(out):
    config = MoCoConfig(queue_size=32, dim=16, norm_group=4, momentum=0.9)
    method = MoCo(config, lambda: build_encoder("test_resnet", size=32, **GRAY), seed=0).double()
    generator = torch.Generator().manual_seed(5)
    losses, gradients = [], []
    for _ in range(20):
        views = [torch.randn(8, 3, 32, 32, generator=generator, dtype=torch.float64) for _ in range(2)]
        method.zero_grad()
        loss = method([local_slice(view) for view in views]).loss
        loss.backward()
        loss = loss.detach()
        for tensor in (loss, *(p.grad for p in method.query.parameters())):
            if processes() > 1:
                dist.all_reduce(tensor)
                tensor /= processes()
        losses.append(loss)
        gradients = [p.grad.clone() for p in method.query.parameters()]
        with torch.no_grad():
            for parameter in method.query.parameters():
                parameter -= 0.05 * parameter.grad
        method.after_step()
    torch.save({"losses": losses, "gradients": gradients, "queue": method.queue, "pointer": method.pointer}, out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 2:
        dist.init_process_group("gloo")
    run(sys.argv[1])
    if dist.is_initialized():
        dist.destroy_process_group()
