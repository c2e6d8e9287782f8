from __future__ import annotations

import pytest

from eosin.benchmark import BenchmarkConfig
from eosin.benchmark.config import read_fractions, read_seeds, run_directory
from eosin.cli import main
from eosin.core.errors import EosinError
from eosin.encoders.named import NamedEncoder, named_encoders


@pytest.mark.parametrize(
    ("text", "name", "spec"),
    [
        ("color:stats", "color:stats", "color:stats"),
        ("color=color:stats", "color", "color:stats"),
        ("color statistics=color:stats", "color statistics", "color:stats"),
        ("random:resnet18?seed=3&size=64", "random:resnet18?seed=3&size=64", "random:resnet18?seed=3&size=64"),
        ("untrained=random:resnet18?seed={seed}", "untrained", "random:resnet18?seed={seed}"),
        ("runs/lr=0.1/encoder.safetensors", "runs/lr=0.1/encoder.safetensors", "runs/lr=0.1/encoder.safetensors"),
        ("best=runs/lr=0.1", "best", "runs/lr=0.1"),
        ("ViT-S/16=random:vit_small_patch16_224?seed=0", "ViT-S/16", "random:vit_small_patch16_224?seed=0"),
        ("ViT-S/16=runs/dino-{seed}", "ViT-S/16", "runs/dino-{seed}"),
    ],
)
def test_an_encoder_is_a_spec_with_or_without_a_name(text, name, spec):
    assert named_encoders((text,)) == [NamedEncoder(name, spec)]


def test_a_path_that_exists_is_a_spec_even_with_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named_encoders(("lr=0.1?size=64",)) == [NamedEncoder("lr", "0.1?size=64")]
    (tmp_path / "lr=0.1").mkdir()
    assert named_encoders(("lr=0.1?size=64",)) == [NamedEncoder("lr=0.1?size=64", "lr=0.1?size=64")]
    assert named_encoders(("ViT-S/16=lr=0.1",)) == [NamedEncoder("ViT-S/16", "lr=0.1")]


def test_the_seed_is_filled_in_and_other_braces_stay():
    assert NamedEncoder("m", "runs/{kind}/s{seed}?seed={seed}").spec(7) == "runs/{kind}/s7?seed=7"


@pytest.mark.parametrize("texts", [("=color:stats",), ("a=",), ("",), ("a=color:stats", "a=color:histogram")])
def test_an_encoder_without_name_or_spec_or_twice_is_refused(texts):
    with pytest.raises(EosinError, match="encoder"):
        named_encoders(texts)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("seeds", [0, 0]),
        ("fractions", [0.0]),
        ("fractions", [1.5]),
        ("encoders", []),
        ("seeds", [-1]),
        ("tasks", ["a", "a"]),
    ],
)
def test_senseless_fields_are_refused(field, value, tmp_path):
    values = {"encoders": ["color:stats"], "tasks": ["x"], "out": tmp_path}
    with pytest.raises(EosinError, match=field):
        BenchmarkConfig.parse(values | {field: value}, "benchmark")


def test_a_run_directory_is_found_from_its_path_or_its_file(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "encoder.safetensors"):
        (run / name).write_text("")
    assert run_directory(str(run)) == run
    assert run_directory(f"{run}/encoder.safetensors?size=64") == run
    assert run_directory(str(tmp_path)) is None
    assert run_directory(f"{run}/absent/encoder.safetensors") is None
    assert run_directory("color:stats") is None


def test_seeds_and_shares_are_read_as_the_command_line_gives_them():
    assert read_seeds("0, 1,12,") == (0, 1, 12)
    assert read_fractions("0.01, 1,") == (0.01, 1.0)


@pytest.mark.parametrize(
    ("option", "text", "form"),
    [
        *(("--seeds", text, "whole numbers from 0, such as --seeds 0,1,2") for text in ("0-4", ",", "-1", "1.5", "x")),
        *(("--fractions", text, "above 0 and at most 1, such as") for text in ("2", "0", "nan", "half", ",")),
    ],
)
def test_a_wrong_seed_or_share_is_named_by_its_option(option, text, form, tmp_path, capsys):
    words = ["--encoders", "color:stats", "--tasks", "synthetic", "--out", str(tmp_path / "out")]
    assert main(["benchmark", *words, f"{option}={text}"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert f"{option} {text}: " in told
    assert form in told
    assert not (tmp_path / "out").exists()
