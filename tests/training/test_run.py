"""The run directory: what is in it when somebody has been at it."""

import json

import pytest
import yaml

from eosin.core.errors import EosinError
from eosin.training.run import RunDirectory
from eosin.training.sinks import LogConfig


def open_run(path):
    log = LogConfig(tensorboard=False)
    return RunDirectory(path, log, free=(), command="eosin", keep=2, log=log)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"earlier": 3}'])
def test_a_damaged_environment_does_not_stop_a_run(tmp_path, text, capsys):
    with open_run(tmp_path):
        pass
    path = tmp_path / "environment.json"
    assert json.loads(path.read_text())["earlier"] == []
    path.write_text(text)
    with open_run(tmp_path):
        assert "environment.json: damaged" in capsys.readouterr().err
    assert json.loads(path.read_text())["earlier"] == []
    with open_run(tmp_path):
        assert len(json.loads(path.read_text())["earlier"]) == 1


def test_a_run_from_before_a_field_goes_on(tmp_path):
    with open_run(tmp_path):
        pass
    path = tmp_path / "config.yaml"
    earlier = yaml.safe_load(path.read_text())
    missing = earlier.pop("every_steps")  # whose default is not null
    path.write_text(yaml.safe_dump(earlier))
    with open_run(tmp_path):
        assert yaml.safe_load(path.read_text())["every_steps"] == missing
    path.write_text(yaml.safe_dump(earlier | {"every_steps": missing, "unheard_of": 3}))
    with pytest.raises(EosinError, match=r"another configuration \(unheard_of: 3 → \(absent\)"), open_run(tmp_path):
        pass


def test_a_log_is_rewound_whatever_its_end(tmp_path):
    with open_run(tmp_path) as run:
        for step in (1, 2, 3):
            run.log({"step": step, "loss": 1.0})
        with run.metrics_path.open("a") as file:
            file.write('{"step": 4, "lo')
        run.rewind(2)
        assert [json.loads(line)["step"] for line in run.metrics_path.read_text().splitlines()] == [1, 2]


def test_a_log_of_something_else_is_refused(tmp_path):
    with open_run(tmp_path) as run:
        run.metrics_path.write_text('{"step": 1}\n{"loss": 1}\n')
        with pytest.raises(EosinError, match=r"metrics\.jsonl: record 2 has no step"):
            run.rewind(1)


def test_files_that_a_killed_run_was_writing_are_removed(tmp_path):
    with open_run(tmp_path):
        pass
    (tmp_path / ".encoder.safetensors.abc.part").write_text("half")
    with open_run(tmp_path):
        pass
    assert not list(tmp_path.glob(".*.part"))
