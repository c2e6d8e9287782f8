"""Encoders as a command line lists them: a name to show and a spec in which a seed may stand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eosin.core.errors import EosinError

__all__ = ["NamedEncoder", "named_encoders"]

_SEED = "{seed}"


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder to score.

    Attributes:
        name: Shown in results.
        template: Its spec, in which {seed} may stand.
    """

    name: str
    template: str

    def spec(self, seed: int) -> str:
        """Return the spec for a seed."""
        return self.template.replace(_SEED, str(seed))


def named_encoders(texts: tuple[str, ...]) -> list[NamedEncoder]:
    """Read ``SPEC`` and ``NAME=SPEC``; a name holds none of the characters ``: / ?``, which specs hold.

    A text that names a file or folder that exists, such as the run ``lr=0.1``, is a spec.

    Raises:
        EosinError: If a name or spec is empty, or two encoders have one name.
    """
    encoders: dict[str, NamedEncoder] = {}
    for text in texts:
        name, separator, spec = (part.strip() for part in text.partition("="))
        exists = Path(text.strip().partition("?")[0]).expanduser().exists()
        if not separator or exists or any(mark in name for mark in ":/?"):
            name = spec = text.strip()
        if not name or not spec:
            raise EosinError(f"encoder '{text}': write SPEC or NAME=SPEC")
        if name in encoders:
            raise EosinError(f"two encoders are named '{name}'; give one another name with NAME=SPEC")
        encoders[name] = NamedEncoder(name, spec)
    return list(encoders.values())
