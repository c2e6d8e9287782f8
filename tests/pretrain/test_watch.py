"""The collapse watch: its quantities against plain formulas, and its judgement."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.pretrain import pretrain
from eosin.pretrain.watch import CollapseWatch, effective_rank, pair_similarities, spread, view_retrieval

seeds = st.integers(0, 2**31)


def vectors(seed, rows=12, columns=5):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seeds)
def test_effective_rank_equals_the_formula(seed):
    values = np.linalg.svd(vectors(seed).numpy(), compute_uv=False)
    share = values / values.sum() + 1e-7
    assert float(effective_rank(vectors(seed))) == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)))


def test_effective_rank_of_known_matrices():
    assert float(effective_rank(torch.eye(6))) == pytest.approx(6, rel=1e-4)
    assert float(effective_rank(torch.ones(6, 4))) == pytest.approx(1, rel=1e-4)
    assert math.isfinite(float(effective_rank(torch.zeros(6, 4))))


@given(seeds)
def test_spread_equals_the_formula(seed):
    rows = vectors(seed).numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    assert float(spread(vectors(seed))) == pytest.approx(rows.std(axis=0).mean() * math.sqrt(5), rel=1e-5)


def test_spread_of_collapsed_and_even_vectors():
    assert float(spread(torch.ones(50, 8))) == pytest.approx(0, abs=1e-6)
    assert float(spread(vectors(0, 20000, 16))) == pytest.approx(1, rel=0.02)


@given(seeds)
def test_pair_similarities_equal_the_plain_loops(seed):
    a, b = F.normalize(vectors(seed), dim=1), F.normalize(vectors(seed + 1), dim=1)
    matching = [float(a[i] @ b[i]) for i in range(12)]
    other = [float(a[i] @ b[j]) for i in range(12) for j in range(12) if i != j]
    positive, negative = pair_similarities(a, b)
    assert float(positive) == pytest.approx(np.mean(matching))
    assert float(negative) == pytest.approx(np.mean(other))


@given(seeds)
def test_view_retrieval_equals_the_plain_loops(seed):
    a, b = F.normalize(vectors(seed), dim=1), F.normalize(vectors(seed + 1), dim=1)
    found = [max(range(12), key=lambda j: float(a[i] @ b[j])) == i for i in range(12)]
    assert float(view_retrieval(a, b)) == pytest.approx(np.mean(found))
    assert float(view_retrieval(a, a)) == 1


HEALTHY = {
    "loss": 4.0,
    "watch/projection_spread": 0.9,
    "watch/effective_rank": 40.0,
    "watch/view_retrieval": 0.9,
    "watch/prototype_usage": 50.0,
    "watch/target_entropy": 3.0,
    "watch/redundancy": 0.1,
}
BLIND = {"watch/view_retrieval": 0.015}


def judge_all(watch, record, looks=6, start=100):
    return [message for look in range(looks) for message in watch.judge(record | {"step": start + look})]


def test_a_healthy_run_raises_no_flag():
    assert judge_all(CollapseWatch(6.0, 64, 100), HEALTHY) == []


@pytest.mark.parametrize(
    ("sick", "words"),
    [
        (BLIND | {"watch/projection_spread": 0.02}, "nearly equal"),
        ({"watch/effective_rank": 1.2}, "1.2 dimensions"),
        (BLIND | {"loss": 5.99}, "stays at chance"),
        ({"watch/prototype_usage": 1.3}, "all tiles fall on 1.3 prototypes"),
        ({"watch/prototype_usage": 60.0, "watch/target_entropy": 4.05}, "tells 0.04 nats of a tile"),
        ({"watch/prototype_usage": 1.0, "watch/target_entropy": 0.0}, "all tiles fall on 1.0 prototypes"),
        ({"watch/redundancy": 0.4}, "mean squared correlation 0.40"),
    ],
)
def test_each_sickness_is_told_once_in_words(sick, words):
    (message,) = judge_all(CollapseWatch(6.0, 64, 100), HEALTHY | sick)
    assert words in message
    assert judge_all(CollapseWatch(6.0, 64, 100), HEALTHY | sick, looks=2) == []
    assert judge_all(CollapseWatch(6.0, 64, 100), HEALTHY | sick, start=50) == []


@pytest.mark.parametrize("early", [{"watch/projection_spread": 0.05}, {"loss": 5.99}])
def test_a_slow_start_that_finds_views_is_not_flagged(early):
    assert judge_all(CollapseWatch(6.0, 64, 100), HEALTHY | early | {"watch/view_retrieval": 0.06}) == []


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(
    ("spreads", "flagged"),
    [([0.5, 0.2, 0.08, 0.07, 0.06], True), ([0.03, 0.04, 0.05, 0.06, 0.07], False), ([0.5, 0.02, 0.04, 0.06], False)],
)
def test_projections_that_draw_together_are_told_from_a_slow_start(spreads, flagged, resumed):
    """The spread is followed through the grace steps, in which the first two records are, and through a resume."""
    watch = CollapseWatch(6.0, 64, 100)
    messages = []
    for step, value in zip(range(80, 130, 10), spreads, strict=False):
        if resumed:
            state, watch = watch.state_dict(), CollapseWatch(6.0, 64, 100)
            watch.load_state_dict(state)
        messages += watch.judge(HEALTHY | {"watch/projection_spread": value, "step": step})
    assert len(messages) == flagged
    assert not flagged or "have drawn together from 0.50" in messages[0]


def test_a_recovery_resets_the_count_and_the_state_travels():
    watch = CollapseWatch(6.0, 64, 0)
    sick = HEALTHY | BLIND | {"watch/projection_spread": 0.02}
    assert judge_all(watch, sick, looks=2) == []
    other = CollapseWatch(6.0, 64, 0)
    other.load_state_dict(watch.state_dict())
    assert judge_all(other, sick, looks=1) != []
    assert judge_all(watch, HEALTHY, looks=1) == []
    assert judge_all(watch, sick, looks=2) == []


def test_records_without_a_look_do_not_reset_the_rank():
    watch = CollapseWatch(6.0, 64, 0)
    without = {"loss": 4.0, "watch/projection_spread": 0.9}
    messages = []
    for step in range(3):
        messages += watch.judge(HEALTHY | {"watch/effective_rank": 1.0, "step": step})
        messages += watch.judge(without | {"step": step})
    assert len(messages) == 1


def collapse(monkeypatch):
    """Take the negatives away: the positive pairs can then be brought together by making all projections equal."""
    from eosin.methods import MoCo

    def attract(self, queries, keys):
        return 1 + (2 - 2 * (queries * keys).sum(dim=1)).mean() * 50, torch.zeros(())

    monkeypatch.setattr(MoCo, "contrast", attract)


SHORT = {"samples": 800, "watch__every_steps": 20, "checkpoint__every_steps": 40, "watch__grace_steps": 40}
EASY = {"scale": [0.5, 1.0], "jitter": {"probability": 0}, "grayscale": 0, "blur": {"probability": 0}}


def test_a_run_without_negatives_is_flagged(tiny, tmp_path, monkeypatch, capsys):
    collapse(monkeypatch)
    pretrain(tiny(**SHORT), tmp_path / "run")
    assert read_json_lines(tmp_path / "run" / "metrics.jsonl")[-1]["watch/projection_spread"] < 0.1
    assert "nearly equal" in capsys.readouterr().err


def test_on_collapse_stop_ends_the_run_with_its_checkpoint(tiny, tmp_path, monkeypatch):
    collapse(monkeypatch)
    with pytest.raises(EosinError, match=r"stopped at step \d+ by --watch.on_collapse stop: collapse"):
        pretrain(tiny(**SHORT, watch__on_collapse="stop"), tmp_path / "run")
    assert not (tmp_path / "run" / "encoder.safetensors").exists()
    assert list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_healthy_tiny_run_is_not_flagged(tiny, tmp_path, capsys):
    views = {f"augment__views__global__{name}": value for name, value in EASY.items()}
    pretrain(tiny(**SHORT, **views), tmp_path / "run")
    assert "warning" not in capsys.readouterr().err
