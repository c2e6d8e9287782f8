"""eosin: self-supervised pre-training and honest evaluation of image encoders for computational pathology."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eosin.encoders import Encoder, load_encoder

__all__ = ["Encoder", "__version__", "load_encoder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `import eosin` must not.
    if name in ("Encoder", "load_encoder"):
        from eosin import encoders

        return getattr(encoders, name)
    raise AttributeError(f"module 'eosin' has no attribute '{name}'")
