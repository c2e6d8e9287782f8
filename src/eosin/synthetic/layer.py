"""What a painter of tissue hands back."""

from __future__ import annotations

from dataclasses import dataclass

from eosin.synthetic.frame import Array
from eosin.synthetic.shapes import Shapes


@dataclass(frozen=True)
class Layer:
    """A field of one tissue before its nuclei are drawn.

    Attributes:
        hematoxylin: Amount of hematoxylin, float32 [size, size], 1 in a typical nucleus.
        eosin: Amount of eosin, float32 [size, size], about 0.8 in muscle.
        bodies: The nuclei in groups, the later on top.
    """

    hematoxylin: Array
    eosin: Array
    bodies: list[Shapes]
