"""SwAV.

A network, a backbone and a head that ends in unit vectors, sees V crops of a tile, two of them global. A vector x is
scored against K unit prototypes, the rows of C, as s = C x. For the global crops i in {0, 1} Sinkhorn's algorithm turns
the scores of the whole batch into assignments q_i that use all prototypes equally (`sinkhorn`), without gradients, and
the other crops v have to predict them:

    loss = mean over i of  mean over v != i of  - < q_i, log softmax(s_v / T) >,        averaged over the batch.

Balanced assignments are what keeps all tiles from one prototype. A batch that is small beside K balances coarsely: then
a queue of earlier vectors of the global crops, scored with today's prototypes, is balanced along with it.

Prototypes are brought to length 1 before each forward pass, and their gradients are withheld at the start.

M. Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020; authors'
code: facebookresearch/swav.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from eosin.core.collective import gather, local_slice, total
from eosin.core.console import warn
from eosin.core.draws import Draws, stream_seed
from eosin.core.errors import EosinError
from eosin.encoders import Encoder
from eosin.methods.base import METHODS, Method, MethodConfig, Setting, Step
from eosin.methods.multicrop import embed_crops
from eosin.methods.sinkhorn import sinkhorn
from eosin.methods.swav_loss import swav_loss

__all__ = ["SwAV", "SwAVConfig"]

_EPOCH = 1_281_167  # images of ImageNet-1k
_QUEUE_START = 15 * _EPOCH
_FREEZE = 313 * 4096

_COLOR: Mapping[str, Any] = {
    "interpolation": "bilinear",
    "jitter": {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "probability": 0.8},
    "grayscale": 0.2,
    "blur": {"probability": 0.5},
}
_DEFAULTS: Mapping[str, Any] = {
    "optimizer": {
        "name": "larc",
        "lr": 0.3,
        "final_lr": 0.0003,
        "warmup_lr": 0.01875,
        "warmup_samples": 10 * _EPOCH,
        "weight_decay": 1e-6,
    },
    "augment": {
        "views": {
            "global": {"count": 2, "size": 224, "scale": [0.14, 1.0], **_COLOR},
            "local": {"count": 6, "size": 96, "scale": [0.05, 0.14], **_COLOR},
        }
    },
}

Samples = Annotated[int, Field(ge=0)]


class SwAVConfig(MethodConfig):
    """SwAV; the defaults are the authors' (`scripts/swav_800ep_pretrain.sh`)."""

    name: Literal["swav"] = "swav"
    dim: int = Field(128, ge=1)
    """Width of the vectors that are compared with the prototypes."""
    hidden: int | None = Field(None, ge=1)
    """Width of the head's hidden layer; null takes the backbone's."""
    prototypes: Annotated[int, Field(ge=2)] | Literal["auto"] = 3000
    """Prototypes (K). `auto` takes one for 30 tiles."""
    temperature: float = Field(0.1, gt=0.0)
    """Softmax temperature of the predictions (T)."""
    epsilon: float = Field(0.05, gt=0.0)
    """Sharpness of the assignments."""
    sinkhorn_iterations: int = Field(3, ge=0)
    """Balancing passes; 0 balances nothing, and all tiles end in one prototype."""
    queue_size: Samples | Literal["auto"] = 0
    """Earlier tiles that are balanced along with the batch: 0, or a multiple of the batch; the authors take 3840 with a
    batch of 256. `auto` adds to the batch what it lacks of 4096 tiles per 3000 prototypes."""
    queue_start_samples: Samples | Literal["auto"] = _QUEUE_START
    """When the queue begins to fill; it is used once it is full. The default is 15 epochs of ImageNet."""
    freeze_samples: Samples | Literal["auto"] = _FREEZE
    """How long the prototypes are not trained: 313 steps of 4096 tiles."""


@METHODS.register("swav")
class SwAV(Method):
    """Swapped assignments between views.

    Args:
        config: The method's fields.
        make_encoder: Builds an untrained encoder; called once.
        seed: Seed of the networks.
    """

    Config: ClassVar[type[MethodConfig]] = SwAVConfig
    views: ClassVar[Mapping[str, int | None]] = {"global": 2, "local": None}
    defaults: ClassVar[Mapping[str, Any]] = _DEFAULTS

    queue: Tensor
    """[2, Q, d] vectors of earlier batches' global crops, a ring."""

    def __init__(self, config: SwAVConfig, make_encoder: Callable[..., Encoder], seed: int) -> None:
        super().__init__()
        self.config = config
        self.queue_size, self.queue_start = int(config.queue_size), int(config.queue_start_samples)
        prototypes = int(config.prototypes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "swav"))
            self.backbone = make_encoder()
            hidden = config.hidden or self.backbone.width
            self.head = nn.Sequential(
                nn.Linear(self.backbone.width, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Linear(hidden, config.dim),
            )
            self.prototypes = nn.Linear(config.dim, prototypes, bias=False)
        self.register_buffer("queue", torch.zeros(2, self.queue_size, config.dim))
        self.queued = 0
        """Tiles that have entered the queue since it started."""
        self.chance_loss = math.log(prototypes)
        self._new_vectors: list[Tensor] = []

    @classmethod
    def automatic(cls, config: Any, setting: Setting) -> dict[str, Any]:
        """See `Method.automatic`; the authors' figures, and for less data or a shorter run the same shares of it.

        The number of prototypes is ours: with 30 tiles each, a prototype cannot be a single tile's.
        """
        samples = setting.steps * setting.batch

        def part(share: float, longest: int) -> int:
            return min(longest, int(share * setting.steps) * setting.batch)

        chosen = max(64, min(3000, setting.tiles // 30))
        prototypes = chosen if config.prototypes == "auto" else int(config.prototypes)
        start = part(0.075, _QUEUE_START) if config.queue_start_samples == "auto" else int(config.queue_start_samples)
        lacking = round(prototypes * 4096 / 3000) - setting.batch
        queue = lacking // setting.batch * setting.batch if setting.batch < prototypes else 0
        return {
            "method.prototypes": chosen,
            "method.queue_size": queue if start + queue < samples else 0,
            "method.queue_start_samples": part(0.075, _QUEUE_START),
            "method.freeze_samples": part(0.01, _FREEZE),
            "optimizer.warmup_samples": part(0.1, 10 * _EPOCH),
        }

    @property
    def encoder(self) -> Encoder:
        """The backbone."""
        return self.backbone

    def prepare(self, batch: int, total_steps: int) -> None:
        """See `Method.prepare`."""
        super().prepare(batch, total_steps)
        if batch < 2:
            raise EosinError("batch_size 1: a tile alone cannot be balanced; use --batch_size 2 or more")
        if self.queue_size % batch:
            fitting = max(batch, self.queue_size // batch * batch)
            raise EosinError(
                f"method.queue_size {self.queue_size} is not a multiple of the batch of {batch}; "
                f"use --method.queue_size {fitting}, 0 for none, or another --batch_size"
            )
        samples, frozen = batch * total_steps, int(self.config.freeze_samples)
        if self.queue_size and self.queue_start + self.queue_size >= samples:
            warn(
                f"method.queue_size {self.queue_size}: started after {self.queue_start} samples, the queue is never "
                f"full in a run of {samples}; use --method.queue_start_samples {int(0.075 * samples)} or "
                "--method.queue_size 0"
            )
        if frozen >= samples:
            warn(
                f"method.freeze_samples {frozen} holds the prototypes for the whole run of {samples} samples; "
                f"use --method.freeze_samples {int(0.01 * samples)}"
            )

    def forward(self, views: list[Tensor], draws: Draws | None = None) -> Step:
        """See `Method.forward`; `views` are the two global crops and any number of local ones."""
        batch = len(views[0])
        with torch.no_grad():
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))
        features = embed_crops(self.backbone, views)
        vectors = self.head(features)
        # Mixed precision stops here: in bf16, scores near 1 are 1/256 apart, which 1 / epsilon makes 1/13.
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = F.normalize(vectors.to(self.prototypes.weight.dtype), dim=1)
            scores = self.prototypes(vectors)
            first, second = vectors[: 2 * batch].detach().chunk(2)
            first_scores, second_scores = scores[: 2 * batch].detach().chunk(2)
            assignments = self._assign(0, first, first_scores), self._assign(1, second, second_scores)
            loss = swav_loss(scores, assignments, self.config.temperature)
        if self.queue_size and self.steps * self.batch >= self.queue_start:
            self._new_vectors.append(gather(torch.stack([first, second], dim=1)))
        scalars = {"watch/prototype_usage": _usage(scores[: 2 * batch].detach())}
        return Step(loss, scalars, features[:batch].detach().float(), (first, second))

    def before_step(self) -> None:
        """Withhold the prototypes' gradients while they are frozen."""
        if self.steps * self.batch < int(self.config.freeze_samples):
            self.prototypes.weight.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the batch's vectors in the place of the oldest ones, once the queue has started."""
        if self._new_vectors:
            new = torch.cat(self._new_vectors).transpose(0, 1)
            start = self.queued % self.queue_size
            self.queue[:, start : start + new.shape[1]] = new
            self.queued += new.shape[1]
        self._new_vectors = []
        super().after_step()

    def get_extra_state(self) -> dict[str, Any]:
        """See `Method.get_extra_state`."""
        return super().get_extra_state() | {"queued": self.queued}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See `Method.set_extra_state`."""
        super().set_extra_state(state)
        self.queued = state["queued"]

    @torch.no_grad()
    def _assign(self, crop: int, vectors: Tensor, scores: Tensor) -> Tensor:
        """Return the assignments [B, K] of a global crop, balanced with the queue if it is full."""
        if 0 < self.queue_size <= self.queued:
            scores = F.linear(torch.cat([local_slice(self.queue[crop]), vectors]), self.prototypes.weight)
        return sinkhorn(scores, self.config.epsilon, self.config.sinkhorn_iterations)[-len(vectors) :]


def _usage(scores: Tensor) -> Tensor:
    """Return how many prototypes are some tile's best: exp of the entropy of their shares, over all processes.

    Hard choices show either collapse, all tiles at one prototype or all tiles alike, as 1; predictions are too soft to.
    """
    best = scores.argmax(dim=1)
    counts = scores.new_zeros(scores.shape[1]).index_add_(0, best, scores.new_ones(len(best)))
    counts = total(counts)
    return torch.special.entr(counts / counts.sum()).sum().exp()
