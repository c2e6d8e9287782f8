"""Two processes give what one gives on the same global batch: loss, gradients and state, over twenty steps."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eosin.methods import METHODS
from forked import Forked, ranks

SCRIPT = Path(__file__).with_name("two_processes.py")
CASES = runpy.run_path(str(SCRIPT))["CASES"]
# Batch norm keeps the mean of its own process's running statistics where a method does not synchronize it.
OWN_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def assert_near(ours, theirs):
    """Equal to 1e-6 of the tensor's length: rounding grows over twenty steps, and single entries may be near 0."""
    if theirs is None:
        assert ours is None
        return
    assert ours.shape == theirs.shape
    assert (ours - theirs).double().norm() <= 1e-6 * theirs.double().norm() + 1e-12


def test_every_method_is_tested():
    assert {case.split("-")[0] for case in CASES} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_of_two_processes_equal_one(tmp_path, case):
    alone = [Forked(SCRIPT, case, tmp_path / "one.pt")]
    workers = [
        Forked(SCRIPT, case, tmp_path / f"two-{rank}.pt", "gloo", env=environment)
        for rank, environment in enumerate(ranks(2))
    ]
    said = [process.finish() for process in alone + workers]
    assert [process.returncode for process in alone + workers] == [0, 0, 0], said
    one = torch.load(tmp_path / "one.pt")
    synchronized = METHODS[case.split("-")[0]].norm == "synchronized"
    for rank in range(2):
        two = torch.load(tmp_path / f"two-{rank}.pt")
        torch.testing.assert_close(torch.stack(two["losses"]), torch.stack(one["losses"]), rtol=1e-6, atol=0)
        for ours, theirs in zip(two["gradients"], one["gradients"], strict=True):
            for first, second in zip(ours, theirs, strict=True):
                assert_near(first, second)
        assert two["state"].keys() == one["state"].keys()
        for name, value in one["state"].items():
            if not isinstance(value, Tensor):
                assert two["state"][name] == value
            elif synchronized or not name.endswith(OWN_STATISTICS):
                assert_near(two["state"][name], value)
