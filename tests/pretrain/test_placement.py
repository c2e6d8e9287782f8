"""Views are made on the device or in the workers, by trial; on a CPU both give the same bits."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from eosin.augment import AugmentConfig, ViewConfig, Views
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.pretrain import placement, pretrain
from eosin.pretrain.placement import SETTLING_STEPS, TRIAL_STEPS, Placement, RunViews
from eosin.training.checkpoints import Checkpoints

CPU = torch.device("cpu")


def choose(wanted="fastest", **options):
    values = {"step": 0, "steps": 1000, "workers": 2, "batch_bytes": 1000, "device": CPU} | options
    return Placement(wanted, **values)


def trial(chosen, monkeypatch, seconds):
    """Let the steps of each place take the given seconds, the settling ones ten times as long."""
    clock = [0.0]
    monkeypatch.setattr(placement.time, "perf_counter", lambda: clock[0])
    said = []
    for place in ("device", "workers"):
        assert chosen.where == place
        for step in range(TRIAL_STEPS):
            clock[0] += seconds[place] * (10 if step <= SETTLING_STEPS else 1)
            chosen.step_taken()
        said.append(chosen.turn())
    return said


@pytest.mark.parametrize(("device", "workers", "winner"), [(0.2, 0.1, "workers"), (0.1, 0.2, "device")])
def test_the_faster_place_stays(monkeypatch, device, workers, winner):
    chosen = choose(step=5)
    assert chosen.until == 5 + TRIAL_STEPS
    first, second = trial(chosen, monkeypatch, {"device": device, "workers": workers})
    assert first is None
    assert f"device {1000 * device:.0f} ms, workers {1000 * workers:.0f} ms" in second
    assert (chosen.where, chosen.until) == (winner, 1000)
    assert chosen.turn() is None


def test_what_is_asked_for_is_done_without_a_trial():
    for wanted in ("device", "workers"):
        chosen = choose(wanted)
        assert (chosen.where, chosen.until) == (wanted, 1000)
        assert f"--augment_on {wanted}" in chosen.describe()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"workers": 0}, "no workers"),
        ({"steps": 50}, "not worth it"),
        ({"batch_bytes": 10**15}, "/dev/shm"),
    ],
)
def test_no_trial_where_it_makes_no_sense(options, reason):
    chosen = choose(**options)
    assert (chosen.where, chosen.until) == ("device", options.get("steps", 1000))
    assert reason in chosen.describe()


def test_without_workers_the_device_makes_them():
    chosen = choose("workers", workers=0)
    assert chosen.where == "device"
    assert "--data.workers is 0" in chosen.describe()


def test_views_of_a_run_survive_pickling():
    views = RunViews(Views(AugmentConfig(views={"global": ViewConfig(size=24)})), seed=3)
    images = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8)
    positions = np.arange(8, 12)
    expected = views.views(images, Draws(3, 7, positions))
    for one, other in zip(pickle.loads(pickle.dumps(views))(images, 7, positions, None), expected, strict=True):
        assert torch.equal(one, other)


def weights(out):
    return Checkpoints(out / "checkpoints").load_newest()[1]["method"]


@pytest.mark.parametrize("workers", [1, 2])
def test_both_places_give_the_same_run(tiny, tmp_path, workers):
    for where in ("device", "workers"):
        fields = {"samples": 64, "optimizer__warmup_samples": 8, "augment_on": where, "data__workers": workers}
        pretrain(tiny(accumulate=2, **fields), tmp_path / where)
    ours, theirs = weights(tmp_path / "device"), weights(tmp_path / "workers")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if isinstance(ours[name], torch.Tensor))


def test_a_run_with_a_trial_is_the_run_without(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(placement, "TRIAL_STEPS", 6)
    for where in ("device", "fastest"):
        fields = {"samples": 400, "augment_on": where, "data__workers": 1, "checkpoint__every_steps": 50}
        pretrain(tiny(**fields), tmp_path / where)
    ours, theirs = weights(tmp_path / "device"), weights(tmp_path / "fastest")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if isinstance(ours[name], torch.Tensor))
    losses = [
        [record["loss"] for record in read_json_lines(tmp_path / where / "metrics.jsonl")]
        for where in ("device", "fastest")
    ]
    assert losses[0] == losses[1]
    assert "a step took device" in capsys.readouterr().err


def test_a_field_of_view_without_resolutions_is_refused(tiny, tmp_path):
    view = {"augment__views__global__field_of_view": [8.0, 12.0]}
    with pytest.raises(
        EosinError, match=r"'augment.views.global.field_of_view': 64 of 64 tiles of .* have no µm/px .*--data.mpp"
    ):
        pretrain(tiny(**view), tmp_path / "run")


@pytest.mark.parametrize("mpp", ["-0.5", "0", "250", "0.00025", "inf"])
def test_a_resolution_that_is_none_is_refused(tiny, tile_folder, tmp_path, mpp):
    files = sorted(path for path in tile_folder.rglob("*") if path.is_file())
    rows = [f"{path},{mpp if number == 5 else ''}" for number, path in enumerate(files)]
    (tmp_path / "tiles.csv").write_text("\n".join(["file,mpp", *rows]) + "\n")
    fields = {"data__source": f"csv:{tmp_path}/tiles.csv", "data__mpp": 0.5}
    with pytest.raises(EosinError, match=rf"mpp {mpp} of tile '{files[5]}' is no resolution in µm/px \(0.01 to 100\)"):
        pretrain(tiny(**fields, augment__views__global__field_of_view=[8.0, 12.0]), tmp_path / "run")


def test_a_field_too_small_to_see_is_refused(tiny, tmp_path):
    config = tiny(augment__views__global__field_of_view=[1.0, 12.0], data__mpp=0.5)
    with pytest.raises(EosinError, match=r"1 µm are 2 px of tile '.*' at 0.5 µm/px; give 4 or more"):
        pretrain(config, tmp_path / "run")


def test_a_run_with_fields_of_view(tiny, tmp_path):
    """16 of the 40 px a side at 0.5 µm/px; in the workers and on the device alike."""
    for where in ("device", "workers"):
        fields = {
            "samples": 32,
            "optimizer__warmup_samples": 0,
            "augment_on": where,
            "data__workers": 1,
            "data__mpp": 0.5,
        }
        config = tiny(**fields, augment__views__global__field_of_view=[8.0, 8.0])
        assert config.augment.views["global"].field_of_view == (8.0, 8.0)
        pretrain(config, tmp_path / where)
    ours, theirs = weights(tmp_path / "device"), weights(tmp_path / "workers")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if isinstance(ours[name], torch.Tensor))
