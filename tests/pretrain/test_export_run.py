"""Which encoder of a run is exported, and what is said about it."""

from __future__ import annotations

import json
import shutil

import pytest
import timm
import torch

from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.encoders import load_encoder, save_encoder
from eosin.methods import METHODS
from eosin.pretrain import export as export_module
from eosin.pretrain import pretrain
from eosin.pretrain.best import MEASURE
from eosin.pretrain.export import export
from eosin.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def scored(tiny, tile_folder, tmp_path_factory):
    """A finished run of 20 steps whose probe looked at 5, 10, 15 and 20; checkpoints of 15 and 20."""
    folder = tmp_path_factory.mktemp("scored")
    lines = ["file,label,patient,split"]
    for number, path in enumerate(sorted(tile_folder.glob("*.png"))):
        patient = number // 4
        lines.append(f"{path},{'ab'[number % 2]},p{patient},{('train', 'val', 'test')[patient % 3]}")
    (folder / "labelled.csv").write_text("\n".join(lines) + "\n")
    fields = {"samples": 160, "checkpoint__every_steps": 5, "watch__every_steps": 5}
    pretrain(tiny(watch__task=f"csv:{folder / 'labelled.csv'}", **fields), folder / "run")
    return folder / "run"


@pytest.fixture
def run(scored, tmp_path):
    """A copy to change, with known scores: 0.5, 0.75, 0.625 and 0.625; the best is that of step 10."""
    shutil.copytree(scored, tmp_path / "run")
    records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    scores = {5: 0.5, 10: 0.75, 15: 0.625, 20: 0.625}
    assert {record["step"] for record in records if MEASURE in record} == scores.keys()
    changed = [record | ({MEASURE: scores[record["step"]]} if MEASURE in record else {}) for record in records]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in changed))
    (tmp_path / "run" / "best.json").write_text(json.dumps({"step": 10, "score": 0.75, "measure": MEASURE}))
    # A network that is none of the checkpoints', so that it is known again.
    weights = load_encoder("random:test_resnet?seed=3&size=40")
    save_encoder(weights, tmp_path / "run" / "best.safetensors")
    return tmp_path / "run"


def refused(*arguments):
    with pytest.raises(EosinError) as error:
        export(*arguments)
    message = str(error.value)
    assert "\n" not in message
    return message


def weights_at(run, step):
    """Read MoCo's query backbone out of a checkpoint."""
    path = dict(Checkpoints(run / "checkpoints").saved())[step]
    state = torch.load(path, weights_only=True)["method"]
    prefix = "query.backbone.backbone."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def assert_exported(path, weights):
    exported = load_encoder(str(path)).backbone.state_dict()
    assert exported.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(exported[name], value), name


@pytest.mark.parametrize("name", METHODS)
def test_the_last_checkpoint_of_a_finished_run_is_its_encoder(name, tiny_of, tmp_path):
    """For every method: the checkpoint gives the network that the run itself wrote at its end."""
    pretrain(tiny_of(name, samples=64, augment__mean=[0.6, 0.5, 0.4]), tmp_path / "run")
    export(str(tmp_path / "run"), tmp_path / "last.safetensors", "safetensors", "last")
    finished, last = load_encoder(str(tmp_path / "run")), load_encoder(str(tmp_path / "last.safetensors"))
    assert last.fingerprint() == finished.fingerprint()
    assert last.card.mean == (0.6, 0.5, 0.4)
    assert last.card.model_copy(update={"spec": finished.card.spec}) == finished.card


def test_the_best_that_a_run_keeps_is_exported(scored, tmp_path):
    told = export(str(scored), tmp_path / "best.safetensors", "safetensors", "best")
    kept = json.loads((scored / "best.json").read_text())
    assert f"step {kept['step']} of 20: kNN balanced accuracy {kept['score']:.3f}, the best of 4 looks" in told
    assert (
        load_encoder(str(tmp_path / "best.safetensors")).fingerprint()
        == load_encoder(str(scored / "best.safetensors")).fingerprint()
    )


def test_each_checkpoint_is_its_steps_encoder(run, tmp_path):
    cases = [(None, 20), ("last", 20), ("15", 15), ("20", 20)]
    for number, (checkpoint, step) in enumerate(cases):
        out = tmp_path / f"{number}.safetensors"
        told = export(str(run), out, "safetensors", checkpoint)
        assert_exported(out, weights_at(run, step))
        expected = f"{run}, step {step} of 20: kNN balanced accuracy 0.625; the best was 0.750 at step 10 (--checkpoint best)\n"
        assert told.startswith(expected)
    best = load_encoder(str(run / "best.safetensors")).backbone.state_dict()
    for number, checkpoint in enumerate(["best", "10"]):
        out = tmp_path / f"best-{number}.safetensors"
        told = export(str(run), out, "safetensors", checkpoint)
        assert "step 10 of 20: kNN balanced accuracy 0.750, the best of 4 looks" in told
        assert_exported(out, best)


def test_an_unfinished_run_gives_its_newest_whole_checkpoint(run, tmp_path, capsys):
    (run / "encoder.safetensors").unlink()
    export(str(run), tmp_path / "20.safetensors", "safetensors")
    assert_exported(tmp_path / "20.safetensors", weights_at(run, 20))
    newest = dict(Checkpoints(run / "checkpoints").saved())[20]
    newest.write_bytes(newest.read_bytes()[:-9])
    told = export(str(run), tmp_path / "15.safetensors", "safetensors")
    assert "step 15 of 20" in told
    assert "damaged" in capsys.readouterr().err
    assert_exported(tmp_path / "15.safetensors", weights_at(run, 15))
    assert "damaged (its bytes do not match its checksum)" in refused(
        str(run), tmp_path / "x.safetensors", "safetensors", "20"
    )


def test_the_finished_encoder_stands_for_its_step(run, tmp_path):
    shutil.rmtree(run / "checkpoints")
    expected = load_encoder(str(run)).fingerprint()
    for number, checkpoint in enumerate([None, "20"]):
        export(str(run), tmp_path / f"{number}.safetensors", "safetensors", checkpoint)
        assert load_encoder(str(tmp_path / f"{number}.safetensors")).fingerprint() == expected


def test_steps_that_are_not_kept(run, tmp_path):
    out = tmp_path / "x.safetensors"
    message = refused(str(run), out, "safetensors", "7")
    assert message == f"{run}: has no checkpoint of step 7; it keeps 10, 15, 20"
    assert "must be best, last or a step; it keeps 10, 15, 20" in refused(str(run), out, "safetensors", "newest")
    (run / "best.json").write_text("{")
    assert "best.json: absent or damaged" in refused(str(run), out, "safetensors", "best")
    shutil.rmtree(run / "checkpoints")
    for name in ("encoder.safetensors", "best.safetensors"):
        (run / name).unlink()
    assert "no checkpoint yet" in refused(str(run), out, "safetensors")
    assert "its probe has not looked yet" in refused(str(run), out, "safetensors", "best")
    assert not out.exists()


def test_a_run_without_a_probe_has_no_best(tiny, tmp_path):
    pretrain(tiny(samples=48), tmp_path / "run")
    message = refused(str(tmp_path / "run"), tmp_path / "x.safetensors", "safetensors", "best")
    assert message.endswith("the run kept no best encoder: it had no --watch.task to score by; use --checkpoint last")
    told = export(str(tmp_path / "run"), tmp_path / "x.safetensors", "safetensors")
    assert told.startswith(f"{tmp_path / 'run'}, step 6 of 6\n")


def test_a_damaged_log_keeps_nobody_from_the_encoder(run, tmp_path, capsys):
    log = run / "metrics.jsonl"
    log.write_text("{broken\n" + log.read_text())
    assert "step 20 of 20\n" in export(str(run), tmp_path / "x.safetensors", "safetensors")
    assert "scores are not shown" in capsys.readouterr().err


def test_a_checkpoint_of_another_configuration_is_one_line(run, tmp_path):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("architecture: test_resnet", "architecture: resnet18"))
    assert "the checkpoint does not fit config.yaml" in refused(
        str(run), tmp_path / "x.safetensors", "safetensors", "last"
    )


def test_any_encoder_is_exported_but_has_no_checkpoints(tmp_path):
    spec = "random:test_resnet?size=40"
    told = export(spec, tmp_path / "timm", "timm")
    pixels = "40 px, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225)"
    assert told == f"{spec}\n{tmp_path / 'timm'}: timm, test_resnet, width 96, {pixels}"
    network = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    images = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(network(images), load_encoder(spec)(images))
    for source in (spec, str(tmp_path)):
        message = refused(source, tmp_path / "x.safetensors", "safetensors", "last")
        assert message == f"{source}: is no run directory (it has no config.yaml); leave --checkpoint out"


def test_an_output_that_exists_is_refused_before_anything_is_loaded(run, tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").write_text("mine")
    monkeypatch.setattr(export_module, "_Run", None)
    assert "exists already" in refused(str(run), tmp_path / "x.safetensors", "safetensors")
    assert (tmp_path / "x.safetensors").read_text() == "mine"
