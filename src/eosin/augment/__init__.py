"""Views of tiles: batched augmentation, sampled and then applied, on any device."""

from eosin.augment.blur import BlurConfig
from eosin.augment.color import JitterConfig, SolarizeConfig
from eosin.augment.views import AugmentConfig, ViewConfig, Views

__all__ = ["AugmentConfig", "BlurConfig", "JitterConfig", "SolarizeConfig", "ViewConfig", "Views"]
