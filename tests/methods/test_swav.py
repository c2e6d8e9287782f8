"""SwAV, its loss and Sinkhorn's algorithm against plain, separate implementations, and each detail that gets lost."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from eosin.augment import AugmentConfig
from eosin.core.errors import EosinError
from eosin.encoders import build_encoder
from eosin.methods import swav
from eosin.methods.base import Setting
from eosin.methods.sinkhorn import sinkhorn
from eosin.methods.swav import SwAV, SwAVConfig
from eosin.methods.swav_loss import swav_loss

GRAY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
SMALL = {"prototypes": 10, "dim": 12, "hidden": 20, "freeze_samples": 0}
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])


def build(architecture="test_resnet", *, seed=0, **fields):
    config = SwAVConfig(**{**SMALL, **fields})
    return SwAV(config, lambda: build_encoder(architecture, size=32, **GRAY), seed).double().train()


def batches(count, size=4, local=3):
    """Crops of 32 and 16 pixels."""
    generator = torch.Generator().manual_seed(5)
    sides = [32, 32] + [16] * local
    return [
        [torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64) for side in sides]
        for _ in range(count)
    ]


def descend(method, lr=0.05):
    """A step of plain gradient descent in the loop's order."""
    method.before_step()
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
    method.zero_grad()
    method.after_step()


def distance(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def unit(*shape, generator):
    return F.normalize(torch.randn(shape, generator=generator), dim=-1)


def published_assignments(scores, epsilon, iterations):
    """The authors' loop over the transposed matrix, with all its divisions."""
    q = torch.exp(scores / epsilon).T
    prototypes, tiles = q.shape
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(dim=1, keepdim=True) / prototypes
        q = q / q.sum(dim=0, keepdim=True) / tiles
    return (q * tiles).T


def published_loss(scores, assignments, temperature):
    """Cross-entropies of all pairs, one by one."""
    crops = scores.split(len(assignments[0]))
    total = 0
    for number, q in enumerate(assignments):
        terms = [
            -(q * F.log_softmax(crop / temperature, dim=1)).sum(dim=1).mean()
            for other, crop in enumerate(crops)
            if other != number
        ]
        total = total + sum(terms) / len(terms)
    return total / 2


# Sinkhorn ----------------------------------------------------------------------------------------------------------


@PRECISIONS
@given(
    tiles=st.integers(1, 40),
    prototypes=st.integers(2, 60),
    epsilon=st.floats(0.03, 0.5),
    iterations=st.integers(1, 6),
    seed=st.integers(0, 1000),
)
def test_assignments_are_those_of_the_published_loop(dtype, tolerance, tiles, prototypes, epsilon, iterations, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = unit(tiles, 16, generator=generator) @ unit(prototypes, 16, generator=generator).T
    before = scores.clone()
    ours = sinkhorn(scores.to(dtype), epsilon, iterations)
    assert ours.dtype == dtype
    assert distance(ours, published_assignments(scores.double(), epsilon, iterations)) <= tolerance
    assert scores.equal(before)


def test_assignments_equal_lightly():
    peer = pytest.importorskip("lightly.loss.swav_loss", reason="lightly is not installed: pip install eosin[bench]")
    generator = torch.Generator().manual_seed(0)
    scores = unit(32, 128, generator=generator) @ unit(300, 128, generator=generator).T
    assert distance(sinkhorn(scores, 0.05, 3), peer.sinkhorn(scores, iterations=3, epsilon=0.05)) <= 1e-6


def test_all_prototypes_are_used_equally_and_every_tile_is_assigned_whole():
    scores = 0.1 * torch.randn(60, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = sinkhorn(scores, 0.05, 200)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(60, dtype=torch.float64))
    torch.testing.assert_close(q.sum(dim=0), torch.full((20,), 3.0, dtype=torch.float64))


def test_no_iterations_balance_nothing():
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(sinkhorn(scores, 0.5, 0), torch.softmax(scores / 0.5, dim=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_large_scores_stay_finite(dtype, scale):
    """exp(1 / 0.05) is too large for float16, exp(30 / 0.05) for any."""
    scores = (scale * torch.randn(16, 40, generator=torch.Generator().manual_seed(0))).to(dtype)
    scores[0] = scale
    scores[:, 3] = -3 * scale  # a prototype that nothing is near
    q = sinkhorn(scores, 0.05, 3)
    assert q.dtype == torch.float32
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(dim=1), torch.ones(16))


# The loss ----------------------------------------------------------------------------------------------------------


def draw(batch, prototypes, crops, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rows = unit(prototypes, 16, generator=generator)
    scores = unit(crops * batch, 16, generator=generator) @ rows.T
    targets = [sinkhorn(part.double(), 0.05, 3) for part in scores[: 2 * batch].chunk(2)]
    return scores, targets


@PRECISIONS
@given(
    batch=st.integers(1, 8),
    prototypes=st.integers(2, 60),
    crops=st.sampled_from([2, 3, 8]),
    temperature=st.floats(0.05, 0.5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_values_and_gradients_are_those_of_the_pairs(dtype, tolerance, batch, prototypes, crops, temperature, seed):
    scores, targets = draw(batch, prototypes, crops, seed)
    exact = scores.double().requires_grad_()
    expected = published_loss(exact, targets, temperature)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    scores = scores.to(dtype).requires_grad_()
    loss = swav_loss(scores, tuple(target.to(dtype) for target in targets), temperature)
    (gradient,) = torch.autograd.grad(3 * loss, scores)
    assert loss.dtype == gradient.dtype == dtype
    assert abs(loss.item() - expected.item()) <= tolerance * max(1.0, expected.item())
    assert distance(gradient / 3, expected_gradient) <= tolerance * max(1.0, 0.1 / temperature)


def test_full_width_in_float32_equals_the_pairs_in_float64():
    scores, targets = draw(4, 3000, 8)
    exact = scores.double().requires_grad_()
    expected = published_loss(exact, targets, 0.1)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    scores = scores.requires_grad_()
    loss = swav_loss(scores, tuple(target.float() for target in targets), 0.1)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert distance(gradient, expected_gradient) <= 1e-6


@pytest.mark.parametrize(("crops", "queue"), [(2, 0), (8, 0), (8, 12)])
def test_equals_lightly(crops, queue):
    loss_module = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install eosin[bench]")
    generator = torch.Generator().manual_seed(3)
    scores, _ = draw(6, 30, crops)
    scores = scores.requires_grad_()
    earlier = [unit(queue, 16, generator=generator) @ unit(30, 16, generator=generator).T for _ in range(2)]
    parts = list(scores.chunk(crops))
    expected = loss_module.SwaVLoss()(parts[:2], parts[2:], earlier if queue else None)
    (expected_gradient,) = torch.autograd.grad(expected.squeeze(), scores)
    with torch.no_grad():
        targets = [sinkhorn(torch.cat([old, part]), 0.05, 3)[-6:] for old, part in zip(earlier, parts, strict=False)]
    loss = swav_loss(scores, tuple(targets), 0.1)
    (gradient,) = torch.autograd.grad(loss, scores)
    torch.testing.assert_close(loss, expected.squeeze(), rtol=1e-6, atol=0)
    assert distance(gradient, expected_gradient) <= 2e-6


def test_extreme_scores_stay_finite_and_the_gradient_can_be_taken_once():
    scores = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    one = torch.tensor([[1.0, 0.0]])
    loss = swav_loss(scores, (one, one), 0.1)
    loss.backward(retain_graph=True)
    assert loss.item() == pytest.approx(5e4)
    assert torch.isfinite(scores.grad).all()
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()


def test_scores_that_tell_nothing_apart_give_the_loss_by_chance():
    assert swav_loss(torch.zeros(6, 40), (torch.full((2, 40), 1 / 40),) * 2, 0.1).item() == pytest.approx(math.log(40))
    assert build(prototypes=40).chance_loss == math.log(40)


# The method --------------------------------------------------------------------------------------------------------


class PlainSwAV:
    """The published algorithm with the head written out; the queue is a list of batches, newest first."""

    def __init__(self, method, queue_batches, queue_step):
        self.network = copy.deepcopy(method.backbone)
        self.first, self.norm, _, self.last = copy.deepcopy(method.head)
        self.prototypes = method.prototypes.weight.detach().clone().requires_grad_()
        self.queue, self.queue_batches, self.queue_step = [], queue_batches, queue_step

    def parameters(self):
        layers = (self.network, self.first, self.norm, self.last)
        return [parameter for layer in layers for parameter in layer.parameters()] + [self.prototypes]

    def embed(self, crops):
        x = torch.cat(
            [
                self.network(torch.cat([crop for crop in crops if crop.shape[-1] == side]))
                for side in sorted({crop.shape[-1] for crop in crops}, reverse=True)
            ]
        )
        x = x @ self.first.weight.T + self.first.bias
        x = (x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + 1e-5).sqrt() * self.norm.weight + self.norm.bias
        x = x.clamp(min=0) @ self.last.weight.T + self.last.bias
        return x / x.square().sum(dim=1, keepdim=True).sqrt()

    def step(self, number, crops, lr, frozen):
        with torch.no_grad():
            self.prototypes /= self.prototypes.square().sum(dim=1, keepdim=True).sqrt()
        vectors = self.embed(crops)
        size = len(crops[0])
        scores = vectors @ self.prototypes.T
        targets = []
        for crop in range(2):
            with torch.no_grad():
                rows = [batch[crop] for batch in self.queue] if len(self.queue) == self.queue_batches else []
                together = torch.cat([*rows, vectors[crop * size : (crop + 1) * size]]) @ self.prototypes.T
                targets.append(published_assignments(together, 0.05, 3)[-size:])
        loss = published_loss(scores, targets, 0.1)
        gradients = torch.autograd.grad(loss, self.parameters())
        if self.queue_batches and number >= self.queue_step:
            self.queue = [vectors[: 2 * size].detach().chunk(2), *self.queue][: self.queue_batches]
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters(), gradients, strict=True):
                if not (frozen and parameter is self.prototypes):
                    parameter -= lr * gradient
        return loss.detach(), gradients


@pytest.mark.parametrize(("local", "queue_batches"), [(3, 2), (0, 3), (3, 0)])
def test_eight_steps_equal_the_plain_implementation(local, queue_batches):
    """The queue begins in step 2, is full and used from step 4 or 5 on, and goes round; prototypes move from step 3."""
    method = build(queue_size=4 * queue_batches, queue_start_samples=8, freeze_samples=12)
    method.prepare(4, 1000)
    plain = PlainSwAV(method, queue_batches, queue_step=2)
    start = method.prototypes.weight.detach().clone()
    for number, crops in enumerate(batches(8, local=local)):
        output = method(crops)
        output.loss.backward()
        gradients = [parameter.grad.clone() for parameter in method.parameters()]
        descend(method)
        loss, expected = plain.step(number, crops, lr=0.05, frozen=number < 3)
        torch.testing.assert_close(output.loss.detach(), loss, rtol=1e-10, atol=0)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
        for ours, theirs in zip(method.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        if number == 2:
            torch.testing.assert_close(method.prototypes.weight, F.normalize(start, dim=1))
    assert not torch.allclose(method.prototypes.weight, F.normalize(start, dim=1))


def watch_assignments(monkeypatch):
    """Note how many tiles each call of Sinkhorn's algorithm balances."""
    seen = []

    def record(scores, epsilon, iterations):
        seen.append(len(scores))
        return sinkhorn(scores, epsilon, iterations)

    monkeypatch.setattr(swav, "sinkhorn", record)
    return seen


def test_only_global_crops_are_assigned(monkeypatch):
    seen = watch_assignments(monkeypatch)
    build()(batches(1)[0])
    assert seen == [4, 4]


def test_the_queue_is_used_in_every_step_once_it_is_full(monkeypatch):
    method = build(queue_size=8, queue_start_samples=4)
    method.prepare(4, 1000)
    seen = watch_assignments(monkeypatch)
    for crops in batches(7):
        method(crops).loss.backward()
        descend(method)
    assert seen[::2] == seen[1::2] == [4, 4, 4, 12, 12, 12, 12]


def test_the_queue_keeps_the_newest_vectors_of_each_global_crop():
    method = build(queue_size=8, queue_start_samples=0)
    method.prepare(4, 1000)
    vectors = []
    for crops in batches(5):
        output = method(crops)
        vectors.append(torch.stack(output.pairs))
        method.after_step()
    newest = torch.cat([vectors[4], vectors[3]], dim=1)  # the fifth batch has taken the place of the third
    assert method.queue.equal(newest)


def test_a_state_carries_the_queue_and_goes_on_to_the_same_numbers():
    fields = {"queue_size": 8, "queue_start_samples": 0}
    method, other = build(**fields), build(seed=1, **fields)
    method.prepare(4, 1000)
    other.prepare(4, 1000)
    *earlier, last = batches(4)
    for crops in earlier:
        method(crops).loss.backward()
        descend(method)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert (other.steps, other.queued) == (3, 12)
    for run in (method, other):
        run(last).loss.backward()
        descend(run)
    assert other.queue.any()
    for name, value in method.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert value.equal(other.state_dict()[name]), name


def test_pieces_of_a_batch_enter_the_queue_once_and_together():
    method = build(queue_size=8, queue_start_samples=0)
    method.prepare(4, 1000)
    crops = batches(1)[0]
    for half in (slice(0, 2), slice(2, 4)):
        (method([crop[half] for crop in crops]).loss / 2).backward()
        assert not method.queue.any()
    descend(method)
    assert (method.steps, method.queued) == (1, 4)
    assert method.queue.any(dim=2).tolist() == [[True] * 4 + [False] * 4] * 2


def test_prototypes_have_length_1_in_every_forward_and_no_bias():
    method = build()
    assert method.prototypes.bias is None
    for crops in batches(2):
        with torch.no_grad():
            method.prototypes.weight *= 3.0
        method(crops)
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(10, dtype=torch.float64))


def test_prototypes_are_frozen_for_as_many_samples_as_said():
    method = build(freeze_samples=6)
    method.prepare(4, 10)
    for crops, frozen in zip(batches(3), (True, True, False), strict=True):
        method(crops).loss.backward()
        method.before_step()
        without = {name for name, parameter in method.named_parameters() if parameter.grad is None}
        assert without == ({"prototypes.weight"} if frozen else set())
        method.zero_grad()
        method.after_step()


def test_the_head_is_the_authors():
    linear = torch.nn.Linear
    method = build(hidden=None)
    assert [type(layer) for layer in method.head] == [linear, torch.nn.BatchNorm1d, torch.nn.ReLU, linear]
    assert method.head[0].out_features == method.encoder.width
    assert (method.head[3].out_features, method.prototypes.in_features, method.prototypes.out_features) == (12, 12, 10)
    assert method.encoder is method.backbone


def test_one_forward_per_crop_size_and_one_head_pass():
    method = build()
    passes = {"backbone": [], "head": [], "prototypes": []}
    for name, seen in passes.items():
        getattr(method, name).register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
    method(batches(1)[0])
    assert passes == {"backbone": [8, 12], "head": [20], "prototypes": [20]}


def test_the_step_shows_features_vectors_and_the_prototypes_in_use():
    method = build()
    crops = batches(1)[0]
    output = method(crops)
    plain = PlainSwAV(method, 0, 0)
    vectors = plain.embed(crops).detach()
    torch.testing.assert_close(torch.cat(output.pairs), vectors[:8])
    features = plain.network(torch.cat(crops[:2]))[:4].detach()
    torch.testing.assert_close(output.features.double(), features, rtol=1e-6, atol=1e-6)
    share = torch.bincount((vectors[:8] @ plain.prototypes.T).argmax(dim=1), minlength=10) / 8
    entropy = -sum(value * math.log(value) for value in share.tolist() if value)
    assert output.scalars["watch/prototype_usage"].item() == pytest.approx(math.exp(entropy))


def test_collapse_shows():
    """Vectors that do not depend on the tile end at the loss by chance and at one prototype in use."""
    method = build()
    with torch.no_grad():
        method.head[3].weight.zero_()
        method.head[3].bias.zero_()
    output = method(batches(1)[0])
    assert output.scalars["watch/prototype_usage"] == 1
    assert output.loss.item() == pytest.approx(method.chance_loss)


def test_vision_transformers_train_too():
    output = build("test_vit")(batches(1)[0])
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_mixed_precision_keeps_the_loss_in_float32(monkeypatch):
    method = build(prototypes=50).float()
    crops = [crop.float() for crop in batches(1, size=16)[0]]
    full = method(crops)
    types = []

    def record(scores, epsilon, iterations):
        types.append(scores.dtype)
        return sinkhorn(scores, epsilon, iterations)

    monkeypatch.setattr(swav, "sinkhorn", record)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method(crops)
    mixed.loss.backward()
    assert types == [torch.float32] * 2
    assert mixed.loss.dtype == mixed.features.dtype == mixed.pairs[0].dtype == torch.float32
    torch.testing.assert_close(mixed.loss, full.loss, rtol=0.05, atol=0)
    torch.testing.assert_close(mixed.pairs[0].norm(dim=1), torch.ones(16))


# Fields ------------------------------------------------------------------------------------------------------------


def test_a_queue_that_does_not_fit_the_batch_is_refused():
    method = build(queue_size=24, queue_start_samples=0)
    with pytest.raises(
        EosinError, match=r"queue_size 24 is not a multiple of the batch of 9; use --method.queue_size 18"
    ):
        method.prepare(9, 100)
    with pytest.raises(EosinError, match=r"use --method.queue_size 32"):
        method.prepare(32, 100)
    method.prepare(12, 100)
    build().prepare(9, 100)


def test_a_batch_of_one_is_refused():
    with pytest.raises(EosinError, match="batch_size 1: .* use --batch_size 2 or more"):
        build().prepare(1, 10)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"queue_size": 8, "queue_start_samples": 50},
            "the queue is never full in a run of 40; use --method.queue_start",
        ),
        ({"freeze_samples": 40}, "holds the prototypes for the whole run of 40"),
        ({"queue_size": 8, "queue_start_samples": 8, "freeze_samples": 8}, None),
    ],
)
def test_a_run_too_short_for_its_queue_or_freezing_is_warned_of(capsys, fields, words):
    build(**fields).prepare(4, 10)
    said = " ".join(capsys.readouterr().err.split())
    assert words in said if words else not said


@pytest.mark.parametrize("field", ["epsilon", "temperature", "queue_size", "prototypes", "sinkhorn_iterations"])
def test_fields_without_a_meaning_are_refused(field):
    with pytest.raises(EosinError, match=field):
        SwAVConfig.parse({"name": "swav", field: -1}, "method")


def test_authors_fields():
    config = SwAVConfig()
    assert (config.dim, config.hidden, config.prototypes, config.temperature) == (128, None, 3000, 0.1)
    assert (config.epsilon, config.sinkhorn_iterations) == (0.05, 3)
    assert (config.queue_size, config.queue_start_samples) == (0, 15 * 1_281_167)
    assert config.freeze_samples == 313 * 4096


def test_authors_optimiser_and_views():
    optimizer = SwAV.defaults["optimizer"]
    assert optimizer == {
        "name": "larc",
        "lr": 0.3,
        "final_lr": 0.0003,
        "warmup_lr": 0.01875,
        "warmup_samples": 12_811_670,
        "weight_decay": 1e-6,
    }
    at_4096 = {name: value * 16 for name, value in optimizer.items() if name.endswith("lr")}
    assert at_4096 == pytest.approx({"lr": 4.8, "final_lr": 0.0048, "warmup_lr": 0.3})
    views = AugmentConfig.parse(SwAV.defaults["augment"], "defaults").views
    assert list(views) == list(SwAV.views) == ["global", "local"]
    for view in views.values():
        jitter = view.jitter
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.8, 0.8, 0.8, 0.2)
        assert (jitter.probability, view.grayscale, view.horizontal_flip) == (0.8, 0.2, 0.5)
        assert (view.blur.probability, view.blur.sigma, view.solarize.probability) == (0.5, (0.1, 2.0), 0.0)
        assert view.interpolation == "bilinear"
    assert [(view.count, view.size, view.scale) for view in views.values()] == [
        (2, 224, (0.14, 1.0)),
        (6, 96, (0.05, 0.14)),
    ]
    # The authors' code has 0.228 for the first, a slip.
    assert AugmentConfig.parse(SwAV.defaults["augment"], "defaults").std == (0.229, 0.224, 0.225)


AUTO = SwAVConfig(prototypes="auto", queue_size="auto", queue_start_samples="auto", freeze_samples="auto")


@pytest.mark.parametrize(
    ("tiles", "batch", "prototypes", "queue"),
    [
        (1_281_167, 256, 3000, 3840),  # the authors' own
        (1_281_167, 2048, 3000, 2048),
        (1_281_167, 4096, 3000, 0),
        (90_000, 256, 3000, 3840),
        (5000, 64, 166, 128),
        (1000, 64, 64, 0),
        (1000, 16, 64, 64),
    ],
)
def test_fewer_tiles_get_fewer_prototypes_and_small_batches_a_queue(tiles, batch, prototypes, queue):
    chosen = SwAV.automatic(AUTO, Setting(tiles, batch, 100_000))
    assert (chosen["method.prototypes"], chosen["method.queue_size"]) == (prototypes, queue)


def test_a_queue_goes_by_the_prototypes_that_are_given():
    given_count = AUTO.model_copy(update={"prototypes": 300})
    assert SwAV.automatic(given_count, Setting(1_281_167, 64, 100_000))["method.queue_size"] == 320


def test_no_queue_is_chosen_that_would_not_be_used():
    late = AUTO.model_copy(update={"queue_start_samples": 19_217_505})
    assert SwAV.automatic(late, Setting(5000, 64, 625))["method.queue_size"] == 0


@pytest.mark.parametrize(
    ("steps", "queue_start", "freeze", "warmup"),
    [(625, 46 * 64, 6 * 64, 62 * 64), (10_000_000, 19_217_505, 1_282_048, 12_811_670)],
)
def test_lengths_are_the_same_shares_of_a_shorter_run(steps, queue_start, freeze, warmup):
    chosen = SwAV.automatic(AUTO, Setting(1000, 64, steps))
    assert chosen["method.queue_start_samples"] == queue_start
    assert chosen["method.freeze_samples"] == freeze
    assert chosen["optimizer.warmup_samples"] == warmup
