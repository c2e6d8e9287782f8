"""Fine-tuning: equal to a plain loop, to the published rules, and to itself after a kill at any step."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from eosin.core.errors import EosinError
from eosin.encoders import load_encoder
from eosin.evaluate import finetune_training, open_protocol
from eosin.evaluate.finetune import Finetune
from eosin.evaluate.finetune_network import build_classifier, layer_numbers, parameter_groups, probe_head
from eosin.evaluate.finetune_run import FineTuning, color_views
from eosin.evaluate.finetune_training import Training, pass_parts
from eosin.evaluate.pixels import CropLaw, DrawnViews, pixels_of

VIT = "random:test_vit?size=32"
QUICK = Finetune(rates=(3e-3, 1e-3), epochs=3, least_steps=0, batch=6, patience=9)


def tuned(settings, task, work=None, fit=None, **more):
    """Return the answer, taken as the benchmark takes it."""
    (answer,) = settings.answers(task.material(work=work, **more), [fit or task.fit()])
    if isinstance(answer.result, EosinError):
        raise answer.result
    return answer.result


def equal(one, two):
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    assert one.chosen == two.chosen


@pytest.mark.parametrize("spec", ["random:test_resnet?size=32", VIT])
def test_a_run_equals_a_plain_loop(spec, pixel_task):
    task = pixel_task(spec, skill=0.3)
    settings = replace(QUICK, rates=(2e-3,), epochs=2, smoothing=0.1, layer_decays=(0.8,), warmup=0.25)
    found = tuned(settings, task)

    fit, encoder = task.fit(), load_encoder(spec)
    head = torch.nn.Linear(encoder.width, 3)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    numbers, last = layer_numbers(encoder.backbone, "")
    spared = encoder.backbone.no_weight_decay() if hasattr(encoder.backbone, "no_weight_decay") else set()
    groups = [
        {
            "params": [p],
            "scale": 0.8 ** (last - numbers[name]),
            "weight_decay": 0.05 * (p.ndim > 1 and name not in spared),
        }
        for name, p in encoder.backbone.named_parameters()
    ]
    groups.append({"params": [head.weight], "scale": 1.0, "weight_decay": 0.05})
    groups.append({"params": [head.bias], "scale": 1.0, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=0.0)
    views = DrawnViews(task.data.tiles, CropLaw(32), 0, "finetune")
    steps, losses = 6, []
    for step in range(steps):
        rows = pass_parts(fit.train, 6, 0, step // 3)[step % 3]
        # Up from 0 in a quarter of the steps, then half a cosine: 1/2, 1, cosines of quarters and so on.
        warm = round(0.25 * steps)
        share = (step + 1) / warm if step + 1 < warm else 0.5 + 0.5 * np.cos(np.pi * (step + 1 - warm) / (7 - warm))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * share * group["scale"]
        encoder.train()
        optimizer.zero_grad()
        images = encoder.normalize(views((rows, [step // 3]))[0])
        loss = F.cross_entropy(head(encoder(images)), torch.from_numpy(rows % 3), label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    encoder.eval()
    history = found.chosen["grid"][0]["history"]
    np.testing.assert_allclose([line["loss"] for line in history], np.reshape(losses, (2, 3)).mean(axis=1), atol=2e-3)
    with torch.no_grad():
        pixels = torch.stack([torch.from_numpy(_square(task, row)) for row in fit.val])
        plain = head(encoder(encoder.normalize(pixels))).double().log_softmax(dim=1)
    expected = -plain[torch.arange(9), torch.from_numpy(fit.labels[fit.val])].mean()
    assert history[1]["validation_log_loss"] == pytest.approx(float(expected), rel=0.02)


def _square(task, row):
    from eosin.data import load_square

    return load_square(task.data.tiles, int(row), 32)


@pytest.mark.parametrize(("name", "deepest"), [("test_vit", 0.5**7), ("test_resnet", 0.5**5), ("test_convnext", None)])
def test_layer_decay_is_timms_and_the_plain_power(name, deepest):
    import timm
    from timm.optim import param_groups_layer_decay

    encoder = load_encoder(f"random:{name}?size=32")
    model = build_classifier(encoder, 3)
    groups = parameter_groups(model, 0.5)
    names = {id(value): key for key, value in model.named_parameters()}
    ours = {
        names[id(value)].removeprefix("encoder.backbone."): (group["lr_scale"], group["decays"])
        for group in groups
        for value in group["params"]
    }
    assert len(ours) == sum(1 for _ in model.parameters())
    whole = timm.create_model(name, num_classes=3)
    known = {id(value): key for key, value in whole.named_parameters()}
    spared = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    for group in param_groups_layer_decay(whole, 1.0, spared, layer_decay=0.5):
        for value in group["params"]:
            key = known[id(value)]
            if key in ours:
                assert ours[key] == (group["lr_scale"], group["weight_decay"] > 0), key
    assert ours["head.weight"] == (1.0, True)
    assert ours["head.bias"] == (1.0, False)
    if deepest is not None:
        assert min(scale for scale, _ in ours.values()) == deepest
    assert {group["lr_scale"] for group in parameter_groups(model, 1.0)} == {1.0}


def test_passes_are_cut_into_equal_parts():
    rows = np.arange(100, 167)
    parts = [pass_parts(rows, 16, 3, epoch) for epoch in (0, 1)]
    assert [len(part) for part in parts[0]] == [14, 14, 13, 13, 13]
    for epoch in parts:
        assert sorted(np.concatenate(epoch)) == rows.tolist()
    assert not np.array_equal(np.concatenate(parts[0]), np.concatenate(parts[1]))


def killed_at(step, monkeypatch, how):
    """Let the n-th step from now be interrupted, and count the steps."""
    taken = [0]
    inner = Training._step

    def take(self, *arguments):
        taken[0] += 1
        if taken[0] == step:
            how()
        return inner(self, *arguments)

    monkeypatch.setattr(Training, "_step", take)
    return taken


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.mark.parametrize("step", [2, 3, 4, 9, 10, 14])
def test_a_kill_at_any_step_changes_no_bit(step, pixel_task, tmp_path, monkeypatch):
    task = pixel_task(VIT, skill=0.2)
    settings = replace(QUICK, drop_path=0.2, layer_decays=(0.7,), epochs=3)
    whole = tuned(settings, task)
    monkeypatch.setattr(finetune_training, "SAVE_SECONDS", 0.0)

    def die():
        raise Killed

    with monkeypatch.context() as patch:
        killed_at(step, patch, die)
        with pytest.raises(Killed):
            tuned(settings, task, tmp_path / "work")
    with monkeypatch.context() as patch:
        taken = killed_at(0, patch, die)
        equal(tuned(settings, task, tmp_path / "work"), whole)
        # Nine steps a point, two points: what was done is not done again.
        assert taken[0] == 18 - (step - 1)
    assert not list((tmp_path / "work").iterdir())


def test_ctrl_c_saves_and_the_same_call_goes_on(pixel_task, tmp_path, monkeypatch):
    task = pixel_task(skill=0.2)
    whole = tuned(QUICK, task)
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        killed_at(11, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            tuned(QUICK, task, tmp_path / "work")
    assert signal.getsignal(signal.SIGINT) is before
    with monkeypatch.context() as patch:
        taken = killed_at(0, patch, lambda: None)
        equal(tuned(QUICK, task, tmp_path / "work"), whole)
        assert taken[0] == 18 - 11


def test_an_answer_that_was_not_taken_is_not_trained_again(pixel_task, tmp_path, monkeypatch):
    task = pixel_task(skill=0.2)
    material = task.material(work=tmp_path / "work")
    answers = QUICK.answers(material, [task.fit()])
    first = next(answers).result
    answers.close()
    taken = killed_at(0, monkeypatch, lambda: None)
    equal(tuned(QUICK, task, tmp_path / "work"), first)
    assert taken[0] == 0
    assert not list((tmp_path / "work").iterdir())


def test_damaged_checkpoints_cost_time_and_nothing_else(pixel_task, tmp_path):
    task = pixel_task(skill=0.2)
    whole = tuned(QUICK, task)
    answers = QUICK.answers(task.material(work=tmp_path / "work"), [task.fit()])
    next(answers)
    answers.close()
    (file,) = (tmp_path / "work").glob("finetune-*/grid/*.pt")
    file.write_bytes(file.read_bytes()[:-1])
    equal(tuned(QUICK, task, tmp_path / "work"), whole)


def test_a_point_that_diverges_loses(pixel_task):
    task = pixel_task(VIT)
    result = tuned(replace(QUICK, rates=(1e30, 1e-3)), task)
    assert result.chosen["rate"] == 1e-3
    assert result.chosen["grid"][0]["validation_balanced_accuracy"] is None
    assert result.chosen["grid"][0]["ended"] == "diverged"
    with pytest.raises(
        EosinError, match=r"random:test_vit.*: fine-tuning diverged at every learning rate; try smaller"
    ):
        tuned(replace(QUICK, rates=(1e30,)), task)


def test_training_ends_with_its_patience_and_the_best_epoch_answers(pixel_task):
    task = pixel_task(skill=0.1)
    settings = replace(QUICK, rates=(5e-3,), epochs=30, patience=2)
    found = tuned(settings, task).chosen
    history = found["grid"][0]["history"]
    scores = [(-line["validation_balanced_accuracy"], line["validation_log_loss"]) for line in history]
    assert found["epochs_run"] == len(history) < 30
    assert found["epoch"] == min(range(len(scores)), key=lambda place: (scores[place], place)) + 1
    assert found["epochs_run"] == found["epoch"] + 2
    assert found["grid"][0]["ended"] == "patience"
    # Its weights, and not the last, answer: the same training cut at the best epoch would give other rates, so the
    # validation images are asked as test images.
    fit = task.fit()
    asked = tuned(settings, task, fit=replace(fit, test=fit.val))
    hits = asked.probabilities.argmax(axis=1) == fit.labels[fit.val]
    recalls = [hits[fit.labels[fit.val] == value].mean() for value in range(3)]
    assert np.mean(recalls) == pytest.approx(found["validation_balanced_accuracy"])


def test_few_images_get_more_passes_and_patience_in_proportion(pixel_task):
    task = pixel_task()
    settings = Finetune(epochs=10, least_steps=45, batch=6, patience=3)
    tuning = FineTuning(settings, task.material(), pixels_of(task.material(), "finetune"), task.fit(), None)
    assert (tuning.parts, tuning.epochs, tuning.patience) == (3, 15, 5)


def test_stochastic_depth_is_drawn_by_row_and_leaves_the_encoder_alone(pixel_task):
    task = pixel_task(VIT, skill=0.2)
    model = build_classifier(task.encoder, 3, 0.3)
    rates = [layer.rate for layer in model.drop_paths]
    assert rates == pytest.approx(np.repeat(np.linspace(0, 0.3, 6)[1:], 2))
    model.eval()
    images = task.encoder.normalize(torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(model.encoder(images), task.encoder(images))
    deep, plain = tuned(replace(QUICK, drop_path=0.5), task), tuned(QUICK, task)
    assert not np.array_equal(deep.probabilities, plain.probabilities)


def test_a_network_that_fails_only_where_it_is_trained_is_one_line(pixel_task):
    task = pixel_task()
    refused = ValueError("Expected more than 1 value per channel when training\nmore")

    def fail(module, images):
        if module.training:
            raise refused

    task.encoder.backbone.register_forward_pre_hook(fail)
    with pytest.raises(
        EosinError, match=r"fails on images of 32 px \(Expected more than 1 value .* training\);"
    ) as caught:
        tuned(QUICK, task)
    assert caught.value.__cause__ is refused


def test_an_encoder_without_weights_is_refused(pixel_task):
    task = pixel_task("color:stats")
    with pytest.raises(EosinError, match="color:stats: has no weights to fine-tune"):
        tuned(QUICK, task)


def test_the_head_of_a_probe_is_logistic_regression_on_plain_features():
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        labels = np.arange(60) % classes
        features = (rng.normal(size=(60, 5)) * [1, 2, 30, 1, 0] + np.eye(5)[labels] * 2 + 7).astype(np.float32)
        weight, bias = probe_head(features[:40], labels[:40], features[40:], labels[40:], classes)
        spread = features[:40].std(axis=0)
        spread[4] = np.inf
        inputs = (features - features[:40].mean(axis=0)) / spread
        logits = torch.from_numpy(features) @ weight.T + bias
        near = [
            np.abs(
                LogisticRegression(C=strength, max_iter=1000, tol=1e-8)
                .fit(inputs[:40], labels[:40])
                .predict_proba(inputs)
                - logits.softmax(dim=1).numpy()
            ).max()
            for strength in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
        ]
        assert min(near) < 2e-3


def test_a_probed_head_starts_better_than_zero(pixel_task):
    task = pixel_task(VIT, skill=0.5)
    still = replace(QUICK, rates=(1e-12,), epochs=1)
    zero, probed = (tuned(replace(still, head=head), task).chosen for head in ("zero", "probe"))
    assert zero["validation_log_loss"] == pytest.approx(np.log(3), abs=1e-3)
    assert probed["validation_log_loss"] < 0.9


def test_colors_of_a_preset(pixel_task):
    from eosin.core.draws import Draws

    task = pixel_task()
    card = task.encoder.card
    images = DrawnViews(task.data.tiles, CropLaw(32), 0, "a")((np.arange(8), [0]))[0]
    draws = Draws(0, 0, np.arange(8))
    (plain,) = color_views("none", 32, card.mean, card.std)(images, draws)
    torch.testing.assert_close(plain, task.encoder.normalize(images), atol=1e-5, rtol=1e-5)
    (changed,) = color_views("pathology", 32, card.mean, card.std)(images, draws)
    assert (changed - plain).abs().mean() > 0.05
    assert tuned(replace(QUICK, preset="pathology"), task).probabilities.shape == (9, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("epochs=0", "must be at least 1"),
        ("layer_decays=0", "layer_decays must be"),
        ("drop_path=1", "drop_path must be"),
        ("head=one", "head must be zero or probe"),
        ("preset=patology", r"finetune\?preset=patology': unknown preset 'patology'; did you mean 'pathology'"),
        ("preset=../presets/none", "unknown preset"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(EosinError, match=message):
        open_protocol(f"finetune?{settings}")


def test_what_is_kept_is_told_apart_by_all_that_a_training_depends_on(pixel_task, tmp_path):
    task = pixel_task()
    material, fit = task.material(), task.fit()
    labels = fit.labels.copy()
    labels[fit.train[0]] = 1 - labels[fit.train[0]].clip(max=1)
    keys = [
        QUICK._key(material, fit),
        replace(QUICK, patience=QUICK.patience + 1)._key(material, fit),
        QUICK._key(replace(material, precision="bf16"), fit),
        *(
            QUICK._key(material, replace(fit, **other))
            for other in ({"seed": 1}, {"train": fit.train[1:]}, {"val": fit.val[1:]}, {"labels": labels})
        ),
    ]
    assert len(set(keys)) == len(keys)
    # The test images are predicted, not trained on.
    assert QUICK._key(material, replace(fit, test=fit.test[1:])) == keys[0]
