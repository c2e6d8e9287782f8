"""Weights in the places where the schemes look for them, without a network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from eosin.encoders import hub


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $EOSIN_HOME and Hugging Face cache, and no way to the Hub or elsewhere."""
    folder = tmp_path / "home"
    (folder / "encoders").mkdir(parents=True)
    monkeypatch.setenv("EOSIN_HOME", str(folder))
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: False)

    def unreachable(address: str) -> None:
        raise OSError("no route")

    monkeypatch.setattr(hub, "_open", unreachable)
    return folder


@pytest.fixture
def timm_weights() -> Callable[[str, Path], torch.nn.Module]:
    """Writes a file as timm publishes it, classifier included, and returns the network."""

    def write(architecture: str, path: Path) -> torch.nn.Module:
        torch.manual_seed(7)
        network = timm.create_model(architecture).eval()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(network.state_dict(), path)
        return network

    return write
