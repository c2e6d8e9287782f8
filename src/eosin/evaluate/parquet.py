"""Embeddings as a Parquet file that any data-frame library reads, and feature maps beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eosin.core.console import console
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, output_file
from eosin.data import Quarantine, Tiles, default_workers, open_tiles
from eosin.encoders import load_encoder
from eosin.evaluate.dense import embed_dense, open_dense
from eosin.evaluate.embed import Embeddings, embed
from eosin.evaluate.embed_pass import DenseMaps, Precision, check_layers

if TYPE_CHECKING:
    from eosin.encoders import Encoder

__all__ = ["embed_to_parquet"]


def embed_to_parquet(
    encoder: str,
    data: str,
    out: Path,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Precision = "fp32",
    dense: DenseMaps | None = None,
    shard: tuple[int, int] | None = None,
    devices: Sequence[str] = (),
    ray: str | None = None,
) -> str:
    """Embed a source and write one row a tile.

    The columns are `name`, those of `label`, `patient`, `slide`, `split` that the source has, and `feature`, a
    fixed-size list of float32. The file's metadata hold the encoder's spec and fingerprint. Until it is written what is
    done is kept in ``OUT.parts/``, from which the same call goes on.

    Args:
        encoder: An encoder spec.
        data: A source of tiles.
        out: The Parquet file.
        batch_size: Tiles per forward pass; None finds it.
        workers: Processes that decode; None chooses.
        precision: "bf16" runs the encoder under autocast.
        dense: Feature maps to keep too, in ``OUT`` with the suffix ``.dense``; see `embed_dense`.
        shard: (i, n): compute this job's parts alone; a call without it writes the file.
        devices: A process on each of these devices; ("auto",) for every GPU here.
        ray: Address of a Ray cluster to use instead.

    Returns:
        A closing line: what was written, and how many tiles could not be read.

    Raises:
        EosinError: If the encoder, the source or the output is not usable, a file of another kind would be replaced,
            or as `embed`.
    """
    output_file(out, ".parquet", "features.parquet")
    _check_replaceable(out)
    started = time.monotonic()
    tiles = open_tiles(data)
    console.print(tiles.describe(), markup=False)
    network = load_encoder(encoder)
    if dense is not None:
        check_layers(network, dense.layers)
    _check_maps(out.with_suffix(".dense"), network.fingerprint())
    quarantine = Quarantine(out.with_suffix(".quarantine.jsonl"))
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "workers": default_workers() if workers is None else workers,
        "precision": precision,
        "quarantine": quarantine,
        "shard": shard,
        "devices": devices,
        "ray": ray,
    }
    parts = out.with_name(f"{out.name}.parts")
    embeddings = embed(network, tiles, cache=parts, **options)
    maps = ""
    if dense is not None:
        folder = out.with_suffix(".dense")
        store = embed_dense(network, tiles, folder, layers=dense.layers, dtype=dense.dtype, **options)
        if store is not None:
            shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in store.layers.items())
            maps = f"; maps {shapes} → {folder}"
    seconds = time.monotonic() - started
    if shard is not None:
        done = f"{len(embeddings.rows):,} tiles of job {shard[0]}/{shard[1]} in {seconds:,.0f} s → {parts}"
        left = f"{embeddings.missing:,} tiles are left to other jobs; the same command without --shard writes {out}"
        return f"{done}; {left}{maps}"
    _write(network, encoder, data, tiles, embeddings, out)
    with contextlib.suppress(OSError):
        (parts / f"{embeddings.key}.safetensors").unlink(missing_ok=True)
        # Parts of another encoder, whose run was stopped, stay.
        parts.rmdir()
    width = embeddings.features.shape[1]
    count = len(embeddings.rows)
    return f"{count} tiles x {width} features → {out}{maps}; {seconds:,.0f} s; {quarantine.summary(met=True)}"


def _check_replaceable(out: Path) -> None:
    """Make sure that nothing but embeddings is replaced: a manifest or a store is a Parquet file too.

    Raises:
        EosinError: If there is another file of this name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not out.exists():
        return
    try:
        ours = b"fingerprint" in (pq.read_schema(out).metadata or {})
    except (OSError, pa.ArrowException):
        ours = False
    if not ours:
        raise EosinError(f"{out}: is no file of embeddings, and would be replaced; choose another --out, or remove it")


def _check_maps(folder: Path, fingerprint: str) -> None:
    """Make sure that feature maps beside the output are of the same encoder.

    Raises:
        EosinError: If they are of another.
    """
    try:
        other = open_dense(folder).about
    except EosinError:  # none, or not whole: `embed_dense` sees to it
        return
    if other["fingerprint"] != fingerprint:
        raise EosinError(
            f"{folder}: holds maps of another encoder ({other['encoder']}); remove it, or choose another --out"
        )


def _write(network: Encoder, encoder: str, data: str, tiles: Tiles, embeddings: Embeddings, out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = tiles.select(embeddings.rows)
    columns = {"name": pa.array(list(kept.names), pa.string())}
    for name in ("label", "patient", "slide", "split"):
        values = getattr(kept, name)
        if values is not None:
            columns[name] = pa.array(list(values), pa.string())
    width = embeddings.features.shape[1]
    columns["feature"] = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.features.ravel()), width)
    about = {"encoder": encoder, "fingerprint": network.fingerprint(), "source": data}
    with atomic_file(out) as file:
        pq.write_table(pa.table(columns).replace_schema_metadata(about), file)
