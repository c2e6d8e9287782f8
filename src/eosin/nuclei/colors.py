"""Colors of types: told apart by the color-blind too, and from the pink and violet of H&E."""

from __future__ import annotations

__all__ = ["Color", "color_of"]

Color = tuple[int, int, int]

# Okabe and Ito's (2008), the reddish purple left out, and the brightest first.
_COLORS: tuple[Color, ...] = (
    (240, 228, 66),
    (86, 180, 233),
    (0, 158, 115),
    (213, 94, 0),
    (0, 114, 178),
    (230, 159, 0),
    (255, 255, 255),
    (0, 0, 0),
)
_UNTYPED: Color = (0, 230, 64)
_BACKGROUND: Color = (128, 128, 128)


def color_of(kind: int) -> Color:
    """Return the color (R, G, B) of a type: 1 to n, -1 where there are no types, 0 where the pixels say background."""
    if kind < 0:
        return _UNTYPED
    return _COLORS[(kind - 1) % len(_COLORS)] if kind else _BACKGROUND
