"""A configuration takes from the method's authors what is not given, and gives values to `auto`."""

import pytest

from eosin.core.errors import EosinError
from eosin.pretrain import load_recipe
from eosin.pretrain.config import PretrainConfig


def parse(**fields):
    return PretrainConfig.parse(fields, "test")


def test_a_named_method_brings_its_authors_optimizer_and_views():
    config = parse(method={"name": "dino"})
    assert (config.optimizer.name, config.optimizer.clip, config.optimizer.final_weight_decay) == ("adamw", 3.0, 0.4)
    assert {name: (view.count, view.size) for name, view in config.augment.views.items()} == {
        "global_1": (1, 224),
        "global_2": (1, 224),
        "local": (8, 96),
    }
    assert config.augment.views["global_2"].solarize.probability == 0.2
    assert parse(method={"name": "swav"}).optimizer.name == "larc"
    assert parse(method={"name": "barlowtwins"}).optimizer.bias_lr == 0.0048
    moco = parse(method={"name": "mocov2"}).optimizer
    assert (moco.name, moco.lr, moco.stair_samples) == ("sgd", 0.03, 1_281_167)


def test_what_is_given_stays():
    views = {"local": {"count": 2}, "global_1": {"size": 64}}
    config = parse(method={"name": "dino"}, optimizer={"lr": 0.1}, augment={"views": views})
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (0.1, 0.04)
    assert (config.augment.views["local"].count, config.augment.views["local"].size) == (2, 96)
    assert config.augment.views["global_1"].size == 64


def test_views_lie_in_the_order_in_which_the_method_takes_them():
    views = {"local": {"size": 32}, "global_2": {"size": 64}, "global_1": {"size": 64}}
    assert list(parse(method={"name": "dino"}, augment={"views": views}).augment.views) == [
        "global_1",
        "global_2",
        "local",
    ]


def test_another_optimizer_brings_nothing_of_the_authors():
    config = parse(method={"name": "barlowtwins"}, optimizer={"name": "adamw", "lr": 0.001})
    assert config.optimizer.bias_lr is None
    assert config.optimizer.warmup_samples == 0


def test_automatic_values_are_chosen_by_size_and_saved():
    config = parse(method={"name": "dino", "prototypes": "auto", "momentum": "auto"}, samples=25_600)
    small, chosen = config.resolved(1_000)
    assert chosen == {"precision": "bf16", "method.prototypes": 1024, "method.momentum": 0.99}
    assert config.resolved(1_000, bf16=False)[0].precision == "fp32"
    assert (small.method.prototypes, small.method.momentum) == (1024, 0.99)
    assert small.resolved(30_000_000) == (small, {})
    large, _ = config.resolved(30_000_000)
    assert (large.method.prototypes, large.method.momentum) == (65536, 0.996)


def test_a_queue_chosen_by_itself_fits_the_batch_and_half_of_the_tiles():
    config = parse(method={"name": "mocov2", "queue_size": "auto"}, batch_size=48, samples=4_800)
    for tiles in (48, 1_000, 20_000, 10_000_000):
        resolved, _ = config.resolved(tiles)
        assert resolved.method.queue_size % 48 == 0
        assert 48 <= resolved.method.queue_size <= max(48, min(65536, tiles // 2))


def test_auto_where_there_is_no_rule_is_refused_with_what_has_one():
    config = parse(method={"name": "mocov2"}, optimizer={"lr": "auto"})
    with pytest.raises(EosinError, match=r"'optimizer.lr': method mocov2 has no automatic value; it has for .*queue"):
        config.resolved(1_000)


@pytest.mark.parametrize("field", ["lr", "bias_lr"])
def test_an_automatic_rate_is_not_given_to_another_optimizer(field):
    config = parse(method={"name": "barlowtwins"}, optimizer={"name": "adamw", "lr": 0.001, field: "auto"})
    with pytest.raises(EosinError, match=rf"'optimizer.{field}'.* is for lars, optimizer.name is adamw; give a number"):
        config.resolved(1_000)
    assert parse(method={"name": "barlowtwins"}, optimizer={field: "auto"}).resolved(1_000)[1].keys() == {
        f"optimizer.{field}",
        "precision",
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": {"name": "dino", "momentum": 1.5}}, r"momentum"),
        ({"method": {"name": "mocov2", "momentum": 1.5}}, r"momentum"),
        ({"method": {"name": "simclr"}}, r"unknown method 'simclr'"),
        ({"method": {"name": "swav", "prototype": 3}}, r"unknown field 'prototype'; did you mean 'prototypes'"),
        ({"method": {"name": "mocov2"}, "batch_size": 1}, r"batch_size.*use 2 or more"),
    ],
)
def test_refused(fields, message):
    with pytest.raises(EosinError, match=message):
        parse(**fields)


def test_a_recipe_that_says_auto_goes_on_with_what_it_chose(tmp_path):
    recipe = load_recipe("dino-small")
    first, chosen = recipe.resolved(1_339)
    assert chosen
    assert recipe.resolved(1_339)[0] == first


def test_a_misspelt_auto_is_told_what_else_there_is():
    with pytest.raises(EosinError, match=r"^method: field 'prototypes': .*, or auto \(got 'auot'\)$"):
        parse(method={"name": "dino", "prototypes": "auot"})
