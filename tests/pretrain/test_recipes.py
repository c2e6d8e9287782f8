"""Every recipe is complete, fits its method and trains."""

import pytest
import torch
import yaml

from eosin.core.config import flatten
from eosin.core.files import read_json_lines
from eosin.pretrain import load_recipe, pretrain, recipe_names
from eosin.pretrain.recipes import _folder
from eosin.training.optimizers import check_schedule

REDUCED = {
    "samples": 16,
    "batch_size": 8,
    "data.size": 40,
    "data.workers": 0,
    "encoder.size": 32,
    "optimizer.warmup_samples": 0,
    "optimizer.stair_samples": 0,
    "watch.tiles": 16,
    "precision": "fp32",
}
SMALL_METHODS = {
    "mocov2": {"queue_size": 32, "dim": 8},
    "swav": {"prototypes": 12, "freeze_samples": 8},
    "barlowtwins": {"hidden": 16, "dim": 16},
    "dino": {"prototypes": 32, "hidden": 16, "freeze_last_layer_samples": 8},
}
CROPS = {"local": 16}


def reduced(name):
    """Fields that make two steps of a recipe a matter of seconds."""
    recipe = load_recipe(name)
    fields = {f"method.{field}": value for field, value in SMALL_METHODS[recipe.method.name].items()}
    return REDUCED | fields | {f"augment.views.{view}.size": CROPS.get(view, 32) for view in recipe.augment.views}


@pytest.mark.parametrize("name", recipe_names())
class TestEveryRecipe:
    def test_it_has_a_summary_and_says_where_values_come_from(self, name):
        assert load_recipe(name).summary
        text = (_folder() / f"{name}.yaml").read_text()
        assert "authors" in text
        assert "ours" in text

    def test_saved_and_loaded_it_is_the_same(self, name, tmp_path):
        recipe = load_recipe(name)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(recipe.plain()))
        assert load_recipe(str(path)) == recipe

    @pytest.mark.parametrize("tiles", [1_000, 60_000, 30_000_000])
    def test_it_fits_itself_whatever_the_number_of_tiles(self, name, tiles):
        recipe, chosen = load_recipe(name).resolved(tiles)
        assert "auto" not in flatten(recipe.plain()).values()
        assert all(flatten(recipe.plain())[field] == value for field, value in chosen.items())
        check_schedule(recipe.optimizer, recipe.samples)
        assert getattr(recipe.method, "queue_size", 0) % recipe.batch_size == 0

    def test_two_reduced_steps_change_the_encoder(self, name, tile_folder, tmp_path):
        pretrain(load_recipe(name, {**reduced(name), "data.source": str(tile_folder)}), tmp_path / "run")
        records = read_json_lines(tmp_path / "run" / "metrics.jsonl")
        assert records[-1]["step"] == 2
        assert torch.isfinite(torch.tensor(records[-1]["loss"]))


def test_the_studys_recipe_has_the_studys_and_the_authors_values():
    recipe = load_recipe("mocov2-r50")
    assert (recipe.samples, recipe.encoder.architecture) == (256_000_000, "resnet50")
    assert recipe.encoder.options == {"zero_init_last": False}
    method, optimizer, view = recipe.method, recipe.optimizer, recipe.augment.views["global"]
    assert (method.queue_size, method.momentum, method.temperature) == (65536, 0.999, 0.2)
    assert (optimizer.name, optimizer.scaled(optimizer.lr, 256), optimizer.weight_decay) == ("sgd", 0.03, 1e-4)
    assert (view.scale, view.vertical_flip, view.grayscale) == ((0.2, 1.0), 0.5, 0.2)
    jitter = view.jitter
    assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (0.4, 0.4, 0.4, 0.1)
