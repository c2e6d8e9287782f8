"""eosin's exports as models of kaiko-eva, run by the Python of an environment that has `kaiko-eva[vision]`.

    python benchmarks/peers/eva_model.py first-timm first.onnx

Reads the backbone of docs/eva.md as eva reads its configurations (jsonargparse), with the export's path put in, and
compares the embeddings of random images with those of timm's own loading. Prints one JSON line a model.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import timm
import torch
import yaml
from eva.core.utils import parser
from torch import nn


def backbone(page: Path, export: str) -> nn.Module:
    """Build the model of the page's YAML block."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    settings = yaml.safe_load(block)["backbone"]
    settings["init_args"]["arguments"]["model_name"] = f"local-dir:{export}"
    return parser.parse_object(settings, expected_type=nn.Module)


def main() -> None:
    folder, onnx = sys.argv[1], sys.argv[2]
    page = Path(__file__).resolve().parents[2] / "docs/eva.md"
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    size = plain.pretrained_cfg["input_size"][-1]
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    wrapper = {"class_path": "eva.core.models.wrappers.ONNXModel", "init_args": {"path": onnx}}
    models = {
        "timm": backbone(page, folder).eval(),
        "onnx": parser.parse_object(wrapper, expected_type=nn.Module).eval(),
    }
    with torch.no_grad():
        expected = plain(images)
        for name, model in models.items():
            found = model(images)
            gap = float((found - expected).abs().max() / expected.abs().max())
            print(
                json.dumps({"model": name, "class": type(model).__name__, "width": found.shape[1], "difference": gap})
            )
            if gap > 1e-4:
                raise SystemExit(f"{name}: eva's model does not give the encoder's embeddings")


if __name__ == "__main__":
    main()
