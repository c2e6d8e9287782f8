"""Features of drawn training views, in shards that survive a kill: the costly half of the `linear` protocol."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from eosin.core.console import progress_bar, warn
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, short_hash, writable_directory
from eosin.encoders.forward import forward_errors
from eosin.evaluate.pixels import CropLaw, DrawnViews, Pixels, drawn_views, exact_convolutions, pick_device

__all__ = ["ViewFeatures"]

Rows = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32]

# Raised when the same tiles, encoder and law would give other features.
_VERSION = 1
SHARD = 64
"""Rows of the task in a shard; a kill costs at most the views of so many."""
_BATCH = 64
_IN_MEMORY = 4 << 30
"""Bytes of features beyond which they are held in a file."""


class ViewFeatures:
    """Features of V training views of each image, computed once for all fits.

    View v of a row is drawn by (seed of the views, v, row). With a folder, each shard of rows is a file that is whole
    or absent; a damaged one is computed anew.

    Args:
        pixels: Images and encoder.
        law: Of crops and flips.
        views: V.
        precision: "fp32" or "bf16", of the encoder's passes.
        workers: Processes that decode.
        work: Folder to keep shards in; None keeps none.
    """

    def __init__(
        self, pixels: Pixels, law: CropLaw, views: int, *, precision: str, workers: int, work: Path | None
    ) -> None:
        self.pixels = pixels
        self.law = law
        self.views = views
        self.precision = precision
        self.workers = workers
        key = short_hash(
            *(_VERSION, pixels.encoder.fingerprint(), pixels.tiles.content_hash(), SHARD),
            *(law.size, law.interpolation, law.scale, law.ratio, law.flip, views, precision),
        )
        self.key = key
        self.folder = None if work is None else work / f"views-{key}"
        self._spill: tempfile.TemporaryDirectory[str] | None = None

    def of(self, rows: Rows) -> Features:
        """Return the features of all views of rows: float32 [len(rows), V, D], in memory or in a file.

        Args:
            rows: int64, ascending, each once.

        Raises:
            EosinError: If the network fails, a feature is not finite, a tile cannot be read any more, or the disk is
                full.
        """
        result = self._room((len(rows), self.views, self.pixels.encoder.width))
        shards = [(int(number), rows[rows // SHARD == number]) for number in np.unique(rows // SHARD)]
        missing = []
        for number, wanted in shards:
            found = self._load(number, wanted)
            if found is None:
                missing.append((number, wanted))
            else:
                result[np.searchsorted(rows, wanted)] = found
        for (number, wanted), values in zip(missing, self._compute([wanted for _, wanted in missing]), strict=True):
            self._save(number, wanted, values)
            result[np.searchsorted(rows, wanted)] = values
        return result

    def close(self) -> None:
        """Let go of the file that large features were held in."""
        if self._spill is not None:
            self._spill.cleanup()
            self._spill = None

    def _room(self, shape: tuple[int, int, int]) -> Features:
        if 4 * int(np.prod(shape, dtype=np.int64)) <= _IN_MEMORY:
            return np.empty(shape, dtype=np.float32)
        if self.folder is not None:
            writable_directory(self.folder)
        self._spill = tempfile.TemporaryDirectory(dir=self.folder, prefix=".joined-", ignore_cleanup_errors=True)
        return np.memmap(Path(self._spill.name) / "features.f32", np.float32, "w+", shape=shape)

    # Computing ---------------------------------------------------------------------------------------------------

    def _compute(self, shards: Sequence[Rows]) -> Iterator[Features]:
        """Yield float32 [n, V, D] of each shard's rows, in order."""
        if not shards:
            return
        encoder, law = self.pixels.encoder, self.law
        device = pick_device()
        encoder.to(device)
        training = encoder.training
        encoder.eval()
        maker = DrawnViews(self.pixels.tiles, law, 0, "linear")
        # A shard's rows in parts: one part's pixels are what a worker holds at a time.
        most = max(1, (64 << 20) // (3 * law.size**2 * self.views))
        parts = [
            (shard, part) for shard, rows in enumerate(shards) for part in np.array_split(rows, -(-len(rows) // most))
        ]
        keys = [(part, range(self.views)) for _, part in parts]
        try:
            with exact_convolutions(), progress_bar() as progress:
                label = f"{self.views} views with {encoder.card.spec}"
                bar = progress.add_task(label, total=sum(map(len, shards)))
                done: list[Features] = []
                for (shard, part), pixels in zip(parts, drawn_views(maker, keys, self.workers), strict=True):
                    done.append(self._encode(pixels, part, device))
                    progress.update(bar, advance=len(part))
                    if sum(map(len, done)) == len(shards[shard]):
                        yield np.concatenate(done)
                        done = []
        finally:
            encoder.train(training)

    @torch.inference_mode()
    def _encode(self, pixels: torch.Tensor, rows: Rows, device: torch.device) -> Features:
        encoder = self.pixels.encoder
        values = []
        for images in pixels.flatten(0, 1).split(_BATCH):
            ready = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            precision = torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")
            with forward_errors(encoder.card, self.law.size), precision:
                features = encoder(encoder.normalize(ready))
            values.append(features.float().cpu())
        features = torch.cat(values).view(self.views, len(rows), -1).transpose(0, 1).contiguous().numpy()
        finite = np.isfinite(features).all(axis=(1, 2))
        if not finite.all():
            name = self.pixels.tiles.names[int(rows[int(finite.argmin())])]
            raise EosinError(
                f"{encoder.card.spec}: features of a crop of tile '{name}' are not finite; the weights are damaged or "
                "diverged, so use an earlier checkpoint (or precision fp32)"
            )
        return features

    # Keeping -----------------------------------------------------------------------------------------------------

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:07d}.safetensors"

    def _save(self, number: int, rows: Rows, values: Features) -> None:
        from safetensors.numpy import save

        if self.folder is None:
            return
        writable_directory(self.folder)
        metadata = {"format": "eosin view features 1", "key": self.key, "sha256": _checksum(rows, values)}
        with atomic_file(self._path(number)) as file:
            file.write(save({"rows": rows, "features": np.ascontiguousarray(values)}, metadata=metadata))

    def _load(self, number: int, wanted: Rows) -> Features | None:
        """Read the rows wanted from a shard; None where it is absent, damaged, or has not all of them."""
        from safetensors import SafetensorError, safe_open

        if self.folder is None or not self._path(number).is_file():
            return None
        with contextlib.suppress(SafetensorError, OSError, KeyError, ValueError):
            with safe_open(self._path(number), framework="numpy") as file:
                metadata = file.metadata() or {}
                rows, values = file.get_tensor("rows"), file.get_tensor("features")
            if metadata["key"] == self.key and metadata["sha256"] == _checksum(rows, values):
                return values[np.searchsorted(rows, wanted)] if np.isin(wanted, rows).all() else None
        warn(f"{self._path(number)}: damaged; computing these views again")
        return None


def _checksum(rows: Rows, values: Features) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(rows).data)
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
