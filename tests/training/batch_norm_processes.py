"""Run by test_batch_norm.py in each process: batch norms, three steps each, on this process's share of the batch."""

import sys

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from eosin.core.collective import position_in_run, processes, total
from eosin.training.batch_norm import SynchronizedBatchNorm, synchronize_batch_norm

CASES = {
    "1d": (lambda: nn.BatchNorm1d(5), (12, 5)),
    "1d of sequences": (lambda: nn.BatchNorm1d(5), (12, 5, 3)),
    "2d": (lambda: nn.BatchNorm2d(5, momentum=0.3, eps=1e-3), (12, 5, 4, 2)),
    "channels last": (lambda: nn.BatchNorm2d(5), (12, 5, 4, 2)),
    "not affine": (lambda: nn.BatchNorm1d(5, affine=False), (12, 5)),
    "cumulative": (lambda: nn.BatchNorm2d(5, momentum=None), (12, 5, 4, 2)),
    "no running statistics": (lambda: nn.BatchNorm2d(5, track_running_stats=False), (12, 5, 4, 2)),
    "frozen weight": (lambda: frozen(nn.BatchNorm2d(5)), (12, 5, 4, 2)),
    "with activation": (lambda: BatchNormAct2d(5, act_layer=nn.GELU), (12, 5, 4, 2)),
    "shared": (lambda: twice(nn.BatchNorm1d(5)), (12, 5)),
    "large mean": (lambda: nn.BatchNorm1d(5), (12, 5)),
    "unequal shares": (lambda: nn.BatchNorm1d(5), (12, 5)),
}


def frozen(norm):
    norm.weight.requires_grad_(False)
    return norm


def twice(norm):
    return nn.Sequential(norm, nn.Linear(5, 5), norm)


def share(values, name):
    """Cut a batch by rank; values differ between the halves so that local statistics are far off."""
    if processes() == 1:
        return values
    parts = values.split([3, 9] if name == "unequal shares" else [6, 6])
    return parts[position_in_run()]


def run(name, build, shape):
    torch.manual_seed(3)
    norm = build().double()
    for parameter in norm.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    if processes() > 1:
        norm = synchronize_batch_norm(nn.Sequential(norm))[0]
        assert any(isinstance(module, SynchronizedBatchNorm) for module in norm.modules())
    record = {}
    for step in range(3):
        whole = torch.randn(shape, dtype=torch.float64) * (1 + torch.arange(12.0).view(-1, *[1] * (len(shape) - 1)))
        whole[:5] += 4
        if name == "large mean":
            whole += 1e4
        aim = torch.randn(shape, dtype=torch.float64)
        own = share(whole, name).clone()
        if name == "channels last":
            own = own.contiguous(memory_format=torch.channels_last)
        own.requires_grad_()
        norm.zero_grad()
        output = norm(own)
        (output * share(aim, name)).pow(2).sum().backward()
        if name == "channels last":
            assert output.is_contiguous(memory_format=torch.channels_last)
        record[f"output {step}"], record[f"input {step}"] = output.detach(), own.grad
        for key, parameter in norm.named_parameters():
            if parameter.grad is not None:
                record[f"sum of {key} {step}"] = total(parameter.grad)
    record |= {f"state {key}": value for key, value in norm.state_dict().items()}
    norm.eval()
    with torch.no_grad():
        record["evaluation"] = norm(share(whole, name))
    return record


def refuse_a_flat_input():
    try:
        synchronize_batch_norm(nn.BatchNorm1d(5))(torch.zeros(5))
    except ValueError:
        return
    raise AssertionError


def half_precision():
    torch.manual_seed(4)
    values = torch.randn(12, 5, 4, 2) * 3 + 100
    norm = nn.BatchNorm2d(5)
    if processes() > 1:
        norm = synchronize_batch_norm(nn.Sequential(norm))
    output = norm(share(values, "").bfloat16())
    assert output.dtype == torch.bfloat16
    return {"output": output.detach().float()}


def everything():
    refuse_a_flat_input()
    return {name: run(name, *case) for name, case in CASES.items()} | {"bf16": half_precision()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.save(everything(), sys.argv[1])
    dist.destroy_process_group()
