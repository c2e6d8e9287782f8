"""Small copies of sets of nuclei in their official layouts: names, keys, types of values and counts are exact."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIDE = 32


def labels(seed: int, side: int = SIDE, count: int = 5) -> np.ndarray:
    """Squares that touch here and there; ids 1 to n, some hidden by later ones."""
    rng = np.random.default_rng([7, seed])
    found = np.zeros((side, side), np.int32)
    for number in range(1, count + 1):
        top, left = rng.integers(0, side - 6, 2)
        found[top : top + rng.integers(3, 7), left : left + rng.integers(3, 7)] = number
    present = np.unique(found[found > 0])
    return np.searchsorted(np.concatenate([[0], present]), found).astype(np.int32)


def pixels(seed: int, side: int = SIDE) -> np.ndarray:
    """Any picture, uint8 [H, W, 3]."""
    return np.random.default_rng([8, seed]).integers(0, 256, (side, side, 3), dtype=np.uint8)


def picture(path: Path, seed: int, side: int = SIDE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, side)).save(path)


def kinds(seed: int, count: int, classes: int) -> np.ndarray:
    return np.random.default_rng([9, seed]).integers(1, classes + 1, count)


def centroids(found: np.ndarray) -> np.ndarray:
    places = [np.argwhere(found == number).mean(axis=0)[::-1] for number in range(1, found.max() + 1)]
    return np.array(places).reshape(-1, 2)


def consep(root: Path) -> Path:
    for part, count in (("Train", 27), ("Test", 14)):
        (root / part / "Overlay").mkdir(parents=True)
        (root / part / "Labels").mkdir()
        for number in range(1, count + 1):
            seed, name = number + 100 * (part == "Test"), f"{part.lower()}_{number}"
            found = labels(seed)
            types = kinds(seed, found.max(), 7)
            picture(root / part / "Images" / f"{name}.png", seed)
            values = {
                "inst_map": found.astype(np.float64),
                "type_map": np.concatenate([[0], types])[found].astype(np.float64),
                "inst_type": types[:, None].astype(np.float64),
                "inst_centroid": centroids(found),
            }
            savemat(root / part / "Labels" / f"{name}.mat", values, do_compression=True)
    return root


def xml(polygons: list[list[tuple[float, float]]]) -> str:
    regions = "".join(
        f'<Region Id="{number}" Type="0" Zoom="1" Area="0" NegativeROA="0"><Attributes/><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in polygon)
        + "</Vertices></Region>"
        for number, polygon in enumerate(polygons, start=1)
    )
    return (
        '<Annotations MicronsPerPixel="0.252000"><Annotation Id="1" Name="" ReadOnly="0" Type="4"><Attributes/>'
        f"<Regions><RegionAttributeHeaders/>{regions}</Regions><Plots/></Annotation></Annotations>"
    )


POLYGONS = [[(2.0, 3.0), (7.0, 3.0), (7.0, 9.0), (2.0, 9.0)], [(5.0, 5.0), (12.0, 5.0), (12.0, 15.0), (5.0, 15.0)]]


def monuseg(root: Path) -> Path:
    from eosin.nuclei.datasets.monuseg import _ORGANS

    extra = [f"TCGA-XX-000{number}" for number in range(7)]
    for seed, patient in enumerate([*_ORGANS, *extra]):
        folder = root / "MoNuSeg 2018 Training Data"
        picture(folder / "Tissue Images" / f"{patient}-01Z-00-DX1.tif", seed)
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{patient}-01Z-00-DX1.xml").write_text(xml(POLYGONS))
    for number in range(14):
        path = root / "MoNuSegTestData" / f"TCGA-YY-00{number:02d}-01A-01-TS1.tif"
        picture(path, 200 + number)
        path.with_suffix(".xml").write_text(xml(POLYGONS[:1]))
    return root


def pannuke(root: Path, each: int = 3, official: bool = False) -> Path:
    """Channel c of image i holds one square of id i + 1, and channel 1 overlaps channel 0."""
    for fold in (1, 2, 3):
        images = np.stack([pixels(10 * fold + row) for row in range(each)]).astype(np.float64)
        masks = np.zeros((each, SIDE, SIDE, 6))
        for row in range(each):
            for channel in range(5):
                masks[row, 6 * channel : 6 * channel + 4, 2:8, channel] = row + 1
            masks[row, 2:5, 6:12, 1] = 40
        masks[..., 5] = masks[..., :5].max(axis=-1) == 0
        place = root / f"Fold {fold}" if official else root / f"fold{fold}"
        pictures = place / "images" / f"fold{fold}" if official else place
        maps = place / "masks" / f"fold{fold}" if official else place
        pictures.mkdir(parents=True, exist_ok=True)
        maps.mkdir(parents=True, exist_ok=True)
        np.save(pictures / "images.npy", images)
        np.save(pictures / "types.npy", np.array(["Breast", "Colon", "Bile-duct"] * each)[:each])
        np.save(maps / "masks.npy", masks)
    return root


def nucls(root: Path) -> Path:
    for part, count in (("train", 10), ("test", 5)):
        (root / part / "labels").mkdir(parents=True)
        for number in range(1, count + 1):
            seed = number + 50 * (part == "test")
            found = labels(seed)
            types = np.concatenate([[0], kinds(seed, found.max(), 2)])[found].astype(np.uint8)
            picture(root / part / "images" / f"{part}_{number}.png", seed)
            np.savez(root / part / "labels" / f"{part}_{number}.npz", inst_map=found, type_map=types)
    return root


def lizard(root: Path, each: int = 4) -> Path:
    (root / "Lizard_Labels" / "Labels").mkdir(parents=True)
    rows = []
    for number in range(3 * each):
        name = f"{('consep', 'crag', 'glas')[number % 3]}_{number}"
        found = labels(number)
        # Ids that leave gaps, and a table in another order.
        spread = np.concatenate([[0], 3 * np.arange(1, found.max() + 1)])[found].astype(np.int32)
        order = np.random.default_rng(number).permutation(found.max())
        picture(root / f"Lizard_Images{1 + number % 2}" / f"{name}.png", number)
        values = {
            "inst_map": spread,
            "id": (3 * (order + 1))[:, None].astype(np.int32),
            "class": kinds(number, found.max(), 6)[order][:, None].astype(np.uint8),
            "bbox": np.zeros((found.max(), 4), np.int32),
            "centroid": centroids(found)[order],
        }
        savemat(root / "Lizard_Labels" / "Labels" / f"{name}.mat", values)
        rows.append((name, name.split("_")[0], 1 + number % 3))
    with open(root / "Lizard_Labels" / "info.csv", "w", newline="") as file:
        csv.writer(file).writerows([("Filename", "Source", "Split"), *rows])
    return root


def folder(root: Path, count: int = 10) -> Path:
    for number in range(count):
        picture(root / "images" / f"{number:02d}.png", number)
        (root / "labels").mkdir(exist_ok=True)
        Image.fromarray(labels(number).astype(np.uint16)).save(root / "labels" / f"{number:02d}.png")
    return root
