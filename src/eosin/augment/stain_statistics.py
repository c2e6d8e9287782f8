"""What a collection's stain looks like: the distribution of each channel's average and deviation over its tiles.

Six numbers describe the stain of a tile: the average of each channel of a color space, then the standard deviation of
each (Reinhard et al. 2001). A file holds their distribution over the tiles of a collection, one number at a time as in
RandStainNA (Shen et al., MICCAI 2022), and, where it was fitted so, together as a Gaussian mixture.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from eosin.augment.spaces import CHANNELS, Space
from eosin.core.config import Config, read_yaml
from eosin.core.errors import EosinError, nearest
from eosin.core.files import atomic_file

__all__ = [
    "Independent",
    "Mixture",
    "StainStatistics",
    "fit_statistics",
    "load_statistics",
    "save_statistics",
    "shipped_statistics",
]

STAINS = Path(__file__).parents[1] / "stains"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Distribution = Literal["normal", "laplace"]
Array = npt.NDArray[np.float64]

# Numbers that describe a tile: three averages, three standard deviations.
SIZE = 6
# The values of each channel over all colors of sRGB, which no average leaves.
_COLORS: dict[Space, tuple[tuple[float, float], ...]] = {
    "lab": ((0.0, 255.0), (41.8, 226.3), (20.1, 222.5)),
    "hsv": ((0.0, 180.0), (0.0, 255.0), (0.0, 255.0)),
    "hed": ((-0.67, 1.88), (-1.49, 1.14), (-0.7, 1.58)),
}
# A mixture's cost grows with the tiles, its precision hardly: a random part of so many is enough.
MIXTURE_TILES = 50_000
MOST_COMPONENTS = 8
# Free numbers of one component (weight, mean, covariance): with fewer tiles than that for each, BIC says little.
COMPONENT_NUMBERS = 28


class Independent(Config):
    """One distribution for each of the six numbers, drawn independently."""

    mean: tuple[Finite, ...]
    """Location of each: averages of the three channels, then their standard deviations."""
    std: tuple[Finite, ...]
    """Scale of each: the standard deviation of a normal, the `scale` of a laplace distribution, as in RandStainNA,
    whose laplace draws thus have a standard deviation of √2 times this."""
    distribution: tuple[Distribution, ...] = ("normal",) * 6
    """normal or laplace, each."""

    @model_validator(mode="after")
    def _six(self) -> Self:
        for name in ("mean", "std", "distribution"):
            if len(getattr(self, name)) != SIZE:
                raise ValueError(f"{name} needs {SIZE} entries, 3 averages and 3 deviations")
        if min(self.std) < 0 or min(self.mean[3:]) < 0:
            raise ValueError("a standard deviation is negative")
        return self


class Mixture(Config):
    """A Gaussian mixture with full covariances over the six numbers together."""

    weights: tuple[Finite, ...]
    """Share of each of the K components; they sum to 1."""
    means: tuple[tuple[Finite, ...], ...]
    """[K][6]."""
    covariances: tuple[tuple[tuple[Finite, ...], ...], ...]
    """[K][6][6], symmetric and positive definite."""
    bic: dict[str, Finite] = Field(default_factory=dict)
    """Bayesian information criterion of every number of components that was tried; the least was taken."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        count = len(self.weights)
        if not count:
            raise ValueError("a mixture needs a component")
        if min(self.weights) < 0 or abs(sum(self.weights) - 1.0) > 1e-6:
            raise ValueError(f"weights must be 0 or more and sum to 1 (they sum to {sum(self.weights):g})")
        if [len(mean) for mean in self.means] != [SIZE] * count:
            raise ValueError(f"means must be {count} x {SIZE}, one row for each weight")
        if [[len(row) for row in matrix] for matrix in self.covariances] != [[SIZE] * SIZE] * count:
            raise ValueError(f"covariances must be {count} x {SIZE} x {SIZE}, one matrix for each weight")
        for number, matrix in enumerate(np.array(self.covariances)):
            if not _positive_definite(matrix):
                raise ValueError(f"covariance {number} is not symmetric and positive definite")
        return self


def _positive_definite(matrix: Array) -> bool:
    if not np.allclose(matrix, matrix.T, rtol=1e-6, atol=0.0):
        return False
    try:
        np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    return True


class StainStatistics(Config):
    """The distribution of a collection's stain, and where it comes from."""

    space: Space
    """lab, hsv or hed; the numbers are in the units of `eosin.augment.spaces`."""
    tissue_only: bool
    """Whether the numbers were taken over stained pixels only."""
    independent: Independent
    mixture: Mixture | None = None
    tiles: Annotated[int, Field(ge=0)] = 0
    """Tiles that were used; 0 where a foreign file does not say."""
    skipped: Annotated[int, Field(ge=0)] = 0
    """Tiles that were blank or unreadable."""
    source: str = ""
    """What was measured."""
    source_hash: str = ""
    """Hash of the source's content."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """How it was measured and fitted."""

    @model_validator(mode="after")
    def _of_this_space(self) -> Self:
        for row in (self.independent.mean, *(self.mixture.means if self.mixture else ())):
            for name, value, (low, high) in zip(CHANNELS[self.space], row[:3], _COLORS[self.space], strict=True):
                # Averages of float32 pixels leave the ends by a rounding.
                if not low - 0.01 * (high - low) <= value <= high + 0.01 * (high - low):
                    raise ValueError(
                        f"no color has an average {name} of {value:g} in {self.space.upper()} ({low:g} to {high:g}); "
                        "the numbers are of another color space"
                    )
        return self

    @model_validator(mode="after")
    def _finite_draws(self) -> Self:
        """Refuse deviations wider than a channel: they are of another space, or what is drawn from them overflows."""
        wide = np.array([high - low for low, high in _COLORS[self.space]] * 2)
        deviations = [self.independent.mean[3:], self.independent.std]
        if self.mixture is not None:
            deviations += [mean[3:] for mean in self.mixture.means]
            deviations += np.sqrt([np.diagonal(matrix) for matrix in self.mixture.covariances]).tolist()
        for row in deviations:
            for place, value in enumerate(row):
                if abs(value) > wide[place]:
                    name, space = CHANNELS[self.space][place % 3], self.space.upper()
                    raise ValueError(
                        f"a deviation of {value:g} is wider than channel {name} of {space} ({wide[place]:g}); the "
                        "numbers are of another color space"
                    )
        return self


def shipped_statistics() -> list[str]:
    """Return the names of the statistics that come with eosin."""
    return sorted(path.stem for path in STAINS.glob("*.json"))


def load_statistics(name_or_path: str) -> StainStatistics:
    """Read statistics.

    Args:
        name_or_path: A name that comes with eosin, such as "crc-lab"; a .json file that `eosin stain fit` wrote; or a
            .yaml or .yml file of RandStainNA.

    Raises:
        EosinError: If there is no such name or file, or it is not what it should be.
    """
    path = Path(name_or_path)
    if path.suffix not in (".json", ".yaml", ".yml"):
        names = shipped_statistics()
        if name_or_path not in names:
            raise EosinError(
                f"stain statistics '{name_or_path}': no such name, and no .json, .yaml or .yml file; "
                f"{nearest(name_or_path, names)}"
            )
        path = STAINS / f"{name_or_path}.json"
    if not path.is_file():
        raise EosinError(f"{path}: no such file; write it with `eosin stain fit`, or give one of those that come along")
    if path.suffix != ".json":
        return _from_randstainna(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        raise EosinError(f"{path}: empty, cut short or not JSON; write it again with `eosin stain fit`") from None
    if not isinstance(values, dict) or not {"space", "independent"} & values.keys():
        raise EosinError(f"{path}: not stain statistics; write them with `eosin stain fit`")
    return StainStatistics.parse(values, str(path))


def save_statistics(statistics: StainStatistics, path: str | Path) -> None:
    """Write statistics as JSON, whole or not at all.

    Raises:
        EosinError: If the place is not writable.
    """
    with atomic_file(Path(path), "w") as file:
        file.write(_layout(statistics.plain()) + "\n")


def _layout(value: Any, indent: str = "") -> str:
    """Format JSON with rows of numbers on one line each."""
    deeper = indent + "  "
    if isinstance(value, dict) and value:
        entries = [f"{deeper}{json.dumps(str(key))}: {_layout(entry, deeper)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(entry, list | dict) for entry in value):
        return "[\n" + ",\n".join(deeper + _layout(entry, deeper) for entry in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _from_randstainna(path: Path) -> StainStatistics:
    """Read a file of RandStainNA's `preprocess/datasets_statistics.py`."""
    values = read_yaml(path)
    name = str(values.pop("color_space", "(absent)"))
    if name.lower().startswith("random"):
        raise EosinError(f"{path}: joins several color spaces; split it into one file a space, and use them by turns")
    space = name.lower()
    if space not in CHANNELS:
        raise EosinError(f"{path}: field 'color_space' must be LAB, HED or HSV (got {name})")
    if str(values.get("methods", "Reinhard")).lower() != "reinhard":
        raise EosinError(f"{path}: field 'methods' must be Reinhard (got {values['methods']})")
    if space == "hsv" and "h" in values:
        values["H"] = values.pop("h")
    settings = {key: values.pop(key) for key in ("methods", "n_each_class", "random") if key in values}
    channels = CHANNELS[space]
    for key in values:
        if key not in channels:
            raise EosinError(f"{path}: unknown field '{key}'; {nearest(str(key), channels)}")
    entries = [_entry(path, values, channel, kind) for kind in ("avg", "std") for channel in channels]
    mean, std, distribution = zip(*entries, strict=True)
    plain = {
        "space": space,
        "tissue_only": False,
        "source": f"{path.name} (RandStainNA)",
        "independent": {"mean": mean, "std": std, "distribution": distribution},
        "settings": settings,
    }
    return StainStatistics.parse(plain, str(path))


def _entry(path: Path, values: dict[str, Any], channel: str, kind: str) -> tuple[Any, Any, str]:
    fields = values.get(channel)
    fields = fields.get(kind) if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or not {"mean", "std"} <= fields.keys():
        raise EosinError(f"{path}: field '{channel}.{kind}' must give mean, std and distribution")
    distribution = str(fields.get("distribution", "norm"))
    if distribution not in ("norm", "laplace"):
        raise EosinError(f"{path}: field '{channel}.{kind}.distribution' must be norm or laplace (got {distribution})")
    return fields["mean"], fields["std"], "laplace" if distribution == "laplace" else "normal"


def fit_statistics(
    values: Array,
    *,
    space: Space,
    tissue_only: bool,
    model: Literal["independent", "gmm"] = "gmm",
    components: int | Literal["auto"] = "auto",
    seed: int = 0,
    skipped: int = 0,
    source: str = "",
    source_hash: str = "",
    settings: dict[str, Any] | None = None,
) -> StainStatistics:
    """Fit the distribution of tiles' stain.

    Each number is taken as normal or as laplace, whichever makes the tiles more likely. The mixture is fitted on
    standardised numbers, to a random part of 50,000 tiles where there are more.

    Args:
        values: float64 [N, 6], one row a tile: averages, then standard deviations (`eosin.augment.image_statistics`).
        space: Color space of the values.
        tissue_only: Whether they were taken over stained pixels only.
        model: "independent", or "gmm" for a mixture besides.
        components: Number of Gaussians; "auto" takes from 1 to 8 the one with the least BIC, fewer where there are
            fewer than 28 tiles for each.
        seed: Of the mixture's start, and of the part of the tiles.
        skipped: Recorded, as are `source`, `source_hash` and `settings`.
        source: What was measured.
        source_hash: Hash of its content.
        settings: How it was measured.

    Raises:
        EosinError: If there are fewer than 2 tiles, fewer tiles than components, or values that are not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != SIZE:
        raise ValueError(f"expected [N, {SIZE}], got {list(values.shape)}")
    if len(values) < 2:
        raise EosinError(f"stain statistics need at least 2 tiles with tissue (got {len(values)})")
    if not np.isfinite(values).all():
        raise EosinError("stain statistics: a tile's numbers are not finite; measure the tiles again")
    mixture = _fit_mixture(values, components, seed) if model == "gmm" else None
    return StainStatistics(
        space=space,
        tissue_only=tissue_only,
        independent=_fit_independent(values),
        mixture=mixture,
        tiles=len(values),
        skipped=skipped,
        source=source,
        source_hash=source_hash,
        settings=settings or {},
    )


def _fit_independent(values: Array) -> Independent:
    mean, std = values.mean(axis=0), values.std(axis=0)
    median = np.median(values, axis=0)
    scale = np.abs(values - median).mean(axis=0)
    # Mean log likelihood of a tile under each law at its best: -log(2 e scale) and -log(std sqrt(2 pi e)).
    likely = np.log(2.0 * scale + 1e-12) + 1.0 < np.log(std + 1e-12) + 0.5 * np.log(2.0 * np.pi) + 0.5
    return Independent(
        mean=tuple(np.where(likely, median, mean).tolist()),
        std=tuple(np.where(likely, scale, std).tolist()),
        distribution=tuple("laplace" if entry else "normal" for entry in likely),
    )


def _fit_mixture(values: Array, components: int | Literal["auto"], seed: int) -> Mixture:
    from sklearn.mixture import GaussianMixture

    count = len(values)
    if components == "auto":
        tried = range(1, min(MOST_COMPONENTS, max(1, count // COMPONENT_NUMBERS)) + 1)
    else:
        if components < 1:
            raise EosinError(f"a mixture needs at least 1 component (got {components})")
        if components > count:
            raise EosinError(f"a mixture of {components} components needs as many tiles with tissue (got {count})")
        tried = range(components, components + 1)
    if count > MIXTURE_TILES:
        generator = np.random.Generator(np.random.Philox(key=seed))
        values = values[np.sort(generator.permutation(count)[:MIXTURE_TILES])]
    center, scale = values.mean(axis=0), values.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1e-9)
    # One scale for all numbers, so that the floor of the variances means the same in every space and channel.
    standard = (values - center) / scale
    found, bic = None, {}
    for number in tried:
        mixture = GaussianMixture(number, reg_covar=1e-4, n_init=2, max_iter=300, random_state=seed)
        mixture.fit(standard)
        bic[number] = float(mixture.bic(standard) + 2 * len(values) * np.log(scale).sum())
        if found is None or bic[number] < bic[found.n_components]:
            found = mixture
    assert found is not None
    covariances = found.covariances_ * np.outer(scale, scale)
    return Mixture(
        weights=tuple((found.weights_ / found.weights_.sum()).tolist()),
        means=_rows(found.means_ * scale + center),
        covariances=tuple(_rows((matrix + matrix.T) / 2) for matrix in covariances),
        bic={str(number): value for number, value in bic.items()},
    )


def _rows(matrix: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
