"""Training: what a run leaves, exact resume, phases, what it refuses."""

from __future__ import annotations

import dataclasses
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.encoders import load_encoder
from eosin.nuclei import recipe, train, training_data
from eosin.nuclei.augment import NucleiAugment
from eosin.nuclei.config import NetworkConfig, PostprocessConfig
from eosin.nuclei.datasets import NucleiImage, NucleiSample, NucleiSet
from eosin.nuclei.model import ModelCard, NucleiModel, _fingerprint
from eosin.nuclei.recipe import load_nuclei_recipe, nuclei_recipe_names
from eosin.nuclei.train import train_nuclei, with_more_phases
from eosin.nuclei.trunks import REFERENCE
from eosin.nuclei.validation import image_maps
from eosin.training.checkpoints import Checkpoints
from eosin.training.signals import Interrupted

SIDE = 20


def disks(seed, side=SIDE):
    """A pink image with a violet nucleus in each of its corners, of two types."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    instances = np.zeros((side, side), dtype=np.int32)
    for number, (cy, cx) in enumerate([(5, 5), (5, 15), (15, 5), (15, 15)], start=1):
        instances[(y - cy) ** 2 + (x - cx) ** 2 <= 14 + generator.integers(0, 6)] = number
    image = np.where(instances > 0, np.array([[[90]], [[50]], [[140]]]), np.array([[[230]], [[170]], [[210]]]))
    image = image + generator.integers(-9, 10, image.shape)
    return NucleiSample(image.astype(np.uint8), instances, np.array([0, 1, 2, 1, 2]))


def some_set(sides=("train", "train", "val"), classes=("round", "other"), name="disks"):
    samples = [disks(number) for number in range(len(sides))]
    if not classes:
        samples = [NucleiSample(sample.image, sample.instances, None) for sample in samples]
    images = tuple(
        NucleiImage(f"i{number}", side, f"i{number}", 0.25, (SIDE, SIDE), lambda sample=sample: sample)
        for number, (side, sample) in enumerate(zip(sides, samples, strict=True))
    )
    return NucleiSet(name, classes, images, "made", 0.25, "", "disks:", (), f"{name}{len(sides)}")


TINY = {
    "data.source": "disks:",
    "data.workers": 0,
    "network.encoder": "random:test_resnet",
    "network.window": 104,
    "network.width": 0.03,
    "network.types": False,
    "precision": "fp32",
    "decoder.samples": 4,
    "whole.samples": 4,
    "decoder.batch_size": 2,
    "whole.batch_size": 2,
    "validation.every_steps": 2,
    "checkpoint.every_steps": 2,
    "log.every_steps": 1,
    "log.tensorboard": False,
}
TIMES = ("images_per_second", "data_wait")
PREFIX = "trunk.encoder.backbone."


def tiny(**overrides):
    changed = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_nuclei_recipe("nuclei-small", TINY | changed)


@pytest.fixture(autouse=True)
def sets(monkeypatch):
    """The sets that specs name."""
    known = {"disks:": some_set()}
    monkeypatch.setattr(training_data, "open_nuclei", lambda spec: known[spec])
    return known


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of 2 + 2 steps with types, never stopped, and the network before some of its steps."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_data, "open_nuclei", lambda _: some_set())
        states = noting(patch)
        train_nuclei(tiny(network__types=True), out, "eosin nuclei train")
    return out, states


def noting(patch):
    """Note the network's state before each step."""
    seen = {}
    take = train._Trainer._take_step

    def noted(self, batch):
        seen[self.step] = {name: value.clone() for name, value in self.network.state_dict().items()}
        take(self, batch)

    patch.setattr(train._Trainer, "_take_step", noted)
    return seen


@pytest.fixture
def cheap_steps(monkeypatch):
    """Steps that only move one weight, to see what happens between them."""

    def step(self, batch):
        with torch.no_grad():
            self.network.bottom.weight += 1
        self.sums.add({"loss": torch.ones(())})

    monkeypatch.setattr(train._Trainer, "_take_step", step)
    looked = {"pq": 0.5, "aji": 0.0, "dice": 0.0, "found": 1.0, "true": 1.0}
    monkeypatch.setattr(train, "validate", lambda *_, **__: dict(looked))


def log_without_times(run):
    return [
        {name: value for name, value in record.items() if name not in TIMES}
        for record in read_json_lines(run / "metrics.jsonl")
    ]


def last_state(run):
    return Checkpoints(run / "checkpoints").load_newest()[1]["network"]


class TestARun:
    def test_leaves_what_it_should(self, undisturbed):
        out, _ = undisturbed
        names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        assert names == {
            *("config.yaml", "metrics.jsonl", "checkpoints", "model.safetensors", "best.safetensors"),
            "environment.json",
        }
        records = read_json_lines(out / "metrics.jsonl")
        assert [record["step"] for record in records] == list(range(1, 5))
        assert [record["phase"] for record in records] == [1] * 2 + [2] * 2
        assert [record["step"] for record in records if "val/mpq" in record] == [2, 4]
        for record in records:
            parts = {name for name in record if name[:3] in ("np_", "hv_", "tp_")}
            assert parts == {"np_bce", "np_dice", "hv_mse", "hv_msge", "tp_bce", "tp_dice"}
            assert record["loss"] == pytest.approx(sum(record[name] for name in parts))
            assert record["samples"] == 2 * record["step"]
            assert record["epoch"] == pytest.approx(record["samples"] / 8)  # 4 outputs of 12 px in each of 2 images
        assert load_nuclei_recipe(str(out / "config.yaml")) == tiny(network__types=True)

    def test_the_frozen_phase_leaves_the_encoder_to_the_bit(self, undisturbed):
        _, states = undisturbed
        own = load_encoder("random:test_resnet").backbone.state_dict()
        for name, value in own.items():
            assert torch.equal(value, states[0][PREFIX + name].cpu())
            assert torch.equal(value, states[2][PREFIX + name].cpu())
        moved = [name for name, value in own.items() if not torch.equal(value, states[3][PREFIX + name].cpu())]
        assert {"bn1.running_mean", "conv1.0.weight"} <= set(moved)
        others = [name for name in states[0] if not name.startswith(PREFIX) and name.endswith("weight")]
        assert all(not torch.equal(states[0][name], states[2][name]) for name in others)

    def test_killed_again_and_again_it_gives_the_same_bits(self, monkeypatch, undisturbed, tmp_path):
        """Deaths before a first checkpoint, after the phase's turn, and after the last step."""
        out = tmp_path / "run"
        config = tiny(network__types=True, data__workers=2)  # threads change nothing either
        take, finish = train._Trainer._take_step, train.BestModel.finish
        for moment in (1, 3):

            def dying(self, batch, moment=moment):
                if self.step == moment:
                    raise KeyboardInterrupt
                take(self, batch)

            monkeypatch.setattr(train._Trainer, "_take_step", dying)
            with pytest.raises(KeyboardInterrupt):
                train_nuclei(config, out)
        monkeypatch.setattr(train._Trainer, "_take_step", take)
        monkeypatch.setattr(train.BestModel, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_nuclei(config, out)
        assert not (out / "model.safetensors").exists()
        monkeypatch.setattr(train.BestModel, "finish", finish)
        train_nuclei(config, out)
        first, _ = undisturbed
        assert log_without_times(first) == log_without_times(out)
        assert (first / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
        one, other = last_state(first), last_state(out)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("killed", [False, True])
    def test_a_finished_run_takes_further_phases_to_the_same_bits(self, monkeypatch, tmp_path, killed):
        """Also where it is killed when the second phase has written better weights, and no checkpoint yet."""
        consider = train.BestModel.consider
        monkeypatch.setattr(
            train.BestModel,
            "consider",
            lambda best, network, card, step, _, *, write: consider(best, network, card, step, step / 9, write=write),
        )
        whole, out = tmp_path / "whole", tmp_path / "run"
        train_nuclei(tiny(), whole)
        train_nuclei(tiny(phases=["decoder"]), out)
        with_more_phases(out, tiny())
        assert not (out / "model.safetensors").exists()
        if killed:
            with monkeypatch.context() as patch:
                patch.setattr(train._Trainer, "_turn", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    train_nuclei(tiny(), out)
        train_nuclei(tiny(), out)
        assert log_without_times(whole) == log_without_times(out)
        assert (whole / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
        one, other = last_state(whole), last_state(out)
        assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.usefixtures("cheap_steps")
    @pytest.mark.parametrize("step", [1, 2])
    def test_a_signal_saves_and_stops(self, monkeypatch, tmp_path, step):
        take = train._Trainer._take_step

        def signalled(self, batch):
            take(self, batch)
            if self.step + 1 == step:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(train._Trainer, "_take_step", signalled)
        with pytest.raises(Interrupted) as stop:
            train_nuclei(tiny(), tmp_path / "run")
        assert (stop.value.step, stop.value.signal) == (step, signal.SIGTERM)
        assert Checkpoints(tmp_path / "run" / "checkpoints").saved()[-1][0] == step
        monkeypatch.setattr(train._Trainer, "_take_step", take)
        train_nuclei(tiny(), tmp_path / "run")
        assert [record["step"] for record in log_without_times(tmp_path / "run")] == list(range(1, 5))

    def test_a_finished_run_is_left_alone(self, undisturbed, capsys):
        out, _ = undisturbed
        before = (out / "model.safetensors").stat().st_mtime_ns
        train_nuclei(tiny(network__types=True), out)
        assert (out / "model.safetensors").stat().st_mtime_ns == before
        assert "finished already" in capsys.readouterr().err

    @pytest.mark.usefixtures("cheap_steps")
    def test_without_validation_images_the_last_weights_are_kept(self, sets, tmp_path, capsys):
        sets["disks:"] = some_set(("train", "train"), ())
        train_nuclei(tiny(phases=["decoder"]), tmp_path / "run")
        assert "last weights" in capsys.readouterr().err
        model = NucleiModel.load(tmp_path / "run", device="cpu")
        assert model.classes == ()
        state = last_state(tmp_path / "run")
        assert all(torch.equal(state[name], value) for name, value in model.network.state_dict().items())
        assert model.maps(torch.zeros(1, 3, 104, 104, dtype=torch.uint8)).tp_prob is None
        own = load_encoder("random:test_resnet").backbone.state_dict()
        assert all(torch.equal(own[name], state[PREFIX + name]) for name in own)

    @pytest.mark.usefixtures("cheap_steps")
    def test_patience_ends_a_phase_early(self, monkeypatch, tmp_path, capsys):
        scores = iter([0.5, 0.4, 0.3, 0.6, 0.2, 0.1, 0.9])
        looked = {"aji": 0.0, "dice": 0.0, "found": 1.0, "true": 1.0}
        monkeypatch.setattr(train, "validate", lambda *_, **__: {"pq": next(scores), **looked})
        states = noting(monkeypatch)
        config = tiny(validation__patience=2, validation__every_steps=1, decoder__samples=16, whole__samples=16)
        train_nuclei(config, tmp_path / "run")
        told = capsys.readouterr().err
        assert "phase decoder ended at step 3" in told
        assert "phase whole ended at step 6" in told
        assert "0.600, at step 4" in told
        assert read_json_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 6
        # The second phase began with the best weights of the first, which it had after its first step.
        assert torch.equal(states[1]["bottom.weight"], states[3]["bottom.weight"])
        card = NucleiModel.load(tmp_path / "run", device="cpu").card
        assert (card.step, card.pq) == (4, 0.6)

    @pytest.mark.usefixtures("cheap_steps")
    def test_a_fraction_takes_fewer_images(self, sets, tmp_path, capsys):
        sets["disks:"] = some_set(("train",) * 4 + ("val",))
        train_nuclei(tiny(data__fraction=0.5), tmp_path / "run")
        assert "2 of 4 training and 1 validation images" in capsys.readouterr().err

    def test_targets_are_made_as_the_configuration_says(self):
        given = [
            training_data.TrainingData(tiny(**fields), torch.device("cpu")).batch(0, 2, 0).targets["hv"]
            for fields in ({}, {"targets__center": "exact"}, {"targets__small": 10_000})
        ]
        official, exact, none = given
        assert not torch.equal(official, exact)
        assert official.abs().sum() > 0
        assert none.abs().sum() == 0  # no nucleus has as many pixels

    def test_the_learning_rate_falls_in_stairs(self):
        phase = load_nuclei_recipe("hovernet").decoder
        assert phase.length(1600) == 5000
        rates = [phase.rate(step, 5000) for step in (0, 2499, 2500, 4999)]
        assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])


class TestWhatItRefuses:
    def test_no_data(self, tmp_path):
        with pytest.raises(EosinError, match="--data"):
            train_nuclei(tiny(data__source=None), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_another_configuration_in_the_same_place(self, undisturbed):
        with pytest.raises(EosinError, match=r"whole\.lr"):
            train_nuclei(tiny(network__types=True, whole__lr=1.0), undisturbed[0])

    @pytest.mark.usefixtures("cheap_steps")
    def test_other_images_when_it_resumes(self, monkeypatch, sets, tmp_path):
        monkeypatch.setattr(train.BestModel, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_nuclei(tiny(), tmp_path / "run")
        sets["disks:"] = some_set(name="others")
        with pytest.raises(EosinError, match="not those that it began with"):
            train_nuclei(tiny(), tmp_path / "run")

    @pytest.mark.usefixtures("cheap_steps")
    def test_a_test_side_that_was_mended_when_it_resumes(self, monkeypatch, sets, tmp_path):
        whole = some_set()
        sets["disks:"] = dataclasses.replace(whole, learning="learned")
        with monkeypatch.context() as patch:
            patch.setattr(train.BestModel, "finish", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train_nuclei(tiny(), tmp_path / "run")
        sets["disks:"] = dataclasses.replace(whole, learning="learned", fingerprint="mended")
        assert train_nuclei(tiny(), tmp_path / "run").exists()

    def test_an_encoder_that_is_not_finite(self, monkeypatch, tmp_path):
        load = train.load_encoder

        def damaged(spec):
            encoder = load(spec)
            for value in encoder.parameters():
                value.data.fill_(float("nan"))
            return encoder

        monkeypatch.setattr(train, "load_encoder", damaged)
        with pytest.raises(EosinError, match=r"the features of random:test_resnet are not finite.*another encoder"):
            train_nuclei(tiny(), tmp_path / "run")

    def test_a_loss_that_is_not_finite(self, tmp_path):
        with pytest.raises(EosinError, match=r"not finite.*there is no checkpoint yet.*--decoder\.lr"):
            train_nuclei(tiny(decoder__lr=1e30), tmp_path / "run")
        assert not (tmp_path / "run" / "model.safetensors").exists()

    def test_a_run_that_is_not_finished(self, tmp_path):
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(EosinError, match="finish it"):
            NucleiModel.load(tmp_path)

    @pytest.mark.parametrize("field", [{"phases": []}, {"phases": ["whole", "whole"]}, {"data__fraction": 0.0}])
    def test_fields_that_make_no_sense(self, field):
        with pytest.raises(EosinError):
            tiny(**field)


class TestTheModel:
    def test_obeys_its_contract(self, undisturbed):
        model = NucleiModel.load(undisturbed[0], device="cpu", precision="fp32")
        assert (model.window, model.output, model.mpp) == (104, 8, 0.25)
        assert (model.classes, model.name) == (("round", "other"), "undisturbed")
        assert model.postprocess.scale == 1.0
        windows = torch.randint(0, 255, (3, 3, 104, 104), dtype=torch.uint8)
        maps = model.maps(windows)
        assert (maps.np_prob.shape, maps.hv.shape, maps.tp_prob.shape) == ((3, 8, 8), (3, 2, 8, 8), (3, 3, 8, 8))
        assert {maps.np_prob.dtype, maps.hv.dtype, maps.tp_prob.dtype} == {np.dtype(np.float32)}
        assert np.allclose(maps.tp_prob.sum(axis=1), 1, atol=1e-5)
        with torch.no_grad():
            logits = model.network(windows)["np"].softmax(dim=1)[:, 1]
        assert np.array_equal(maps.np_prob, logits[:, 2:-2, 2:-2].numpy())

    def test_a_file_is_enough_and_is_told_apart(self, undisturbed, tmp_path):
        copy = tmp_path / "mine.safetensors"
        copy.write_bytes((undisturbed[0] / "model.safetensors").read_bytes())
        first, second = NucleiModel.load(undisturbed[0], device="cpu"), NucleiModel.load(copy, device="cpu")
        assert second.name == "mine"
        assert first.fingerprint == second.fingerprint
        assert len(first.fingerprint) == 16

    def test_a_fingerprint_outlives_new_fields(self):
        """Predictions that were begun with an earlier eosin go on, and GeoJSON names stay."""
        card = ModelCard(
            network=NetworkConfig(encoder=REFERENCE),
            encoder=None,
            classes=("a",),
            mpp=0.25,
            postprocess=PostprocessConfig(),
            source="folder:x",
            step=3,
            pq=0.5,
        )
        weights = {"weight": torch.arange(3.0)}
        assert _fingerprint(card, weights) == "21cc7af86f123d3f"
        pyramid = card.model_copy(update={"network": NetworkConfig(encoder=REFERENCE, trunk="pyramid")})
        assert _fingerprint(pyramid, weights) != _fingerprint(card, weights)

    def test_other_files_are_refused(self, tmp_path):
        from eosin.encoders import save_encoder

        save_encoder(load_encoder("random:test_vit"), tmp_path / "encoder.safetensors")
        with pytest.raises(EosinError, match="no network for nuclei"):
            NucleiModel.load(tmp_path / "encoder.safetensors")
        with pytest.raises(EosinError, match="no such run"):
            NucleiModel.load(tmp_path / "nothing")

    def test_maps_of_an_image_are_those_of_its_windows(self):
        """A network that says the pixel in the middle gives the image back, whatever its size."""
        from eosin.nuclei.model import Maps

        def middle(windows):
            shown = windows[:, 0, 6:-6, 6:-6].numpy().astype(np.float32)
            return Maps(shown, np.stack([shown, shown], axis=1), None)

        for height, width in ((30, 17), (8, 8), (3, 40)):
            image = np.random.default_rng(0).integers(0, 255, (3, height, width)).astype(np.uint8)
            maps = image_maps(middle, image, window=20, output=8)
            assert np.array_equal(maps.np_prob[0], image[0])
            assert maps.hv.shape == (1, 2, height, width)


def test_two_images_are_learned_by_heart(sets, tmp_path):
    """From nothing to nearly all nuclei found, through the run and the file it leaves."""
    own = some_set(("train", "train"), ()).images
    both = [*own, *(NucleiImage(f"v{i.name}", "val", i.name, 0.25, i.shape, i.load) for i in own)]
    sets["disks:"] = NucleiSet("disks", (), tuple(both), "made", 0.25, "", "disks:", (), "both")
    config = tiny(
        network__encoder="random:test_vit",
        network__window=112,
        network__width=0.06,
        augment=NucleiAugment.none().plain(),
        phases=["whole"],
        whole__samples=72,
        whole__lr=0.01,
        whole__drop=1.0,
        validation__every_steps=18,
        checkpoint__every_steps=20,
    )
    train_nuclei(config, tmp_path / "run")
    first, last = [record for record in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "val/pq" in record]
    assert last["val/pq"] > max(0.7, first["val/pq"])
    assert last["loss"] < first["loss"]


class TestRecipes:
    @pytest.mark.parametrize("name", nuclei_recipe_names())
    def test_each_has_a_summary_and_says_where_values_come_from(self, name):
        config = load_nuclei_recipe(name)
        assert config.summary
        text = (Path(recipe.__file__).parent / "recipes" / f"{name}.yaml").read_text()
        assert "# authors" in text

    def test_the_published_one_is_the_authors(self):
        config = load_nuclei_recipe("hovernet")
        assert config.phases == ("decoder", "whole")
        assert [config.phase(name).batch_size for name in config.phases] == [16, 4]
        assert config.network.sides == (256, 164)

    def test_unknown_names_are_told(self):
        with pytest.raises(EosinError, match="nuclei-small"):
            load_nuclei_recipe("nuclei-smal")
        with pytest.raises(EosinError, match=r"whole\.rate|'lr'|unknown field"):
            load_nuclei_recipe("hovernet", {"whole.rate": 1})
