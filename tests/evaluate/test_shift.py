"""Changed test images: the changes themselves, and what the protocol makes of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from eosin.benchmark.pooling import pool
from eosin.core.errors import EosinError
from eosin.core.files import atomic_file
from eosin.evaluate import METRICS, PROTOCOLS, Fit, embed, evaluate, fit_of, material_of
from eosin.evaluate.logistic import Logistic
from eosin.evaluate.movement import cosine_distances
from eosin.evaluate.pixel_changes import PIXEL_CHANGES
from eosin.evaluate.predictions import load_predictions
from eosin.evaluate.shift import RESTAININGS, ShiftProtocol
from eosin.evaluate.stain_shift import Restaining, open_shift

LOST = {"accuracy_lost", "balanced_accuracy_lost", "embedding_moved"}


def photographs(count: int = 3, side: int = 40) -> torch.Tensor:
    """Smooth structure with noise: uint8 [B, 3, side, side]."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(count, 3, side, side)), (0, 0, 3, 3)) * 400 + 140
    return torch.as_tensor((smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8))


def changed(name: str, images: torch.Tensor) -> torch.Tensor:
    return PIXEL_CHANGES[name](images, np.arange(len(images)))


def test_blur_and_sharpening_are_scipys_gaussian():
    images = photographs()
    plain = gaussian_filter(images.numpy().astype(float), (0, 0, 1, 1), mode="mirror", radius=(0, 0, 4, 4))
    assert np.abs(changed("blur", images).numpy() - plain).max() <= 0.51
    sharp = (2.0 * images.numpy() - plain).clip(0, 255)
    assert np.abs(changed("sharpen", images).numpy() - sharp).max() <= 0.51


def test_jpeg_is_a_real_file_of_that_quality():
    images = photographs(1, 64)
    got = changed("jpeg-50", images)
    file = imagecodecs.jpeg8_encode(images[0].permute(1, 2, 0).numpy().copy(), level=50, subsampling="420")
    theirs = imagecodecs.jpeg8_decode(file).transpose(2, 0, 1).astype(float)
    assert np.abs(got[0].numpy() - theirs).mean() < 1.0
    assert np.abs(got[0].numpy().astype(float) - images[0].numpy()).mean() > 1.5


def test_turns_are_exact():
    images = photographs()
    np.testing.assert_array_equal(changed("rotate-90", images).numpy(), np.rot90(images.numpy(), 1, (2, 3)))
    twice = changed("rotate-90", changed("rotate-90", images))
    assert torch.equal(twice, changed("rotate-180", images))
    assert torch.equal(changed("rotate-180", twice), images)


@pytest.mark.parametrize("name", PIXEL_CHANGES)
def test_a_change_depends_on_the_pixels_alone(name):
    images = photographs()
    whole = changed(name, images)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert not torch.equal(whole, images)
    assert torch.equal(changed(name, images.contiguous(memory_format=torch.channels_last)), whole)
    assert torch.equal(changed(name, images[1:2]), whole[1:2])
    assert PIXEL_CHANGES[name].about
    assert len({change.key for change in PIXEL_CHANGES.values()}) == len(PIXEL_CHANGES)


def test_every_variant_is_answered_once_and_measured_against_the_unchanged(pixel_task):
    task = pixel_task(skill=0.3)
    protocol = PROTOCOLS["shift"]
    answers = {answer.variant: answer.result for answer in protocol.answers(task.material(), [task.fit(seed=4)])}
    assert list(answers) == list(protocol.variants)
    none = answers["none"]
    np.testing.assert_array_equal(none.probabilities, none.unchanged)
    np.testing.assert_array_equal(none.moved, 0.0)
    # The images as they are score as under the protocol `logistic`.
    plain = evaluate(task.data, "logistic", resamples=10).predicted.probabilities
    np.testing.assert_allclose(none.probabilities, plain, atol=1e-9)
    for variant, prediction in answers.items():
        np.testing.assert_allclose(prediction.unchanged, none.probabilities, atol=1e-9)
        json.dumps(prediction.chosen)
        if variant == "none":
            continue
        assert (prediction.moved > 0).all(), variant
        # The embeddings are those of the changed images.
        change = PIXEL_CHANGES.get(variant) if variant in PIXEL_CHANGES else None
        change = change or Restaining(open_shift(RESTAININGS[variant]), 4, task.data.test)
        after = embed(task.encoder, task.data.tiles.select(task.data.test), change=change).features
        expected = cosine_distances(task.data.features[task.data.test], after)
        np.testing.assert_allclose(prediction.moved, expected, atol=1e-9)


def test_what_was_lost_stands_beside_the_metrics_and_survives_the_file(pixel_task, tmp_path):
    import pyarrow.parquet as pq

    task = pixel_task(skill=0.3)
    result = evaluate(task.data, "shift:hed-strong", encoder=task.encoder, resamples=50)
    assert set(result.metrics) == {*METRICS, *LOST}
    truth = task.data.labels[task.data.test]
    hits = [np.asarray(p).argmax(axis=1) == truth for p in (result.predicted.unchanged, result.predicted.probabilities)]
    assert result.metrics["accuracy_lost"]["value"] == pytest.approx(hits[0].mean() - hits[1].mean())
    assert result.metrics["embedding_moved"]["value"] == pytest.approx(np.mean(result.predicted.moved))
    with atomic_file(tmp_path / "p.parquet") as file:
        pq.write_table(result.table(), file)
    record = {
        "predictions": "p.parquet", "classes": list(result.classes), "grouping": "image", "metrics": result.metrics,
        "encoder": "e", "task": "t", "protocol": "shift:hed-strong", "fraction": 1.0, "seed": 0,
    }  # fmt: skip
    read = load_predictions(tmp_path, record)
    np.testing.assert_array_equal(read.unchanged, result.predicted.unchanged)
    np.testing.assert_array_equal(read.moved, result.predicted.moved)
    # Two seeds that say the same have the interval of one, up to the draws of the resampling.
    pooled = pool(tmp_path, [record, {**record, "seed": 1}])["metrics"]
    for name in LOST:
        assert pooled[name]["value"] == pytest.approx(result.metrics[name]["value"])
        assert pooled[name]["low"] <= pooled[name]["value"] <= pooled[name]["high"]
        assert pooled[name]["sd"] == 0.0


def test_an_unchanged_image_loses_nothing(pixel_task):
    task = pixel_task(skill=0.3)
    metrics = evaluate(task.data, "shift:none", encoder=task.encoder, resamples=20).metrics
    for name in LOST:
        assert metrics[name] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_changed_images_are_embedded_by_the_material_and_a_failing_one_fails_alone(pixel_task):
    task = pixel_task(skill=0.3)
    asked = []

    def embed_changed(rows, change):
        asked.append((rows.tolist(), change.name))
        if change.name == "blur":
            raise EosinError("images became unreadable")
        return task.data.features[rows]

    fits = [task.fit(seed=seed) for seed in (0, 1)]
    variants = ["none", "blur", "rotate-90"]
    answers = list(ShiftProtocol().answers(task.material(embed_changed=embed_changed), fits, variants))
    assert asked == [(task.data.test.tolist(), name) for name in ("blur", "rotate-90")] * 2
    assert len(answers) == 6
    for answer in answers:
        assert isinstance(answer.result, EosinError) == (answer.variant == "blur")
        if answer.variant == "rotate-90":
            np.testing.assert_array_equal(answer.result.moved, 0.0)


def test_a_split_that_validates_on_the_test_keeps_these_labels_to_choose_on(pixel_task):
    data = replace(pixel_task(skill=0.3).data, tiles=None)
    data = replace(data, val=data.test)
    material = material_of(data, embed_changed=lambda rows, change: data.features[rows])
    (answer,) = ShiftProtocol().answers(material, [fit_of(data)], ["blur"])
    plain = evaluate(data, "logistic", resamples=10)
    assert answer.result.chosen["C"] == plain.chosen["C"]
    np.testing.assert_allclose(answer.result.probabilities, plain.predicted.probabilities, atol=1e-9)


def test_the_test_labels_reach_neither_the_choice_nor_the_answer(pixel_task):
    data = pixel_task(skill=0.3).data
    labels = data.labels.copy()
    labels[data.test] = labels[data.test][::-1]
    answers = []
    for seen in (data.labels, labels):
        fit = Fit(seen, data.train, data.val, data.test)
        material = material_of(data, embed_changed=lambda rows, change: data.features[rows])
        answers += ShiftProtocol().answers(material, [fit], ["blur"])
    np.testing.assert_array_equal(*(answer.result.probabilities for answer in answers))


def test_results_depend_on_what_a_change_does(monkeypatch):
    protocol = PROTOCOLS["shift"]
    known = {variant: protocol.depends(variant) for variant in protocol.variants}
    assert len(set(known.values())) == len(known)
    monkeypatch.setitem(PIXEL_CHANGES._entries, "blur", replace(PIXEL_CHANGES["blur"], version=2))
    assert {variant for variant in known if protocol.depends(variant) != known[variant]} == {"blur"}
    monkeypatch.setattr(Logistic, "version", Logistic.version + 1)
    assert not any(protocol.depends(variant) == known[variant] for variant in known)


def test_no_validation_images_and_no_pixels_are_said(pixel_task):
    task = pixel_task()
    fit = task.fit()
    none = type(fit)(fit.labels, fit.train, fit.val[:0], fit.test)
    answers = list(ShiftProtocol().answers(task.material(), [none], ["none", "rotate-180"]))
    assert [answer.variant for answer in answers] == ["none", "rotate-180"]
    assert all("no validation images" in str(answer.result) for answer in answers)
    with pytest.raises(EosinError, match="needs the images and the encoder"):
        evaluate(task.data, "shift:blur")


def test_the_page_names_the_version():
    page = Path(__file__).parents[2] / "docs" / "shift.md"
    assert f"Version {ShiftProtocol.version}:" in page.read_text()
