"""Embeddings as a Parquet file that any data-frame library reads."""

from __future__ import annotations

from pathlib import Path

from eosin.core.console import console
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, writable_directory
from eosin.data import Quarantine, default_workers, open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate.embed import embed

__all__ = ["embed_to_parquet"]


def embed_to_parquet(encoder: str, data: str, out: Path, *, batch_size: int = 64, workers: int | None = None) -> str:
    """Embed a source and write one row a tile.

    The columns are `name`, those of `label`, `patient`, `slide`, `split` that the source has, and `feature`, a
    fixed-size list of float32. The file's metadata hold the encoder's spec and fingerprint.

    Args:
        encoder: An encoder spec.
        data: A source of tiles.
        out: The Parquet file.
        batch_size: Tiles per forward pass.
        workers: Processes that decode; None chooses.

    Returns:
        A closing line: what was written, and how many tiles could not be read.

    Raises:
        EosinError: If the encoder, the source or the output is not usable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if out.is_dir():
        raise EosinError(f"{out}: is a directory; give a file such as {out / 'features.parquet'}")
    writable_directory(out.parent)
    tiles = open_tiles(data)
    console.print(tiles.describe(), markup=False)
    network = load_encoder(encoder)
    quarantine = Quarantine(out.with_suffix(".quarantine.jsonl"))
    workers = default_workers() if workers is None else workers
    embeddings = embed(network, tiles, batch_size=batch_size, workers=workers, quarantine=quarantine)
    kept = tiles.select(embeddings.rows)
    width = embeddings.features.shape[1]
    columns = {"name": pa.array(list(kept.names), pa.string())}
    for name in ("label", "patient", "slide", "split"):
        values = getattr(kept, name)
        if values is not None:
            columns[name] = pa.array(list(values), pa.string())
    columns["feature"] = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.features.ravel()), width)
    about = {"encoder": encoder, "fingerprint": network.fingerprint(), "source": data}
    with atomic_file(out) as file:
        pq.write_table(pa.table(columns).replace_schema_metadata(about), file)
    return f"{len(kept)} tiles x {width} features → {out}; {quarantine.summary()}"
