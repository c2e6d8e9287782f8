"""Checkpoints: few, checked, and never lost to a damaged or half-written newer one."""

import errno
import subprocess
from pathlib import Path

import pytest
import torch

from eosin.core.errors import EosinError
from eosin.training.checkpoints import Checkpoints


def state(value):
    return {"weights": torch.full((4,), float(value)), "numbers": {"step": value}}


def test_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    assert checkpoints.load_newest() is None
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    assert [step for step, _ in checkpoints.saved()] == [20, 30]
    step, loaded = checkpoints.load_newest()
    assert (step, loaded["numbers"]["step"]) == (30, 30)
    torch.testing.assert_close(loaded["weights"], torch.full((4,), 30.0))


def test_a_damaged_newest_falls_back_and_says_so(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    checkpoints.save(10, state(10))
    newest = checkpoints.save(20, state(20))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoints.load_newest()[0] == 10
    assert "damaged" in capsys.readouterr().err
    newest.write_bytes(content[:100])
    assert checkpoints.load_newest()[0] == 10
    for _, path in checkpoints.saved():
        path.write_bytes(b"")
    with pytest.raises(EosinError, match="every checkpoint is damaged"):
        checkpoints.load_newest()


def test_one_that_cannot_be_read_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    (tmp_path / "c" / "step-00000010-0123456789abcdef.pt").mkdir(parents=True)
    with pytest.raises(EosinError, match="step-00000010.*cannot be read"):
        checkpoints.load_newest()


def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    checkpoints.save(10, state(10))
    checkpoints.save(20, state(20)).write_bytes(b"")
    assert checkpoints.load_newest()[0] == 10
    checkpoints.save(12, state(12))
    assert [step for step, _ in checkpoints.saved()] == [10, 12]


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(EosinError, match="no space left"):
        Checkpoints(tmp_path / "c").save(10, state(10))


def test_saving_the_same_step_again_leaves_one(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    checkpoints.save(10, state(10))
    checkpoints.save(10, state(10))
    assert len(checkpoints.saved()) == 1


def test_leftovers_of_a_killed_save_are_removed(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(10, state(10))
    (tmp_path / "c" / ".step-00000020-0.pt.abc.part").write_bytes(b"half")
    checkpoints.save(30, state(30))
    assert not list((tmp_path / "c").glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_keeps_the_old_checkpoint(small_disk: Path):
    checkpoints = Checkpoints(small_disk / "c", keep=2)
    checkpoints.save(10, state(10))
    with pytest.raises(EosinError, match=r"no space left.*the checkpoint of step 10 is kept"):
        checkpoints.save(20, {"weights": torch.zeros(10**6)})
    assert checkpoints.load_newest()[0] == 10
    assert not list((small_disk / "c").glob(".*"))
