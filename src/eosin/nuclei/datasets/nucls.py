"""NuCLS: breast, crowd-sourced nuclei (Amgad et al., GigaScience 2022), as images with NPZ label maps."""

from __future__ import annotations

from typing import Literal

from eosin.core.errors import EosinError
from eosin.nuclei.datasets.folder import FolderOptions, open_folder
from eosin.nuclei.datasets.registry import NUCLEI_SETS, About, NucleiScheme
from eosin.nuclei.datasets.sample import NucleiSet

__all__ = ["NUCLS", "NuclsOptions"]

NUCLS = About(
    name="nucls",
    title="NuCLS",
    task="breast, nuclei of two types",
    classes=("non-tumor", "tumor"),
    image_size=(256, 256),
    licence="CC0 1.0",
    use="anyone, for anything",
    home="https://sites.google.com/view/nucls (label maps: https://github.com/TIO-IKIM/CellViT-plus-plus)",
    layout=("{train,test}/images/*.png", "{train,test}/labels/*.npz (inst_map, type_map)"),
    reference="Amgad et al., NuCLS, GigaScience 2022",
    flaws=(
        "the archive of the authors has other files (rgb, csv, mask at 0.2 µm/px); this is the layout of CellViT++",
        "this layout does not say the µm/px: give it with ?mpp=",
        "patients are not given: val is cut from train by image",
    ),
)


class NuclsOptions(FolderOptions):
    """What may follow the `?` of ``nucls:DIR``."""

    labels: Literal["types", "none"] = "types"
    """none leaves types out."""


def _open(source: str, options: NuclsOptions, spec: str) -> NucleiSet:
    named = () if options.labels == "none" else NUCLS.classes
    found = open_folder(NUCLS, source, options, spec, named, "nucls")
    if "given" not in found.split_source:
        raise EosinError(f"{spec}: has neither train/ nor test/; NuCLS has {' and '.join(NUCLS.layout)}")
    return found


NUCLEI_SETS.register("nucls")(NucleiScheme(NUCLS, NuclsOptions, _open, {}))
