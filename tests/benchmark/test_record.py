"""Damaged files of a benchmark are told in one line, by file, line and field."""

from __future__ import annotations

import json

import pytest

from eosin.benchmark.reading import read_failures, read_results
from eosin.benchmark.record import FAILURES, RESULTS
from eosin.core.errors import EosinError

ABOUT = {"encoder": "a", "task": "t", "protocol": "knn", "fraction": 1.0, "seed": 0}
WHOLE = {**ABOUT, "n_test": 3, "metrics": {"accuracy": {"value": 0.5, "low": None, "high": None}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seed", "x"),
        ("fraction", "y"),
        ("fraction", None),
        ("encoder", ["a"]),
        ("n_test", "many"),
        ("protocol_version", "second"),
        ("metrics", {"accuracy": {"value": "high", "low": 0, "high": 1}}),
    ],
)
def test_a_wrong_field_of_a_result_is_named(tmp_path, field, value):
    lines = [WHOLE, {**WHOLE, field: value}]
    (tmp_path / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(EosinError, match=f"{RESULTS}: line 2: .*'{field}'.*; remove that line"):
        read_results(tmp_path)


def test_a_failure_of_an_older_version_is_about_all_labels(tmp_path):
    (tmp_path / FAILURES).write_text(json.dumps({k: v for k, v in ABOUT.items() if k != "fraction"}) + "\n")
    assert read_failures(tmp_path)[0]["fraction"] == 1.0


def test_a_failure_that_names_no_cell_is_refused(tmp_path):
    (tmp_path / FAILURES).write_text('{"reason": "x"}\n')
    with pytest.raises(EosinError, match="line 1: field 'encoder' is missing; remove that line"):
        read_failures(tmp_path)
