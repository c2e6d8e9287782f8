"""The four losses against lightly's: forward and backward on the same inputs, batch 256, float32.

One JSON line a claim; medians of interleaved repeats, on one CPU thread in CPU time of the process, or on a GPU where
there is one. Before anything is timed the two must give the same loss and the same gradient. DINO needs 8 GB.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, DINOLoss, NTXentLoss, SwaVLoss
from timing import interleaved, report
from torch import Tensor, nn

from eosin.methods import MoCo, MoCoConfig
from eosin.methods.barlow_twins import barlow_twins_loss
from eosin.methods.dino_loss import dino_loss
from eosin.methods.sinkhorn import sinkhorn
from eosin.methods.swav_loss import swav_loss

Loss = Callable[[], Tensor]
REPEATS = 7


def compare(
    claim: str,
    inputs: Sequence[Tensor],
    ours: Loss,
    peer: Loss,
    peer_name: str,
    repeats: int,
    tolerance: float = 1e-5,
) -> None:
    """Check that both give one loss and one gradient with respect to `inputs`, then time them."""

    def trained(loss: Loss) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for tensor in inputs:
                tensor.grad = None
            value = loss()
            value.backward()
            return value.detach().squeeze()

        return run

    def outcome(run: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        value = run()
        return value, [tensor.grad for tensor in inputs if tensor.grad is not None]

    first, second = trained(ours), trained(peer)
    (value, gradients), (expected, expected_gradients) = outcome(first), outcome(second)
    off = float((value - expected).abs() / expected.abs())
    apart = max(
        float((own - other).norm() / other.norm()) for own, other in zip(gradients, expected_gradients, strict=True)
    )
    if off > tolerance or apart > 1e-5:
        raise SystemExit(f"{claim}: the losses differ by {off:.1e}, the gradients by {apart:.1e}: nothing to compare")
    del gradients, expected_gradients
    device = inputs[0].device
    ours_s, peer_s = interleaved(first, second, repeats, device)
    where = "one CPU thread, CPU time" if device.type == "cpu" else torch.cuda.get_device_name(device)
    n = f"{repeats} repeats, {where}; loss within {off:.0e}, gradient within {apart:.0e}"
    report(claim, 1e3 * ours_s, 1e3 * peer_s, peer_name, "ms, forward + backward", peer_s / ours_s, n)


def draw(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device)


def barlow_twins(batch: int, dim: int, device: torch.device, repeats: int) -> None:
    first = draw(batch, dim, device=device)
    second = (first + draw(batch, dim, device=device, seed=1)).requires_grad_()
    first.requires_grad_()
    norm = nn.BatchNorm1d(dim, affine=False).to(device)
    loss = BarlowTwinsLoss(lambda_param=0.0051)

    def ours() -> Tensor:
        return barlow_twins_loss(norm(first), norm(second), 0.0051)

    def peer() -> Tensor:
        return loss(first, second)

    compare(
        f"Barlow Twins loss, d {dim}, batch {batch}, batch norm included",
        [first, second],
        ours,
        peer,
        "lightly BarlowTwinsLoss",
        repeats,
    )


def dino(batch: int, prototypes: int, local: int, device: torch.device, repeats: int) -> None:
    student = draw(2 + local, batch, prototypes, device=device).requires_grad_()
    teacher = draw(2, batch, prototypes, device=device, seed=1).mul_(0.3)
    center = draw(prototypes, device=device, seed=2).mul_(0.1)
    loss = DINOLoss(prototypes, teacher_temp=0.04, student_temp=0.1, center_momentum=1.0).to(device)
    loss.center.copy_(center)

    def ours() -> Tensor:
        return dino_loss(student.flatten(0, 1), teacher.flatten(0, 1), center, 0.1, 0.04)

    # lightly takes lists of views and stacks them: its own way in, so it is timed.
    def peer() -> Tensor:
        return loss(list(teacher), list(student), teacher_temp=0.04)

    compare(
        f"DINO loss, K {prototypes}, 2 + {local} crops, batch {batch}, means for the center included",
        [student],
        ours,
        peer,
        "lightly DINOLoss",
        repeats,
        # lightly adds up the B x K products of two views in few running sums, whose rounding ours does not have: in
        # float64 the two agree to 2e-10.
        tolerance=1e-3,
    )


def swav(batch: int, prototypes: int, local: int, device: torch.device, repeats: int) -> None:
    vectors = F.normalize(draw(2 + local, batch, 128, device=device), dim=2)
    rows = F.normalize(draw(prototypes, 128, device=device, seed=1), dim=1)
    scores = (vectors @ rows.T).requires_grad_()
    loss = SwaVLoss()

    def ours() -> Tensor:
        assignments = torch.stack([sinkhorn(view, 0.05, 3) for view in scores.detach()[:2]])
        return swav_loss(scores.flatten(0, 1), assignments, 0.1)

    def peer() -> Tensor:
        views = list(scores)
        return loss(views[:2], views[2:])

    compare(
        f"SwAV loss, K {prototypes}, 2 + {local} crops, batch {batch}, Sinkhorn included",
        [scores],
        ours,
        peer,
        "lightly SwaVLoss",
        repeats,
    )


def moco(batch: int, size: int, dim: int, device: torch.device, repeats: int) -> None:
    queries = draw(batch, dim, device=device).requires_grad_()
    keys = queries.detach() + 0.5 * draw(batch, dim, device=device, seed=1)
    method = MoCo(MoCoConfig(queue_size=size, dim=dim), lambda **_: Vectors(dim), seed=0).to(device)
    method.prepare(batch, 1)
    loss = NTXentLoss(temperature=0.2, memory_bank_size=(size, dim)).to(device)
    loss.memory_bank.bank = method.queue.T.contiguous()

    def ours() -> Tensor:
        unit = method._unit(keys)
        method._new_keys.append(unit)
        value, _ = method.contrast(method._unit(queries), unit)
        method.after_step()
        return value

    def peer() -> Tensor:
        return loss(queries, keys)

    compare(
        f"MoCo loss, K {size}, d {dim}, batch {batch}, queue update and normalisation included",
        [queries],
        ours,
        peer,
        "lightly NTXentLoss with memory bank",
        repeats,
    )


class Vectors(nn.Module):
    """Stands in for a backbone: the loss is given vectors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--only", nargs="*", default=["barlowtwins", "dino", "swav", "mocov2"])
    parser.add_argument("--small", action="store_true", help="a sixteenth of the size, to see that it runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share, repeats = 16 if arguments.small else 1, arguments.repeats
    if "barlowtwins" in arguments.only:
        barlow_twins(256, 8192 // share, device, repeats)
    if "dino" in arguments.only:
        dino(256, 65536 // share, 8, device, max(1, repeats // 2))
    if "swav" in arguments.only:
        swav(256, 3000 // share, 6, device, 3 * repeats)
    if "mocov2" in arguments.only:
        moco(256, 65536 // share, 128, device, repeats)


if __name__ == "__main__":
    main()
