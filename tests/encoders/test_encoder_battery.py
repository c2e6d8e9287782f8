"""Every scheme of the registry passes one battery."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eosin.core.errors import EosinError
from eosin.encoders import ENCODERS, Encoder, build_encoder, load_encoder, save_encoder

NO_FEATURE_MAPS = {"color": "a baseline that describes the whole tile"}

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


Write = Callable[[str, Path], torch.nn.Module]


def placed(home: Path, timm_weights: Write) -> list[str]:
    for name in ("resnet18.a1_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"):
        timm_weights(name.split(".")[0], home / "encoders" / f"{name}.safetensors")
    return ["timm:resnet18.a1_in1k", "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k?size=96"]


def saved(home: Path, timm_weights: Write) -> list[str]:
    run, file = home / "run", home / "vit.safetensors"
    run.mkdir()
    save_encoder(build_encoder("resnet18", size=96, mpp=0.5, **IMAGENET), run / "encoder.safetensors")
    save_encoder(build_encoder("vit_tiny_patch16_224", size=96, mpp=0.5, **IMAGENET), file)
    return [str(run), str(file)]


def lunit(home: Path, timm_weights: Write) -> list[str]:
    network = timm_weights("vit_small_patch16_224", home / "whole.safetensors")
    network.reset_classifier(0)  # type: ignore[operator]
    torch.save(network.state_dict(), home / "encoders" / "dino_vit_small_patch16_ep200.torch")
    return ["lunit:dino_vits16", "lunit:dino_vit_small_patch16_ep200?feature=cls+mean_patch"]


def pathology(home: Path, timm_weights: Write) -> list[str]:
    network = timm_weights("vit_small_patch16_224", home / "whole.safetensors")
    network.reset_classifier(0)  # type: ignore[operator]
    (home / "encoders" / "kaiko").mkdir()
    torch.save(network.state_dict(), home / "encoders" / "kaiko" / "vits16.pth")
    return ["pathology:kaiko-vits16", "pathology:kaiko-vits16?size=96"]


def repository(home: Path, timm_weights: Write) -> list[str]:
    specs = []
    for name, architecture in (("a--resnet", "resnet18"), ("a--vit@v1", "vit_tiny_patch16_224")):
        folder = home / "encoders" / name
        timm_weights(architecture, folder / "model.safetensors")
        config = {"architecture": architecture, "pretrained_cfg": {"input_size": [3, 96, 96]}}
        (folder / "config.json").write_text(json.dumps(config))
        specs.append("hf-hub:" + name.replace("--", "/"))
    return specs


# Schemes whose encoders live in files: how to make some.
MADE: dict[str, Callable[[Path, Write], list[str]]] = {
    "timm": placed,
    "file": saved,
    "lunit": lunit,
    "pathology": pathology,
    "hf-hub": repository,
}


@pytest.fixture(params=sorted(ENCODERS))
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def encoders(scheme: str, home: Path, timm_weights: Write) -> list[tuple[str, Encoder]]:
    specs = [*ENCODERS[scheme].examples, *(MADE[scheme](home, timm_weights) if scheme in MADE else [])]
    assert specs, f"{scheme}: give examples, or a way to make some in MADE"
    return [(spec, load_encoder(spec)) for spec in specs]


def test_scheme(scheme: str, home: Path, timm_weights: Write) -> None:
    for spec, encoder in encoders(scheme, home, timm_weights):
        check_forward(encoder)
        check_card(spec, encoder)
        check_spatial(scheme, encoder)


def check_forward(encoder: Encoder) -> None:
    assert not encoder.training
    for size in (96, 128, 224):
        pixels = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        images = encoder.normalize(pixels)
        assert images.dtype == torch.float32
        with torch.no_grad():
            features = encoder(images)
            alone = encoder(images[1:])
        assert features.shape == (2, encoder.width)
        assert features.dtype == torch.float32
        assert torch.isfinite(features).all()
        torch.testing.assert_close(features[1:], alone, rtol=1e-4, atol=1e-5)


def check_card(spec: str, encoder: Encoder) -> None:
    card = encoder.card
    assert card.licence
    assert len(card.mean) == len(card.std) == 3
    again = load_encoder(card.spec)
    assert again.fingerprint() == encoder.fingerprint() == load_encoder(spec).fingerprint()
    assert again.card == card
    assert len(encoder.fingerprint()) == 16
    int(encoder.fingerprint(), 16)


def check_spatial(scheme: str, encoder: Encoder) -> None:
    images = torch.rand(2, 3, 96, 96)
    if scheme in NO_FEATURE_MAPS:
        with pytest.raises(EosinError, match="no feature maps"):
            encoder.spatial(images)
        return
    with torch.no_grad():
        maps = encoder.spatial(images)
    sides = [96 // feature_map.shape[-1] for feature_map in maps]
    widths = [feature_map.shape[1] for feature_map in maps]
    if encoder.card.architecture == "resnet18":
        assert sides == [2, 4, 8, 16, 32]
        assert widths == [64, 64, 128, 256, 512]
    else:
        assert sides == [16] * 4
        assert widths == [encoder.backbone.num_features] * 4
    assert all(feature_map.ndim == 4 and len(feature_map) == 2 for feature_map in maps)


def test_pooling_is_average_for_cnns_and_cls_for_vits() -> None:
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        cnn = load_encoder("random:resnet18?size=96")
        torch.testing.assert_close(cnn(images), cnn.spatial(images)[-1].mean(dim=(2, 3)))
        vit = load_encoder("random:vit_tiny_patch16_224?size=96")
        tokens = vit.backbone.forward_features(images)
    torch.testing.assert_close(vit(images), tokens[:, 0])
    patches = vit.spatial(images)[-1]
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), tokens[:, 1:])


def test_normalize_is_the_formula() -> None:
    encoder = load_encoder("random:resnet18?size=96")
    pixels = torch.randint(0, 256, (1, 3, 4, 4), dtype=torch.uint8)
    normalized = encoder.normalize(pixels)
    for channel in range(3):
        expected = (pixels[0, channel].double() / 255 - IMAGENET["mean"][channel]) / IMAGENET["std"][channel]
        torch.testing.assert_close(normalized[0, channel].double(), expected, rtol=0, atol=1e-6)
