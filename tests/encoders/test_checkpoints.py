"""Checkpoints of others: nested, prefixed, under other names, and what is refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from eosin.core.errors import EosinError
from eosin.encoders import files, load_encoder
from eosin.encoders.base import check_features
from eosin.encoders.keys import timm_names
from eosin.encoders.loading import load_backbone
from eosin.encoders.state import select

RESNET = "?architecture=resnet18&size=64"
VIT = "?architecture=vit_tiny_patch16_224&size=96"


@pytest.fixture(autouse=True)
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(files, "note", said.append)
    return said


def resnet(seed: int = 1) -> Any:
    torch.manual_seed(seed)
    network = timm.create_model("resnet18", num_classes=10).eval()
    with torch.no_grad():
        network(torch.randn(2, 3, 64, 64))
    return network


def vit(seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=10).eval()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def one_line(spec: str) -> str:
    with pytest.raises(EosinError) as error:
        load_encoder(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def same(spec: str, network: Any, side: int) -> None:
    network.reset_classifier(0)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(load_encoder(spec)(images), network(images), rtol=1e-4, atol=1e-5)


Wrap = Callable[[dict[str, Tensor], dict[str, Tensor]], Any]
# What a tool writes of the network to find, first, and of another network of the same kind.
LAYOUTS: dict[str, Wrap] = {
    "flat": lambda state, other: state,
    "DistributedDataParallel": lambda state, other: {"epoch": 3, "state_dict": prefixed(state, "module.")},
    "MoCo": lambda state, other: {
        "arch": "resnet50",
        "state_dict": prefixed(state, "module.encoder_q.") | prefixed(other, "module.encoder_k."),
        "optimizer": {"state": {0: torch.zeros(3)}, "param_groups": [{"lr": 0.03}]},
    },
    "DINO": lambda state, other: {
        "student": prefixed(other, "module.backbone."),
        "teacher": prefixed(state, "backbone.") | {"head.mlp.0.weight": torch.zeros(2, 2)},
    },
    "Lightning": lambda state, other: {"state_dict": prefixed(state, "model.backbone."), "global_step": 7},
    "VISSL": lambda state, other: {
        "classy_state_dict": {"base_model": {"model": {"trunk": prefixed(state, "_feature_blocks."), "heads": {}}}}
    },
    "timm": lambda state, other: {"state_dict": other, "state_dict_ema": state},
}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".torch", ".pth.tar"])
def test_every_ending_is_read(suffix: str, tmp_path: Path, notes: list[str]) -> None:
    network = resnet()
    torch.save(network.state_dict(), tmp_path / f"net{suffix}")
    same(f"{tmp_path}/net{suffix}{RESNET}", network, 64)
    assert notes == [f"{tmp_path}/net{suffix}: left out fc.weight, fc.bias, which the embedding does not use"]


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize(("make", "options", "side"), [(resnet, RESNET, 64), (vit, VIT, 96)])
def test_the_network_is_found_where_a_tool_put_it(
    layout: str, make: Callable[[int], Any], options: str, side: int, tmp_path: Path
) -> None:
    network = make(1)
    path = tmp_path / "checkpoint.pth"
    torch.save(LAYOUTS[layout](network.state_dict(), make(2).state_dict()), path)
    same(f"{path}{options}", network, side)


def test_a_prefix_can_be_stated(tmp_path: Path) -> None:
    network, other = resnet(1), resnet(2)
    path = tmp_path / "two.pth"
    torch.save({"a": network.state_dict(), "b": other.state_dict()}, path)
    assert "the network is there 2 times; state which with ?prefix=a or ?prefix=b" in one_line(f"{path}{RESNET}")
    assert "no tensor lies under prefix 'c.'" in one_line(f"{path}{RESNET}&prefix=c")
    same(f"{path}{RESNET}&prefix=a", network, 64)
    same(f"{path}{RESNET}&prefix=b", other, 64)


def test_statistics_can_be_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(files, "warn", said.append)
    path = tmp_path / "net.pth"
    torch.save(resnet().state_dict(), path)
    spec = f"{path}{RESNET}&mean=0.7/0.5/0.6&std=0.2,0.25,0.3"
    encoder = load_encoder(spec)
    assert (encoder.card.mean, encoder.card.std) == ((0.7, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert "ImageNet" not in said[0]
    assert load_encoder(encoder.card.spec).fingerprint() == encoder.fingerprint()
    for wrong in ("mean=0.7", "mean=0.7/0.5/1.6", "std=0/0.1/0.1", "mean=a/b/c", "mean=nan/0/0"):
        assert "three numbers" in one_line(f"{path}{RESNET}&{wrong}")


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path.joinpath("exploded").write_text, ("x",))

    for name, extra in (("bomb", Bomb()), ("args", argparse.Namespace(lr=1))):
        for zipped in (True, False):
            path = tmp_path / f"{name}.pth"
            torch.save(
                {"state_dict": resnet().state_dict(), "extra": extra}, path, _use_new_zipfile_serialization=zipped
            )
            assert "objects other than tensors" in one_line(f"{path}{RESNET}")
    assert "argparse.Namespace" in one_line(f"{tmp_path}/args.pth{RESNET}")
    assert not (tmp_path / "exploded").exists()


def test_damage_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(resnet().state_dict(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>", bytes(2048)):
        path.write_bytes(content)
        message = one_line(f"{path}{RESNET}")
        assert "copy it again" in message
    torch.save(nn.Linear(2, 2).state_dict(), path)
    assert "missing" in one_line(f"{path}{RESNET}")
    assert "?architecture=NAME" in one_line(str(path))
    torch.jit.script(nn.Linear(2, 2)).save(path)
    assert "TorchScript" in one_line(f"{path}{RESNET}")


def test_a_part_that_is_no_head_is_unexpected(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save(resnet().state_dict() | {"layer5.weight": torch.zeros(1)}, path)
    assert "1 unexpected tensor (layer5.weight)" in one_line(f"{path}{RESNET}")


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    network = resnet()
    state = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "net.pth")
    same(f"{tmp_path}/net.pth{RESNET}", network, 64)


def test_half_precision_weights_become_single(tmp_path: Path) -> None:
    network = resnet().half()
    torch.save(network.state_dict(), tmp_path / "net.pth")
    encoder = load_encoder(f"{tmp_path}/net.pth{RESNET}")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    same(f"{tmp_path}/net.pth{RESNET}", network.float(), 64)


def test_a_feature_of_tokens_needs_a_class_token(tmp_path: Path) -> None:
    torch.save(resnet().state_dict(), tmp_path / "net.pth")
    assert "has no class token" in one_line(f"{tmp_path}/net.pth{RESNET}&feature=cls")


def test_loading_takes_the_tensors_and_leaves_the_generator(tmp_path: Path) -> None:
    state = vit().state_dict()
    before = torch.random.get_rng_state()
    backbone, selected = load_backbone("vit_tiny_patch16_224", 96, state, "here")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert backbone.state_dict()["blocks.0.attn.qkv.weight"].data_ptr() == state["blocks.0.attn.qkv.weight"].data_ptr()
    assert selected.left_out == ("head.weight", "head.bias")


def test_buffers_that_no_file_holds_are_computed() -> None:
    torch.manual_seed(0)
    swin = timm.create_model("swin_tiny_patch4_window7_224", embed_dim=16, depths=(2, 2), num_heads=(1, 2)).eval()
    options = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}
    backbone, _ = load_backbone("swin_tiny_patch4_window7_224", 224, swin.state_dict(), "here", options=options)
    swin.reset_classifier(0)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(backbone.eval()(images), swin(images))


def test_old_swin_names_move_the_downsampling() -> None:
    old = {
        "layers.0.downsample.reduction.weight": torch.ones(1),
        "layers.1.blocks.0.attn.relative_position_index": torch.ones(1),
        "layers.1.downsample.norm.weight": torch.ones(1),
    }
    assert set(timm_names(old).state) == {"layers.1.downsample.reduction.weight", "layers.2.downsample.norm.weight"}


def test_chunked_blocks_of_dinov2_are_counted_on() -> None:
    state = {"pos_embed": torch.ones(1, 5, 2), "mask_token": torch.ones(1, 2), "blocks.1.3.mlp.w12.bias": torch.ones(4)}
    assert "blocks.3.mlp.fc1.bias" in timm_names(state).state


def test_select_prefers_the_teacher() -> None:
    tensors = {f"{who}.backbone.cls_token": torch.full((1,), float(value)) for value, who in enumerate("ts")}
    tensors = {
        name.replace("t.", "teacher.").replace("s.", "student."): tensor for name, tensor in reversed(tensors.items())
    }
    selected = select(tensors, ["cls_token"], (), "here")
    assert selected.prefix == "teacher.backbone."


def test_a_network_that_gives_something_else_is_one_line(tmp_path: Path) -> None:
    torch.save(vit().state_dict(), tmp_path / "net.pth")
    encoder: Any = load_encoder(f"{tmp_path}/net.pth{VIT}")
    images = torch.randn(3, 3, 96, 96)
    assert encoder(images).shape == (3, 192)
    encoder.card = encoder.card.model_copy(update={"width": 100})
    with pytest.raises(EosinError, match=r"gave float32 \[3, 192\] for 3 images instead of floating-point \[3, 100\]"):
        encoder(images)
    for wrong in (torch.zeros(3, 100, 1), torch.zeros(2, 100), torch.zeros(3, 100, dtype=torch.long), [1]):
        with pytest.raises(EosinError, match="instead of"):
            check_features(wrong, 3, encoder.card)
