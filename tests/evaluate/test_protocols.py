"""One battery that every registered protocol passes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from eosin.core.errors import EosinError
from eosin.evaluate import PROTOCOLS, Fit, Material, ProbeData, evaluate, open_protocol
from eosin.evaluate.metrics import METRICS


def probe(seed: int = 0, n: int = 90, width: int = 12, classes: int = 3, skill: float = 3.0) -> ProbeData:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    features = (rng.normal(size=(n, width)) + skill * np.eye(width)[labels]).astype(np.float32)
    order = rng.permutation(n)
    parts = np.split(order, [n // 2, 2 * n // 3])
    return ProbeData(
        features, labels, tuple("abcdefgh"[:classes]), *parts, np.array([f"i{i}" for i in range(n)]),
        np.array([f"p{i % 30}" for i in range(n)]), "patient", 0,
    )  # fmt: skip


def changed(data: ProbeData, **values: object) -> ProbeData:
    return ProbeData(**{**{name: getattr(data, name) for name in data.__dataclass_fields__}, **values})


class Spy(type(PROTOCOLS["knn"])):
    """A protocol that keeps the labels it was shown."""

    def run(self, features, labels, *rest):
        self.__dict__["seen"] = labels.copy()
        return super().run(features, labels, *rest)


def test_a_protocol_never_sees_the_test_labels():
    data, spy = probe(), Spy()
    evaluate(data, spy, resamples=10)
    assert (spy.__dict__["seen"][data.test] == -1).all()
    others = np.concatenate([data.train, data.val])
    np.testing.assert_array_equal(spy.__dict__["seen"][others], data.labels[others])


# Protocols that look at pixels have a battery of their own; of variants, the one that learns from the most.
ASKED = {name: open_protocol(name)[-1].shown for name in PROTOCOLS if not PROTOCOLS[name].pixels}
UNSCALED = {"eva": "takes features as they are at a fixed learning rate, as kaiko's eva does"}
every_entry = pytest.mark.parametrize("name", PROTOCOLS)
every_protocol = pytest.mark.parametrize("name", ASKED.values())


@every_entry
def test_entry_is_complete(name):
    protocol = PROTOCOLS[name]
    assert protocol.name == name
    assert protocol.version in protocol.changes
    assert protocol.reference
    assert protocol.higher_is_better


@every_protocol
def test_separable_classes_are_told_apart(name):
    data = probe(skill=8.0)
    result = evaluate(data, name, resamples=100)
    if name in UNSCALED:
        # It keeps the first epoch that tells 15 validation images apart, by weights that hardly left their start.
        assert result.metrics["balanced_accuracy"]["value"] > 0.9
        assert result.metrics["auroc"]["value"] > 0.99
    else:
        assert result.metrics["balanced_accuracy"]["value"] == 1.0
        assert result.metrics["auroc"]["value"] == pytest.approx(1.0)
    assert (result.n_train, result.n_val, result.n_test) == (45, 15, 30)
    assert set(result.metrics) == set(METRICS)
    json.dumps(result.chosen, allow_nan=False)


@every_protocol
def test_features_without_information_give_chance(name):
    values = [
        evaluate(probe(seed, n=300, skill=0.0), name, resamples=10).metrics["accuracy"]["value"] for seed in range(4)
    ]
    assert 0.22 < np.mean(values) < 0.45


@every_protocol
def test_probabilities_are_shares(name):
    data = probe(skill=1.0)
    probabilities = evaluate(data, name, resamples=10).predicted.probabilities
    assert probabilities.shape == (30, 3)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-9)


@every_protocol
def test_test_labels_change_neither_choice_nor_probabilities(name):
    data = probe(skill=1.0)
    first = evaluate(data, name, resamples=10)
    labels = data.labels.copy()
    labels[data.test] = np.random.default_rng(1).permutation(labels[data.test])
    second = evaluate(changed(data, labels=labels), name, resamples=10)
    # All but the spread over draws, which is a score and not a choice.
    assert {**first.chosen, "sd": None} == {**second.chosen, "sd": None}
    np.testing.assert_array_equal(first.predicted.probabilities, second.predicted.probabilities)
    # Nor when the protocol is called directly with the test labels in view.
    (asked,) = open_protocol(name)
    for seen in (data.labels, labels):
        fit = Fit(seen, data.train, data.val, data.test)
        (answer,) = asked.protocol.answers(Material(data.features, data.classes, data.groups), [fit], [asked.variant])
        np.testing.assert_array_equal(answer.result.probabilities, first.predicted.probabilities)


@every_protocol
def test_same_seed_same_bits(name):
    data = probe(skill=1.0)
    one, two = evaluate(data, name, seed=3, resamples=50), evaluate(data, name, seed=3, resamples=50)
    assert one.metrics == two.metrics
    np.testing.assert_array_equal(one.predicted.probabilities, two.predicted.probabilities)


@every_protocol
def test_test_images_are_predicted_one_by_one(name):
    data = probe(skill=1.0)
    whole = evaluate(data, name, resamples=10).predicted.probabilities
    few = evaluate(changed(data, test=data.test[:3]), name, resamples=10).predicted.probabilities
    np.testing.assert_allclose(few, whole[:3], atol=1e-6)


@every_protocol
def test_constant_features(name):
    data = changed(probe(), features=np.full((90, 12), 0.1, np.float32))
    result = evaluate(data, name, resamples=10)
    assert np.isfinite(result.predicted.probabilities).all()
    np.testing.assert_allclose(
        result.predicted.probabilities, np.broadcast_to(result.predicted.probabilities[0], (30, 3)), atol=1e-6
    )


@every_protocol
def test_features_of_zero(name):
    data = changed(probe(), features=np.zeros((90, 12), np.float32))
    assert np.isfinite(evaluate(data, name, resamples=10).predicted.probabilities).all()


@every_protocol
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_features(name, scale):
    data = probe(skill=8.0)
    scaled = changed(data, features=(data.features * np.float32(scale)).astype(np.float32))
    result = evaluate(scaled, name, resamples=10)
    assert np.isfinite(result.predicted.probabilities).all()
    if name not in UNSCALED:
        assert result.metrics["accuracy"]["value"] == 1.0


@every_protocol
def test_fewer_training_images_than_neighbors_and_a_class_with_one(name):
    data = probe(skill=8.0)
    train = np.concatenate([data.train[data.labels[data.train] == 0][:4], data.train[data.labels[data.train] == 1][:1]])
    result = evaluate(changed(data, train=train), name, resamples=10)
    # The third class has no training image: it can never be predicted, and nothing breaks.
    assert (result.predicted.probabilities[:, 2] == 0).all()
    assert result.metrics["accuracy"]["value"] < 0.9


@every_protocol
def test_one_class_in_the_test(name):
    data = probe()
    test = data.test[data.labels[data.test] == 1]
    result = evaluate(changed(data, test=test), name, resamples=10)
    assert result.metrics["auroc"]["value"] is None
    assert "one class" in result.metrics["auroc"]["reason"]
    assert result.metrics["accuracy"]["value"] is not None


@every_protocol
def test_two_classes(name):
    data = probe(classes=2, skill=8.0)
    result = evaluate(data, name, resamples=10)
    assert result.metrics["auroc"]["value"] == 1.0


@every_protocol
def test_table_of_predictions(name):
    data = probe(skill=1.0)
    result = evaluate(data, name, resamples=10)
    table = result.table()
    assert table.column_names == ["name", "group", "truth", "predicted", "p_a", "p_b", "p_c"]
    rows = table.to_pylist()
    assert [row["name"] for row in rows] == [f"i{i}" for i in data.test]
    assert [row["group"] for row in rows] == [f"p{i % 30}" for i in data.test]
    for row in rows:
        assert row["predicted"] == max("abc", key=lambda c: row[f"p_{c}"])
    if result.predicted.votes:
        accuracy = np.mean([row[f"p_{row['truth']}"] for row in rows])
    else:
        accuracy = np.mean([row["truth"] == row["predicted"] for row in rows])
    assert accuracy == pytest.approx(result.metrics["accuracy"]["value"])


@every_entry
def test_unknown_protocol_is_refused(name):
    with pytest.raises(EosinError, match=f"did you mean '{name}'"):
        evaluate(probe(), name + "x")


def test_a_protocol_without_settings_says_so():
    with pytest.raises(EosinError, match=r"'shift\?x=1': unknown setting 'x'; 'shift' has no settings$"):
        open_protocol("shift?x=1")


@pytest.mark.parametrize(
    "spec",
    [
        "knn?temperature=inf", "logistic?strengths=-1", "logistic?strengths=nan", "logistic?iterations=0",
        "linear?rates=nan", "linear?decays=inf", "finetune?rates=nan", "finetune?weight_decays=nan",
        "eva?weight_decay=-1",
    ],
)  # fmt: skip
def test_numbers_that_nothing_can_be_trained_with_are_refused(spec):
    with pytest.raises(EosinError, match=f"protocol '{re.escape(spec)}'"):
        open_protocol(spec)
