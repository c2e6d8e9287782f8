"""`eosin data list`, `get` and `check`, and public sets through a benchmark."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import shutil
import threading
import zipfile
from functools import partial

import pytest

from eosin.benchmark import BenchmarkConfig, run_benchmark
from eosin.cli import main
from eosin.core.errors import EosinError
from eosin.tasks import DATA_SETS, open_task
from eosin.tasks.acquire import acquire
from eosin.tasks.data_sets import RemoteFile


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def published(web, public_sets, monkeypatch):
    """bach as a zip and pcam as gzipped files on a web server, with entries that say so."""
    folder, url = web
    archive = folder / "ICIAR2018_BACH_Challenge.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(public_sets["bach"].rglob("*.tif")):
            file.write(path, path.relative_to(public_sets["bach"]))
        file.writestr("ICIAR2018_BACH_Challenge/WSI/A01.svs", b"slide")
    entry = DATA_SETS["bach"]
    size = sum(path.stat().st_size for path in public_sets["bach"].rglob("*.tif"))
    new = {"url": f"{url}/{archive.name}", "md5": md5(archive), "bytes": archive.stat().st_size, "becomes_bytes": size}
    file = entry.files[0].model_copy(update=new)
    monkeypatch.setitem(DATA_SETS._entries, "bach", entry.model_copy(update={"files": (file,)}))
    files = []
    for path in sorted(public_sets["pcam"].iterdir()):
        if path.suffix == ".csv":
            shutil.copy(path, folder)
            files.append(RemoteFile(name=path.name, url=f"{url}/{path.name}", md5=md5(path)))
            continue
        packed = folder / f"{path.name}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        names = {"name": packed.name, "url": f"{url}/{packed.name}", "becomes": path.name}
        sums = {"md5": md5(packed), "becomes_md5": md5(path), "becomes_bytes": path.stat().st_size}
        files.append(RemoteFile(**names, **sums))
    counts = {"totals": {"train": 48, "valid": 16, "test": 24}, "splits": {"official": (48, 16, 24)}}
    monkeypatch.setitem(
        DATA_SETS._entries, "pcam", DATA_SETS["pcam"].model_copy(update={"files": tuple(files), **counts})
    )
    return folder


def run(capsys, *words):
    code = main([str(word) for word in words])
    output = capsys.readouterr()
    return code, " ".join(output.out.split()), output.err


def test_list(capsys):
    code, out, _ = run(capsys, "data", "list")
    assert code == 0
    for name, about in DATA_SETS.items():
        assert f"{name}: {about.home}" in out
        assert f"{about.images:,}" in out
    assert main(["data", "list", "--format", "json"]) == 0
    sets = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert list(sets) == list(DATA_SETS)
    assert sets["crc"]["files"][0]["md5"] == "6fd702d11df6292bc054397ae038a464"
    assert sets["pcam"]["images"] == 327_680
    assert sets["mhist"]["access"] == "form"


def test_get_asks_for_the_licence_first(published, tmp_path, capsys):
    code, _, err = run(capsys, "data", "get", "bach", "--root", tmp_path / "bach")
    assert code == 2
    assert "CC BY-NC-ND 4.0 allows non-commercial use" in err
    assert "add --accept-licence" in err
    assert not (tmp_path / "bach").exists()


def test_get_an_archive(published, tmp_path, capsys):
    root = tmp_path / "bach"
    code, out, _ = run(capsys, "data", "get", "bach", "--root", root, "--accept-licence")
    assert code == 0, out
    assert f"bach is whole: use it as bach:{root}" in out
    assert [path.name for path in root.iterdir() if not path.name.startswith(".")] == ["ICIAR2018_BACH_Challenge"]
    assert not list(root.rglob("*.svs"))
    assert open_task(f"bach:{root}").split_hash == DATA_SETS["bach"].pins["three-way"]
    shutil.rmtree(published)
    code, out, _ = run(capsys, "data", "get", "bach", "--root", root, "--accept-licence")
    assert code == 0
    assert "there already" in out


def test_get_says_what_cannot_be_verified(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise EosinError("stop")

    monkeypatch.setattr("eosin.tasks.acquire.download", stop)
    said = {"bach": [], "breakhis": []}
    for name, lines in said.items():
        with pytest.raises(EosinError, match="stop"):
            acquire(name, tmp_path / name, accept_licence=True, say=lines.append)
    assert said["breakhis"][-1].startswith(
        "BreaKHis_v1.tar.gz: no checksum of it is published, and it comes without TLS"
    )
    assert not any("checksum" in line for line in said["bach"])


def test_get_uses_what_was_downloaded_by_hand(published, tmp_path, capsys):
    root = tmp_path / "bach"
    root.mkdir()
    archive = root / "ICIAR2018_BACH_Challenge.zip"
    archive.write_bytes(b"something else")
    words = ["data", "get", "bach", "--root", root, "--accept-licence", "--keep-archives"]
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "not the published" in err
    shutil.copy(published / archive.name, archive)
    shutil.rmtree(published)
    assert run(capsys, *words)[0] == 0
    assert archive.exists()
    code, out, _ = run(capsys, "data", "check", "bach", "--root", root)
    # The pictures of the copy are smaller than the published ones; their archive is as its entry says.
    assert code == 2
    assert "16×12 px, not 2048×1536" in out
    assert "ok MD5 of ICIAR2018_BACH_Challenge.zip: as published" in out


def test_get_packed_files(published, tmp_path, capsys):
    root = tmp_path / "pcam"
    code, out, _ = run(capsys, "data", "get", "pcam", "--root", root)
    assert code == 0, out
    assert len([path for path in root.iterdir() if path.suffix == ".h5"]) == 6
    assert not [path for path in root.iterdir() if path.suffix == ".gz"]
    code, out, _ = run(capsys, "data", "check", "pcam", "--root", root)
    assert code == 0, out
    assert "All that could be compared is as published." in out
    # One file lost: only it is got again.
    lost = next(path for path in root.iterdir() if path.name.endswith("valid_x.h5"))
    lost.unlink()
    code, out, _ = run(capsys, "data", "check", "pcam", "--root", root, "--fast")
    assert code == 2
    assert "valid_x.h5: no such file" in out
    code, out, _ = run(capsys, "data", "get", "pcam", "--root", root)
    assert (code, out.count("downloading")) == (0, 1)


def test_get_says_how_a_set_by_form_is_had(tmp_path, capsys, public_sets):
    root = tmp_path / "mhist"
    code, _, err = run(capsys, "data", "get", "mhist", "--root", root, "--accept-licence")
    assert code == 2
    assert "fill in the form at https://bmirds.github.io/MHIST/#accessing-dataset" in err
    with zipfile.ZipFile(root / "images.zip", "w") as file:
        for path in sorted((public_sets["mhist"] / "images").iterdir()):
            file.write(path, f"images/{path.name}")
    shutil.copy(public_sets["mhist"] / "annotations.csv", root)
    code, out, _ = run(capsys, "data", "get", "mhist", "--root", root, "--accept-licence")
    assert code == 0, out
    assert open_task(f"mhist:{root}").name == "mhist"


def test_an_unknown_set(capsys, tmp_path):
    for verb in ("get", "check"):
        code, _, err = run(capsys, "data", verb, "bahc", "--root", tmp_path)
        assert code == 2
        assert "unknown data set 'bahc'; did you mean 'bach'?" in err


def test_no_space_and_no_network_are_one_line(published, tmp_path, capsys, monkeypatch):
    from eosin.tasks import download

    monkeypatch.setattr(download, "_FIRST_WAIT", 0.0)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    code, _, err = run(capsys, "data", "get", "pcam", "--root", tmp_path / "pcam")
    assert code == 2
    assert "are needed and 0.0 GB are free" in err


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_benchmark_on_color_statistics(public_sets, tmp_path, name):
    """Each set through a cell: kNN on color statistics of the drawn classes must do better than chance."""
    import replicas

    option = "?check=loose"
    if name == "mhist":
        counts = {"train": {"HP": 30, "SSA": 20}, "test": {"HP": 12, "SSA": 8}}
        public_sets = {"mhist": replicas.mhist(tmp_path / "mhist", counts=counts)}
    if name == "bach":
        public_sets = {"bach": replicas.bach(tmp_path / "bach", each=62)}
    if name == "breakhis":
        public_sets = {"breakhis": replicas.breakhis(tmp_path / "breakhis", most=2)}
    config = BenchmarkConfig.parse(
        {
            "encoders": ["color=color:stats"],
            "tasks": [f"{name}:{public_sets[name]}{option}"],
            "protocols": ["knn"],
            "out": str(tmp_path / "results"),
            "workers": 0,
        },
        "test",
    )
    records = run_benchmark(config, command="test")
    assert len(records) == 1
    record = records[0]
    assert record["task"].startswith(name)
    assert record["metrics"]["accuracy"]["value"] > 1.5 / len(DATA_SETS[name].classes)
    assert record["notes"] == list(open_task(f"{name}:{public_sets[name]}{option}").notes)
