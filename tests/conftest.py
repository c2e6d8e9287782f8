"""Fixtures for the whole suite."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest
from hypothesis import settings

from forked import Forked

# One thread: the tests' tensors are small, and a fixed count keeps sums in one order on any machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: the machines that run the suite are busy, and times are not what is tested.
# The same examples every time, so that what lands does not hang on chance; EOSIN_EXAMPLES draws so many new ones.
EXAMPLES = os.environ.get("EOSIN_EXAMPLES")
settings.register_profile("eosin", deadline=None, max_examples=int(EXAMPLES or 25), derandomize=EXAMPLES is None)
settings.load_profile("eosin")


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    """One server with all that any test's processes import: the first to start one would else decide for all."""
    multiprocessing.set_forkserver_preload(["served"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "helpers"), prepend=os.pathsep)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        forkserver.ensure_running()


@pytest.fixture(autouse=True)
def forked_programs_end() -> Iterator[None]:
    """None outlives its test, however that ends."""
    yield
    for program in list(Forked.living):
        program.end()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real H&E images; the test is skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EOSIN_TEST_DATA", default))
    if not (folder / "oral" / "index.csv").is_file():
        pytest.skip(f"no real tissue at {folder}: set EOSIN_TEST_DATA to the folder that holds it")
    return folder
