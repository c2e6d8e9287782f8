"""Repositories of the Hugging Face Hub in timm's format, and what the Hub may answer."""

from __future__ import annotations

import io
import json
import ssl
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file
from timm.models import save_for_hf

from eosin.core.errors import EosinError
from eosin.encoders import hub, load_encoder

README = "---\nlicense: cc-by-nc-nd-4.0\ntags:\n- timm\n---\n# A model\n"


def publish(folder: Path, *, safe: bool = True, **config: Any) -> Any:
    torch.manual_seed(2)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=5).eval()
    folder.mkdir(parents=True, exist_ok=True)
    save_for_hf(network, folder, safe_serialization="both")
    (folder / ("pytorch_model.bin" if safe else "model.safetensors")).unlink()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    (folder / "README.md").write_text(README)
    return network


def one_line(spec: str) -> str:
    with pytest.raises(EosinError) as error:
        load_encoder(spec)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("safe", [True, False])
def test_what_timm_writes_is_loaded(safe: bool, home: Path) -> None:
    network = publish(hub.hub_folder("owner/net"), safe=safe)
    encoder = load_encoder("hf-hub:owner/net")
    network.reset_classifier(0)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(encoder(images), network(images), rtol=1e-4, atol=1e-5)
    assert encoder.card.mean == (0.5, 0.5, 0.5)
    assert encoder.card.licence == "cc-by-nc-nd-4.0"
    assert encoder.card.reference == "https://huggingface.co/owner/net"
    assert encoder.card.size == 224


def test_a_revision_is_another_place(home: Path) -> None:
    publish(hub.hub_folder("owner/net", "v1.0"))
    assert load_encoder("hf-hub:owner/net@v1.0").card.spec == "hf-hub:owner/net@v1.0"
    assert "place it at" in one_line("hf-hub:owner/net")


def test_the_hugging_face_cache_is_second(home: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--owner--net"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    publish(cache / "snapshots" / "abc")
    assert load_encoder("hf-hub:owner/net").card.licence == "cc-by-nc-nd-4.0"


def test_tokens_need_a_feature(home: Path) -> None:
    folder = hub.hub_folder("owner/net")
    network = publish(folder, global_pool="", model_args={"img_size": 224})
    assert "add ?feature=cls" in one_line("hf-hub:owner/net")
    encoder = load_encoder("hf-hub:owner/net?feature=cls+mean_patch")
    images = torch.randn(2, 3, 224, 224)
    tokens = network.forward_features(images)
    expected = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)


def test_licences_of_other_kinds(home: Path) -> None:
    folder = hub.hub_folder("owner/net")
    publish(folder)
    config = json.loads((folder / "config.json").read_text())
    for front, expected in (
        ("---\nlicense: other\nlicense_name: lab-1\n---\n", "other (lab-1)"),
        ("---\ntags: [x]\n---\n", "unstated by its repository"),
        ("---\n: [\n---\n", "unstated by its repository"),
        ("no front matter", "unstated by its repository"),
        ("no front matter either", "mit (by its config.json)"),
    ):
        configured = "mit" if expected.startswith("mit") else None
        config["pretrained_cfg"]["license"] = configured
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "README.md").write_text(front)
        assert load_encoder("hf-hub:owner/net").card.licence == expected


def test_other_formats_and_damage_are_one_line(home: Path) -> None:
    folder = hub.hub_folder("owner/net")
    publish(folder)
    config = folder / "config.json"
    config.write_text('{"model_type": "dinov2"}')
    assert "is a transformers model (dinov2)" in one_line("hf-hub:owner/net")
    config.write_text('{"architecture": "resnet18"}')
    assert "missing tensors" in one_line("hf-hub:owner/net")
    config.write_text('{"architecture": "vit_tiny_patch16_224", "model_args": {"nothing": 1}}')
    assert "refuses its model_args" in one_line("hf-hub:owner/net")
    config.write_text("{")
    assert "damaged" in one_line("hf-hub:owner/net")
    for spec in ("hf-hub:net", "hf-hub:a/b/c", "hf-hub:/net"):
        assert "name a repository" in one_line(spec)


def test_a_configuration_cannot_make_timm_read_other_weights(home: Path, tmp_path: Path) -> None:
    # Some versions of timm unpickle what `checkpoint_path` names.
    evil = {"pretrained": True, "checkpoint_path": str(tmp_path / "evil.pth"), "pretrained_cfg": {"url": "x"}}
    publish(hub.hub_folder("owner/net"), model_args=evil)
    assert load_encoder("hf-hub:owner/net").card.options == {"global_pool": "token"}


def test_a_known_repository_points_to_its_entry(home: Path) -> None:
    folder = hub.hub_folder("owkin/phikon-v2")
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "dinov2"}')
    assert "use pathology:phikon-v2" in one_line("hf-hub:owkin/phikon-v2")
    folder = hub.hub_folder("MahmoodLab/UNI")
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    save_file({"cls_token": torch.zeros(1)}, folder / "model.safetensors")
    assert "pathology:uni knows what its configuration leaves out" in one_line("hf-hub:MahmoodLab/UNI")


def answer(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    # The constructor differs between versions of the client; the class is what is caught.
    problem = error.__new__(error)
    problem.args = ("401\nlong text",)

    def fail(repository: str, name: str, **_: Any) -> str:
        raise problem

    monkeypatch.setattr(hub, "_reachable", lambda endpoint: True)
    monkeypatch.setattr(hub, "hf_hub_download", fail)


@pytest.mark.parametrize("spec", ["hf-hub:MahmoodLab/UNI", "pathology:uni"])
def test_a_gated_repository_says_what_to_do(spec: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(GatedRepoError, monkeypatch)
    message = one_line(spec)
    assert "accept it at https://huggingface.co/MahmoodLab/UNI" in message
    assert "`hf auth login`" in message


def test_an_unknown_repository_and_file_are_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(RepositoryNotFoundError, monkeypatch)
    assert "no repository owner/net that you may see" in one_line("hf-hub:owner/net")
    answer(RemoteEntryNotFoundError, monkeypatch)
    assert "has no config.json" in one_line("hf-hub:owner/net")


class Response(io.BytesIO):
    def __init__(self, content: bytes, length: int) -> None:
        super().__init__(content)
        self.headers = {"Content-Length": str(length)}


def test_an_address_is_downloaded_whole_or_not_at_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    torch.manual_seed(2)
    network = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    torch.save(network.state_dict(), buffer)
    content, asked = buffer.getvalue(), []

    def cut(address: str) -> Response:
        return Response(content[:1000], len(content))

    def whole(address: str) -> Response:
        asked.append(address)
        return Response(content, len(content))

    monkeypatch.setattr(hub, "_open", cut)
    assert "gave 1,000 of" in one_line("lunit:dino_vits16")
    assert not list((home / "encoders").iterdir())
    monkeypatch.setattr(hub, "_open", whole)
    first = load_encoder("lunit:dino_vits16")
    assert load_encoder("lunit:dino_vits16").fingerprint() == first.fingerprint()
    name = "dino_vit_small_patch16_ep200.torch"
    assert asked == [f"https://github.com/lunit-io/benchmark-ssl-pathology/releases/download/pretrained-weights/{name}"]
    assert (home / "encoders" / name).read_bytes() == content


@pytest.mark.parametrize("error", [ssl.SSLError(1, "bad record"), OSError(113, "No route to host")])
def test_an_error_of_the_network_is_not_taken_for_the_disks(
    error: OSError, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Response):
        def read(self, *_: Any) -> bytes:
            raise error

    monkeypatch.setattr(hub, "_open", lambda address: Broken(b"", 10))
    message = one_line("lunit:dino_vits16")
    assert f"broke off ({error})" in message
    assert "place it at" in message
    assert not list((home / "encoders").iterdir())


def test_an_address_never_leaves_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Response(b"", 0)
    answer.url = "http://elsewhere/weights.pth"  # type: ignore[attr-defined]
    monkeypatch.setattr(hub.urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(OSError, match="leads from https to http://elsewhere"):
        hub._open("https://github.com/weights.pth")
    assert answer.closed


def test_hf_hub_offline_stops_every_download(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_open", lambda address: pytest.fail("asked the network"))
    assert "HF_HUB_OFFLINE is set" in one_line("lunit:dino_vits16")
    assert "HF_HUB_OFFLINE is set" in one_line("pathology:uni")
