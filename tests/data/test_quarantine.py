from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.data import Quarantine


def test_each_tile_is_listed_once(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path)
    assert quarantine.summary() == "no unreadable tiles"
    assert not path.exists()
    for name, reason in [("a.png", "truncated"), ("ü/b.png", "empty"), ("a.png", "truncated")]:
        quarantine.add(name, reason)
    assert read_json_lines(path) == [
        {"name": "a.png", "reason": "truncated"},
        {"name": "ü/b.png", "reason": "empty"},
    ]
    assert quarantine.count == 2
    assert quarantine.names == ["a.png", "ü/b.png"]
    assert quarantine.reason("ü/b.png") == "empty"
    assert quarantine.summary() == f"2 unreadable tiles left out, listed in {path} (first 'a.png': truncated)"


def test_a_resumed_run_goes_on_with_the_list(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path).add("a.png", "truncated")
    with path.open("a") as file:
        file.write('{"name": "cut sho')
    again = Quarantine(path)
    assert again.names == ["a.png"]
    again.add("a.png", "truncated")
    again.add("b.png", "empty")
    assert [line["name"] for line in read_json_lines(path)] == ["a.png", "b.png"]


def test_the_limit(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", limit=0.02)
    quarantine.add("a.png", "truncated")
    quarantine.add("b.png", "empty")
    quarantine.check(100)
    with pytest.raises(EosinError) as caught:
        quarantine.check(99)
    message = str(caught.value)
    assert "2 of 99 tiles are unreadable, more than the limit of 0.02" in message
    assert "first 'a.png': truncated" in message
    assert "quarantine.jsonl" in message
    assert "raise quarantine_limit" in message
    Quarantine(None, limit=0).check(10)
    with pytest.raises(EosinError, match=r"quarantine_limit 1\.5: give a share"):
        Quarantine(None, limit=1.5)


def test_what_was_repaired_before_a_resume_does_not_stop_it(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first = Quarantine(path)
    for number in range(5):
        first.add(f"{number}.png", "empty")
    again = Quarantine(path)
    again.check(100)
    again.add("0.png", "empty")
    again.check(100)
    again.add("1.png", "empty")
    with pytest.raises(EosinError, match="2 of 100"):
        again.check(100)
    assert again.count == 5


def _list_all(path: Path, names: list[str]) -> None:
    quarantine = Quarantine(path)
    for name in names:
        quarantine.add(name, "empty")


def test_several_processes_share_one_list(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    names = [f"{number}.png" for number in range(60)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_list_all, args=(path, names[::step])) for step in (1, -1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(line["name"] for line in read_json_lines(path)) == sorted(names)


def test_a_list_that_is_something_else(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    path.write_text("names\n")
    with pytest.raises(EosinError, match="damaged line"):
        Quarantine(path)
