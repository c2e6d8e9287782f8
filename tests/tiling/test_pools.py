from __future__ import annotations

import functools
import operator
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eosin.core.errors import EosinError
from eosin.tiling.pools import LocalPool, ProcessDied, RayPool, closing

# Tasks are functions that any process can import.
double = functools.partial(operator.mul, 2)


def test_results_and_exceptions_come_back_with_their_tags() -> None:
    with closing(LocalPool(2)) as pool:
        for number in range(4):
            pool.submit(number, double, number)
        pool.submit("bad", float, "no number")
        results = dict(pool.next() for _ in range(5))
    bad = results.pop("bad")
    assert results == {number: 2 * number for number in range(4)}
    assert isinstance(bad, ValueError)
    assert "no number" in str(bad)


def test_a_dead_process_does_not_end_the_pool() -> None:
    with closing(LocalPool(1)) as pool:
        pool.submit("dead", os._exit, 9)
        tag, result = pool.next()
        assert tag == "dead"
        assert isinstance(result, ProcessDied)
        pool.submit("after", double, 21)
        assert pool.next() == ("after", 42)


def test_closing_ends_what_is_under_way() -> None:
    pool = LocalPool(1)
    pool.submit("first", os.getpid)
    _, process = pool.next()
    pool.submit("long", time.sleep, 600.0)
    time.sleep(0.2)
    thread = pool._executor._executor_manager_thread
    pool.close()
    assert not thread.is_alive()
    gone(process)


def gone(process: int) -> None:
    for _ in range(100):
        try:
            os.kill(process, 0)
            with open(f"/proc/{process}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {process} still runs")


def test_processes_end_with_the_one_that_started_them() -> None:
    code = """
import time
from eosin.tiling.pools import LocalPool
import os
pool = LocalPool(1)
pool.submit(0, os.getpid)
print(pool.next()[1], flush=True)
pool.submit(1, time.sleep, 600)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        parent.kill()
        gone(process)


def test_ray_on_a_real_local_cluster() -> None:
    pytest.importorskip("ray")
    with closing(RayPool("local")) as pool:
        assert pool.size >= 1
        pool.submit("fine", abs, -3)
        pool.submit("bad", float, "no number")
        pool.submit("dead", os._exit, 9)
        results = dict(pool.next() for _ in range(3))
    assert results["fine"] == 3
    assert isinstance(results["bad"], ValueError)
    assert isinstance(results["dead"], ProcessDied)


def test_ray_without_a_cluster_says_so() -> None:
    pytest.importorskip("ray")
    with pytest.raises(EosinError, match="--ray auto: no cluster answers"):
        RayPool("auto")


HALF_A_RESULT = """
import os
from multiprocessing.connection import Connection

def half_a_result():
    def send(self, message, write=None):
        os.write(self.fileno(), bytes(message)[: len(message) // 2])
        os._exit(9)

    Connection._send = send
    return bytes(1000)
"""


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("print(pool.next()); pool.submit(1, abs, -4); print(pool.next())", "ProcessDied"),
        ("while any(process.is_alive() for process in pool._executor._processes.values()): time.sleep(0.01)", "closed"),
    ],
)
def test_a_process_that_dies_while_it_sends_its_result_blocks_nothing(tmp_path: Path, steps: str, told: str) -> None:
    """Neither the tasks after it nor the end of the program."""
    (tmp_path / "half.py").write_text(HALF_A_RESULT)
    (tmp_path / "program.py").write_text(
        "import time\n"
        "from eosin.tiling.pools import LocalPool, closing\n"
        "from half import half_a_result\n"
        "if __name__ == '__main__':\n"
        "    with closing(LocalPool(1)) as pool:\n"
        "        pool.submit(0, half_a_result)\n"
        f"        {steps}\n"
        "    print('closed')\n"
    )
    ran = subprocess.run([sys.executable, tmp_path / "program.py"], capture_output=True, text=True, timeout=60)
    assert told in ran.stdout, ran.stderr
    assert ran.stdout.endswith("closed\n"), ran.stderr


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", r"--ray 127.0.0.1:1: no cluster answers \(Connection refused\)"),
        ("ray://127.0.0.1:1", "no cluster answers"),
        ("127.0.0.1:99999", "no cluster answers"),
        ("head-node", "write HOST:PORT"),
        ("", "write HOST:PORT"),
    ],
)
def test_ray_where_no_cluster_listens_says_so_at_once(
    address: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    started = time.monotonic()
    with pytest.raises(EosinError, match=told):
        RayPool(address)
    assert time.monotonic() - started < 20
    assert capfd.readouterr() == ("", "")


def test_each_process_computes_with_one_thread() -> None:
    """However many the process that starts them has: there is one process a core."""
    code = """
from eosin.tiling.pools import LocalPool, closing
import threadpoolctl
import os
if __name__ == "__main__":
    with closing(LocalPool(1)) as pool:
        pool.submit(0, threadpoolctl.threadpool_info)
        print([library["num_threads"] for library in pool.next()[1]], os.environ["OMP_NUM_THREADS"])
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "4"},
        timeout=60,
    )
    counts, own = ran.stdout.strip().rsplit(" ", 1)
    assert set(counts.strip("[]").split(", ")) == {"1"}, ran.stderr
    assert own == "4"


def test_a_process_that_hangs_is_ended() -> None:
    with closing(LocalPool(1, patience=1)) as pool:
        pool.submit("hangs", time.sleep, 600.0)
        tag, result = pool.next()
        assert (tag, type(result)) == ("hangs", ProcessDied)
        pool.submit("after", double, 21)
        time.sleep(1.2)
        assert pool.next() == ("after", 42)


def test_a_script_that_starts_itself_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from eosin.tiling.pools import LocalPool\nLocalPool(2)\n")
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1
    assert "write the call under if __name__ == '__main__':" in ran.stderr.rstrip().splitlines()[-1]
