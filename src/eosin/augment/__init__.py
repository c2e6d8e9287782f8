"""Views of tiles: batched augmentation, sampled and then applied, on any device."""

from eosin.augment.blur import BlurConfig
from eosin.augment.color import JitterConfig, SolarizeConfig
from eosin.augment.hed import HEDJitterConfig
from eosin.augment.macenko import MacenkoConfig
from eosin.augment.randstainna import RandStainNAConfig
from eosin.augment.views import AugmentConfig, ViewConfig, Views

__all__ = [
    "AugmentConfig",
    "BlurConfig",
    "HEDJitterConfig",
    "JitterConfig",
    "MacenkoConfig",
    "RandStainNAConfig",
    "SolarizeConfig",
    "ViewConfig",
    "Views",
]
