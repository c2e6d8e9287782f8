"""Records reach TensorBoard, and MLflow where it is installed; a missing service is refused by name."""

import gc
import importlib.util
import subprocess
import threading

import pytest

from eosin.core.errors import EosinError
from eosin.training.sinks import LogConfig, check_sinks, open_sinks


def write(config, run, steps, first=0):
    sinks = open_sinks(config, run, {"seed": 0}, first)
    for step in steps:
        for sink in sinks:
            sink.write({"loss": 1 / step, "watch/spread": 0.5}, step)
    for sink in sinks:
        sink.close()


def test_tensorboard_holds_what_was_logged_and_hides_what_was_rewound(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(LogConfig(), tmp_path, [1, 2, 3, 4])
    write(LogConfig(), tmp_path, [3, 4, 5], first=2)
    board = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([1 / step for step in range(1, 6)])


def test_tensorboard_on_a_full_disk_raises_here_and_prints_nothing_there(tmp_path, monkeypatch):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    hook = threading.excepthook
    try:
        with pytest.raises(OSError, match="No space left"):
            write(LogConfig(), tmp_path, range(1, 400))
        own = threading.Thread(target=lambda: 1 / 0)
        own.start()
        own.join()
        assert [failure.exc_type for failure in seen] == [ZeroDivisionError]
    finally:
        monkeypatch.setattr(threading, "excepthook", hook)
        gc.collect()
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'eosin[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlflow'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    config = LogConfig(tensorboard=False, mlflow="tissue")
    write(config, tmp_path / "run", [1, 2])
    write(config, tmp_path / "run", [3], first=2)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tissue").experiment_id])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3]
    assert run.data.params["seed"] == "0"


@pytest.mark.parametrize("extra", ["wandb", "mlflow"])
def test_a_service_that_is_not_installed_is_refused(extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EosinError, match=rf"log.{extra}: {extra} is not installed; pip install 'eosin\[{extra}\]'"):
        check_sinks(LogConfig(**{extra: "tissue"}))
    check_sinks(LogConfig())


def test_no_sink_when_none_is_wanted(tmp_path):
    assert open_sinks(LogConfig(tensorboard=False), tmp_path, {}, 0) == []
