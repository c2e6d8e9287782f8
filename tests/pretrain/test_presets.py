"""Presets say what happens to a view, and leave to method and recipe where it looks."""

from __future__ import annotations

import re

import pytest
import yaml

from eosin.augment import ViewConfig
from eosin.core.errors import EosinError
from eosin.core.files import read_json_lines
from eosin.methods import METHODS
from eosin.pretrain import load_recipe, pretrain, recipe_names
from eosin.pretrain.config import PretrainConfig
from eosin.pretrain.presets import PLACE, preset_names, preset_views

OFF = ("horizontal_flip", "vertical_flip", "rotate90", "grayscale")
SMALL = {"mocov2": "mocov2-small", "swav": "swav-small", "barlowtwins": "barlowtwins-small", "dino": "dino-small"}


def place(view):
    return {name: getattr(view, name) for name in PLACE}


def test_there_are_the_four():
    assert preset_names() == ["midnight", "natural", "none", "pathology"]


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("method", list(METHODS))
class TestEveryMethodTakesEveryPreset:
    def test_by_itself(self, method, preset):
        config = preset_views(method, preset)
        published = PretrainConfig.parse({"method": {"name": method}}, "test").augment.views
        assert config.views.keys() == published.keys()
        assert all(place(config.views[name]) == place(view) for name, view in published.items())
        if preset == "natural":
            assert config.views == published

    def test_from_a_recipe(self, method, preset):
        plain = load_recipe(SMALL[method])
        config = load_recipe(SMALL[method], {"augment.preset": preset})
        assert config.augment.preset == preset
        assert list(config.augment.views) == list(plain.augment.views)
        for name, view in config.augment.views.items():
            assert place(view) == place(plain.augment.views[name])
            expected = preset_views(method, preset).views[name]
            # The width of a blur is in pixels of the view, which the recipe's are fewer of.
            others = {**dict.fromkeys(PLACE, True), "blur": {"sigma"}}
            assert view.model_dump(exclude=others) == expected.model_dump(exclude=others)
            assert view.blur.sigma == plain.augment.views[name].blur.sigma

    def test_two_steps(self, method, preset, tiny_of, tile_folder, tmp_path):
        views = tiny_of(method).plain()["augment"]["views"]
        cut = {name: {field: value for field, value in view.items() if field in PLACE} for name, view in views.items()}
        values = tiny_of(method).plain() | {"samples": 16, "augment": {"preset": preset, "views": cut}}
        values["optimizer"]["warmup_samples"] = 0
        values["method"] |= {name: 0 for name in ("queue_start_samples", "freeze_samples") if name in values["method"]}
        if method == "dino":
            values["method"]["freeze_last_layer_samples"] = 0
        pretrain(PretrainConfig.parse(values, "test"), tmp_path / "run")
        assert read_json_lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"] == 2


def test_none_leaves_crops_only():
    for method in METHODS:
        for view in preset_views(method, "none").views.values():
            assert not any(getattr(view, name) for name in OFF)
            operations = (view.jitter, view.blur, view.solarize, view.hed, view.randstainna, view.macenko)
            assert not any(operation.probability for operation in operations)


def test_pathology_is_what_the_study_names():
    for method in METHODS:
        published = preset_views(method, "natural").views
        for name, view in preset_views(method, "pathology").views.items():
            assert (view.horizontal_flip, view.vertical_flip) == (0.5, 0.5)
            assert view.randstainna.probability > 0
            assert view.randstainna.model == "gmm"
            assert (view.grayscale, view.solarize.probability) == (0.0, 0.0)
            assert view.jitter.hue < published[name].jitter.hue
            assert view.jitter.brightness < published[name].jitter.brightness
            assert view.blur == published[name].blur


def test_a_single_switch_is_set_in_every_view_over_the_preset():
    fields = {
        "augment.every_view.vertical_flip": 0,
        "augment.preset": "pathology",
        "augment.every_view.hed.probability": 1,
    }
    views = load_recipe("dino-vits16", fields).augment.views
    assert len(views) == 3
    assert all((view.vertical_flip, view.hed.probability, view.grayscale) == (0.0, 1.0, 0.0) for view in views.values())


def test_a_view_of_its_own_name_comes_last():
    fields = {"augment.views.local.vertical_flip": 1.0, "augment.every_view.vertical_flip": 0.25}
    views = load_recipe("dino-small", fields).augment.views
    assert [view.vertical_flip for view in views.values()] == [0.25, 0.25, 1.0]


def test_what_a_file_says_stands_over_the_preset_it_names(tmp_path):
    values = {"augment": {"preset": "pathology", "views": {"global": {"size": 64, "grayscale": 0.3}}}}
    view = PretrainConfig.parse({**values, "method": {"name": "mocov2"}}, "test").augment.views["global"]
    assert (view.size, view.grayscale, view.vertical_flip) == (64, 0.3, 0.5)


@pytest.mark.parametrize("preset", preset_names())
def test_saved_and_loaded_it_is_the_same(preset, tmp_path):
    config = load_recipe("swav-small", {"augment.preset": preset, "augment.every_view.grayscale": 0.4})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.plain()))
    assert load_recipe(str(path)) == config
    assert all(view.grayscale == 0.4 for view in config.augment.views.values())


def test_sizes_keep_their_proportion():
    views = preset_views("dino", "pathology", size=112).views
    assert [view.size for view in views.values()] == [112, 112, 48]
    assert all(view.blur.sigma == (0.05, 1.0) for view in views.values())


def test_unknown_names_are_told_with_the_nearest():
    with pytest.raises(EosinError, match="unknown preset 'patology'; did you mean 'pathology'"):
        load_recipe("mocov2-small", {"augment.preset": "patology"})
    with pytest.raises(EosinError, match="unknown field 'augment.views.global.vertical_flp'.*vertical_flip"):
        load_recipe("mocov2-small", {"augment.every_view.vertical_flp": 0.1})
    with pytest.raises(EosinError, match="unknown field"):
        load_recipe("mocov2-small", {"augment.every_view.hed.nonsense": 0.1})


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ("augment.every_vew.grayscale", "--augment.every_vew.grayscale: unknown field; did you mean 'every_view'?"),
        ("augment.presett", "--augment.presett: unknown field; did you mean 'preset'?"),
        ("augment.every_view", "--augment.every_view: name a field of the views, such as --augment.every_view.v"),
        ("augment.every_view.", "name a field of the views, such as --augment.every_view.vertical_flip"),
    ],
)
def test_misspelt_fields_of_all_views_are_told_with_the_nearest(field, told):
    with pytest.raises(EosinError, match=re.escape(told)):
        load_recipe("mocov2-small", {field: 0.5})


def test_no_preset_leaves_the_recipe_as_it_is():
    assert load_recipe("mocov2-small", {"augment.preset": None}) == load_recipe("mocov2-small")


def test_every_view_without_a_method_is_refused_as_before(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(EosinError, match="method"):
        load_recipe(str(path), {"augment.preset": "none"})


def test_presets_name_fields_that_exist():
    assert set(ViewConfig.model_fields) >= PLACE
    assert all(load_recipe(name, {"augment.preset": "none"}) for name in recipe_names())
