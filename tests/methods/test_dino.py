"""DINO against a plain, separate implementation over several steps, and each detail that re-implementations lose."""

import copy
import math

import pytest
import torch

from eosin.augment import AugmentConfig
from eosin.core.draws import Draws
from eosin.core.errors import EosinError
from eosin.encoders import build_encoder
from eosin.methods import Setting, dino
from eosin.methods.dino import DINO, DINOConfig
from eosin.methods.drop_path import draw_masks

GRAY = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
SMALL = {"prototypes": 24, "hidden": 20, "bottleneck": 8, "drop_path": 0.0, "freeze_last_layer_samples": 0}


def build(architecture="test_vit", *, seed=0, **fields):
    def make_encoder(**options):
        return build_encoder(architecture, size=32, **GRAY, **options)

    return DINO(DINOConfig(**{**SMALL, **fields}), make_encoder, seed).double().train()


def batches(count, size=6, local=3):
    """Crops of 32 and 16 pixels."""
    generator = torch.Generator().manual_seed(5)
    sides = [32, 32] + [16] * local
    return [
        [torch.randn(size, 3, side, side, generator=generator, dtype=torch.float64) for side in sides]
        for _ in range(count)
    ]


def student_parameters(method):
    return [parameter for parameter in method.student.parameters() if parameter.requires_grad]


def descend(method, lr=0.05):
    """A step of plain gradient descent in the loop's order."""
    method.before_step()
    with torch.no_grad():
        for parameter in student_parameters(method):
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
    method.zero_grad()
    method.after_step()


class PlainDINO:
    """The published algorithm: schedules as arrays, the head written out, one pair of crops at a time."""

    def __init__(self, method, steps, warmup_steps):
        config = method.config
        self.student = copy.deepcopy(method.student)
        self.teacher = copy.deepcopy(method.student)
        self.center = torch.zeros(config.prototypes, dtype=torch.float64)
        self.momenta = [
            1 + 0.5 * (config.momentum - 1) * (1 + math.cos(math.pi * step / steps)) for step in range(steps)
        ]
        first, last = config.warmup_teacher_temperature, config.teacher_temperature
        ramp = [first + (last - first) * step / warmup_steps for step in range(warmup_steps)]
        self.temperatures = ramp + [last] * (steps - warmup_steps)
        self.kept = config.center_momentum

    def network(self, parts, crops):
        features = []
        for side in (32, 16):
            same = [crop for crop in crops if crop.shape[-1] == side]
            if same:
                features.append(parts["backbone"](torch.cat(same)))
        first, second, third = (layer for layer in parts["head"].mlp if isinstance(layer, torch.nn.Linear))
        x = torch.cat(features)
        for layer in (first, second):
            x = x @ layer.weight.T + layer.bias
            x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        x = x @ third.weight.T + third.bias
        x = x / x.square().sum(dim=1, keepdim=True).sqrt()
        lengths, directions = (
            getattr(parts["head"].prototypes.parametrizations.weight, f"original{i}") for i in (0, 1)
        )
        rows = lengths * directions / directions.square().sum(dim=1, keepdim=True).sqrt()
        return (x @ rows.T).chunk(len(crops))

    def step(self, number, crops, lr, frozen):
        with torch.no_grad():
            teacher = self.network(self.teacher, crops[:2])
        student = self.network(self.student, crops)
        losses = []
        for t in range(2):
            target = torch.softmax((teacher[t] - self.center) / self.temperatures[number], dim=1)
            for s in range(len(crops)):
                if s != t:
                    losses.append(-(target * torch.log_softmax(student[s] / 0.1, dim=1)).sum(dim=1).mean())
        loss = sum(losses) / len(losses)
        self.student.zero_grad()
        loss.backward()
        gradients = [p.grad.clone() for p in self.student.parameters() if p.requires_grad]
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                if parameter.requires_grad and not (frozen and "prototypes" in name):
                    parameter -= lr * parameter.grad
            for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                slow.copy_(self.momenta[number] * slow + (1 - self.momenta[number]) * fast)
            self.center = self.kept * self.center + (1 - self.kept) * torch.cat(teacher).mean(dim=0)
        return loss.detach(), gradients


@pytest.mark.parametrize(
    ("architecture", "local", "fields"),
    [
        ("test_vit", 3, {}),
        ("test_vit", 0, {"norm_last_layer": False}),
        ("test_resnet", 3, {"norm_last_layer": False, "freeze_last_layer_samples": 0}),
    ],
)
def test_six_steps_equal_the_plain_implementation(architecture, local, fields):
    schedule = {"momentum": 0.8, "warmup_teacher_temperature_samples": 3 * 6, "teacher_temperature": 0.07}
    method = build(architecture, **{"freeze_last_layer_samples": 2 * 6, **schedule, **fields})
    method.prepare(6, 8)
    plain = PlainDINO(method, steps=8, warmup_steps=3)
    for number, crops in enumerate(batches(6, local=local)):
        output = method(crops)
        output.loss.backward()
        gradients = [parameter.grad.clone() for parameter in student_parameters(method)]
        descend(method)
        frozen = number * 6 < method.config.freeze_last_layer_samples
        loss, expected = plain.step(number, crops, lr=0.05, frozen=frozen)
        torch.testing.assert_close(output.loss.detach(), loss, rtol=1e-10, atol=0)
        torch.testing.assert_close(method.center, plain.center, rtol=1e-10, atol=1e-14)
        for ours, theirs in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
        for name in ("student", "teacher"):
            ours, theirs = getattr(method, name).state_dict(), getattr(plain, name).state_dict()
            for key, value in theirs.items():
                torch.testing.assert_close(ours[key], value, rtol=1e-9, atol=1e-11, msg=f"{name} {key}")


def test_the_teacher_starts_as_a_copy_without_gradients_or_stochastic_depth():
    method = build(drop_path=0.3)
    for (name, value), (other, copied) in zip(
        method.student.state_dict().items(), method.teacher.state_dict().items(), strict=True
    ):
        assert name == other
        assert value.equal(copied)
        assert value.data_ptr() != copied.data_ptr()
    assert not any(parameter.requires_grad for parameter in method.teacher.parameters())
    dropping = [
        name for name, module in method.named_modules() if getattr(module, "rate", 0) or "DropPath" in str(type(module))
    ]
    assert dropping
    assert all(name.startswith("student.backbone") for name in dropping)
    assert method.encoder is method.teacher["backbone"]


def test_the_teacher_moves_after_the_optimiser_and_towards_its_result():
    method = build(momentum=0.5)
    crops = batches(1)[0]
    start = [p.clone() for p in method.teacher.parameters()]
    method(crops).loss.backward()
    for before, parameter in zip(start, method.teacher.parameters(), strict=True):
        assert parameter.equal(before)
    descend(method)
    for before, slow, fast in zip(start, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.5 * before + 0.5 * fast)


def test_the_teacher_keeps_its_own_batch_norm_statistics():
    """The average is over parameters; running statistics follow the teacher's own passes in training mode."""
    method = build("test_resnet")
    crops = batches(1)[0]
    reference = copy.deepcopy(method.teacher["backbone"])
    with torch.no_grad():
        reference(torch.cat(crops[:2]))
    method(crops).loss.backward()
    descend(method)
    students = dict(method.student["backbone"].named_buffers())
    for name, value in method.teacher["backbone"].named_buffers():
        torch.testing.assert_close(value, dict(reference.named_buffers())[name])
        assert not value.equal(students[name])


def test_momentum_and_teacher_temperature_follow_their_schedules():
    method = build(
        momentum=0.9, teacher_temperature=0.07, warmup_teacher_temperature=0.03, warmup_teacher_temperature_samples=40
    )
    method.prepare(4, 100)
    seen = {}
    for step in (0, 5, 10, 50, 100):
        method.steps = step
        seen[step] = (method.momentum, method.teacher_temperature)
    assert seen[0] == pytest.approx((0.9, 0.03))
    assert seen[5][1] == pytest.approx(0.05)
    assert seen[10][1] == pytest.approx(0.07)
    assert seen[50] == pytest.approx((0.95, 0.07))
    assert seen[100] == pytest.approx((1.0, 0.07))
    method.steps = 5
    scalars = method(batches(1)[0]).scalars
    assert scalars["teacher_temperature"].item() == pytest.approx(0.05)
    assert scalars["teacher_momentum"].item() == pytest.approx(method.momentum)


def test_the_last_layer_is_frozen_for_as_many_samples_as_said():
    method = build(freeze_last_layer_samples=10)
    method.prepare(6, 10)
    for crops, frozen in zip(batches(3), (True, True, False), strict=True):
        method(crops).loss.backward()
        method.before_step()
        with_gradient = {name for name, p in method.student.named_parameters() if p.grad is not None}
        assert ("head.prototypes.parametrizations.weight.original1" in with_gradient) is not frozen
        assert "head.mlp.0.weight" in with_gradient
        method.after_step()


def test_the_head_is_the_authors():
    method = build()
    head = method.student["head"]
    assert [type(layer).__name__ for layer in head.mlp] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert [layer.out_features for layer in head.mlp if hasattr(layer, "out_features")] == [20, 20, 8]
    assert head.prototypes.bias is None
    weight = head.prototypes.parametrizations.weight
    assert not weight.original0.requires_grad
    assert weight.original0.equal(torch.ones(24, 1, dtype=torch.float64))
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(24, dtype=torch.float64))
    vectors, logits = head(torch.randn(5, 64, dtype=torch.float64))
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(logits, vectors @ head.prototypes.weight.T)


def test_the_head_is_drawn_as_the_authors_draw_it():
    head = build(hidden=400, bottleneck=100, prototypes=500).student["head"]
    for layer in head.mlp:
        if isinstance(layer, torch.nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not layer.bias.any()
    drawn = head.prototypes.parametrizations.weight.original1  # uniform in +-1 / sqrt(inputs), torch's own
    assert drawn.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert drawn.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


def test_lengths_of_the_prototypes_are_learned_on_request():
    method = build(norm_last_layer=False)
    lengths = method.student["head"].prototypes.parametrizations.weight.original0
    assert lengths.requires_grad
    assert lengths.shape == (24, 1)  # two dimensions, so weight decay reaches it as in the authors' code
    assert lengths.equal(torch.ones(24, 1, dtype=torch.float64))


def test_the_head_has_batch_norm_on_request():
    names = [type(layer).__name__ for layer in build(head_norm=True).student["head"].mlp]
    assert names == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]


def test_the_class_token_does_not_start_at_zero():
    token = build(seed=3).student["backbone"].backbone.cls_token
    assert 0.01 < token.std() < 0.03


def test_one_forward_per_crop_size_and_one_head_pass():
    method = build()
    passes = {"backbone": [], "head": []}
    for name, seen in passes.items():
        method.student[name].register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
    method(batches(1)[0])
    assert passes == {"backbone": [12, 18], "head": [30]}


def test_gradients_reach_the_student_only():
    method = build(norm_last_layer=False)
    method(batches(1)[0]).loss.backward()
    with_gradient = {name for name, parameter in method.named_parameters() if parameter.grad is not None}
    assert with_gradient == {f"student.{name}" for name, _ in method.student.named_parameters()}


def test_the_step_shows_the_teachers_features_and_matching_tiles():
    method = build()
    crops = batches(1)[0]
    output = method(crops)
    with torch.no_grad():
        features = method.teacher["backbone"](crops[0])
        vectors, _ = method.student["head"](method.student["backbone"](crops[0]))
        targets, logits = method.teacher["head"](method.teacher["backbone"](torch.cat(crops[:2])))
    torch.testing.assert_close(output.features.double(), features, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output.pairs[0], vectors)
    torch.testing.assert_close(output.pairs[1], targets[6:])
    q = torch.softmax(logits / 0.04, dim=1)
    torch.testing.assert_close(output.scalars["watch/target_entropy"], -(q * q.log()).sum(dim=1).mean())
    mean = q.mean(dim=0)
    torch.testing.assert_close(output.scalars["watch/prototype_usage"], torch.exp(-(mean * mean.log()).sum()))
    assert method.chance_loss == math.log(24)


def test_accumulation_moves_teacher_and_centre_once_for_the_whole_batch():
    whole, pieces = build(momentum=0.5), build(momentum=0.5)
    crops = batches(1)[0]
    whole(crops).loss.backward()
    for half in (slice(0, 3), slice(3, 6)):
        (pieces([crop[half] for crop in crops]).loss / 2).backward()
    assert not pieces.center.any()
    for method in (whole, pieces):
        descend(method)
    assert whole.center.any()
    assert pieces.steps == 1
    torch.testing.assert_close(pieces.center, whole.center, rtol=1e-10, atol=1e-14)
    for ours, theirs in zip(pieces.parameters(), whole.parameters(), strict=True):
        # timm interpolates position embeddings in float32, so their gradients are sums of rounded ones.
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_stochastic_depth_follows_the_tile_and_not_the_batch():
    method = build(drop_path=0.5)
    crops = batches(1)[0]
    torch.manual_seed(0)
    whole = method(crops, Draws(1, 0, range(6)))
    torch.manual_seed(1)
    halves = [
        method([crop[half] for crop in crops], Draws(1, 0, range(half.start, half.stop)))
        for half in (slice(0, 3), slice(3, 6))
    ]
    torch.testing.assert_close(torch.cat([half.pairs[0] for half in halves]), whole.pairs[0])
    torch.testing.assert_close((halves[0].loss + halves[1].loss) / 2, whole.loss, rtol=1e-10, atol=0)
    assert method(crops, Draws(1, 1, range(6))).loss != whole.loss


def test_every_crop_has_masks_of_its_own(monkeypatch):
    """Crops of one size share a pass, so a pass is told the numbers of its crops."""
    seen = []

    def record(layers, draws, views, device):
        seen.append(list(views))
        draw_masks(layers, draws, views, device)

    monkeypatch.setattr(dino, "draw_masks", record)
    build(drop_path=0.5)(batches(1)[0], Draws(1, 0, range(6)))
    assert seen == [[0, 1], [2, 3, 4]]


def test_without_draws_stochastic_depth_takes_torchs_generator():
    method = build(drop_path=0.5)
    crops = batches(1)[0]
    method(crops, Draws(1, 0, range(6)))
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(method(crops).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_a_state_goes_on_to_the_same_numbers():
    method, other = build(momentum=0.7), build(momentum=0.7, seed=1)
    method.prepare(6, 10)
    other.prepare(6, 10)
    first, second = batches(2)
    method(first).loss.backward()
    descend(method)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    assert other.steps == 1
    for run in (method, other):
        run(second).loss.backward()
        descend(run)
    for name, value in method.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert value.equal(other.state_dict()[name]), name


def test_mixed_precision_keeps_the_loss_in_float32():
    method = build(prototypes=50).float()
    crops = [crop.float() for crop in batches(1)[0]]
    full = method(crops)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method(crops)
    mixed.loss.backward()
    assert mixed.loss.dtype == mixed.features.dtype == mixed.pairs[0].dtype == torch.float32
    torch.testing.assert_close(mixed.loss, full.loss, rtol=0.05, atol=0)
    torch.testing.assert_close(mixed.pairs[0].norm(dim=1), torch.ones(6))


def test_no_centring_leaves_the_centre_at_zero():
    method = build(center_momentum=1.0)
    method(batches(1)[0]).loss.backward()
    descend(method)
    assert not method.center.any()


def test_a_network_without_stochastic_depth_is_named():
    with pytest.raises(EosinError, match="set drop_path to 0"):
        build("vgg11", drop_path=0.1)


def test_authors_fields():
    config = DINOConfig()
    assert (config.prototypes, config.hidden, config.bottleneck) == (65536, 2048, 256)
    assert (config.student_temperature, config.teacher_temperature) == (0.1, 0.04)
    assert (config.warmup_teacher_temperature, config.warmup_teacher_temperature_samples) == (0.04, 0)
    assert (config.momentum, config.final_momentum, config.center_momentum) == (0.996, 1.0, 0.9)
    assert (config.drop_path, config.freeze_last_layer_samples) == (0.1, 1_281_167)
    assert config.norm_last_layer
    assert not config.head_norm


def test_authors_optimiser_and_views():
    assert DINO.defaults["encoder"] == {"architecture": "vit_small_patch16_224"}
    assert DINO.defaults["optimizer"] == {
        "name": "adamw",
        "lr": 0.0005,
        "final_lr": 1e-6,
        "scale_final_lr": False,
        "warmup_samples": 12_811_670,
        "betas": [0.9, 0.999],
        "weight_decay": 0.04,
        "final_weight_decay": 0.4,
        "decay_vectors": False,
        "clip": 3.0,
    }
    views = AugmentConfig.parse(DINO.defaults["augment"], "defaults").views
    assert list(views) == list(DINO.views) == ["global_1", "global_2", "local"]
    for view in views.values():
        assert view.interpolation == "bicubic"
        assert view.jitter.plain() == {
            "brightness": 0.4,
            "contrast": 0.4,
            "saturation": 0.2,
            "hue": 0.1,
            "probability": 0.8,
        }
        assert view.grayscale == 0.2
        assert view.horizontal_flip == 0.5
        assert view.blur.sigma == (0.1, 2.0)
    geometry = {name: (view.count, view.size, view.scale) for name, view in views.items()}
    assert geometry == {
        "global_1": (1, 224, (0.4, 1.0)),
        "global_2": (1, 224, (0.4, 1.0)),
        "local": (8, 96, (0.05, 0.4)),
    }
    assert [view.blur.probability for view in views.values()] == [1.0, 0.1, 0.5]
    assert [view.solarize.probability for view in views.values()] == [0.0, 0.2, 0.0]


@pytest.mark.parametrize(
    ("tiles", "prototypes", "momentum", "temperature", "warmup"),
    [
        (1_000, 1024, 0.99, 0.02, 0.02),
        (19_999, 1024, 0.99, 0.02, 0.02),
        (20_000, 2048, 0.99, 0.02, 0.02),
        (60_000, 4096, 0.993, 0.045, 0.03),
        (100_000, 16384, 0.996, 0.07, 0.04),
        (200_000, 32768, 0.996, 0.07, 0.04),
        (500_000, 65536, 0.996, 0.07, 0.04),
    ],
)
def test_small_data_rule(tiles, prototypes, momentum, temperature, warmup):
    values = DINO.automatic(DINOConfig(teacher_temperature="auto"), Setting(tiles, 64, 1_000_000))
    assert values["method.prototypes"] == prototypes
    assert values["method.momentum"] == pytest.approx(momentum)
    assert values["method.teacher_temperature"] == pytest.approx(temperature)
    assert values["method.warmup_teacher_temperature"] == pytest.approx(warmup)
    assert values["method.warmup_teacher_temperature_samples"] == 37_500 * 64
    assert values["method.freeze_last_layer_samples"] == 1_250 * 64
    assert values["optimizer.warmup_samples"] == 12_500 * 64
    DINOConfig(**{name.removeprefix("method."): value for name, value in values.items() if name.startswith("method.")})


def test_warm_ups_take_at_most_a_share_of_a_short_run():
    values = DINO.automatic(DINOConfig(), Setting(1_000, 8, 1_000))
    assert values["method.warmup_teacher_temperature_samples"] == 300 * 8
    assert values["method.freeze_last_layer_samples"] == 10 * 8
    assert values["optimizer.warmup_samples"] == 100 * 8


def test_the_first_teacher_temperature_is_never_above_a_given_one():
    values = DINO.automatic(DINOConfig(teacher_temperature=0.01), Setting(1_000_000, 64, 1_000))
    assert values["method.warmup_teacher_temperature"] == 0.01


@pytest.mark.parametrize("momentum", [1.5, 1.0, -0.1])
def test_an_impossible_momentum_is_refused(momentum):
    with pytest.raises(EosinError, match=f"momentum.*{momentum}"):
        DINOConfig.parse({"momentum": momentum}, "dino")


def test_what_cannot_be_trained_is_refused_before_the_first_step():
    with pytest.raises(EosinError, match="use --batch_size 2"):
        build().prepare(1, 100)
    method = build(warmup_teacher_temperature_samples=1000)
    with pytest.raises(EosinError, match=r"samples 1000 is longer than the run of 800 .* use --method.warmup_t\S+ 240"):
        method.prepare(8, 100)
    method.prepare(10, 100)


@pytest.mark.parametrize(("samples", "warned"), [(799, False), (800, True)])
def test_prototypes_that_never_train_are_warned_of(capsys, samples, warned):
    build(freeze_last_layer_samples=samples).prepare(8, 100)
    assert ("holds the prototypes for the whole run" in " ".join(capsys.readouterr().err.split())) is warned
