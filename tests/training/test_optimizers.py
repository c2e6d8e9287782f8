"""The optimiser is what its fields say; fields that cannot be are refused."""

import pytest
import torch

from eosin.core.errors import EosinError
from eosin.training.optimizers import OptimizerConfig, build_optimizer, set_learning_rate


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_fields_reach_the_optimiser_and_groups_scale_the_rate(name, kind):
    weights = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr_scale": 0.1, "weight_decay": 0.0}]
    optimizer = build_optimizer(OptimizerConfig(name=name, weight_decay=0.3), groups)
    set_learning_rate(optimizer, 0.5)
    assert isinstance(optimizer, kind)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, pytest.approx(0.05)]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_the_rate_is_scaled_with_the_batch_unless_told_not_to():
    assert OptimizerConfig().scaled(0.03, 512) == pytest.approx(0.06)
    assert OptimizerConfig(scale_lr=False).scaled(0.03, 512) == 0.03


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum above 0"), ({"betas": (0.9, 1.0)}, "betas")],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(EosinError, match=message):
        OptimizerConfig.parse(fields, "optimizer")
