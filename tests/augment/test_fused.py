"""The joined color operations are the operations one after the other, compiled or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eosin.augment.color import ColorJitter, Grayscale, JitterConfig
from eosin.augment.fused import FusedColors
from eosin.augment.hed import HEDJitter, HEDJitterConfig
from eosin.augment.randstainna import RandStainNA, RandStainNAConfig
from eosin.core.draws import Draws


def stained_tiles(count=6, side=24):
    """Smooth tissue, a white tile, a black one, one of a single color."""
    generator = torch.Generator().manual_seed(0)
    dye = torch.rand(count, 2, side // 8, side // 8, generator=generator)
    dye = torch.nn.functional.interpolate(dye, size=(side, side), mode="bilinear")
    light = torch.exp(-torch.einsum("bshw,sc->bchw", dye, torch.tensor([[0.65, 0.7, 0.29], [0.07, 0.99, 0.11]])))
    images = (255 * light).to(torch.uint8)
    images[0], images[1], images[2] = 255, 0, 137
    images[3, :, :8] = 244
    return images


def randstainna(**fields):
    return RandStainNA(RandStainNAConfig(probability=0.8, **fields))


CHAINS = {
    "hed": {"hed": HEDJitter(HEDJitterConfig(probability=0.8, alpha=0.3, beta=0.4))},
    "lab": {"randstainna": randstainna(statistics="synthetic-lab")},
    "lab, all of the image": {"randstainna": randstainna(statistics="crc-lab", model="independent")},
    "lab, background too": {"randstainna": randstainna(keep_background=False, strength=0.6)},
    "hsv": {"randstainna": randstainna(statistics="synthetic-hsv")},
    "density": {"randstainna": randstainna(statistics="synthetic-hed", spread=0.5)},
    "jitter": {"jitter": ColorJitter(JitterConfig())},
    "jitter without contrast": {"jitter": ColorJitter(JitterConfig(contrast=0.0))},
    "gray": {"grayscale": Grayscale(0.5)},
}
CHAINS["all"] = CHAINS["hed"] | CHAINS["lab"] | CHAINS["jitter"] | CHAINS["gray"]


def drawn(operations, images, seed=0):
    draws = Draws(seed, 0, range(len(images)))
    return {name: operation.sample(draws, images) for name, operation in operations.items()}


def one_after_the_other(operations, images, parameters):
    colors = images.float() / 255
    for name, operation in operations.items():
        colors = operation.apply(colors, parameters[name])
    return colors


@pytest.mark.parametrize("operations", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_operations(operations, seed):
    images = stained_tiles()
    parameters = drawn(operations, images, seed)
    fused = FusedColors(operations, compiled=False)(images, parameters)
    plain = one_after_the_other(operations, images, parameters)
    assert torch.isfinite(fused).all()
    # A fifth of a grey level of 255: the plain path takes powers by shorter forms.
    torch.testing.assert_close(fused, plain, rtol=0, atol=8e-4)


def test_without_operations_pixels_are_scaled():
    images = stained_tiles()
    torch.testing.assert_close(FusedColors({}, compiled=False)(images, {}), images.float() / 255)


def test_an_image_that_is_not_chosen_is_scaled_only():
    operations = CHAINS["all"]
    images = stained_tiles()
    parameters = drawn(operations, images)
    for name, values in parameters.items():
        values["order" if name == "jitter" else "on"][:] = -1 if name == "jitter" else False
    assert torch.equal(
        FusedColors(operations, compiled=False)(images, parameters), images.to(torch.float32) * (1 / 255)
    )


@pytest.mark.parametrize("name", ["all", "hsv", "density"])
def test_a_compiler_can_take_it_whole(name):
    """One graph without a break; making machine code of it is left to where a GPU is."""
    operations, images = CHAINS[name], stained_tiles()
    parameters = drawn(operations, images)
    expected = FusedColors(operations, compiled=False)(images, parameters)
    compiled = FusedColors(operations, compiled=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, parameters), expected, rtol=0, atol=1e-6)
    assert compiled._run != compiled._apply, "it fell back"


def test_many_configurations_and_batch_sizes_stay_compiled(capsys):
    """A compiler keeps at most 8 forms of a function: kinds of views must not share them, batches must not need them."""
    images = stained_tiles(12)
    for number in range(10):
        operations = {
            "jitter": ColorJitter(JitterConfig(brightness=0.1 + number / 20, contrast=0, saturation=0, hue=0))
        }
        fused = FusedColors(operations, compiled=True, backend="eager")
        fused(images, drawn(operations, images))
    for count in range(1, 13):
        fused(images[:count], drawn(operations, images[:count]))
    assert "not compiled" not in capsys.readouterr().err


def test_no_strength_changes_no_bit():
    operations = {
        "hed": HEDJitter(HEDJitterConfig(probability=1.0, alpha=0.0, beta=0.0)),
        "randstainna": RandStainNA(RandStainNAConfig(probability=1.0, strength=0.0)),
        "jitter": ColorJitter(JitterConfig(brightness=0, contrast=0, saturation=0, hue=0, probability=1.0)),
    }
    images = stained_tiles()
    changed = FusedColors(operations, compiled=False)(images, drawn(operations, images))
    assert torch.equal(changed, images.float() * (1 / 255))


def test_where_it_cannot_be_compiled_it_runs_as_it_is(capsys):
    operations, images = CHAINS["jitter"], stained_tiles()
    parameters = drawn(operations, images)
    fused = FusedColors(operations, compiled=True, backend="aot_eager")

    def broken(*_):
        raise RuntimeError("no compiler here\nand more")

    fused._run = broken
    expected = FusedColors(operations, compiled=False)(images, parameters)
    for _ in range(2):
        assert torch.equal(fused(images, parameters), expected)
    assert capsys.readouterr().err.count("not compiled (RuntimeError: no compiler here)") == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("operations", CHAINS.values(), ids=CHAINS)
def test_compiled_on_a_gpu(operations):
    images = stained_tiles()
    parameters = drawn(operations, images)
    on_gpu = FusedColors(operations, compiled=True)(images.cuda(), parameters).cpu()
    torch.testing.assert_close(on_gpu, one_after_the_other(operations, images, parameters), rtol=0, atol=2e-3)


def test_columns_hold_one_row_an_image():
    operations, images = CHAINS["all"], stained_tiles()
    parameters = drawn(operations, images)
    together = FusedColors(operations, compiled=False)(images, parameters)
    rows = [
        {name: {key: value[i : i + 1] for key, value in p.items()} for name, p in parameters.items()} for i in range(6)
    ]
    alone = torch.cat([FusedColors(operations, compiled=False)(images[i : i + 1], rows[i]) for i in range(6)])
    np.testing.assert_allclose(together.numpy(), alone.numpy(), atol=1e-6)
