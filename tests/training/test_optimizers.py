"""The optimiser is what its fields say; fields that cannot be are refused."""

import copy
import math

import pytest
import torch
from torch import nn

from eosin.core.errors import EosinError
from eosin.training.lars import LARC, LARS
from eosin.training.optimizers import (
    OptimizerConfig,
    build_optimizer,
    check_schedule,
    clip_gradients,
    set_hyperparameters,
)

NAMES = ["sgd", "lars", "larc", "adamw"]


def network(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2, bias=False)
    ).to(dtype)


def give_gradients(model, step, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        parameter.grad = gradient.to(parameter.dtype)


def train(model, optimizer, config, first, last, steps=10):
    for step in range(first, last):
        set_hyperparameters(optimizer, config, step, steps, 256)
        give_gradients(model, step)
        optimizer.step()


class TestGroups:
    @pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("larc", LARC)])
    def test_one_rule_for_all_makes_one_group(self, name, kind):
        optimizer = build_optimizer(OptimizerConfig(name=name), network().named_parameters())
        assert isinstance(optimizer, kind)
        assert len(optimizer.param_groups) == 1

    @pytest.mark.parametrize("name", NAMES)
    def test_vectors_have_their_own_rate_and_no_decay(self, name):
        config = OptimizerConfig(name=name, lr=0.2, bias_lr=0.0048, weight_decay=0.3, decay_vectors=False)
        model = network()
        optimizer = build_optimizer(config, model.named_parameters())
        lr = set_hyperparameters(optimizer, config, 0, 10, 512)
        matrices, vectors = optimizer.param_groups
        assert [p.ndim for p in matrices["params"]] == [4, 2, 2]
        assert [p.ndim for p in vectors["params"]] == [1, 1, 1, 1]
        assert lr == matrices["lr"] == pytest.approx(0.4)
        assert vectors["lr"] == pytest.approx(0.0096)
        assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)

    @pytest.mark.parametrize("decay_vectors", [True, False])
    def test_lars_leaves_vectors_unadapted_whether_they_decay_or_not(self, decay_vectors):
        config = OptimizerConfig(name="lars", decay_vectors=decay_vectors)
        optimizer = build_optimizer(config, network().named_parameters())
        set_hyperparameters(optimizer, config, 0, 10, 256)
        assert isinstance(optimizer, LARS)
        assert [group["adapted"] for group in optimizer.param_groups] == [True, False]
        assert bool(optimizer.param_groups[1]["weight_decay"]) == decay_vectors

    def test_a_bias_of_more_dimensions_is_a_bias(self):
        named = [("a.weight", nn.Parameter(torch.ones(2, 2))), ("a.bias", nn.Parameter(torch.ones(2, 2)))]
        groups = build_optimizer(OptimizerConfig(decay_vectors=False), named).param_groups
        assert groups[1]["params"] == [named[1][1]]

    @pytest.mark.parametrize("name", NAMES)
    def test_what_needs_no_gradient_is_left_out(self, name):
        model = network()
        model[0].requires_grad_(False)
        optimizer = build_optimizer(OptimizerConfig(name=name, decay_vectors=False), model.named_parameters())
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}


class TestSteps:
    @pytest.mark.parametrize("nesterov", [False, True])
    def test_sgd_equals_pytorchs_plain_loop(self, nesterov):
        config = OptimizerConfig(lr=0.05, weight_decay=0.01, nesterov=nesterov, decay_vectors=False, bias_lr=0.02)
        model = network()
        twin = copy.deepcopy(model)
        train(model, build_optimizer(config, model.named_parameters()), config, 0, 10)
        peers = [
            torch.optim.SGD(
                [parameter],
                lr=1.0,
                momentum=0.9,
                nesterov=nesterov,
                weight_decay=0.01 if parameter.ndim > 1 else 0.0,
                foreach=False,
            )
            for parameter in twin.parameters()
        ]
        for step in range(10):
            give_gradients(twin, step)
            for parameter, peer in zip(twin.parameters(), peers, strict=True):
                peak = 0.05 if parameter.ndim > 1 else 0.02
                peer.param_groups[0]["lr"] = peak * (1 + math.cos(math.pi * step / 10)) / 2
                peer.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    def test_adamw_equals_pytorchs_plain_loop_with_decay_along_a_cosine(self):
        config = OptimizerConfig(name="adamw", lr=0.01, weight_decay=0.04, final_weight_decay=0.4)
        model = network()
        twin = copy.deepcopy(model)
        train(model, build_optimizer(config, model.named_parameters()), config, 0, 10)
        peer = torch.optim.AdamW(twin.parameters(), foreach=False)
        for step in range(10):
            give_gradients(twin, step)
            half_wave = (1 + math.cos(math.pi * step / 10)) / 2
            peer.param_groups[0]["lr"] = 0.01 * half_wave
            peer.param_groups[0]["weight_decay"] = 0.4 + (0.04 - 0.4) * half_wave
            peer.step()
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("of_weights", [torch.channels_last, torch.contiguous_format])
    @pytest.mark.parametrize("of_gradients", [torch.channels_last, torch.contiguous_format])
    def test_memory_layout_changes_nothing(self, name, of_weights, of_gradients):
        config = OptimizerConfig(name=name, decay_vectors=False)
        plain, laid_out = network(), network().to(memory_format=of_weights)
        optimizers = [build_optimizer(config, model.named_parameters()) for model in (plain, laid_out)]
        for step in range(3):
            for model, optimizer in zip((plain, laid_out), optimizers, strict=True):
                set_hyperparameters(optimizer, config, step, 3, 256)
                give_gradients(model, step)
                if model is laid_out:
                    model[0].weight.grad = model[0].weight.grad.contiguous(memory_format=of_gradients)
                optimizer.step()
        for ours, theirs in zip(laid_out.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        assert laid_out[0].weight.is_contiguous(memory_format=of_weights)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_frozen_parameter_stays_and_then_begins(self, name):
        config = OptimizerConfig(name=name)
        model = network()
        optimizer = build_optimizer(config, model.named_parameters())
        before = model[5].weight.detach().clone()
        for step in range(4):
            set_hyperparameters(optimizer, config, step, 10, 256)
            give_gradients(model, step)
            if step < 2:
                model[5].weight.grad = None
            optimizer.step()
            assert torch.equal(model[5].weight, before) == (step < 2)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_saved_state_goes_on_to_the_same_bits(self, name, tmp_path):
        config = OptimizerConfig(name=name, lr=0.1, bias_lr=0.05, decay_vectors=False, final_weight_decay=0.4)
        model = network(torch.float32)
        optimizer = build_optimizer(config, model.named_parameters())
        train(model, optimizer, config, 0, 5)
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
        train(model, optimizer, config, 5, 10)
        state = torch.load(tmp_path / "state.pt")
        again = network(torch.float32)
        resumed = build_optimizer(config, again.named_parameters())
        again.load_state_dict(state["model"])
        resumed.load_state_dict(state["optimizer"])
        train(again, resumed, config, 5, 10)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
        for a, b in zip(optimizer.state.values(), resumed.state.values(), strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)


class TestSchedule:
    def test_the_rate_is_scaled_with_the_batch_unless_told_not_to(self):
        assert OptimizerConfig().scaled(0.03, 512) == pytest.approx(0.06)
        assert OptimizerConfig(scale_lr=False).scaled(0.03, 512) == 0.03

    def test_swavs_warm_up_begins_above_zero_and_ends_at_the_peak(self):
        config = OptimizerConfig(lr=0.3, warmup_lr=0.01875, warmup_samples=40960, final_lr=0.0003)
        optimizer = build_optimizer(config, network().named_parameters())
        values = [set_hyperparameters(optimizer, config, step, 40, 4096) for step in (0, 5, 10, 40)]
        assert values == pytest.approx([0.3, 2.55, 4.8, 0.0048])

    def test_dinos_last_rate_is_not_scaled(self):
        config = OptimizerConfig(lr=0.0005, final_lr=1e-6, scale_final_lr=False)
        optimizer = build_optimizer(config, network().named_parameters())
        assert set_hyperparameters(optimizer, config, 0, 10, 1024) == pytest.approx(0.002)
        assert set_hyperparameters(optimizer, config, 10, 10, 1024) == pytest.approx(1e-6)

    def test_stairs_hold_the_rate_and_not_the_decay(self):
        config = OptimizerConfig(stair_samples=1024, weight_decay=0.04, final_weight_decay=0.4)
        optimizer = build_optimizer(config, network().named_parameters())
        seen = []
        for step in range(4):
            lr = set_hyperparameters(optimizer, config, step, 8, 256)
            seen.append((lr, optimizer.param_groups[0]["weight_decay"]))
        assert len({lr for lr, _ in seen}) == 1
        assert len({decay for _, decay in seen}) == 4

    def test_a_warm_up_longer_than_the_run_is_refused(self):
        check_schedule(OptimizerConfig(warmup_samples=999), 1000)
        for length in (1000, 5000):
            with pytest.raises(
                EosinError, match=rf"optimizer.warmup_samples {length}.*longer than the run of 1000.* 100"
            ):
                check_schedule(OptimizerConfig(warmup_samples=length), 1000)


class TestClipping:
    @pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
    def test_each_parameter_is_clipped_by_itself(self, scale):
        model = network()
        give_gradients(model, 0, scale)
        model[0].bias.grad.mul_(1000)
        model[4].bias.grad = None
        expected = []
        for parameter in model.parameters():
            if parameter.grad is not None:
                factor = 3.0 / (parameter.grad.norm() + 1e-6)
                expected.append(parameter.grad * factor if factor < 1 else parameter.grad.clone())
        clip_gradients(model.parameters(), 3.0)
        assert model[4].bias.grad is None
        for parameter in model.parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, expected.pop(0), rtol=1e-12, atol=0)

    def test_short_gradients_keep_their_bits(self):
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.tensor([0.1, 0.2, 0.3])
        clip_gradients([weight], 3.0)
        assert torch.equal(weight.grad, torch.tensor([0.1, 0.2, 0.3]))

    def test_nothing_to_clip(self):
        clip_gradients([nn.Parameter(torch.ones(3))], 3.0)


@pytest.mark.parametrize("field", ["lr", "bias_lr", "warmup_samples"])
def test_fields_may_be_left_to_the_method(field):
    assert getattr(OptimizerConfig.parse({field: "auto"}, "optimizer"), field) == "auto"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0"),
        ({"nesterov": True, "name": "adamw"}, "nesterov is for sgd"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"name": "adagrad"}, "name"),
        ({"lr": 0.0}, "field 'lr.*greater than 0"),
        ({"bias_lr": -1.0}, "field 'bias_lr.*greater than 0"),
        ({"warmup_samples": -1}, "field 'warmup_samples.*greater than or equal to 0"),
        ({"clip": 0.0}, "'clip'.*greater than 0"),
        ({"trust": 0.0}, "'trust'.*greater than 0"),
        ({"final_weight_decay": -0.1}, "'final_weight_decay'.*greater than or equal to 0"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(EosinError, match=message):
        OptimizerConfig.parse(fields, "optimizer")


def test_a_stair_longer_than_the_run_is_refused():
    config = OptimizerConfig(stair_samples=1000)
    check_schedule(config, 1001)
    with pytest.raises(EosinError, match=r"optimizer.stair_samples 1000.*--optimizer.stair_samples 0"):
        check_schedule(config, 1000)
