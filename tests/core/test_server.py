"""Processes of the server: who may end them by SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from forked import Forked

SCRIPT = """
import os, signal, sys, time
from eosin.core.server import end_with_parent, signals_held_back, start_server

def ours(pipe):
    end_with_parent()
    pipe.send(os.getpid())
    time.sleep(60)

def others(pipe):
    pipe.send(os.getpid())
    time.sleep(60)

if __name__ == "__main__":
    context = start_server("eosin.core.errors")
    near, far = context.Pipe()
    with signals_held_back():
        process = context.Process(target=globals()[sys.argv[1]], args=(far,))
        process.start()
    number = near.recv()
    if sys.argv[2] == "stranger":
        os.system(f"kill -TERM {number}")
    else:
        process.terminate()
    process.join(3)
    print(process.exitcode)
    process.kill()
"""


@pytest.mark.parametrize(
    ("whose", "by", "code"),
    [("ours", "stranger", "None"), ("ours", "owner", "1"), ("others", "owner", str(-signal.SIGTERM))],
)
def test_who_ends_a_process_by_sigterm(tmp_path, whose, by, code):
    """A scheduler does not end a process that eosin started, its owner does; of others SIGTERM means the usual."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    told = subprocess.run([sys.executable, str(script), whose, by], capture_output=True, text=True, timeout=100)
    assert told.stdout == f"{code}\n", told.stderr


COUNTED = """
import gc, os
before = gc.get_freeze_count()
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
print(before, gc.get_freeze_count())
"""


def test_what_the_server_has_imported_is_left_alone_and_what_its_children_hold_is_not(tmp_path):
    script = tmp_path / "counted.py"
    script.write_text(COUNTED)
    program = Forked(script)
    frozen, later = (int(word) for word in program.finish(60).split())
    assert program.returncode == 0
    assert frozen > 100_000
    assert later == frozen


def test_the_server_outlives_sigterm_to_every_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, time\n"
        "from multiprocessing import forkserver\n"
        "from eosin.core.server import start_server\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "start_server('eosin.core.errors')\n"
        "time.sleep(2)\n"
        "print(forkserver._forkserver._forkserver_pid, flush=True)\n"
        "os.killpg(0, signal.SIGTERM)\n"
        "time.sleep(1)\n"
        "print(os.waitpid(forkserver._forkserver._forkserver_pid, os.WNOHANG)[0], flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    started = time.monotonic()
    output, errors = process.communicate(timeout=100)
    assert output.split()[1:] == ["0"], (output, errors, time.monotonic() - started, os.getpid())
