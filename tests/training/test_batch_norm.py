"""Batch norm over two processes is batch norm of one process on the whole batch."""

import runpy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from eosin.training.batch_norm import SynchronizedBatchNorm, synchronize_batch_norm
from forked import Forked, ranks

SCRIPT = Path(__file__).with_name("batch_norm_processes.py")
HERE = runpy.run_path(str(SCRIPT), run_name="here")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What one process records, and what each of two does."""
    folder = tmp_path_factory.mktemp("records")
    workers = [Forked(SCRIPT, folder / f"{rank}.pt", env=environment) for rank, environment in enumerate(ranks(2))]
    one = HERE["everything"]()
    said = [worker.finish() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    return [one, *(torch.load(folder / f"{rank}.pt") for rank in range(2))]


@pytest.mark.parametrize("case", HERE["CASES"])
def test_two_processes_equal_one(records, case):
    one, *two = [record[case] for record in records]
    assert all(half.keys() == one.keys() for half in two)
    # Sums over a mean of 10,000 leave their rounding in differences of 1.
    tolerance = 1e-8 if case == "large mean" else 1e-10
    for name, expected in one.items():
        if name.startswith(("output", "input", "evaluation")):
            if name == "evaluation" and case == "no running statistics":
                continue  # there each process normalises its own batch, as PyTorch's SyncBatchNorm does
            torch.testing.assert_close(
                torch.cat([half[name] for half in two]), expected, rtol=tolerance, atol=tolerance
            )
        else:
            for half in two:
                torch.testing.assert_close(half[name], expected, rtol=tolerance, atol=tolerance)


def test_the_cases_are_all_compared(records):
    assert set(records[0]) == {*HERE["CASES"], "bf16"}
    assert "input 2" in records[0]["2d"]
    assert "state running_var" in records[0]["2d"]
    assert "sum of weight 0" in records[0]["2d"]


def test_statistics_of_bf16_values_are_not_bf16(records):
    one, *two = [record["bf16"]["output"] for record in records]
    torch.testing.assert_close(torch.cat(two), one, rtol=0.01, atol=0.01)
    assert abs(one.mean()) < 0.01


def test_a_network_keeps_its_parameters_names_and_outputs():
    network = timm.create_model("test_resnet", num_classes=0)
    twin = timm.create_model("test_resnet", num_classes=0)
    twin.load_state_dict(network.state_dict())
    held = dict(network.named_parameters())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    converted = synchronize_batch_norm(network)
    assert converted is network
    assert sum(isinstance(module, SynchronizedBatchNorm) for module in converted.modules()) == norms > 0
    assert list(converted.state_dict()) == list(twin.state_dict())
    assert all(parameter is held[name] for name, parameter in converted.named_parameters())
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(converted(images), twin(images))
    torch.testing.assert_close(converted.eval()(images), twin.eval()(images))


def test_timms_norms_with_an_activation_keep_it():
    network = timm.create_model("test_efficientnet", num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
        after = synchronize_batch_norm(network)(images)
    assert any(hasattr(module, "act") for module in network.modules() if isinstance(module, SynchronizedBatchNorm))
    torch.testing.assert_close(after, before)


def test_a_batch_norm_by_itself_and_one_converted_already():
    norm = synchronize_batch_norm(nn.BatchNorm1d(3).eval())
    assert isinstance(norm, SynchronizedBatchNorm)
    assert not norm.training
    assert synchronize_batch_norm(norm) is norm


def test_gradients_of_the_backward_formula():
    torch.manual_seed(0)
    from eosin.training.batch_norm import _Normalize

    values = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *given: _Normalize.apply(*given, 1e-5)[0], (values, weight, bias))
