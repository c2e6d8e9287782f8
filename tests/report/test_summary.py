"""The words at the top of the page against small tables made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin.report.load import Results
from eosin.report.summary import caveats, findings, headline_metric, overview

M = "balanced_accuracy"


def record(encoder, task="oral", protocol="knn", seed=0, **changes):
    base = {
        "encoder": encoder, "task": task, "protocol": protocol, "fraction": 1.0, "seed": seed, "n_test": 500,
        "metrics": {M: {"value": 0.5, "low": 0.4, "high": 0.6}}, "grouping": "patient", "n_groups": 60,
        "fingerprint": f"{encoder}{seed}", "split_hash": "s", "protocol_version": 1, "architecture": "resnet18",
    }  # fmt: skip
    return base | changes


def standing(encoder, value, task="oral", protocol="knn", low=None, fraction=1.0):
    estimate = {"value": value, "low": value - 0.05 if low is None else low, "high": value + 0.05}
    return {
        "encoder": encoder, "task": task, "protocol": protocol, "fraction": fraction, "seeds": [0],
        "metrics": {M: estimate}, "cells": [],
    }  # fmt: skip


def comparison(encoder, reference, difference, p, task="oral", protocol="knn"):
    return {
        "task": task, "protocol": protocol, "fraction": 1.0, "metric": M, "encoder": encoder, "reference": reference,
        "difference": difference, "low": difference - 0.05, "high": difference + 0.05, "p": p, "p_holm": p,
        "seeds": [0], "n_groups": 60, "grouping": "patient", "cells": [],
    }  # fmt: skip


def results(records, standings=(), comparisons=(), failures=()):
    return Results(Path("out"), list(records), list(standings), list(comparisons), list(failures), {}, [], [], [])


def only(found):
    assert len(found) == 1
    return found[0]


def test_the_best_is_ahead_of_all():
    lines = [standing("a", 0.6), standing("b", 0.8), standing("c", 0.7)]
    tests = [comparison("a", "b", -0.2, 0.0004), comparison("b", "c", 0.1, 0.02), comparison("a", "c", -0.1, 0.03)]
    finding = only(findings(results([record(n) for n in "abc"], lines, tests), "oral", M))
    assert finding.best["encoder"] == "b"
    assert finding.tone == "clear"
    assert (
        finding.sentence.replace("\N{NO-BREAK SPACE}", " ")
        == "Ahead of both others; the next, c, is 0.100 lower (p = 0.020)."
    )


@pytest.mark.parametrize(
    ("p_of_c", "sentence"),
    [
        (0.3, "Not told apart from c by this test (p = 0.30); the others are lower."),
        (0.05, "Not told apart from c by this test (p = 0.050); the others are lower."),
    ],
)
def test_the_best_is_not_told_apart(p_of_c, sentence):
    lines = [standing("a", 0.6), standing("b", 0.8), standing("c", 0.78)]
    tests = [comparison("b", "a", 0.2, 0.001), comparison("c", "b", -0.02, p_of_c)]
    finding = only(findings(results([record(n) for n in "abc"], lines, tests), "oral", M))
    assert finding.tone == "open"
    assert finding.sentence.replace("\N{NO-BREAK SPACE}", " ") == sentence


def test_without_a_test_or_a_rival_nothing_is_claimed():
    alone = only(findings(results([record("a")], [standing("a", 0.6)]), "oral", M))
    assert alone.tone == "none"
    assert "only encoder" in alone.sentence
    lines = [standing("a", 0.6), standing("b", 0.8)]
    untested = only(findings(results([record("a"), record("b")], lines), "oral", M))
    assert untested.tone == "none"
    assert "Not compared with a" in untested.sentence


def test_an_undefined_value_never_leads():
    lines = [standing("a", 0.6), standing("b", 0.8)]
    lines[1]["metrics"][M]["value"] = None
    assert only(findings(results([record("a")], lines), "oral", M)).best["encoder"] == "a"
    lines[0]["metrics"] = {}
    assert findings(results([record("a")], lines), "oral", M) == []


def test_the_overview_counts():
    tests = [comparison("b", "a", 0.2, 0.001), comparison("b", "a", 0.2, 0.4, protocol="logistic")]
    tests += [comparison("b", "a", -0.1, 0.3, protocol="linear")]
    lines = [
        standing(n, v, protocol=p)
        for p, a, b in [("knn", 0.6, 0.8), ("logistic", 0.7, 0.8), ("linear", 0.9, 0.8)]
        for n, v in (("a", a), ("b", b))
    ]
    found = findings(results([record("a"), record("b")], lines, tests), "oral", M)
    assert overview(found) == (
        "b scores highest in 2 of 3 pairings of a task and a protocol, a in 1; "
        "in 1 the lead over every other encoder is more than chance."
    )
    assert overview(found[:1]) == ""
    assert overview(found[1:]).endswith("but in none is the lead over every other encoder more than chance.")
    assert overview([found[0], found[0]]).endswith("each time the lead over every other encoder is more than chance.")


def test_the_compared_metric_leads():
    records = [record("a", metrics={"accuracy": {}, M: {}})]
    assert headline_metric(results(records)) == M
    assert (
        headline_metric(results(records, comparisons=[comparison("a", "b", 0, 1) | {"metric": "accuracy"}]))
        == "accuracy"
    )
    assert headline_metric(results([record("a", metrics={"auroc": {}})])) == "auroc"


def said(words, *args, **kwargs):
    return any(words in sentence for sentence in caveats(results(*args, **kwargs)))


def test_caveats_name_what_limits_the_conclusion():
    fine = [record("a", seed=0), record("a", seed=1)]
    assert caveats(results(fine)) == []
    assert said("only 120 test images", [record("a", n_test=120)])
    assert said("patients and slides are unknown", [record("a", grouping="image")])
    assert said("12 patients only", [record("a", n_groups=12)])
    assert said("One seed only", [record("a")])
    assert said("same weights and the same split", [record("a", fingerprint="x", seed=s) for s in (0, 1)])
    assert said("different splits", [record("a"), record("b", split_hash="t")])
    assert not said("different splits", [record("a"), record("a", seed=1, split_hash="t")])
    assert said("versions 1 and 2", [record("a"), record("b", protocol_version=2)])
    assert said("1 cell has no result", fine, failures=[{}])
    assert said("class 'c' has no test images", [record("a", notes=["class 'c' has no test images"])])
    assert said("3 tiles could not be read", [record("a", n_unreadable=3)])


def test_color_that_does_as_well_is_called_out():
    records = [record("net"), record("hue", architecture="color:stats")]
    level = [standing("net", 0.8, low=0.7), standing("hue", 0.75)]
    assert said("color alone (hue) reaches 0.750", records, level)
    assert not said("color alone", records, [standing("net", 0.8, low=0.76), standing("hue", 0.75)])
    assert said("color alone", records, [standing("net", 0.7), standing("hue", 0.75)])


def test_figures_start_with_what_the_summary_speaks_of():
    from types import SimpleNamespace

    from eosin.report.figures import differences

    shared = {"task": "crc", "metric": "accuracy", "grouping": "image", "n_groups": 9, "encoder": "a", "reference": "b"}
    shared |= {"difference": 0.1, "low": 0.0, "high": 0.2, "p_holm": 0.04}
    asked = [("fewshot:simpleshot-1", 1.0), ("knn", 0.1), ("knn", 1.0), ("shift:blur", 1.0), ("logistic", 1.0)]
    tests = [shared | {"protocol": protocol, "fraction": fraction} for protocol, fraction in asked]
    found = differences(SimpleNamespace(comparisons=tests), ["a", "b"])
    assert [family["condition"] for family in found[:2]] == ["knn", "logistic"]
    assert [family["condition"] for family in found[2:]] == [
        "fewshot:simpleshot-1",
        "knn, 10 % of labels",
        "shift:blur",
    ]
