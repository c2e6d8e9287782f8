"""Encoders as a command line lists them: a name to show and a spec in which a seed may stand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eosin.core.errors import EosinError
from eosin.encoders.registry import ENCODERS

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
    """Read ``SPEC`` and ``NAME=SPEC``; a name holds neither ``:`` nor ``?``, which specs hold.

    A text that names a file or folder that exists, such as the run ``lr=0.1``, is a spec. A name with a slash, such as
    ``ViT-S/16=random:vit_small_patch16_224``, needs a spec with a known scheme or of an existing path behind it: else
    the whole is taken for a path.

    Raises:
        EosinError: If a name or spec is empty, or two encoders have one name.
    """
    encoders: dict[str, NamedEncoder] = {}
    for text in texts:
        name, separator, spec = (part.strip() for part in text.partition("="))
        if not separator or _exists(text.strip()) or ":" in name or "?" in name or ("/" in name and not _is_spec(spec)):
            name = spec = text.strip()
        if not name or not spec:
            raise EosinError(f"encoder '{text}': write SPEC or NAME=SPEC")
        if name in encoders:
            raise EosinError(f"two encoders are named '{name}'; give one another name with NAME=SPEC")
        encoders[name] = NamedEncoder(name, spec)
    return list(encoders.values())


def _exists(text: str) -> bool:
    return Path(text.partition("?")[0]).expanduser().exists()


def _is_spec(text: str) -> bool:
    return text.partition(":")[0] in ENCODERS or _SEED in text or _exists(text)
