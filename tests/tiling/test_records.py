"""What a tiling's directory holds after whatever happened to it."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eosin.core.errors import EosinError
from eosin.core.files import DirectoryLock
from eosin.data import open_tiles
from eosin.slides import InterruptedSlide, UnusableSlide, find_slides, open_slide
from eosin.tiling import Extras, TilingConfig, jobs, tile_slides
from eosin.tiling.cut import CutPart, cut_part, plan_slide
from eosin.tiling.display import TilingProgress
from eosin.tiling.identity import file_identity
from eosin.tiling.jobs import SlideJob, make_jobs
from eosin.tiling.records import Records
from eosin.tiling.schedule import Schedule
from eosin.tiling.tasks import begin_slide

WriteSlide = Callable[..., Path]
CONFIG = TilingConfig(mpp=(0.5,), size=128)


@pytest.fixture
def slides(tmp_path: Path, write: WriteSlide) -> Path:
    for name in ("one", "two", "three"):
        write(tmp_path / f"slides/{name}.tiff", quality=None)
    return tmp_path / "slides"


def the_job(slides: Path, name: str) -> SlideJob:
    return next(job for job in make_jobs(find_slides([slides]), CONFIG, Extras())[0] if job.name == name)


def stopped(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> None:
    """Make a call that is stopped before it cuts a slide."""

    def stop(self: Schedule, jobs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Schedule, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            call()


def files(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file() and ".lock" not in path.name}


def test_unfinished_files_are_removed_whatever_the_slide_is_called(tmp_path: Path, write: WriteSlide) -> None:
    write(tmp_path / "slides/scan-20230101-a.tiff")
    tile_slides([tmp_path / "slides"], tmp_path / "out", CONFIG)
    before = files(tmp_path / "out")
    key = the_job(tmp_path / "slides", "scan-20230101-a").key
    gone = jobs.slide_key("a slide that is no longer given")
    of_slides = (f"shards/.{key}-000.arrow.abc_1234.part", f"slides/.{key}.json.abcdefgh.part")
    of_all = (".manifest.parquet.abcdefgh.part", "sheets/.000.png.abcdefgh.part")
    for left in (*of_slides, *of_all):
        (tmp_path / "out" / left).touch()
    (tmp_path / "out/shards" / f"{gone}-000.arrow").touch()
    tile_slides([tmp_path / "slides"], tmp_path / "out", CONFIG)
    assert files(tmp_path / "out") == before


def test_a_failure_that_outlived_its_mending_is_removed(tmp_path: Path, slides: Path) -> None:
    """Killed between a slide's record and the removal of its failure, a run leaves both."""
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    before = files(out)
    (out / f"failed/{the_job(slides, 'two').key}.json").write_text('{"slide": "two", "tiles": 0, "path": ""}')
    tile_slides([slides], out, CONFIG)
    assert files(out) == before


def test_a_slide_that_changes_while_it_is_cut_is_not_committed(tmp_path: Path, slides: Path, write: WriteSlide) -> None:
    records = Records(tmp_path / "out")
    records.agree(CONFIG)
    job = the_job(slides, "two")
    plan, parts = begin_slide(job, records.out)
    write(job.path, width=900)
    with pytest.raises(UnusableSlide, match="changed while it was cut"):
        records.commit(job, plan, parts)
    assert records.done() == {}


def test_a_run_stopped_while_it_replaces_a_slide_leaves_a_store(
    tmp_path: Path, slides: Path, write: WriteSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    write(slides / "two.tiff", width=900)
    stopped(monkeypatch, lambda: tile_slides([slides], out, CONFIG))
    assert set(open_tiles(out).slide) == {"one", "three"}
    # Killed right after the record was removed, a run has not come to the rest.
    (out / f"slides/{the_job(slides, 'one').key}.json").unlink()
    stopped(monkeypatch, lambda: tile_slides([slides], out, CONFIG))
    assert set(open_tiles(out).slide) == {"three"}
    assert tile_slides([slides], out, CONFIG).tiles == 48 + 42 + 48
    assert set(open_tiles(out).slide) == {"one", "two", "three"}


def test_a_slide_replaced_by_a_broken_one_leaves_what_a_first_run_would(tmp_path: Path, slides: Path) -> None:
    tile_slides([slides], tmp_path / "out", CONFIG)
    (slides / "two.tiff").write_bytes(b"broken")
    assert len(tile_slides([slides], tmp_path / "out", CONFIG).without_tiles) == 1
    tile_slides([slides], tmp_path / "first", CONFIG)
    assert files(tmp_path / "out") == files(tmp_path / "first")


def test_tiles_that_were_removed_or_damaged_are_cut_again(
    tmp_path: Path, slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    keys = {name: the_job(slides, name).key for name in ("one", "two", "three")}
    (out / f"shards/{keys['one']}-000.arrow").unlink()
    os.truncate(out / f"shards/{keys['two']}-000.arrow", 1000)
    (out / f"slides/{keys['three']}.parquet").unlink()
    assert tile_slides([slides], out, CONFIG).cut == 3
    assert "cut again, first 'one' (its tiles were removed or damaged)" in capsys.readouterr().err
    tiles = open_tiles(out)
    assert len(tiles) == 3 * 48
    assert tiles.image(0).shape == (3, 128, 128)


def test_what_another_job_takes_away_meanwhile_is_passed_over(tmp_path: Path, slides: Path) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    for folder in ("failed", "slides"):
        (out / folder / "gone-00000000.json").symlink_to("nothing")
    records = Records(out)
    assert set(records.done()) == {"one", "two", "three"}
    assert records.failed() == {}


def test_nothing_is_written_again_when_nothing_changed(tmp_path: Path, slides: Path) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    written = [out / name for name in ("manifest.parquet", "store.json", "slides.csv", "failures.csv")]
    before = [path.stat().st_ino for path in written]
    tile_slides([slides], out, CONFIG)
    assert [path.stat().st_ino for path in written] == before
    written[3].unlink()
    tile_slides([slides], out, CONFIG)
    assert written[3].exists()


def test_an_option_left_out_does_not_cost_the_store(tmp_path: Path, slides: Path, write: WriteSlide) -> None:
    out = tmp_path / "out"
    write(slides / "four.tiff", mpp=None)
    extras = Extras(source_mpp="0.5", patient="(.)")
    tile_slides([slides], out, CONFIG, extras=extras)
    before = files(out)
    with pytest.raises(EosinError, match="were cut with --patient; give it again"):
        tile_slides([slides], out, CONFIG, extras=Extras(source_mpp="0.5"))
    with pytest.raises(EosinError, match="'four' and others were cut with --source-mpp; give it again"):
        tile_slides([slides], out, CONFIG, extras=Extras(patient="(.)"))
    assert files(out) == before
    assert tile_slides([slides], out, CONFIG, extras=extras).kept == 4


def test_a_slide_that_cannot_be_looked_at_is_kept(
    tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)

    def refused(path: Path) -> tuple[int, int]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("eosin.tiling.records.file_state", refused)
    assert tile_slides([slides], out, CONFIG).kept == 3
    assert "3 slides cannot be looked at and are kept" in capsys.readouterr().err


def test_a_failed_slide_that_was_removed_is_forgotten(tmp_path: Path, slides: Path, write: WriteSlide) -> None:
    out = tmp_path / "out"
    (slides / "broken.tiff").touch()
    assert len(tile_slides([slides], out, CONFIG).without_tiles) == 1
    # Beside another of its name it is called as before, and not listed twice.
    write(slides / "broken.svs", kind="svs")
    assert [record["slide"] for record in tile_slides([slides], out, CONFIG).without_tiles] == ["broken"]
    (slides / "broken.tiff").unlink()
    assert tile_slides([slides], out, CONFIG).without_tiles == ()


def test_a_removed_slide_is_taken_out_as_the_warning_says(
    tmp_path: Path, slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    key = the_job(slides, "two").key
    (slides / "two.tiff").unlink()
    assert tile_slides([slides], out, CONFIG).tiles == 3 * 48
    assert "first 'two'); they are kept; to take one out, remove its file" in capsys.readouterr().err
    (out / f"slides/{key}.json").unlink()
    assert tile_slides([slides], out, CONFIG).tiles == 2 * 48
    assert not list(out.rglob(f"{key}*"))
    assert len(open_tiles(out)) == 2 * 48


def test_copies_and_renamed_slides_are_told(
    tmp_path: Path, write: WriteSlide, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write(tmp_path / "slides/one.tiff")
    write(tmp_path / "slides/two.tiff", width=1300)
    tile_slides([tmp_path / "slides"], tmp_path / "out", CONFIG)
    assert "copies" not in capsys.readouterr().err
    first.rename(tmp_path / "slides/renamed.tiff")
    tile_slides([tmp_path / "slides"], tmp_path / "out", CONFIG)
    assert "1 slides are copies of others, or were renamed (first 'renamed' of 'one')" in capsys.readouterr().err


def test_slides_are_the_same_from_another_folder(
    tmp_path: Path, slides: Path, write: WriteSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(slides / "more/four.tiff")
    monkeypatch.chdir(tmp_path)
    tile_slides([Path("slides")], out, CONFIG)
    monkeypatch.chdir(slides)
    assert tile_slides([Path()], out, CONFIG).kept == 4
    # There it would be called four.
    assert tile_slides([slides / "more"], out, CONFIG).kept == 1


def test_what_is_written_is_no_slide(tmp_path: Path, slides: Path) -> None:
    extras = Extras(source_mpp="0.5")
    tile_slides([slides], slides / "out", CONFIG, extras=extras, plain=True)
    summary = tile_slides([slides], slides / "out", CONFIG, extras=extras, plain=True)
    assert (summary.cut, summary.kept, len(summary.records)) == (0, 3, 3)


def test_two_divisions_of_the_slides_do_not_meet(tmp_path: Path, slides: Path) -> None:
    out = tmp_path / "out"
    assert tile_slides([slides], out, CONFIG, shard=(0, 2)).left == 1
    with DirectoryLock(out, shared=True), DirectoryLock(out, ".lock-of-2", shared=True):
        with pytest.raises(EosinError, match="--shard 0/3: jobs of 2 parts are at work"):
            tile_slides([slides], out, CONFIG, shard=(0, 3))
        assert tile_slides([slides], out, CONFIG, shard=(1, 2)).left == 0
    assert tile_slides([slides], out, CONFIG, shard=(0, 3)).kept == 1


def test_a_job_of_an_array_may_have_no_slide(tmp_path: Path, slides: Path) -> None:
    summary = tile_slides([slides], tmp_path / "out", CONFIG, shard=(7, 8))
    assert (summary.cut, summary.tiles, summary.left) == (0, 0, 3)


def test_jobs_that_start_at_once_do_not_take_each_other_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    listed = Path.iterdir

    def late(path: Path) -> object:
        """The other job makes its files just before this one lists them."""
        (path / "tiling.json").touch()
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", late)
    Records(out)


def test_slides_whose_files_would_be_called_alike_are_refused(
    tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "slide_key", lambda name: "_-12345678")
    with pytest.raises(EosinError, match="give the same file names; rename one"):
        tile_slides([slides], tmp_path / "out", CONFIG)


def test_old_and_new_parts_of_a_store_are_not_mixed(
    tmp_path: Path, slides: Path, write: WriteSlide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the new manifest and the old list of shards, the tiles of one slide would be read from another's file."""
    out = tmp_path / "out"
    tile_slides([slides], out, CONFIG)
    old = (out / "store.json").read_bytes()
    opened = open_tiles(out)
    write(slides / "a-first.tiff")
    tile_slides([slides], out, CONFIG)
    with pytest.raises(EosinError, match="the store changed since it was opened"):
        list(opened.source.digests())  # type: ignore[attr-defined]
    new = (out / "store.json").read_bytes()
    (out / "store.json").write_bytes(old)
    # The run that adds to it comes to the second of its two renames while the reader waits.
    monkeypatch.setattr(time, "sleep", lambda seconds: (out / "store.json").write_bytes(new))
    assert open_tiles(out).slide[0] == "a-first"
    (out / "store.json").write_bytes(old)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(EosinError, match="not of one store"):
        open_tiles(out)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), InterruptedSlide("the network is down")])
def test_a_failing_disk_loses_no_tile(
    tmp_path: Path, slides: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tile in 100 may be damaged; one that the disk did not give is not damaged."""
    job = dataclasses.replace(the_job(slides, "two"), config=TilingConfig(mpp=(0.5,), size=16))
    for folder in ("previews", "shards"):
        (tmp_path / folder).mkdir()
    with open_slide(job.path) as slide:
        plan = plan_slide(slide, job, tmp_path / "previews")
        assert len(plan.chosen) > 1000
        read, calls = slide.read, iter(range(10_000))

        def failing(*arguments: float) -> np.ndarray:
            if next(calls) == 500:
                raise error
            return read(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(slide, "read", failing)
        with pytest.raises(InterruptedSlide):
            cut_part(slide, job, plan.chosen, 0, tmp_path / "shards", len(plan.chosen))
    assert not list((tmp_path / "shards").iterdir())


def test_few_damaged_tiles_are_few_of_the_slide_not_of_its_part(
    tmp_path: Path, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path / "out")
    records.agree(CONFIG)
    job = dataclasses.replace(the_job(slides, "two"), config=TilingConfig(mpp=(0.5,), size=16))
    seen = {"given": job.given(), **file_identity(job.path)}
    with open_slide(job.path) as slide:
        plan = dataclasses.replace(plan_slide(slide, job, records.out / "previews"), seen=seen)
        read, bad = slide.read, set(range(10))

        def damaged(x: float, y: float, *arguments: float) -> np.ndarray:
            if y == 0 and x // 16 in bad:
                raise UnusableSlide("torn")
            return read(x, y, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(slide, "read", damaged)
        total = len(plan.chosen)

        def cut() -> list[CutPart]:
            bounds = (0, 100, 200, total)
            return [
                cut_part(slide, job, plan.chosen.part(*bounds[part : part + 2]), part, records.out / "shards", total)
                for part in range(3)
            ]

        record = records.commit(job, plan, cut())
        assert (record["tiles"], len(record["damaged"])) == (total - 10, 10)
        bad |= set(range(60))
        with pytest.raises(UnusableSlide, match="unreadable"):
            records.commit(job, plan, cut())


def test_damaged_tiles_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with TilingProgress([], 0) as progress:
        progress.ended(
            {
                "slide": "two",
                "key": "two-12345678",
                "tiles": 198,
                "damaged": ["two/0.5/x0_y0: torn", "two/0.5/x9_y0: torn"],
            }
        )
    assert progress.damaged == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "two: 2 of 200 tiles are unreadable (first two/0.5/x0_y0: torn)" in told


def test_pixels_beside_a_mirax_file_belong_to_it(tmp_path: Path) -> None:
    slide = tmp_path / "s.mrxs"
    slide.write_bytes(b"slide")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/Data0001.dat").write_bytes(b"pixels")
    before = file_identity(slide)
    (tmp_path / "s/Data0001.dat").write_bytes(b"others")
    assert file_identity(slide)["sample_sha256"] != before["sample_sha256"]
    assert file_identity(slide)["bytes"] == before["bytes"] == len(b"slidepixels")


def test_tissue_lies_where_it_is_at_the_far_end_of_a_slide(tmp_path: Path, write: WriteSlide) -> None:
    """The last pixel of the thumbnail reaches out of the slide: its others must not move for that."""
    edge = 4096

    def half(x: int, y: int, width: int, height: int) -> np.ndarray:
        columns = np.arange(x, x + width)[None, :, None]
        pixels = np.where(columns < edge, [180, 80, 160], [244, 244, 244]).astype(np.uint8)
        return np.broadcast_to(pixels, (height, width, 3)).copy()

    # 4,529 px of 0.5 µm are 283.06 px of 8 µm.
    path = write(tmp_path / "s.tiff", width=4529, height=1024, levels=(1, 16), pattern=half, quality=None)
    config = TilingConfig(mpp=(0.5,), size=48, stride=16, minimum_tissue=0.0)
    job = dataclasses.replace(the_job(tmp_path, "s"), config=config)
    assert job.path == path
    with open_slide(path) as slide:
        chosen = plan_slide(slide, job, tmp_path).chosen
    exact = np.clip(edge - chosen.x, 0, 48) / 48
    np.testing.assert_allclose(chosen.tissue, exact, atol=1e-9)


def test_fields_of_view_of_one_place_are_cut_together(tmp_path: Path, write: WriteSlide) -> None:
    """Block by block of the largest tile, so that the pixels under it are decoded once."""
    path = write(tmp_path / "s.tiff")
    config = TilingConfig(mpp=(0.5, 1.0), size=128, minimum_tissue=0.0)
    job = dataclasses.replace(the_job(tmp_path, "s"), config=config)
    with open_slide(path) as slide:
        chosen = plan_slide(slide, job, tmp_path).chosen
    blocks = list(zip((chosen.y // 256).tolist(), (chosen.x // 256).tolist(), strict=True))
    assert blocks == sorted(blocks)
    assert chosen.grid[:5].tolist() == [0, 0, 0, 0, 1]
