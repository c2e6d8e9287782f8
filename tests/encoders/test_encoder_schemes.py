"""`timm:`, `random:` and `color:`, and what a wrong spec says."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from eosin.core.errors import EosinError
from eosin.encoders import build_encoder, hub, load_encoder, loading
from eosin.encoders.backbone import create_backbone

NAME = "resnet18.a1_in1k"
Write = Callable[[str, Path], torch.nn.Module]


def one_line(spec: str) -> str:
    with pytest.raises(EosinError) as error:
        load_encoder(spec)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("tim:resnet18", "did you mean 'timm'?"),
        ("random:resnet1", "did you mean 'resnet18'?"),
        ("random:resnet18.a1_in1k", "did you mean 'resnet18'?"),
        ("random:resnet18?sed=1", "unknown option 'sed'; did you mean 'seed'?"),
        ("random:resnet18?seed", "needs a value"),
        ("random:resnet18?seed=x", "seed=x: must be a whole number of at least 0"),
        ("random:resnet18?seed=18446744073709551616", "must be at most 18446744073709551615"),
        ("random:gcvit_xxtiny?size=7", "cannot be built for images of 7 px (division by zero)"),
        ("random:test_vit_relpos?size=7", "cannot be built for images of 7 px ("),
        ("random:resnet18?size=0", "size=0: must be a whole number of at least 1"),
        ("random:vit_tiny_patch16_224?size=100", "use size 96 or 112"),
        ("random:vit_tiny_patch16_224?size=7", "use size 16"),
        ("color:stat", "did you mean 'stats'?"),
        ("color:stats?seed=1", "unknown option 'seed'"),
        ("nowhere", "no such run directory or file"),
        ("", "spec is empty"),
        ("timm:resnet50.a1_in1", "did you mean 'resnet50.a1_in1k'?"),
        ("timm:resnet5o", "did you mean 'resnet50'?"),
    ],
)
def test_a_wrong_spec_is_one_line_with_the_fix(spec: str, part: str) -> None:
    assert part in one_line(spec)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_too_little_memory_to_build_a_network_is_one_line(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("timm.create_model", no_memory)
    assert one_line("random:resnet18").startswith("resnet18: not enough memory to build it for images of 224 px; ")


def test_random_is_a_function_of_the_seed_and_leaves_every_generator_alone() -> None:
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = load_encoder("random:vit_tiny_patch16_224?seed=1&size=96")
    again = load_encoder("random:vit_tiny_patch16_224?seed=1&size=96")
    other = load_encoder("random:vit_tiny_patch16_224?seed=2&size=96")
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    torch.manual_seed(1)
    statistics = {"mean": first.card.mean, "std": first.card.std}
    assert build_encoder("vit_tiny_patch16_224", size=96, **statistics).fingerprint() == first.fingerprint()


def test_the_default_size_is_the_architectures_own() -> None:
    assert load_encoder("random:vit_tiny_patch16_384").card.size == 384
    assert load_encoder("random:resnet18").card.size == 224


def test_drop_path_reaches_the_network() -> None:
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    encoder = build_encoder("vit_tiny_patch16_224", size=96, drop_path=0.1, **statistics)
    rates = [block.drop_path1.drop_prob for block in encoder.backbone.blocks[1:]]
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12)[1:])
    with pytest.raises(EosinError, match="did you mean"):
        build_encoder("resnet81", size=96, **statistics)


def test_placed_weights_are_loaded_whole_and_without_classifier(home: Path, timm_weights: Write) -> None:
    network = timm_weights("resnet18", home / "encoders" / f"{NAME}.safetensors")
    state = torch.random.get_rng_state()
    encoder = load_encoder("timm:resnet18")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert encoder.card.spec == f"timm:{NAME}"
    assert encoder.card.licence == "apache-2.0"
    assert encoder.card.interpolation == "bicubic"
    assert encoder.card.mean == (0.485, 0.456, 0.406)
    network.reset_classifier(0)
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(encoder(images), network(images))


def test_a_vits_own_statistics_and_another_size(home: Path, timm_weights: Write) -> None:
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    network = timm_weights("vit_tiny_patch16_224", home / "encoders" / f"{name}.safetensors")
    encoder = load_encoder(f"timm:{name}?size=96")
    assert encoder.card.mean == encoder.card.std == (0.5, 0.5, 0.5)
    assert encoder.card.size == 96
    full = load_encoder(f"timm:{name}")
    network.reset_classifier(0)
    images = torch.rand(2, 3, 224, 224)
    torch.testing.assert_close(full(images), network(images))
    torch.testing.assert_close(encoder(images[..., :96, :96]), full(images[..., :96, :96]))


def test_the_hugging_face_cache_is_second(home: Path, tmp_path: Path, timm_weights: Write) -> None:
    repository = tmp_path / "hub" / f"models--timm--{NAME}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    timm_weights("resnet18", repository / "snapshots" / "abc" / "model.safetensors")
    cached = load_encoder(f"timm:{NAME}")
    torch.manual_seed(99)
    timm_weights("resnet18", home / "encoders" / f"{NAME}.safetensors")
    placed = home / "encoders" / f"{NAME}.safetensors"
    assert cached.fingerprint() == load_encoder(f"timm:{NAME}").fingerprint()
    placed.write_bytes(b"damaged")
    assert str(placed) in one_line(f"timm:{NAME}")


def test_offline_names_the_file_and_its_place(home: Path) -> None:
    message = one_line(f"timm:{NAME}")
    assert "is out of reach" in message
    assert f"download model.safetensors from huggingface.co/timm/{NAME}" in message
    assert str(home / "encoders" / f"{NAME}.safetensors") in message


def test_hf_hub_offline_is_respected(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_reachable", lambda endpoint: pytest.fail("asked the network"))
    assert "HF_HUB_OFFLINE is set" in one_line(f"timm:{NAME}")


def test_an_unreachable_endpoint_is_asked_once() -> None:
    assert not hub._reachable("http://127.0.0.1:9")


def test_a_failing_download_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise OSError("first line\nsecond line")

    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    monkeypatch.setattr(hub, "hf_hub_download", fail)
    message = one_line(f"timm:{NAME}")
    assert "the download failed (first line)" in message


def test_wrong_and_incomplete_weights_never_load(home: Path, timm_weights: Write) -> None:
    timm_weights("resnet34", home / "encoders" / f"{NAME}.safetensors")
    assert "does not hold the weights of resnet18.a1_in1k" in one_line(f"timm:{NAME}")


@settings(max_examples=20)
@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 99))
def test_color_baselines_are_their_formulas(height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8, generator=generator)
    stats, histogram = load_encoder("color:stats"), load_encoder("color:histogram")
    for image, six, bins in zip(
        pixels, stats(stats.normalize(pixels)), histogram(histogram.normalize(pixels)), strict=True
    ):
        values = image.reshape(3, -1).numpy().astype(np.float64) / 255
        np.testing.assert_allclose(six, [*values.mean(axis=1), *values.std(axis=1)], atol=1e-6)
        expected = [np.histogram(channel, bins=16, range=(0, 1))[0] / channel.size for channel in values]
        np.testing.assert_allclose(bins, np.concatenate(expected), atol=1e-6)


class Called(TorchDispatchMode):
    """Writes down what reaches torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_network_to_be_filled_is_built_without_drawing(architecture: str) -> None:
    whole = create_backbone(architecture, 224, num_classes=0).state_dict()
    with Called() as called:
        empty = loading._empty(architecture, 224, {"num_classes": 0})
    assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == {
        name: tensor.shape for name, tensor in whole.items()
    }
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert called.names
    assert not called.names & {"aten::uniform_", "aten::normal_", "aten::erfinv_"}
