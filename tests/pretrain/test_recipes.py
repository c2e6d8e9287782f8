"""Every recipe is complete, fits its method and trains."""

import pytest
import torch
import yaml

from eosin.core.files import read_json_lines
from eosin.pretrain import load_recipe, pretrain, recipe_names
from eosin.pretrain.recipes import _folder

REDUCED = {
    "samples": 16,
    "batch_size": 8,
    "data.size": 40,
    "data.workers": 0,
    "encoder.size": 32,
    "augment.views.global.size": 32,
    "method.queue_size": 32,
    "method.dim": 8,
    "optimizer.warmup_samples": 0,
    "watch.tiles": 16,
    "precision": "fp32",
}


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

    def test_the_queue_fits_the_batch_and_the_warmup_the_run(self, name):
        recipe = load_recipe(name)
        assert recipe.method.queue_size % recipe.batch_size == 0
        assert recipe.optimizer.warmup_samples < recipe.samples

    def test_two_reduced_steps_change_the_encoder(self, name, tile_folder, tmp_path):
        pretrain(load_recipe(name, {**REDUCED, "data.source": str(tile_folder)}), tmp_path / "run")
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
