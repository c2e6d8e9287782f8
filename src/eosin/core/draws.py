"""Random draws as pure functions of (seed, step, position): no generator state to save, share or lose.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised
over the positions of a batch, so what an image draws does not depend on its neighbours, on the number of workers, on
the number of processes or on a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["Draws", "permuted", "philox", "stream_seed"]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)

UInt64Array = npt.NDArray[np.uint64]


def philox(counter: Sequence[UInt64Array], key: tuple[int, int]) -> list[UInt64Array]:
    """Apply Philox4x32-10 to counters.

    Args:
        counter: Four arrays of one shape, each holding 32-bit words in uint64.
        key: Two 32-bit words.

    Returns:
        Four arrays of that shape with 32 random bits each, in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = np.uint64(key[0]), np.uint64(key[1])
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _LOW, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return [c0, c1, c2, c3]


def stream_seed(seed: int, *names: object) -> int:
    """Derive a 64-bit seed for a named stream, so that adding a stream leaves the others' draws as they were."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


class Draws:
    """The draws of one batch.

    Args:
        seed: The run's seed.
        step: The training step, counted from 0.
        positions: int64 [B], each image's position in the global batch.
        scope: A prefix for stream names, for example the view's index.
    """

    def __init__(self, seed: int, step: int, positions: npt.ArrayLike, scope: str = "") -> None:
        self.seed = seed
        self.step = step
        self.positions = np.asarray(positions, dtype=np.uint64)
        self.scope = scope

    def __len__(self) -> int:
        return len(self.positions)

    def within(self, scope: str) -> Draws:
        """Return draws for the same images whose streams are independent of this object's."""
        return Draws(self.seed, self.step, self.positions, f"{self.scope}/{scope}")

    def uniform(self, stream: str, count: int = 1) -> npt.NDArray[np.float64]:
        """Draw from [0, 1).

        Args:
            stream: Name of what is drawn, such as "crop": the same name gives the same numbers.
            count: Draws per image.

        Returns:
            float64 [B, count].
        """
        seed = stream_seed(self.seed, self.scope, stream)
        blocks = -(-count // 2)
        shape = (len(self), blocks)
        block = np.broadcast_to(np.arange(blocks, dtype=np.uint64), shape)
        position = np.broadcast_to(self.positions[:, None], shape)
        step = np.full(shape, self.step, dtype=np.uint64)
        words = philox([position & _LOW, step & _LOW, block, step >> _SHIFT], (seed & 0xFFFFFFFF, seed >> 32))
        first, second = _unit(words[0], words[1]), _unit(words[2], words[3])
        return np.stack([first, second], axis=-1).reshape(len(self), 2 * blocks)[:, :count]

    def normal(self, stream: str, count: int = 1) -> npt.NDArray[np.float64]:
        """Draw from the standard normal distribution: float64 [B, count]."""
        from scipy.special import ndtri

        # Half a unit in the last place keeps 0 out of the inverse distribution function, and may round up to 1.
        return np.asarray(ndtri(np.minimum(self.uniform(stream, count) + 2.0**-54, 1.0 - 2.0**-53)))


def _unit(high: UInt64Array, low: UInt64Array) -> npt.NDArray[np.float64]:
    """Join two 32-bit words to a float64 in [0, 1) with 53 random bits."""
    return (((high << _SHIFT) | low) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permuted(index: npt.ArrayLike, size: int, seed: int) -> npt.NDArray[np.int64]:
    """Look up entries of a random permutation of ``range(size)`` without building it.

    A balanced Feistel network over the next even power of two, walked until it lands inside the range (Black and
    Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): any entry of an order over millions of tiles costs
    the same few operations.

    Args:
        index: Integers in [0, size).
        size: Length of the permutation.
        seed: Which permutation.

    Returns:
        int64 array of the index's shape.
    """
    values = np.atleast_1d(np.asarray(index, dtype=np.uint64)).copy()
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    pending = np.ones(values.shape, dtype=bool)
    while pending.any():
        values[pending] = _feistel(values[pending], half, mask, key)
        pending &= values >= size
    return values.astype(np.int64).reshape(np.shape(index))


def _feistel(values: UInt64Array, half: np.uint64, mask: np.uint64, key: tuple[int, int]) -> UInt64Array:
    left, right = values >> half, values & mask
    zero = np.zeros_like(values)
    for number in range(4):
        mixed = philox([right, zero + np.uint64(number), zero, zero], key)[0]
        left, right = right, (left ^ mixed) & mask
    return (left << half) | right
