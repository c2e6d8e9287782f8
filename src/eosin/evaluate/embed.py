"""One pass of an encoder over the tiles, kept by content: the same weights, pixels and transform run once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from eosin.core.console import progress_bar, warn
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, short_hash, writable_directory
from eosin.data import Quarantine, Tiles, iterate_tiles

if TYPE_CHECKING:
    from eosin.encoders import Encoder

__all__ = ["Embeddings", "PixelChange", "embed", "embedding_key"]

Precision = Literal["fp32", "bf16"]

# Raised when the pixels that reach an encoder would differ: the resizing rule of `data` or this module's own steps.
_TRANSFORM = "short side to size, antialiased, by the card's filter; center crop; 1"


class PixelChange(Protocol):
    """Something done to the pixels before an encoder sees them."""

    @property
    def key(self) -> str:
        """Identity of what it does, for the cache's key."""

    @property
    def name(self) -> str:
        """What to show beside the progress."""

    def __call__(self, images: torch.Tensor, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        """Change images: uint8 [B, 3, size, size] RGB and their rows in the tiles, int64 [B], to uint8 of that shape.

        What an image becomes must depend on its pixels and its row alone.
        """


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Features of the tiles that could be read.

    Attributes:
        features: float32 [n, D].
        rows: int64 [n], the row of each in the source, ascending.
        names: str [n], the tiles' names.
        total: Number of tiles in the source; `total - n` were unreadable.
        key: Identity of (encoder, tiles, transform, change of the pixels).
        cached: Whether they came from the cache.
    """

    features: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]
    names: npt.NDArray[np.str_]
    total: int
    key: str
    cached: bool = False


def embedding_key(
    encoder: Encoder, tiles: Tiles, precision: Precision = "fp32", change: PixelChange | None = None
) -> str:
    """Return 16 hexadecimal digits over the encoder's weights and card, the tiles, the transform and the change."""
    changed = () if change is None else (change.key,)
    return short_hash(encoder.fingerprint(), tiles.content_hash(), encoder.card.size, _TRANSFORM, precision, *changed)


def embed(
    encoder: Encoder,
    tiles: Tiles,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device | None = None,
    precision: Precision = "fp32",
    change: PixelChange | None = None,
    cache: Path | None = None,
    quarantine: Quarantine | None = None,
) -> Embeddings:
    """Compute the features of all tiles, or take them from the cache.

    Each tile is resized to the encoder's size, changed where `change` is given, normalized by the encoder's mean and
    std, and encoded in evaluation mode without augmentation. Unreadable tiles are left out and quarantined.

    Args:
        encoder: Any encoder; it is left on `device`, in the mode it was in.
        tiles: N tiles.
        batch_size: Tiles per forward pass.
        workers: Processes that decode.
        device: Where to run; CUDA where there is one, else the CPU, by default.
        precision: "bf16" runs the encoder under autocast; the features are float32 either way.
        change: What to do to the pixels first, on `device`.
        cache: Folder for ``<key>.safetensors``; None to keep nothing. A damaged file is computed anew.
        quarantine: Where unreadable tiles are listed; by default in memory, with its usual limit.

    Raises:
        EosinError: If a feature is not finite (the message names the encoder and the first tile), no tile can be read,
            or more of them are unreadable than the quarantine allows.
    """
    if batch_size < 1:
        raise EosinError(f"batch_size {batch_size}: must be at least 1")
    key = embedding_key(encoder, tiles, precision, change)
    names = np.asarray(tiles.names).astype(str)
    quarantine = Quarantine(None) if quarantine is None else quarantine
    path = None if cache is None else Path(cache) / f"{key}.safetensors"
    stored = None if path is None else _load(path, key, len(tiles))
    if stored is None:
        features, rows = _compute(encoder, tiles, names, batch_size, workers, device, precision, change, quarantine)
        if path is not None:
            left_out = np.setdiff1d(np.arange(len(tiles)), rows)
            reasons = {str(row): quarantine.reason(names[row]) for row in left_out.tolist()}
            _save(path, key, features, rows, len(tiles), reasons)
    else:
        features, rows, reasons = stored
        for row, reason in reasons.items():
            quarantine.add(str(names[int(row)]), reason)
        quarantine.check(len(tiles))
    return Embeddings(features, rows, names[rows], len(tiles), key, cached=stored is not None)


def _compute(
    encoder: Encoder,
    tiles: Tiles,
    names: npt.NDArray[np.str_],
    batch_size: int,
    workers: int,
    device: str | torch.device | None,
    precision: Precision,
    change: PixelChange | None,
    quarantine: Quarantine,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    encoder.to(place)
    batches = iterate_tiles(
        tiles,
        size=encoder.card.size,
        batch_size=batch_size,
        workers=workers,
        quarantine=quarantine,
        interpolation=encoder.card.interpolation,
    )
    parts, indices = [], []
    with _evaluation_mode(encoder), _exact_convolutions(), torch.inference_mode(), progress_bar() as progress:
        changed = "" if change is None else f", {change.name}"
        bar = progress.add_task(f"embedding with {encoder.card.spec}{changed}", total=len(tiles))
        for images, rows in batches:
            images = images.to(place, non_blocking=True)
            if change is not None:
                images = change(images, rows)
            # Convolutions run faster with the channels last (ResNet-18 on one core: 91 against 75 images/s).
            pixels = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bf16"):
                features = encoder(encoder.normalize(pixels))
            values = features.float().cpu().numpy()
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                first = names[rows[int(finite.argmin())]]
                raise EosinError(
                    f"{encoder.card.spec}: features of tile '{first}' are not finite; the weights are damaged or"
                    " diverged, so use an earlier checkpoint (or precision fp32)"
                )
            parts.append(values)
            indices.append(rows)
            progress.update(bar, completed=int(rows[-1]) + 1)
        progress.update(bar, completed=len(tiles))
    if not parts:
        raise EosinError(f"{tiles.spec}: no tile could be read; {quarantine.summary()}")
    return np.concatenate(parts), np.concatenate(indices).astype(np.int64)


@contextlib.contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Keep cuDNN from TF32, which it uses by default: features kept as fp32 must be fp32 on every device."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextlib.contextmanager
def _evaluation_mode(encoder: torch.nn.Module) -> Iterator[None]:
    training = encoder.training
    encoder.eval()
    try:
        yield
    finally:
        encoder.train(training)


def _checksum(features: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(features).data)
    digest.update(np.ascontiguousarray(rows).data)
    return digest.hexdigest()


def _save(
    path: Path,
    key: str,
    features: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    total: int,
    reasons: dict[str, str],
) -> None:
    from safetensors.numpy import save

    metadata = {
        "format": "eosin embeddings 1",
        "key": key,
        "total": str(total),
        "unreadable": json.dumps(reasons),
        "sha256": _checksum(features, rows),
    }
    writable_directory(path.parent)
    with atomic_file(path) as file:
        file.write(save({"features": features, "rows": rows}, metadata=metadata))


def _load(
    path: Path, key: str, total: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], dict[str, str]] | None:
    """Read a cache file; None where there is none, or it is not what was written."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            features, rows = file.get_tensor("features"), file.get_tensor("rows")
        reasons = json.loads(metadata["unreadable"])
        whole = metadata["key"] == key and metadata["total"] == str(total)
        if whole and metadata["sha256"] == _checksum(features, rows):
            return features, rows, reasons
    except (SafetensorError, OSError, KeyError, ValueError):
        pass
    warn(f"{path}: damaged; computing these embeddings again")
    return None
