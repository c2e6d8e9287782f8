"""Exported encoders: read back by the libraries they are for, with the same embeddings and the right pixels."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file

from eosin.core.errors import EosinError
from eosin.encoders import build_encoder, export, load_encoder
from eosin.encoders.export import TORCHVISION, check_output, export_encoder

STATISTICS = {"mean": (0.7, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
ALIEN = """
import sys
sys.modules["eosin"] = None  # any import of it fails
import timm, torch
from timm.data import create_transform, resolve_model_data_config
results = {}
for name in sys.argv[1:]:
    network = timm.create_model(f"local-dir:{name}", pretrained=True).eval()
    data = resolve_model_data_config(network)
    transform = [repr(step) for step in create_transform(**data, is_training=False).transforms]
    with torch.no_grad():
        results[name] = network(torch.load(f"{name}.pt")), data, transform
torch.save(results, "results.pt")
"""


def make(architecture, size, seed=5):
    torch.manual_seed(seed)
    encoder = build_encoder(architecture, size=size, mpp=0.5, **STATISTICS)
    with torch.no_grad():
        encoder(torch.randn(4, 3, size, size))  # running statistics that are not the initial ones
    return encoder.eval()


def images_of(encoder, count=4):
    return torch.randn(count, 3, encoder.card.size, encoder.card.size)


def relative(found, expected):
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def refused(*arguments):
    with pytest.raises(EosinError) as error:
        export_encoder(*arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a process that cannot import eosin makes of timm directories: embeddings, pixels, transform."""
    folder = tmp_path_factory.mktemp("elsewhere")
    encoders = {}
    for architecture, size in (("test_resnet", 40), ("test_vit", 32), ("vit_small_patch16_224", 48)):
        encoder = encoders[architecture] = make(architecture, size)
        export_encoder(encoder, folder / architecture, "timm")
        torch.save(images_of(encoder), folder / f"{architecture}.pt")
    subprocess.run([sys.executable, "-c", ALIEN, *encoders], check=True, cwd=folder)
    results = torch.load(folder / "results.pt", weights_only=False)
    return {name: (folder / name, encoder, *results[name]) for name, encoder in encoders.items()}


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit", "vit_small_patch16_224"])
def test_timm_loads_the_directory_without_eosin(architecture, elsewhere):
    folder, encoder, found, data, transform = elsewhere[architecture]
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    with torch.no_grad():
        assert relative(found, encoder(torch.load(f"{folder}.pt"))) <= 1e-5
    size = encoder.card.size
    assert tuple(data["mean"]) == STATISTICS["mean"]
    assert tuple(data["std"]) == STATISTICS["std"]
    assert tuple(data["input_size"]) == (3, size, size)
    assert data["interpolation"] == "bilinear"
    assert data["crop_pct"] == 1.0
    assert transform[0].startswith(f"Resize(size={size}, interpolation=bilinear")
    assert transform[1] == f"CenterCrop(size=[{size}, {size}])"
    assert transform[-1] == "Normalize(mean=tensor([0.7000, 0.5000, 0.6000]), std=tensor([0.2000, 0.2500, 0.3000]))"


def test_timm_adapts_the_network_to_classes_and_sizes(tmp_path):
    for architecture in ("resnet18", "test_vit"):
        encoder = make(architecture, 32)
        out = tmp_path / architecture
        export_encoder(encoder, out, "timm")
        network = timm.create_model(f"local-dir:{out}", pretrained=True, num_classes=4).eval()
        images = images_of(encoder)
        assert network(images).shape == (4, 4)
        torch.testing.assert_close(
            network.forward_head(network.forward_features(images), pre_logits=True), encoder(images)
        )
    larger = timm.create_model(f"local-dir:{tmp_path / 'test_vit'}", pretrained=True).eval()
    assert larger(torch.randn(2, 3, 64, 64)).shape == (2, encoder.width)


def test_timms_network_of_one_size_is_built_for_it(tmp_path):
    encoder = make("resmlp_12_224", 32)
    export_encoder(encoder, tmp_path / "mlp", "timm")
    config = json.loads((tmp_path / "mlp" / "config.json").read_text())
    assert config["model_args"] == {"img_size": 32}
    assert config["pretrained_cfg"]["fixed_input_size"] is True


def test_the_weights_in_timms_directory_are_an_eosin_file_too(tmp_path):
    encoder = make("test_vit", 32)
    export_encoder(encoder, tmp_path / "exported", "timm")
    loaded = load_encoder(str(tmp_path / "exported" / "model.safetensors"))
    assert loaded.fingerprint() == encoder.fingerprint()
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["eosin_card"]["mpp"] == 0.5


def test_safetensors_is_the_file_that_eosin_loads(tmp_path):
    encoder = make("test_resnet", 40)
    export_encoder(encoder, tmp_path / "deep" / "mine.safetensors", "safetensors")
    loaded = load_encoder(str(tmp_path / "deep" / "mine.safetensors"))
    assert loaded.fingerprint() == encoder.fingerprint()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize(("architecture", "suffix"), [("resnet18", ".pth"), ("resnet50", ".safetensors")])
def test_torchvision_loads_all_but_the_classifier(architecture, suffix, tmp_path):
    from torchvision.models import get_model

    encoder = make(architecture, 64)
    path = tmp_path / f"trunk{suffix}"
    export_encoder(encoder, path, "torchvision")
    network = get_model(architecture, weights=None)
    state = torch.load(path, weights_only=True) if suffix == ".pth" else load_file(path)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    network.fc = torch.nn.Identity()
    images = images_of(encoder)
    assert relative(network.eval()(images), encoder(images)) <= 1e-5


@pytest.mark.parametrize("architecture", TORCHVISION)
def test_torchvisions_networks_have_timms_names(architecture):
    from torchvision.models import get_model

    def shapes(network):
        return {name: tensor.shape for name, tensor in network.state_dict().items() if not name.startswith("fc.")}

    with torch.device("meta"):
        theirs, timms = get_model(architecture, weights=None), timm.create_model(architecture)
    assert shapes(theirs) == shapes(timms)


@pytest.mark.parametrize(("architecture", "size"), [("test_resnet", 40), ("test_vit", 32)])
def test_onnx_runs_with_any_number_of_images(architecture, size, tmp_path):
    import onnx
    import onnxruntime

    encoder = make(architecture, size)
    path = tmp_path / "encoder.onnx"
    export_encoder(encoder, path, "onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [export.ONNX_OPSET]
    said = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(said["mean"]) == list(STATISTICS["mean"])
    assert json.loads(said["std"]) == list(STATISTICS["std"])
    assert (said["size"], said["mpp"], said["architecture"]) == (str(size), "0.5", architecture)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["images"]
    for count in (1, 5):
        images = images_of(encoder, count)
        found = session.run(["embedding"], {"images": images.numpy()})[0]
        assert relative(torch.from_numpy(found), encoder(images).detach()) <= 1e-5
    assert [entry.name for entry in tmp_path.iterdir()] == ["encoder.onnx"]


def test_onnx_without_its_packages_says_how_to_get_them(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    message = refused(make("test_resnet", 40), tmp_path / "encoder.onnx", "onnx")
    assert message == "format onnx needs onnxruntime: pip install 'eosin[onnx]'"


def test_a_network_that_cannot_become_onnx_is_one_line(tmp_path, monkeypatch):
    encoder = make("test_resnet", 40)

    def fail(*_, **__):
        raise RuntimeError("no decomposition\nfor that")

    monkeypatch.setattr(torch.onnx, "export", fail)
    assert "(no decomposition); use --format timm" in refused(encoder, tmp_path / "encoder.onnx", "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "name"),
    [("safetensors", "a.safetensors"), ("timm", "a"), ("torchvision", "a.pth"), ("onnx", "a.onnx")],
)
def test_what_does_not_compute_the_same_is_not_kept(format, name, tmp_path, monkeypatch):
    encoder = make("resnet18", 32)
    monkeypatch.setattr(export, "_TOLERANCE", -1.0)
    message = refused(encoder, tmp_path / name, format)
    assert f"{name}: the {format} file does not give the encoder's own embeddings (largest relative" in message
    assert not list(tmp_path.iterdir())


def test_what_a_killed_export_left_is_removed_by_the_next(tmp_path):
    encoder = make("test_resnet", 40)
    left = [tmp_path / "..a.safetensors.export.x1y2.part", tmp_path / ".a.safetensors.export", tmp_path / ".b.z3.part"]
    for folder in left:
        folder.mkdir()
    for folder in (left[0], left[2]):
        (folder / "half").write_text("half")
    export_encoder(encoder, tmp_path / "a.safetensors", "safetensors")
    export_encoder(encoder, tmp_path / "b", "timm")
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b"}


@pytest.mark.parametrize(("format", "name"), [("safetensors", "a.safetensors"), ("timm", "a")])
def test_an_option_that_changes_the_network_travels(tmp_path, format, name):
    """A pooling that timm's name does not tell."""
    options = {"global_pool": "avg", "fc_norm": False}
    encoder = build_encoder("test_vit", size=32, options=options, **STATISTICS)
    export_encoder(encoder, tmp_path / name, format)  # compares what is read back
    if format == "safetensors":
        assert load_encoder(str(tmp_path / name)).card.options == options


def test_a_file_that_computes_something_else_is_not_kept(tmp_path):
    encoder = build_encoder("test_vit", size=32, options={"global_pool": "avg", "fc_norm": False}, **STATISTICS)
    encoder.card = encoder.card.model_copy(update={"options": {}})
    assert "does not give the encoder's own embeddings" in refused(encoder, tmp_path / "a", "timm")
    assert not list(tmp_path.iterdir())


def test_outputs_and_networks_that_do_not_fit(tmp_path):
    encoder = make("test_resnet", 40)
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    assert "exists already" in refused(encoder, tmp_path / "there", "timm")
    assert "ends in .safetensors" in refused(encoder, tmp_path / "encoder.pt", "safetensors")
    assert "ends in .pth or .safetensors" in refused(encoder, tmp_path / "encoder", "torchvision")
    assert "ends in .onnx" in refused(encoder, tmp_path / "encoder", "onnx")
    assert "file: is a file" in refused(encoder, tmp_path / "file" / "a", "timm")
    message = refused(encoder, tmp_path / "encoder.pth", "torchvision")
    assert message.startswith("test_resnet: torchvision has no such network")
    assert "resnet152" in message
    assert "no weights to export" in refused(load_encoder("color:stats"), tmp_path / "color", "timm")
    assert "the network fails on images of 7 px (" in refused(
        load_encoder("random:test_convnext?size=7"), tmp_path / "small", "timm"
    )
    with pytest.raises(EosinError, match="format 'coreml': valid: safetensors, timm, torchvision, onnx"):
        check_output(tmp_path / "a", "coreml")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "file"}


def test_the_callers_random_state_stays(tmp_path):
    encoder = make("test_resnet", 32)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    for name, format in (("a", "timm"), ("b.safetensors", "safetensors")):
        export_encoder(encoder, tmp_path / name, format)
    assert torch.equal(torch.rand(1), expected)
