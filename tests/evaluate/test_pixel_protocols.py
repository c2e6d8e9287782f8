"""What every protocol that trains on pixels passes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eosin.core.errors import EosinError
from eosin.evaluate import PROTOCOLS, Prediction, evaluate, open_protocol

# Settings under which the tiny task takes a second.
QUICK = {
    "linear": "linear?views=2&least_steps=60",
    "finetune": "finetune?epochs=6&least_steps=0&rates=0.003&batch=6",
}
every_protocol = pytest.mark.parametrize("name", QUICK)


def run(name, task, fits=None, **more):
    (asked,) = open_protocol(QUICK[name])
    answers = list(asked.protocol.answers(task.material(**more), fits or [task.fit()]))
    assert sorted(answer.fit for answer in answers) == list(range(len(fits or [0])))
    return [answer.result for answer in sorted(answers, key=lambda answer: answer.fit)]


@every_protocol
def test_colors_are_told_apart_by_name(name, pixel_task):
    task = pixel_task()
    assert PROTOCOLS[name].pixels
    result = evaluate(task.data, QUICK[name], encoder=task.encoder, resamples=20)
    assert result.metrics["accuracy"]["value"] == 1.0
    assert (result.n_train, result.n_val, result.n_test) == (18, 9, 9)
    json.dumps(result.chosen, allow_nan=False)
    assert result.chosen["validation_balanced_accuracy"] == max(
        point["validation_balanced_accuracy"] for point in result.chosen["grid"]
    )


@every_protocol
def test_probabilities_are_shares_and_classes_without_training_images_get_none(name, pixel_task):
    task = pixel_task()
    fit = task.fit()
    train = fit.train[fit.labels[fit.train] != 1]
    whole, partial = run(name, task, [fit, replace(fit, train=train)])
    for result in (whole, partial):
        assert result.probabilities.shape == (9, 3)
        assert result.probabilities.min() >= 0
        np.testing.assert_allclose(result.probabilities.sum(axis=1), 1.0, atol=1e-9)
    assert whole.probabilities[:, 1].max() > 0.3
    assert (partial.probabilities[:, 1] == 0).all()


@every_protocol
def test_test_labels_change_nothing(name, pixel_task):
    task = pixel_task(skill=0.3)
    fit = task.fit()
    assert (fit.labels[fit.test] == -1).all()
    first = run(name, task)[0]
    for wrong in (task.data.labels, (task.data.labels + 1) % 3):
        labels = fit.labels.copy()
        labels[fit.test] = wrong[fit.test]
        second = run(name, task, [replace(fit, labels=labels)])[0]
        assert first.chosen == second.chosen
        np.testing.assert_array_equal(first.probabilities, second.probabilities)


@every_protocol
def test_the_encoder_and_the_global_generator_stay_as_they_are(name, pixel_task):
    task = pixel_task()
    before = {key: value.clone() for key, value in task.encoder.state_dict().items()}
    flags = [parameter.requires_grad for parameter in task.encoder.parameters()]
    state = torch.get_rng_state()
    run(name, task)
    assert all(torch.equal(value, before[key]) for key, value in task.encoder.state_dict().items())
    assert [parameter.requires_grad for parameter in task.encoder.parameters()] == flags
    assert not task.encoder.training
    assert torch.equal(torch.get_rng_state(), state)


@every_protocol
def test_a_fit_gives_the_same_bits_beside_others_and_whatever_the_workers(name, pixel_task):
    task = pixel_task(skill=0.2)
    alone = run(name, task)[0]
    beside = run(name, task, [task.fit(1), task.fit(0)])
    np.testing.assert_array_equal(beside[1].probabilities, alone.probabilities)
    assert beside[1].chosen == alone.chosen
    assert not np.array_equal(beside[0].probabilities, alone.probabilities)
    np.testing.assert_array_equal(run(name, task, workers=1)[0].probabilities, alone.probabilities)


@every_protocol
def test_test_images_are_predicted_one_by_one(name, pixel_task):
    task = pixel_task(skill=0.2)
    fit = task.fit()
    whole, few = run(name, task, [fit, replace(fit, test=fit.test[:2])])
    np.testing.assert_allclose(few.probabilities, whole.probabilities[:2], atol=1e-5)


@every_protocol
def test_a_fit_that_cannot_be_answered_says_why_and_the_others_go_on(name, pixel_task):
    task = pixel_task()
    fit = task.fit()
    none = np.array([], dtype=np.int64)
    one_class = replace(fit, train=fit.train[fit.labels[fit.train] == 0])
    results = run(name, task, [replace(fit, val=none), fit, one_class])
    assert str(results[0]) == f"{name}: no validation images to choose settings on; give a val split"
    assert isinstance(results[1], Prediction)
    assert str(results[2]).startswith(f"{name}: the training images are of one class only")


@every_protocol
def test_features_alone_do_not_suffice(name, pixel_task):
    task = pixel_task()
    (asked,) = open_protocol(QUICK[name])
    (answer,) = asked.protocol.answers(replace(task.material(), tiles=None), [task.fit()])
    assert "needs the images and the encoder" in str(answer.result)


@every_protocol
def test_bfloat16_is_close_and_not_the_same(name, pixel_task):
    task = pixel_task()
    full, half = run(name, task)[0], run(name, task, precision="bf16")[0]
    assert not np.array_equal(full.probabilities, half.probabilities)
    assert (half.probabilities.argmax(axis=1) == task.data.labels[task.data.test]).all()


@every_protocol
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("batch=0", "must be at least 1"),
        ("rates=0", "rates must be above 0"),
        ("scale=0.5", "scale must be low"),
        ("scale=0.9+0.1", "scale must be low"),
        ("flip=2", "flip must be"),
    ],
)
def test_wrong_settings_are_told(name, settings, message):
    with pytest.raises(EosinError, match=message):
        open_protocol(f"{name}?{settings}")
