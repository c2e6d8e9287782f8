"""The public pathology encoders: every entry builds what it says, and loads from a file as its authors publish it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from eosin.core.config import Config
from eosin.core.errors import EosinError
from eosin.encoders import hub, load_encoder, loading, pathology
from eosin.encoders.backbone import create_backbone, embedding_width
from eosin.encoders.layers import real_arguments
from eosin.encoders.pathology import Entry, pathology_entries

ENTRIES = pathology_entries()
# Prefix tokens: the class token and the registers that the authors publish.
PREFIX = {"uni2-h": 9, "virchow2": 5, "h-optimus-0": 5, "h-optimus-1": 5, "openmidnight": 5, "kaiko-vitl14": 5}
PREFIX |= {"hibou-b": 5, "hibou-l": 5}
# Files in the names of transformers, or of DINOv2; all others are in timm's.
TRANSFORMERS = {"phikon", "phikon-v2", "midnight-12k", "hibou-b", "hibou-l"}
DINOV2 = {"openmidnight"}


@pytest.fixture(autouse=True)
def _said_once() -> None:
    pathology.say_licence.cache_clear()


@cache
def built(architecture: str, options: str) -> tuple[Any, Tensor, Tensor]:
    """A network of full size without weights, and its output; encoders of one kind share it."""
    network: Any = loading._empty(architecture, 224, {"num_classes": 0, **json.loads(options)}).eval()
    with torch.device("meta"), torch.no_grad():
        images = torch.empty(2, 3, 224, 224)
        tokens = network.forward_features(images)
        return network, network.forward_head(tokens), tokens


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_an_entry_builds_what_it_says(name: str) -> None:
    entry = ENTRIES[name]
    network, embedding, tokens = built(entry.architecture, json.dumps(entry.options, sort_keys=True))
    assert embedding.shape == (2, network.num_features)
    assert embedding_width(network, entry.feature) == entry.width
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert parameters == pytest.approx(entry.parameters, rel=0.01)
    if hasattr(network, "num_prefix_tokens"):
        assert network.num_prefix_tokens == PREFIX.get(name, 1)
        patch = network.patch_embed.patch_size[0]
        assert tokens.shape[1] == (entry.size // patch) ** 2 + network.num_prefix_tokens
        assert entry.feature != "pooled"
    else:
        assert entry.feature == "pooled"


def test_entries_state_their_source_and_licence() -> None:
    for name, entry in ENTRIES.items():
        assert entry.repository or entry.source.startswith("https://"), name
        assert "http" in entry.reference, name
        forbids = any(word in entry.licence.lower() for word in ("-nc-", "non-commercial", "research only"))
        assert entry.non_commercial == forbids, name


def small(entry: Entry, monkeypatch: pytest.MonkeyPatch, name: str) -> Entry:
    """The entry with a network of the same kind and a few thousand weights."""
    sizes: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    if "swin" in entry.architecture:
        sizes = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2)}
    elif "resnet" in entry.architecture:
        sizes = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}
    shrunk = entry.model_copy(update={"options": entry.options | sizes})
    monkeypatch.setattr(pathology, "pathology_entries", lambda: ENTRIES | {name: shrunk})
    return shrunk


def network_of(entry: Entry) -> Any:
    torch.manual_seed(5)
    network: Any = timm.create_model(
        entry.architecture,
        num_classes=0,
        **({} if "resnet" in entry.architecture else {"img_size": entry.size}),
        **real_arguments(entry.options),
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network.eval()


def to_transformers(state: dict[str, Tensor], entry: Entry) -> dict[str, Tensor]:
    """Write timm's tensors under the names of transformers, as the authors' files have them."""
    vit = "init_values" not in entry.options and "dinov2" not in entry.architecture
    out = {
        "embeddings.mask_token": torch.zeros(1, 48),
        "embeddings.cls_token": state["cls_token"],
        "embeddings.position_embeddings": state["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": state["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": state["patch_embed.proj.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    if "reg_token" in state:
        position = torch.full((1, 1, 48), 0.25)
        out["embeddings.register_tokens"] = state["reg_token"]
        out["embeddings.cls_token"] = state["cls_token"] - position
        out["embeddings.position_embeddings"] = torch.cat([position, state["pos_embed"]], dim=1)
    gated = "mlp_layer" in entry.options or "giant" in entry.architecture
    for block in (0, 1):
        old, new = f"blocks.{block}.", f"encoder.layer.{block}."
        for kind in ("weight", "bias"):
            parts = state[f"{old}attn.qkv.{kind}"].chunk(3)
            for part, tensor in zip(("query", "key", "value"), parts, strict=True):
                out[f"{new}attention.attention.{part}.{kind}"] = tensor.clone()
            out[f"{new}attention.output.dense.{kind}"] = state[f"{old}attn.proj.{kind}"]
            out[f"{new}{'layernorm_before' if vit else 'norm1'}.{kind}"] = state[f"{old}norm1.{kind}"]
            out[f"{new}{'layernorm_after' if vit else 'norm2'}.{kind}"] = state[f"{old}norm2.{kind}"]
            first, second = ("mlp.weights_in", "mlp.weights_out") if gated else ("mlp.fc1", "mlp.fc2")
            if vit:
                first, second = "intermediate.dense", "output.dense"
            out[f"{new}{first}.{kind}"] = state[f"{old}mlp.fc1.{kind}"]
            out[f"{new}{second}.{kind}"] = state[f"{old}mlp.fc2.{kind}"]
        if not vit:
            out[f"{new}layer_scale1.lambda1"] = state[f"{old}ls1.gamma"]
            out[f"{new}layer_scale2.lambda1"] = state[f"{old}ls2.gamma"]
    return out


def to_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    position = torch.full((1, 1, 48), 0.25)
    swapped = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for key, value in state.items()}
    swapped["register_tokens"] = swapped.pop("reg_token")
    swapped["cls_token"] = swapped["cls_token"] - position
    swapped["pos_embed"] = torch.cat([position, swapped["pos_embed"]], dim=1)
    return swapped | {"mask_token": torch.zeros(1, 48)}


def publish(entry: Entry, name: str, network: Any) -> Path:
    """Place the network's weights as the authors publish theirs."""
    state = dict(network.state_dict())
    if name in TRANSFORMERS:
        state = to_transformers(state, entry)
    elif name in DINOV2:
        state = to_dinov2(state)
    folder = hub.hub_folder(entry.repository) if entry.repository else hub.encoders_home()
    path = folder / entry.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def expected_embedding(network: Any, feature: str, images: Tensor) -> Tensor:
    if feature == "pooled":
        return network(images)
    tokens = network.forward_features(images)
    patches = tokens[:, network.num_prefix_tokens :]
    return tokens[:, 0] if feature == "cls" else torch.cat([tokens[:, 0], patches.sum(1) / patches.shape[1]], dim=1)


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_an_entry_loads_its_authors_file(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = small(ENTRIES[name], monkeypatch, name)
    network = network_of(entry)
    publish(entry, name, network)
    before = torch.random.get_rng_state()
    encoder = load_encoder(f"pathology:{name}")
    assert torch.equal(torch.random.get_rng_state(), before)
    images = torch.randn(2, 3, entry.size, entry.size)
    with torch.no_grad():
        embedding = encoder(images)
        torch.testing.assert_close(embedding, expected_embedding(network, entry.feature, images), rtol=1e-4, atol=1e-4)
        maps = encoder.spatial(images)
    assert embedding.shape == (2, encoder.width)
    assert not any(parameter.is_meta for parameter in [*encoder.parameters(), *encoder.buffers()])
    assert maps[-1].shape[:2] == (2, network.num_features)
    card = encoder.card
    assert (card.mean, card.std, card.interpolation) == (entry.mean, entry.std, entry.interpolation)
    assert (card.licence, card.gated, card.reference) == (entry.licence, entry.gated, entry.reference)
    assert card.feature == entry.feature
    assert load_encoder(card.spec).fingerprint() == encoder.fingerprint()


def test_the_feature_can_be_chosen_and_enters_the_fingerprint(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of(small(ENTRIES["midnight-12k"], monkeypatch, "midnight-12k"))
    publish(ENTRIES["midnight-12k"], "midnight-12k", network)
    both, cls = load_encoder("pathology:midnight-12k"), load_encoder("pathology:midnight-12k?feature=cls")
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(both(images)[:, :48], cls(images), rtol=1e-4, atol=1e-4)
    assert (both.width, cls.width) == (96, 48)
    assert both.fingerprint() != cls.fingerprint()
    cls.card = cls.card.model_copy(update={"feature": "pooled"})
    assert cls.fingerprint() == load_encoder("pathology:midnight-12k?feature=cls").fingerprint()
    with pytest.raises(EosinError, match=r"feature=clss: did you mean 'cls'\?"):
        load_encoder("pathology:midnight-12k?feature=clss")


def test_a_position_embedding_of_another_size_is_resampled_as_its_library_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = small(ENTRIES["midnight-12k"], monkeypatch, "midnight-12k")
    network = network_of(entry.model_copy(update={"size": 518}))
    publish(entry, "midnight-12k", network)
    encoder: Any = load_encoder("pathology:midnight-12k")
    grid = network.pos_embed[:, 1:].reshape(1, 37, 37, 48).permute(0, 3, 1, 2)
    plain = torch.nn.functional.interpolate(grid, size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(encoder.backbone.pos_embed[:, 1:], plain.flatten(2).transpose(1, 2))


def test_a_wrong_name_is_one_line(home: Path) -> None:
    for spec, part in (
        ("pathology:unl", "did you mean 'uni'?"),
        ("pathology:virchow3", "did you mean 'virchow'?"),
        ("lunit:dino_vit16", "did you mean 'dino_vits16'?"),
        ("pathology:uni?seed=1", "unknown option 'seed'"),
        ("pathology:UNI", "huggingface.co/MahmoodLab/UNI"),
    ):
        with pytest.raises(EosinError) as error:
            load_encoder(spec)
        assert part in str(error.value), spec
        assert "\n" not in str(error.value)


def test_an_entry_with_a_typo_names_the_field() -> None:
    assert issubclass(Entry, Config)
    with pytest.raises(EosinError, match="licens"):
        Entry.parse(ENTRIES["uni"].plain() | {"licens": "x"}, "pathology.yaml (x)")


class TestLunit:
    """The five released files: flat, as torch.save wrote them, in both its formats."""

    NAMES = ("bt_rn50", "mocov2_rn50", "swav_rn50", "dino_vits16", "dino_vits8")

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("name", ["swav_rn50", "dino_vits8"])
    def test_a_released_file_is_loaded(
        self, name: str, zipped: bool, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = ENTRIES[f"lunit-{name}"]
        torch.manual_seed(3)
        network: Any = timm.create_model(entry.architecture, num_classes=0).eval()
        torch.save(network.state_dict(), home / "encoders" / entry.file, _use_new_zipfile_serialization=zipped)
        said: list[str] = []
        monkeypatch.setattr(pathology, "note", said.append)
        encoder = load_encoder(f"lunit:{name}")
        assert len(said) == 1
        assert "Lunit Public License, non-commercial" in said[0]
        assert "Lunit" in encoder.card.licence
        assert encoder.card.mean == (0.70322989, 0.53606487, 0.66096631)
        assert encoder.card.std == (0.21716536, 0.26081574, 0.20723464)
        images = torch.rand(2, 3, 64, 64) if "rn50" in name else torch.rand(1, 3, 224, 224)
        with torch.no_grad():
            torch.testing.assert_close(encoder(images), network(images), rtol=1e-4, atol=1e-5)
        again = load_encoder(f"lunit:{Path(entry.file).stem}")
        assert again.card.spec == f"lunit:{name}"
        assert again.fingerprint() == encoder.fingerprint() == load_encoder(f"pathology:lunit-{name}").fingerprint()

    def test_the_keys_are_those_of_torchvision_and_of_a_plain_vision_transformer(self) -> None:
        from timm.models.vision_transformer import VisionTransformer
        from torchvision.models import resnet50

        with torch.device("meta"):
            trunk = {key: value.shape for key, value in resnet50().state_dict().items() if not key.startswith("fc.")}
            for name in self.NAMES:
                entry = ENTRIES[f"lunit-{name}"]
                own = create_backbone(entry.architecture, 224, num_classes=0, **entry.options).state_dict()
                patch = 8 if name.endswith("8") else 16
                vit = VisionTransformer(img_size=224, patch_size=patch, embed_dim=384, num_heads=6, num_classes=0)
                vit_shapes = {key: value.shape for key, value in vit.state_dict().items()}
                released = trunk if "rn50" in name else vit_shapes
                assert {key: value.shape for key, value in own.items()} == released
        assert len(trunk) == 318

    def test_without_a_network_the_place_is_named(self, home: Path) -> None:
        with pytest.raises(EosinError) as error:
            load_encoder("lunit:bt_rn50")
        message = str(error.value)
        assert "bt_rn50_ep200.torch cannot be downloaded (no route)" in message
        assert str(home / "encoders" / "bt_rn50_ep200.torch") in message
