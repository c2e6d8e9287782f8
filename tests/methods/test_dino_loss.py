"""DINO's loss against the published double loop: values, gradients, statistics, and what it keeps in memory."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eosin.methods import dino_loss as module
from eosin.methods.dino_loss import dino_loss, dino_loss_and_statistics


def published(student, teacher, center, student_temperature, teacher_temperature):
    """Cross-entropies of all pairs, one by one, as the authors' loop adds them up."""
    targets = torch.softmax((teacher - center) / teacher_temperature, dim=-1).chunk(2)
    crops = (student / student_temperature).split(len(targets[0]))
    total, terms = 0, 0
    for number, target in enumerate(targets):
        for other, crop in enumerate(crops):
            if other == number:
                continue
            total = total + torch.sum(-target * torch.log_softmax(crop, dim=-1), dim=-1).mean()
            terms += 1
    return total / terms


def draw(batch, prototypes, crops, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = [(crops * batch, prototypes), (2 * batch, prototypes), (prototypes,)]
    student, teacher, center = (0.2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in make)
    return student.to(dtype).requires_grad_(), teacher.to(dtype), center.to(dtype)


def distance(ours, theirs):
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


cases = given(
    batch=st.integers(1, 6),
    prototypes=st.integers(2, 60),
    crops=st.sampled_from([2, 3, 10]),
    temperatures=st.tuples(st.floats(0.05, 0.5), st.floats(0.02, 0.2)),
    rows=st.integers(1, 7),
    seed=st.integers(0, 1000),
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@cases
@settings(max_examples=60)
def test_values_and_gradients_are_those_of_the_double_loop(
    dtype, tolerance, batch, prototypes, crops, temperatures, rows, seed
):
    student, teacher, center = draw(batch, prototypes, crops, dtype, seed)
    exact = student.detach().double().requires_grad_()
    expected = published(exact, teacher.double(), center.double(), *temperatures)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CPU_CHUNK", rows * prototypes)
        loss = dino_loss(student, teacher, center, *temperatures)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.dtype == gradient.dtype == dtype
    assert abs(loss.item() - expected.item()) <= tolerance * max(1.0, expected.item())
    # A gradient is a difference of probabilities, which near 0 has no digits of its own: their length is the measure.
    probabilities = (batch * (2 + 4 * (crops - 2))) ** 0.5 / (2 * (crops - 1) * batch * temperatures[0])
    error = (gradient.double() - expected_gradient).norm()
    assert error <= tolerance * max(float(expected_gradient.norm()), probabilities)


def test_full_width_in_float32_equals_the_double_loop_in_float64():
    student, teacher, center = draw(2, 65_536, 10, torch.float32)
    exact = student.detach().double().requires_grad_()
    expected = published(exact, teacher.double(), center.double(), 0.1, 0.04)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    loss = dino_loss(student, teacher, center, 0.1, 0.04)
    (gradient,) = torch.autograd.grad(loss, student)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert distance(gradient, expected_gradient) <= 1e-6


@pytest.mark.parametrize("crops", [2, 10])
def test_equals_lightly(crops):
    loss_module = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install eosin[bench]")
    student, teacher, center = draw(4, 50, crops, torch.float32)
    peer = loss_module.DINOLoss(output_dim=50, student_temp=0.1, teacher_temp=0.04)
    peer.center.copy_(center)
    expected = peer(list(teacher.chunk(2)), list(student.chunk(crops)))
    (expected_gradient,) = torch.autograd.grad(expected, student)
    loss, seen = dino_loss_and_statistics(student, teacher, center, 0.1, 0.04)
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert distance(gradient, expected_gradient) <= 1e-6
    torch.testing.assert_close(0.9 * center + 0.1 * seen.logits, peer.center.flatten(), rtol=1e-5, atol=1e-7)


def test_the_statistics_are_those_of_the_targets(monkeypatch):
    monkeypatch.setattr(module, "_CPU_CHUNK", 2 * 30)
    student, teacher, center = draw(5, 30, 4)
    _, seen = dino_loss_and_statistics(student, teacher, center, 0.1, 0.04)
    targets = torch.softmax((teacher - center) / 0.04, dim=1)
    torch.testing.assert_close(seen.target, targets.mean(dim=0))
    torch.testing.assert_close(seen.entropy, -(targets * targets.log()).sum(dim=1).mean())
    torch.testing.assert_close(seen.logits, teacher.mean(dim=0))
    assert not any(value.requires_grad for value in seen)


def test_targets_of_one_prototype_and_extreme_logits_stay_finite():
    student = torch.tensor([[1e4, 0.0], [0.0, 1e4]], requires_grad=True)
    teacher = torch.tensor([[1e4, 0.0], [1e4, 0.0]])
    loss, seen = dino_loss_and_statistics(student, teacher, torch.zeros(2), 0.1, 0.04)
    loss.backward()
    assert loss.item() == pytest.approx(5e4)
    assert seen.entropy == 0
    assert torch.isfinite(student.grad).all()


def test_uniform_logits_give_the_loss_by_chance():
    student, teacher = torch.zeros(6, 40), torch.zeros(4, 40)
    assert dino_loss(student, teacher, torch.zeros(40), 0.1, 0.04) == pytest.approx(math.log(40))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_with_in_float32(dtype):
    student, teacher, center = draw(3, 40, 4, torch.float32)
    half = student.detach().to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dino_loss(half, teacher.to(dtype), center, 0.1, 0.04)
    expected = dino_loss(full, teacher.to(dtype).float(), center, 0.1, 0.04)
    assert loss.dtype == torch.float32
    assert loss.equal(expected)
    loss.backward()
    expected.backward()
    assert half.grad.equal(full.grad.to(dtype))


def test_the_gradient_is_scaled_once_and_its_inputs_are_left_alone():
    student, teacher, center = draw(3, 20, 4)
    teacher.requires_grad_()
    before = [tensor.detach().clone() for tensor in (student, teacher, center)]
    (whole,) = torch.autograd.grad(dino_loss(student, teacher, center, 0.1, 0.04), student)
    loss = dino_loss(student, teacher, center, 0.1, 0.04)
    (loss / 4).backward(retain_graph=True)
    torch.testing.assert_close(student.grad, whole / 4)
    assert teacher.grad is None
    with pytest.raises(RuntimeError, match="can be taken once"):
        loss.backward()
    for tensor, value in zip((student, teacher, center), before, strict=True):
        assert tensor.detach().equal(value)


def test_a_second_derivative_is_refused():
    student, teacher, center = draw(3, 20, 4)
    factor = torch.tensor(2.0, requires_grad=True)
    loss = factor * dino_loss(student, teacher, center, 0.1, 0.04)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class _Allocations(TorchDispatchMode):
    """Notes the sizes of the tensors that operations make, views left out."""

    def __init__(self, known):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        given_storages = {
            leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(results):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in self.known | given_storages:
                self.sizes.append(leaf.numel())
        return results


@pytest.mark.parametrize("gradient", [True, False])
def test_nothing_of_the_batch_is_stored_but_the_gradient(monkeypatch, gradient):
    monkeypatch.setattr(module, "_CPU_CHUNK", 2 * 30)
    student, teacher, center = draw(8, 30, 6)
    with _Allocations([student, teacher, center]) as allocated, torch.set_grad_enabled(gradient):
        dino_loss(student, teacher, center, 0.1, 0.04)
    large = [size for size in allocated.sizes if size > 2 * 30]
    assert large == [student.numel()] * gradient


def test_a_compiled_caller_gives_the_same():
    student, teacher, center = draw(3, 20, 4)

    def function(logits):
        return dino_loss(2 * logits, teacher, center, 0.1, 0.04)

    (expected,) = torch.autograd.grad(function(student), student)
    (gradient,) = torch.autograd.grad(torch.compile(function, backend="eager")(student), student)
    assert gradient.equal(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_without_waiting():
    student, teacher, center = draw(4, 1000, 10, torch.float32)
    expected = dino_loss(student, teacher, center, 0.1, 0.04)
    (expected_gradient,) = torch.autograd.grad(expected, student)
    moved = student.detach().cuda().requires_grad_()
    teacher, center = teacher.cuda(), center.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = dino_loss(moved, teacher, center, 0.1, 0.04)
        (gradient,) = torch.autograd.grad(loss, moved)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.cpu(), expected, rtol=1e-6, atol=0)
    assert distance(gradient.cpu(), expected_gradient) <= 1e-6
