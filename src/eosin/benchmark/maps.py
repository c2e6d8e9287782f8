"""Test tiles in two dimensions, with small pictures, for the report's embedding map."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eosin.core.draws import permuted, stream_seed
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, short_hash
from eosin.data import UnreadableImage, load_square
from eosin.evaluate import ProbeData
from eosin.tasks import Task

__all__ = ["MAPS", "map_path", "write_map"]

MAPS = "maps"

_TILES = 600
_SIDE = 64
_QUALITY = 80
_FEWEST_FOR_TSNE = 30
_COMPONENTS = 50
_PERPLEXITY = 30.0
_VERSION = 1


def map_path(encoder: str, fingerprint: str, task_hash: str) -> str:
    """Return a map's path, relative to the benchmark directory."""
    return f"{MAPS}/{short_hash(_VERSION, encoder, fingerprint, task_hash)}.parquet"


def write_map(path: Path, task: Task, data: ProbeData, *, seed: int, predictions: Path, predicted_by: str) -> None:
    """Lay out at most 600 test tiles and store them with 64-pixel thumbnails.

    Args:
        path: The Parquet file: columns x, y, label, predicted, name, thumbnail; how it was made stands in the
            schema's metadata under "eosin".
        task: The task.
        data: Its features.
        seed: The benchmark's seed, for the record.
        predictions: Per-image predictions of the same test tiles.
        predicted_by: The protocol they are of.
    """
    chosen = np.sort(permuted(np.arange(min(_TILES, len(data.test))), len(data.test), stream_seed(0, "map")))
    rows = data.test[chosen]
    points, method = lay_out(data.features[rows])
    table = pq.read_table(predictions, columns=["name", "predicted"])
    predicted = dict(zip(table["name"].to_pylist(), table["predicted"].to_pylist(), strict=True))
    names = data.names[rows].tolist()
    place = {name: row for row, name in enumerate(np.asarray(task.tiles.names).astype(str).tolist())}
    columns = {
        "x": points[:, 0],
        "y": points[:, 1],
        "label": [data.classes[label] for label in data.labels[rows]],
        "predicted": pa.array([predicted.get(name) for name in names], pa.string()),
        "name": names,
        "thumbnail": pa.array([_thumbnail(task, place[name]) for name in names], pa.binary()),
    }
    details = {
        "method": method,
        "seed": seed,
        "predicted_by": predicted_by,
        "shown": len(rows),
        "of": len(data.test),
    }
    with atomic_file(path) as file:
        pq.write_table(pa.table(columns).replace_schema_metadata({"eosin": json.dumps(details)}), file)


def lay_out(features: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], str]:
    """Place points in two dimensions.

    Features are standardized per dimension and reduced to at most 50 principal components, then to two by t-SNE (van
    der Maaten and Hinton, JMLR 2008), started from the first two components; fewer than 30 points are left at these.

    Args:
        features: float32 [n, D], n >= 1.

    Returns:
        float64 [n, 2], and the method in words.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centered = features.astype(np.float64) - features.mean(axis=0)
    spread = centered.std(axis=0)
    standard = np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 1e-12)
    count = min(_COMPONENTS, *standard.shape)
    if len(features) < 3 or not standard.any():
        return np.zeros((len(features), 2)), "too few or equal points to lay out"
    components = PCA(n_components=count, random_state=0).fit_transform(standard)
    if count == 1:
        components = np.pad(components, ((0, 0), (0, 1)))
    if len(features) < _FEWEST_FOR_TSNE:
        return components[:, :2], "first two principal components"
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
    return np.asarray(points, dtype=np.float64), f"t-SNE, perplexity {perplexity:.3g}"


def _thumbnail(task: Task, row: int) -> bytes | None:
    try:
        pixels = load_square(task.tiles, row, _SIDE)
    except (UnreadableImage, EosinError):
        return None
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
