"""Barlow Twins against the plain formula and a separate implementation, and each detail that re-implementations lose."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eosin.augment import AugmentConfig
from eosin.core.errors import EosinError
from eosin.encoders import build_encoder
from eosin.methods.barlow_twins import BarlowTwins, BarlowTwinsConfig, barlow_twins_loss
from eosin.methods.base import Setting

GRAY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def build(architecture="test_resnet", *, seed=0, **fields):
    config = BarlowTwinsConfig(**{"dim": 20, "hidden": 24, **fields})
    return BarlowTwins(config, lambda: build_encoder(architecture, size=32, **GRAY), seed).double().train()


def batches(count, size=8):
    """Two views of each tile that have something in common."""
    generator = torch.Generator().manual_seed(5)
    shape = (size, 3, 32, 32)
    found = []
    for _ in range(count):
        tile, *noise = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
        found.append([tile + 0.5 * change for change in noise])
    return found


def published(z_a, z_b, redundancy):
    """The loss entry by entry of the cross-correlation matrix."""
    matrix = torch.einsum("nd,ne->de", z_a, z_b) / len(z_a)
    same = torch.eye(len(matrix), dtype=torch.bool)
    return (matrix[same] - 1).square().sum() + redundancy * matrix[~same].square().sum()


def standardized(values):
    return (values - values.mean(dim=0)) / (values.var(dim=0, correction=0) + 1e-5).sqrt()


def draw(tiles, dim, seed, likeness):
    generator = torch.Generator().manual_seed(seed)
    shared, *own = (torch.randn(tiles, dim, generator=generator) for _ in range(3))
    return tuple(standardized(likeness * shared + (1 - likeness) * noise) for noise in own)


def distance(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@given(
    tiles=st.integers(4, 40),
    dim=st.integers(2, 40),
    seed=st.integers(0, 1000),
    likeness=st.sampled_from([0.0, 0.3, 0.5]),
    redundancy=st.sampled_from([0.0, 0.0051, 1.0]),
)
@settings(max_examples=80)
def test_values_and_gradients_are_those_of_the_matrix(dtype, tolerance, tiles, dim, seed, likeness, redundancy):
    """Both forms: more tiles than dimensions and fewer."""
    views = draw(tiles, dim, seed, likeness)
    exact = [view.double().requires_grad_() for view in views]
    expected = published(*exact, redundancy)
    ours = [view.to(dtype).requires_grad_() for view in views]
    loss = barlow_twins_loss(*ours, redundancy)
    assert loss.dtype == dtype
    # A correlation near 1 is rounded as one, and what is left of 1 minus it by as much.
    tolerance *= 1 + 0.2 * (dim / expected.item()) ** 0.5
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    gradients = zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, exact), strict=True)
    for gradient, expected_gradient in gradients:
        assert distance(gradient, expected_gradient) <= tolerance


def test_a_wide_projection_in_float32_equals_the_matrix_in_float64():
    views = draw(32, 2048, 0, 0.6)
    exact = [view.double().requires_grad_() for view in views]
    ours = [view.requires_grad_() for view in views]
    loss, expected = barlow_twins_loss(*ours, 0.0051), published(*exact, 0.0051)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, exact), strict=True)
    for gradient, expected_gradient in gradients:
        assert distance(gradient, expected_gradient) <= 1e-6


@pytest.mark.parametrize(("tiles", "dim"), [(12, 50), (50, 12)])
def test_equals_lightly(tiles, dim):
    loss_module = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install eosin[bench]")
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(tiles, dim, generator=generator).requires_grad_() for _ in range(2)]
    expected = loss_module.BarlowTwinsLoss(lambda_param=0.0051)(*views)
    expected_gradients = torch.autograd.grad(expected, views)
    loss = barlow_twins_loss(*(F.batch_norm(view, None, None, training=True) for view in views), 0.0051)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for gradient, expected_gradient in zip(torch.autograd.grad(loss, views), expected_gradients, strict=True):
        assert distance(gradient, expected_gradient) <= 2e-6


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max(self.numbers, *made, 0)
        return out


def test_fewer_tiles_than_dimensions_make_no_matrix_of_the_dimensions():
    views = [view.requires_grad_() for view in draw(8, 512, 0, 0.5)]
    with Largest() as seen:
        barlow_twins_loss(*views, 0.0051).backward()
    assert seen.numbers == 8 * 512


class PlainBarlowTwins:
    """The published algorithm with the projector and its norms written out."""

    def __init__(self, method):
        self.network = copy.deepcopy(method.backbone)
        first, norm_1, _, second, norm_2, _, third = copy.deepcopy(method.projector)
        self.weights = [layer.weight for layer in (first, second, third)]
        self.norms = [(norm.weight, norm.bias) for norm in (norm_1, norm_2)]
        self.redundancy = method.config.redundancy

    def parameters(self):
        pairs = zip(self.weights, [*self.norms, ()], strict=True)
        return [*self.network.parameters(), *(value for weight, norm in pairs for value in (weight, *norm))]

    def project(self, images):
        x = self.network(images)
        for weight, (scale, shift) in zip(self.weights[:2], self.norms, strict=True):
            x = (standardized(x @ weight.T) * scale + shift).clamp(min=0)
        return standardized(x @ self.weights[2].T)

    def step(self, views, lr):
        loss = published(*(self.project(view) for view in views), self.redundancy)
        gradients = torch.autograd.grad(loss, self.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(self.parameters(), gradients, strict=True):
                parameter -= lr * gradient
        return loss.detach(), gradients


@pytest.mark.parametrize("dim", [20, 5])
def test_five_steps_equal_the_plain_implementation(dim):
    method = build(dim=dim)
    method.prepare(8, 5)
    plain = PlainBarlowTwins(method)
    for views in batches(5):
        output = method(views)
        output.loss.backward()
        parameters = list(method.parameters())
        gradients = [parameter.grad.clone() for parameter in parameters]
        method.before_step()
        with torch.no_grad():
            for parameter in parameters:
                parameter -= 1e-3 * parameter.grad
        method.zero_grad()
        method.after_step()

        loss, expected = plain.step(views, lr=1e-3)
        torch.testing.assert_close(output.loss.detach(), loss, rtol=1e-10, atol=0)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)
        for ours, theirs in zip(parameters, plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    assert method.steps == 5


def test_the_projector_is_the_authors():
    method = build()
    linear, norm = torch.nn.Linear, torch.nn.BatchNorm1d
    kinds = [type(layer) for layer in method.projector]
    assert kinds == [linear, norm, torch.nn.ReLU, linear, norm, torch.nn.ReLU, linear]
    layers = [layer for layer in method.projector if isinstance(layer, linear)]
    assert [layer.out_features for layer in layers] == [24, 24, 20]
    assert all(layer.bias is None for layer in layers)
    last = method.view_norm
    assert not last.affine
    assert last.eps == 1e-5
    assert method.encoder is method.backbone


def test_each_view_has_its_own_batch_statistics():
    """A pass over both views at once would let one view move the other's projections."""
    method = build()
    (first, second), (_, other) = batches(2)
    once, again = method([first, second]), method([first, other])
    assert once.pairs[0].equal(again.pairs[0])
    assert once.features.equal(again.features)
    fresh = build()
    fresh([first, second])
    assert fresh.view_norm.num_batches_tracked == fresh.projector[1].num_batches_tracked == 2


def test_the_step_shows_features_projections_and_correlations():
    method = build()
    views = batches(1)[0]
    output = method(views)
    plain = PlainBarlowTwins(method)
    z_a, z_b = (plain.project(view).detach() for view in views)
    matrix = z_a.T @ z_b / 8
    others = matrix[~torch.eye(20, dtype=torch.bool)]
    torch.testing.assert_close(output.scalars["watch/redundancy"], others.square().mean())
    torch.testing.assert_close(output.scalars["watch/view_correlation"], matrix.diagonal().mean())
    torch.testing.assert_close(output.pairs[0], F.normalize(z_a, dim=1))
    torch.testing.assert_close(output.pairs[1], F.normalize(z_b, dim=1))
    torch.testing.assert_close(output.features.double(), plain.network(views[0]).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [20, 5])
def test_collapse_shows(dim):
    """Projections that do not depend on the tile end at the loss by chance, copies of one dimension at redundancy 1."""
    method = build(dim=dim)
    views = batches(1)[0]
    with torch.no_grad():
        weight = method.projector[-1].weight
        weight.copy_(weight[:1].expand_as(weight))
    copies = method([views[0], views[0]])
    assert copies.scalars["watch/redundancy"].item() == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        method.projector[-1].weight.zero_()
    assert method(views).loss.item() == method.chance_loss == dim


def test_pieces_of_a_batch_have_correlations_of_their_own():
    method = build()
    first, second = batches(1, size=16)[0]
    plain = PlainBarlowTwins(method)
    for half in (slice(0, 8), slice(8, 16)):
        views = [first[half], second[half]]
        output = method(views)
        (output.loss / 2).backward()
        expected = published(*(plain.project(view) for view in views), 0.0051)
        torch.testing.assert_close(output.loss, expected, rtol=1e-10, atol=0)
    method.after_step()
    assert method.steps == 1
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_vision_transformers_train_too():
    output = build("test_vit")(batches(1)[0])
    output.loss.backward()
    assert torch.isfinite(output.loss)


def test_mixed_precision_keeps_the_loss_in_float32():
    method = build().float()
    views = [view.float() for view in batches(1, size=32)[0]]
    full = method(views)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method(views)
    mixed.loss.backward()
    assert mixed.loss.dtype == mixed.features.dtype == mixed.pairs[0].dtype == torch.float32
    torch.testing.assert_close(mixed.loss, full.loss, rtol=0.05, atol=0)
    torch.testing.assert_close(mixed.pairs[0].norm(dim=1), torch.ones(32))


def test_a_state_goes_on_to_the_same_numbers():
    method, other = build(), build(seed=1)
    first, second = batches(2)
    method(first).loss.backward()
    method.after_step()
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert other.steps == 1
    assert other(second).loss.equal(method(second).loss)


def test_a_batch_of_one_is_refused():
    with pytest.raises(EosinError, match="batch_size 1: .* use --batch_size 2 or more"):
        build().prepare(1, 10)
    build().prepare(2, 10)


@pytest.mark.parametrize("fields", [{"dim": 1}, {"hidden": 0}, {"redundancy": -0.1}, {"scale_loss": 0.024}])
def test_fields_without_a_meaning_are_refused(fields):
    with pytest.raises(EosinError, match=next(iter(fields))):
        BarlowTwinsConfig.parse({"name": "barlowtwins", **fields}, "method")


def test_authors_fields():
    config = BarlowTwinsConfig()
    assert (config.hidden, config.dim, config.redundancy) == (8192, 8192, 0.0051)


def test_authors_optimiser_and_views():
    optimizer = BarlowTwins.defaults["optimizer"]
    assert optimizer == {
        "name": "lars",
        "lr": 0.2,
        "bias_lr": 0.0048,
        "final_lr": 0.0002,
        "warmup_samples": 12_811_670,
        "weight_decay": 1e-6,
        "decay_vectors": False,
    }
    # The authors' former --scale-loss of 0.024 is in the learning rate of biases and nowhere else.
    assert optimizer["bias_lr"] == pytest.approx(0.024 * optimizer["lr"])
    views = AugmentConfig.parse(BarlowTwins.defaults["augment"], "defaults").views
    assert list(views) == list(BarlowTwins.views) == ["first", "second"]
    for view in views.values():
        jitter = view.jitter
        assert (view.count, view.size, view.scale, view.interpolation) == (1, 224, (0.08, 1.0), "bicubic")
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4, 0.4, 0.2, 0.1)
        assert (jitter.probability, view.grayscale, view.horizontal_flip) == (0.8, 0.2, 0.5)
        assert view.blur.sigma == (0.1, 2.0)
    assert [view.blur.probability for view in views.values()] == [1.0, 0.1]
    assert [view.solarize.probability for view in views.values()] == [0.0, 0.2]
    assert views["second"].solarize.threshold == pytest.approx(128 / 255)


@pytest.mark.parametrize(
    ("batch", "lr"),
    [(16, 1.0), (64, 1.0), (128, 0.7), (256, 0.4), (512, 0.3), (1024, 0.25), (2048, 0.2), (4096, 0.2), (16384, 0.2)],
)
def test_the_learning_rate_follows_the_authors_table(batch, lr):
    chosen = BarlowTwins.automatic(BarlowTwinsConfig(), Setting(1_281_167, batch, 10))
    assert chosen["optimizer.lr"] == pytest.approx(lr)
    assert chosen["optimizer.bias_lr"] == pytest.approx(0.024 * lr)


def test_between_the_batches_of_the_table_it_is_interpolated():
    chosen = BarlowTwins.automatic(BarlowTwinsConfig(), Setting(1_281_167, 181, 10))  # 2 ** 7.5
    assert chosen["optimizer.lr"] == pytest.approx(0.55, abs=1e-3)


@pytest.mark.parametrize(
    ("tiles", "width"), [(1000, 1024), (20_000, 2048), (100_000, 4096), (499_999, 4096), (500_000, 8192)]
)
def test_fewer_tiles_get_a_narrower_projector(tiles, width):
    chosen = BarlowTwins.automatic(BarlowTwinsConfig(), Setting(tiles, 256, 10))
    assert chosen["method.hidden"] == chosen["method.dim"] == width


@pytest.mark.parametrize(("steps", "samples"), [(625, 62 * 64), (10_000_000, 12_811_670)])
def test_the_warm_up_is_at_most_a_tenth_of_the_run(steps, samples):
    chosen = BarlowTwins.automatic(BarlowTwinsConfig(), Setting(1000, 64, steps))
    assert chosen["optimizer.warmup_samples"] == samples
