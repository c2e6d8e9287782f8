"""Every registered method keeps the contract of `Method`."""

import copy

import pytest
import torch

from eosin.encoders import Encoder, build_encoder
from eosin.methods import METHODS, Method, MethodConfig

SMALL = {
    "mocov2": {"queue_size": 32, "dim": 8, "norm_group": 4},
    "swav": {"prototypes": 12, "dim": 8, "freeze_samples": 0},
    "barlowtwins": {"hidden": 16, "dim": 16},
    "dino": {"prototypes": 32, "hidden": 16, "bottleneck": 8, "drop_path": 0.0, "freeze_last_layer_samples": 0},
}
"""Fields that make a method small enough for a test."""


def build(name, seed=0):
    entry = METHODS[name]
    config = entry.Config.parse({"name": name, **SMALL[name]}, name)
    card = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
    method = entry(config, lambda **options: build_encoder("test_resnet", size=32, **card, **options), seed)
    method.prepare(8, 100)
    return method


def views_for(method, batch=8):
    """Views as the method wants them; of views in any number, three smaller ones."""
    generator = torch.Generator().manual_seed(0)
    sizes = [side for count in method.views.values() for side in ([32] * count if count else [16] * 3)]
    return [torch.randn(batch, 3, side, side, generator=generator) for side in sizes]


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_a_step_gives_loss_scalars_features_and_pairs(self, name):
        method = build(name)
        output = method(views_for(method))
        assert isinstance(method, Method)
        assert issubclass(method.Config, MethodConfig)
        assert output.loss.shape == ()
        assert torch.isfinite(output.loss)
        assert output.features.shape == (8, method.encoder.width)
        for vectors in output.pairs:
            assert not vectors.requires_grad
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(8))
        assert all(not value.requires_grad for value in output.scalars.values())

    def test_gradients_reach_exactly_the_optimised_parameters(self, name):
        method = build(name)
        method(views_for(method)).loss.backward()
        optimised = {id(p) for p in method.parameters() if p.requires_grad}
        with_gradient = {id(p) for p in method.parameters() if p.grad is not None}
        assert with_gradient == optimised

    def test_the_evaluated_network_is_an_encoder_and_changes_with_training(self, name):
        """By its own gradients, or because it follows a network that has them."""
        method = build(name)
        assert isinstance(method.encoder, Encoder)
        before = copy.deepcopy(method.encoder.state_dict())
        for _ in range(2):
            method(views_for(method)).loss.backward()
            method.before_step()
            with torch.no_grad():
                for parameter in method.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
            method.after_step()
        changed = [key for key, value in method.encoder.named_parameters() if not value.equal(before[key])]
        assert changed

    def test_a_forward_pass_without_a_step_moves_no_parameter(self, name):
        method = build(name)
        method(views_for(method))
        before = copy.deepcopy(dict(method.named_parameters()))
        method(views_for(method))
        for key, value in method.named_parameters():
            torch.testing.assert_close(value, before[key], rtol=1e-6, atol=0)

    def test_the_state_is_whole(self, name):
        """Two copies of one state take the same step."""
        first, second = build(name, seed=0), build(name, seed=0)
        first(views_for(first)).loss.backward()
        first.after_step()
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert first(views_for(first)).loss.equal(second(views_for(second)).loss)

    def test_a_seed_gives_one_start(self, name):
        states = [build(name, seed).state_dict() for seed in (0, 0, 1)]
        weights = [torch.cat([v.flatten().float() for v in s.values() if isinstance(v, torch.Tensor)]) for s in states]
        assert weights[0].equal(weights[1])
        assert not weights[0].equal(weights[2])

    def test_the_global_generator_is_left_alone(self, name):
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        build(name)
        assert torch.rand(1).equal(expected)
