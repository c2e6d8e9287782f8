"""Feature maps of tiles on disk, for segmentation and nuclei: in parts that are mapped into memory, not read.

A store is a folder: ``dense.json`` says what it holds, ``index.parquet`` names the tiles and where each is, and
``00003-of-00017.safetensors`` have the maps themselves, [m, C, h, w] a layer, which any reader of safetensors opens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.core.errors import EosinError
from eosin.core.files import atomic_file, short_hash
from eosin.data import Names, Quarantine, Tiles
from eosin.evaluate.embed import Places, embedding_key, fill, make_pass
from eosin.evaluate.embed_pass import DenseMaps, PixelChange, Precision
from eosin.evaluate.embed_shards import Layout, PartStore, mapped_tensors

if TYPE_CHECKING:
    from eosin.encoders import Encoder

__all__ = ["DenseStore", "embed_dense", "open_dense"]

_FORMAT = "eosin dense maps 1"
_ABOUT, _INDEX = "dense.json", "index.parquet"
_OPEN_PARTS = 64


class DenseStore:
    """Maps of n tiles, read as they are used.

    Args:
        path: The folder.

    Attributes:
        about: What dense.json says: encoder, fingerprint, source, layers with shape and dtype, parts.
        names: The tiles' names.
        rows: int64 [n], each one's row in the source.
        part: int64 [n], the part that each is in.
        place: int64 [n], its place in the part.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path = path
        try:
            self.about: dict[str, Any] = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
            if self.about["format"] != _FORMAT:
                raise EosinError(
                    f"{path / _ABOUT}: format {self.about['format']}, this eosin reads {_FORMAT}; update eosin"
                )
            table = pq.read_table(path / _INDEX)
            self.names = Names(table["name"].combine_chunks())
            self.rows, self.part, self.place = (table[name].to_numpy() for name in ("row", "part", "place"))
            sizes = {str(entry["file"]): int(entry["bytes"]) for entry in self.about["parts"]}
        except FileNotFoundError:
            raise EosinError(
                f"{path}: no whole store of feature maps ({_ABOUT} is missing); make it with `eosin embed --dense`"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EosinError(f"{path}: damaged ({error}); remove it and make it again") from None
        for name, size in sizes.items():
            file = path / name
            if not file.is_file() or file.stat().st_size != size:
                raise EosinError(f"{file}: missing or cut short; remove {path / _ABOUT} and run the same command again")
        self._parts = list(sizes)
        self._mapped: dict[int, dict[str, npt.NDArray[Any]]] = {}

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.rows)

    @cached_property
    def layers(self) -> dict[str, tuple[int, int, int]]:
        """(C, h, w) of the maps of each layer."""
        return {name: (int(c), int(h), int(w)) for name, (c, h, w) in self.about["layers"].items()}

    def maps(self, layer: str, places: npt.ArrayLike) -> npt.NDArray[Any]:
        """Read maps of some tiles.

        Args:
            layer: One of `layers`.
            places: Integers [n], the tiles' places in `names`.

        Returns:
            float16 or float32 [n, C, h, w], as stored.

        Raises:
            EosinError: If there is no such layer.
        """
        if layer not in self.layers:
            raise EosinError(f"{self.path}: no layer '{layer}'; valid: {', '.join(self.layers)}")
        chosen = np.asarray(places, dtype=np.int64)
        result = np.empty((len(chosen), *self.layers[layer]), self.about["dtype"])
        for number in np.unique(self.part[chosen]).tolist():
            here = np.flatnonzero(self.part[chosen] == number)
            result[here] = self._part(number)[layer][self.place[chosen[here]]]
        return result

    def _part(self, number: int) -> dict[str, npt.NDArray[Any]]:
        if number not in self._mapped:
            if len(self._mapped) >= _OPEN_PARTS:
                self._mapped.pop(next(iter(self._mapped)))
            self._mapped[number] = mapped_tensors(self.path / self._parts[number])[1]
        return self._mapped[number]


def open_dense(path: Path) -> DenseStore:
    """Open a store of feature maps; the maps stay on disk.

    Raises:
        EosinError: If it is none, or not whole.
    """
    return DenseStore(Path(path))


def embed_dense(
    encoder: Encoder,
    tiles: Tiles,
    out: Path,
    *,
    layers: Sequence[int] = (-1,),
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int | None = None,
    workers: int = 0,
    device: str | None = None,
    precision: Precision = "fp32",
    change: PixelChange | None = None,
    quarantine: Quarantine | None = None,
    shard: tuple[int, int] | None = None,
    devices: Sequence[str] = (),
    ray: str | None = None,
) -> DenseStore | None:
    """Keep feature maps of all tiles; as with `embed`, what is there is not computed again.

    A map of ViT-S/16 at 224 px in float16 takes 150 kB (384 × 14 × 14), one of ViT-g/14 0.8 MB.

    Args:
        encoder: An encoder with feature maps.
        tiles: N tiles.
        out: The store's folder.
        layers: Which of the maps of `Encoder.spatial`, finest first; negative ones count from the deepest.
        dtype: How they are kept; values above 65,504 do not fit into float16 and are told.
        batch_size: As in `embed`, and so are all that follow.
        workers: Processes that decode.
        device: Where to run.
        precision: "bf16" runs the encoder under autocast.
        change: What to do to the pixels first.
        quarantine: Where unreadable tiles are listed.
        shard: (i, n): this job's parts alone.
        devices: A process on each.
        ray: Address of a Ray cluster.

    Returns:
        The store; None where parts are left to other jobs of the array.

    Raises:
        EosinError: If the encoder has no such maps, the folder holds something else, or as `embed`.
    """
    out = Path(out)
    places = Places(device, tuple(devices), ray)
    dense = DenseMaps(tuple(layers), dtype)
    work = make_pass(
        encoder, tiles, batch_size=batch_size, workers=workers, precision=precision, change=change, dense=dense
    )
    key = short_hash(embedding_key(encoder, tiles, precision, change), "dense", list(layers), dtype)
    quarantine = Quarantine(None) if quarantine is None else quarantine
    store = PartStore(out, key, Layout.of(len(tiles)))
    with store.held(shard):
        other = store.foreign()
        if other is not None:
            raise EosinError(
                f"{other}: holds maps of another encoder, source or layer; remove {out}, or choose another --out"
            )
        unreadable = fill(encoder, work, store, store.layout.of_job(shard), places, quarantine)
        if shard is not None and len(store.finished()) < len(store.layout):
            return None
        if len(unreadable) == len(tiles):
            raise EosinError(f"{tiles.spec}: no tile could be read; {quarantine.summary()}")
        _write_index(store, tiles, {"encoder": encoder.card.spec, "fingerprint": encoder.fingerprint()}, dtype)
    return open_dense(out)


def _write_index(store: PartStore, tiles: Tiles, about: dict[str, Any], dtype: str) -> None:
    """Write what makes a store of parts: the tiles and their places first, dense.json last."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, numbers, offsets, parts = [], [], [], []
    layers: dict[str, list[int]] = {}
    for number in range(len(store.layout)):
        path = store.path(number)
        _, arrays = mapped_tensors(path)
        here = np.array(arrays.pop("rows"))
        for name, maps in arrays.items():
            shape = list(maps.shape[1:])
            if layers.setdefault(name, shape) != shape:
                raise EosinError(f"{path}: maps {name} of {shape}, others of {layers[name]}; remove {path.parent}")
        rows.append(here)
        numbers.append(np.full(len(here), number))
        offsets.append(np.arange(len(here)))
        parts.append({"file": path.name, "tiles": len(here), "bytes": path.stat().st_size})
    every = np.concatenate(rows)
    kept = tiles.select(every)
    columns = {"name": pa.array(list(kept.names), pa.string()), "row": every}
    columns |= {"part": np.concatenate(numbers), "place": np.concatenate(offsets)}
    for name in ("label", "patient", "slide", "split"):
        if getattr(kept, name) is not None:
            columns[name] = pa.array(list(getattr(kept, name)), pa.string())
    folder = store.path(0).parent
    with atomic_file(folder / _INDEX) as file:
        pq.write_table(pa.table(columns), file)
    text = {"format": _FORMAT, "key": store.key, **about, "source": tiles.spec, "total": len(tiles)}
    text |= {"tiles": len(every), "dtype": dtype, "layers": layers, "parts": parts}
    with atomic_file(folder / _ABOUT, "w") as file:
        json.dump(text, file, indent=1)
