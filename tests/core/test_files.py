"""Files: whole or absent, on errors and on a full disk; locks."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from eosin.core.errors import EosinError
from eosin.core.files import (
    DirectoryLock,
    append_json_line,
    atomic_directory,
    atomic_file,
    read_json_lines,
    storage_errors,
    writable_directory,
)


def test_atomic_file_keeps_the_old_one_on_an_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_file(path, "w") as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomic_file(path, "w") as file:
        file.write("new")
    assert path.read_text() == "new"


def test_atomic_directory_appears_whole_or_not(tmp_path):
    target = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), atomic_directory(target) as folder:
        (folder / "x").write_text("1")
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []
    with atomic_directory(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    with pytest.raises(EosinError, match="exists already"), atomic_directory(target):
        pass


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    code = (
        "import sys,time,pathlib; from eosin.core.files import atomic_directory\n"
        "with atomic_directory(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'x').write_text('1'); print('held', flush=True); time.sleep(60)"
    )
    target = tmp_path / "store [1]"
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        (part,) = tmp_path.iterdir()
        with pytest.raises(RuntimeError), atomic_directory(target):
            raise RuntimeError
        assert list(tmp_path.iterdir()) == [part]
    finally:
        process.kill()
        process.wait()
    with atomic_directory(target):
        assert not part.exists()
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("code", "words"), [("ENOSPC", "no space left"), ("EACCES", "not writable")])
def test_storage_errors_say_what_to_do(tmp_path, code, words):
    import errno

    with pytest.raises(EosinError, match=words), storage_errors(tmp_path):
        raise OSError(getattr(errno, code), "x")
    with pytest.raises(OSError, match="x"), storage_errors(tmp_path):
        raise OSError(errno.ECHILD, "x")


def test_a_directory_that_goes_away_is_one_line(tmp_path):
    with pytest.raises(EosinError, match=r"gone/a\.json: cannot be written \(No such file or directory\)"):
        append_json_line(tmp_path / "gone" / "a.json", {})
    with pytest.raises(EosinError, match="cannot be written"), atomic_file(tmp_path / "gone" / "b"):
        pass


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EosinError, match="is a file"):
        writable_directory(tmp_path / "file")
    with pytest.raises(EosinError, match="part of this path is a file|cannot be written"):
        writable_directory(tmp_path / "file" / "below")


def test_json_lines_survive_a_line_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"step": 1})
    append_json_line(path, {"step": 2})
    with open(path, "a") as file:
        file.write('{"step": 3')
    assert [record["step"] for record in read_json_lines(path)] == [1, 2]
    append_json_line(path, {"step": 4})
    assert [record["step"] for record in read_json_lines(path)] == [1, 2, 4]
    path.write_text('{"step": \n{"step": 2}\n')
    with pytest.raises(EosinError, match="line 1 is damaged"):
        read_json_lines(path)
    path.write_text('{"step": 1}\n[2]\n')
    with pytest.raises(EosinError, match="line 2 is damaged"):
        read_json_lines(path)
    assert read_json_lines(tmp_path / "absent") == []


def test_a_file_written_at_once_has_no_line_cut_short(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    with pytest.raises(EosinError, match="line 2 is damaged; run it again"):
        read_json_lines(path, whole=True, fix="run it again")
    path.write_text('{"step": 1}\n{"step": 2}')
    assert len(read_json_lines(path, whole=True)) == 2


def test_lock_is_exclusive_and_dies_with_its_process(tmp_path):
    code = (
        "import sys,time,pathlib; from eosin.core.files import DirectoryLock\n"
        "with DirectoryLock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(EosinError, match=f"in use by process {process.pid}"):
            DirectoryLock(tmp_path).__enter__()
    finally:
        process.kill()
        process.wait()
    with DirectoryLock(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_a_forked_child_does_not_hold_its_parents_lock(tmp_path):
    code = (
        "import os,pathlib,sys,time; from eosin.core.files import DirectoryLock\n"
        "lock = DirectoryLock(pathlib.Path(sys.argv[1])).__enter__()\n"
        "if os.fork() == 0: print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        with pytest.raises(EosinError, match=f"in use by process {process.pid}"):
            DirectoryLock(tmp_path).__enter__()
        process.kill()
        process.wait()
        os.kill(child, 0)
        with DirectoryLock(tmp_path):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_json_line_is_one_line(tmp_path):
    append_json_line(tmp_path / "a", {"text": "a\nb é"})
    (line,) = (tmp_path / "a").read_text().splitlines()
    assert json.loads(line) == {"text": "a\nb é"}


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("eosin.core.files.fcntl.flock", refuse)
    with pytest.raises(EosinError, match=r"keeps no locks \(Function not implemented\); mount it with them"):
        DirectoryLock(tmp_path).__enter__()
