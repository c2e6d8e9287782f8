"""The pass itself: the batch size that is found, memory that runs out, outputs that change their width."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import eosin.evaluate.embed_pass as embed_pass
import eosin.evaluate.embed_shards as embed_shards
from eosin.core.errors import EosinError
from eosin.data import open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate import embed
from eosin.evaluate.embed import make_pass
from eosin.evaluate.embed_pass import choose_batch


@pytest.fixture
def tiles(tmp_path):
    """Twenty noise images."""
    rng = np.random.default_rng(0)
    for number in range(20):
        (tmp_path / "tiles").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(
            tmp_path / "tiles" / f"{number:02d}.png"
        )
    return open_tiles(str(tmp_path / "tiles"))


class Limited(torch.nn.Module):
    """Color statistics that run out of memory above so many tiles, and have another width from some tile on."""

    def __init__(self, most=1000, narrow_from=None, error=torch.OutOfMemoryError):
        super().__init__()
        self.inner = load_encoder("color:stats?size=16")
        self.card = self.inner.card
        self.most = most
        self.narrow_from = narrow_from
        self.error = error
        self.batches = []

    def fingerprint(self):
        return self.inner.fingerprint()

    def normalize(self, images):
        return self.inner.normalize(images)

    def forward(self, images):
        if len(images) > self.most:
            raise self.error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        first = sum(self.batches)
        self.batches.append(len(images))
        features = self.inner(images)
        return features[:, :4] if self.narrow_from is not None and first >= self.narrow_from else features


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_that_was_found_shrinks_where_memory_runs_out(tiles, capsys, error):
    encoder = Limited(most=3, error=error)
    got = embed(encoder, tiles)
    # 64 are found, 20 are there: 20, 10 and 5 do not fit, 2 do, and no larger one is tried again.
    assert encoder.batches == [2] * 10
    np.testing.assert_allclose(got.features, embed(Limited(), tiles).features, atol=1e-6)
    told = capsys.readouterr().err
    assert told.count("do not fit into the memory of cpu") == 3
    with pytest.raises(EosinError, match="1 tile does not fit into the memory of cpu; use a device with more"):
        embed(Limited(most=0), tiles)
    with pytest.raises(EosinError, match="8 tiles do not fit .*give a smaller batch size"):
        embed(Limited(most=3), tiles, batch_size=8)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("size mismatch\nat a long trace"), "size mismatch"),
        (AssertionError(), "AssertionError"),
        (ValueError("too few values"), "too few values"),
        (TypeError("no tensor"), "no tensor"),
    ],
)
def test_a_network_that_fails_is_one_line_with_its_first(tiles, error, told):
    class Wrong(Limited):
        def forward(self, images):
            raise error

    with pytest.raises(EosinError) as caught:
        embed(Wrong(), tiles)
    assert str(caught.value) == (
        f"color:stats?size=16: the network fails on images of 16 px ({told}); give it another size, or use another "
        "encoder"
    )
    assert caught.value.__cause__ is error


def test_what_a_change_of_the_pixels_raises_is_not_the_networks(tiles):
    class Change:
        key = name = "change"

        def __call__(self, images, rows):
            raise RuntimeError("a fault of ours")

    with pytest.raises(RuntimeError, match="a fault of ours"):
        embed(Limited(), tiles, change=Change())


@pytest.mark.parametrize("part", [8, 1024])
def test_a_width_that_changes_is_told_with_the_tile(tiles, monkeypatch, part):
    monkeypatch.setattr(embed_shards, "PART_TILES", part)
    with pytest.raises(EosinError, match=r"color:stats\?size=16: features changed width from 6 to 4 at tile '08.png'"):
        embed(Limited(narrow_from=8), tiles, batch_size=4)


@pytest.mark.parametrize(("size", "batch"), [(32, 64), (224, 64), (225, 32), (448, 16), (1024, 2), (4096, 1)])
def test_the_batch_of_a_cpu_follows_the_pixels(tiles, size, batch):
    encoder = load_encoder(f"color:stats?size={size}")
    work = make_pass(encoder, tiles, batch_size=None, workers=0, precision="fp32")
    assert choose_batch(encoder, work, torch.device("cpu")) == batch


@pytest.mark.parametrize(("free", "batch"), [(10_000, 512), (1_000, 64), (20, 1)])
def test_the_batch_of_a_gpu_follows_a_trial(tiles, monkeypatch, free, batch):
    # Pretended: 100 bytes of workspace, and 10 a tile.
    tried = []
    monkeypatch.setattr(embed_pass, "_outputs", lambda encoder, work, images, rows, device: tried.append(len(images)))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 107 + 10 * tried[-1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 99_999))
    encoder = load_encoder("color:stats?size=16")
    work = make_pass(encoder, tiles, batch_size=None, workers=0, precision="fp32")
    assert choose_batch(encoder, work, torch.device("cuda")) == batch


def test_parts_that_follow_are_made_with_the_batch_of_the_first(tiles, tmp_path, monkeypatch):
    monkeypatch.setattr(embed_shards, "PART_TILES", 8)
    embed(Limited(), tiles, cache=tmp_path / "cache", batch_size=3, shard=(0, 3))
    encoder = Limited()
    embed(encoder, tiles, cache=tmp_path / "cache")
    assert encoder.batches == [3, 3, 2, 3, 1]


def test_what_happens_between_parts_is_outside_inference_mode(tiles, monkeypatch):
    monkeypatch.setattr(embed_shards, "PART_TILES", 8)
    encoder = Limited()
    work = make_pass(encoder, tiles, batch_size=4, workers=0, precision="fp32")
    parts = embed_pass.compute_parts(encoder, work, embed_shards.Layout.of(20), torch.device("cpu"), [0, 1, 2])
    for _ in parts:
        assert not torch.is_inference_mode_enabled()
        assert torch.backends.cudnn.allow_tf32
