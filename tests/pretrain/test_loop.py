"""The loop: what a run leaves, exact resume, interruption, refusals."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from eosin.augment.stain_statistics import load_statistics, save_statistics
from eosin.core.errors import EosinError
from eosin.core.files import DirectoryLock, read_json_lines
from eosin.encoders import load_encoder
from eosin.pretrain import Interrupted, load_recipe, loop, pretrain
from eosin.pretrain.best import BestEncoder
from eosin.training.checkpoints import Checkpoints
from forked import Forked

TIMES = ("images_per_second", "data_wait", "mfu")


def final_state(run):
    step, state = Checkpoints(run / "checkpoints").load_newest()
    return step, state


def log_without_times(run):
    records = read_json_lines(run / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in TIMES and not k.startswith("time/")} for record in records]


def assert_same(first, second):
    """Equal to the bit, through all containers."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert first == second


def assert_same_run(first, second):
    assert_same(final_state(first), final_state(second))
    assert log_without_times(first) == log_without_times(second)
    encoders = [load_encoder(str(run)).fingerprint() for run in (first, second)]
    assert encoders[0] == encoders[1]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """A run of 40 steps, never stopped."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    pretrain(tiny(), out, command="eosin pretrain")
    return out


def start(config, out, *arguments):
    """Start the same run in a process of its own."""
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(config.plain()))
    return Forked("-m", "eosin.cli", "pretrain", path, "--out", out, *arguments)


def test_a_program_with_an_interpreter_of_its_own(tiny, undisturbed, tmp_path):
    """Started, not forked: stopped by Ctrl-C it ends as a shell expects."""
    path, out = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(tiny().plain()))
    words = [sys.executable, "-m", "eosin.cli", "pretrain", str(path), "--out", str(out)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        while not (out / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "Go on with the same command" in errors
    assert "Traceback" not in errors
    pretrain(tiny(), out)
    assert_same_run(undisturbed, out)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.errors()
        time.sleep(0.01)


def test_a_run_leaves_what_it_should(undisturbed):
    names = {path.name for path in undisturbed.iterdir() if not path.name.startswith(".")}
    assert names >= {"config.yaml", "metrics.jsonl", "checkpoints", "encoder.safetensors", "environment.json", "tb"}
    assert json.loads((undisturbed / "environment.json").read_text())["libraries"]["torch"]
    records = read_json_lines(undisturbed / "metrics.jsonl")
    assert [r["step"] for r in records] == sorted({*range(4, 41, 4), 10, 20, 30, 40})
    for record in records:
        assert record["samples"] == record["step"] * 8
        assert record["loss"] > 0
    assert records[-1]["lr"] < records[5]["lr"]
    assert [r["step"] for r in records if "watch/effective_rank" in r] == [10, 20, 30, 40]
    assert [step for step, _ in Checkpoints(undisturbed / "checkpoints").saved()] == [30, 40]
    assert load_recipe(str(undisturbed / "config.yaml")).steps == 40


def test_the_encoder_left_is_the_query_encoder(undisturbed):
    encoder = load_encoder(str(undisturbed))
    _, state = final_state(undisturbed)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state["method"][f"query.backbone.{name}"])
    assert encoder.card.size == 40


def test_killed_and_resumed_equals_undisturbed(tiny, undisturbed, tmp_path):
    out = tmp_path / "killed"
    process = start(tiny(), out)
    wait_for(lambda: len(Checkpoints(out / "checkpoints").saved()) == 2, process)  # steps 10 and 20
    process.send_signal(signal.SIGKILL)
    process.finish()
    assert not (out / "encoder.safetensors").exists()
    pretrain(tiny(), out)
    assert_same_run(undisturbed, out)


def test_a_signal_saves_and_says_how_to_go_on(tiny, undisturbed, tmp_path):
    out = tmp_path / "run"
    process = start(tiny(), out)
    wait_for(lambda: (out / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    errors = process.finish()
    assert process.returncode == 0
    assert "Go on with the same command" in errors
    assert "Traceback" not in errors
    assert final_state(out)[0] < 40
    pretrain(tiny(), out)
    assert_same_run(undisturbed, out)


def test_the_number_of_workers_changes_nothing(tiny, undisturbed, tmp_path):
    out = tmp_path / "run"
    pretrain(tiny(data__workers=2), out)
    assert_same_run(undisturbed, out)


def test_a_damaged_newest_checkpoint_falls_back(tiny, undisturbed, tmp_path, capsys):
    out = tmp_path / "run"
    process = start(tiny(), out)
    wait_for(lambda: len(Checkpoints(out / "checkpoints").saved()) == 2, process)
    process.send_signal(signal.SIGKILL)
    process.finish()
    _, newest = Checkpoints(out / "checkpoints").saved()[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    pretrain(tiny(), out)
    message = capsys.readouterr().err
    assert "damaged" in message
    assert "resuming" in message
    assert_same_run(undisturbed, out)


def test_a_finished_run_is_left_alone(tiny, undisturbed, capsys):
    names = ("metrics.jsonl", "environment.json", "config.yaml")
    before = [(undisturbed / name).read_bytes() for name in names]
    pretrain(tiny(), undisturbed, command="another")
    assert "finished already" in capsys.readouterr().err
    assert [(undisturbed / name).read_bytes() for name in names] == before


def test_a_changed_configuration_is_refused_by_field(tiny, undisturbed):
    with pytest.raises(EosinError, match=r"another configuration \(method.momentum: 0.9 → 0.5\)"):
        pretrain(tiny(method__momentum=0.5), undisturbed)
    pretrain(tiny(checkpoint__keep=3), undisturbed)  # changes no result


def test_a_directory_in_use_is_refused(tiny, tmp_path):
    with DirectoryLock(tmp_path), pytest.raises(EosinError, match="in use by process"):
        pretrain(tiny(), tmp_path)


def test_other_peoples_directories_are_refused(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(EosinError, match="holds other files and no run"):
        pretrain(tiny(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"thesis.tex", ".lock"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": 128, "method__queue_size": 128},
            r"batch_size 128 is larger than the 64 tiles of .*use --batch_size 64",
        ),
        ({"method__queue_size": 33}, r"queue_size 33 is not a multiple of the batch of 8"),
        ({"method__queue_size": 8 * 10**11}, r"not enough memory on cpu; use a smaller --batch_size"),
        ({"accumulate": 3}, r"batch_size 8 cannot be shared"),
        ({"data__source": None}, r"'data.source' is missing; give the tiles with --data"),
        ({"samples": 40}, r"optimizer.warmup_samples 40"),
        ({"accumulate": 8}, r"leaves one tile a forward pass; use --batch_size 16"),
        (
            {"encoder__architecture": "test_vit", "encoder__size": 32, "augment__views__global__size": 20},
            r"multiples of its 16 px patches",
        ),
        (
            {"encoder__architecture": "test_convnext", "encoder__size": 8},
            r"test_convnext: the network fails on images of 8 px \(.*\); give it another size",
        ),
        ({"device": "cuda:9"}, r"no CUDA device is visible"),
        ({"augment__views__global__count": 3}, r"needs the views {'global': 2}, augment.views gives {'global': 3}"),
    ],
)
def test_refused_before_the_first_step(tiny, tmp_path, fields, message):
    if "device" in fields and torch.cuda.is_available():
        pytest.skip("a CUDA device is present")
    with pytest.raises(EosinError, match=message):
        pretrain(tiny(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_with_the_last_checkpoint_kept(tiny, tmp_path, monkeypatch):
    from eosin.methods import MoCo

    contrast = MoCo.contrast

    def broken(self, queries, keys):
        loss, accuracy = contrast(self, queries, keys)
        return (loss * float("nan") if self.steps == 25 else loss), accuracy

    monkeypatch.setattr(MoCo, "contrast", broken)
    with pytest.raises(EosinError, match=r"not finite at step 26; the last checkpoint is kept"):
        pretrain(tiny(), tmp_path / "run")
    step, state = final_state(tmp_path / "run")
    assert step == 20
    assert all(torch.isfinite(v).all() for v in state["method"].values() if isinstance(v, torch.Tensor))


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch):
    """The loss of a step is finite although its gradient is not: the next loss would be the first to show it."""
    from eosin.methods import MoCo

    contrast = MoCo.contrast

    def broken(self, queries, keys):
        loss, accuracy = contrast(self, queries, keys)
        return (loss + (queries.sum() * 0).sqrt() if self.steps == 19 else loss), accuracy

    monkeypatch.setattr(MoCo, "contrast", broken)
    with pytest.raises(EosinError, match=r"weights are not finite after step 20; the last checkpoint is kept"):
        pretrain(tiny(), tmp_path / "run")
    assert final_state(tmp_path / "run")[0] == 10


def test_other_tiles_than_the_run_began_with_are_refused(tiny, tile_folder, tmp_path, monkeypatch):
    from eosin.methods import MoCo

    source = tmp_path / "tiles"
    shutil.copytree(tile_folder, source)
    after_step = MoCo.after_step

    def stop(self):
        if self.steps == 25:
            raise KeyboardInterrupt
        after_step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MoCo, "after_step", stop)
        pretrain(tiny(data__source=str(source)), tmp_path / "run")
    (source / "tile-00.png").rename(tmp_path / "aside.png")
    with pytest.raises(EosinError, match="the tiles are not those that .*run began with"):
        pretrain(tiny(data__source=str(source)), tmp_path / "run")
    (tmp_path / "aside.png").rename(source / "tile-00.png")
    pretrain(tiny(data__source=str(source)), tmp_path / "run")
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(starts["earlier"]) == 2
    assert all("earlier" not in start for start in starts["earlier"])


def test_other_stain_statistics_under_the_same_name_are_refused(tiny, tmp_path, monkeypatch):
    from eosin.methods import MoCo

    after_step = MoCo.after_step

    def stop(self):
        if self.steps == 15:
            raise KeyboardInterrupt
        after_step(self)

    path = tmp_path / "stain.json"
    statistics = load_statistics("synthetic-lab")
    save_statistics(statistics, path)
    config = tiny(
        samples=160,
        augment__views__global__randstainna__probability=0.5,
        augment__views__global__randstainna__statistics=str(path),
    )
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MoCo, "after_step", stop)
        pretrain(config, tmp_path / "run")
    save_statistics(load_statistics("synthetic-hsv"), path)
    with pytest.raises(EosinError, match=r"run: the stain statistics.* are not those that it began with; restore them"):
        pretrain(config, tmp_path / "run")
    save_statistics(statistics.model_copy(update={"source": "moved since", "tiles": 3}), path)
    assert pretrain(config, tmp_path / "run").exists()


def test_tiles_that_cannot_be_read_at_all_are_refused_in_one_line(tiny, tmp_path):
    for number in range(16):
        (tmp_path / f"{number:02d}.png").write_text("no image")
    with pytest.raises(EosinError, match=r"none of 16 tiles can be read \(first '00.png': not an image"):
        pretrain(tiny(data__source=str(tmp_path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_accumulation_gives_the_gradient_of_the_whole_batch(tiny, tmp_path):
    """Without batch norm, which couples the tiles of a piece, two pieces are one batch."""
    vit = {"encoder__architecture": "test_vit", "encoder__size": 32, "samples": 32, "optimizer__warmup_samples": 0}
    pretrain(tiny(**vit), tmp_path / "whole")
    pretrain(tiny(**vit, accumulate=2), tmp_path / "pieces")
    whole, pieces = (final_state(tmp_path / name)[1]["method"] for name in ("whole", "pieces"))
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(pieces[name], value, rtol=1e-3, atol=1e-4)


def test_the_last_step_is_looked_at_and_making_ready_is_not_timed(tiny, tmp_path, monkeypatch):
    late = [0.0]
    make_ready = loop._Trainer._make_ready

    def slowly(trainer, batch):
        make_ready(trainer, batch)
        late[0] += 1000.0

    monkeypatch.setattr(loop._Trainer, "_make_ready", slowly)
    now = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: now() + late[0])
    pretrain(tiny(samples=48, optimizer__warmup_samples=0, watch__every_steps=4), tmp_path / "run")
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records if "watch/effective_rank" in record] == [4, 6]
    assert late == [1000.0]
    assert all(record["images_per_second"] > 48 / 1000 for record in records)


def test_the_loading_ends_before_the_run_does(tiny, tmp_path, monkeypatch):
    """Whatever ends it: processes that load would else work on in a directory that another run may take."""
    order = []
    pinned = loop.pinned

    def noted(*arguments):
        try:
            yield from pinned(*arguments)
        finally:
            order.append("loading")

    monkeypatch.setattr(loop, "pinned", noted)
    monkeypatch.setattr(loop._Trainer, "_take_step", lambda *_: 1 / 0)
    run_directory = loop.run_directory

    @contextlib.contextmanager
    def left(*arguments, **settings):
        with run_directory(*arguments, **settings) as run:
            try:
                yield run
            finally:
                order.append("run")

    monkeypatch.setattr(loop, "run_directory", left)
    with pytest.raises(ZeroDivisionError):
        pretrain(tiny(), tmp_path / "run")
    assert order == ["loading", "run"]


def test_bf16_and_an_online_probe(tiny, tmp_path, tile_folder):
    from eosin.data import open_tiles

    manifest = tmp_path / "tiles.csv"
    rows = [
        f"{tile_folder / name},{'ab'[i % 2]},{('train', 'val', 'test')[i % 3]}"
        for i, name in enumerate(open_tiles(tile_folder).names)
    ]
    manifest.write_text("file,label,split\n" + "\n".join(rows))
    pretrain(tiny(precision="bf16", watch__task=f"csv:{manifest}"), tmp_path / "run")
    last = read_json_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    assert 0 <= last["watch/knn_accuracy"] <= 1
    assert load_encoder(str(tmp_path / "run")).forward(torch.zeros(1, 3, 40, 40)).dtype == torch.float32


@pytest.mark.parametrize(
    "content", ["", "[]", '{"step": 2}', '{"step": null, "score": 0.5}', '{"step": 2, "score": "x"}']
)
def test_a_damaged_index_of_the_best_encoder_is_told_on_resuming(tmp_path, content):
    (tmp_path / "best.json").write_text(content)
    with pytest.raises(EosinError, match=r"best\.json: .*damaged; remove it"):
        BestEncoder(tmp_path, 4)
    BestEncoder(tmp_path, 0)  # a run that starts anew does not read it


def test_a_single_tile_is_refused(tiny, tile_folder, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(sorted(tile_folder.rglob("*.png"))[0], alone)
    with pytest.raises(EosinError, match="one tile has no other to be told apart from; give 2 or more"):
        pretrain(tiny(data__source=str(alone)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_interrupted_names_signal_and_step():
    stop = Interrupted(signal.SIGTERM, 7)
    assert (stop.signal, stop.step, str(stop)) == (signal.SIGTERM, 7, "stopped at step 7")


@pytest.fixture
def last_weights(tiny_of, tmp_path):
    """Train DINO for a few steps and return its state."""

    def train(**fields):
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        pretrain(tiny_of("dino", samples=48, optimizer__warmup_samples=0, watch__every_steps=100, **fields), out)
        return final_state(out)[1]["method"]

    return train


def test_the_loop_clips_gradients(last_weights):
    """With gradients cut to nothing, and no weight decay, SGD goes nowhere."""
    sgd = {"optimizer__name": "sgd", "optimizer__lr": 1.0, "optimizer__weight_decay": 0.0}
    sgd |= {"optimizer__final_weight_decay": None}
    free, clipped, again = (last_weights(**sgd, optimizer__clip=clip) for clip in (None, 1e-12, 1e-13))
    key = next(name for name in free if name.startswith("student.backbone") and name.endswith("weight"))
    torch.testing.assert_close(clipped[key], again[key], rtol=0, atol=1e-9)
    assert (free[key] - clipped[key]).abs().max() > 1e-6


def test_the_loop_lets_a_method_withhold_gradients(last_weights):
    frozen, other = (last_weights(method__freeze_last_layer_samples=samples) for samples in (48, 0))
    (key,) = (name for name in frozen if name.startswith("student.head.prototypes") and name.endswith("original1"))
    assert not torch.equal(frozen[key], other[key])
    # What does not move is its own moving average.
    torch.testing.assert_close(frozen[key], frozen[key.replace("student", "teacher")], rtol=1e-5, atol=1e-7)
