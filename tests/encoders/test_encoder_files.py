"""Encoders on disk: what survives, and what every kind of damage says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eosin.core.errors import EosinError
from eosin.encoders import build_encoder, load_encoder, save_encoder

Write = Callable[[str, Path], torch.nn.Module]
STATISTICS = {"mean": (0.7, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.safetensors"
    torch.manual_seed(3)
    save_encoder(build_encoder("resnet18", size=96, mpp=0.5, **STATISTICS), path)
    return path


def one_line(spec: str | Path) -> str:
    with pytest.raises(EosinError) as error:
        load_encoder(str(spec))
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("architecture", ["resnet18", "vit_tiny_patch16_224"])
def test_save_and_load_keep_function_card_and_fingerprint(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = build_encoder(architecture, size=96, mpp=0.5, drop_path=0.1, **STATISTICS).eval()
    encoder(torch.rand(2, 3, 96, 96))
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(str(tmp_path))
    assert loaded.fingerprint() == encoder.fingerprint()
    assert loaded.card.model_copy(update={"spec": encoder.card.spec}) == encoder.card
    images = torch.rand(2, 3, 96, 96)
    assert torch.equal(loaded(images), encoder(images))
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_the_file_is_readable_by_timm_and_any_safetensors_reader(file: Path) -> None:
    network = timm.create_model("resnet18", num_classes=0)
    network.load_state_dict(load_file(file), strict=True)
    with safe_open(file, framework="pt") as opened:
        card = json.loads(opened.metadata()["eosin_card"])
    assert card["architecture"] == "resnet18"
    assert card["mpp"] == 0.5
    assert card["mean"] == list(STATISTICS["mean"])


def test_fingerprint_is_the_stated_hash(file: Path) -> None:
    encoder = load_encoder(str(file))
    contract = {
        "architecture": "resnet18",
        "interpolation": "bilinear",
        "mean": [0.7, 0.5, 0.6],
        "size": 96,
        "std": [0.2, 0.25, 0.3],
    }
    digest = hashlib.sha256(json.dumps(contract).encode())
    state = load_file(file)
    for name in sorted(state):
        tensor = state[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode() + tensor.numpy().tobytes())
    assert encoder.fingerprint() == digest.hexdigest()[:16]


def test_fingerprint_follows_weights_and_pixels_but_not_the_source(file: Path) -> None:
    encoder = load_encoder(str(file))
    before = encoder.fingerprint()
    for change, differs in (
        ({"spec": "elsewhere", "licence": "other", "mpp": None}, False),
        ({"mean": (0.5, 0.5, 0.5)}, True),
        ({"size": 128}, True),
        ({"interpolation": "bicubic"}, True),
    ):
        other = load_encoder(str(file))
        other.card = other.card.model_copy(update=change)
        assert (other.fingerprint() != before) == differs, change
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-6
    assert encoder.fingerprint() != before


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.0, 0.999))
def test_a_file_cut_short_is_one_line(file: Path, share: float) -> None:
    whole = file.read_bytes()
    cut = file.with_name("cut.safetensors")
    cut.write_bytes(whole[: int(share * len(whole))])
    assert "damaged" in one_line(cut)


def test_other_contents_are_one_line(tmp_path: Path) -> None:
    for name, content in (("text", b"hello, this is no tensor file" * 9), ("zeros", bytes(4096))):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        assert str(path) in one_line(path)
    pickled = tmp_path / "model.pt"
    torch.save({}, pickled)
    assert "holds no tensors" in one_line(f"{pickled}?architecture=resnet18")


def test_an_unfinished_run_says_what_to_do(tmp_path: Path) -> None:
    assert "no encoder.safetensors" in one_line(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    message = one_line(tmp_path)
    assert "has checkpoints" in message
    assert "eosin pretrain" in message
    assert "no such run directory or file" in one_line(tmp_path / "absent")


def test_a_damaged_card_names_the_field(file: Path) -> None:
    state = load_file(file)
    for card, part in (("{", "card in its header is damaged"), ('{"spec": "x"}', "field"), ("[]", "card")):
        save_file(state, file, metadata={"eosin_card": card})
        assert part in one_line(file)
    with_typo = load_card_with(file, state, architecture="resnet81")
    assert "did you mean 'resnet" in one_line(with_typo)


def load_card_with(path: Path, state: dict[str, torch.Tensor], **changes: object) -> Path:
    card = {"spec": "x", "architecture": "resnet18", "size": 96, "licence": "none", "width": 512, **STATISTICS}
    save_file(state, path, metadata={"eosin_card": json.dumps(card | changes)})
    return path


@pytest.mark.parametrize(
    "option", [{"checkpoint_path": "evil.pth"}, {"pretrained": True}, {"pretrained_cfg_overlay": {"file": "evil.pth"}}]
)
def test_a_card_cannot_make_timm_read_other_weights(
    option: dict[str, object], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []
    monkeypatch.setattr("timm.create_model", lambda *_, **__: built.append("built"))
    message = one_line(load_card_with(file, load_file(file), options=option))
    assert f"'{next(iter(option))}' loads other weights" in message
    assert not built
    with pytest.raises(EosinError, match="loads other weights"):
        build_encoder("resnet18", size=96, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), options=option)


def test_options_that_a_network_does_not_have_are_one_line(file: Path) -> None:
    assert "refuses the options of its card" in one_line(load_card_with(file, load_file(file), options={"nothing": 1}))


def test_missing_unexpected_and_misshapen_tensors_are_named(file: Path) -> None:
    state = load_file(file)
    load_encoder(str(load_card_with(file, state)))
    message = one_line(load_card_with(file, {k: v for k, v in state.items() if k != "conv1.weight"}))
    assert "1 missing tensor (conv1.weight)" in message
    message = one_line(load_card_with(file, state | {"extra.weight": torch.zeros(1)}))
    assert "1 unexpected tensor (extra.weight)" in message
    message = one_line(load_card_with(file, state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}))
    assert "'conv1.weight' has shape [64, 3, 3, 3]" in message
    message = one_line(load_card_with(file, state, architecture="resnet34"))
    assert "missing tensors" in message
    assert "more" in message


def test_a_foreign_file_needs_its_architecture_stated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], timm_weights: Write
) -> None:
    path = tmp_path / "foreign.safetensors"
    network = timm_weights("resnet18", path)
    assert "?architecture=NAME" in one_line(path)
    assert "did you mean 'resnet18'" in one_line(f"{path}?architecture=resnet188")
    assert "missing" in one_line(f"{path}?architecture=resnet34")
    encoder = load_encoder(f"{path}?architecture=resnet18&size=96")
    assert encoder.card.size == 96
    assert encoder.card.mean == (0.485, 0.456, 0.406)
    network.reset_classifier(0)
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(encoder(images), network(images))


def test_a_foreign_file_warns_about_what_was_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timm_weights: Write
) -> None:
    path = tmp_path / "foreign.safetensors"
    timm_weights("resnet18", path)
    warnings: list[str] = []
    monkeypatch.setattr("eosin.encoders.files.warn", warnings.append)
    load_encoder(f"{path}?architecture=resnet18")
    assert len(warnings) == 1
    assert "ImageNet mean and std" in warnings[0]


def test_a_file_with_a_card_refuses_another_architecture(file: Path) -> None:
    assert "leave ?architecture= out" in one_line(f"{file}?architecture=resnet34")


def test_another_size_resamples_the_position_embedding(tmp_path: Path) -> None:
    torch.manual_seed(3)
    encoder = build_encoder("vit_tiny_patch16_224", size=224, **STATISTICS).eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    smaller = load_encoder(f"{tmp_path}?size=96")
    assert smaller.card.size == 96
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(smaller(images), encoder(images))


def test_color_baselines_have_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(EosinError, match="no weights to save"):
        save_encoder(load_encoder("color:stats"), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
