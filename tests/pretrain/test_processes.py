"""A run shared by two processes: one log of both, one quarantine, and the run that one process gives."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from eosin.core.files import read_json_lines
from eosin.methods import METHODS
from eosin.pretrain import pretrain
from eosin.training.checkpoints import Checkpoints
from forked import Forked, ranks

# A transformer has no batch norm, whose running statistics are the first process's own.
SHORT = {
    "encoder__architecture": "test_vit",
    "encoder__size": 32,
    "samples": 96,
    "optimizer__warmup_samples": 0,
    "data__quarantine_limit": 0.5,
}


@pytest.fixture
def torn_tiles(tile_folder, tmp_path):
    """The tiles, six of them unreadable."""
    folder = tmp_path / "tiles"
    shutil.copytree(tile_folder, folder)
    for number in range(6):
        (folder / f"tile-{number:02d}.png").write_text("no image")
    return str(folder)


def words(config, out):
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(config.plain()))
    return ["-m", "eosin.cli", "pretrain", str(path), "--out", str(out)]


def finish_pair(config, out):
    """Run two processes to their end and return what each has said."""
    pair = [Forked(*words(config, out), env=environment) for environment in ranks(2)]
    first, second = [process.finish() for process in pair]
    assert [process.returncode for process in pair] == [0, 0], first + second
    return first, second


def test_two_processes_give_the_run_of_one(tiny, torn_tiles, tmp_path):
    config = tiny(**SHORT, data__source=torn_tiles)
    pretrain(config, tmp_path / "one")
    first, second = finish_pair(config, tmp_path / "two")
    assert (first + second).count("steps of 8;") == 1
    assert "6 unreadable tiles left out" in first
    one, two = (read_json_lines(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    for ours, theirs in zip(two, one, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("loss", "watch/positive_similarity", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    listed = [
        {entry["name"] for entry in read_json_lines(tmp_path / name / "quarantine.jsonl")} for name in ("one", "two")
    ]
    assert listed[0] == listed[1]
    assert len(listed[0]) == 6


def test_a_signal_stops_both_with_one_checkpoint(tiny, tmp_path):
    config = tiny(**SHORT | {"samples": 80_000}, checkpoint__every_steps=100_000)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += words(config, tmp_path / "run")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    ((step, _),) = Checkpoints(tmp_path / "run" / "checkpoints").saved()
    assert step % 4 == 0


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_a_run_of_one_process_goes_on_with_two(tiny_of, tmp_path, monkeypatch, name):
    config = tiny_of(name, samples=160, checkpoint__every_steps=8, optimizer__lr=0.001)
    pretrain(config, tmp_path / "whole")
    method = METHODS[name]
    after_step = method.after_step

    def stop(self):
        if self.steps == 11:
            raise KeyboardInterrupt
        after_step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(method, "after_step", stop)
        pretrain(config, tmp_path / "moved")
    first, _ = finish_pair(config, tmp_path / "moved")
    assert "at step 8 of 20" in first
    whole, moved = (read_json_lines(tmp_path / run / "metrics.jsonl") for run in ("whole", "moved"))
    assert [record["step"] for record in moved] == [record["step"] for record in whole]
    for ours, theirs in zip(moved, whole, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
    first, second = (Checkpoints(tmp_path / run / "checkpoints").load_newest()[1] for run in ("whole", "moved"))
    for key, value in first["method"].items():
        if isinstance(value, torch.Tensor):
            assert (second["method"][key] - value).double().norm() <= 0.01 * value.double().norm() + 1e-6, key
