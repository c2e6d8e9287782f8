"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["EosinError", "StorageError", "nearest"]


class EosinError(Exception):
    """A problem with the input or the machine that the user can mend.

    The message is one line: it names the file or field, what is wrong with it, and the fix. The command line prints
    it without a traceback and exits with code 2; `--debug` shows the traceback.
    """


class StorageError(EosinError):
    """A full disk or a missing permission: what comes next would meet it too."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Describe the valid name closest to a wrong one, for use at the end of an error message.

    Args:
        name: What the user wrote.
        known: The valid names.

    Returns:
        ``did you mean 'x'?`` when something is close, else ``valid: a, b, c``.
    """
    names = sorted(set(known))
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"valid: {', '.join(names)}"
