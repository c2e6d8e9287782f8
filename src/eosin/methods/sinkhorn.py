"""Sinkhorn-Knopp: assignments of tiles to prototypes that use all prototypes equally.

From scores S in R^(B x K) and M = exp(S / epsilon), columns and rows are in turn divided by their sums,

    Q <- Q / (sum_b Q_bk),    Q <- Q / (sum_k Q_bk),        starting from Q = M,

so that every tile's assignments add up to 1 and every prototype gets nearly B / K of them. Constants by which the
authors' code divides on the way (the sum of M, K and B) cancel in the second division.

Q is always diag(r) M diag(c), so M stays as it is and an iteration is two products with vectors,

    c = 1 / (M^T r),    r = 1 / (M c).

Rows of M are taken relative to their largest entry and r starts with what they lost, relative to the largest score of
all tiles of all processes: no exponential overflows, and no row vanishes.

M. Cuturi, "Sinkhorn Distances", NeurIPS 2013; M. Caron et al., "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments", NeurIPS 2020.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eosin.core.collective import gather, total

__all__ = ["sinkhorn"]

_MARGIN = 1e8  # over the smallest number: 1 over it can be added up over all prototypes


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Assign tiles to prototypes, equally over the tiles of all processes.

    Args:
        scores: Float [B, K], similarities of this process's tiles and the prototypes; left as they are.
        epsilon: Sharpness: the smaller, the harder the assignments.
        iterations: Balancing passes; 0 balances nothing and gives softmax(S / epsilon).

    Returns:
        [B, K], rows adding up to 1: float64 if the scores are, else float32.
    """
    with torch.autocast(scores.device.type, enabled=False):
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        highest = exact.amax(dim=1, keepdim=True)
        kernel = (exact - highest).div_(epsilon).exp_()
        rows = ((highest - gather(highest).amax()) / epsilon).exp_().squeeze(1)
        columns = kernel.new_ones(kernel.shape[1])
        # A prototype that is too far from all tiles for a number is given none of them, instead of 0 / 0.
        least = _MARGIN * torch.finfo(kernel.dtype).tiny
        for _ in range(iterations):
            columns = total(rows @ kernel).clamp_(min=least).reciprocal_()
            rows = (kernel @ columns).reciprocal_()
        if not iterations:
            rows = kernel.sum(dim=1).reciprocal_()
        return kernel.mul_(columns).mul_(rows.unsqueeze(1))
