"""Typed, frozen configuration: YAML in, dotted overrides on top, one-line errors out."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from eosin.core.errors import EosinError, nearest

__all__ = [
    "Config",
    "apply_overrides",
    "describe_fields",
    "differing_fields",
    "flatten",
    "parse_overrides",
    "read_yaml",
    "recipe_file",
    "recipe_files",
]


class Config(BaseModel):
    """Base of every configuration model: immutable, numbers are finite, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str) -> Self:
        """Validate plain values.

        Args:
            values: Nested mapping as read from YAML.
            where: What to name in an error, such as the recipe's name.

        Returns:
            The validated configuration.

        Raises:
            EosinError: One line naming the field, the problem and, for an unknown key, the nearest valid name.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise EosinError(_one_line(error, cls, where)) from None

    def plain(self) -> dict[str, Any]:
        """Return the values as YAML-ready Python objects."""
        return self.model_dump(mode="json")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        EosinError: If the file cannot be read or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EosinError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise EosinError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def recipe_files(folder: Path) -> list[str]:
    """Return the names of the recipes in a folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def recipe_file(name: str, folder: Path) -> Path:
    """Return the file of a recipe: one of `folder` by its name, or any YAML file by its path.

    Raises:
        EosinError: If there is none.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise EosinError(f"{path}: no such recipe file")
        return path
    path = folder / f"{name}.yaml"
    if "/" in name or not path.is_file():
        raise EosinError(f"unknown recipe '{name}'; {nearest(name, recipe_files(folder))}; a file ends in .yaml")
    return path


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn ``--a.b value`` and ``--a.b=value`` into ``{"a.b": value}``, values read as YAML.

    Raises:
        EosinError: If an argument is no option or has no value.
    """
    overrides: dict[str, Any] = {}
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if not argument.startswith("--"):
            raise EosinError(f"unexpected argument '{argument}': fields are set as --field value")
        name, separator, text = argument[2:].partition("=")
        if not separator:
            position += 1
            if position >= len(arguments) or _is_option(arguments[position]):
                raise EosinError(f"--{name} needs a value: --{name} VALUE")
            text = arguments[position]
        try:
            overrides[name.replace("-", "_")] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise EosinError(f"--{name}: cannot read the value '{text}'") from None
        position += 1
    return overrides


def _is_option(argument: str) -> bool:
    return argument.startswith("--")


def apply_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of nested `values` with dotted fields replaced."""
    merged = copy.deepcopy(dict(values))
    for name, value in overrides.items():
        *parents, leaf = name.split(".")
        target = merged
        for part in parents:
            child = target.get(part)
            if child is None:
                child = target[part] = {}
            if not isinstance(child, dict):
                raise EosinError(f"--{name}: '{part}' is a single value and has no field '{leaf}'")
            target = child
        fields = target.get(leaf)
        if isinstance(fields, dict) and fields and not isinstance(value, dict):
            raise EosinError(f"--{name}: has fields of its own; set one, such as --{name}.{next(iter(fields))}")
        target[leaf] = value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into ``{"a.b": value}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe each field in which two configurations differ, as ``field: old → new``."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name, '(absent)')} → {after.get(name, '(absent)')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _one_line(error: ValidationError, model: type[BaseModel], where: str) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if not _is_tag(str(part))]
    field = ".".join(location) or "(whole)"
    if first["type"] == "extra_forbidden":
        fields = _fields_at(model, location[:-1])
        return f"{where}: unknown field '{field}'; {nearest(location[-1], fields)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "tuple_type":
        message = "give a list, such as [1, 2]"
    if (*first["loc"][:-1], "literal['auto']") in [other["loc"] for other in error.errors()]:
        message += ", or auto"
    got = "" if first["type"] in ("missing", "value_error") else f" (got {first['input']!r})"
    return f"{where}: field '{field}': {message}{got}"


def _is_tag(part: str) -> bool:
    """Whether pydantic names the alternative of a union it tried, and not a field."""
    return part in ("int", "float") or part.startswith(("function-", "tuple[", "constrained-", "literal["))


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    for part in path:
        field = model.model_fields.get(part)
        candidate = _model_in(field.annotation) if field else None
        if candidate is not None:
            model = candidate
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, dict, list, tuple):
        for argument in get_args(annotation):
            found = _model_in(argument)
            if found is not None:
                return found
    return None


def describe_fields(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted name, value, meaning) of every field of a configuration."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from describe_fields(value, f"{prefix}{name}.")
        elif isinstance(value, dict) and value and all(isinstance(item, BaseModel) for item in value.values()):
            for key, item in value.items():
                yield from describe_fields(item, f"{prefix}{name}.{key}.")
        else:
            yield f"{prefix}{name}", value, field.description or ""
