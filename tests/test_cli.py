"""The command line as a user meets it: help, exit codes, one clear line for bad input."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eosin.cli import VERBS, main
from eosin.core.files import DirectoryLock, read_json_lines
from eosin.pretrain import Interrupted

FAST = [
    "--samples",
    "64",
    "--batch_size",
    "16",
    "--method.queue_size",
    "32",
    "--data.size",
    "40",
    "--data.workers",
    "0",
]
FAST += ["--encoder.architecture", "test_resnet", "--augment.views.global.size", "32", "--watch.tiles", "16"]
FAST += ["--optimizer.warmup_samples", "0", "--encoder.size", "40"]


@pytest.fixture(scope="module")
def tissue(tmp_path_factory):
    """Three classes of 24 tiles with a manifest: 12 patients, splits by patient."""
    folder = tmp_path_factory.mktemp("tissue")
    generator = np.random.default_rng(1)
    lines = ["file,label,patient,split"]
    for number in range(72):
        label, patient = "abc"[number % 3], number // 6
        base = generator.integers(0, 255, (4, 4, 3), dtype=np.uint8) // 3 + np.uint8(50 * (number % 3))
        name = f"tile-{number:02d}.png"
        Image.fromarray(base).resize((40, 40)).save(folder / name)
        lines.append(f"{name},{label},p{patient},{('train', 'train', 'val', 'test')[patient % 4]}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
    return folder


def told(capsys, *words):
    """Run a command that must be refused after it has begun, and return what it said."""
    code = main([str(word) for word in words])
    message = capsys.readouterr().err
    assert code == 2, message
    assert "Traceback" not in message
    return message


def refused(capsys, *words):
    """Run a command that must be refused, and return its one line."""
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


@pytest.mark.parametrize("verb", ["embed", "evaluate", "benchmark"])
def test_help_names_encoder_schemes_and_protocols(verb, capsys):
    from eosin.encoders import ENCODERS
    from eosin.evaluate import PROTOCOLS

    assert main([verb, "--help"]) == 0
    words = re.findall(r"[\w-]+:?", capsys.readouterr().out)
    assert {f"{scheme}:" for scheme in ENCODERS if scheme != "file"} <= set(words)
    assert verb == "embed" or set(PROTOCOLS) <= set(words)


def test_help_names_every_verb(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for verb in VERBS:
        assert f"eosin {verb}" in text


@pytest.mark.parametrize("words", [["stain"], ["stain", "--help"], ["stain", "-h"]])
def test_the_first_word_of_a_verb_lists_what_may_follow(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "eosin stain fit" in printed
    assert "eosin stain probe" in printed
    assert "eosin pretrain" not in printed


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_its_arguments(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: eosin {verb}" in text
    assert len(text.splitlines()) > 5 or verb == "doctor"


def test_a_recipes_fields_are_listed_with_values_and_meanings(capsys):
    assert main(["pretrain", "mocov2-small", "--help"]) == 0
    text = capsys.readouterr().out
    for field in ("--samples", "--method.momentum", "--augment.views.global.jitter.hue", "--data.quarantine_limit"):
        assert field in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrian"], "unknown verb 'pretrian'; did you mean 'pretrain'?"),
        (["embed", "--encodr", "x"], "unknown option '--encodr'; did you mean '--encoder'?"),
        (["embed", "--encoder", "x"], "--data, --out missing"),
        (["pretrain"], "give a recipe"),
        (["pretrain", "mocov2-smal", "--data", "x", "--out", "y"], "unknown recipe 'mocov2-smal'; did you mean 'mocov2-small'?"),
        (["pretrain", "mocov2-small", "--out", "y", "--method.momentun", "1"], "method: unknown field 'momentun'; did you mean 'momentum'?"),
        (["pretrain", "mocov2-small", "--out", "y", "--sampels", "1"], "unknown field 'sampels'; did you mean 'samples'?"),
        (["pretrain", "mocov2-small", "--out", "y", "--samples"], "--samples needs a value"),
        (["pretrain", "mocov2-small", "--out", "y", "--samples", "many"], "'samples'"),
        (["pretrain", "mocov2-small", "--out", "y", "--method.momentum", "1.5"], "'momentum'"),
        (["pretrain", "mocov2-small", "--out", "y", "--method.name", "mocov3"], "unknown method 'mocov3'; did you mean 'mocov2'?"),
        (["pretrain", "mocov2-small", "--out", "y"], "give the tiles with --data"),
        (["pretrain", "mocov2-small", "--data", "x"], "--out is missing"),
        (["pretrain", "absent.yaml", "--out", "y"], "no such recipe file"),
        (["demo", "--minutes", "0", "--out", "y"], "--minutes 0"),
        (["demo", "--minutes", "soon", "--out", "y"], "--minutes: 'soon' is no FLOAT"),
        (["demo", "--minutes"], "Missing value for argument '--minutes'"),
        (["report", "absent"], "absent"),
        (["report"], "Missing from eosin report"),
        (["report", "absent", "more"], "Unrecognized options: more"),
        (["doctor", "--out", "x"], "unknown option '--out'; see `eosin doctor --help`"),
        (["pretrain", "mocov2-small", "--on-collapse", "die", "--out", "y"], "invalid choice 'die'"),
        (["pretrain", "mocov2-small", "--data", "", "--out", "y"], "the value of --data is empty"),
        (["pretrain", "mocov2-small", "--data", "x", "--out="], "the value of --out is empty"),
        (["pretrain", "mocov2-small", "--method", "mocov2", "--out", "y"], "--method: has fields of its own"),
        (["data", "pack", "", "--out", "y"], "the source of tiles is empty"),
        (["export"], "--out missing"),
        (["export", "--out", "y"], "Missing from eosin export"),
        (["export", "x", "--out", "y", "--format", "coreml"], "invalid choice 'coreml'"),
        (["export", "x", "--out", "y"], "y: a file for safetensors ends in .safetensors"),
        (["export", "absent", "--out", "y.safetensors"], "absent: no such run directory or file"),
        (["export", "absent", "--out", "y.safetensors", "--checkpoint", "best"], "absent: is no run directory"),
        (["export", "color:stats", "--out", "y", "--format", "timm"], "color:stats: has no weights to export"),
        (["export", "random:test_vit?size=32", "--out", "y.pth", "--format", "torchvision"], "test_vit: torchvision has no such network"),
        (["stain", "fit", "--out", "y"], "Missing from eosin stain fit"),
        (["stain", "fit", "x"], "--out missing"),
        (["stain", "fit", "absent", "--out", "y.json"], "absent: no such file or folder"),
        (["stain", "fit", "x", "--out", "y.csv"], "y.csv: give a file name that ends in .json, such as y.json"),
        (["stain", "fit", "x", "--out", "y", "--space", "rgb"], "invalid choice 'rgb'"),
        (["stain", "fit", "x", "--out", "y", "--components", "few"], "--components few: give a whole number"),
        (["stain", "fit", "x", "--out", "y", "--model", "independent", "--components", "2"], "an independent model has none"),
        (["stain", "fit", "x", "--out", f"{'y' * 300}.json"], "cannot be written (File name too long)"),
        (["stain", "probe", "--encoders", "color:stats", "--task", "x", "--out", "y" * 300], "cannot be written (File name too long)"),
        (["stain", "fti", "x", "--out", "y"], "did you mean 'stain fit'?"),
        (["stain", "preview", "x", "--out", "y"], "--preset missing"),
        (["stain", "preview", "x", "--preset", "pathologi", "--out", "y"], "did you mean 'pathology'?"),
        (["stain", "preview", "absent", "--preset", "none", "--out", "y.png"], "absent: no such file or folder"),
        (["stain", "preview", "x", "--preset", "none", "--out", "y.jpg"], "y.jpg: give a file name that ends in .png, such as y.png"),
        (["stain", "preview", "x", "--preset", "none", "--out", "y.png", "--size", "0"], "--size 0: give a side from 8 to 1024 px"),
        (["stain", "preview", "x", "--preset", "none", "--statistics", "synthetic-lab", "--out", "y"], "preset none draws from none"),
        (["tile", "", "--out", "y"], "eosin tile: a path is empty, as of a shell variable that is not set"),
        (["tile", "x", "", "--out", "y"], "eosin tile: a path is empty"),
        (["tile", "absent", "--out", "y", "--stride", "99999"], "field 'stride': 99999 px leave out nearly everything"),
        (["tile", "absent", "--out", "y", "--shard", "2/2"], "--shard '2/2': write i/n"),
        (["data", "describe", "", "--out", "y.html"], "the source of tiles is empty"),
        (["data", "describe", "x", "--workers", "-1"], "--workers -1: give how many processes decode"),
        (["benchmark", "--encoders", "a", "--encoders", "b", "--tasks", "c", "--out", "y"], "--encoders is given twice"),
    ],
)  # fmt: skip
def test_bad_words_get_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def make_empty(folder):
    pass


def make_without_images(folder):
    (folder / "notes.txt").write_text("hello")


@pytest.mark.parametrize("make", [make_empty, make_without_images])
def test_a_source_without_images(make, capsys, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    make(source)
    assert "source" in refused(capsys, "pretrain", "mocov2-small", "--data", source, "--out", tmp_path / "run", *FAST)
    assert not (tmp_path / "run").exists()


def test_too_many_unreadable_images_stop_the_run(capsys, tmp_path, tissue):
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted(tissue.glob("*.png"))[:30]:
        (source / path.name).write_bytes(path.read_bytes())
    (source / "text.png").write_text("not an image")
    words = ["pretrain", "mocov2-small", "--data", source, "--out", tmp_path / "run", *FAST]
    code = main([str(word) for word in words])
    message = capsys.readouterr().err
    assert code == 2
    assert "text.png" in message or "quarantine" in message
    listed = read_json_lines(tmp_path / "run" / "quarantine.jsonl")
    assert [entry["name"] for entry in listed] == ["text.png"]
    assert main([str(word) for word in [*words, "--data.quarantine_limit", "0.1"]]) == 0
    assert "1 unreadable tile" in capsys.readouterr().err


def test_outputs_that_cannot_be_used(capsys, tmp_path, tissue):
    (tmp_path / "file").write_text("")
    pretrain = ["pretrain", "mocov2-small", "--data", tissue / "index.csv", *FAST]
    assert "is a file" in refused(capsys, *pretrain, "--out", tmp_path / "file")
    evaluate = ["evaluate", "--encoder", "color:stats", "--task", f"csv:{tissue / 'index.csv'}"]
    assert "is a file" in refused(capsys, *evaluate, "--out", tmp_path / "file")
    (tmp_path / "used").mkdir()
    with DirectoryLock(tmp_path / "used"):
        assert "in use by process" in refused(capsys, *pretrain, "--out", tmp_path / "used")
        assert "in use by process" in refused(capsys, *evaluate, "--out", tmp_path / "used")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_that_is_not_writable(capsys, tmp_path, tissue):
    tmp_path.chmod(0o500)
    words = ["pretrain", "mocov2-small", "--data", tissue / "index.csv", "--out", tmp_path / "run", *FAST]
    assert "not writable" in refused(capsys, *words)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up(capsys, small_disk, tissue):
    words = ["pretrain", "mocov2-small", "--data", tissue / "index.csv", "--out", small_disk / "run", *FAST]
    assert "no space left" in told(capsys, *words).splitlines()[-1]
    assert not list(small_disk.rglob("*.part"))
    assert not (small_disk / "run" / "encoder.safetensors").exists()


def test_a_disk_that_is_full(capsys, small_disk, tissue):
    """So full that not even the number of the process that holds a directory can be written."""
    index = tissue / "index.csv"
    for words in (
        ["stain", "fit", tissue, "--out", small_disk / "s.json", "--workers", "0"],
        [
            "stain",
            "preview",
            tissue,
            "--out",
            small_disk / "s.png",
            "--preset",
            "none",
            "--size",
            "8",
            "--workers",
            "0",
        ],
        ["stain", "probe", "--encoders", "color:stats", "--task", f"csv:{index}", "--out", small_disk / "probe"],
        ["pretrain", "mocov2-small", "--data", index, "--out", small_disk / "run", *FAST],
    ):
        with pytest.raises(OSError), open(small_disk / "filler", "ab", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        assert "no space left" in told(capsys, *words).splitlines()[-1]
        assert not list(small_disk.rglob("*.part"))


@pytest.mark.parametrize(
    ("format", "name"),
    [("safetensors", "a.safetensors"), ("timm", "a"), ("torchvision", "a.pth"), ("onnx", "a.onnx")],
)
def test_an_export_that_fills_the_disk(format, name, capsys, small_disk):
    words = ["export", "random:resnet18?size=32", "--format", format, "--out", small_disk / name]
    assert "no space left" in refused(capsys, *words)
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("path,label\na.png,x\n", "'file'"),
        ("file,label\nabsent.png,x\n", "absent.png"),
        ("file,label\ntile-00.png,a\ntile-01.png,\n", "tile-01.png"),
        ("file,label\ntile-00.png,a\ntile-01.png,a\n", "at least two classes"),
        ("file,label\n" + "".join(f"tile-{n:02d}.png,{'a' if n else 'b'}\n" for n in range(20)), "'b'"),
    ],
)
def test_broken_labels(table, message, capsys, tmp_path, tissue):
    for path in tissue.glob("*.png"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "bad.csv").write_text(table)
    words = ["evaluate", "--encoder", "color:stats", "--task", f"csv:{tmp_path / 'bad.csv'}", "--out", tmp_path / "out"]
    assert message in refused(capsys, *words)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("random:resnet19", "did you mean"),
        ("tim:resnet18", "did you mean 'timm'"),
        ("absent-run", "absent-run"),
        ("absent.safetensors", "absent.safetensors"),
    ],
)
def test_unknown_encoders(encoder, message, capsys, tmp_path, tissue):
    words = ["evaluate", "--encoder", encoder, "--task", f"csv:{tissue / 'index.csv'}", "--out", tmp_path / "out"]
    assert message in refused(capsys, *words)


def test_the_whole_way(capsys, tmp_path, tissue):
    """pack, pretrain, export, embed, benchmark, report: each verb on an earlier one's output."""
    import pyarrow.parquet as pq

    store, run, out = tmp_path / "store", tmp_path / "run", tmp_path / "results"
    assert main(["data", "pack", f"csv:{tissue / 'index.csv'}", "--out", str(store)]) == 0
    assert main(["pretrain", "mocov2-small", "--data", f"store:{store}", "--out", str(run), *FAST]) == 0
    assert main(["export", str(run), "--format", "timm", "--out", str(tmp_path / "timm")]) == 0
    assert f"{tmp_path / 'timm'}: timm, test_resnet" in capsys.readouterr().out
    assert main(["embed", "--encoder", str(run), "--data", str(store), "--out", str(tmp_path / "f.parquet")]) == 0
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.num_rows == 72
    assert {"name", "label", "patient", "feature"} <= set(table.column_names)
    words = ["benchmark", "--encoders", f"mine={run},color=color:stats", "--tasks", f"store:{store}", "--out", str(out)]
    assert main(words) == 0
    assert {r["encoder"] for r in read_json_lines(out / "results.jsonl")} == {"mine", "color"}
    assert main(["report", str(out)]) == 0
    assert "<html" in (out / "report.html").read_text()
    assert "Traceback" not in capsys.readouterr().err


def test_a_stain_is_fitted_and_looked_at(capsys, tmp_path):
    from eosin.synthetic import write_tiles

    index, out = write_tiles(tmp_path / "tiles", tiles=120, slides=15, size=32), tmp_path / "stain.json"
    assert main(["stain", "fit", str(index), "--out", str(out), "--space", "hsv"]) == 0
    text = capsys.readouterr().out
    for word in ("Stain in HSV", "BIC", "tiles, ", f"left out → {out}; no unreadable tiles"):
        assert word in text
    words = ["stain", "preview", str(index), "--preset", "pathology", "--statistics", str(out), "--size", "32"]
    assert main([*words, "--out", str(tmp_path / "sheet.png"), "--rows", "2"]) == 0
    assert f"{tmp_path / 'sheet.png'}: 2 tiles, 8 views of each" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert "is a directory" in refused(capsys, "stain", "fit", index, "--out", tmp_path)
    assert "has only 120 tiles" in refused(capsys, "stain", "fit", index, "--out", out, "--components", "121")


@pytest.mark.parametrize(("reader", "code"), [("gone", 0), ("there", 1)])
def test_a_broken_pipe_is_no_error_only_where_it_is_that_of_the_output(reader, code):
    script = (
        "import sys; from eosin import cli\n"
        "def broken() -> int: raise BrokenPipeError(32, 'Broken pipe')\n"
        "cli.VERBS['doctor'] = broken; sys.exit(cli.main(['doctor']))"
    )
    reading, writing = os.pipe()
    with open(reading, "rb") as read, open(writing, "wb") as write:
        if reader == "gone":
            read.close()
        told = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True)
    assert told.returncode == code
    assert ("BrokenPipeError" in told.stderr) == (reader == "there")


def test_debug_shows_the_traceback(tmp_path):
    from eosin.core.errors import EosinError

    with pytest.raises(EosinError):
        main(["report", str(tmp_path / "absent"), "--debug"])


def test_importing_eosin_loads_nothing_heavy():
    heavy = ("torch", "timm", "sklearn", "scipy", "pyarrow", "plotly")
    code = f"import sys, eosin, eosin.cli; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_doctor_lists_versions_and_extras(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("torch", "timm", "processor", "openslide-bin", "extra h5", "extra ray"):
        assert word in text


def test_doctor_tells_what_is_missing(monkeypatch, capsys):
    from importlib import metadata

    version = metadata.version

    def without_timm(name):
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_timm)
    assert main(["doctor"]) == 2
    assert "missing: pip install eosin" in capsys.readouterr().out


def test_a_path_is_printed_in_one_line(capsys, tmp_path, tissue):
    out = tmp_path / ("a long name " * 12) / "features.parquet"
    assert main(["embed", "--encoder", "color:stats", "--data", str(tissue), "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out


def test_an_impossible_batch_size(capsys, tmp_path, tissue):
    words = ["embed", "--encoder", "color:stats", "--data", str(tissue), "--out", str(tmp_path / "x.parquet")]
    assert main([*words, "--batch-size", "0"]) == 2
    assert "batch_size 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_demo_stopped_in_its_pre_training_says_how_to_go_on(capsys, monkeypatch, tmp_path, number, code):
    def stopped(*_):
        raise Interrupted(number, 7)

    monkeypatch.setattr("eosin.demo.run_demo", stopped)
    assert main(["demo", "--out", str(tmp_path)]) == code
    message = capsys.readouterr().err
    assert message.startswith("stopped at step 7; a checkpoint is saved. Go on with the same command:\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_printing_into_a_full_disk_is_told_in_a_line():
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "eosin.cli", "--help"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ran.returncode == 2
    assert ran.stderr == "error: no space left on the device for what is printed; free some\n"


def test_the_doctor_advises_extras_that_there_are():
    from eosin import doctor

    offered = set(metadata.metadata("eosin").get_all("Provides-Extra"))
    assert set(doctor._EXTRAS) | {"dev"} == offered
    required = {line.split(";")[0].split(">")[0] for line in metadata.requires("eosin") if "extra ==" not in line}
    assert set(doctor._REQUIRED) <= required
