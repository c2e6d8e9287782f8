"""Attention of few tokens on one CPU thread: the plain form, which encoders choose there, against PyTorch's fused one.

One JSON line a claim: forward and backward of six heads of width 64, medians of interleaved repeats in CPU time. That
both give the same values is checked first.
"""

from __future__ import annotations

import argparse

import torch
from timing import interleaved, report
from timm.layers import Attention
from torch import Tensor

CPU = torch.device("cpu")


def compare(batch: int, tokens: int, mixed: bool, repeats: int) -> None:
    torch.manual_seed(0)
    attention = Attention(384, num_heads=6, qkv_bias=True)
    images = torch.randn(batch, tokens, 384)

    def run(fused: bool) -> Tensor:
        attention.fused_attn = fused
        attention.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = attention(images)
        out.float().square().mean().backward()
        return out.float().detach()

    difference = float((run(False) - run(True)).abs().max())
    if not difference <= (0.02 if mixed else 1e-5):
        raise SystemExit(f"the two forms differ by {difference:.3g}")
    plain_s, fused_s = interleaved(lambda: run(False), lambda: run(True), repeats, CPU)
    claim = f"attention layer, forward and backward, batch {batch}, {tokens} tokens, {'bf16' if mixed else 'float32'}"
    report(claim, plain_s * 1e3, fused_s * 1e3, "fused", "ms of CPU time", fused_s / plain_s, f"{repeats} repeats")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for mixed in (True, False):
        for batch, tokens in ((64, 37), (16, 197)):
            compare(batch, tokens, mixed, arguments.repeats)


if __name__ == "__main__":
    main()
