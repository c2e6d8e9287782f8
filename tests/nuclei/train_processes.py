"""Run by test_train_processes.py in each process: one step of training, and its gradients."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from test_train import TINY, some_set

from eosin.nuclei import training_data
from eosin.nuclei.recipe import load_nuclei_recipe
from eosin.nuclei.train import train_nuclei


def trained(out, gradients):
    """Train, and save the gradients."""
    fields = {"network.types": True, "phases": ["whole"], "whole.samples": 2}
    step = torch.optim.AdamW.step

    def noting(self, *arguments):
        torch.save([value.grad.clone() for group in self.param_groups for value in group["params"]], gradients)
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_data, "open_nuclei", lambda _: some_set(("train", "train", "val", "val")))
        patch.setattr(torch.optim.AdamW, "step", noting)
        train_nuclei(load_nuclei_recipe("nuclei-small", TINY | fields), out)


if __name__ == "<one of several>":
    os.environ |= environment  # noqa: F821 (given by the test)
    torch.set_num_threads(1)
    trained(out, gradients)  # noqa: F821
