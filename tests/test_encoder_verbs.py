"""`eosin encoders`."""

from __future__ import annotations

import json

import pytest

from eosin.cli import main
from eosin.encoders import pathology_entries


def test_the_table_and_the_json_hold_every_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encoders", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    entries = pathology_entries()
    assert [name.removeprefix("pathology:") for name in told] == list(entries)
    assert told["pathology:virchow2"]["width"] == 2560
    assert told["pathology:virchow2"]["mean"] == [0.485, 0.456, 0.406]
    assert main(["encoders"]) == 0
    table = capsys.readouterr().out
    for name in entries:
        assert name in table
    assert table.count(" yes ") == sum(entry.gated for entry in entries.values())
