"""Named re-stainings: the same tissue as another laboratory, or another day, would have stained it.

Each is a pure function of pixels, seed and position of the tile, so that every encoder meets the same images. What
comes out is rounded to 8 bits, as a scanner gives them, before the encoder sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.augment.chunks import chunks
from eosin.augment.hed import hed_jitter
from eosin.augment.operations import Operation, Parameters
from eosin.core.draws import Draws
from eosin.core.errors import EosinError, nearest
from eosin.core.files import short_hash
from eosin.core.registry import Registry

__all__ = ["DEFAULT_SHIFTS", "SHIFTS", "Restaining", "Shift", "open_shift", "open_shifts"]

DEFAULT_SHIFTS = ("hed-light", "hed-strong", "template:crc-lab", "template:monuseg-lab")
"""What `eosin stain probe` does unless told."""

_TEMPLATE = "template:"

# Raised when the same statistics file would give other pixels.
_TEMPLATE_VERSION = 1


@dataclass(frozen=True, eq=False)
class Shift:
    """A re-staining.

    Attributes:
        name: In records and on the command line.
        version: Raised when the same tile, seed and position would give other pixels.
        about: What it does, with its source.
        operation: What samples and applies it; None for no change at all.
        content: Hash of a file that the shift depends on; empty where there is none.
    """

    name: str
    version: int
    about: str
    operation: Operation | None
    content: str = ""

    @property
    def key(self) -> str:
        """Identity of what it does, wherever its file lies."""
        return short_hash(_TEMPLATE if self.content else self.name, self.version, self.content)


class _Stains:
    """A factor and a shift of hematoxylin, eosin and DAB of fixed size; see `eosin.augment.hed`."""

    def __init__(self, alpha: Sequence[float], beta: float = 0.0, signs: bool = False) -> None:
        self.alpha = np.asarray(alpha, dtype=np.float64)
        self.beta = beta
        self.signs = signs

    def sample(self, draws: Draws, images: Tensor) -> Parameters:
        """Draw factors `alpha` and shifts `beta` (natural-log optical density), float64 [B, 3]."""
        signs = np.where(draws.uniform("hed signs", 6) < 0.5, -1.0, 1.0) if self.signs else np.ones((len(draws), 6))
        return {"alpha": 1.0 + (self.alpha - 1.0) * signs[:, :3], "beta": self.beta * signs[:, 3:]}

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """Change float32 [B, 3, H, W] in 0..1."""
        return hed_jitter(images, parameters["alpha"], parameters["beta"])


SHIFTS: Registry[Shift] = Registry("stain shift")

NONE = "none"
SHIFTS.register(NONE)(Shift(NONE, 1, "the tiles as they are", None))

for _name, _theta in (("light", 0.05), ("strong", 0.2)):
    # Tellez et al. draw from U(-theta, theta): the size with the same mean square is theta / √3.
    _size = _theta / 3**0.5
    SHIFTS.register(f"hed-{_name}")(
        Shift(
            f"hed-{_name}",
            1,
            f"each stain's factor 1 ± {_size:.3f} and shift ± {5 * _size:.3f} (optical density), signs drawn for each"
            f" tile: the mean square of Tellez et al. 2019, {_name}",
            _Stains((1 + _size,) * 3, 5 * _size, signs=True),
        )
    )

for _stain, _place in (("hematoxylin", 0), ("eosin", 1)):
    for _sign, _factor in (("+", 1.25), ("-", 0.8)):
        _alpha = [1.0, 1.0, 1.0]
        _alpha[_place] = _factor
        SHIFTS.register(_stain + _sign)(
            Shift(_stain + _sign, 1, f"{_factor:g} times the {_stain}; glass stays as it is", _Stains(_alpha))
        )


def open_shift(name: str) -> Shift:
    """Find a shift by its name in `SHIFTS`, or as ``template:STATISTICS``.

    The latter gives every tile the means and standard deviations, in the statistics' color space, of a tile drawn from
    them (RandStainNA), its glass left alone. STATISTICS is a shipped name or a file; see `load_statistics`.

    Raises:
        EosinError: If there is no such shift, or its statistics cannot be read.
    """
    if name.startswith(_TEMPLATE):
        return _template(name)
    if name not in SHIFTS:
        raise EosinError(f"unknown stain shift '{name}'; {nearest(name, [*SHIFTS, *DEFAULT_SHIFTS])}")
    return SHIFTS[name]


def open_shifts(names: Sequence[str]) -> list[Shift]:
    """Open shifts, `none` first: the tiles as they are, with which all others are compared.

    Raises:
        EosinError: If one is unknown, or two are the same.
    """
    shifts = [SHIFTS[NONE]]
    for name in names:
        shift = open_shift(name)
        same = next((other for other in shifts[1:] if other.key == shift.key), None)
        if same is not None:
            raise EosinError(f"stain shifts '{same.name}' and '{name}' are the same; keep one")
        if shift.name != NONE:
            shifts.append(shift)
    return shifts


def _template(name: str) -> Shift:
    from eosin.augment.randstainna import RandStainNA, RandStainNAConfig
    from eosin.augment.stain_statistics import load_statistics

    source = name.removeprefix(_TEMPLATE)
    if not source:
        raise EosinError("stain shift 'template:' names no statistics; write template:crc-lab or template:stain.json")
    statistics = load_statistics(source)
    model = "independent" if statistics.mixture is None else "gmm"
    config = RandStainNAConfig(probability=1.0, statistics=source, model=model)
    return Shift(
        name,
        _TEMPLATE_VERSION,
        f"each tile gets the {statistics.space.upper()} means and deviations of a draw from {source} ({model})",
        RandStainNA(config),
        # What is drawn, and not where the file says that it came from.
        short_hash(statistics.model_dump(mode="json", include={"space", "tissue_only", "independent", "mixture"})),
    )


class Restaining:
    """A shift applied to a batch of tiles, as `embed` takes it.

    Args:
        shift: What to do.
        seed: Of its draws.
        positions: int64 [N], the position of each of the N tiles to embed in the whole task: its draws depend on it.
    """

    def __init__(self, shift: Shift, seed: int, positions: npt.NDArray[np.int64]) -> None:
        self.shift = shift
        self.seed = seed
        self.positions = positions

    @property
    def key(self) -> str:
        """Identity of the shift, the seed and the positions."""
        return short_hash("stain shift", self.shift.key, self.seed, self.positions.tolist())

    @property
    def name(self) -> str:
        """Name of the shift."""
        return self.shift.name

    def draws(self, rows: npt.NDArray[np.int64]) -> Draws:
        """Return the draws of tiles `rows`."""
        return Draws(self.seed, 0, self.positions[rows], "stain shift")

    def __call__(self, images: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
        """Re-stain uint8 [B, 3, H, W] RGB, tiles `rows` of the N; on a CPU bit by bit whatever the batch."""
        if self.shift.operation is None:
            return images
        drawn = self.shift.operation.sample(self.draws(rows), images)
        restained = torch.empty_like(images, memory_format=torch.contiguous_format)
        apply: Callable[[Tensor, Parameters], Tensor] = self.shift.operation.apply
        for part in chunks(images):
            values = images[part].to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
            values = apply(values, {name: array[part] for name, array in drawn.items()})
            restained[part] = values.mul_(255.0).round_().to(torch.uint8)
        return restained
