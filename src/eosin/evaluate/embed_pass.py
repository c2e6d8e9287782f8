"""The pass itself: tiles through an encoder on one device, batch by batch, to whole parts.

A part's batches begin at its first row, whatever was done before: the same batch size gives the same bits, however the
parts are divided between processes and attempts.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.core.console import warn
from eosin.core.errors import EosinError
from eosin.core.memory import lacks_memory
from eosin.data import Tiles
from eosin.data.loader import Loaded, RowReader
from eosin.data.workers import read_ahead
from eosin.encoders.forward import forward_errors
from eosin.evaluate.embed_shards import Layout, Part

if TYPE_CHECKING:
    from eosin.encoders import Encoder

__all__ = ["DenseMaps", "Pass", "PixelChange", "Precision", "check_layers", "choose_batch", "compute_parts"]

Precision = Literal["fp32", "bf16"]
Rows = npt.NDArray[np.int64]

FEATURES = "features"

# Tiles per forward pass: on a CPU, of up to 224 px; on CUDA, those of the trial and the most that pay.
_CPU_BATCH, _CPU_SIDE = 64, 224
_TRIAL, _LARGEST = 8, 512
# Share of a card's free memory that a batch found by itself may take.
_SHARE = 0.7


class PixelChange(Protocol):
    """Something done to the pixels before an encoder sees them."""

    @property
    def key(self) -> str:
        """Identity of what it does, for the cache's key."""

    @property
    def name(self) -> str:
        """What to show beside the progress."""

    def __call__(self, images: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Change images: uint8 [B, 3, size, size] RGB and their rows in the tiles, int64 [B], to uint8 of that shape.

        What an image becomes must depend on its pixels and its row alone.
        """


@dataclass(frozen=True)
class DenseMaps:
    """Feature maps instead of embeddings.

    Attributes:
        layers: Which of the maps of `Encoder.spatial`, finest first; negative ones count from the deepest.
        dtype: How they are kept.
    """

    layers: tuple[int, ...] = (-1,)
    dtype: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True, eq=False)
class Pass:
    """Everything but the encoder and the device that decides what comes out. It travels to other processes.

    Attributes:
        tiles: N tiles.
        precision: "bf16" runs the encoder under autocast.
        change: What to do to the pixels first.
        dense: Which maps; None for embeddings.
        batch_size: Tiles per forward pass; None finds it.
        shrink: Go on with fewer where memory does not suffice for these.
        workers: Processes that decode.
        shown: The encoder's spec, for messages.
    """

    tiles: Tiles
    precision: Precision
    change: PixelChange | None
    dense: DenseMaps | None
    batch_size: int | None
    shrink: bool
    workers: int
    shown: str


def compute_parts(
    encoder: Encoder,
    work: Pass,
    layout: Layout,
    device: torch.device,
    numbers: Iterable[int],
    advance: Callable[[int], None] = lambda tiles: None,
) -> Iterator[Part]:
    """Yield parts as they are done, in the order asked for.

    Args:
        encoder: It is left on `device`, in the mode it was in.
        work: What to compute.
        layout: Which rows each part has.
        device: Where.
        numbers: The parts; drawn a few batches before they are needed, while the one before is still at work.
        advance: Called with the number of tiles of each batch that is done.

    Raises:
        EosinError: If the network fails, a value is not finite, the width changes, memory does not suffice or a loading
            process is killed.
    """
    encoder.to(device)
    with _evaluation_mode(encoder):
        batch_size = work.batch_size or choose_batch(encoder, work, device)
        forward = _Forward(encoder, work, device, batch_size)
        coming = deque[tuple[int, int, bool]]()

        def spans() -> Iterator[tuple[int, int]]:
            for number in numbers:
                first, last = layout.span(number)
                for start in range(first, last, batch_size):
                    stop = min(start + batch_size, last)
                    coming.append((number, stop - start, stop == last))
                    yield start, stop

        reader = RowReader(work.tiles, encoder.card.size, encoder.card.interpolation)
        under_way = _Collected()
        for loaded in read_ahead(reader, spans(), work.workers):
            number, count, ends = coming.popleft()
            under_way.add(loaded, forward)
            advance(count)
            if ends:
                yield under_way.part(number, batch_size)
                under_way = _Collected()


class _Collected:
    """What is known of a part under way."""

    def __init__(self) -> None:
        self.rows: list[Rows] = []
        self.arrays: list[dict[str, npt.NDArray[Any]]] = []
        self.unreadable: dict[int, str] = {}

    def add(self, loaded: Loaded, forward: _Forward) -> None:
        self.unreadable.update(loaded.bad)
        if len(loaded.rows):
            self.arrays.append(forward(loaded.images, loaded.rows))
            self.rows.append(loaded.rows.astype(np.int64))

    def part(self, number: int, batch: int) -> Part:
        if not self.rows:
            return Part(number, np.empty(0, np.int64), {}, self.unreadable, batch)
        arrays = {name: np.concatenate([values[name] for values in self.arrays]) for name in self.arrays[0]}
        return Part(number, np.concatenate(self.rows), arrays, self.unreadable, batch)


class _Forward:
    """Images to checked arrays on the host."""

    def __init__(self, encoder: Encoder, work: Pass, device: torch.device, batch_size: int) -> None:
        self.encoder = encoder
        self.work = work
        self.device = device
        self.most = batch_size
        self.widths: dict[str, tuple[int, ...]] = {}

    def __call__(self, images: Tensor, rows: Rows) -> dict[str, npt.NDArray[Any]]:
        """Encode uint8 [B, 3, size, size] of tiles `rows`; in pieces where memory did not suffice for a batch."""
        pieces: list[dict[str, npt.NDArray[Any]]] = []
        start = 0
        while start < len(rows):
            stop = min(start + self.most, len(rows))
            try:
                outputs = _encoded(self.encoder, self.work, images[start:stop], rows[start:stop], self.device)
                pieces.append({name: self._kept(values) for name, values in outputs.items()})
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                outputs = None
            if outputs is None:
                # Out here, where the error's traceback holds the tensors no longer.
                self._smaller(stop - start)
                continue
            self._check(pieces[-1], rows[start:stop])
            start = stop
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _kept(self, values: Tensor) -> npt.NDArray[Any]:
        half = self.work.dense is not None and self.work.dense.dtype == "float16"
        array: npt.NDArray[Any] = values.to(torch.float16 if half else torch.float32).cpu().numpy()
        return array

    def _smaller(self, tried: int) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if not self.work.shrink or tried == 1:
            fix = "give a smaller batch size, or none: it is then found" if tried > 1 else "use a device with more"
            raise EosinError(
                f"{self.work.shown}: {tried:,} tile{'s do' if tried > 1 else ' does'} not fit into the memory of "
                f"{self.device}; {fix}"
            )
        self.most = max(1, tried // 2)
        warn(f"{self.work.shown}: {tried:,} tiles do not fit into the memory of {self.device}; taking {self.most:,}")

    def _check(self, arrays: dict[str, npt.NDArray[Any]], rows: Rows) -> None:
        spec, names = self.work.shown, self.work.tiles.names
        for name, values in arrays.items():
            what = "features" if name == FEATURES else f"map {name}"
            shape = values.shape[1:]
            before = self.widths.setdefault(name, shape)
            if before != shape:
                was, now = ("x".join(map(str, sides)) for sides in (before, shape))
                raise EosinError(f"{spec}: {what} changed width from {was} to {now} at tile '{names[int(rows[0])]}'")
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                fix = "so use an earlier checkpoint (or precision fp32)"
                if values.dtype == np.float16:
                    fix = "or the values too large for float16: keep float32"
                raise EosinError(
                    f"{spec}: {what} of tile '{names[int(rows[int(finite.argmin())])]}' are not finite; the weights "
                    f"are damaged or diverged, {fix}"
                )


# Both for each batch, and not around the pass: what happens between two parts is the caller's.
@torch.inference_mode()
def _encoded(encoder: Encoder, work: Pass, images: Tensor, rows: Rows, device: torch.device) -> dict[str, Tensor]:
    with _exact_convolutions():
        return _outputs(encoder, work, images, rows, device)


def _outputs(encoder: Encoder, work: Pass, images: Tensor, rows: Rows, device: torch.device) -> dict[str, Tensor]:
    images = images.to(device)
    if work.change is not None:
        images = work.change(images, rows)
    # Convolutions run faster with the channels last (ResNet-18 on one core: 91 against 75 images/s).
    pixels = images.contiguous(memory_format=torch.channels_last)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=work.precision == "bf16")
    with forward_errors(encoder.card, images.shape[-1]), precision:
        if work.dense is None:
            return {FEATURES: encoder(encoder.normalize(pixels))}
        maps = encoder.spatial(encoder.normalize(pixels))
    return _chosen(maps, work.dense.layers, work.shown)


def _chosen(maps: Sequence[Tensor], layers: Sequence[int], shown: str) -> dict[str, Tensor]:
    chosen = {}
    for layer in layers:
        if not -len(maps) <= layer < len(maps):
            raise EosinError(
                f"{shown}: no layer {layer} among its {len(maps)} feature maps; give -{len(maps)} to {len(maps) - 1}"
            )
        chosen[f"layer{layer % len(maps)}"] = maps[layer]
    return chosen


@torch.inference_mode()
def check_layers(encoder: Encoder, layers: Sequence[int]) -> None:
    """Refuse layers that an encoder does not have, by the maps of one blank tile, before a long pass.

    Args:
        encoder: On the CPU; it is left in the mode it was in.
        layers: As in `DenseMaps`.

    Raises:
        EosinError: If a layer is not among its feature maps, it has none, or it cannot take images of its size.
    """
    size = encoder.card.size
    with _evaluation_mode(encoder), forward_errors(encoder.card, size):
        maps = encoder.spatial(encoder.normalize(torch.zeros(1, 3, size, size, dtype=torch.uint8)))
    _chosen(maps, layers, encoder.card.spec)


def choose_batch(encoder: Encoder, work: Pass, device: torch.device) -> int:
    """Find how many tiles a forward pass takes; what comes out does not depend on it but for rounding.

    On a CPU 64 of 224 px, and of larger tiles as many as have their pixels: more do not run faster there. On CUDA a
    trial of 8 and 16 tiles tells the memory of one; the largest power of two that fits into 70 % of what is free, up to
    512, is taken. Where that is still too much, the pass goes on with half of it.

    Args:
        encoder: On `device`, in evaluation mode.
        work: What is to be computed.
        device: Where.
    """
    if device.type != "cuda":
        area = (max(encoder.card.size, _CPU_SIDE) / _CPU_SIDE) ** 2
        return max(1, _power_of_two(_CPU_BATCH / area))
    try:
        # The first one also pays for workspaces that stay.
        _, small, large = (_peak(encoder, work, device, count) for count in (1, _TRIAL, 2 * _TRIAL))
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        torch.cuda.empty_cache()
        return _TRIAL
    each = max(1, (large - small) // _TRIAL)
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    return min(_LARGEST, max(1, _power_of_two(_SHARE * free / each)))


def _peak(encoder: Encoder, work: Pass, device: torch.device, count: int) -> int:
    """Return the bytes that a pass over `count` blank tiles takes at most."""
    size = encoder.card.size
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _encoded(encoder, work, torch.zeros(count, 3, size, size, dtype=torch.uint8), np.zeros(count, np.int64), device)
    return torch.cuda.max_memory_allocated(device) - before


def _power_of_two(value: float) -> int:
    """Return the largest power of two that is at most `value`; 0 below 1."""
    return 1 << int(value).bit_length() - 1 if value >= 1 else 0


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
