"""Embedding: one pass, kept by content, with unreadable tiles and damaged files handled."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eosin.core.errors import EosinError
from eosin.data import Quarantine, open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate import embed, embedding_key, evaluate, probe_data
from eosin.tasks import open_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty noise images in two classes that differ in colour."""
    rng = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "tiles" / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 160, (24, 24, 3)) + np.array([90 * (number % 2), 0, 0])
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "tiles"


class Counted(torch.nn.Module):
    """An encoder that counts its forward passes and can be made to fail."""

    def __init__(self, spec: str = "color:stats", poison: int | None = None) -> None:
        super().__init__()
        self.inner = load_encoder(spec)
        self.card = self.inner.card
        self.images = 0
        self.poison = poison
        self.modes: list[bool] = []

    def fingerprint(self) -> str:
        return self.inner.fingerprint()

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner.normalize(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.modes.append(self.training)
        features = self.inner(images).clone()
        if self.poison is not None and self.images <= self.poison < self.images + len(images):
            features[self.poison - self.images, 0] = float("nan")
        self.images += len(images)
        return features


def test_features_are_the_encoders_own(folder):
    encoder = Counted()
    tiles = open_tiles(str(folder))
    got = embed(encoder, tiles, batch_size=16)
    pixels = torch.stack(
        [torch.from_numpy(np.asarray(Image.open(folder / name)).transpose(2, 0, 1).copy()) for name in tiles.names]
    )
    size = encoder.card.size
    assert got.features.dtype == np.float32
    assert got.names.tolist() == list(tiles.names)
    assert got.rows.tolist() == list(range(40))
    if size == 24:
        expected = encoder.inner(encoder.inner.normalize(pixels))
        np.testing.assert_allclose(got.features, expected.numpy(), atol=1e-5)
    # Mean colours survive any resizing of noise to within the noise of the mean.
    red = pixels[:, 0].float().mean(dim=(1, 2)).numpy()
    assert np.corrcoef(red, got.features[:, 0])[0, 1] > 0.99


def test_batch_size_and_mode_do_not_matter(folder):
    encoder = Counted("random:resnet18?size=32")
    encoder.train()
    tiles = open_tiles(str(folder))
    one, two = embed(encoder, tiles, batch_size=40), embed(encoder, tiles, batch_size=7)
    np.testing.assert_allclose(one.features, two.features, atol=1e-4)
    assert encoder.modes == [False] * 7
    assert encoder.training


def test_second_time_comes_from_the_cache(folder, tmp_path):
    encoder, tiles = Counted(), open_tiles(str(folder))
    first = embed(encoder, tiles, cache=tmp_path / "cache")
    second = embed(encoder, tiles, cache=tmp_path / "cache")
    assert (first.cached, second.cached) == (False, True)
    assert encoder.images == 40
    np.testing.assert_array_equal(first.features, second.features)
    assert second.names.tolist() == first.names.tolist()
    # The content counts, not the place.
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert embed(encoder, open_tiles(str(tmp_path / "elsewhere")), cache=tmp_path / "cache").cached


def test_key_changes_with_pixels_weights_size_and_precision(folder):
    tiles = open_tiles(str(folder))
    specs = ("color:stats", "random:resnet18?size=32", "random:resnet18?size=32&seed=1", "random:resnet18?size=64")
    keys = [embedding_key(load_encoder(spec), tiles) for spec in specs]
    keys.append(embedding_key(load_encoder("color:stats"), tiles, "bf16"))
    Image.new("RGB", (24, 24)).save(folder / "a" / "00.png")
    keys.append(embedding_key(load_encoder("color:stats"), open_tiles(str(folder))))
    assert len(set(keys)) == 6


class Darker:
    """Halves the pixels of the tiles in odd rows."""

    def __init__(self, key: str = "darker") -> None:
        self.key = self.name = key

    def __call__(self, images: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return torch.where(torch.from_numpy(rows % 2 == 1)[:, None, None, None], images // 2, images)


@pytest.mark.parametrize(("batch_size", "workers"), [(40, 0), (7, 2)])
def test_a_change_of_the_pixels_comes_before_the_encoder_and_knows_the_row(folder, batch_size, workers):
    encoder, tiles = Counted("color:stats?size=24"), open_tiles(str(folder))
    got = embed(encoder, tiles, change=Darker(), batch_size=batch_size, workers=workers)
    pixels = np.stack([np.asarray(Image.open(folder / name)).transpose(2, 0, 1) for name in tiles.names])
    pixels[1::2] //= 2
    expected = encoder.inner(encoder.inner.normalize(torch.from_numpy(pixels)))
    np.testing.assert_allclose(got.features, expected.numpy(), atol=1e-5)


def test_changed_pixels_have_a_cache_of_their_own(folder, tmp_path):
    encoder, tiles = Counted(), open_tiles(str(folder))
    plain = embed(encoder, tiles, cache=tmp_path / "cache")
    dark = embed(encoder, tiles, change=Darker(), cache=tmp_path / "cache")
    assert not dark.cached
    assert not np.array_equal(plain.features, dark.features)
    again = embed(encoder, tiles, change=Darker(), cache=tmp_path / "cache")
    assert again.cached
    np.testing.assert_array_equal(dark.features, again.features)
    assert not embed(encoder, tiles, change=Darker("other"), cache=tmp_path / "cache").cached
    assert embed(encoder, tiles, cache=tmp_path / "cache").cached
    assert embedding_key(encoder, tiles) == plain.key


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_a_damaged_cache_file_is_computed_again(folder, tmp_path, damage, capsys):
    encoder, tiles = Counted(), open_tiles(str(folder))
    first = embed(encoder, tiles, cache=tmp_path / "cache")
    path = tmp_path / "cache" / f"{first.key}.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "bit":
        data[-5] ^= 4
    path.write_bytes({"cut": data[:-100], "bit": data, "empty": b"", "text": b"no tensors here at all"}[damage])
    again = embed(encoder, tiles, cache=tmp_path / "cache")
    assert not again.cached
    np.testing.assert_array_equal(first.features, again.features)
    assert "damaged" in capsys.readouterr().err
    assert embed(encoder, tiles, cache=tmp_path / "cache").cached


def test_features_that_are_not_finite_name_the_encoder_and_the_tile(folder, tmp_path):
    tiles = open_tiles(str(folder))
    with pytest.raises(EosinError, match="color:stats: features of tile 'b/01.png' are not finite"):
        embed(Counted(poison=20), tiles, batch_size=16, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_unreadable_tiles_leave_the_task_and_are_counted(folder, tmp_path):
    (folder / "a" / "00.png").write_bytes(b"broken")
    task = open_task(str(folder))
    for expected in (False, True):
        quarantine = Quarantine(None, limit=0.1)
        got = embed(Counted(), task.tiles, cache=tmp_path / "cache", quarantine=quarantine)
        assert got.cached is expected
        assert quarantine.names == ["a/00.png"]
        assert len(got.features) == 39
        assert "a/00.png" not in got.names
        data = probe_data(task, got)
        assert data.dropped == 1
        assert len(data.train) + len(data.val) + len(data.test) == 39
        # The labels still belong to the images.
        for row in np.concatenate([data.train, data.val, data.test]):
            assert data.names[row].startswith(data.classes[data.labels[row]])
    assert evaluate(data, "knn", resamples=10).dropped == 1
    with pytest.raises(EosinError, match="unreadable"):
        embed(Counted(), task.tiles, cache=tmp_path / "cache", quarantine=Quarantine(None, limit=0.01))


def test_no_readable_tile(tmp_path):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(EosinError):
        embed(Counted(), open_tiles(str(tmp_path)), quarantine=Quarantine(None, limit=1.0))


def test_a_split_without_a_readable_image_is_refused(folder):
    task = open_task(str(folder))
    for row in task.test:
        (folder / task.tiles.names[row]).write_bytes(b"broken")
    got = embed(Counted(), task.tiles, quarantine=Quarantine(None, limit=0.5))
    with pytest.raises(EosinError, match="no image of the test split could be read"):
        probe_data(task, got)


def test_embeddings_of_other_tiles_are_refused(folder):
    task = open_task(str(folder))
    got = embed(Counted(), task.tiles.select(np.arange(10)))
    with pytest.raises(EosinError, match="embeddings of 10 tiles for a task of 40"):
        probe_data(task, got)


def test_bf16_is_near_fp32(folder):
    encoder, tiles = load_encoder("random:resnet18?size=32"), open_tiles(str(folder)).select(np.arange(8))
    full, half = embed(encoder, tiles), embed(encoder, tiles, precision="bf16")
    assert half.features.dtype == np.float32
    assert not np.array_equal(full.features, half.features)
    assert np.abs(full.features - half.features).max() < 0.1 * np.abs(full.features).max()


def test_color_alone_on_oral_tissue_scores_as_measured_before(real_data, tmp_path):
    task = open_task(f"csv:{real_data / 'oral' / 'index.csv'}?label=label4")
    data = probe_data(task, embed(load_encoder("color:stats?size=64"), task.tiles, batch_size=128))
    metrics = evaluate(data, "logistic", resamples=200).metrics
    # A plain script gave accuracy 0.649 and balanced accuracy 0.462 with C = 0.1 on the same split.
    assert metrics["accuracy"]["value"] == pytest.approx(0.649, abs=0.04)
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(0.462, abs=0.06)
