"""The loop of a training: what happens after which step, how it stops, what it counts as time."""

from __future__ import annotations

import signal
import time

import pytest
import torch

from eosin.training.loop import StepLoop
from eosin.training.signals import Interrupted


class Training:
    """Notes what it is told to do."""

    def __init__(self, log_every=3, signal_at=None):
        self.loop = StepLoop(torch.device("cpu"), log_every)
        self.done = []
        self.signal_at = signal_at

    def take(self, batch):
        self.done.append(("take", batch, self.loop.step))
        if self.loop.step + 1 == self.signal_at:
            self.loop.stop.number = signal.SIGTERM

    def run(self, batches, end, **fields):
        plain = {
            "end": end,
            "look": lambda step: step % 4 == 0,
            "report": lambda look: self.done.append(("report", look, self.loop.step)),
            "save_every": 5,
            "save": lambda: self.done.append(("save", self.loop.step)),
            "shown": lambda: None,
        }
        self.loop.run(batches, self.take, **plain | fields)

    def steps(self, word):
        return [entry[-1] for entry in self.done if entry[0] == word]


def test_what_happens_after_which_step():
    training = Training()
    training.run("abcdefg", 7)
    assert training.loop.step == 7
    assert [entry[1:] for entry in training.done if entry[0] == "take"] == list(zip("abcdefg", range(7), strict=True))
    reports = [entry[1:] for entry in training.done if entry[0] == "report"]
    assert reports == [(False, 3), (True, 4), (False, 6), (False, 7)]
    assert training.steps("save") == [5, 7]
    # What a step found is reported before it is kept, and kept before the next is taken.
    assert training.done.index(("save", 5)) == training.done.index(("take", "f", 5)) - 1


def test_a_run_goes_on_where_it_was():
    training = Training()
    training.loop.step = 4
    training.run("efg", 7)
    assert training.steps("take") == [4, 5, 6]
    assert training.steps("report") == [6, 7]
    assert training.steps("save") == [5, 7]


def test_a_signal_is_obeyed_after_the_step_with_its_checkpoint():
    training = Training(signal_at=2)
    with pytest.raises(Interrupted) as stopped:
        training.run("abcdefg", 7)
    assert (stopped.value.signal, stopped.value.step) == (signal.SIGTERM, 2)
    assert training.steps("take") == [0, 1]
    assert training.steps("save") == [2]


@pytest.mark.parametrize("signal_at", [None, 5])
def test_what_is_over_saves_for_itself(signal_at):
    training = Training(signal_at=signal_at)
    training.run("abcdefg", 7, over=lambda: training.loop.step == 5)
    assert training.steps("take") == [0, 1, 2, 3, 4]
    assert training.steps("save") == []


def test_steps_and_waiting_are_timed_and_what_makes_ready_is_not(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    class Slow(Training):
        def take(self, batch):
            now[0] += 3.0

    training = Slow(log_every=100)

    def batches():
        now[0] += 50.0
        training.loop.forget_time()
        for _ in range(4):
            now[0] += 1.0
            yield None

    def save():
        now[0] += 7.0

    training.run(batches(), 100, save_every=2, save=save)
    with training.loop.timed():
        now[0] += 4.0
    steps, speed = training.loop.speed(batch_size=10)
    assert steps == 4
    assert speed == pytest.approx({"images_per_second": 40 / (4 * 4.0 + 4.0), "data_wait": 4.0 / 20.0})
    assert training.loop.speed(batch_size=10) == (0, {})
