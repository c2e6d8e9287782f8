"""Small arrays reach a GPU without making the host wait for it."""

import numpy as np
import pytest
import torch

from eosin.augment import AugmentConfig, Views
from eosin.augment.views import ViewConfig
from eosin.core.draws import Draws
from eosin.core.transfer import upload


def test_on_a_cpu_values_are_shared():
    values = np.arange(3)
    moved = upload(values, torch.device("cpu"))
    values[0] = 7
    assert moved.tolist() == [7, 1, 2]


def test_on_the_way_to_a_gpu_values_are_page_locked_and_the_copy_is_asynchronous(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pin") or tensor)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda tensor, device, non_blocking=False: calls.append((device.type, non_blocking))
    )
    upload(np.arange(3), torch.device("cuda"))
    assert calls == ["pin", ("cuda", True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_views_are_made_on_a_gpu_without_waiting():
    views = Views(
        AugmentConfig(views={"global": ViewConfig(size=32, vertical_flip=0.5, solarize={"probability": 0.5})})
    )
    images = torch.zeros(16, 3, 48, 48, dtype=torch.uint8, device="cuda")
    views(images, Draws(seed=0, step=0, positions=np.arange(16)))  # tables that are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        views(images, Draws(seed=0, step=1, positions=np.arange(16)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
