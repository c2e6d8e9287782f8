"""Where eosin keeps what it made or was given for all runs of a user."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["eosin_home"]


def eosin_home() -> Path:
    """Return ``$EOSIN_HOME``, by default ``~/.cache/eosin``; it need not exist."""
    return Path(os.environ.get("EOSIN_HOME") or Path.home() / ".cache" / "eosin").expanduser()
