"""DINO.

A student and a teacher, each a backbone and a head that ends in K prototypes, see crops of one tile: the teacher the
two global ones, the student all V. With logits y_v of the student, u_t of the teacher and a centre c,

    loss = mean over t in {0, 1}, v != t of  - < softmax((u_t - c) / tau_t), log softmax(y_v / tau_s) >

averaged over the batch (`dino_loss`). Gradients reach the student only. After the optimiser the teacher follows,

    theta_t <- m theta_t + (1 - m) theta_s,        m = 1 - (1 - m_0) (1 + cos(pi i / N)) / 2  at step i of N,

parameters and not buffers, and after the loss the centre,  c <- 0.9 c + 0.1 mean(u)  over the batches of all processes.
Centring alone would end in uniform targets, sharpening (tau_t < tau_s) alone in one prototype; together they hold each
other off.

The head is a three-layer MLP without batch norm, an L2-normalised bottleneck and a weight-normed linear layer, whose
gradients are withheld for the first epoch. Stochastic depth acts in the student only.

M. Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021; authors' code:
facebookresearch/dino.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from eosin.core.collective import average
from eosin.core.console import warn
from eosin.core.draws import Draws, stream_seed
from eosin.core.errors import EosinError
from eosin.encoders import Encoder
from eosin.methods.base import METHODS, Method, MethodConfig, Setting, Step
from eosin.methods.dino_loss import dino_loss_and_statistics
from eosin.methods.drop_path import draw_masks, replace_drop_paths
from eosin.methods.multicrop import crop_groups, embed_crops

__all__ = ["DINO", "DINOConfig", "DINOHead"]

EPOCH = 1_281_167
"""Images of ImageNet-1k: one epoch of the authors' schedules."""

_COLOR: Mapping[str, Any] = {
    "interpolation": "bicubic",
    "jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1, "probability": 0.8},
    "grayscale": 0.2,
}
_GLOBAL: Mapping[str, Any] = {"count": 1, "size": 224, "scale": [0.4, 1.0], **_COLOR}
_DEFAULTS: Mapping[str, Any] = {
    "encoder": {"architecture": "vit_small_patch16_224"},
    "optimizer": {
        "name": "adamw",
        "lr": 0.0005,
        "final_lr": 1e-6,
        "scale_final_lr": False,
        "warmup_samples": 10 * EPOCH,
        "betas": [0.9, 0.999],
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "decay_vectors": False,
        "clip": 3.0,
    },
    "augment": {
        "views": {
            "global_1": {**_GLOBAL, "blur": {"probability": 1.0}},
            "global_2": {**_GLOBAL, "blur": {"probability": 0.1}, "solarize": {"probability": 0.2}},
            "local": {"count": 8, "size": 96, "scale": [0.05, 0.4], **_COLOR, "blur": {"probability": 0.5}},
        }
    },
}

Temperature = Annotated[float, Field(gt=0.0)]
Samples = Annotated[int, Field(ge=0)]


class DINOConfig(MethodConfig):
    """DINO; the defaults are the authors' (`main_dino.py`)."""

    name: Literal["dino"] = "dino"
    prototypes: Annotated[int, Field(ge=2)] | Literal["auto"] = 65536
    """Outputs of the head (K)."""
    hidden: int = Field(2048, ge=1)
    """Width of the head's two hidden layers."""
    bottleneck: int = Field(256, ge=1)
    """Width of the vectors that are compared with the prototypes."""
    head_norm: bool = False
    """Batch norm in the head's hidden layers."""
    norm_last_layer: bool = True
    """Hold the prototypes at length 1; false learns their lengths, which the authors do for ViT-S in long runs."""
    drop_path: float = Field(0.1, ge=0.0, lt=1.0)
    """Stochastic depth of the student: the rate of its last block; 0 for networks that have none."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | Literal["auto"] = 0.996
    """How much of the teacher is kept at the first step (m_0)."""
    final_momentum: float = Field(1.0, ge=0.0, le=1.0)
    """How much of the teacher is kept at the end; between them a cosine."""
    student_temperature: float = Field(0.1, gt=0.0)
    """Softmax temperature of the student (tau_s)."""
    teacher_temperature: Temperature | Literal["auto"] = 0.04
    """Softmax temperature of the teacher after its warm-up (tau_t)."""
    warmup_teacher_temperature: Temperature | Literal["auto"] = 0.04
    """Softmax temperature of the teacher at the first step."""
    warmup_teacher_temperature_samples: Samples | Literal["auto"] = 0
    """Length of the teacher temperature's linear warm-up; the authors' long runs take 30 epochs, 38,435,010."""
    center_momentum: float = Field(0.9, ge=0.0, le=1.0)
    """How much of the centre is kept at each step; 1 switches centring off."""
    freeze_last_layer_samples: Samples | Literal["auto"] = EPOCH
    """How long the prototypes stay as drawn: one epoch."""


class DINOHead(nn.Module):
    """Backbone features to a unit vector in the bottleneck, and to its K logits.

    Args:
        width: Length of the features.
        config: The method's fields.
    """

    def __init__(self, width: int, config: DINOConfig) -> None:
        super().__init__()
        hidden = config.hidden
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            norm = [nn.BatchNorm1d(hidden)] if config.head_norm else []
            layers += [nn.Linear(inputs, hidden), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, config.bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = weight_norm(nn.Linear(config.bottleneck, int(config.prototypes), bias=False))
        lengths = self.prototypes.get_parameter("parametrizations.weight.original0")  # [K, 1]
        nn.init.ones_(lengths).requires_grad_(not config.norm_last_layer)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the L2-normalised bottleneck [N, d] and the logits [N, K] of features [N, D]."""
        vectors = self.mlp(features)
        # Normalised in full precision: in bf16 a unit vector's length is off by up to 1/256.
        exact = torch.float64 if vectors.dtype == torch.float64 else torch.float32
        vectors = F.normalize(vectors.to(exact), dim=1)
        return vectors, self.prototypes(vectors)


@METHODS.register("dino")
class DINO(Method):
    """Self-distillation with no labels.

    Args:
        config: The method's fields.
        make_encoder: Builds an untrained encoder; called for the student, with its stochastic depth, and the teacher.
        seed: Seed of the networks.
    """

    Config: ClassVar[type[MethodConfig]] = DINOConfig
    views: ClassVar[Mapping[str, int | None]] = {"global_1": 1, "global_2": 1, "local": None}
    defaults: ClassVar[Mapping[str, Any]] = _DEFAULTS

    center: Tensor
    """[K] moving average of the teacher's logits."""

    def __init__(self, config: DINOConfig, make_encoder: Callable[..., Encoder], seed: int) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "dino"))
            backbone = make_encoder(drop_path=config.drop_path)
            _draw_class_token(backbone)
            head = DINOHead(backbone.width, config)
            self.student = nn.ModuleDict({"backbone": backbone, "head": head})
            self.teacher = nn.ModuleDict({"backbone": make_encoder(), "head": DINOHead(backbone.width, config)})
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.register_buffer("center", torch.zeros(int(config.prototypes)))
        self.chance_loss = math.log(int(config.prototypes))
        self._drop_paths = replace_drop_paths(self.student["backbone"])
        self._teacher_means: list[Tensor] = []

    @classmethod
    def automatic(cls, config: Any, setting: Setting) -> dict[str, Any]:
        """See `Method.automatic`; the rule is lightly-train's for small sets of images.

        Fewer tiles get fewer prototypes, sharper targets and a faster teacher. Warm-ups are counted in steps, since ten
        passes over little data are few, and take at most their usual share of the run.
        """
        size = setting.tiles
        prototypes = {20_000: 1024, 50_000: 2048, 100_000: 4096, 200_000: 16384, 500_000: 32768}
        temperature = _between(size, (20_000, 100_000), (0.02, 0.07))
        settled = temperature if config.teacher_temperature == "auto" else float(config.teacher_temperature)

        def warmup(steps: int, share: float) -> int:
            return min(steps, int(share * setting.steps)) * setting.batch

        return {
            "method.prototypes": next((count for limit, count in prototypes.items() if size < limit), 65536),
            "method.momentum": _between(size, (20_000, 100_000), (0.99, 0.996)),
            "method.teacher_temperature": temperature,
            "method.warmup_teacher_temperature": min(settled, _between(settled, (0.02, 0.07), (0.02, 0.04))),
            "method.warmup_teacher_temperature_samples": warmup(37_500, 0.3),
            "method.freeze_last_layer_samples": warmup(1_250, 0.01),
            "optimizer.warmup_samples": warmup(12_500, 0.1),
        }

    @property
    def encoder(self) -> Encoder:
        """The teacher's backbone."""
        backbone = self.teacher["backbone"]
        assert isinstance(backbone, Encoder)
        return backbone

    @property
    def momentum(self) -> float:
        """How much of the teacher is kept at this step."""
        first, last = float(self.config.momentum), self.config.final_momentum
        done = self.steps / self.total_steps if self.total_steps else 0.0
        return last - (last - first) * (1 + math.cos(math.pi * min(done, 1.0))) / 2

    @property
    def teacher_temperature(self) -> float:
        """The teacher's temperature at this step."""
        first, last = float(self.config.warmup_teacher_temperature), float(self.config.teacher_temperature)
        length = int(self.config.warmup_teacher_temperature_samples)
        done = min(1.0, self.steps * self.batch / length) if length else 1.0
        return first + (last - first) * done

    def prepare(self, batch: int, total_steps: int) -> None:
        """See `Method.prepare`."""
        super().prepare(batch, total_steps)
        samples = batch * total_steps
        if batch < 2:
            raise EosinError("batch_size 1: the centre would be the tile's own logits; use --batch_size 2 or more")
        warmup = int(self.config.warmup_teacher_temperature_samples)
        if warmup > samples:
            raise EosinError(
                f"method.warmup_teacher_temperature_samples {warmup} is longer than the run of {samples} samples; "
                f"use --method.warmup_teacher_temperature_samples {int(0.3 * samples)} or a longer --samples"
            )
        frozen = int(self.config.freeze_last_layer_samples)
        if frozen >= samples:
            warn(
                f"method.freeze_last_layer_samples {frozen} holds the prototypes for the whole run of {samples} "
                f"samples; use --method.freeze_last_layer_samples {int(0.01 * samples)}"
            )

    def forward(self, views: list[Tensor], draws: Draws | None = None) -> Step:
        """See `Method.forward`; `views` are the two global crops and any number of local ones."""
        batch = len(views[0])
        with torch.no_grad():
            features = embed_crops(self.teacher["backbone"], views[:2])
            targets, teacher_logits = self.teacher["head"](features)
        vectors, logits = self.student["head"](torch.cat(list(self._student_features(views, draws))))
        temperature = self.teacher_temperature
        loss, teacher = dino_loss_and_statistics(
            logits, teacher_logits, self.center, self.config.student_temperature, temperature
        )
        self._teacher_means.append(teacher.logits)
        scalars = {
            "watch/prototype_usage": torch.exp(torch.special.entr(teacher.target).sum()),
            "watch/target_entropy": teacher.entropy,
            "teacher_temperature": loss.new_full((), temperature),
            "teacher_momentum": loss.new_full((), self.momentum),
        }
        pairs = (vectors[:batch].detach(), targets[batch:])
        return Step(loss, scalars, features[:batch].float(), pairs)

    def before_step(self) -> None:
        """Withhold the gradients of the last layer while it is frozen."""
        if self.steps * self.batch < int(self.config.freeze_last_layer_samples):
            head = self.student["head"]
            assert isinstance(head, DINOHead)
            for parameter in head.prototypes.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the teacher towards the student, and the centre towards the batch's mean."""
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        trained = [(slow.detach(), fast.detach()) for slow, fast in pairs if fast.requires_grad]
        followers, leaders = [slow for slow, _ in trained], [fast for _, fast in trained]
        momentum = self.momentum
        torch._foreach_mul_(followers, momentum)
        torch._foreach_add_(followers, leaders, alpha=1 - momentum)
        if self._teacher_means:
            mean = average(torch.stack(self._teacher_means).mean(dim=0))
            self.center.lerp_(mean.to(self.center.dtype), 1 - self.config.center_momentum)
        self._teacher_means = []
        super().after_step()

    def _student_features(self, views: list[Tensor], draws: Draws | None) -> Iterator[Tensor]:
        """Embed the crops with one pass per size, each with its masks of stochastic depth."""
        first = 0
        for group in crop_groups(views):
            numbers = range(first, first + len(group))
            draw_masks(self._drop_paths, draws, numbers, group[0].device)
            yield self.student["backbone"](torch.cat(group))
            first += len(group)


def _between(value: float, inputs: tuple[float, float], outputs: tuple[float, float]) -> float:
    """Interpolate linearly, constant outside, to four decimals."""
    share = min(1.0, max(0.0, (value - inputs[0]) / (inputs[1] - inputs[0])))
    return round(outputs[0] + (outputs[1] - outputs[0]) * share, 4)


def _draw_class_token(backbone: nn.Module) -> None:
    """Draw the class token as the authors do; timm starts it near zero."""
    for name, parameter in backbone.named_parameters():
        if name.rsplit(".", 1)[-1] == "cls_token":
            nn.init.trunc_normal_(parameter, std=0.02)
