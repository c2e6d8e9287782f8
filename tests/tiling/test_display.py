from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from eosin.tiling import display
from eosin.tiling.config import TilingConfig
from eosin.tiling.display import TilingProgress
from eosin.tiling.jobs import SlideJob


def job(folder: Path, name: str, size: int) -> SlideJob:
    path = folder / name
    path.write_bytes(bytes(size))
    return SlideJob(path=path, name=name, key=name, config=TilingConfig())


def record(name: str, tiles: int) -> dict[str, object]:
    return {"slide": name, "key": name, "tiles": tiles, "reason": "" if tiles else "empty (0 bytes)"}


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal 60 columns wide."""
    text = io.StringIO()
    monkeypatch.setattr(
        display, "console", Console(file=text, width=60, force_terminal=True, soft_wrap=True, no_color=True)
    )
    return text


def test_nothing_to_do_shows_nothing(shown: io.StringIO) -> None:
    with TilingProgress([], 3):
        pass
    assert shown.getvalue() == ""


def test_slides_without_tiles_are_as_much_done_as_others(tmp_path: Path, shown: io.StringIO) -> None:
    jobs = [job(tmp_path, name, size) for name, size in (("one", 300), ("two", 100), ("three", 50))]
    with TilingProgress(jobs, 0) as progress:
        progress.advance(jobs[0], 0.5, 10, 1000)
        progress.advance(jobs[0], 0.5, 10, 1000)
        progress.ended(record("one", 20))
        assert progress._progress.tasks[0].completed == 300
        progress.ended(record("two", 0))
        # Half of it was cut before a damaged spot.
        progress.advance(jobs[2], 0.5, 10, 1000)
        progress.ended(record("three", 0))
        assert progress._progress.finished


def test_a_narrow_terminal_shows_the_time_left_whole(tmp_path: Path, shown: io.StringIO) -> None:
    jobs = [job(tmp_path, str(number), 100) for number in range(16)]
    with TilingProgress(jobs, 0) as progress:
        for one in jobs:
            progress.advance(one, 1.0, 1000, 1000)
            progress.ended(record(one.name, 0))
    assert "16/16 slides  16,000 tiles" in shown.getvalue()
    assert "0:00:00 left" in shown.getvalue()
    assert "…" not in shown.getvalue()
