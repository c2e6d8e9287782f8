"""The online probe: what the encoder is worth while it trains.

The loss does not rank checkpoints, so at fixed steps a fixed set of tiles is embedded with the encoder in evaluation
mode: their effective rank is part of the collapse watch, and with a labelled source the kNN accuracy on its validation
split is logged. The test split is never read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.draws import stream_seed
from eosin.core.errors import EosinError
from eosin.data import Quarantine, Tiles, iterate_tiles
from eosin.encoders import Encoder
from eosin.evaluate.knn import knn_probabilities
from eosin.evaluate.metrics import metric_value
from eosin.pretrain.config import WatchConfig
from eosin.pretrain.watch import effective_rank, spread
from eosin.tasks import open_task

__all__ = ["OnlineProbe"]

_NEIGHBORS = 20
_TEMPERATURE = 0.07


class OnlineProbe:
    """Embeds a fixed set of tiles at each look.

    Args:
        config: Tiles per look, and the labelled source, if any.
        tiles: The training tiles, used where no labelled source is given.
        size: Side in pixels of the images.
        seed: Which tiles are taken.
    """

    def __init__(self, config: WatchConfig, tiles: Tiles, size: int, seed: int) -> None:
        self.size = size
        self.labels: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self.classes = 0
        if config.task is None:
            self.images = self._load(tiles.select(_some(len(tiles), config.tiles, seed)))[0]
            self.split = len(self.images)
            return
        task = open_task(config.task, seed=seed)
        parts = [rows[_some(len(rows), config.tiles, seed)] for rows in (task.train, task.val)]
        loaded = [self._load(task.tiles.select(rows)) for rows in parts]
        self.images = torch.cat([images for images, _ in loaded])
        self.split = len(loaded[0][0])
        train, val = (task.labels[rows[read]] for rows, (_, read) in zip(parts, loaded, strict=True))
        self.labels = (train, val)
        self.classes = len(task.classes)

    def _load(self, tiles: Tiles) -> tuple[Tensor, npt.NDArray[np.int64]]:
        """Read tiles once; unreadable ones are left to the training's quarantine.

        Raises:
            EosinError: If none can be read.
        """
        quarantine = Quarantine(None, 1.0)
        parts = list(iterate_tiles(tiles, size=self.size, batch_size=64, workers=0, quarantine=quarantine))
        if not parts:
            raise EosinError(
                f"{tiles.spec}: none of {len(tiles)} tiles can be read (first '{tiles.names[0]}': "
                f"{quarantine.reason(tiles.names[0])}); check the files"
            )
        return torch.cat([images for images, _ in parts]), np.concatenate([rows for _, rows in parts])

    @torch.no_grad()
    def look(self, encoder: Encoder, device: torch.device, *, mixed: bool) -> dict[str, float]:
        """Embed the tiles and return the scalars for the log.

        Args:
            encoder: The encoder, left in the mode it was in.
            device: Where it is.
            mixed: Embed in bf16, as the run trains.
        """
        was_training = encoder.training
        encoder.eval()
        parts = []
        for images in self.images.split(64):
            batch = encoder.normalize(images.to(device)).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
                parts.append(encoder(batch).float().cpu())
        encoder.train(was_training)
        features = torch.cat(parts)
        record = {
            "watch/effective_rank": float(effective_rank(features)),
            "watch/feature_spread": float(spread(features)),
        }
        if self.labels is not None:
            train, val = self.labels
            shares = knn_probabilities(
                features[: self.split].numpy(),
                train,
                features[self.split :].numpy(),
                classes=self.classes,
                k=min(_NEIGHBORS, self.split),
                temperature=_TEMPERATURE,
            )
            for name in ("accuracy", "balanced_accuracy"):
                value = metric_value(name, val, shares)
                if value is not None:
                    record[f"watch/knn_{name}"] = value
        return record


def _some(available: int, wanted: int, seed: int) -> npt.NDArray[np.int64]:
    """Choose rows, in order: all, or a random subset."""
    if available <= wanted:
        return np.arange(available)
    generator = np.random.default_rng(stream_seed(seed, "probe"))
    return np.sort(generator.choice(available, wanted, replace=False))
