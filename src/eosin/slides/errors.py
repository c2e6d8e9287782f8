"""What makes a slide unusable, told so that its owner can mend it."""

from __future__ import annotations

__all__ = ["InterruptedSlide", "UnusableSlide"]


class UnusableSlide(Exception):
    """A slide that cannot be used.

    The message is one line with the reason and, where there is one, the fix; it leaves out the slide's path, which the
    caller puts in front.
    """


class InterruptedSlide(UnusableSlide):
    """A slide whose disk or network fails: nothing is wrong with the slide, and another try may succeed."""
