"""Copies of public sets, made once and copied by links."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("replicas", Path(__file__).with_name("replicas.py"))
replicas = importlib.util.module_from_spec(_SPEC)
sys.modules["replicas"] = replicas
_SPEC.loader.exec_module(replicas)

MAKE = {
    "bach": replicas.bach,
    "breakhis": replicas.breakhis,
    "crc": lambda root: replicas.crc(root, each={"NCT-CRC-HE-100K": 10, "CRC-VAL-HE-7K": 3}),
    "mhist": replicas.mhist,
    "pcam": replicas.pcam,
}


@pytest.fixture(scope="session")
def public_sets(tmp_path_factory):
    """Set -> folder; whole by name, but for crc and pcam."""
    folder = tmp_path_factory.mktemp("public")
    return {name: make(folder / name) for name, make in MAKE.items()}


@pytest.fixture
def copy(public_sets, tmp_path):
    """Return a function that gives a copy of a set which a test may spoil; its images are links."""

    def of(name: str) -> Path:
        target = tmp_path / name
        linked = os.link if name != "pcam" else shutil.copy2
        shutil.copytree(public_sets[name], target, copy_function=linked)
        if name == "mhist":
            table = target / "annotations.csv"
            text = table.read_text()
            table.unlink()
            table.write_text(text)
        return target

    return of
