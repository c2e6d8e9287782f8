"""MoCo v2.

A query encoder f_q and a key encoder f_k, each a backbone and a two-layer head, see one view each of a tile. With
q = f_q(view 1) / |.| and k = f_k(view 2) / |.| in R^d and a queue of K earlier keys n_j,

    loss = - log  exp(q.k / T) / ( exp(q.k / T) + sum_j exp(q.n_j / T) )            (InfoNCE, positive at index 0)

averaged over the batch. Gradients reach f_q only; f_k follows as  theta_k <- m theta_k + (1 - m) theta_q,  applied
between the two forward passes, to parameters and not to buffers. After the step the batch's keys replace the oldest
ones in the queue.

Batch-norm statistics would let a query recognise its key by the company it keeps. The authors compute them per GPU and
shuffle the keys over GPUs; here a process passes its batch through the network in groups of `norm_group` tiles, which
gives one device the same protection, and keys are shuffled over the whole batch.

K. He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020; X. Chen et al., "Improved
Baselines with Momentum Contrastive Learning", arXiv:2003.04297; authors' code: facebookresearch/moco.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eosin.core.collective import gather, local_slice
from eosin.core.console import warn
from eosin.core.draws import Draws, stream_seed
from eosin.core.errors import EosinError
from eosin.core.transfer import upload
from eosin.encoders import Encoder
from eosin.methods.base import METHODS, Method, MethodConfig, Setting, Step
from eosin.methods.moco_loss import moco_loss

__all__ = ["MoCo", "MoCoConfig"]


class MoCoConfig(MethodConfig):
    """MoCo v2; the defaults are the authors' (`main_moco.py --mlp --moco-t 0.2 --aug-plus --cos`)."""

    name: Literal["mocov2"] = "mocov2"
    dim: int = Field(128, ge=1)
    """Width of queries and keys."""
    hidden: int | None = Field(None, ge=1)
    """Width of the head's hidden layer; null takes the backbone's."""
    queue_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 65536
    """Keys kept as negatives (K): a multiple of the batch. `auto` keeps it below half of the tiles, since a tile's own
    old keys would be among its negatives."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = 0.999
    """How much of the key encoder is kept at each step (m). `auto` lets the key encoder follow within a sixth of a
    short run."""
    temperature: float = Field(0.2, gt=0.0)
    """Softmax temperature (T)."""
    norm_group: int = Field(32, ge=2)
    """Tiles that share batch-norm statistics: the authors' 256 tiles on 8 GPUs."""


@METHODS.register("mocov2")
class MoCo(Method):
    """MoCo v2 with split and shuffled batch norm.

    Args:
        config: The method's fields.
        make_encoder: Builds an untrained encoder; called once.
        seed: Seed of the head, the queue and the shuffling.
    """

    Config: ClassVar[type[MethodConfig]] = MoCoConfig
    views: ClassVar[Mapping[str, int | None]] = {"global": 2}
    norm: ClassVar[Literal["synchronized", "own"]] = "own"
    # The learning rate changes once an ImageNet epoch.
    defaults: ClassVar[Mapping[str, Any]] = {"optimizer": {"stair_samples": 1_281_167}}

    queue: Tensor
    """[d, K] keys of earlier batches, oldest at `pointer`."""

    def __init__(self, config: MoCoConfig, make_encoder: Callable[..., Encoder], seed: int) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        assert config.queue_size != "auto"
        assert config.momentum != "auto"
        self.queue_size, self.momentum = config.queue_size, config.momentum
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "moco"))
            backbone = make_encoder()
            hidden = config.hidden or backbone.width
            head = nn.Sequential(nn.Linear(backbone.width, hidden), nn.ReLU(), nn.Linear(hidden, config.dim))
            queue = F.normalize(torch.randn(config.dim, self.queue_size), dim=0)
        self.query = nn.ModuleDict({"backbone": backbone, "head": head})
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", queue)
        self.pointer = 0
        self.chance_loss = math.log(self.queue_size + 1)
        self._has_batch_norm = any(isinstance(module, _BatchNorm) for module in backbone.modules())
        self._new_keys: list[Tensor] = []

    @classmethod
    def automatic(cls, config: Any, setting: Setting) -> dict[str, Any]:
        """See `Method.automatic`; the values are ours, from short runs on a thousand tiles."""
        room = max(1, min(65536, setting.tiles // 2) // setting.batch)
        return {
            "method.queue_size": setting.batch * 2 ** (room.bit_length() - 1),
            "method.momentum": round(min(0.999, max(0.99, 1 - 6.25 / setting.steps)), 4),
        }

    @property
    def encoder(self) -> Encoder:
        """The query backbone."""
        backbone = self.query["backbone"]
        assert isinstance(backbone, Encoder)
        return backbone

    def prepare(self, batch: int, total_steps: int) -> None:
        """See `Method.prepare`."""
        super().prepare(batch, total_steps)
        if self.queue_size % batch:
            fitting = max(batch, self.queue_size // batch * batch)
            raise EosinError(
                f"method.queue_size {self.queue_size} is not a multiple of the batch of {batch}; "
                f"use --method.queue_size {fitting} or another --batch_size"
            )

    def forward(self, views: list[Tensor], draws: Draws | None = None) -> Step:
        """See `Method.forward`; `views` are the query's and the key's."""
        query_view, key_view = views
        features = self._in_groups(self.query["backbone"], query_view)
        queries = self._unit(self.query["head"](features))
        with torch.no_grad():
            if not self._new_keys:  # with gradient accumulation, once per optimiser step
                self._follow_query()
            keys = self._encode_keys(key_view)
        loss, accuracy = self.contrast(queries, keys)
        return Step(
            loss, {"contrastive_accuracy": accuracy}, features.detach().float(), (queries.detach(), keys.detach())
        )

    def contrast(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Compute InfoNCE against the queue.

        Args:
            queries: float32 [B, d], L2-normalised.
            keys: float32 [B, d], L2-normalised, row by row the positives.

        Returns:
            The loss, and the share of queries whose positive scores highest.
        """
        # Mixed precision stops here: the authors' logits are fp32, and bf16 would round q.k / T to steps of 1/64.
        with torch.autocast(queries.device.type, enabled=False):
            return moco_loss(queries, keys, self.queue, self.config.temperature)

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the batch's keys in the place of the oldest ones."""
        keys = torch.cat(self._new_keys)
        self.queue[:, self.pointer : self.pointer + len(keys)] = keys.T
        self.pointer = (self.pointer + len(keys)) % self.queue_size
        self._new_keys = []
        super().after_step()

    def get_extra_state(self) -> dict[str, int]:
        """See `Method.get_extra_state`."""
        return super().get_extra_state() | {"pointer": self.pointer}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """See `Method.set_extra_state`."""
        super().set_extra_state(state)
        self.pointer = state["pointer"]

    @torch.no_grad()
    def _follow_query(self) -> None:
        follower: list[Tensor] = list(self.key.parameters())
        leader: list[Tensor] = [parameter.detach() for parameter in self.query.parameters()]
        torch._foreach_mul_(follower, self.momentum)
        torch._foreach_add_(follower, leader, alpha=1 - self.momentum)

    @torch.no_grad()
    def _encode_keys(self, view: Tensor) -> Tensor:
        """Encode this process's share of the shuffled batch; keep all keys for the queue, return this batch's own."""
        shuffle = self._has_batch_norm
        if shuffle:
            own = len(view)
            view = gather(view)
            if self.steps == 0 and not self._new_keys and len(view) == own and self._groups(own) == 1:
                warn(
                    f"batch norm sees all {own} tiles of a forward pass at once, so a query can know its key by the "
                    f"batch's statistics; use --method.norm_group {max(2, own // 2)} or a larger batch"
                )
            order = upload(self._order(len(view)), view.device)
            view = local_slice(view[order])
        keys = gather(self._unit(self.key["head"](self._in_groups(self.key["backbone"], view))))
        if shuffle:
            keys = keys[torch.argsort(order)]
        self._new_keys.append(keys)
        return local_slice(keys)

    def _unit(self, projections: Tensor) -> Tensor:
        """L2-normalise in the queue's precision: under mixed precision the head's output is bf16."""
        return F.normalize(projections.to(self.queue.dtype), dim=1)

    def _order(self, size: int) -> Tensor:
        """Draw the shuffling of one forward pass: the same in every process, another at each pass."""
        generator = torch.Generator()
        generator.manual_seed(stream_seed(self.seed, "shuffle", self.steps, len(self._new_keys)))
        return torch.randperm(size, generator=generator)

    def _in_groups(self, backbone: nn.Module, images: Tensor) -> Tensor:
        if not self._has_batch_norm:
            return backbone(images)
        return torch.cat([backbone(part) for part in torch.tensor_split(images, self._groups(len(images)))])

    def _groups(self, tiles: int) -> int:
        """Count the near-equal groups: a last group of one or two tiles would have useless statistics."""
        return max(1, round(tiles / self.config.norm_group))
