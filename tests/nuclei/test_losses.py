"""The losses against their formulas written out channel-last, values and gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d

from eosin.core.errors import EosinError
from eosin.nuclei.losses import LossConfig, bce, dice, hover_loss, mse, msge


def batch(classes=3, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, classes, 7, 9, generator=generator, dtype=torch.float64)
    truth = torch.randint(0, classes, (2, 7, 9), generator=generator)
    return logits.requires_grad_(), truth


def plain_bce(logits, truth):
    p = logits.permute(0, 2, 3, 1).softmax(-1)
    p = (p / p.sum(-1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    t = torch.nn.functional.one_hot(truth, p.shape[-1])
    return -(t * p.log()).sum(-1, keepdim=True).mean()


def plain_dice(logits, truth):
    p = logits.permute(0, 2, 3, 1).softmax(-1)
    t = torch.nn.functional.one_hot(truth, p.shape[-1])
    total = 0
    for c in range(p.shape[-1]):
        total = total + 1 - (2 * (p[..., c] * t[..., c]).sum() + 1e-3) / (p[..., c].sum() + t[..., c].sum() + 1e-3)
    return total


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize(("ours", "plain"), [(bce, plain_bce), (dice, plain_dice)])
def test_classification_losses(ours, plain, scale):
    for classes in (2, 5):
        logits, truth = batch(classes, scale=scale)
        value, expected = ours(logits, truth), plain(logits, truth)
        assert value.item() == pytest.approx(expected.item(), abs=1e-12)
        gradients = [torch.autograd.grad(each, logits)[0] for each in (value, expected)]
        torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)


def test_bounds():
    truth = torch.zeros(1, 4, 4, dtype=torch.int64)
    sure = torch.stack([torch.full((1, 4, 4), 50.0), torch.full((1, 4, 4), -50.0)], dim=1)
    assert dice(sure, truth).item() == pytest.approx(0, abs=1e-6)
    assert bce(sure, truth).item() == pytest.approx(0, abs=1e-6)
    assert bce(-sure, truth).item() == pytest.approx(-math.log(1e-7), rel=1e-5)
    assert dice(-sure, truth).item() == pytest.approx(2, abs=1e-3)


def plain_msge(predicted, truth, nuclei, official):
    """Gradients by correlation with the kernel, pixel by pixel."""
    h = np.tile(np.arange(-2, 3), (5, 1))
    kernel = h / (h**2 + h.T**2 + 1e-15)
    kernels = (kernel.T, kernel) if official else (kernel, kernel.T)
    total = count = 0.0
    for p, t, inside in zip(predicted, truth, nuclei, strict=True):
        for channel in range(2):
            one, other = (correlate2d(m[channel], kernels[channel], mode="same") for m in (p, t))
            total += ((one - other) ** 2)[inside > 0].sum()
            count += (inside > 0).sum()
    return total / (count + 1e-8)


@pytest.mark.parametrize("gradient", ["along", "official"])
def test_gradients_of_hv_maps(gradient):
    generator = np.random.default_rng(0)
    predicted, truth = generator.normal(size=(2, 3, 2, 8, 11))
    nuclei = generator.integers(0, 2, (3, 8, 11))
    value = msge(torch.tensor(predicted), torch.tensor(truth), torch.tensor(nuclei), gradient)
    assert value.item() == pytest.approx(plain_msge(predicted, truth, nuclei, gradient == "official"), rel=1e-10)
    assert mse(torch.tensor(predicted), torch.tensor(truth)).item() == pytest.approx(((predicted - truth) ** 2).mean())
    assert msge(torch.tensor(predicted), torch.tensor(truth), torch.zeros(3, 8, 11), gradient) == 0


def test_along_sees_a_blurred_jump_and_the_official_direction_does_not():
    """Two touching nuclei side by side; the prediction runs smoothly from one to the other."""
    x = torch.linspace(-1, 1, 8)
    truth = torch.zeros(1, 2, 16, 16)
    truth[:, 0] = torch.cat([x, x])
    smooth = truth.clone()
    smooth[:, 0, :, 6:10] = torch.linspace(float(x[6]), float(x[1]), 4)
    nuclei = torch.zeros(1, 16, 16)
    nuclei[:, 3:13, 3:13] = 1  # away from the border, where zeros around the map are a jump too
    assert msge(smooth, truth, nuclei, "along") > 0.1
    assert msge(smooth, truth, nuclei, "official") < 1e-10


def test_all_together():
    generator = torch.Generator().manual_seed(1)
    outputs = {
        "np": batch(2)[0],
        "hv": torch.randn(2, 2, 7, 9, generator=generator).requires_grad_(),
        "tp": batch(4)[0],
    }
    targets = {
        "np": batch(2)[1].to(torch.uint8),
        "hv": torch.randn(2, 2, 7, 9, generator=generator),
        "tp": batch(4)[1],
    }
    loss = hover_loss(outputs, targets)
    assert sorted(loss.parts) == ["hv_mse", "hv_msge", "np_bce", "np_dice", "tp_bce", "tp_dice"]
    assert loss.total.item() == pytest.approx(sum(part.item() for part in loss.parts.values()))
    loss.total.backward()
    assert all(output.grad.abs().sum() > 0 for output in outputs.values())
    weighted = hover_loss(outputs, targets, LossConfig(tp_bce=0.0, hv_mse=3.0))
    expected = loss.total.item() - loss.parts["tp_bce"].item() + 2 * loss.parts["hv_mse"].item()
    assert weighted.total.item() == pytest.approx(expected)
    without = hover_loss(
        {k: v for k, v in outputs.items() if k != "tp"}, {k: v for k, v in targets.items() if k != "tp"}
    )
    assert sorted(without.parts) == ["hv_mse", "hv_msge", "np_bce", "np_dice"]
    with pytest.raises(EosinError, match="missing in the targets"):
        hover_loss(outputs, {k: v for k, v in targets.items() if k != "tp"})


def test_half_precision_outputs_are_summed_in_float32():
    logits = torch.randn(1, 2, 64, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    truth = torch.zeros(1, 64, 64, dtype=torch.int64)
    hv = torch.zeros(1, 2, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = hover_loss({"np": logits, "hv": hv.to(torch.bfloat16)}, {"np": truth, "hv": hv})
    assert loss.total.dtype == torch.float32
    assert loss.parts["np_bce"].item() == pytest.approx(plain_bce(logits.double(), truth).item(), rel=1e-5)
