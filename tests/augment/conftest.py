"""The two ways in which a CPU computes: compiled by numba, and PyTorch's."""

import importlib.util

import pytest


@pytest.fixture(params=["compiled", "torch"])
def computed(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("EOSIN_NUMBA", "0")
    else:
        if importlib.util.find_spec("numba") is None:
            pytest.skip("numba is not installed")
        monkeypatch.delenv("EOSIN_NUMBA", raising=False)
    return request.param
