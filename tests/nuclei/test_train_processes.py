"""Two processes train as one: the same losses, the same gradients."""

from __future__ import annotations

import multiprocessing
import runpy
import socket
from pathlib import Path

import pytest
import torch

from eosin.core.files import read_json_lines

SCRIPT = Path(__file__).with_name("train_processes.py")


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Children of the server have torch imported already.
    context = multiprocessing.get_context("forkserver")
    lives = []
    for rank in ("0", "1"):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        given = {"environment": environment, "out": tmp_path / "two", "gradients": str(tmp_path / rank)}
        lives.append(context.Process(target=runpy.run_path, args=(str(SCRIPT), given, "<one of several>")))
    for process in lives:
        process.start()
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from train_processes import trained

    trained(tmp_path / "one", str(tmp_path / "alone"))
    for process in lives:
        process.join(250)
    assert [process.exitcode for process in lives] == [0, 0]
    alone, *shared = (torch.load(tmp_path / name) for name in ("alone", "0", "1"))
    for gradients in shared:
        for ours, theirs in zip(gradients, alone, strict=True):
            # Sums in another order, through twenty norms and rectifiers in fp32.
            assert (ours - theirs).norm() <= 0.02 * theirs.norm() + 1e-4
    theirs, ours = (read_json_lines(tmp_path / name / "metrics.jsonl")[0] for name in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for name in ("loss", "np_dice", "hv_msge", "tp_dice", "val/true"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
    assert (tmp_path / "two" / "model.safetensors").is_file()
