from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.errors import EosinError
from eosin.core.files import DirectoryLock
from eosin.data import open_tiles
from eosin.tiling import Extras, TilingConfig, parse_shard, tile_slides
from eosin.tiling.config import TilingConfig as Config
from eosin.tiling.coordinates import Coordinates, write_coordinates

WriteSlide = Callable[..., Path]
Pattern = Callable[[int, int, int, int], np.ndarray]
CONFIG = TilingConfig(mpp=(0.5,), size=128)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file but the locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def slides(tmp_path: Path, write: WriteSlide) -> Path:
    write(tmp_path / "slides/a/one.svs", kind="svs")
    write(tmp_path / "slides/b/one.svs", kind="svs")
    write(tmp_path / "slides/two.tiff")
    write(tmp_path / "slides/three.ome.tif", kind="ome-tiff")
    return tmp_path / "slides"


def test_tiles_are_the_slide_at_a_physical_scale(tmp_path: Path, write: WriteSlide, tissue: Pattern) -> None:
    write(tmp_path / "s.tiff", quality=None)
    config = TilingConfig(mpp=(0.5, 1.0), size=128, encoding="png")
    summary = tile_slides([tmp_path / "s.tiff"], tmp_path / "out", config)
    tiles = open_tiles(tmp_path / "out")
    assert summary.tiles == len(tiles) == 8 * 6 + 4 * 3
    assert "s/0.5/x128_y256" in set(tiles.names)
    for row in range(len(tiles)):
        mpp, x, y = tiles.mpp[row], int(tiles.x[row]), int(tiles.y[row])
        pixels = tiles.image(row)
        if mpp == 0.5:
            np.testing.assert_array_equal(pixels, tissue(x, y, 128, 128).transpose(2, 0, 1))
        else:
            exact = tissue(x, y, 256, 256).reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
            assert np.abs(pixels - exact.transpose(2, 0, 1)).max() <= 0.5


def test_what_a_store_says_of_its_tiles(tmp_path: Path, slides: Path) -> None:
    import pyarrow.parquet

    extras = Extras(patient=r"^(\w)/")
    summary = tile_slides([slides], tmp_path / "out", CONFIG, extras=extras)
    manifest = pyarrow.parquet.read_table(tmp_path / "out/manifest.parquet").to_pylist()
    assert summary.tiles == len(manifest) == 4 * 48
    assert [record["slide"] for record in summary.records] == ["a/one", "b/one", "three", "two"]
    first = manifest[0]
    assert (first["slide"], first["patient"], first["mpp"]) == ("a/one", "a", 0.5)
    assert (first["level0_width"], first["level0_height"], first["tissue"]) == (128.0, 128.0, 1.0)
    with open(tmp_path / "out/slides.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["tiles"] for row in rows] == ["48"] * 4
    assert rows[0]["mpp_source"].startswith("aperio")
    assert float(rows[0]["tissue_mm2"]) == pytest.approx(1024 * 768 * 0.25e-6, rel=0.05)
    assert all((tmp_path / "out" / row["preview"]).stat().st_size > 0 for row in rows)


def test_the_same_whatever_the_processes_and_parts_of_an_array(
    tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tile_slides([slides], tmp_path / "one", CONFIG, processes=1)
    tile_slides([slides], tmp_path / "three", CONFIG, processes=3)
    for part in (2, 0, 1):
        tile_slides([slides], tmp_path / "array", CONFIG, shard=(part, 3))
    assert contents(tmp_path / "one") == contents(tmp_path / "three") == contents(tmp_path / "array")


def test_a_large_slide_is_cut_in_parts(tmp_path: Path, slides: Path) -> None:
    config = TilingConfig(mpp=(0.5,), size=16, stride=10)
    summary = tile_slides([slides / "two.tiff"], tmp_path / "parts", config, processes=2)
    shards = summary.records[0]["shards"]
    assert [shard["tiles"] for shard in shards] == np.diff(config.parts(summary.tiles)).tolist()
    assert len(shards) > 1
    assert summary.tiles == len(open_tiles(tmp_path / "parts"))
    tile_slides([slides / "two.tiff"], tmp_path / "again", config, processes=1)
    assert contents(tmp_path / "again") == contents(tmp_path / "parts")


@given(st.integers(0, 200_000), st.sampled_from([16, 224, 512, 8192]))
def test_parts_hold_each_tile_once_and_end_small(tiles: int, size: int) -> None:
    bounds = TilingConfig(size=size).parts(tiles)
    parts = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, tiles)
    assert (parts > 0).all()
    least = max(32, min(2048, (1 << 25) // size**2))
    assert (parts <= 8 * least).all()
    assert len(parts) <= 1 or (parts[:-1] >= least).all()


def test_only_what_is_missing_is_cut(tmp_path: Path, slides: Path, write: WriteSlide) -> None:
    out = tmp_path / "out"
    first = tile_slides([slides], out, CONFIG)
    assert (first.cut, first.kept) == (4, 0)
    before = contents(out)
    again = tile_slides([slides], out, CONFIG)
    assert (again.cut, again.kept) == (0, 4)
    assert contents(out) == before
    write(slides / "four.tiff")
    third = tile_slides([slides], out, CONFIG)
    assert (third.cut, third.kept, third.tiles) == (1, 4, 5 * 48)


def test_a_replaced_slide_is_cut_again_and_a_copied_one_is_not(
    tmp_path: Path, slides: Path, write: WriteSlide, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    os.utime(slides / "two.tiff", (1, 1))
    assert tile_slides([slides], out, CONFIG).cut == 0
    write(slides / "two.tiff", width=900)
    summary = tile_slides([slides], out, CONFIG)
    assert summary.cut == 1
    assert "'two' (the file was replaced)" in capsys.readouterr().err
    assert next(record for record in summary.records if record["slide"] == "two")["tiles"] == 7 * 6
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    tile_slides([slides], tmp_path / "fresh", CONFIG)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_slide_keeps_its_name_when_another_comes_beside_it(tmp_path: Path, slides: Path, write: WriteSlide) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    write(slides / "two.tif")
    summary = tile_slides([slides], out, CONFIG)
    assert (summary.cut, summary.kept) == (1, 4)
    assert {record["slide"] for record in summary.records} == {"a/one", "b/one", "three", "two", "two.tif"}


def test_a_slide_keeps_its_name_when_the_one_beside_it_goes(tmp_path: Path, slides: Path, write: WriteSlide) -> None:
    """Else its tiles would be in the store twice, under two names."""
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    write(slides / "two.svs", kind="svs", seed=5)
    tile_slides([slides], out, CONFIG)
    (slides / "two.tiff").unlink()
    again = tile_slides([slides], out, CONFIG)
    assert again.cut == 0
    paths = [record["path"] for record in again.records]
    assert len(set(paths)) == len(paths) == 5


def test_other_settings_in_one_store_are_refused(tmp_path: Path, slides: Path) -> None:
    tile_slides([slides], tmp_path / "out", CONFIG)
    before = contents(tmp_path / "out")
    with pytest.raises(EosinError, match="was cut with size 128, not 256; give the same, or choose another --out"):
        tile_slides([slides], tmp_path / "out", TilingConfig(mpp=(0.5,), size=256))
    assert contents(tmp_path / "out") == before
    (tmp_path / "else").mkdir()
    (tmp_path / "else/thesis.doc").write_text("years of work")
    with pytest.raises(EosinError, match="holds something else than a tiling"):
        tile_slides([slides], tmp_path / "else", CONFIG)


def test_bad_slides_are_named_and_the_others_go_on(
    tmp_path: Path, slides: Path, write: WriteSlide, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (slides / "a/one.svs").read_bytes()
    (slides / "cut.svs").write_bytes(whole[: len(whole) // 2])
    (slides / "empty.svs").touch()
    (slides / "text.tiff").write_text("not a slide")
    write(slides / "no-mpp.tiff", mpp=None)
    write(slides / "small.tiff", width=100, height=100, levels=(1,))
    write(slides / "glass.tiff", pattern=lambda x, y, w, h: np.full((h, w, 3), 243, np.uint8))
    (slides / "loop").symlink_to(slides)
    out = tmp_path / "out"
    summary = tile_slides([slides], out, CONFIG, processes=2)
    assert summary.tiles == 4 * 48
    reasons = {record["slide"]: record["reason"] for record in summary.without_tiles}
    assert set(reasons) == {"cut", "empty", "text", "no-mpp", "small", "glass"}
    assert "--source-mpp" in reasons["no-mpp"]
    assert "smaller than one tile of 128 px" in reasons["small"]
    assert "no tissue" in reasons["glass"]
    with open(out / "failures.csv") as file:
        assert {row["slide"]: row["reason"] for row in csv.DictReader(file)} == reasons
    assert all("\n" not in reason for reason in reasons.values())
    told = capsys.readouterr().err
    assert all(slide in told for slide in reasons)
    # With what was missing given, only that is done; a failure that was mended is none any more.
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\nno-mpp,0.5\n")
    shutil.copy(slides / "two.tiff", slides / "empty.svs")
    summary = tile_slides([slides], out, CONFIG, extras=Extras(source_mpp=str(table)))
    assert {record["slide"] for record in summary.without_tiles} == {"cut", "text", "small", "glass"}
    assert summary.tiles == 6 * 48


def test_a_number_is_for_slides_without_one_and_a_table_for_those_it_names(tmp_path: Path, write: WriteSlide) -> None:
    write(tmp_path / "slides/known.tiff")
    write(tmp_path / "slides/unknown.tiff", mpp=None)
    config = TilingConfig(mpp=(1.0,), size=128)
    numbers = tile_slides([tmp_path / "slides"], tmp_path / "a", config, extras=Extras(source_mpp="0.25"))
    assert [record["mpp_x"] for record in numbers.records] == pytest.approx([0.5, 0.25])
    first = tile_slides([tmp_path / "slides"], tmp_path / "later", config)
    later = tile_slides([tmp_path / "slides"], tmp_path / "later", config, extras=Extras(source_mpp="0.25"))
    assert (first.cut, len(first.without_tiles), later.cut, later.kept) == (2, 1, 1, 1)
    assert contents(tmp_path / "later") == contents(tmp_path / "a")
    other = tile_slides([tmp_path / "slides"], tmp_path / "later", config, extras=Extras(source_mpp="0.5"))
    assert (other.cut, other.kept) == (1, 1)
    (tmp_path / "mpp.csv").write_text("slide,mpp\nknown,0.25\nunknown,0.5\n")
    extras = Extras(source_mpp=str(tmp_path / "mpp.csv"))
    table = tile_slides([tmp_path / "slides"], tmp_path / "b", config, extras=extras)
    assert [record["mpp_x"] for record in table.records] == pytest.approx([0.25, 0.5])
    assert "0.25 is used" in table.records[0]["notes"][0]


def test_a_process_that_dies_takes_only_its_slide(tmp_path: Path, slides: Path) -> None:
    """A slide on which the library crashes: stood in for by one whose reading kills its process."""
    script = tmp_path / "run.py"
    script.write_text(
        """
import os, signal, sys
from pathlib import Path
from eosin.tiling import schedule, tasks
from eosin.tiling import TilingConfig, tile_slides

begin = tasks.begin_slide
def dying(job, out):
    if job.name == "two":
        os.kill(os.getpid(), signal.SIGSEGV)
    return begin(job, out)

if __name__ == "__main__":
    schedule.begin_slide = dying
    summary = tile_slides([Path(sys.argv[1])], Path(sys.argv[2]), TilingConfig(mpp=(0.5,), size=128), processes=2)
    print([(r["slide"], r["tiles"], r["reason"]) for r in summary.records])
"""
    )
    ran = subprocess.run(
        [sys.executable, str(script), str(slides), str(tmp_path / "out")], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "('two', 0, 'the process reading it was killed, twice" in ran.stdout
    assert ran.stdout.count(", 48, ''") == 3


def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path: Path, slides: Path) -> None:
    """Kill −9 at random moments, again and again, until a run ends by itself."""
    words = [sys.executable, "-m", "eosin.cli", "tile", str(slides), "--mpp", "0.5", "--size", "64", "--jobs", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*words, "--out", str(whole)], check=True, capture_output=True, env=environment, timeout=120)
    expected = contents(whole)
    stopped = 0
    # Each run is killed when so many files are there; those of an earlier one count, and the last runs to its end.
    for files in [*sorted(np.random.default_rng(0).integers(1, len(expected), 6).tolist()), len(expected) + 1000]:
        with subprocess.Popen(
            [*words, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        ) as run:
            while run.poll() is None and sum(1 for _ in killed.rglob("*")) < files:
                time.sleep(0.002)
            if run.poll() is None:
                run.kill()
                stopped += 1
    assert run.returncode == 0
    assert stopped
    assert contents(killed) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_leaves_nothing_unfinished(tmp_path: Path, write: WriteSlide, number: int) -> None:
    write(tmp_path / "large.tiff", width=4096, height=4096, pattern=None)
    words = [sys.executable, "-m", "eosin.cli", "tile", str(tmp_path / "large.tiff"), "--size", "16", "--jobs", "2"]
    words += ["--minimum-tissue", "0", "--out", str(tmp_path / "out")]

    def heed() -> None:
        # A job in the background of a shell is started with SIGINT ignored, and so would be its children.
        signal.signal(number, signal.SIG_DFL)

    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as run:
        while run.poll() is None and not list(tmp_path.glob("out/shards/*.arrow")):
            time.sleep(0.02)
        run.send_signal(number)
        told = run.communicate(timeout=60)[1]
    assert run.returncode == 130, told
    assert told.rstrip().endswith("the same command goes on where it was")
    assert not list((tmp_path / "out/shards").iterdir())
    assert not list((tmp_path / "out").rglob("*.part"))


def test_a_store_under_way_is_not_for_two(tmp_path: Path, slides: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with DirectoryLock(out), pytest.raises(EosinError, match="in use by process"):
        tile_slides([slides], out, CONFIG)
    with DirectoryLock(out, shared=True), pytest.raises(EosinError, match="in use by"):
        tile_slides([slides], out, CONFIG)
    with DirectoryLock(out, shared=True):
        assert tile_slides([slides], out, CONFIG, shard=(0, 2)).cut == 2


def test_a_full_disk_ends_the_run_and_keeps_what_is_whole(tmp_path: Path, slides: Path) -> None:
    """Files cannot grow beyond 50 kB: the shards cannot be written, smaller files can."""
    out = tmp_path / "out"
    tile_slides([slides / "two.tiff"], out, CONFIG)
    before = contents(out)
    words = [sys.executable, "-m", "eosin.cli", "tile", str(slides), "--mpp", "0.5", "--size", "128", "--out", str(out)]
    ran = subprocess.run(
        ["bash", "-c", f"ulimit -f 50; {shlex.join(words)}"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 2
    assert ran.stderr.count("error:") == 1
    assert "cannot be written" in ran.stderr
    after = contents(out)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith("previews/") for name in set(after) - set(before))
    assert tile_slides([slides], out, CONFIG).tiles == 4 * 48


def test_nothing_to_cut_is_an_error(tmp_path: Path, write: WriteSlide) -> None:
    write(tmp_path / "slides/glass.tiff", pattern=lambda x, y, w, h: np.full((h, w, 3), 243, np.uint8))
    with pytest.raises(EosinError, match="none of the 1 slides has a tile"):
        tile_slides([tmp_path / "slides"], tmp_path / "out", CONFIG)
    assert (tmp_path / "out/failures.csv").read_text().count("glass") >= 1
    with pytest.raises(EosinError, match="no such file"):
        tile_slides([tmp_path / "absent"], tmp_path / "out", CONFIG)


def test_masks_and_regions(tmp_path: Path, write: WriteSlide) -> None:
    from PIL import Image

    write(tmp_path / "slides/s.tiff")
    square = [[0, 0], [512, 0], [512, 512], [0, 512], [0, 0]]
    region = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [square]}, "properties": {}}
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions/s.geojson").write_text(json.dumps(region))
    summary = tile_slides([tmp_path / "slides"], tmp_path / "roi", CONFIG, extras=Extras(regions=tmp_path / "regions"))
    assert summary.tiles == 16
    mask = np.zeros((128, 160), np.uint8)
    mask[96:, :] = 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks/s.png")
    summary = tile_slides([tmp_path / "slides"], tmp_path / "mask", CONFIG, extras=Extras(masks=tmp_path / "masks"))
    assert summary.tiles == 10 * 2
    Image.fromarray(np.zeros_like(mask)).save(tmp_path / "masks/s.png")
    with pytest.raises(EosinError, match=r"'s': no tissue in its mask .*s\.png; give one with pixels that are not 0"):
        tile_slides([tmp_path / "slides"], tmp_path / "none", CONFIG, extras=Extras(masks=tmp_path / "masks"))
    both = Extras(masks=tmp_path / "masks", regions=tmp_path / "regions")
    with pytest.raises(EosinError, match=r"'s': no tissue inside the regions of .*s\.geojson; look at its preview"):
        tile_slides([tmp_path / "slides"], tmp_path / "neither", CONFIG, extras=both)
    assert "tissue from a given mask" in summary.records[0]["notes"]
    # A region that changes is a reason to cut the slide again; one outside names the slide.
    region["geometry"]["coordinates"] = [[[x + 5000, y] for x, y in square]]
    (tmp_path / "regions/s.geojson").write_text(json.dumps(region))
    with pytest.raises(EosinError, match="none of the 1 slides has a tile"):
        tile_slides([tmp_path / "slides"], tmp_path / "roi", CONFIG, extras=Extras(regions=tmp_path / "regions"))


def test_a_damaged_file_of_coordinates_concerns_its_slide_alone(tmp_path: Path, write: WriteSlide) -> None:
    pytest.importorskip("h5py")
    lists = tmp_path / "lists"
    lists.mkdir()
    corners = np.array([[0, 0], [64, 32]])
    for name in ("a", "b", "c"):
        write(tmp_path / f"slides/{name}.tiff")
        x, y = (corners[[0, 1, 0]] if name == "c" else corners).T
        write_coordinates(lists / f"{name}.h5", Coordinates(x, y, 128.0, 128.0, 128, "clam"), kind="clam", name=name)
    (lists / "a.h5").write_bytes(b"not HDF5")
    summary = tile_slides([tmp_path / "slides"], tmp_path / "out", CONFIG, extras=Extras(coordinates=lists))
    assert [record["tiles"] for record in summary.records] == [0, 2, 0]
    assert "not a readable H5 file" in summary.records[0]["reason"]
    assert "lists a tile twice" in summary.records[2]["reason"]


def test_ray_gives_the_same_store(tmp_path: Path, slides: Path) -> None:
    pytest.importorskip("ray")
    tile_slides([slides], tmp_path / "here", CONFIG)
    tile_slides([slides], tmp_path / "ray", CONFIG, ray="local")
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")


@pytest.mark.parametrize("text", ["3", "1/0", "2/2", "-1/3", "a/b", "1/2/3"])
def test_faulty_shards(text: str) -> None:
    with pytest.raises(EosinError, match="--shard"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mpp": ()}, "at least one"),
        ({"mpp": (0.0,)}, "outside"),
        ({"mpp": (0.5, 0.5)}, "given twice"),
        ({"size": 8}, "size"),
        ({"minimum_tissue": 1.5}, "minimum_tissue"),
        ({"quality": 0}, "quality"),
        ({"stride": 0}, "stride"),
    ],
)
def test_faulty_settings(fields: dict[str, object], told: str) -> None:
    with pytest.raises(EosinError, match=told):
        Config.parse(fields, "eosin tile")
