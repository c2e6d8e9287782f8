"""Stochastic depth: timm's law, masks that follow a tile wherever it stands."""

import copy

import numpy as np
import pytest
import timm
import torch
from timm.layers import DropPath, drop_path

from eosin.core.draws import Draws
from eosin.methods.drop_path import PositionalDropPath, draw_masks, replace_drop_paths

CPU = torch.device("cpu")


def masks(layers, positions, views=(0,), step=0):
    draw_masks(layers, Draws(3, step, positions), views, CPU)
    return torch.stack([layer.masks for layer in layers])


@pytest.mark.parametrize("architecture", ["test_vit", "test_resnet", "test_convnext"])
def test_every_layer_of_a_network_is_replaced_at_its_rate(architecture):
    network = timm.create_model(architecture, drop_path_rate=0.1, num_classes=0)
    before = {name: module.drop_prob for name, module in network.named_modules() if isinstance(module, DropPath)}
    keys = list(network.state_dict())
    layers = replace_drop_paths(network)
    after = {name: module.rate for name, module in network.named_modules() if isinstance(module, PositionalDropPath)}
    assert before == after
    assert len(layers) == len(after) > 2
    assert not any(isinstance(module, DropPath) for module in network.modules())
    assert list(network.state_dict()) == keys


def test_a_network_without_stochastic_depth_has_nothing_to_replace():
    assert replace_drop_paths(timm.create_model("test_vit", num_classes=0)) == []
    draw_masks([], Draws(0, 0, [0]), [0], CPU)


def test_the_law_is_that_of_timm():
    """Kept with probability 1 - rate and divided by it, row by row."""
    rates = (0.05, 0.3, 0.9)
    layers = [PositionalDropPath(rate).train() for rate in rates]
    draw_masks(layers, Draws(0, 0, np.arange(20_000)), [0], CPU)
    for layer, rate in zip(layers, rates, strict=True):
        for _ in range(3):
            out = layer(torch.ones(20_000, 2, 2))
            rows = out.flatten(1)
            assert (rows == rows[:, :1]).all()
            kept = rows[:, 0] > 0
            torch.testing.assert_close(rows[kept, 0], torch.full((int(kept.sum()),), 1 / (1 - rate)))
            spread = (rate * (1 - rate) / 20_000) ** 0.5
            assert abs(float(kept.double().mean()) - (1 - rate)) < 4.5 * spread


def test_without_draws_the_layer_is_timm_itself():
    layer, branch = PositionalDropPath(0.4).train(), torch.randn(64, 3, 2)
    draw_masks([layer], None, [0], CPU)
    torch.manual_seed(1)
    expected = drop_path(branch, 0.4, training=True)
    torch.manual_seed(1)
    assert layer(branch).equal(expected)


def test_kept_branches_may_stay_unscaled():
    layer = PositionalDropPath(0.5, scale_by_keep=False).train()
    assert set(layer(torch.ones(100, 1)).flatten().tolist()) == {0.0, 1.0}


def test_evaluation_and_rate_zero_are_the_identity():
    branch = torch.randn(8, 3)
    assert PositionalDropPath(0.5).eval()(branch) is branch
    assert PositionalDropPath(0.0).train()(branch) is branch


def test_a_tile_keeps_its_masks_in_another_batch():
    layers = [PositionalDropPath(0.5) for _ in range(6)]
    whole = masks(layers, range(8), views=(2, 3)).reshape(6, 2, 8, -1)
    halves = [masks(layers, half, views=(2, 3)).reshape(6, 2, 4, -1) for half in (range(4), range(4, 8))]
    assert whole.equal(torch.cat(halves, dim=2))
    assert whole[:, 1].equal(masks(layers, range(8), views=(3,)))


def test_layers_views_calls_and_steps_are_independent():
    layers = [PositionalDropPath(0.5) for _ in range(3)]
    drawn = masks(layers, range(4000), views=(0, 1)).reshape(3, 2, 4000, 3)
    later = masks(layers, range(4000), views=(0, 1), step=1).reshape(3, 2, 4000, 3)
    columns = torch.cat([drawn, later], dim=1).permute(0, 1, 3, 2).reshape(-1, 4000).double()
    correlation = torch.corrcoef(columns) - torch.eye(len(columns), dtype=torch.float64)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_calls_of_one_layer_in_a_pass_have_masks_of_their_own():
    layer = PositionalDropPath(0.5).train()
    draw_masks([layer], Draws(0, 0, range(64)), [0], CPU)
    first, second = layer(torch.ones(64, 1)), layer(torch.ones(64, 1))
    assert not first.equal(second)
    draw_masks([layer], Draws(0, 0, range(64)), [0], CPU)
    assert layer(torch.ones(64, 1)).equal(first)


def test_masks_of_another_batch_are_an_error():
    layer = PositionalDropPath(0.5).train()
    draw_masks([layer], Draws(0, 0, range(4)), [0], CPU)
    with pytest.raises(RuntimeError):
        layer(torch.ones(8, 1))


def test_mixed_precision_stays_in_its_precision():
    layer = PositionalDropPath(0.5).train()
    draw_masks([layer], Draws(0, 0, range(4)), [0], CPU)
    assert layer(torch.ones(4, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_copied_network_has_layers_of_its_own():
    network = timm.create_model("test_vit", drop_path_rate=0.1, num_classes=0)
    layers = replace_drop_paths(network)
    draw_masks(layers, Draws(0, 0, range(4)), [0], CPU)
    other = copy.deepcopy(network)
    draw_masks(layers, None, [0], CPU)
    copied = [module for module in other.modules() if isinstance(module, PositionalDropPath)]
    assert all(layer.masks is not None for layer in copied)
    other.load_state_dict(network.state_dict())
