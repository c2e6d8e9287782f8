"""Labelled nuclei: public sets in their official layouts, a user's own folder, and drawn tissue."""

# The sets register their schemes.
from eosin.nuclei.datasets import consep as _consep  # noqa: F401
from eosin.nuclei.datasets import folder as _folder  # noqa: F401
from eosin.nuclei.datasets import lizard as _lizard  # noqa: F401
from eosin.nuclei.datasets import monuseg as _monuseg  # noqa: F401
from eosin.nuclei.datasets import nucls as _nucls  # noqa: F401
from eosin.nuclei.datasets import pannuke as _pannuke  # noqa: F401
from eosin.nuclei.datasets import synthetic as _synthetic  # noqa: F401
from eosin.nuclei.datasets.registry import NUCLEI_SETS, About, open_nuclei
from eosin.nuclei.datasets.sample import NucleiImage, NucleiSample, NucleiSet, fraction

__all__ = [
    "NUCLEI_SETS",
    "About",
    "NucleiImage",
    "NucleiSample",
    "NucleiSet",
    "fraction",
    "open_nuclei",
]
