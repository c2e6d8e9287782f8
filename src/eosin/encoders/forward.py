"""What a network raises while it runs, told in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from eosin.core.errors import EosinError
from eosin.core.memory import lacks_memory
from eosin.encoders.base import Card

__all__ = ["FORWARD_ERRORS", "first_line", "forward_errors"]

FORWARD_ERRORS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, ZeroDivisionError)
"""What networks raise for images that they cannot take, an error of memory among them: see `core.memory`."""


@contextlib.contextmanager
def forward_errors(card: Card, size: int) -> Iterator[None]:
    """Tell in one line that a network cannot run; a lack of memory is left to the caller, who may take fewer images.

    Args:
        card: Of the encoder.
        size: Side of its images in pixels.

    Raises:
        EosinError: In place of what the network raises.
    """
    try:
        yield
    except FORWARD_ERRORS as error:
        if lacks_memory(error):
            raise
        raise EosinError(
            f"{card.spec}: the network fails on images of {size} px ({first_line(error)}); give it another size, or "
            "use another encoder"
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
