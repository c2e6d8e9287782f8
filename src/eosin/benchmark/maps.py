"""Test tiles in two dimensions, with small pictures, for the report's embedding map."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
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

__all__ = ["MAPS", "map_path", "read_predictions", "rows_of", "thumbnail", "write_map"]

MAPS = "maps"

_TILES = 600
_SIDE = 64
_QUALITY = 80
_FEWEST_FOR_TSNE = 30
_COMPONENTS = 50
_PERPLEXITY = 30.0
_VERSION = 2
_TISSUE = 0.05


def map_path(encoder: str, fingerprint: str, task_hash: str) -> str:
    """Return a map's path, relative to the benchmark directory."""
    return f"{MAPS}/{short_hash(_VERSION, encoder, fingerprint, task_hash)}.parquet"


def write_map(path: Path, task: Task, data: ProbeData, *, seed: int, predictions: Path, predicted_by: str) -> None:
    """Lay out at most 600 test tiles and store them with 64-pixel thumbnails.

    Args:
        path: The Parquet file: columns x, y (t-SNE), pca_x, pca_y (first two principal components), umap_x, umap_y
            (where umap-learn is installed and there are enough tiles), label, predicted,
            group (patient or slide, null where unknown), density and red_share (see `stain_of`, null for a tile that
            cannot be read), name, thumbnail (JPEG); how it was made stands in the schema's metadata under "eosin".
        task: The task.
        data: Its features.
        seed: The benchmark's seed, for the record.
        predictions: Per-image predictions of the same test tiles.
        predicted_by: The protocol they are of.

    Raises:
        EosinError: If the predictions cannot be read, or the file cannot be written.
    """
    chosen = np.sort(permuted(np.arange(min(_TILES, len(data.test))), len(data.test), stream_seed(0, "map")))
    rows = data.test[chosen]
    points, method = lay_out(data.features[rows])
    components = principal_components(data.features[rows], 2)
    flattened = umap_layout(data.features[rows])
    table = read_predictions(predictions, ["name", "predicted"])
    predicted = dict(zip(table["name"].to_pylist(), table["predicted"].to_pylist(), strict=True))
    names = data.names[rows].tolist()
    place = rows_of(task)
    pictures = [_square(task, place[name]) for name in names]
    stains = [(None, None) if pixels is None else stain_of(pixels) for pixels in pictures]
    columns = {
        "x": points[:, 0],
        "y": points[:, 1],
        "pca_x": components[:, 0],
        "pca_y": components[:, 1],
        **({} if flattened is None else {"umap_x": flattened[:, 0], "umap_y": flattened[:, 1]}),
        "label": [data.classes[label] for label in data.labels[rows]],
        "predicted": pa.array([predicted.get(name) for name in names], pa.string()),
        "group": pa.array([None] * len(rows) if data.groups is None else data.groups[rows].tolist(), pa.string()),
        "density": pa.array([density for density, _ in stains], pa.float64()),
        "red_share": pa.array([share for _, share in stains], pa.float64()),
        "name": names,
        "thumbnail": pa.array([None if pixels is None else _jpeg(pixels) for pixels in pictures], pa.binary()),
    }
    details = {
        "method": method,
        "seed": seed,
        "predicted_by": predicted_by,
        "grouping": data.grouping,
        "shown": len(rows),
        "of": len(data.test),
    }
    with atomic_file(path) as file:
        pq.write_table(pa.table(columns).replace_schema_metadata({"eosin": json.dumps(details)}), file)


def read_predictions(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a cell's per-image predictions.

    Args:
        path: The Parquet file.
        columns: Those wanted; None for all.

    Raises:
        EosinError: If it is damaged or lacks a column.
    """
    try:
        return pq.read_table(path, columns=columns)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise EosinError(f"{path}: unreadable ({reason}); remove it and run the same command again") from None


def stain_of(pixels: npt.NDArray[np.uint8]) -> tuple[float, float | None]:
    """Describe a tile's stain by its optical density, -log10((I + 1) / 256) (Ruifrok and Johnston, 2001).

    Args:
        pixels: uint8 [3, H, W] RGB.

    Returns:
        The mean density over channels and pixels, in 0..2.41; and the red channel's share of the density of those
        pixels whose mean density exceeds 0.05, in 0..1, None without such pixels. Hematoxylin absorbs red light and
        eosin hardly does, so the share rises with the weight of hematoxylin.
    """
    density = -np.log10((pixels.reshape(3, -1).astype(np.float64) + 1) / 256)
    tissue = density[:, density.mean(axis=0) > _TISSUE]
    share = float(tissue[0].sum() / tissue.sum()) if tissue.size else None
    return float(density.mean()), share


def lay_out(features: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float64], str]:
    """Place points in two dimensions.

    Features are standardized per dimension and reduced to at most 50 principal components, then to two by t-SNE (van
    der Maaten and Hinton, JMLR 2008), started from the first two components; fewer than 30 points are left at these.

    Args:
        features: float32 [n, D], n >= 1.

    Returns:
        float64 [n, 2], and the method in words.
    """
    from sklearn.manifold import TSNE

    components = principal_components(features, _COMPONENTS)
    if not components.any():
        return components[:, :2], "too few or equal points to lay out"
    if len(features) < _FEWEST_FOR_TSNE:
        return components[:, :2], "first two principal components"
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    points = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(components)
    return np.asarray(points, dtype=np.float64), f"t-SNE, perplexity {perplexity:.3g}"


def umap_layout(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float64] | None:
    """Place points by UMAP (McInnes, Healy and Melville, 2018) with 15 neighbors, on the components that t-SNE gets.

    Args:
        features: float32 [n, D], n >= 1.

    Returns:
        float64 [n, 2]; None without the extra `umap`, of fewer than 30 points or of equal ones.
    """
    components = principal_components(features, _COMPONENTS)
    if len(features) < _FEWEST_FOR_TSNE or not components.any():
        return None
    try:
        from umap import UMAP
    except ImportError:
        return None
    return np.asarray(UMAP(n_neighbors=15, min_dist=0.1, random_state=0).fit_transform(components), dtype=np.float64)


def principal_components(features: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float64]:
    """Return the first principal components of features standardized per dimension.

    Args:
        features: float32 [n, D], n >= 1.
        count: At least 2.

    Returns:
        float64 [n, c] with 2 <= c <= count, zero where there are fewer than 3 points or all are equal.
    """
    from sklearn.decomposition import PCA

    centered = features.astype(np.float64) - features.mean(axis=0)
    spread = centered.std(axis=0)
    standard = np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 1e-12)
    if len(features) < 3 or not standard.any():
        return np.zeros((len(features), 2))
    components = PCA(n_components=min(count, *standard.shape), random_state=0).fit_transform(standard)
    return np.pad(np.asarray(components, dtype=np.float64), ((0, 0), (0, max(0, 2 - components.shape[1]))))


def rows_of(task: Task) -> dict[str, int]:
    """Return the row of each tile of a task by its name."""
    return {name: row for row, name in enumerate(np.asarray(task.tiles.names).astype(str).tolist())}


def thumbnail(task: Task, row: int) -> bytes | None:
    """Return a tile as a 64-pixel JPEG; None where it cannot be read."""
    pixels = _square(task, row)
    return None if pixels is None else _jpeg(pixels)


def _square(task: Task, row: int) -> npt.NDArray[np.uint8] | None:
    try:
        return load_square(task.tiles, row, _SIDE)
    except (UnreadableImage, EosinError):
        return None


def _jpeg(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
