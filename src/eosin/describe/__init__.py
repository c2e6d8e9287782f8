"""What a source of tiles holds, before anything is trained on it: for the terminal, and as a page."""

from __future__ import annotations

from eosin.describe.run import SAMPLE, Description, describe
from eosin.describe.terminal import print_description

__all__ = ["SAMPLE", "Description", "describe", "print_description"]
