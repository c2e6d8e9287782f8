"""Configuration: one-line errors with the nearest name, overrides, differences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eosin.core.config import Config, apply_overrides, differing_fields, flatten, parse_overrides, read_yaml
from eosin.core.errors import EosinError, nearest


class Inner(Config):
    momentum: float = 0.9
    temperature: float = 0.2


class Outer(Config):
    steps: int
    inner: Inner = Inner()
    named: dict[str, Inner] = {}
    maybe: Inner | None = None
    span: tuple[float, float] = (0.0, 1.0)


def test_unknown_field_offers_the_nearest():
    with pytest.raises(EosinError, match=r"recipe: unknown field 'inner.momentun'; did you mean 'momentum'\?"):
        Outer.parse({"steps": 1, "inner": {"momentun": 1}}, "recipe")
    with pytest.raises(EosinError, match="valid: momentum, temperature"):
        Outer.parse({"steps": 1, "named": {"a": {"zzz": 1}}}, "recipe")
    with pytest.raises(EosinError, match="did you mean 'temperature'"):
        Outer.parse({"steps": 1, "maybe": {"temperatur": 1}}, "recipe")


def test_wrong_and_missing_values_are_named():
    with pytest.raises(EosinError, match="recipe: field 'inner.momentum': .*number.*'fast'"):
        Outer.parse({"steps": 1, "inner": {"momentum": "fast"}}, "recipe")
    with pytest.raises(EosinError, match="recipe: field 'steps': Field required$"):
        Outer.parse({}, "recipe")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_numbers_are_finite(value):
    with pytest.raises(EosinError, match="recipe: field 'inner.momentum': Input should be a finite number"):
        Outer.parse({"steps": 1, "inner": {"momentum": value}}, "recipe")
    with pytest.raises(EosinError, match="recipe: field 'span.1': Input should be a finite number"):
        Outer.parse({"steps": 1, "span": (0.0, value)}, "recipe")


def test_a_list_that_is_none_is_told_how_to_be_one():
    with pytest.raises(EosinError, match=r"recipe: field 'span': give a list, such as \[1, 2\] \(got '1,2'\)$"):
        Outer.parse({"steps": 1, "span": "1,2"}, "recipe")


def test_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Outer(steps=1).steps = 2


def test_overrides_are_read_as_yaml():
    assert parse_overrides(["--a.b", "0.5", "--c=[1, 2]", "--d-e", "null", "--f", "-3"]) == {
        "a.b": 0.5,
        "c": [1, 2],
        "d_e": None,
        "f": -3,
    }
    with pytest.raises(EosinError, match="--a needs a value"):
        parse_overrides(["--a", "--b", "1"])
    with pytest.raises(EosinError, match="unexpected argument 'x'"):
        parse_overrides(["x"])


def test_overrides_apply_without_touching_the_original():
    values = {"a": {"b": 1, "c": 2}, "d": None}
    assert apply_overrides(values, {"a.b": 5, "d.e": 6}) == {"a": {"b": 5, "c": 2}, "d": {"e": 6}}
    assert values == {"a": {"b": 1, "c": 2}, "d": None}
    with pytest.raises(EosinError, match="'b' is a single value"):
        apply_overrides(values, {"a.b.c": 1})


trees = st.recursive(
    st.integers() | st.text(max_size=3) | st.none(),
    lambda children: st.dictionaries(st.sampled_from("abcd"), children, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@given(trees)
def test_overriding_with_its_own_fields_changes_nothing(tree):
    assert apply_overrides(tree, flatten(tree)) == tree
    assert differing_fields(tree, tree) == []


def test_differences_are_named():
    assert differing_fields({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2, "d": 4}) == [
        "a.b: 1 → 3",
        "d: (absent) → 4",
    ]


def test_unreadable_yaml(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("a: [1")
    with pytest.raises(EosinError, match=r"recipe.yaml: not a readable YAML"):
        read_yaml(path)
    path.write_text("- 1")
    with pytest.raises(EosinError, match=r"expected `key: value` lines, found list"):
        read_yaml(path)


def test_nearest():
    assert nearest("mocov", ["mocov2", "swav"]) == "did you mean 'mocov2'?"
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"
