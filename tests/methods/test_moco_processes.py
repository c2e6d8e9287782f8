"""Two processes with shuffled batch norm give what one process with split batch norm gives on the same global batch."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = Path(__file__).with_name("two_processes.py")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_twenty_steps_of_two_processes_equal_one(tmp_path):
    subprocess.run([sys.executable, SCRIPT, tmp_path / "one.pt"], check=True)
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    workers = [
        subprocess.Popen(
            [sys.executable, SCRIPT, tmp_path / f"two-{rank}.pt", "gloo"], env=shared | {"RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    one = torch.load(tmp_path / "one.pt")
    for rank in range(2):
        two = torch.load(tmp_path / f"two-{rank}.pt")
        assert two["pointer"] == one["pointer"]
        for name in ("losses", "gradients"):
            for ours, theirs in zip(two[name], one[name], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(two["queue"], one["queue"], rtol=1e-8, atol=1e-10)
