"""Downloads: resumed after any stop, checked, and never half-written under their own name."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import namedtuple

import numpy as np
import pytest

from eosin.core.errors import EosinError
from eosin.tasks import download as module
from eosin.tasks.download import download

DATA = np.random.default_rng(0).bytes(3_500_000)
MD5 = hashlib.md5(DATA).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.seen.append(dict(self.headers))
        if server.answers:
            status = server.answers.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if status in (301, 302):
                self.send_header("Location", server.location)
            self.end_headers()
            return
        start, data = 0, server.data
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        whole = server.no_range or not asked or self.headers.get("If-Range") not in (None, server.tag)
        if not whole:
            start = int(asked[1])
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(200 if whole else 206)
        if server.tag:
            self.send_header("ETag", server.tag)
        if not whole:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        piece = data[start:]
        drop = server.drops.pop(0) if server.drops else None
        if drop is not None:
            self.wfile.write(piece[:drop])
            self.wfile.flush()
            self.close_connection = True
            return
        for at in range(0, len(piece), 2**16):
            self.wfile.write(piece[at : at + 2**16])
            time.sleep(server.slow)


@pytest.fixture
def server():
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    web.handle_error = lambda *_: None  # clients that go away are part of the tests
    web.seen, web.drops, web.answers = [], [], []
    web.data, web.tag, web.no_range, web.shift, web.slow, web.location = DATA, '"one"', False, 0, 0, ""
    web.url = f"http://127.0.0.1:{web.server_port}/set.zip"
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield web
    web.shutdown()
    web.server_close()
    thread.join()


def get(server, path, **options):
    download(server.url, path, **{"md5": MD5, "size": len(DATA), "wait": 0.0, **options})


def test_a_file_comes_whole_and_nothing_else_stays(server, tmp_path):
    told = []
    get(server, tmp_path / "set.zip", progress=lambda done, total: told.append((done, total)))
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["set.zip"]
    assert told[-1] == (len(DATA), len(DATA))
    assert told == sorted(told)
    assert server.seen[0]["User-Agent"].startswith("eosin/")


def test_a_dropped_connection_is_gone_on_with(server, tmp_path):
    server.drops = [1_200_000, 1_000_000, 0]
    get(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA
    ranges = [headers.get("Range") for headers in server.seen]
    assert ranges == [None, "bytes=1200000-", "bytes=2200000-", "bytes=2200000-"]
    assert {headers.get("If-Range") for headers in server.seen[1:]} == {'"one"'}


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path):
    server.no_range, server.drops = True, [1_200_000]
    get(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_a_server_without_a_tag_is_begun_anew(server, tmp_path):
    server.tag, server.drops = "", [1_200_000]
    get(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert [headers.get("Range") for headers in server.seen] == [None, None]


def test_a_file_that_changed_meanwhile_is_begun_anew(server, tmp_path):
    server.drops = [1_000_000] * 5 + [0] * 5
    server.data = b"x" * 6_000_000
    with pytest.raises(EosinError):
        get(server, tmp_path / "set.zip", size=6_000_000)
    assert (tmp_path / "set.zip.part").stat().st_size == 5_000_000
    server.data, server.tag = DATA, '"two"'
    get(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA


@pytest.mark.parametrize("fault", ["shift", "416"])
def test_a_part_that_the_server_cannot_continue_is_begun_anew(server, tmp_path, fault):
    part = tmp_path / "set.zip.part"
    part.write_bytes(DATA[:1000] if fault == "shift" else DATA + b"more")
    (tmp_path / "set.zip.part.json").write_text(json.dumps({"url": server.url, "size": len(DATA), "tag": '"one"'}))
    server.shift = 7 if fault == "shift" else 0
    get(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA
    assert len(server.seen) == 2


@pytest.mark.parametrize("about", [None, "{", '{"url": "http://elsewhere/set.zip", "tag": "a", "size": 3}'])
def test_a_part_of_unknown_origin_is_not_trusted(server, tmp_path, about):
    (tmp_path / "set.zip.part").write_bytes(b"junk" * 100)
    if about is not None:
        (tmp_path / "set.zip.part.json").write_text(about)
    get(server, tmp_path / "set.zip")
    assert "Range" not in server.seen[0]
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_a_wrong_checksum_is_removed_and_said(server, tmp_path):
    with pytest.raises(
        EosinError, match=f"what came has MD5 {MD5}, not the published {'0' * 32}, and was removed; run"
    ):
        get(server, tmp_path / "set.zip", md5="0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_wrong_size_is_said_before_anything_comes(server, tmp_path):
    with pytest.raises(
        EosinError, match=f"the server has {len(DATA):,} bytes, not the published 5; the file was changed"
    ):
        get(server, tmp_path / "set.zip", size=5)
    assert not list(tmp_path.iterdir())


def test_without_a_published_checksum_the_size_must_do(server, tmp_path):
    get(server, tmp_path / "set.zip", md5=None, size=None)
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_no_room_is_said_before_anything_comes(server, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 4_000_000))
    with pytest.raises(
        EosinError, match=r"1,000.0 GB are needed and 0.0 GB are free; free some, or choose another --root"
    ):
        get(server, tmp_path / "set.zip", room=10**12)
    assert not (tmp_path / "set.zip.part").exists()
    get(server, tmp_path / "set.zip", room=0)


def test_a_full_disk_keeps_what_came(server, tmp_path, monkeypatch):
    write = os.fsync

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(EosinError, match="no space left on the device"):
        get(server, tmp_path / "set.zip")
    assert not (tmp_path / "set.zip").exists()
    monkeypatch.setattr(module.os, "fsync", write)
    get(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA


def test_no_network_is_one_line(tmp_path):
    with pytest.raises(EosinError) as caught:
        download("http://127.0.0.1:9/set.zip", tmp_path / "set.zip", wait=0.0)
    assert str(caught.value) == (
        "127.0.0.1: cannot be reached (Connection refused); check the network and run the same command again, or download "
        f"http://127.0.0.1:9/set.zip by hand to {tmp_path / 'set.zip'}"
    )
    with pytest.raises(EosinError, match=r"nowhere.invalid: cannot be reached \("):
        download("http://nowhere.invalid/set.zip", tmp_path / "set.zip", wait=0.0)


def test_what_the_server_answers(server, tmp_path):
    server.answers = [404]
    with pytest.raises(EosinError, match="the server refuses it .404 Not Found.; the address may have changed"):
        get(server, tmp_path / "set.zip")
    server.answers = [503, 429]
    get(server, tmp_path / "set.zip")
    server.answers = [500] * 20
    with pytest.raises(EosinError, match="the server answers 500 Internal Server Error; check the network"):
        get(server, tmp_path / "other.zip")
    assert len(server.answers) == 15


def test_redirections_stay_on_the_web(server, tmp_path):
    server.answers, server.location = [302], server.url + "?other"
    get(server, tmp_path / "set.zip")
    server.answers, server.location = [302], "file:///etc/passwd"
    with pytest.raises(EosinError, match="302"):
        get(server, tmp_path / "no.zip")
    assert not (tmp_path / "no.zip").exists()
    with pytest.raises(EosinError, match="only http and https"):
        download("file:///etc/passwd", tmp_path / "no.zip")


def test_tls_is_never_left(server, tmp_path, monkeypatch):
    follow = module._NoDowngrade().redirect_request
    ours = urllib.request.Request("https://zenodo.org/set.zip")
    with pytest.raises(urllib.error.HTTPError, match="leads from https to http://elsewhere/set.zip"):
        follow(ours, None, 302, "Found", {}, "http://elsewhere/set.zip")
    assert follow(ours, None, 302, "Found", {}, "https://elsewhere/set.zip").full_url == "https://elsewhere/set.zip"
    plain = urllib.request.Request("http://ufpr.br/set.tar.gz")
    assert follow(plain, None, 302, "Found", {}, "http://ufpr.br/new").full_url == "http://ufpr.br/new"
    # And the handler is the one that downloads use.
    asked = []
    monkeypatch.setattr(module._NoDowngrade, "redirect_request", lambda *given: asked.append(given[-1]))
    server.answers, server.location = [302], server.url + "?other"
    with pytest.raises(EosinError, match="302"):
        get(server, tmp_path / "set.zip")
    assert asked == [server.url + "?other"]


def test_an_error_of_the_network_is_not_taken_for_the_disks(server, tmp_path, monkeypatch):
    """SSL_ERROR_SSL is 1, as is EPERM; "no route to host" is no ConnectionError."""
    read, faults = http.client.HTTPResponse.read, [ssl.SSLError(1, "bad record"), OSError(113, "No route to host")]

    def broken(self, *given):
        if faults:
            raise faults.pop()
        return read(self, *given)

    monkeypatch.setattr(http.client.HTTPResponse, "read", broken)
    get(server, tmp_path / "set.zip")
    assert (tmp_path / "set.zip").read_bytes() == DATA
    monkeypatch.setattr(http.client.HTTPResponse, "read", lambda *_: (_ for _ in ()).throw(ssl.SSLError(1, "bad")))
    with pytest.raises(EosinError, match=r"127.0.0.1: cannot be reached \(bad\)"):
        get(server, tmp_path / "other.zip")


def test_a_link_in_the_place_of_the_part_is_not_followed(server, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "set.zip.part").symlink_to(precious)
    server.tag = None
    with pytest.raises(EosinError, match="cannot be written"):
        module._store(None, tmp_path / "set.zip.part", 0, None, None)
    get(server, tmp_path / "set.zip")
    assert precious.read_text() == "mine"


def test_a_stream_without_an_end_is_cut(tmp_path):
    class Endless:
        url = "http://elsewhere/set.zip"

        def read(self, count):
            return bytes(count)

    with pytest.raises(EosinError, match="sends more than 3,500,000 bytes"):
        module._store(Endless(), tmp_path / "set.zip.part", 0, 3_500_000, None)
    assert (tmp_path / "set.zip.part").stat().st_size <= 3_500_000


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_goes_on(server, tmp_path, how):
    server.slow = 0.02
    path = tmp_path / "set.zip"
    # The module alone: the package around it would take seconds to import.
    script = f"""
import importlib.util, pathlib, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
spec = importlib.util.spec_from_file_location("download", {module.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.download({server.url!r}, pathlib.Path({str(path)!r}))
"""
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    part = tmp_path / "set.zip.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size >= 2**20) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(how)
    assert child.wait(60) != 0
    assert not path.exists()
    have = part.stat().st_size
    assert 0 < have < len(DATA)
    server.slow = 0
    get(server, path)
    assert server.seen[-1]["Range"] == f"bytes={have}-"
    assert path.read_bytes() == DATA
