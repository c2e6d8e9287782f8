"""The device of a process: present, and its own."""

import pytest
import torch

from eosin.core.errors import EosinError
from eosin.training.processes import choose_device


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize("name", [None, "cuda"])
def test_each_process_of_a_host_gets_its_own_gpu(two_gpus, monkeypatch, name):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device(name) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(EosinError, match=r"device 'cuda:2': 2 CUDA devices are visible here"):
        choose_device(name)


def test_a_named_gpu_must_be_there(two_gpus):
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(EosinError, match=r"device 'cuda:9': 2 CUDA devices are visible here"):
        choose_device("cuda:9")


@pytest.mark.parametrize(("name", "message"), [("gpu", "is not known"), ("mps", "is not supported")])
def test_other_devices_are_refused(name, message):
    with pytest.raises(EosinError, match=rf"device '{name}' {message}; use cpu, cuda or cuda:N"):
        choose_device(name)


def test_without_a_gpu_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(None) == torch.device("cpu")
