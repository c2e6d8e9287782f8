"""Compiled loops against PyTorch's way, and that they are there, or quietly are not, wherever eosin runs."""

import importlib.util
import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eosin.augment import kernels
from eosin.augment.color import ColorJitter, JitterConfig
from eosin.augment.hed import HEDJitter, HEDJitterConfig, hed_jitter
from eosin.augment.kernels import kernel
from eosin.augment.randstainna import restain
from eosin.augment.spaces import CHANNELS, MATRICES
from eosin.core.draws import Draws

# By how much a displayed value may differ between the two ways.
SAME = 1e-4

SPACES = list(MATRICES)
AIMS = {
    "lab": [158.0, 151.2, 116.8, 36.9, 8.1, 6.1],
    "hsv": [140.0, 80.0, 185.0, 20.0, 30.0, 32.0],
    "hed": [0.03, 0.02, 0.01, 0.02, 0.02, 0.01],
}

needs_numba = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


def images_of(n=3, height=40, width=44, seed=0):
    """Smooth stain, a strip of glass."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    images = torch.tensor([0.35, 0.15, 0.4]).view(3, 1, 1) + smooth * torch.tensor([0.5, 0.6, 0.4]).view(3, 1, 1)
    images[..., : max(width // 8, 1)] = 0.94
    return images


def aims_of(space, n=3):
    return torch.tensor(AIMS[space]) * torch.linspace(0.9, 1.1, n)[:, None]


def stained(space="lab", height=40, width=44, **options):
    return restain(images_of(3, height, width), aims_of(space), space=space, **options)


def without(monkeypatch, function, *arguments, **options):
    with monkeypatch.context() as patch:
        patch.setenv("EOSIN_NUMBA", "0")
        return function(*arguments, **options)


@needs_numba
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("keep_background", [False, True])
@pytest.mark.parametrize("tissue_only", [False, True])
@pytest.mark.parametrize("space", SPACES)
def test_restain_is_the_same_either_way(monkeypatch, space, tissue_only, keep_background, strength):
    options = {"tissue_only": tissue_only, "keep_background": keep_background, "strength": strength}
    plain = without(monkeypatch, stained, space, **options)
    torch.testing.assert_close(stained(space, **options), plain, rtol=0, atol=SAME)


@needs_numba
@pytest.mark.parametrize("space", SPACES)
@given(
    seed=st.integers(0, 999),
    side=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    color=st.sampled_from([None, 0.0, 1.0, 0.5, 0.003]),
    spread=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_any_image_is_the_same_either_way(space, seed, side, color, spread):
    generator = torch.Generator().manual_seed(seed)
    base = torch.rand(1, 3, 1, 1, generator=generator) if color is None else color
    images = (base + spread * (torch.rand(1, 3, *side, generator=generator) - 0.5)).clamp(0, 1).expand(1, 3, *side)
    aim = aims_of(space, 1)
    with pytest.MonkeyPatch.context() as patch:
        compiled = restain(images.clone(), aim, space=space)
        plain = without(patch, restain, images.clone(), aim, space=space)
    # A nearly uniform image is spread tenfold, and its rounding errors with it.
    torch.testing.assert_close(compiled, plain, rtol=0, atol=2 * SAME)


@needs_numba
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -1.0, 2.0])
@pytest.mark.parametrize("space", SPACES)
def test_colors_come_out_even_of_what_is_none(space, value):
    images = images_of()
    images[1, :, 3, 5] = value
    images[2] = value
    for keep_background in (False, True):
        result = restain(images.clone(), aims_of(space), space=space, keep_background=keep_background)
        assert torch.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 1


@needs_numba
@pytest.mark.parametrize("space", SPACES)
def test_memory_layout_changes_no_bit(space):
    images, aims = images_of(), aims_of(space)
    expected = restain(images.clone(), aims, space=space)
    last = images.to(memory_format=torch.channels_last)
    wide = torch.zeros(3, 3, 80, 90)[:, :, ::2, 1:45]
    wide.copy_(images)
    for other in (last, wide, images.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(restain(other, aims, space=space), expected)


@needs_numba
@pytest.mark.parametrize("space", SPACES)
def test_threads_change_no_bit(space):
    expected = stained(space, 96, 97)
    results = {}

    def work(number):
        results[number] = [stained(space, 96, 97) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for many in results.values() for result in many)


@needs_numba
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_make_the_same_bits(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    expected = stained()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        made = pool.submit(restain, images_of(), aims_of("lab"), space="lab").result()
        assert torch.equal(made, expected)


# Jitter and HED jitter


def jittered(images, seed=0, **strengths):
    operation = ColorJitter(JitterConfig(**{"probability": 0.8} | strengths))
    return operation.apply(images, operation.sample(Draws(seed, 0, range(len(images))), images))


def shifted(images, seed=0, **strengths):
    operation = HEDJitter(HEDJitterConfig(**{"probability": 0.8, "alpha": 0.5, "beta": 1.0} | strengths))
    return operation.apply(images, operation.sample(Draws(seed, 0, range(len(images))), images))


@needs_numba
@pytest.mark.parametrize("change", [jittered, shifted])
@given(seed=st.integers(0, 999), side=st.tuples(st.integers(1, 40), st.integers(1, 40)), low=st.sampled_from([0, 0.9]))
def test_changed_colors_are_the_same_either_way(change, seed, side, low):
    images = low + (1 - low) * torch.rand(6, 3, *side, generator=torch.Generator().manual_seed(seed))
    images[4], images[5] = 0.0, 1.0
    with pytest.MonkeyPatch.context() as patch:
        plain = without(patch, change, images.clone(), seed)
    compiled = change(images.clone(), seed)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=SAME / 10)
    for row in range(6):
        part = images.clone()
        part[:row], part[row + 1 :] = 0.3, 0.6
        assert torch.equal(change(part, seed)[row], compiled[row])


@needs_numba
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_a_strength_of_0_leaves_that_property_alone(monkeypatch, name):
    images = images_of(24)
    plain = without(monkeypatch, jittered, images.clone(), **{name: 0.0})
    torch.testing.assert_close(jittered(images.clone(), **{name: 0.0}), plain, rtol=0, atol=SAME / 10)


@needs_numba
@pytest.mark.parametrize("change", [jittered, shifted])
def test_changes_are_made_where_the_images_lie(change):
    images = images_of(24)
    wide = torch.zeros(24, 3, 80, 90)
    view = wide[:, :, ::2, 1:45]
    view.copy_(images)
    expected = change(images)
    assert torch.equal(change(view), expected)
    assert torch.equal(view, expected)
    assert wide[:, :, 1::2].abs().max() == 0


@needs_numba
@pytest.mark.parametrize("change", [jittered, shifted])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30, -1.0])
def test_changed_colors_are_colors_even_of_what_is_none(change, value):
    images = images_of(24)
    images[:, :, 3, 5] = value
    on = (change(images_of(24)) != images_of(24)).flatten(1).any(1)
    result = change(images)[on]
    assert torch.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1


@needs_numba
def test_what_is_not_chosen_changes_no_bit():
    images = images_of(24)
    for change in (jittered, shifted):
        assert torch.equal(change(images.clone(), probability=0.0), images)
    assert torch.equal(shifted(images.clone(), probability=1.0, alpha=0.0, beta=0.0), images)


# Which way is taken


@needs_numba
def test_numba_is_taken_where_it_can_be(monkeypatch):
    images = images_of()
    monkeypatch.delenv("EOSIN_NUMBA", raising=False)
    assert kernel("restain", images) is not None
    assert kernel("restain", images.double()) is None
    assert kernel("restain", images.to("meta")) is None
    assert kernel("restain", images.requires_grad_()) is None
    monkeypatch.setenv("EOSIN_NUMBA", "0")
    assert kernel("restain", images.detach()) is None


@needs_numba
def test_arguments_of_other_types_are_an_error():
    compiled = kernel("restain", images_of())
    with pytest.raises(TypeError):
        compiled(images_of().numpy())


def test_without_numba_pytorch_computes(monkeypatch):
    plain = without(monkeypatch, stained)
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    kernels._load.cache_clear()
    try:
        assert torch.equal(stained(), plain)
    finally:
        kernels._load.cache_clear()


@needs_numba
def test_what_cannot_be_compiled_is_told_once(monkeypatch, capsys):
    from eosin.augment import compiled

    plain = without(monkeypatch, stained)
    monkeypatch.setitem(compiled.SIGNATURES, "restain", "void(unicode_type)")
    kernels._load.cache_clear()
    try:
        assert torch.equal(stained(), plain)
        assert torch.equal(stained(), plain)
    finally:
        kernels._load.cache_clear()
    told = capsys.readouterr().err
    assert told.count("not compiled") == 1
    assert "EOSIN_NUMBA=0" in told


SCRIPT = """
import sys, torch
import eosin.augment
assert "numba" not in sys.modules, "numba is imported before it is needed"
from eosin.augment.hed import hed_jitter
from eosin.augment.kernels import kernel
images = torch.linspace(0, 1, 3 * 64).view(1, 3, 8, 8)
assert kernel("hed_jitter", images) is not None
print(hed_jitter(images, [[0.5, 1.5, 1.0]], [[0.1, 0.2, -0.1]]).sum().item())
"""


def run(folder):
    place = {"NUMBA_CACHE_DIR": str(folder), "EOSIN_NUMBA": "1"}
    result = subprocess.run([sys.executable, "-c", SCRIPT], env=os.environ | place, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return float(result.stdout)


def here():
    images = torch.linspace(0, 1, 3 * 64).view(1, 3, 8, 8)
    return hed_jitter(images, [[0.5, 1.5, 1.0]], [[0.1, 0.2, -0.1]]).sum().item()


@needs_numba
def test_machine_code_is_kept_and_a_broken_cache_does_no_harm(tmp_path):
    assert run(tmp_path) == here()
    kept = sorted(path for path in tmp_path.rglob("*.nb?") if "hed_jitter" in path.name)
    assert {path.suffix for path in kept} == {".nbi", ".nbc"}
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert run(tmp_path) == here()
    assert before == {path: path.stat().st_mtime_ns for path in kept}
    for path in kept:
        path.write_bytes(path.read_bytes()[:100])
    assert run(tmp_path) == here()


@needs_numba
def test_no_folder_to_keep_machine_code_in_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    assert run(tmp_path / "file" / "cache") == here()


def test_the_spaces_are_numbered_as_the_kernels_count_them():
    assert list(CHANNELS) == ["lab", "hsv", "hed"]


@needs_numba
def test_a_hue_that_rounding_decides_moves_no_mean():
    """Tissue beside gray with a last bit of blue is restained as beside gray, compiled or not."""
    gray = torch.full((1, 3, 8, 8), 137 / 255)
    # Of two colors alone, standardized ones stay where they are, whatever the second's hue.
    gray[0, :, :, :2] = torch.tensor([0.7, 0.4, 0.6])[:, None, None]
    gray[0, :, :, 2:4] = torch.tensor([0.4, 0.5, 0.7])[:, None, None]
    bluish = gray.clone()
    bluish[:, 2, :, 4:] += 2**-24
    aim = aims_of("hsv", 1)
    for change in (restain, lambda *given, **named: without(pytest.MonkeyPatch(), restain, *given, **named)):
        one, other = (change(images.clone(), aim, space="hsv", tissue_only=False) for images in (gray, bluish))
        torch.testing.assert_close(one, other, rtol=0, atol=SAME)
