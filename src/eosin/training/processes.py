"""The processes of a run: one by default, several under `torchrun` or as tasks of a SLURM step."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from eosin.core.collective import gather, position_in_run
from eosin.core.console import console
from eosin.core.errors import EosinError

__all__ = ["adopt_slurm", "agree_on_step", "choose_device", "computes_bf16", "process_group", "say"]

PATIENCE = datetime.timedelta(minutes=30)
"""How long a process waits for the others: one may read or compile for minutes while they wait."""

SPECIAL_STEPS = 0xFFFFFFF0
"""Steps numbered from here on are batch scripts and interactive shells, which SLURM starts once and not per task."""


def adopt_slurm() -> None:
    """Translate the variables of a SLURM step of several tasks, started by `srun`, into those that `torchrun` sets.

    Nothing is changed if RANK is set, or in a process that `srun` did not start: a batch script knows the number of its
    job's tasks and a process number too, but is alone. MASTER_ADDR and MASTER_PORT are kept if set.

    Raises:
        EosinError: If the step does not name its hosts.
    """
    given = os.environ
    step = given.get("SLURM_STEP_ID", "")
    tasks = int(given.get("SLURM_STEP_NUM_TASKS") or given.get("SLURM_NTASKS") or 1)
    if "RANK" in given or "SLURM_PROCID" not in given or not step.isdigit() or int(step) >= SPECIAL_STEPS or tasks < 2:
        return
    hosts = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or ""
    if not hosts and "MASTER_ADDR" not in given:
        raise EosinError("SLURM_STEP_NODELIST is not set, so the first host is not known; set MASTER_ADDR to its name")
    os.environ["RANK"] = given["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = str(tasks)
    os.environ["LOCAL_RANK"] = given.get("SLURM_LOCALID", "0")
    os.environ.setdefault("MASTER_ADDR", _first_host(hosts))
    os.environ.setdefault("MASTER_PORT", str(20000 + int(given.get("SLURM_JOB_ID", "0")) % 20000))


def _first_host(hosts: str) -> str:
    """Return the first of a SLURM list of hosts, such as node003 of `node[003-010,12],gpu1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", hosts)
    assert first is not None
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def computes_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 in hardware; where not, it takes several times float32's time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # torch 2.6 has no public way to ask; names that it lacks count as no.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in asked)


def _local_position() -> int:
    """Return which of its host's GPUs a process takes, counted among those that it sees."""
    bound = "SLURM_GPUS_PER_TASK" in os.environ or "SLURM_GPU_BIND" in os.environ
    if bound and torch.cuda.device_count() == 1:
        return 0
    return int(os.environ.get("LOCAL_RANK", "0"))


def choose_device(name: str | None) -> torch.device:
    """Return the device to train on.

    Args:
        name: "cpu", "cuda", "cuda:1", or None for the best one present. Under `torchrun` and `srun`, "cuda" and
            None give each process of a host a GPU of its own.

    Raises:
        EosinError: If the named device is not there.
    """
    adopt_slurm()
    local = _local_position()
    if name is None:
        device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    else:
        try:
            device = torch.device(name)
        except RuntimeError:
            raise EosinError(f"device '{name}' is not known; use cpu, cuda or cuda:N") from None
        if device.type not in ("cpu", "cuda"):
            raise EosinError(f"device '{name}' is not supported; use cpu, cuda or cuda:N")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise EosinError(
                f"device '{name}': no CUDA device is visible here; use --device cpu, or see `eosin doctor`"
            )
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local)
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise EosinError(
            f"device '{device}': {torch.cuda.device_count()} CUDA devices are visible here, counted from 0; name one "
            "of them, or start fewer processes a host"
        )
    return device


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that `torchrun` or `srun` started with this one, if any, and leave them at the end."""
    adopt_slurm()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def say(message: str) -> None:
    """Print a line, once for all processes."""
    if position_in_run() == 0:
        console.print(message, markup=False)


def agree_on_step(step: int, device: torch.device, out: Path) -> None:
    """Make sure that all processes go on from the same checkpoint.

    Args:
        step: That of this process.
        device: Where the processes exchange tensors.
        out: The run directory.

    Raises:
        EosinError: If they found different ones.
    """
    if (gather(torch.tensor([step], device=device)) != step).any():
        raise EosinError(f"{out}: the processes find different checkpoints; give a directory that all hosts share")
