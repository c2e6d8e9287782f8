"""What is installed, what is missing, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from eosin.core.home import eosin_home

__all__ = ["Finding", "examine"]

_REQUIRED = (
    *("torch", "torchvision", "timm", "safetensors", "numpy", "scikit-learn", "pyarrow", "pillow", "pydantic"),
    *("openslide-python", "openslide-bin", "tifffile", "imagecodecs"),
)
_EXTRAS = {
    "fast": (("numba",), "compile stain augmentation for the processor; EOSIN_NUMBA=0 turns it off"),
    "h5": (("h5py",), "exchange coordinates with CLAM and TRIDENT"),
    "nuclei": (("skimage",), "find nuclei"),
    "ray": (("ray",), "fan out over hosts"),
    "wandb": (("wandb",), "log to Weights & Biases"),
    "mlflow": (("mlflow",), "log to MLflow"),
    "umap": (("umap",), "lay maps of embeddings out by UMAP too"),
    "onnx": (("onnx", "onnxruntime", "onnxscript"), "export to ONNX"),
    "bench": (("lightly",), "run the benchmarks against peers"),
}

Finding = tuple[str, bool, str]
"""(subject, whether it is fine, what was found or how to get it)."""


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def examine() -> list[Finding]:
    """Look at the installation and the machine.

    Returns:
        One finding per subject, required parts first.
    """
    findings: list[Finding] = [("Python", sys.version_info >= (3, 11), platform.python_version())]
    for name in _REQUIRED:
        version = _version(name)
        findings.append((name, version is not None, version or "missing: pip install eosin"))
    findings += _device()
    findings += [_home(), _disk()]
    for extra, (modules, purpose) in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        state = (
            f"installed ({purpose})" if not missing else f"not installed; to {purpose}: pip install 'eosin[{extra}]'"
        )
        findings.append((f"extra {extra}", not missing, state))
    return findings


def _device() -> list[Finding]:
    if _version("torch") is None:
        return []
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capabilities = torch.backends.cpu.get_cpu_capability()
    findings: list[Finding] = [
        ("processor", True, f"{cores} cores, {torch.get_num_threads()} threads for torch, {capabilities}")
    ]
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        findings.append(("GPU", True, ", ".join(names)))
    else:
        findings.append(("GPU", True, "none visible: runs use the processor; recipes named *-small are made for it"))
    return findings


def _home() -> Finding:
    home = eosin_home()
    existing = next(path for path in (home, *home.parents) if path.exists())
    fine = os.access(existing, os.W_OK)
    return "EOSIN_HOME", fine, f"{home}" if fine else f"{home} is not writable: set EOSIN_HOME to a folder that is"


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    return "free disk here", free > 1, f"{free:.0f} GB"
